//! Properties that hold for every packet: of the arithmetic that both sides share, and
//! of the program itself.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
};

use etherparse::{
    IpNumber, Ipv4Options, NetHeaders, PacketHeaders, PayloadSlice, SlicedPacket, TcpHeaderSlice,
    TcpOptionElement, checksum::Sum16BitWords,
};
use lb_common::{
    checksum,
    flow::{FlowKey4, FlowKey6, Tuple},
    ring::{RING_SIZE, slot},
};
use lb_tests::{
    Bench, Case, Extension, Flow, Kind, Link, Packet, Tag, World, difference, in_network_namespace,
};
use lb_userspace::datapath::{Verdict, word, words6};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select},
    test_runner::{TestCaseResult, TestRunner},
};

/// A runner for properties of the program. Not the macro's: the program is loaded once.
fn runner(cases: u32) -> TestRunner {
    TestRunner::new(ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 256,
        ..ProptestConfig::with_cases(cases)
    })
}

/// The checksum of bytes, computed whole, as it lies in memory.
fn whole(bytes: &[u8]) -> u16 {
    Sum16BitWords::new().add_slice(bytes).ones_complement()
}

proptest! {
    #[test]
    fn folding_is_the_sum_of_words(words in vec(any::<u16>(), 1..2_000)) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let sum = words.iter().map(|word| u64::from(*word)).sum();
        prop_assert_eq!(!checksum::fold(sum), whole(&bytes));
    }

    #[test]
    fn folding_keeps_the_value(sum: u64) {
        let folded = u64::from(checksum::fold(sum));
        prop_assert_eq!(folded % 0xffff, sum % 0xffff);
        prop_assert_eq!(folded == 0, sum == 0);
    }

    /// RFC 1624 against computing it anew, for any words and any number of changes.
    #[test]
    fn updating_is_computing_anew(
        mut words in vec(any::<u32>(), 2..400),
        changes in vec((any::<Index>(), any::<u32>(), any::<bool>()), 1..20),
    ) {
        // No packet is all zeros: its first word names its version or its ports.
        words.insert(0, 0x4500_0000);
        let bytes = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_ne_bytes()).collect()
        };
        let before = whole(&bytes(&words));
        let mut delta = 0;
        for (index, new, half) in changes {
            let old = &mut words[1..];
            let old = index.get_mut(old);
            let new = if half { *old & 0xffff_0000 | new & 0xffff } else { new };
            delta += if half {
                checksum::replace16(*old as u16, new as u16)
            } else {
                checksum::replace32(*old, new)
            };
            *old = new;
        }
        let after = checksum::update(before, checksum::fold(delta));
        prop_assert_eq!(after, whole(&bytes(&words)));
    }

    /// The deltas that flows carry make the checksums of the packet that leaves.
    #[test]
    fn deltas_make_the_checksums_of_the_rewritten_packet(
        ipv6: bool,
        tcp: bool,
        from in endpoints(),
        to in endpoints(),
        payload in vec(any::<u8>(), 0..300),
    ) {
        let packet = |ends: &Endpoints| {
            let (src, dst) = ends.of(ipv6);
            let packet = if tcp {
                Packet::tcp(src, dst, |tcp| tcp.ack = true)
            } else {
                Packet::udp(src, dst)
            };
            packet.with_payload(payload.clone())
        };
        let (old, new) = (packet(&from), packet(&to));
        let (address_delta, tuple_delta) = from.deltas(&to, ipv6, tcp);

        let swap = |checksum: u16| u16::from_ne_bytes(checksum.to_be_bytes());
        let updated = checksum::update(swap(old.transport_checksum()), tuple_delta);
        let updated = if updated == 0 && !tcp { 0xffff } else { updated };
        prop_assert_eq!(updated, swap(new.transport_checksum()));
        if !ipv6 {
            let header = |packet: &Packet| {
                let frame = packet.build();
                u16::from_ne_bytes([frame[24], frame[25]])
            };
            prop_assert_eq!(checksum::update(header(&old), address_delta), header(&new));
        }
    }

    #[test]
    fn reversing_a_tuple_twice_changes_nothing(ends in endpoints(), tcp: bool) {
        let (v4, v6) = (ends.key4(tcp), ends.key6(tcp));
        prop_assert_eq!(v4.reversed().reversed(), v4);
        prop_assert_eq!(v6.reversed().reversed(), v6);
    }

    #[test]
    fn slots_are_in_the_ring(hash: u32, size in 1..=RING_SIZE) {
        prop_assert!(slot(hash, size) < size);
    }

    #[test]
    fn slots_keep_the_order_of_hashes(a: u32, b: u32) {
        prop_assert_eq!(slot(a, RING_SIZE) <= slot(b, RING_SIZE), a <= b || slot(a, RING_SIZE) == slot(b, RING_SIZE));
    }
}

