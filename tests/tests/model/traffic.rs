//! Random packets: of new flows and of known ones, in both directions, in fragments, ICMP
//! messages about them, packets that are nobody's, and broken ones.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpNumber, Ipv4Header, Ipv4Options, Ipv6Header, TcpOptionElement, checksum::Sum16BitWords,
};
use lb_model::{
    Model, hash,
    nat::{self, Flow},
    packet::{self, ICMP, ICMPV6, Read, TCP, Tuple, UDP},
    services, tunnels,
    world::{Mode, Path, Service},
};
use lb_tests::{Extension, Net, Packet, Tag, rng::Rng};

use crate::{
    configuration::{self, INTERFACES},
    mutation,
};

/// A frame that comes in.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    /// What it is, in a few words.
    pub(crate) label: &'static str,
    pub(crate) ifindex: u32,
    pub(crate) frame: Vec<u8>,
}

/// Makes packets, and remembers what makes others interesting.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Flows that have begun, by what the client sends. Some have ended.
    pub(crate) flows: Vec<Tuple>,
    /// Fragments that are on their way.
    pending: Vec<Incoming>,
}

/// Flows that are remembered.
const MAX_FLOWS: usize = 512;

/// Kinds of packet, by weight.
type Make = fn(&mut Traffic, &mut Rng, &Model) -> Option<Incoming>;
const KINDS: [(usize, Make); 9] = [
    (24, Traffic::of_client),
    (24, Traffic::of_known_client),
    (24, Traffic::of_backend),
    (6, Traffic::of_nobody),
    (8, Traffic::fragmented),
    (3, Traffic::echo),
    (8, Traffic::error),
    (2, Traffic::tunnel_error),
    (2, Traffic::noise),
];

impl Traffic {
    /// A flow has begun.
    pub(crate) fn began(&mut self, rng: &mut Rng, client: Tuple) {
        if self.flows.len() < MAX_FLOWS {
            self.flows.push(client);
        } else {
            let at = rng.below(MAX_FLOWS);
            self.flows[at] = client;
        }
    }

    /// The next packet.
    pub(crate) fn next(&mut self, rng: &mut Rng, model: &Model) -> Incoming {
        if !self.pending.is_empty() && rng.percent(40) {
            let at = rng.below(self.pending.len());
            return self.pending.swap_remove(at);
        }
        let mut incoming = loop {
            let make = rng.weighted(&KINDS);
            if let Some(incoming) = make(self, rng, model) {
                break incoming;
            }
        };
        if rng.percent(25) {
            mutation::mutate(rng, &mut incoming.frame);
        }
        // The kernel runs XDP on nothing shorter.
        if incoming.frame.len() < 14 {
            incoming.frame.resize(14, 0);
        }
        incoming
    }

    /// A packet of a client to a service, of any flow.
    fn of_client(&mut self, rng: &mut Rng, model: &Model) -> Option<Incoming> {
        let packet = random_request(rng, model)?;
        Some(from_client(rng, "of a client", &packet))
    }

