//! Echo, and the answer to "who is there?".

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpStream, UdpSocket},
};

use anyhow::Result;

/// More than any datagram has.
const DATAGRAM: usize = 65_536;

/// Sends back what comes until the client has said all.
pub(crate) fn tcp(stream: &TcpStream) -> Result<()> {
    io::copy(&mut &*stream, &mut &*stream)?;
    Ok(())
}

/// Sends back every datagram as it came.
pub(crate) fn udp(socket: &UdpSocket) -> Result<()> {
    answer_each(socket, |_, payload| payload.to_vec())
}

/// Answers every datagram with `NAME CLIENT`.
pub(crate) fn who(name: &str, socket: &UdpSocket) -> Result<()> {
    answer_each(socket, |client, _| format!("{name} {client}\n").into())
}

fn answer_each(socket: &UdpSocket, answer: impl Fn(SocketAddr, &[u8]) -> Vec<u8>) -> Result<()> {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let result = socket.recv_from(&mut buffer).and_then(|(length, client)| {
            socket.send_to(&answer(client, &buffer[..length]), client)
        });
        match result {
            Ok(_) => {}
            // An ICMP error about an earlier answer, or a client out of reach: the
            // next one is not concerned.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused
                        | ErrorKind::HostUnreachable
                        | ErrorKind::NetworkUnreachable
                ) =>
            {
                eprintln!("UDP: {error}");
            }
            Err(error) => return Err(error.into()),
        }
    }
}