/// Source and destination of a packet in both families.
#[derive(Clone, Debug)]
struct Endpoints {
    v4: [[u8; 4]; 2],
    v6: [[u8; 16]; 2],
    ports: [u16; 2],
}

fn endpoints() -> impl Strategy<Value = Endpoints> {
    (
        any::<[[u8; 4]; 2]>(),
        any::<[[u8; 16]; 2]>(),
        any::<[u16; 2]>(),
    )
        .prop_map(|(v4, v6, ports)| Endpoints { v4, v6, ports })
}

impl Endpoints {
    fn of(&self, ipv6: bool) -> (SocketAddr, SocketAddr) {
        let end = |index: usize| {
            let address: IpAddr = if ipv6 {
                self.v6[index].into()
            } else {
                self.v4[index].into()
            };
            (address, self.ports[index]).into()
        };
        (end(0), end(1))
    }

    fn key4(&self, tcp: bool) -> FlowKey4 {
        FlowKey4 {
            src: word(self.v4[0].into()),
            dst: word(self.v4[1].into()),
            src_port: self.ports[0].to_be(),
            dst_port: self.ports[1].to_be(),
            protocol: if tcp { 6 } else { 17 },
        }
    }

    fn key6(&self, tcp: bool) -> FlowKey6 {
        FlowKey6 {
            src: words6(self.v6[0].into()),
            dst: words6(self.v6[1].into()),
            src_port: self.ports[0].to_be(),
            dst_port: self.ports[1].to_be(),
            protocol: if tcp { 6 } else { 17 },
        }
    }

    fn deltas(&self, to: &Self, ipv6: bool, tcp: bool) -> (u16, u16) {
        if ipv6 {
            self.key6(tcp).deltas(&to.key6(tcp))
        } else {
            self.key4(tcp).deltas(&to.key4(tcp))
        }
    }
}

/// Clients that differ in little: their ports count up, their addresses too.
fn similar_keys() -> impl Iterator<Item = (FlowKey4, FlowKey6)> {
    (0..131_072_u32).map(|index| {
        let port = (index % 4_096) as u16 + 32_768;
        let host = index / 4_096;
        let ends = Endpoints {
            v4: [(0xc633_6400 + host).to_be_bytes(), [192, 0, 2, 10]],
            v6: [
                (0x2001_0db8_000c_0000_0000_0000_0000_0000 + u128::from(host)).to_be_bytes(),
                (0x2001_0db8_0001_0000_0000_0000_0000_0010_u128).to_be_bytes(),
            ],
            ports: [port, 80],
        };
        (ends.key4(true), ends.key6(true))
    })
}

