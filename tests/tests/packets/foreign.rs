//! Packets that are none of the balancer's business leave byte for byte as they came,
//! and no counter and no table changes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, ether_type, ip_number,
};
use lb_tests::{
    BACKEND_IF, Bench, CLIENT_IF, Case, Extension, Flow, Kind, Link, OTHER_IF, Packet, Tag,
    in_network_namespace,
};

const BROADCAST: [u8; 6] = [0xff; 6];
/// Addresses that are no service's.
const OTHER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11);

/// Frames by what they are.
type Frames = Vec<(&'static str, Vec<u8>)>;

pub(crate) fn cases() -> Vec<Case> {
    let mut frames = Vec::new();
    frames.extend(other_ether_types());
    frames.extend(other_ip_protocols());
    frames.extend(icmp());
    frames.extend(other_addresses());
    frames.extend(other_ports());
    frames.extend(groups());
    frames.extend(tags());
    frames.extend(broken());
    frames
        .into_iter()
        .map(|(name, frame)| {
            [CLIENT_IF, BACKEND_IF, OTHER_IF]
                .into_iter()
                .fold(Case::new(name), |case, ifindex| {
                    case.pass(format!("by interface {ifindex}"), ifindex, frame.clone())
                })
        })
        .collect()
}

/// The kind of service that frames try to look like.
fn kind(ipv6: bool, tcp: bool) -> Kind {
    let wanted = |kind: &Kind| kind.is_full_nat() && (kind.ipv6, kind.tcp) == (ipv6, tcp);
    Kind::all(wanted).next().expect("every kind is there")
}

fn vip_v4() -> Ipv4Addr {
    match kind(false, true).vip() {
        SocketAddr::V4(address) => *address.ip(),
        SocketAddr::V6(_) => unreachable!("asked for IPv4"),
    }
}

fn vip_v6() -> Ipv6Addr {
    match kind(true, true).vip() {
        SocketAddr::V6(address) => *address.ip(),
        SocketAddr::V4(_) => unreachable!("asked for IPv6"),
    }
}

/// A frame to the balancer.
fn ethernet(ether_type: EtherType, payload: &[u8]) -> Vec<u8> {
    ethernet_to(Link::to_client().local, ether_type, payload)
}

fn ethernet_to(destination: [u8; 6], ether_type: EtherType, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header {
        source: Link::to_client().remote,
        destination,
        ether_type,
    };
    [header.to_bytes().as_slice(), payload].concat()
}

/// An IPv4 packet from a client.
fn ipv4(destination: Ipv4Addr, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
    let mut header = Ipv4Header {
        time_to_live: 64,
        protocol,
        source: [198, 51, 100, 7],
        destination: destination.octets(),
        ..Ipv4Header::default()
    };
    header.set_payload_len(payload.len()).unwrap();
    header.header_checksum = header.calc_header_checksum();
    let packet = [header.to_bytes().as_slice(), payload].concat();
    ethernet(ether_type::IPV4, &packet)
}

/// An IPv6 packet from a client.
fn ipv6(destination: Ipv6Addr, next_header: IpNumber, payload: &[u8]) -> Vec<u8> {
    let header = Ipv6Header {
        hop_limit: 64,
        next_header,
        source: Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 7).octets(),
        destination: destination.octets(),
        payload_length: payload.len() as u16,
        ..Ipv6Header::default()
    };
    let packet = [header.to_bytes().as_slice(), payload].concat();
    ethernet(ether_type::IPV6, &packet)
}

/// The first bytes of a TCP or UDP header to a service port.
fn to_service_port() -> Vec<u8> {
    let mut bytes = vec![0x9c, 0x40, 0, 80];
    bytes.resize(64, 0x50);
    bytes
}