    /// The tuple of a flow that is known.
    fn known<'a>(&self, rng: &mut Rng, model: &'a Model) -> Option<&'a Flow> {
        if self.flows.is_empty() {
            return None;
        }
        model.flows.of_client(rng.pick(&self.flows))
    }

    /// A packet of a client of a known flow.
    fn of_known_client(&mut self, rng: &mut Rng, model: &Model) -> Option<Incoming> {
        let flow = self.known(rng, model)?;
        let mut packet = packet(rng, flow.client);
        if rng.percent(4) {
            leave_with_zero(&mut packet, flow.server);
        } else {
            speak_quic(rng, model, &mut packet, flow.client);
        }
        Some(from_client(rng, "of a known client", &packet))
    }

    /// A packet of a backend of a known flow.
    fn of_backend(&mut self, rng: &mut Rng, model: &Model) -> Option<Incoming> {
        let flow = self.known(rng, model)?;
        let mut tuple = flow.server.reversed();
        if rng.percent(3) {
            tuple.dst.set_port(rng.word() as u16);
        }
        let mut packet = packet(rng, tuple);
        if rng.percent(4) {
            leave_with_zero(&mut packet, flow.client.reversed());
        }
        Some(from_anywhere(rng, "of a backend", &packet))
    }

    /// Source, destination and protocol of a packet of TCP or UDP: of any client, of a flow that
    /// is known, in either direction, or of nobody.
    pub(crate) fn tuple(&self, rng: &mut Rng, model: &Model) -> Option<Tuple> {
        match rng.below(10) {
            0..4 => random_tuple(rng, model),
            4..7 => Some(self.known(rng, model)?.client),
            7..9 => Some(self.known(rng, model)?.server.reversed()),
            _ => {
                let tuple = random_tuple(rng, model)?;
                let dst = (tuple.dst.ip(), rng.word() as u16).into();
                Some(Tuple { dst, ..tuple })
            }
        }
    }

    /// A packet to an address or a port of no service.
    fn of_nobody(&mut self, rng: &mut Rng, model: &Model) -> Option<Incoming> {
        let ipv6 = rng.percent(50);
        let src = configuration::client(rng, ipv6);
        let dst = if rng.percent(50) {
            configuration::vip(ipv6, rng.below(5) as u8)
        } else {
            let services = &model.world().services;
            let service = rng.pick(services);
            configuration::address_of(rng, service)
        };
        let protocol = *rng.pick(&[TCP, UDP]);
        if src.is_ipv6() != dst.is_ipv6() {
            return None;
        }
        let port = |rng: &mut Rng| *rng.pick(&[0, 22, 53, 80, 443, 8_000, 8_080, 65_535]);
        let tuple = Tuple {
            src: (src, port(rng)).into(),
            dst: (dst, port(rng)).into(),
            protocol,
        };
        let packet = packet(rng, tuple);
        let mut incoming = from_anywhere(rng, "of nobody", &packet);
        if rng.percent(20) {
            // Another protocol.
            let at = packet.ip_offset() + if src.is_ipv4() { 9 } else { 6 };
            incoming.frame[at] = rng.byte();
        }
        Some(incoming)
    }

    /// A packet in fragments: one now, the others when they come.
    fn fragmented(&mut self, rng: &mut Rng, model: &Model) -> Option<Incoming> {
        let (tuple, is_request) = match rng.below(3) {
            0 => (random_tuple(rng, model)?, true),
            1 => (self.known(rng, model)?.client, true),
            _ => (self.known(rng, model)?.server.reversed(), false),
        };
        let mut packet = packet(rng, tuple);
        if let Net::V6(_, extensions) = &mut packet.net {
            extensions.clear();
        }
        packet.padding.clear();
        if packet.payload.len() < 32 || rng.percent(50) {
            let length = rng.range(32, 2_500);
            packet.payload = rng.bytes(length);
        }
        if is_request {
            speak_quic(rng, model, &mut packet, tuple);
        }
        let first = from_anywhere(rng, "a fragment", &packet);
        let mut pieces = fragments(rng, &packet, &first);
        if rng.percent(5) {
            let again = rng.pick(&pieces).clone();
            pieces.push(again);
        }
        // In order more often than not.
        let at = if rng.percent(75) {
            0
        } else {
            rng.below(pieces.len())
        };
        let now = pieces.remove(at);
        self.pending.extend(pieces);
        if self.pending.len() > 64 {
            self.pending.remove(0);
        }
        Some(now)
    }

    /// An echo request, or another ICMP message that is no error.
    fn echo(&mut self, rng: &mut Rng, _model: &Model) -> Option<Incoming> {
        let ipv6 = rng.percent(50);
        let src = configuration::client(rng, ipv6);
        let dst = configuration::vip(ipv6, rng.below(5) as u8);
        let kind = if ipv6 {
            *rng.pick(&[128, 128, 128, 129, 135])
        } else {
            *rng.pick(&[8, 8, 8, 0, 13])
        };
        let length = rng.range(4, 200);
        let message = [vec![kind, 0, 0, 0], rng.bytes(length)].concat();
        Some(icmp(rng, "an echo request", src, dst, message))
    }

    /// An ICMP error about a packet of a service or of a client.
    fn error(&mut self, rng: &mut Rng, model: &Model) -> Option<Incoming> {
        let tuple = if rng.percent(30) {
            // What a service without flows would have sent.
            random_tuple(rng, model)?.reversed()
        } else {
            let flow = self.known(rng, model)?;
            if rng.percent(50) {
                flow.client.reversed()
            } else {
                flow.server
            }
        };
        let quoted = packet(rng, tuple);
        let quoted = quoted.build()[quoted.ip_offset()..].to_vec();
        let quote = cut(rng, quoted, tuple.src.is_ipv4());
        let message = [error_header(rng, tuple.src.is_ipv6()), quote].concat();
        let router = router(rng, tuple.src.is_ipv6());
        Some(icmp(rng, "an ICMP error", router, tuple.src.ip(), message))
    }

    /// An ICMP error about a packet that the balancer has wrapped, or nearly so.
    fn tunnel_error(&mut self, rng: &mut Rng, model: &Model) -> Option<Incoming> {
        let world = model.world();
        let is_tunnel = |service: &&Service| matches!(service.mode, Mode::Ipip | Mode::Gue);
        let tunnels: Vec<&Service> = world.services.iter().filter(is_tunnel).collect();
        let service = *(!tunnels.is_empty()).then(|| rng.pick(&tunnels))?;
        let tuple = tuple_of(rng, model, service)?;
        let inner = packet(rng, tuple);
        let inner = inner.build()[inner.ip_offset()..].to_vec();
        let Read::Packet(inner_ip) = packet::read(packet::ether_type(tuple.src.ip()), &inner)
        else {
            return None;
        };
        let (mut mode, mut backend) = match nat::of_ring(world, service, tuple) {
            Ok((_, backend)) if rng.percent(90) => (service.mode, backend.clone()),
            _ => {
                let backends: Vec<_> = world.backends.values().collect();
                (service.mode, (*rng.pick(&backends)).clone())
            }
        };
        backend.source?;
        if rng.percent(4) {
            mode = *rng.pick(&[Mode::Ipip, Mode::Gue]);
        }
        if rng.percent(4) {
            backend.port = Some(*rng.pick(&[6_080, 5_555, 80]));
        }
        let hash = hash::five_tuple(tuple.src, tuple.dst, tuple.protocol);
        let inner = inner_ip.trimmed(&inner);
        let source = tunnels::source(&backend, hash);
        let mut quote = tunnels::wrap(inner, &inner_ip, mode, &backend, hash);
        let headers = tunnels::overhead(mode, backend.address) + inner_ip.headers;
        let length = match rng.below(10) {
            0..4 => headers + 8,
            4 => rng.below(headers + 8),
            5..7 => headers + rng.range(8, 40),
            _ => *rng.pick(&[548, 1_232]),
        };
        quote.truncate(length);
        if rng.percent(15) && !quote.is_empty() {
            let bit = rng.below(8 * quote.len().min(headers + 8));
            quote[bit / 8] ^= 1 << (bit % 8);
        }
        let header = if rng.percent(85) {
            too_big_header(rng, source.is_ipv6())
        } else {
            error_header(rng, source.is_ipv6())
        };
        let router = router(rng, source.is_ipv6());
        let message = [header, quote].concat();
        Some(icmp(
            rng,
            "an error about a tunnel",
            router,
            source,
            message,
        ))
    }

    /// No packet at all.
    fn noise(&mut self, rng: &mut Rng, _model: &Model) -> Option<Incoming> {
        let length = rng.range(14, 200);
        let mut frame = rng.bytes(length);
        frame[0] &= !1;
        match rng.below(4) {
            0 => frame[12..14].copy_from_slice(&[8, 0]),
            1 => frame[12..14].copy_from_slice(&[0x86, 0xdd]),
            2 => frame[12..14].copy_from_slice(&[0x81, 0]),
            _ => {}
        }
        if let Some(byte) = frame.get_mut(14) {
            *byte = *rng.pick(&[0x45, 0x46, 0x60, *byte]);
        }
        Some(Incoming {
            label: "noise",
            ifindex: *rng.pick(&INTERFACES),
            frame,
        })
    }
}

