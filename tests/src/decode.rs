//! Two frames, compared field by field and byte by byte.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
};

use etherparse::{
    Ipv4Header, LaxPacketHeaders, LinkExtHeader, LinkHeader, NetHeaders, TcpHeader,
    TransportHeader, UdpHeader,
};

/// Bytes in a line of a dump.
const LINE: usize = 16;

/// What differs between two frames: the fields that they decode to, and the lines of a
/// dump. Nothing for equal frames.
#[must_use]
pub fn difference(expected: &[u8], got: &[u8]) -> Vec<String> {
    if expected == got {
        return Vec::new();
    }
    let (old, new) = (fields(expected), fields(got));
    let mut lines = Vec::new();
    let mut names: Vec<_> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let value = |of: &BTreeMap<String, String>| of.get(name).map_or("-", |v| v).to_owned();
        if old.get(name) != new.get(name) {
            lines.push(format!(
                "{name}: expected {}, got {}",
                value(&old),
                value(&new)
            ));
        }
    }
    for offset in (0..expected.len().max(got.len())).step_by(LINE) {
        let (old, new) = (line(expected, offset), line(got, offset));
        if old != new {
            lines.push(format!("{offset:04x} expected {old}"));
            lines.push(format!("{offset:04x} got      {new}"));
        }
    }
    lines
}

/// Bytes at `offset` in hexadecimal.
fn line(frame: &[u8], offset: usize) -> String {
    let end = frame.len().min(offset + LINE);
    let mut text = String::new();
    for byte in frame.get(offset..end).unwrap_or_default() {
        let _infallible = write!(text, "{byte:02x} ");
    }
    text
}

/// The fields of a frame, by layer and name.
fn fields(frame: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut set = |name: &str, value: String| {
        fields.insert(name.to_owned(), value);
    };
    set("frame length", frame.len().to_string());
    let headers = match LaxPacketHeaders::from_ethernet(frame) {
        Ok(headers) => headers,
        Err(error) => {
            set("ethernet", error.to_string());
            return fields;
        }
    };
    if let Some(LinkHeader::Ethernet2(ethernet)) = &headers.link {
        set("ethernet destination", mac(ethernet.destination));
        set("ethernet source", mac(ethernet.source));
        set("ethernet type", format!("{:?}", ethernet.ether_type));
    }
    for (index, extension) in headers.link_exts.iter().enumerate() {
        if let LinkExtHeader::Vlan(tag) = extension {
            set(
                &format!("tag {index} vlan"),
                tag.vlan_id.value().to_string(),
            );
            set(&format!("tag {index} pcp"), tag.pcp.value().to_string());
            set(
                &format!("tag {index} dei"),
                tag.drop_eligible_indicator.to_string(),
            );
            set(
                &format!("tag {index} type"),
                format!("{:?}", tag.ether_type),
            );
        }
    }
    match &headers.net {
        Some(NetHeaders::Ipv4(header, _)) => {
            set("ipv4 source", Ipv4Addr::from(header.source).to_string());
            set(
                "ipv4 destination",
                Ipv4Addr::from(header.destination).to_string(),
            );
            set("ipv4 checksum", ipv4_checksum(header));
            set("ipv4 ttl", header.time_to_live.to_string());
            set("ipv4 total length", header.total_len.to_string());
            set("ipv4 identification", header.identification.to_string());
            set("ipv4 protocol", format!("{:?}", header.protocol));
            set(
                "ipv4 options",
                format!("{:02x?}", header.options.as_slice()),
            );
            set(
                "ipv4 dscp and ecn",
                format!("{} {}", header.dscp.value(), header.ecn.value()),
            );
            set(
                "ipv4 fragment",
                format!(
                    "offset {} more {} don't {}",
                    header.fragment_offset.value(),
                    header.more_fragments,
                    header.dont_fragment
                ),
            );
        }
        Some(NetHeaders::Ipv6(header, extensions)) => {
            set("ipv6 source", Ipv6Addr::from(header.source).to_string());
            set(
                "ipv6 destination",
                Ipv6Addr::from(header.destination).to_string(),
            );
            set("ipv6 hop limit", header.hop_limit.to_string());
            set("ipv6 payload length", header.payload_length.to_string());
            set("ipv6 next header", format!("{:?}", header.next_header));
            set("ipv6 traffic class", header.traffic_class.to_string());
            set("ipv6 flow label", header.flow_label.value().to_string());
            set("ipv6 extensions", format!("{extensions:?}"));
        }
        other => set("network", format!("{other:?}")),
    }
    let payload = headers.payload.slice();
    match &headers.transport {
        Some(TransportHeader::Tcp(tcp)) => {
            set("tcp source port", tcp.source_port.to_string());
            set("tcp destination port", tcp.destination_port.to_string());
            set("tcp checksum", tcp_checksum(tcp, &headers, payload));
            let rest = TcpHeader {
                source_port: 0,
                destination_port: 0,
                checksum: 0,
                ..tcp.clone()
            };
            set("tcp rest", format!("{rest:?}"));
        }
        Some(TransportHeader::Udp(udp)) => {
            set("udp source port", udp.source_port.to_string());
            set("udp destination port", udp.destination_port.to_string());
            set("udp length", udp.length.to_string());
            set("udp checksum", udp_checksum(udp, &headers, payload));
        }
        other => set("transport", format!("{other:?}")),
    }
    set("payload length", payload.len().to_string());
    if let Some((error, layer)) = &headers.stop_err {
        set("broken", format!("{layer}: {error}"));
    }
    fields
}