fn other_ether_types() -> Frames {
    let inside = ipv4(vip_v4(), ip_number::TCP, &to_service_port())[14..].to_vec();
    let arp = |operation: u8| {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation, 2, 0, 0, 0, 2, 0xc1];
        packet.extend([198, 51, 100, 7, 0, 0, 0, 0, 0, 0]);
        packet.extend(vip_v4().octets());
        packet
    };
    let custom = |number, payload: &[u8]| ethernet(EtherType(number), payload);
    vec![
        (
            "ARP request for a service address",
            ethernet_to(BROADCAST, ether_type::ARP, &arp(1)),
        ),
        ("ARP reply", ethernet(ether_type::ARP, &arp(2))),
        (
            "LLDP",
            ethernet_to(
                [0x01, 0x80, 0xc2, 0, 0, 0x0e],
                EtherType(0x88cc),
                &[2, 7, 4, 2, 0, 0, 0, 0, 1, 0, 0],
            ),
        ),
        (
            "MPLS",
            custom(0x8847, &[&[0, 0, 0x11, 64], &*inside].concat()),
        ),
        (
            "MPLS multicast",
            custom(0x8848, &[&[0, 0, 0x11, 64], &*inside].concat()),
        ),
        ("PPPoE discovery", custom(0x8863, &[0x11, 9, 0, 0, 0, 0])),
        (
            "PPPoE session",
            custom(
                0x8864,
                &[&[0x11, 0, 0, 1, 0, 86, 0, 0x21], &*inside].concat(),
            ),
        ),
        ("802.3 with a length and LLC", custom(38, &[0x42; 38])),
        ("EAPOL", custom(0x888e, &[2, 1, 0, 0])),
        (
            "MACsec",
            custom(
                0x88e5,
                &[0x2c, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
            ),
        ),
        ("PTP", custom(0x88f7, &[0; 44])),
        ("Wake-on-LAN", custom(0x0842, &[0xff; 102])),
        ("loopback test", custom(0x9000, &[0; 46])),
        ("EtherType zero", custom(0, &inside)),
        ("an Ethernet header alone", custom(0x0800, &[])),
        ("an Ethernet header of IPv6 alone", custom(0x86dd, &[])),
        ("a VLAN frame without its tag", custom(0x8100, &[])),
    ]
}

/// Protocols that no service has, to service addresses and to others.
fn other_ip_protocols() -> Frames {
    let body = to_service_port();
    let mut frames = Vec::new();
    for (name, protocol) in [
        ("SCTP over IPv4", ip_number::SCTP),
        ("GRE over IPv4", ip_number::GRE),
        ("ESP over IPv4", ip_number::ENCAP_SEC),
        ("AH over IPv4", ip_number::AUTH),
        ("OSPF over IPv4", ip_number::OSPFIGP),
        ("IGMP to a service address", ip_number::IGMP),
        ("IPv4 in IPv4", ip_number::IPV4),
        ("IPv6 in IPv4", ip_number::IPV6),
        ("DCCP over IPv4", ip_number::DCCP),
        ("UDP-Lite over IPv4", ip_number::UDP_LITE),
        ("VRRP over IPv4", IpNumber(112)),
        ("IP protocol 0", IpNumber(0)),
        ("IP protocol 255", IpNumber(255)),
    ] {
        frames.push((name, ipv4(vip_v4(), protocol, &body)));
        frames.push((name, ipv4(OTHER_V4, protocol, &body)));
    }
    // Such that begin like an extension header, too.
    let chain = |next: IpNumber| [&[next.0, 0, 0, 0, 0, 0, 0, 0], &*body].concat();
    for (name, next) in [
        ("SCTP over IPv6", ip_number::SCTP),
        ("GRE over IPv6", ip_number::GRE),
        ("ESP over IPv6", ip_number::ENCAP_SEC),
        ("AH over IPv6, then TCP", ip_number::AUTH),
        ("OSPF over IPv6", ip_number::OSPFIGP),
        ("mobility header, then TCP", ip_number::MOBILITY_HEADER),
        ("HIP, then TCP", ip_number::HIP),
        ("Shim6, then TCP", ip_number::SHIM6),
        ("IPv6 in IPv6", ip_number::IPV6),
        ("IPv6 without a next header", IpNumber(59)),
        ("next header 255", IpNumber(255)),
    ] {
        frames.push((name, ipv6(vip_v6(), next, &chain(ip_number::TCP))));
        frames.push((name, ipv6(OTHER_V6, next, &chain(ip_number::TCP))));
    }
    let hop_by_hop = ip_number::IPV6_HOP_BY_HOP;
    frames.push((
        "SCTP behind hop-by-hop options",
        ipv6(vip_v6(), hop_by_hop, &chain(ip_number::SCTP)),
    ));
    frames.push((
        "no next header behind hop-by-hop options",
        ipv6(vip_v6(), hop_by_hop, &chain(IpNumber(59))),
    ));
    frames
}

