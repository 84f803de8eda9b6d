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

/// Answers every DNS query for one address with 192.0.2.53, whatever its name (RFC 1035,
/// section 4.1), and others without a record.
pub(crate) fn dns(socket: &UdpSocket) -> Result<()> {
    const TYPE_A: [u8; 4] = [0, 1, 0, 1];
    answer_each(socket, |_, query| {
        let mut answer = query.to_vec();
        if let [_, _, flags, code, ..] = answer.as_mut_slice() {
            *flags |= 0x80;
            *code = 0;
        }
        if query.ends_with(&TYPE_A) {
            if let Some(count) = answer.get_mut(7) {
                *count = 1;
            }
            // The name of the question; type and class; a minute; the address.
            answer.extend([0xc0, 12]);
            answer.extend(TYPE_A);
            answer.extend([0, 0, 0, 60, 0, 4, 192, 0, 2, 53]);
        }
        answer
    })
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