fn mac(address: [u8; 6]) -> String {
    let bytes: Vec<_> = address.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

/// A checksum, and whether it is right.
fn checksum(found: u16, right: Option<u16>) -> String {
    match right {
        Some(right) if right == found => format!("{found:#06x} (right)"),
        Some(right) => format!("{found:#06x} (should be {right:#06x})"),
        None => format!("{found:#06x}"),
    }
}

fn ipv4_checksum(header: &Ipv4Header) -> String {
    checksum(header.header_checksum, Some(header.calc_header_checksum()))
}

fn tcp_checksum(tcp: &TcpHeader, headers: &LaxPacketHeaders<'_>, payload: &[u8]) -> String {
    let right = match &headers.net {
        Some(NetHeaders::Ipv4(ip, _)) => tcp.calc_checksum_ipv4(ip, payload).ok(),
        Some(NetHeaders::Ipv6(ip, _)) => tcp.calc_checksum_ipv6(ip, payload).ok(),
        _ => None,
    };
    checksum(tcp.checksum, right)
}

fn udp_checksum(udp: &UdpHeader, headers: &LaxPacketHeaders<'_>, payload: &[u8]) -> String {
    let right = match &headers.net {
        Some(NetHeaders::Ipv4(ip, _)) => udp.calc_checksum_ipv4(ip, payload).ok(),
        Some(NetHeaders::Ipv6(ip, _)) => udp.calc_checksum_ipv6(ip, payload).ok(),
        _ => None,
    };
    checksum(udp.checksum, right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;

    fn packet() -> Packet {
        let src = "192.0.2.1:1000".parse().unwrap();
        Packet::tcp(src, "192.0.2.2:80".parse().unwrap(), |tcp| tcp.syn = true)
    }

    #[test]
    fn equal_frames_do_not_differ() {
        assert_eq!(difference(&packet().build(), &packet().build()), [""; 0]);
    }

    #[test]
    fn fields_and_bytes_that_differ_are_named() {
        let frame = packet().build();
        let mut got = packet().with_ttl(63).build();
        got[25] ^= 1;
        let lines = difference(&frame, &got).join("\n");
        assert!(lines.contains("ipv4 ttl: expected 64, got 63"), "{lines}");
        assert!(lines.contains("ipv4 checksum: expected"), "{lines}");
        assert!(lines.contains("(should be"), "{lines}");
        assert!(lines.contains("0010 got"), "{lines}");
        assert!(!lines.contains("tcp"), "{lines}");
    }

    #[test]
    fn truncation_is_named() {
        let frame = packet().build();
        let lines = difference(&frame, &frame[..40]).join("\n");
        assert!(
            lines.contains("frame length: expected 54, got 40"),
            "{lines}"
        );
        assert!(lines.contains("broken: expected -"), "{lines}");
    }
}
