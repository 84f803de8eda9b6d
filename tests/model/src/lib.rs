//! The reference model: what the balancer does with a packet, written from
//! `docs/forwarding.md` and `docs/architecture.md` and sharing no code with the program.
//!
//! A [`Model`] holds what the balancer knows (what is configured, flows, fragments) and
//! says what becomes of each frame that comes in: the verdict, every byte of what leaves,
//! and what is counted. There is a module for each section of `docs/forwarding.md`; their
//! words stand in quotation marks beside the lines that they ask for.
//!
//! Where the program has a choice (a source port) the model is told what it chose, checks
//! that it may, and goes on from there.
//!
//! | section | module |
//! |---|---|
//! | Modes | here, [`nat`] |
//! | The outer headers of `ipip` and `gue` | [`tunnels`] |
//! | Services | [`services`] |
//! | Sources and limits | [`guards`] |
//! | What no client sends | [`sources`] |
//! | Fragments | [`fragments`] |
//! | Connection IDs of QUIC (selection) | [`quic`] |
//! | ICMP | [`icmp`], [`segment_size`] |
//! | Drained backends | [`reset`] |
//! | The path of a packet, and what it is held to (architecture) | here, [`link`], [`packet`] |
#![forbid(unsafe_code)]

mod bytes;
pub mod checksum;
pub mod fragments;
pub mod guards;
pub mod hash;
pub mod icmp;
pub mod link;
pub mod nat;
pub mod outcome;
pub mod packet;
pub mod quic;
pub mod reset;
pub mod segment_size;
pub mod services;
pub mod sources;
pub mod tunnels;
pub mod world;

use std::sync::Arc;

use crate::{
    fragments::{Fragments, Known},
    guards::Buckets,
    icmp::{Message, Quote, Quoted},
    link::Link,
    nat::{Flow, Flows},
    outcome::{Action, Drop, Outcome, Reason, Totals},
    packet::{Ip, Read, Tuple},
    services::Vip,
    world::{Backend, Health, Mode, Service, World},
};

/// The balancer, as the documentation describes it.
#[derive(Clone, Debug, Default)]
pub struct Model {
    world: Arc<World>,
    /// Flows of the NAT modes.
    pub flows: Flows,
    /// First fragments.
    pub fragments: Fragments,
    /// Limits of new flows.
    pub buckets: Buckets,
    /// What has been counted.
    pub totals: Totals,
    clock: u32,
    /// Answers to packets that are too big that may still be sent in this tick.
    answers: u32,
}

/// A frame that came in.
struct Frame<'a> {
    bytes: &'a [u8],
    ifindex: u32,
    link: Link,
    choice: Choice<'a>,
}

/// The source port that the program has given to the flow of a client's packet, if it made
/// one.
pub type Choice<'a> = &'a dyn Fn(&Tuple) -> Option<u16>;

/// An IP packet in a frame.
struct Packet<'a> {
    frame: Frame<'a>,
    ip: Ip,
    /// The packet and what stands behind it.
    bytes: &'a [u8],
}

/// What becomes of a packet that is forwarded or passes, or of one that is refused.
type Verdict = Result<Outcome, Outcome>;

impl Model {
    /// A balancer with this configuration, that has seen nothing.
    #[must_use]
    pub fn new(world: Arc<World>) -> Self {
        Self {
            world,
            answers: icmp::ANSWERS_PER_TICK,
            ..Self::default()
        }
    }

    /// What is configured.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Another configuration takes the place of the old one; flows stay.
    pub fn configure(&mut self, world: Arc<World>) {
        self.world = world;
    }

    /// The daemon's clock moves on, in ticks of a tenth of a second.
    pub fn set_clock(&mut self, clock: u32) {
        if clock != self.clock {
            self.answers = icmp::ANSWERS_PER_TICK;
        }
        self.clock = clock;
    }

    /// What becomes of a frame that comes in by the interface `ifindex`.
    pub fn receive(&mut self, ifindex: u32, bytes: &[u8], choice: Choice<'_>) -> Outcome {
        let Some(link) = Link::read(bytes) else {
            return Outcome::pass(bytes);
        };
        let ether_type = link.ether_type;
        let frame = Frame {
            bytes,
            ifindex,
            link,
            choice,
        };
        let outcome = self.ip(frame, ether_type);
        if let Some(drop) = outcome.drop {
            *self.totals.drops.entry(drop).or_default() += 1;
        }
        outcome
    }