/// Similar clients are spread as evenly as chance would: the statistic of a chi-squared
/// test with 255 degrees of freedom stays below 400 but for once in 10^8 times.
#[test]
fn similar_clients_are_spread_evenly() {
    const GROUPS: usize = 256;
    let mut counts = [[0_u32; GROUPS]; 2];
    let mut total = 0_u32;
    for (v4, v6) in similar_keys() {
        total += 1;
        for (counts, hash) in counts.iter_mut().zip([v4.hash(), v6.hash()]) {
            let group = slot(hash, RING_SIZE) as usize * GROUPS / RING_SIZE as usize;
            counts[group] += 1;
        }
    }
    let expected = f64::from(total) / GROUPS as f64;
    for (family, counts) in ["IPv4", "IPv6"].into_iter().zip(counts) {
        let square = |count: &u32| (f64::from(*count) - expected).powi(2) / expected;
        let statistic: f64 = counts.iter().map(square).sum();
        assert!(statistic < 400.0, "{family}: {statistic}");
    }
}

/// Any bit of a tuple changes each bit of its hash about half of the time.
#[test]
fn every_bit_of_a_tuple_counts() {
    let samples: Vec<_> = similar_keys().step_by(61).collect();
    let flipped = |key: FlowKey4, bit: u32| {
        let mut key = key;
        match bit {
            0..32 => key.src ^= 1 << bit,
            32..64 => key.dst ^= 1 << (bit - 32),
            64..80 => key.src_port ^= 1 << (bit - 64),
            _ => key.dst_port ^= 1 << (bit - 80),
        }
        key
    };
    let flipped6 = |key: FlowKey6, bit: u32| {
        let mut key = key;
        match bit {
            0..128 => key.src[bit as usize / 32] ^= 1 << (bit % 32),
            128..256 => key.dst[bit as usize / 32 - 4] ^= 1 << (bit % 32),
            256..272 => key.src_port ^= 1 << (bit - 256),
            _ => key.dst_port ^= 1 << (bit - 272),
        }
        key
    };
    let check = |name: &str, bit: u32, differences: &mut dyn Iterator<Item = u32>| {
        let mut changed = [0_u32; 32];
        for difference in differences {
            for (index, count) in changed.iter_mut().enumerate() {
                *count += difference >> index & 1;
            }
        }
        for (index, count) in changed.into_iter().enumerate() {
            let share = f64::from(count) / samples.len() as f64;
            assert!(
                (0.4..0.6).contains(&share),
                "{name}: bit {bit} of the tuple changes bit {index} of the hash in {share}"
            );
        }
    };
    for bit in 0..96 {
        let differences = |(key, _): &(FlowKey4, _)| key.hash() ^ flipped(*key, bit).hash();
        check("IPv4", bit, &mut samples.iter().map(differences));
    }
    for bit in 0..288 {
        let differences = |(_, key): &(_, FlowKey6)| key.hash() ^ flipped6(*key, bit).hash();
        check("IPv6", bit, &mut samples.iter().map(differences));
    }
}

/// What a packet may have besides its addresses.
#[derive(Clone, Debug)]
struct Shape {
    ttl: u8,
    payload: Vec<u8>,
    padding: Vec<u8>,
    traffic_class: u8,
    option_words: usize,
    extensions: Vec<Extension>,
    tcp_options: bool,
    unchecked: bool,
    priority: (u8, bool),
}

prop_compose! {
    fn shapes()(
        ttl in 2_u8..,
        payload in vec(any::<u8>(), 0..600),
        padding in vec(any::<u8>(), 0..20),
        traffic_class: u8,
        option_words in 0..=10_usize,
        extensions in vec(
            prop_oneof![
                (0..3_usize).prop_map(|units| Extension::Destination(6 + 8 * units)),
                Just(Extension::Routing(0)),
                Just(Extension::Fragment(0, false)),
            ],
            0..=3,
        ),
        hop_by_hop in option::of(0..3_usize),
        tcp_options: bool,
        unchecked: bool,
        priority in (0..8_u8, any::<bool>()),
    ) -> Shape {
        let first = hop_by_hop.map(|units| Extension::HopByHop(6 + 8 * units));
        let extensions = first.into_iter().chain(extensions).collect();
        Shape {
            ttl, payload, padding, traffic_class, option_words, extensions, tcp_options,
            unchecked, priority,
        }
    }
}