/// A client's address and port, and those of a service.
fn random_tuple(rng: &mut Rng, model: &Model) -> Option<Tuple> {
    let services = &model.world().services;
    let service = (!services.is_empty()).then(|| rng.pick(services))?;
    tuple_of(rng, model, service)
}

/// A client's address and port, and those of this service.
fn tuple_of(rng: &mut Rng, model: &Model, service: &Service) -> Option<Tuple> {
    let address = configuration::address_of(rng, service);
    let client = match rng.below(100) {
        0 => address,
        1 => {
            let backends: Vec<_> = model.world().backends.values().collect();
            rng.pick(&backends).address
        }
        _ => configuration::client(rng, address.is_ipv6()),
    };
    if client.is_ipv6() != address.is_ipv6() {
        return None;
    }
    let (first, last) = (*service.ports.start(), *service.ports.end());
    let port = rng.range(first.into(), last.into()) as u16;
    Some(Tuple {
        src: (client, 40_000 + rng.below(24) as u16).into(),
        dst: (address, port).into(),
        protocol: service.protocol,
    })
}

fn random_request(rng: &mut Rng, model: &Model) -> Option<Packet> {
    let tuple = random_tuple(rng, model)?;
    let mut packet = packet(rng, tuple);
    speak_quic(rng, model, &mut packet, tuple);
    Some(packet)
}