    /// The path of an IP packet.
    fn ip(&mut self, frame: Frame<'_>, ether_type: u16) -> Outcome {
        let world = Arc::clone(&self.world);
        let bytes = &frame.bytes[frame.link.payload..];
        let passed = Outcome::pass(frame.bytes);
        let ip = match packet::read(ether_type, bytes) {
            Read::Packet(ip) => ip,
            Read::Foreign => return passed,
            Read::Broken {
                dst,
                protocol,
                reason,
            } => {
                // "Judged by address and protocol alone: if a service has these, it is
                // dropped with a reason."
                return match services::vip(&world, dst) {
                    Some(vip) if vip.has(protocol) => Drop::unknown(reason).into(),
                    _ => passed,
                };
            }
        };
        let vip = services::vip(&world, ip.dst);
        let packet = Packet { frame, ip, bytes };
        let verdict = if [packet::TCP, packet::UDP].contains(&packet.ip.protocol) {
            self.transport(&world, vip.as_ref(), &packet)
        } else {
            self.icmp(&world, vip.as_ref(), &packet)
        };
        verdict.unwrap_or_else(|refused| refused)
    }

    /// The path of a TCP or UDP packet: "service? reply? else it passes".
    fn transport(
        &mut self,
        world: &Arc<World>,
        vip: Option<&Vip<'_>>,
        packet: &Packet<'_>,
    ) -> Verdict {
        let ip = &packet.ip;
        let passed = Outcome::pass(packet.frame.bytes);
        let portless = |reason| match vip {
            Some(vip) if vip.has(Some(ip.protocol)) => Err(Drop::unknown(reason).into()),
            _ => Ok(passed.clone()),
        };
        let header = packet::transport_header(ip.protocol);
        let ports = match ip.piece {
            Some(piece) if piece.offset != 0 => {
                match self.fragments.of_later(ip, piece, self.clock) {
                    Known::Ports(_) if piece.offset + ip.payload() > 0xffff => {
                        return Err(Drop::unknown(Reason::IpLength).into());
                    }
                    Known::Ports(ports) => ports,
                    Known::Overlap => {
                        return Err(Drop::unknown(Reason::FragmentOverlap).into());
                    }
                    Known::Missing => return portless(Reason::FragmentFirstMissing),
                }
            }
            // "A first fragment must hold the transport header."
            Some(piece) if packet.bytes.len() < ip.headers + header => {
                if self.fragments.is_known(ip, piece, self.clock) {
                    return Err(Drop::unknown(Reason::FragmentTiny).into());
                }
                return portless(Reason::FragmentTiny);
            }
            _ if packet.bytes.len() < ip.headers + header => {
                return portless(Reason::TransportHeader);
            }
            _ => match ip.ports(packet.bytes) {
                Some(ports) => ports,
                None => return portless(Reason::TransportHeader),
            },
        };
        if let Some(piece) = ip.piece
            && piece.offset == 0
            && self.fragments.contradicts(ip, piece, ports, self.clock)
        {
            return Err(Drop::unknown(Reason::FragmentOverlap).into());
        }
        let tuple = ip.tuple(ports);
        if let Some(service) = vip.and_then(|vip| vip.service(ip.protocol, ports[1])) {
            let refused = |reason| Drop::forward(reason, service.id, 0);
            ip.check(packet.bytes).map_err(refused)?;
            // "Every packet of a client is held to this, also of a flow that is known."
            if !guards::takes(service, ip.src) {
                return Err(refused(Reason::SourceDenied).into());
            }
            let named = self.named(world, service, packet);
            let outcome = if service.mode.translates() {
                self.translated(world, service, packet, tuple, named)
            } else {
                self.direct(world, service, packet, tuple, named)
            }?;
            self.forwarded(packet, ports, named);
            Ok(outcome)
        } else if let Some(flow) = self.flows.of_backend(&tuple).cloned() {
            let refused = |reason| Drop::reply(reason, service_of(world, &flow), flow.backend);
            ip.check(packet.bytes).map_err(refused)?;
            let outcome = self.reply(world, packet, &flow)?;
            self.forwarded(packet, ports, None);
            Ok(outcome)
        } else if vip.is_some_and(Vip::drops_other_ports) {
            Err(Drop::unknown(Reason::NoService).into())
        } else {
            // "And also to the host where the first one went there."
            if vip.is_some_and(|vip| vip.has(Some(ip.protocol))) {
                self.forwarded(packet, ports, None);
            }
            Ok(passed)
        }
    }