impl Shape {
    fn apply(&self, kind: Kind, packet: Packet) -> Packet {
        let mut packet = packet.with_ttl(self.ttl).with_payload(self.payload.clone());
        packet.padding.clone_from(&self.padding);
        let (pcp, dei) = self.priority;
        for tag in &mut packet.tags {
            *tag = tag.priority(pcp, dei);
        }
        if kind.ipv6 {
            packet = packet
                .with_extensions(&self.extensions)
                .with_ipv6(|ip| ip.traffic_class = self.traffic_class);
        } else {
            packet = packet.with_ipv4(|ip| {
                ip.identification = u16::from(self.traffic_class) << 8;
                let options = vec![1; 4 * self.option_words];
                ip.options = Ipv4Options::try_from(options.as_slice()).expect("whole words");
            });
        }
        if kind.tcp && self.tcp_options {
            packet = packet.with_tcp(|tcp| {
                tcp.set_options(&[TcpOptionElement::Timestamp(7, self.payload.len() as u32)])
                    .expect("one option fits");
            });
        }
        if !kind.tcp && self.unchecked {
            packet = packet.unchecked();
        }
        packet
    }
}

fn links() -> impl Strategy<Value = (Link, Vec<Tag>)> {
    let tags = || {
        let tag = (1..4_095_u16, any::<bool>()).prop_map(|(vlan, provider)| {
            if provider {
                Tag::provider(vlan)
            } else {
                Tag::new(vlan)
            }
        });
        vec(tag, 0..=2)
    };
    (any::<bool>(), tags(), tags()).prop_map(|(other, outside, inside)| {
        let link = if other {
            Link::to_other()
        } else {
            Link::to_client()
        };
        (link.with_tags(&outside), inside)
    })
}

/// Clients with addresses that a client may have and no service has.
fn clients(kind: Kind) -> impl Strategy<Value = SocketAddr> {
    (any::<[u8; 4]>(), 1_u16..).prop_map(move |(tail, port)| {
        let mut client = kind.client();
        client.set_ip(match client.ip() {
            IpAddr::V4(_) => [198, tail[1], tail[2], tail[3]].into(),
            IpAddr::V6(address) => {
                let mut octets = address.octets();
                octets[8..12].copy_from_slice(&tail);
                octets.into()
            }
        });
        client.set_port(port);
        client
    })
}

fn flows() -> impl Strategy<Value = Flow> {
    select(Kind::TRANSLATED.as_slice())
        .prop_flat_map(|kind| (Just(kind), clients(kind), links()))
        .prop_map(|(kind, client, (link, inside))| {
            let mut flow = Flow::first(kind);
            if !kind.is_full_nat() {
                flow.source = client;
            }
            flow.client = client;
            flow.client_link = link;
            flow.backend_link = flow.backend_link.with_tags(&inside);
            flow
        })
}

/// Whatever a valid packet looks like, it arrives whole, with right checksums.
#[test]
fn valid_packets_arrive() {
    in_network_namespace(|| {
        let bench = RefCell::new(Bench::new());
        let strategy = (flows(), shapes(), shapes());
        let checked = runner(512).run(&strategy, |(flow, there, back)| {
            let request = there.apply(flow.kind, flow.opening());
            let reply = back.apply(flow.kind, flow.acceptance());
            let path = flow.backend_link.path();
            let case = Case::new("a valid packet")
                .given(|world| world.edit(flow.backend, |backend| backend.path = path))
                .begin("request", &flow, &request)
                .reply("reply", &flow, &reply)
                .forward("request again", &flow, &request);
            bench
                .borrow_mut()
                .run(&case)
                .map_err(|error| TestCaseError::fail(format!("{error:#}")))
        });
        checked.unwrap_or_else(|error| panic!("{error}"));
    });
}

