//! What the model has written anew, held to what both sides of the balancer share; and what
//! it builds, read again.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetHeaders, PacketHeaders, PayloadSlice, TransportHeader};
use lb_common::{
    checksum as shared, drop_reason::DropReason, fragment::FRAGMENT_TICKS, hash as shared_hash,
    ring,
};
use lb_model::{
    checksum, hash, nat,
    outcome::Reason,
    packet::{self, Ip, Read, Tuple},
    segment_size, tunnels,
    world::{Backend, Health, Mode},
};

/// Numbers that are the same every time: a linear congruential generator.
fn numbers() -> impl Iterator<Item = u64> {
    std::iter::successors(Some(1_u64), |last| {
        let next = last.wrapping_mul(6_364_136_223_846_793_005);
        Some(next.wrapping_add(1_442_695_040_888_963_407))
    })
    .map(|state| state.rotate_left(17) ^ state)
}

#[test]
fn hashes_and_slots_are_the_shared_ones() {
    let mut numbers = numbers();
    let mut next = || numbers.next().expect("without an end");
    for _ in 0..10_000 {
        let (ports, protocol) = (next(), *[6_u8, 17].get(next() as usize & 1).unwrap());
        let (src_port, dst_port) = (ports as u16, (ports >> 16) as u16);
        let (a, b, c, d) = (next(), next(), next(), next());
        let octets = |high: u64, low: u64| -> [u8; 16] {
            let bytes = [high.to_be_bytes(), low.to_be_bytes()].concat();
            bytes.try_into().expect("sixteen bytes")
        };
        let four = |bytes: [u8; 16]| -> [u8; 4] { bytes[..4].try_into().expect("four bytes") };
        let words = |bytes: [u8; 16]| -> [u32; 4] {
            std::array::from_fn(|at| {
                u32::from_ne_bytes(bytes[at * 4..at * 4 + 4].try_into().expect("four bytes"))
            })
        };
        let (src, dst) = (octets(a, b), octets(c, d));
        let end = |address: IpAddr, port| SocketAddr::new(address, port);
        let v4 = hash::five_tuple(
            end(four(src).into(), src_port),
            end(four(dst).into(), dst_port),
            protocol,
        );
        let v6 = hash::five_tuple(
            end(src.into(), src_port),
            end(dst.into(), dst_port),
            protocol,
        );
        let (src_port, dst_port, protocol) = (src_port.to_be(), dst_port.to_be(), protocol.into());
        let expected =
            shared_hash::tuple4(words(src)[0], words(dst)[0], src_port, dst_port, protocol);
        assert_eq!(v4, expected);
        let expected = shared_hash::tuple6(words(src), words(dst), src_port, dst_port, protocol);
        assert_eq!(v6, expected);
        assert_eq!(hash::slot(v4), ring::slot(v4, ring::RING_SIZE) as usize);
    }
    assert_eq!(hash::RING_SIZE, ring::RING_SIZE);
    assert_eq!(FRAGMENT_TICKS, 300);
}

/// Those of `lb decap` apart, which is another program, and that of schedulers, which the
/// model leaves to the tables of packets.
#[test]
fn reasons_are_the_shared_ones() {
    use DropReason::{BackendsFull, TunnelEcn, TunnelHeader, TunnelSource};
    let own: Vec<_> = Reason::ALL.iter().map(|r| (*r as u16, r.name())).collect();
    let theirs: Vec<_> = DropReason::ALL
        .iter()
        .filter(|reason| {
            !matches!(
                reason,
                BackendsFull | TunnelHeader | TunnelSource | TunnelEcn
            )
        })
        .map(|r| (*r as u16, r.name()))
        .collect();
    assert_eq!(own, theirs);
}

/// RFC 1624, section 4: the example, and the arithmetic of both sides.
#[test]
fn checksums_are_updated_as_the_rfc_says() {
    let updated = checksum::updated(0xdd2f, &[0x55, 0x55], &[0x32, 0x85]);
    assert_eq!(updated, 0x0000);
    let mut numbers = numbers();
    for _ in 0..10_000 {
        let number = numbers.next().expect("without an end");
        let (old, new) = (number as u16, (number >> 16) as u16);
        let checksum = (number >> 32) as u16;
        let delta = shared::fold(shared::replace16(old, new));
        assert_eq!(
            checksum::updated(checksum, &old.to_be_bytes(), &new.to_be_bytes()),
            shared::update(checksum, delta)
        );
    }
}

/// A UDP datagram from a client to a service, over IPv4 or IPv6.
fn datagram(ipv6: bool, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let (src, dst) = (4_000, 53);
    if ipv6 {
        etherparse::PacketBuilder::ipv6([1; 16], [2; 16], 64)
            .udp(src, dst)
            .write(&mut packet, payload)
    } else {
        etherparse::PacketBuilder::ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64)
            .udp(src, dst)
            .write(&mut packet, payload)
    }
    .expect("it fits");
    packet
}