/// Gives a datagram to a service that reads connection IDs one: most often a whole one that
/// names a backend.
fn speak_quic(rng: &mut Rng, model: &Model, packet: &mut Packet, to: Tuple) {
    let service = services::find(model.world(), to.dst, to.protocol);
    let Some(quic) = service.and_then(|service| service.quic.as_ref()) else {
        return;
    };
    if rng.percent(25) {
        return;
    }
    let number = if rng.percent(85) && !quic.configurations.is_empty() {
        *rng.pick(&quic.configurations)
    } else {
        rng.below(8) as u8
    };
    let mut id = rng.bytes(quic.offset);
    id[0] = number << 5 | id[0] & 0x1f;
    let server_ids: Vec<&Vec<u8>> = quic.server_ids.keys().collect();
    id.extend_from_slice(rng.pick::<&Vec<u8>>(&server_ids));
    let more = rng.below(5);
    id.extend(rng.bytes(more));
    let mut header = if rng.percent(50) {
        let length = rng.weighted(&[(90, id.len()), (5, id.len() / 2), (5, id.len() + 40)]);
        let mut header = rng.bytes(5);
        header[0] |= 0x80;
        header.push(length as u8);
        header
    } else {
        vec![rng.byte() & 0x7f]
    };
    header.extend(id);
    if rng.percent(10) {
        header.truncate(rng.below(header.len()));
        packet.payload = header;
    } else {
        let behind = packet.payload.iter().skip(header.len()).copied();
        packet.payload = header.iter().copied().chain(behind).collect();
    }
}

/// A packet with this tuple and all else random.
fn packet(rng: &mut Rng, tuple: Tuple) -> Packet {
    let (src, dst) = (tuple.src, tuple.dst);
    let mut packet = if tuple.protocol == TCP {
        tcp(rng, src, dst)
    } else {
        Packet::udp(src, dst)
    };
    let length = match rng.below(10) {
        0..4 => 0,
        4..8 => rng.range(1, 100),
        8 => rng.range(100, 1_472),
        _ => rng.range(1_200, 1_700),
    };
    packet.payload = rng.bytes(length);
    if tuple.protocol == UDP && rng.percent(10) {
        packet = packet.unchecked();
    }
    packet.set_ttl(rng.weighted(&[(90, 64), (4, 2), (2, 1), (1, 0), (3, 255)]));
    if rng.percent(15) {
        let length = rng.range(1, 30);
        packet.padding = rng.bytes(length);
    }
    let (traffic_class, identification) = (rng.byte(), rng.word());
    let dont_fragment = rng.percent(50);
    match &mut packet.net {
        Net::V4(header) => {
            header.dscp = (traffic_class >> 2).try_into().expect("six bits");
            header.ecn = (traffic_class & 3).try_into().expect("two bits");
            header.identification = identification as u16;
            header.dont_fragment = dont_fragment;
            if rng.percent(8) {
                let words = rng.range(1, 10);
                let options = vec![1; words * 4];
                header.options = Ipv4Options::try_from(options.as_slice()).expect("whole words");
            }
        }
        Net::V6(header, extensions) => {
            header.traffic_class = traffic_class;
            header.flow_label = (identification as u32 & 0xf_ffff)
                .try_into()
                .expect("20 bits");
            if rng.percent(12) {
                *extensions = random_extensions(rng);
            }
        }
    }
    packet
}

