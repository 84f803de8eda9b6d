//! The server that backends run in a lab: it tells its name and how it sees the
//! client, sends bytes that can be checked, and echoes TCP and UDP.

mod echo;
mod http;

use std::{
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};
use clap::Parser;
use lb_lab::{SERVER_READY, port};

/// A server for tests: HTTP on port 8080, TCP and UDP echo on port 7, on UDP port 9
/// its name and the sender's address, and on UDP port 53 every address that is asked for.
#[derive(Debug, Parser)]
struct Arguments {
    /// The name that it answers with
    #[arg(long)]
    name: String,
    /// An address to listen on; may be given several times
    #[arg(long = "address", required = true)]
    addresses: Vec<IpAddr>,
}

fn main() -> Result<()> {
    let Arguments { name, addresses } = Arguments::parse();
    let name: Arc<str> = name.into();
    for ip in addresses {
        let http_name = Arc::clone(&name);
        serve_tcp((ip, port::HTTP), move |stream| {
            http::serve(&http_name, stream)
        })?;
        serve_tcp((ip, port::ECHO), |stream| echo::tcp(&stream))?;
        serve_udp((ip, port::ECHO), |socket| echo::udp(&socket))?;
        let who_name = Arc::clone(&name);
        serve_udp((ip, port::WHO), move |socket| echo::who(&who_name, &socket))?;
        serve_udp((ip, port::DNS), |socket| echo::dns(&socket))?;
    }
    println!("{name}: {SERVER_READY}");
    loop {
        thread::park();
    }
}

/// Answers every connection on a thread of its own.
fn serve_tcp(
    address: (IpAddr, u16),
    serve: impl Fn(TcpStream) -> Result<()> + Clone + Send + 'static,
) -> Result<()> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on TCP {address:?}"))?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => {
                    let serve = serve.clone();
                    thread::spawn(move || report(serve(stream)));
                }
                Err(error) => eprintln!("cannot accept: {error}"),
            }
        }
    });
    Ok(())
}

fn serve_udp(
    address: (IpAddr, u16),
    serve: impl FnOnce(UdpSocket) -> Result<()> + Send + 'static,
) -> Result<()> {
    let socket =
        UdpSocket::bind(address).with_context(|| format!("cannot listen on UDP {address:?}"))?;
    thread::spawn(move || report(serve(socket)));
    Ok(())
}

fn report(result: Result<()>) {
    if let Err(error) = result {
        eprintln!("{error:#}");
    }
}
