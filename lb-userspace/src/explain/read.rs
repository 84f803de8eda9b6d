//! The headers of a frame, for people to read.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::state::{Header, TcpFlags};

/// EtherTypes.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: [u16; 2] = [0x8100, 0x88a8];
/// IP protocol numbers.
const ICMP: u8 = 1;
const IPIP: u8 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IP6IP: u8 = 41;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;

/// The headers of a frame, the outermost first, as far as they are there. `gue_port` is the UDP
/// port that what is wrapped in UDP is sent to, if that is what the frame is.
pub(super) fn headers(frame: &[u8], gue_port: Option<u16>) -> Vec<Header> {
    let mut reader = Reader {
        rest: frame,
        headers: Vec::new(),
        gue_port,
    };
    // What is not there any more ends the list.
    let _end = reader.ethernet();
    reader.headers
}

struct Reader<'a> {
    rest: &'a [u8],
    headers: Vec<Header>,
    gue_port: Option<u16>,
}

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.rest = self.rest.get(bytes..)?;
        Some(())
    }

    fn push(&mut self, layer: &str, ends: Option<(String, String)>, detail: Option<String>) {
        let (source, destination) = ends.unzip();
        self.headers.push(Header {
            layer: layer.to_owned(),
            source,
            destination,
            detail,
        });
    }

    fn ethernet(&mut self) -> Option<()> {
        let destination = self.take::<6>()?;
        let source = self.take::<6>()?;
        self.push("ethernet", Some((mac(source), mac(destination))), None);
        let mut ether_type = u16::from_be_bytes(self.take()?);
        while VLAN.contains(&ether_type) {
            let tci = u16::from_be_bytes(self.take()?);
            self.push("vlan", None, Some(format!("id {}", tci & 0xfff)));
            ether_type = u16::from_be_bytes(self.take()?);
        }
        match ether_type {
            IPV4 => self.ipv4(),
            IPV6 => self.ipv6(),
            _ => None,
        }
    }

    fn ipv4(&mut self) -> Option<()> {
        let header = self.take::<20>()?;
        let [_, _, a, b, ..] = header;
        let length = u16::from_be_bytes([a, b]);
        let address = |at: usize| {
            let octets: [u8; 4] = header[at..at + 4].try_into().expect("four bytes");
            Ipv4Addr::from(octets).to_string()
        };
        let offset = u16::from_be_bytes([header[6], header[7]]);
        let is_fragment = offset & 0x3fff != 0;
        let fragment = if is_fragment {
            format!(", fragment at byte {}", (offset & 0x1fff) * 8)
        } else {
            String::new()
        };
        let detail = format!("TTL {}, {length} bytes{fragment}", header[8]);
        self.push("ipv4", Some((address(12), address(16))), Some(detail));
        self.skip(usize::from(header[0] & 0xf).saturating_sub(5) * 4)?;
        if offset & 0x1fff != 0 {
            return None;
        }
        self.protocol(header[9])
    }

    fn ipv6(&mut self) -> Option<()> {
        let header = self.take::<40>()?;
        let length = u16::from_be_bytes([header[4], header[5]]);
        let address = |at: usize| {
            let octets: [u8; 16] = header[at..at + 16].try_into().expect("sixteen bytes");
            Ipv6Addr::from(octets).to_string()
        };
        let detail = format!("hop limit {}, {} bytes", header[7], u32::from(length) + 40);
        self.push("ipv6", Some((address(8), address(24))), Some(detail));
        let mut next = header[6];
        if next == FRAGMENT {
            let extension = self.take::<8>()?;
            let offset = u16::from_be_bytes([extension[2], extension[3]]) & !7;
            self.push("fragment", None, Some(format!("at byte {offset}")));
            if offset != 0 {
                return None;
            }
            next = extension[0];
        }
        self.protocol(next)
    }

    fn protocol(&mut self, number: u8) -> Option<()> {
        match number {
            IPIP => self.ipv4(),
            IP6IP => self.ipv6(),
            TCP => {
                let ends = self.ports()?;
                let header = self.take::<10>()?;
                let flags = TcpFlags(header[9]);
                self.push("tcp", Some(ends), Some(flags.to_string()));
                None
            }
            UDP => {
                let ends = self.ports()?;
                let is_gue = self.gue_port.is_some_and(|port| ends.1 == port.to_string());
                let length = u16::from_be_bytes(self.take()?);
                self.take::<2>()?;
                self.push("udp", Some(ends), Some(format!("{length} bytes")));
                if !is_gue {
                    return None;
                }
                let header = self.take::<4>()?;
                self.push("gue", None, None);
                self.skip(usize::from(header[0] & 0x1f) * 4)?;
                self.protocol(header[1])
            }
            ICMP | ICMPV6 => {
                let [kind, code] = self.take()?;
                let layer = if number == ICMP { "icmp" } else { "icmpv6" };
                self.push(layer, None, Some(format!("type {kind}, code {code}")));
                None
            }
            _ => None,
        }
    }

    fn ports(&mut self) -> Option<(String, String)> {
        let source = u16::from_be_bytes(self.take()?);
        let destination = u16::from_be_bytes(self.take()?);
        Some((source.to_string(), destination.to_string()))
    }
}

fn mac(address: [u8; 6]) -> String {
    let octets = address.map(|octet| format!("{octet:02x}"));
    octets.join(":")
}