/// Gives a packet a payload such that its transport checksum, when it leaves with the
/// tuple `to`, comes out as zero.
fn leave_with_zero(packet: &mut Packet, to: Tuple) {
    packet.payload = vec![0, 0];
    let mut after = packet.clone();
    after.set_tuple(to.src, to.dst);
    // One more of what the checksum complements.
    packet.payload = after.transport_checksum().to_be_bytes().to_vec();
}

fn tcp(rng: &mut Rng, src: SocketAddr, dst: SocketAddr) -> Packet {
    // SYN, ACK, FIN, RST, PSH.
    let bits = rng.weighted(&[
        (40, 0b00001),
        (28, 0b00010),
        (6, 0b00011),
        (8, 0b00110),
        (4, 0b01000),
        (3, 0b01010),
        (6, 0b10010),
        (2, 0b00101),
        (1, 0b00100),
        (1, 0b00000),
        (1, 0b11111),
    ]);
    let options = rng.percent(30);
    let (size, stamp) = (rng.word() as u16, rng.word() as u32);
    let shift = rng.percent(30);
    Packet::tcp(src, dst, |tcp| {
        tcp.syn = bits & 1 != 0;
        tcp.ack = bits & 2 != 0;
        tcp.fin = bits & 4 != 0;
        tcp.rst = bits & 8 != 0;
        tcp.psh = bits & 16 != 0;
        // Near enough that a client's number often follows a backend's.
        tcp.sequence_number = stamp & 0xffff;
        tcp.acknowledgment_number = stamp >> 16;
        if options {
            use TcpOptionElement::{MaximumSegmentSize, Noop, Timestamp};
            let size = MaximumSegmentSize(size);
            let set = if shift {
                tcp.set_options(&[Noop, size, Noop, Timestamp(stamp, 0)])
            } else {
                tcp.set_options(&[size, Timestamp(stamp, 0)])
            };
            set.expect("they fit");
        }
    })
}

fn random_extensions(rng: &mut Rng) -> Vec<Extension> {
    let mut extensions = Vec::new();
    if rng.percent(30) {
        extensions.push(Extension::HopByHop(6 + 8 * rng.below(3)));
    }
    for _ in 0..rng.weighted(&[(60, 1), (20, 2), (10, 4), (10, 7)]) {
        extensions.push(match rng.below(10) {
            0 => Extension::HopByHop(6),
            1..6 => Extension::Destination(6 + 8 * rng.below(4)),
            6 => Extension::Routing(0),
            7 => Extension::Routing(rng.byte()),
            _ => Extension::Fragment(0, false),
        });
    }
    extensions
}