fn read(bytes: &[u8]) -> Ip {
    let ether_type = if bytes[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    match packet::read(ether_type, bytes) {
        Read::Packet(ip) => ip,
        other => panic!("{other:?}"),
    }
}

fn backend(ipv6: bool) -> Backend {
    let address = |last: u8| -> IpAddr {
        if ipv6 {
            [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last].into()
        } else {
            [10, 0, 0, last].into()
        }
    };
    Backend {
        service: 1,
        health: Health::Up,
        path: None,
        mtu: None,
        address: address(9),
        port: None,
        source: Some(address(0)),
        source_bits: 7,
        source_ports: 0..=0,
        pool: 0,
    }
}

/// Another library reads what is wrapped, and finds every checksum right.
#[test]
fn tunnels_are_read_by_others() {
    for mode in [Mode::Ipip, Mode::Gue] {
        for (inner_v6, outer_v6) in [(false, false), (false, true), (true, false), (true, true)] {
            for length in [0, 1, 8, 1_201] {
                let inner = datagram(inner_v6, &vec![0x5a; length]);
                let ip = read(&inner);
                let backend = backend(outer_v6);
                let outer = tunnels::wrap(&inner, &ip, mode, &backend, 0x1234_567f);
                assert_eq!(
                    outer.len(),
                    inner.len() + tunnels::overhead(mode, backend.address)
                );
                assert!(outer.ends_with(&inner));
                let headers = PacketHeaders::from_ip_slice(&outer).expect("an IP packet");
                match &headers.net {
                    Some(NetHeaders::Ipv4(header, _)) => {
                        assert_eq!(header.header_checksum, header.calc_header_checksum());
                        assert_eq!(header.source, [10, 0, 0, 0x7f]);
                    }
                    Some(NetHeaders::Ipv6(header, _)) => {
                        assert_eq!(header.source[15], 0x7f);
                    }
                    other => panic!("{other:?}"),
                }
                if mode == Mode::Ipip {
                    continue;
                }
                let Some(TransportHeader::Udp(udp)) = &headers.transport else {
                    panic!("no UDP: {headers:?}");
                };
                assert_eq!((udp.source_port, udp.destination_port), (0xd67f, 6_080));
                let (Some(NetHeaders::Ipv6(header, _)), PayloadSlice::Udp(payload)) =
                    (&headers.net, headers.payload)
                else {
                    assert_eq!(udp.checksum, 0);
                    continue;
                };
                let expected = udp.calc_checksum_ipv6(header, payload);
                assert_eq!(udp.checksum, expected.expect("it fits"));
            }
        }
    }
}

/// Checksums stay right, wherever the option lies.
#[test]
fn segment_sizes_are_lowered_with_the_checksum() {
    for padding in 0..=3 {
        let mut options = vec![1; padding];
        options.extend([2, 4, 0x05, 0xb4]);
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64)
            .tcp(4_000, 80, 7, 8)
            .syn()
            .options_raw(&options)
            .expect("they fit")
            .write(&mut bytes, &[])
            .expect("it fits");
        let ip = read(&bytes);
        let before = bytes.clone();
        segment_size::clamp(&mut bytes, &ip, 1_460);
        assert_eq!(bytes, before, "it is no larger");
        segment_size::clamp(&mut bytes, &ip, 1_001);
        let headers = PacketHeaders::from_ip_slice(&bytes).expect("an IP packet");
        let (Some(NetHeaders::Ipv4(header, _)), Some(TransportHeader::Tcp(tcp))) =
            (&headers.net, &headers.transport)
        else {
            panic!("{headers:?}");
        };
        let expected = tcp.calc_checksum_ipv4(header, &[]).expect("it fits");
        assert_eq!(tcp.checksum, expected);
        assert_eq!(tcp.options.as_slice()[padding + 2..][..2], [0x03, 0xe9]);
    }
}

/// A translated packet is one that was sent so, and is the old one after a second
/// translation.
#[test]
fn translation_leads_back() {
    for ipv6 in [false, true] {
        let mut bytes = datagram(ipv6, b"payload");
        let before = bytes.clone();
        let ip = read(&bytes);
        let old = ip.tuple(ip.ports(&bytes).expect("ports"));
        let new = Tuple {
            src: (old.dst.ip(), 9).into(),
            dst: (old.src.ip(), 1).into(),
            ..old
        };
        nat::translate(&mut bytes, &ip, new);
        let ip = read(&bytes);
        assert_eq!(ip.tuple(ip.ports(&bytes).expect("ports")), new);
        assert!(ip.check(&bytes).is_ok());
        nat::translate(&mut bytes, &ip, old);
        assert_eq!(bytes, before);
    }
}