    /// A first fragment that has been forwarded is remembered.
    fn forwarded(&mut self, packet: &Packet<'_>, ports: [u16; 2], named: Option<u32>) {
        if let Some(piece) = packet.ip.piece.filter(|piece| piece.offset == 0) {
            self.fragments
                .remember(&packet.ip, piece, ports, self.clock, named);
        }
    }

    /// The backend that a packet names. "A later fragment goes where the first one went", of
    /// which the modes that translate have an entry.
    fn named(&self, world: &World, service: &Service, packet: &Packet<'_>) -> Option<u32> {
        let ip = &packet.ip;
        match ip.piece.filter(|piece| piece.offset != 0) {
            Some(_) if service.quic.is_none() || service.mode.translates() => None,
            Some(piece) => quic::usable(world, service, self.fragments.named(ip, piece)?),
            None => quic::named(world, service, ip, packet.bytes),
        }
    }

    /// A packet of a client to a service in `nat` or `full-nat`.
    fn translated(
        &mut self,
        world: &Arc<World>,
        service: &Service,
        packet: &Packet<'_>,
        tuple: Tuple,
        named: Option<u32>,
    ) -> Verdict {
        let Packet { frame, ip, bytes } = packet;
        let mut complaint = None;
        let mut context = nat::Context {
            world,
            flows: &mut self.flows,
            buckets: &mut self.buckets,
            totals: &mut self.totals,
            way_back: frame.link.way_back(frame.ifindex),
            clock: self.clock,
            choice: frame.choice,
            numbers: ip.numbers(bytes),
            named,
            complaint: &mut complaint,
        };
        let flow = nat::of_client(&mut context, service, tuple, ip, ip.flags(bytes));
        let flow = flow.map_err(|drop| self.refused(world, packet, drop, &tuple, 0))?;
        let refused = |reason| Drop::forward(reason, service.id, flow.backend);
        let backend = world
            .backends
            .get(&flow.backend)
            .ok_or(refused(Reason::BackendGone))?;
        let path = backend
            .path
            .as_ref()
            .ok_or(refused(Reason::NextHopUnresolved))?;
        self.fits(packet, backend.mtu, &refused)?;
        let mut changed = bytes.to_vec();
        nat::translate(&mut changed, ip, flow.server);
        packet::decrement_ttl(&mut changed);
        if let Some(most) = service.max_segment_size {
            segment_size::clamp(&mut changed, ip, most);
        }
        let action = link::exit(world, frame.ifindex, path).map_err(refused)?;
        self.count_forward(flow.backend, ip);
        let sent = frame.link.frame(path, frame.link.ether_type, &changed);
        Ok(Outcome {
            complaint,
            ..Outcome::sent(action, sent)
        })
    }

    /// A packet of the flow of a client is dropped, which a side sent, 0 for the client and 1
    /// for the backend. *Drained backends*: an end of it is told.
    fn refused(
        &mut self,
        world: &World,
        packet: &Packet<'_>,
        drop: Drop,
        client: &Tuple,
        side: usize,
    ) -> Outcome {
        if drop.reason != Reason::Drained || !reset::is_answered(packet) {
            return drop.into();
        }
        let spoke = (side, self.clock);
        let flow = nat::reset(&mut self.flows, &mut self.totals, client, spoke);
        let onward = flow.and_then(|flow| reset::onward(world, &flow, packet, side));
        match onward {
            Some((to, path)) => reset::passed_on(world, drop, packet, to, &path),
            None => reset::answered(drop, packet),
        }
    }

    /// A packet of a backend to a client.
    fn reply(&mut self, world: &World, packet: &Packet<'_>, flow: &Flow) -> Verdict {
        let Packet { frame, ip, bytes } = packet;
        let service = service_of(world, flow);
        let refused = |reason| Drop::reply(reason, service, flow.backend);
        let flags = ip.flags(bytes);
        let backend = world.backends.get(&flow.backend);
        if ip.protocol == packet::TCP
            && backend.is_some_and(|backend| reset::refuses(backend, flags))
        {
            let drop = refused(Reason::Drained);
            return Err(self.refused(world, packet, drop, &flow.client, 1));
        }
        self.fits(packet, flow.mtu, &refused)?;
        let told = (flags, ip.numbers(bytes));
        nat::replied(&mut self.flows, &mut self.totals, flow, told, self.clock);
        let mut changed = bytes.to_vec();
        nat::translate(&mut changed, ip, flow.client.reversed());
        packet::decrement_ttl(&mut changed);
        let most = world.services.iter().find(|other| other.id == service);
        if let Some(most) = most.and_then(|service| service.max_segment_size) {
            segment_size::clamp(&mut changed, ip, most);
        }
        let action = link::exit(world, frame.ifindex, &flow.path).map_err(refused)?;
        self.count_reply(flow.backend, ip);
        let sent = frame
            .link
            .frame(&flow.path, frame.link.ether_type, &changed);
        Ok(Outcome::sent(action, sent))
    }