/// The fragments of a packet, that all come as `first` does.
fn fragments(rng: &mut Rng, packet: &Packet, first: &Incoming) -> Vec<Incoming> {
    let (ip_at, payload_at) = {
        let extra = first.frame.len() - packet.build().len();
        (
            packet.ip_offset() + extra,
            packet.transport_offset() + extra,
        )
    };
    let (headers, payload) = first.frame.split_at(payload_at);
    let is_v4 = matches!(packet.net, Net::V4(_));
    // Few identifications, so that some meet.
    let identification = rng.below(64) as u32;
    let mut size = 8 * rng.range(1, 90);
    if payload.len() / size > 8 {
        size = (payload.len() / 8) & !7;
    }
    let mut pieces = Vec::new();
    let mut offset = 0;
    while offset < payload.len() {
        let end = payload.len().min(offset + size);
        let more = end < payload.len();
        // Now and then one begins where it should not.
        let shift = if rng.percent(3) { 8 * rng.below(3) } else { 0 };
        let at = offset.saturating_sub(shift);
        let body = &payload[offset..end];
        let mut frame = headers.to_vec();
        if is_v4 {
            frame.extend(body);
            lb_tests::edit_ipv4(&mut frame, ip_at, |ip| {
                ip.identification = identification as u16;
                ip.fragment_offset = ((at / 8) as u16).try_into().expect("13 bits");
                ip.more_fragments = more;
                ip.dont_fragment = false;
                let length = ip.header_len() + body.len();
                ip.total_len = length as u16;
            });
        } else {
            let next = std::mem::replace(&mut frame[ip_at + 6], 44);
            let field = at as u16 | u16::from(more);
            frame.extend([next, 0]);
            frame.extend(field.to_be_bytes());
            frame.extend(identification.to_be_bytes());
            frame.extend(body);
            let length = (8 + body.len()) as u16;
            frame[ip_at + 4..ip_at + 6].copy_from_slice(&length.to_be_bytes());
        }
        if rng.percent(3) {
            mutation::mutate(rng, &mut frame);
            frame.resize(frame.len().max(14), 0);
        }
        pieces.push(Incoming {
            frame,
            ..first.clone()
        });
        offset = end;
    }
    pieces
}

/// The frame of a packet on its way from a client.
fn from_client(rng: &mut Rng, label: &'static str, packet: &Packet) -> Incoming {
    // Mostly by the same way, so that it is no news.
    if rng.percent(90) {
        let packet = with_link(packet.clone(), &[2, 0, 0, 0, 2, 0xc1], 10, Vec::new());
        return Incoming {
            label,
            ifindex: 10,
            frame: packet.build(),
        };
    }
    from_anywhere(rng, label, packet)
}

fn from_anywhere(rng: &mut Rng, label: &'static str, packet: &Packet) -> Incoming {
    let neighbour = *rng.pick(&[0x41, 0x42, 0xc1, 0xc2]);
    let Path {
        ifindex, dst, tags, ..
    } = configuration::path(rng, neighbour);
    let tag = |tag: &lb_model::world::Tag| {
        let base = if tag.kind == 0x8100 {
            Tag::new(tag.vlan)
        } else {
            Tag::provider(tag.vlan)
        };
        base.priority(tag.vlan as u8 & 7, tag.vlan & 8 != 0)
    };
    let tags = tags.iter().map(tag).collect();
    Incoming {
        label,
        ifindex,
        frame: with_link(packet.clone(), &dst, ifindex as u8, tags).build(),
    }
}

fn with_link(mut packet: Packet, neighbour: &[u8; 6], local: u8, tags: Vec<Tag>) -> Packet {
    packet.src_mac = *neighbour;
    packet.dst_mac = [2, 0, 0, 0, 1, local];
    packet.tags = tags;
    packet
}

/// A router that sends errors.
fn router(rng: &mut Rng, ipv6: bool) -> IpAddr {
    if ipv6 {
        [
            0x20,
            1,
            0xd,
            0xb8,
            0xf,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            rng.byte(),
        ]
        .into()
    } else {
        [203, 0, 113, rng.byte()].into()
    }
}

/// The header of an ICMP error, without a checksum.
fn error_header(rng: &mut Rng, ipv6: bool) -> Vec<u8> {
    let mtu = *rng.pick(&[0, 68, 576, 1_280, 1_400, 1_500, 65_535_u32]);
    let [kind, code] = if ipv6 {
        *rng.pick(&[[2, 0], [2, 0], [1, 0], [1, 4], [3, 0], [4, 1], [100, 0]])
    } else {
        *rng.pick(&[[3, 4], [3, 4], [3, 1], [3, 3], [11, 0], [12, 0], [5, 0]])
    };
    [vec![kind, code, 0, 0], mtu.to_be_bytes().to_vec()].concat()
}