/// A way to break a frame.
#[derive(Clone, Debug)]
enum Mutation {
    /// Another value for a byte of the headers, which are at the front.
    Byte(Index, u8),
    /// One bit of it.
    Bit(Index, u8),
    /// The frame ends early.
    Truncate(Index),
    /// A length that fields often have.
    Length(Index, u16),
}

/// Packets that are broken at random.
const MUTATED: u32 = 20_000;

/// Bytes at the front of a frame that are worth breaking.
const FRONT: usize = 96;

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let mutation = prop_oneof![
        3 => (any::<Index>(), any::<u8>()).prop_map(|(at, value)| Mutation::Byte(at, value)),
        3 => (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Mutation::Bit(at, bit)),
        1 => any::<Index>().prop_map(Mutation::Truncate),
        1 => (any::<Index>(), select([0, 1, 19, 20, 28, 40, 60, 1_500, 65_535].as_slice()))
            .prop_map(|(at, value)| Mutation::Length(at, value)),
    ];
    vec(mutation, 1..4)
}

fn mutate(mut frame: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        let front = frame.len().min(FRONT);
        match mutation {
            Mutation::Byte(at, value) => frame[at.index(front)] = *value,
            Mutation::Bit(at, bit) => frame[at.index(front)] ^= 1 << bit,
            Mutation::Truncate(at) => frame.truncate(14 + at.index(frame.len() - 13)),
            Mutation::Length(at, value) => {
                let at = at.index(front - 1);
                frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
            }
        }
    }
    frame
}

/// Makes the IPv4 header checksum right, where there is a header: else nearly every
/// broken packet would be refused for that alone.
fn repair(frame: &mut [u8], offset: usize) {
    if let Some(header) = frame.get(offset..)
        && etherparse::Ipv4Header::from_slice(header).is_ok()
    {
        lb_tests::edit_ipv4(frame, offset, |_| {});
    }
}

/// What is forwarded is a packet that another parser takes without complaint, before
/// and after; what passes is as it came.
fn check_mutated(
    bench: &mut Bench,
    ifindex: u32,
    frame: &[u8],
    forwarded: &Cell<u32>,
) -> TestCaseResult {
    let run = bench
        .send(ifindex, frame)
        .map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
    match run.verdict {
        Verdict::Drop => {}
        Verdict::Pass => prop_assert_eq!(difference(frame, &run.frame), [""; 0]),
        Verdict::Tx | Verdict::Redirect => {
            let before = forwardable(frame)
                .map_err(|why| TestCaseError::fail(format!("{why}: {frame:02x?}")))?;
            let after = forwardable(&run.frame).map_err(|why| {
                TestCaseError::fail(format!("afterwards {why}: {frame:02x?} {:02x?}", run.frame))
            })?;
            if tells_too_big(&run.frame) {
                // An answer of the balancer's own.
                prop_assert_eq!(after, 64, "time to live");
                return Ok(());
            }
            prop_assert_eq!(after + 1, before, "time to live");
            forwarded.set(forwarded.get() + 1);
        }
        Verdict::Aborted => return Err(TestCaseError::fail("aborted")),
    }
    Ok(())
}

/// Whether a frame tells its receiver that a packet was too big. No mutation makes such a
/// packet of one of TCP or UDP that is forwarded: what it quotes would not be there.
fn tells_too_big(frame: &[u8]) -> bool {
    use etherparse::{
        Icmpv4Type, Icmpv6Type, TransportSlice, icmpv4::DestUnreachableHeader::FragmentationNeeded,
    };
    let packet = SlicedPacket::from_ethernet(frame).ok();
    match packet.and_then(|packet| packet.transport) {
        Some(TransportSlice::Icmpv4(icmp)) => matches!(
            icmp.icmp_type(),
            Icmpv4Type::DestinationUnreachable(FragmentationNeeded { .. })
        ),
        Some(TransportSlice::Icmpv6(icmp)) => {
            matches!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { .. })
        }
        _ => false,
    }
}