    /// A packet of a client to a service in `dsr`, `ipip` or `gue`, "which keep no flows".
    fn direct(
        &mut self,
        world: &World,
        service: &Service,
        packet: &Packet<'_>,
        tuple: Tuple,
        named: Option<u32>,
    ) -> Verdict {
        let ip = &packet.ip;
        // "Every packet is held to this."
        if sources::is_martian(ip.src, ip.dst) {
            return Err(Drop::forward(Reason::MartianSource, service.id, 0).into());
        }
        // "Without entries, a SYN."
        if ip.flags(packet.bytes).opens() {
            let limited = self.buckets.begin(service, ip.src);
            limited.map_err(|reason| Drop::forward(reason, service.id, 0))?;
        }
        let (id, backend) = nat::named_or_of_ring(world, service, tuple, named)?;
        if reset::refuses(backend, ip.flags(packet.bytes)) {
            let drop = Drop::forward(Reason::Drained, service.id, id);
            return Err(reset::answered(drop, packet));
        }
        self.deliver(world, service, packet, tuple, (id, backend))
    }

    /// Sends a packet of the flow `tuple` to its backend as it is, or wrapped.
    fn deliver(
        &mut self,
        world: &World,
        service: &Service,
        packet: &Packet<'_>,
        tuple: Tuple,
        (id, backend): (u32, &Backend),
    ) -> Verdict {
        let Packet { frame, ip, bytes } = packet;
        let refused = |reason| Drop::forward(reason, service.id, id);
        let path = backend
            .path
            .as_ref()
            .ok_or(refused(Reason::NextHopUnresolved))?;
        self.fits(packet, backend.mtu, &refused)?;
        // "New flows are SYNs, ended flows FINs and RSTs seen."
        let flags = ip.flags(bytes);
        let counts = self.totals.backend(id);
        counts.new_flows += u64::from(flags.opens());
        counts.ended_flows += u64::from(flags.fin() || flags.rst());
        let mut changed = bytes.to_vec();
        packet::decrement_ttl(&mut changed);
        if let Some(most) = service.max_segment_size {
            segment_size::clamp(&mut changed, ip, most);
        }
        let mut ether_type = frame.link.ether_type;
        if service.mode != Mode::Dsr {
            let hash = hash::five_tuple(tuple.src, tuple.dst, tuple.protocol);
            let inner = ip.trimmed(&changed);
            let mut wrapped = tunnels::wrap(inner, ip, service.mode, backend, hash);
            wrapped.extend(&changed[ip.length..]);
            changed = wrapped;
            ether_type = tunnels::outer_type(backend);
        }
        let action = link::exit(world, frame.ifindex, path).map_err(refused)?;
        self.count_forward(id, ip);
        let sent = frame.link.frame(path, ether_type, &changed);
        Ok(Outcome::sent(action, sent))
    }

    /// The path of an ICMP message.
    fn icmp(&mut self, world: &Arc<World>, vip: Option<&Vip<'_>>, packet: &Packet<'_>) -> Verdict {
        let Packet { frame, ip, bytes } = packet;
        let passed = Outcome::pass(frame.bytes);
        if !icmp::is_icmp(ip) || ip.piece.is_some() {
            return Ok(passed);
        }
        match icmp::message(ip, bytes) {
            None if vip.is_some() => Err(Drop::unknown(Reason::IcmpHeader).into()),
            Some(Message::EchoRequest) => {
                if !vip.is_some_and(Vip::echoes) {
                    return Ok(passed);
                }
                ip.check_headers(bytes).map_err(Drop::unknown)?;
                // Nobody is there to answer.
                if sources::is_martian(ip.src, ip.dst) {
                    return Err(Drop::unknown(Reason::MartianSource).into());
                }
                let reply = icmp::echo_reply(bytes, ip);
                let answer = frame.link.answer(frame.bytes, &reply);
                Ok(Outcome::sent(Action::Transmit, answer))
            }
            Some(Message::Error(mtu)) => self.icmp_error(world, vip, packet, mtu),
            Some(Message::Other) | None => Ok(passed),
        }
    }