/// The header of an ICMP error about a packet that was too big, without a checksum.
fn too_big_header(rng: &mut Rng, ipv6: bool) -> Vec<u8> {
    let mtu = *rng.pick(&[0, 67, 88, 576, 1_280, 1_320, 1_400, 1_500, 65_535_u32]);
    let kind = if ipv6 { [2, 0, 0, 0] } else { [3, 4, 0, 0] };
    [kind, mtu.to_be_bytes()].concat()
}

/// A quote of any length, most of them of what is quoted often: eight bytes of the
/// transport header, or as much as makes a packet of 576 bytes.
fn cut(rng: &mut Rng, mut packet: Vec<u8>, is_v4: bool) -> Vec<u8> {
    let headers = match packet.first() {
        Some(byte) if is_v4 => usize::from(byte & 0xf) * 4,
        _ => 40,
    };
    let length = match rng.below(10) {
        0..4 => headers + 8,
        4 => headers + rng.below(8),
        5..8 => headers + rng.range(8, 40),
        // The last are too big for some ways.
        _ => *rng.pick(&[548, 548, 1_232, 1_500]),
    };
    packet.truncate(length);
    packet
}

/// An ICMP message, with its checksum, in a frame.
fn icmp(
    rng: &mut Rng,
    label: &'static str,
    src: IpAddr,
    dst: IpAddr,
    mut message: Vec<u8>,
) -> Incoming {
    let protocol = if src.is_ipv4() { ICMP } else { ICMPV6 };
    let mut sum = Sum16BitWords::new().add_slice(&message);
    if let (IpAddr::V6(src), IpAddr::V6(dst)) = (src, dst) {
        sum = sum
            .add_16bytes(src.octets())
            .add_16bytes(dst.octets())
            .add_4bytes((message.len() as u32).to_be_bytes())
            .add_2bytes([0, ICMPV6]);
    }
    message[2..4].copy_from_slice(&sum.ones_complement().to_ne_bytes());
    let packet = ip(rng, src, dst, protocol, &message);
    let neighbour = *rng.pick(&[0x41, 0xc1]);
    let path = configuration::path(rng, neighbour);
    let link = lb_model::link::Link {
        dst: path.dst,
        src: path.src,
        tags: Vec::new(),
        ether_type: packet::ether_type(src),
        payload: 14,
    };
    let back = Path {
        dst: path.src,
        src: path.dst,
        ..path
    };
    let mut frame = link.frame(&back, link.ether_type, &packet);
    if rng.percent(10) {
        let length = rng.range(1, 12);
        frame.extend(rng.bytes(length));
    }
    Incoming {
        label,
        ifindex: path.ifindex,
        frame,
    }
}

/// An IP packet around a payload.
fn ip(rng: &mut Rng, src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let ttl = rng.weighted(&[(90, 64), (5, 2), (5, 1)]);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = Ipv4Header {
                time_to_live: ttl,
                protocol: IpNumber(protocol),
                source: src.octets(),
                destination: dst.octets(),
                identification: rng.word() as u16,
                ..Ipv4Header::default()
            };
            if rng.percent(8) {
                let options = vec![1; 4 * rng.range(1, 10)];
                header.options = Ipv4Options::try_from(options.as_slice()).expect("whole words");
            }
            header.set_payload_len(payload.len()).expect("16 bits");
            header.header_checksum = header.calc_header_checksum();
            [header.to_bytes().as_slice(), payload].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            // Now and then with an options header that says nothing.
            let (next, extension) = if rng.percent(8) {
                (
                    IpNumber::IPV6_DESTINATION_OPTIONS,
                    vec![protocol, 0, 1, 4, 0, 0, 0, 0],
                )
            } else {
                (IpNumber(protocol), Vec::new())
            };
            let payload = [extension.as_slice(), payload].concat();
            let mut header = Ipv6Header {
                hop_limit: ttl,
                next_header: next,
                source: src.octets(),
                destination: dst.octets(),
                traffic_class: rng.byte(),
                ..Ipv6Header::default()
            };
            header.set_payload_length(payload.len()).expect("16 bits");
            [header.to_bytes().as_slice(), &payload].concat()
        }
        _ => unreachable!("source and destination are of one family"),
    }
}