fn icmp() -> Frames {
    let quoted = ipv4(OTHER_V4, ip_number::TCP, &to_service_port())[14..].to_vec();
    let echo = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    let echo6 = [128, 0, 0, 0, 0, 1, 0, 1];
    let mut solicitation = vec![135, 0, 0, 0, 0, 0, 0, 0];
    solicitation.extend(vip_v6().octets());
    vec![
        (
            "ICMP echo to a service address",
            ipv4(vip_v4(), ip_number::ICMP, &echo),
        ),
        ("ICMP echo", ipv4(OTHER_V4, ip_number::ICMP, &echo)),
        (
            "ICMP unreachable",
            ipv4(
                OTHER_V4,
                ip_number::ICMP,
                &[&[3, 4, 0, 0, 0, 0, 5, 0xdc], &*quoted].concat(),
            ),
        ),
        (
            "ICMPv6 echo to a service address",
            ipv6(vip_v6(), ip_number::IPV6_ICMP, &echo6),
        ),
        ("ICMPv6 echo", ipv6(OTHER_V6, ip_number::IPV6_ICMP, &echo6)),
        (
            "neighbour solicitation for a service address",
            ipv6(vip_v6(), ip_number::IPV6_ICMP, &solicitation),
        ),
        (
            "router advertisement",
            ipv6(OTHER_V6, ip_number::IPV6_ICMP, &[134, 0, 0, 0, 64, 0, 0, 0]),
        ),
        (
            "an ICMP fragment to a service address",
            fragment_of(ipv4(vip_v4(), ip_number::ICMP, &echo)),
        ),
    ]
}

/// The frame as a middle fragment.
fn fragment_of(mut frame: Vec<u8>) -> Vec<u8> {
    lb_tests::edit_ipv4(&mut frame, 14, |ip| {
        ip.more_fragments = true;
        ip.fragment_offset = 5.try_into().unwrap();
    });
    frame
}

/// A packet to a service port at an address that is no service's.
fn elsewhere(kind: Kind) -> Packet {
    let mut flow = Flow::first(kind);
    flow.vip.set_ip(if kind.ipv6 {
        OTHER_V6.into()
    } else {
        OTHER_V4.into()
    });
    flow.opening()
}