    /// *Errors*: "what counts is the quoted packet".
    fn icmp_error(
        &mut self,
        world: &Arc<World>,
        vip: Option<&Vip<'_>>,
        packet: &Packet<'_>,
        mtu: Option<u32>,
    ) -> Verdict {
        let Packet { frame, ip, bytes } = packet;
        let passed = Outcome::pass(frame.bytes);
        let quote = match icmp::quoted(ip, bytes) {
            Quoted::Packet(quote) => quote,
            Quoted::Foreign => return self.tunnel_error(world, packet, mtu),
            Quoted::Incomplete if vip.is_some() => {
                return Err(Drop::unknown(Reason::IcmpHeader).into());
            }
            Quoted::Incomplete => return Ok(passed),
        };
        // The flow's own packets go the other way than the one that is quoted.
        let tuple = quote.tuple.reversed();
        if let Some(service) = services::find(world, tuple.dst, tuple.protocol) {
            let refused = |reason| Drop::forward(reason, service.id, 0);
            icmp::check(ip, &quote, bytes).map_err(refused)?;
            // "Of an ICMP error, the client whose flow it is about."
            if !guards::takes(service, tuple.src.ip()) {
                return Err(refused(Reason::SourceDenied).into());
            }
            if !service.mode.translates() {
                let backend = nat::of_ring(world, service, tuple)?;
                return self.deliver(world, service, packet, tuple, backend);
            }
            return match self.flows.of_client(&tuple).cloned() {
                Some(flow) => self.error_to_backend(world, service, packet, &quote, &flow),
                None => Err(refused(Reason::NoFlow).into()),
            };
        }
        match self.flows.of_backend(&tuple).cloned() {
            Some(flow) => self.error_to_client(world, packet, &quote, &flow),
            None => self.tunnel_error(world, packet, mtu),
        }
    }

    /// "It was sent by a service to a client: the error is for the backend that owns the
    /// flow."
    fn error_to_backend(
        &mut self,
        world: &World,
        service: &Service,
        packet: &Packet<'_>,
        quote: &Quote,
        flow: &Flow,
    ) -> Verdict {
        let Packet { frame, ip, bytes } = packet;
        let refused = |reason| Drop::forward(reason, service.id, flow.backend);
        let backend = world
            .backends
            .get(&flow.backend)
            .filter(|backend| backend.health != Health::Removed)
            .ok_or(Drop::forward(Reason::BackendGone, service.id, 0))?;
        let path = backend
            .path
            .as_ref()
            .ok_or(refused(Reason::NextHopUnresolved))?;
        self.fits(packet, backend.mtu, &refused)?;
        let src = match service.mode {
            Mode::FullNat => flow.server.src.ip(),
            _ => ip.src,
        };
        let (dst, to) = (flow.server.dst.ip(), flow.server.reversed());
        let mut changed = bytes.to_vec();
        icmp::translate(&mut changed, ip, src, dst, quote, to);
        packet::decrement_ttl(&mut changed);
        let action = link::exit(world, frame.ifindex, path).map_err(refused)?;
        self.count_forward(flow.backend, ip);
        let sent = frame.link.frame(path, frame.link.ether_type, &changed);
        Ok(Outcome::sent(action, sent))
    }

    /// "It was sent by a client through a NAT mode to a backend: the error is for the
    /// client."
    fn error_to_client(
        &mut self,
        world: &World,
        packet: &Packet<'_>,
        quote: &Quote,
        flow: &Flow,
    ) -> Verdict {
        let Packet { frame, ip, bytes } = packet;
        let refused = |reason| Drop::reply(reason, service_of(world, flow), flow.backend);
        icmp::check(ip, quote, bytes).map_err(refused)?;
        self.fits(packet, flow.mtu, &refused)?;
        let (src, dst) = (flow.client.dst.ip(), flow.client.src.ip());
        let mut changed = bytes.to_vec();
        icmp::translate(&mut changed, ip, src, dst, quote, flow.client);
        packet::decrement_ttl(&mut changed);
        let action = link::exit(world, frame.ifindex, &flow.path).map_err(refused)?;
        self.count_reply(flow.backend, ip);
        let sent = frame
            .link
            .frame(&flow.path, frame.link.ether_type, &changed);
        Ok(Outcome::sent(action, sent))
    }