/// What follows the Ethernet header and VLAN tags.
fn behind_ethernet(frame: &[u8]) -> &[u8] {
    let packet = SlicedPacket::from_ethernet(frame).expect("a frame that was parsed before");
    packet
        .ether_payload()
        .expect("a frame has a payload")
        .payload
}

/// The TTL of a frame that may be forwarded; else why it may not.
fn forwardable(frame: &[u8]) -> Result<u8, String> {
    let headers = PacketHeaders::from_ethernet_slice(frame).map_err(|error| error.to_string())?;
    match headers.net {
        Some(NetHeaders::Ipv4(ip, _)) => {
            // Of the bytes, since the parsed header has lost the reserved bit.
            let offset = frame.len() - behind_ethernet(frame).len();
            if whole(&frame[offset..offset + ip.header_len()]) != 0 {
                return Err("the header checksum is wrong".to_owned());
            }
            if ip.is_fragmenting_payload() && ip.fragment_offset.value() == 0 {
                begins_whole(&headers.payload)?;
            }
            Ok(ip.time_to_live)
        }
        Some(NetHeaders::Ipv6(ip, extensions)) => {
            if extensions.fragment.is_some_and(|fragment| {
                fragment.is_fragmenting_payload() && fragment.fragment_offset.value() == 0
            }) {
                begins_whole(&headers.payload)?;
            }
            Ok(ip.hop_limit)
        }
        other => Err(format!("it is no IP packet: {other:?}")),
    }
}

/// Whether a first fragment has all of its transport header; else what is wrong.
fn begins_whole(payload: &PayloadSlice<'_>) -> Result<(), String> {
    let PayloadSlice::Ip(ip) = payload else {
        return Err(format!("a first fragment with {payload:?}"));
    };
    let length = match ip.ip_number {
        IpNumber::UDP => 8,
        IpNumber::TCP => TcpHeaderSlice::from_slice(ip.payload)
            .map_err(|error| error.to_string())?
            .slice()
            .len(),
        other => return Err(format!("a first fragment of {other:?}")),
    };
    if ip.payload.len() < length {
        return Err("a first fragment that lacks its transport header".to_owned());
    }
    Ok(())
}

/// Broken packets are never forwarded, whichever way they are broken.
#[test]
fn mutated_packets_are_not_forwarded_malformed() {
    in_network_namespace(|| {
        let mut bench = Bench::with_max_flows(65_536, 65_536);
        // A port that a mutation makes of another must not be that of a tunnel.
        let mut world = World::standard();
        world.keep_services(Kind::translates);
        let mut established = Case::new("a flow of every kind");
        for kind in Kind::TRANSLATED {
            established = established.established(&Flow::first(kind));
        }
        bench.reset(&world).expect("a world");
        bench.resume(&established).expect("flows");
        let bench = RefCell::new(bench);

        let strategy = (
            select(Kind::TRANSLATED.as_slice()),
            any::<bool>(),
            shapes(),
            mutations(),
            any::<bool>(),
        );
        let forwarded = Cell::new(0);
        let checked = runner(MUTATED).run(&strategy, |(kind, back, shape, mutations, mend)| {
            let flow = Flow::first(kind);
            let (packet, ifindex) = if back {
                (flow.reply(), flow.backend_link.ifindex)
            } else {
                (flow.request(), flow.client_link.ifindex)
            };
            let packet = shape.apply(kind, packet);
            let mut frame = mutate(packet.build(), &mutations);
            if mend && !kind.ipv6 {
                repair(&mut frame, packet.ip_offset());
            }
            check_mutated(&mut bench.borrow_mut(), ifindex, &frame, &forwarded)
        });
        checked.unwrap_or_else(|error| panic!("{error}"));
        // Not for want of packets that were good enough.
        let forwarded = forwarded.get();
        assert!(forwarded > MUTATED / 20, "{forwarded} were forwarded");
    });
}