fn other_addresses() -> Frames {
    let [tcp4, udp4, tcp6, udp6] =
        [(false, true), (false, false), (true, true), (true, false)].map(|(v6, tcp)| kind(v6, tcp));
    let quic = |kind: Kind| {
        let mut packet = elsewhere(kind).with_payload(vec![0xc3; 1_200]);
        let Flow { client, vip, .. } = Flow::first(kind);
        let address: IpAddr = if kind.ipv6 {
            OTHER_V6.into()
        } else {
            OTHER_V4.into()
        };
        packet.set_tuple(client, (address, vip.port() + 363).into());
        packet.build()
    };
    let datagram = |port: u16, payload: &[u8]| {
        let mut packet = elsewhere(udp4).with_payload(payload);
        packet.set_tuple(udp4.client(), (OTHER_V4, port).into());
        packet.build()
    };
    let inside = ethernet(ether_type::IPV4, &to_service_port());
    let from_vip = Flow {
        client: tcp4.vip(),
        ..Flow::first(tcp4)
    };
    let mut outgoing = from_vip.opening();
    outgoing.set_tuple(tcp4.vip(), tcp4.client());
    vec![
        ("TCP to another IPv4 address", elsewhere(tcp4).build()),
        ("UDP to another IPv4 address", elsewhere(udp4).build()),
        ("TCP to another IPv6 address", elsewhere(tcp6).build()),
        ("UDP to another IPv6 address", elsewhere(udp6).build()),
        ("QUIC over IPv4", quic(udp4)),
        ("QUIC over IPv6", quic(udp6)),
        (
            "VXLAN",
            datagram(4_789, &[&[8, 0, 0, 0, 0, 0, 1, 0], &*inside].concat()),
        ),
        (
            "Geneve",
            datagram(6_081, &[&[0, 0, 0x65, 0x58, 0, 0, 1, 0], &*inside].concat()),
        ),
        (
            "DNS",
            datagram(53, b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"),
        ),
        ("WireGuard", datagram(51_820, &[1; 148])),
        (
            "a jumbo frame",
            elsewhere(tcp4).with_payload(vec![7; 3_200]).build(),
        ),
        (
            "a jumbo frame over IPv6",
            elsewhere(tcp6).with_payload(vec![7; 3_200]).build(),
        ),
        ("TCP that a service address sent", outgoing.build()),
        (
            "TTL 1 to another address",
            elsewhere(tcp4).with_ttl(1).build(),
        ),
        (
            "hop limit 0 to another address",
            elsewhere(udp6).with_ttl(0).build(),
        ),
        (
            "IPv4 options to another address",
            elsewhere(udp4)
                .with_ipv4(|ip| ip.options = [0x94, 4, 0, 0].into())
                .build(),
        ),
        (
            "extension headers to another address",
            elsewhere(tcp6)
                .with_extensions(&[Extension::HopByHop(6), Extension::Destination(22)])
                .build(),
        ),
        (
            "too many extension headers to another address",
            elsewhere(tcp6)
                .with_extensions(&vec![Extension::Destination(6); 12])
                .build(),
        ),
        (
            "contradictory TCP flags to another address",
            elsewhere(tcp4)
                .with_tcp(|tcp| (tcp.syn, tcp.fin, tcp.rst) = (true, true, true))
                .build(),
        ),
    ]
}

fn other_ports() -> Frames {
    let with_port = |kind: Kind, port: u16| {
        let mut packet = Flow::first(kind).opening();
        packet.set_tuple(kind.client(), (kind.vip().ip(), port).into());
        packet.build()
    };
    vec![
        (
            "another TCP port of an IPv4 service",
            with_port(kind(false, true), 22),
        ),
        (
            "another UDP port of an IPv4 service",
            with_port(kind(false, false), 53),
        ),
        (
            "another TCP port of an IPv6 service",
            with_port(kind(true, true), 22),
        ),
        (
            "another UDP port of an IPv6 service",
            with_port(kind(true, false), 443),
        ),
        ("TCP port 0 of a service", with_port(kind(false, true), 0)),
        ("UDP port 0 of a service", with_port(kind(true, false), 0)),
    ]
}

/// What a switch copies to everybody must not be forwarded by each.
fn groups() -> Frames {
    let mut frames = Vec::new();
    for (name, destination) in [
        ("a service address in a broadcast frame", BROADCAST),
        (
            "a service address in an IPv4 multicast frame",
            [0x01, 0, 0x5e, 0, 0, 1],
        ),
        (
            "a service address in an IPv6 multicast frame",
            [0x33, 0x33, 0, 0, 0, 1],
        ),
    ] {
        for kind in [kind(false, true), kind(true, false)] {
            let mut packet = Flow::first(kind).opening();
            packet.dst_mac = destination;
            frames.push((name, packet.build()));
        }
    }
    let mut mdns = elsewhere(kind(false, false));
    mdns.dst_mac = [0x01, 0, 0x5e, 0, 0, 0xfb];
    mdns.set_tuple(
        "198.51.100.7:5353".parse().unwrap(),
        "224.0.0.251:5353".parse().unwrap(),
    );
    frames.push(("mDNS", mdns.build()));
    let mut dhcp = elsewhere(kind(false, false));
    dhcp.dst_mac = BROADCAST;
    dhcp.set_tuple(
        "0.0.0.0:68".parse().unwrap(),
        "255.255.255.255:67".parse().unwrap(),
    );
    frames.push(("DHCP", dhcp.build()));
    frames
}

fn tags() -> Frames {
    let flow = Flow::first(kind(false, true));
    let three = [Tag::provider(1), Tag::new(2), Tag::new(3)];
    let mut old = flow.opening().with_tags(&[Tag::new(4)]).build();
    old[12..14].copy_from_slice(&0x9100_u16.to_be_bytes());
    vec![
        ("three VLAN tags", flow.opening().with_tags(&three).build()),
        ("a tag of the type from before 802.1ad", old),
        (
            "another address in a VLAN",
            elsewhere(kind(true, true)).with_tags(&three[1..]).build(),
        ),
        (
            "ARP in a VLAN",
            ethernet(
                ether_type::VLAN_TAGGED_FRAME,
                &[&[0, 5, 8, 6], [0; 28].as_slice()].concat(),
            ),
        ),
    ]
}

/// What a router would drop: not ours to judge.
fn broken() -> Frames {
    let (tcp4, udp6) = (kind(false, true), kind(true, false));
    let whole4 = elsewhere(tcp4).build();
    let whole6 = elsewhere(udp6).build();
    let poke = |frame: &[u8], offset: usize, bytes: &[u8]| {
        let mut frame = frame.to_vec();
        frame[offset..offset + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let fragment = |offset: u16, more| {
        elsewhere(tcp4)
            .with_ipv4(|ip| {
                ip.fragment_offset = offset.try_into().unwrap();
                (ip.more_fragments, ip.dont_fragment) = (more, false);
            })
            .build()
    };
    let fragment6 = |offset, more| {
        elsewhere(udp6)
            .with_extensions(&[Extension::Fragment(offset, more)])
            .build()
    };
    // RFC 2675: payload length 0, and the length in a hop-by-hop option.
    let mut jumbogram = vec![ip_number::TCP.0, 0, 0xc2, 4, 0, 1, 0, 0];
    jumbogram.extend(to_service_port());
    let jumbogram = ipv6(OTHER_V6, ip_number::IPV6_HOP_BY_HOP, &jumbogram);
    vec![
        ("a first fragment to another address", fragment(0, true)),
        ("a middle fragment to another address", fragment(9, true)),
        ("a last fragment to another address", fragment(9, false)),
        (
            "a first IPv6 fragment to another address",
            fragment6(0, true),
        ),
        (
            "a last IPv6 fragment to another address",
            fragment6(9, false),
        ),
        (
            "an IPv6 jumbogram to another address",
            poke(&jumbogram, 18, &[0, 0]),
        ),
        ("a truncated IPv4 header", whole4[..30].to_vec()),
        (
            "a truncated TCP header to another address",
            whole4[..50].to_vec(),
        ),
        ("a truncated IPv6 header", whole6[..50].to_vec()),
        (
            "a truncated UDP header to another address",
            whole6[..60].to_vec(),
        ),
        (
            "a truncated payload to another address",
            whole6[..64].to_vec(),
        ),
        (
            "a wrong header checksum to another address",
            poke(&whole4, 24, &[0, 0]),
        ),
        (
            "a header of three words to another address",
            poke(&whole4, 14, &[0x43]),
        ),
        (
            "a total length beyond the frame",
            poke(&whole4, 16, &[0xff, 0xff]),
        ),
        (
            "a payload length beyond the frame",
            poke(&whole6, 18, &[0xff, 0xff]),
        ),
        ("IPv4 in a frame of IPv6", poke(&whole4, 12, &[0x86, 0xdd])),
        ("IPv6 in a frame of IPv4", poke(&whole6, 12, &[0x08, 0x00])),
        ("IP version 5", poke(&whole4, 14, &[0x55])),
    ]
}

#[test]
fn foreign() {
    // A flow to every service, so that there is something to confuse frames with.
    let flows = Kind::TRANSLATED.map(Flow::first);
    let established = flows.iter().fold(Case::new("flows"), Case::established);
    in_network_namespace(|| Bench::new().run_all_after(&established, "foreign", &cases()));
}