    /// "It was wrapped by `ipip` or `gue`: the client gets the error, from the service
    /// address, quoting its own packet, with the MTU less the outer headers." It passes
    /// where the quoted packet is no tunnel's.
    fn tunnel_error(&mut self, world: &World, packet: &Packet<'_>, mtu: Option<u32>) -> Verdict {
        let passed = Ok(Outcome::pass(packet.frame.bytes));
        let told = mtu.and_then(|mtu| self.sender_of_wrapped(world, packet, mtu));
        told.unwrap_or(passed)
    }

    fn sender_of_wrapped(
        &mut self,
        world: &World,
        packet: &Packet<'_>,
        mtu: u32,
    ) -> Option<Verdict> {
        let Packet { frame, ip, bytes } = packet;
        let quote = &bytes[ip.headers + icmp::HEADER..];
        let outer = icmp::outer(ip.src, quote).filter(|outer| outer.src == ip.dst)?;
        let (ether_type, inner) = icmp::wrapped(&outer, quote)?;
        let Quoted::Packet(quote) = icmp::read_quote(ether_type, &inner, None) else {
            return None;
        };
        let service = services::find(world, quote.tuple.dst, quote.tuple.protocol)
            .filter(|service| matches!(service.mode, Mode::Ipip | Mode::Gue))?;
        let (id, backend) = nat::of_ring(world, service, quote.tuple).ok()?;
        let is_gue = service.mode == Mode::Gue;
        if backend.address != outer.dst || is_gue != (outer.protocol == packet::UDP) {
            return None;
        }
        if is_gue && outer.port != Some(backend.port.unwrap_or(6_080)) {
            return None;
        }
        let refused = |reason| Drop::reply(reason, service.id, id);
        if let Err(reason) = ip.check_headers(bytes) {
            return Some(Err(refused(reason).into()));
        }
        let headers = tunnels::overhead(service.mode, backend.address) as u32;
        let drop = refused(Reason::TooBig);
        if !self.may_answer(&quote.ip) {
            return Some(Err(drop.into()));
        }
        let length = inner.len().min(quote.ip.length);
        let answer = icmp::too_big(&inner[..length], &quote.ip, mtu.saturating_sub(headers));
        let path = frame.link.way_back(frame.ifindex);
        let sent = frame.link.frame(&path, ether_type, &answer);
        Some(Err(Outcome {
            drop: Some(drop),
            ..Outcome::sent(Action::Transmit, sent)
        }))
    }

    /// "At most 100 of these are sent in a tick. None to a martian source."
    fn may_answer(&mut self, ip: &Ip) -> bool {
        if sources::is_martian(ip.src, ip.dst) || self.answers == 0 {
            return false;
        }
        self.answers -= 1;
        true
    }

    /// *Too big*: whether a packet fits the way that it would go. If not it is dropped,
    /// and its sender told.
    fn fits(
        &mut self,
        packet: &Packet<'_>,
        mtu: Option<u32>,
        refused: &dyn Fn(Reason) -> Drop,
    ) -> Result<(), Outcome> {
        let Packet { frame, ip, bytes } = packet;
        let Some(mtu) = mtu.filter(|mtu| ip.length > *mtu as usize) else {
            return Ok(());
        };
        let drop = refused(Reason::TooBig);
        // "None is sent about a later fragment, about ICMP."
        if icmp::is_icmp(ip) || ip.is_later_fragment() || !self.may_answer(ip) {
            return Err(drop.into());
        }
        let answer = icmp::too_big(ip.trimmed(bytes), ip, mtu);
        let sent = frame.link.answer(frame.bytes, &answer);
        Err(Outcome {
            drop: Some(drop),
            ..Outcome::sent(Action::Transmit, sent)
        })
    }

    fn count_forward(&mut self, backend: u32, ip: &Ip) {
        let counts = self.totals.backend(backend);
        counts.packets += 1;
        counts.bytes += ip.length as u64;
    }

    fn count_reply(&mut self, backend: u32, ip: &Ip) {
        let counts = self.totals.backend(backend);
        counts.reply_packets += 1;
        counts.reply_bytes += ip.length as u64;
    }
}

/// The service that a flow's backend belongs to, also once the backend is removed: its flows
/// keep its entry.
fn service_of(world: &World, flow: &Flow) -> u32 {
    let backend = world.backends.get(&flow.backend);
    backend.map_or(0, |backend| backend.service)
}
