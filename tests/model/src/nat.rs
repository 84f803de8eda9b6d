//! `nat` and `full-nat`. Architecture: *Flows* with its two tables, *Source ports*; the
//! table of *Modes*.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
};

use crate::{
    Choice,
    bytes::{be16, put16},
    checksum,
    guards::Buckets,
    hash,
    outcome::{Drop, Reason, Totals},
    packet::{self, Flags, Ip, Numbers, TCP, Tuple},
    reset, sources,
    world::{Backend, Health, Mode, Path, Service, World},
};

/// A flow, known in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What the client sends.
    pub client: Tuple,
    /// What the backend gets.
    pub server: Tuple,
    /// Id of the backend.
    pub backend: u32,
    /// Id of the pool that the source port is from; 0 for none.
    pub pool: u32,
    /// How replies leave.
    pub path: Path,
    /// Largest packet that leaves that way.
    pub mtu: Option<u32>,
    /// What has been seen of it.
    pub seen: Seen,
    /// The sequence number behind what the backend has sent, until its client has
    /// acknowledged that.
    pub awaited: u32,
    /// The clock when the client, and when the backend last spoke: "flows carry the tick
    /// of their last packet".
    pub spoke: [u32; 2],
}

/// What has been seen of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// A packet of the backend.
    pub reply: bool,
    /// A FIN of the client.
    pub client_fin: bool,
    /// A FIN of the backend.
    pub backend_fin: bool,
    /// An RST of either.
    pub rst: bool,
    /// An answer, at the client: selection.md, *Flow entries*.
    pub confirmed: bool,
}

impl Seen {
    /// The connection has ended: "FIN both ways, or RST".
    #[must_use]
    pub fn closed(self) -> bool {
        self.rst || self.client_fin && self.backend_fin
    }
}

/// All flows, and the source ports in use.
#[derive(Clone, Debug, Default)]
pub struct Flows {
    /// By what the client sends.
    by_client: HashMap<Tuple, Flow>,
    /// What the client sends, by what the backend sends.
    by_reply: HashMap<Tuple, Tuple>,
    /// Ports in use of each pool.
    ports: HashMap<u32, BTreeSet<u16>>,
    /// The flow that began last.
    newest: Option<Tuple>,
}

impl Flows {
    /// The flow of a client's packet.
    #[must_use]
    pub fn of_client(&self, tuple: &Tuple) -> Option<&Flow> {
        self.by_client.get(tuple)
    }

    /// The flow of a backend's packet.
    #[must_use]
    pub fn of_backend(&self, tuple: &Tuple) -> Option<&Flow> {
        self.by_client.get(self.by_reply.get(tuple)?)
    }

    /// Every flow.
    pub fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.by_client.values()
    }

    /// What the client of the flow that began last sends.
    #[must_use]
    pub fn newest(&self) -> Option<Tuple> {
        self.newest
    }

    /// Number of flows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_client.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_client.is_empty()
    }

    /// Ports of a pool in use.
    #[must_use]
    pub fn ports(&self, pool: u32) -> BTreeSet<u16> {
        self.ports.get(&pool).cloned().unwrap_or_default()
    }

    /// Takes a flow away, and gives its port back.
    pub fn remove(&mut self, client: &Tuple) -> Option<Flow> {
        let flow = self.by_client.remove(client)?;
        self.by_reply.remove(&flow.server.reversed());
        if let Some(used) = self.ports.get_mut(&flow.pool) {
            used.remove(&flow.server.src.port());
        }
        Some(flow)
    }

    fn insert(&mut self, flow: Flow) {
        if flow.pool != 0 {
            let used = self.ports.entry(flow.pool).or_default();
            used.insert(flow.server.src.port());
        }
        self.by_reply.insert(flow.server.reversed(), flow.client);
        self.newest = Some(flow.client);
        self.by_client.insert(flow.client, flow);
    }
}

/// What the flow of a packet depends on.
pub(crate) struct Context<'a> {
    pub(crate) world: &'a World,
    pub(crate) flows: &'a mut Flows,
    pub(crate) buckets: &'a mut Buckets,
    pub(crate) totals: &'a mut Totals,
    /// The way back to where the packet came from.
    pub(crate) way_back: Path,
    pub(crate) clock: u32,
    pub(crate) choice: Choice<'a>,
    /// Of TCP.
    pub(crate) numbers: Option<Numbers>,
    /// The backend that the packet names.
    pub(crate) named: Option<u32>,
    /// What was wrong with it.
    pub(crate) complaint: &'a mut Option<String>,
}

/// The flow of a packet of a client, a new one if it begins one.
///
/// # Errors
///
/// What the packet is dropped for.
pub(crate) fn of_client(
    context: &mut Context<'_>,
    service: &Service,
    tuple: Tuple,
    ip: &Ip,
    flags: Flags,
) -> Result<Flow, Drop> {
    if let Some(known) = context.flows.of_client(&tuple).cloned() {
        // "It goes before an entry of another backend", whose flow ends.
        let is_anothers = context.named.is_some_and(|named| named != known.backend);
        let fate = if is_anothers {
            Fate::BeginsAnew
        } else {
            fate(context.world, service, &known, ip, flags)
        };
        match fate {
            Fate::Stays => return Ok(went_on(context, known, ip, flags)),
            Fate::Drained => {
                return Err(Drop::forward(Reason::Drained, service.id, known.backend));
            }
            Fate::BeginsAnew if begins(service.mode, ip, flags) => {
                // "What is refused ends nothing."
                admit(context, service, ip)?;
                end(context, &known);
                return begin(context, service, tuple, ip, flags);
            }
            Fate::BeginsAnew | Fate::Gone => {
                end(context, &known);
                return Err(Drop::forward(Reason::BackendGone, service.id, 0));
            }
        }
    }
    if !begins(service.mode, ip, flags) {
        return Err(Drop::forward(Reason::NoFlow, service.id, 0));
    }
    admit(context, service, ip)?;
    begin(context, service, tuple, ip, flags)
}

/// What becomes of a packet with an entry.
enum Fate {
    Stays,
    BeginsAnew,
    Gone,
    /// Its backend's drain is over.
    Drained,
}

/// The table "a packet whose backend is" of the architecture.
fn fate(world: &World, service: &Service, flow: &Flow, ip: &Ip, flags: Flags) -> Fate {
    let health = world
        .backends
        .get(&flow.backend)
        .map_or(Health::Removed, |backend| backend.health);
    if ip.protocol != TCP {
        return match health {
            Health::Up => Fate::Stays,
            Health::Down | Health::Resetting | Health::Removed => Fate::BeginsAnew,
        };
    }
    // "A SYN on a closed flow begins a new one."
    if flags.opens() && flow.seen.closed() {
        return Fate::BeginsAnew;
    }
    match health {
        Health::Up => Fate::Stays,
        Health::Down if flags.opens() && !flow.seen.reply => Fate::BeginsAnew,
        Health::Down => Fate::Stays,
        // *Drained backends*: "a SYN begins a new connection", "an RST goes on".
        Health::Resetting if flags.opens() => Fate::BeginsAnew,
        Health::Resetting if flags.rst() => Fate::Stays,
        Health::Resetting => Fate::Drained,
        Health::Removed if flags.opens() => Fate::BeginsAnew,
        // "NAT: other TCP begins a flow at the ring's backend", but for RST and SYN+ACK.
        Health::Removed if service.mode == Mode::Nat && !flags.rst() && !flags.accepts() => {
            Fate::BeginsAnew
        }
        Health::Removed => Fate::Gone,
    }
}

/// Takes a flow away because it moves or its backend is gone: it "ended", unless its end
/// has been seen before.
fn end(context: &mut Context<'_>, flow: &Flow) {
    context.flows.remove(&flow.client);
    if !flow.seen.closed() {
        context.totals.backend(flow.backend).ended_flows += 1;
    }
}

/// A packet of a client of a known flow: "the way back is learned from the first packet,
/// and again when it changes".
fn went_on(context: &mut Context<'_>, mut flow: Flow, ip: &Ip, flags: Flags) -> Flow {
    flow.seen.confirmed |= confirms(&flow, ip, flags, context.numbers);
    if flow.path != context.way_back {
        flow.path = context.way_back.clone();
        flow.mtu = context.world.interfaces.get(&flow.path.ifindex).copied();
    }
    flow.spoke[0] = context.clock;
    let before = flow.seen.closed();
    flow.seen.client_fin |= flags.fin();
    flow.seen.rst |= flags.rst();
    if flow.seen.closed() && !before {
        context.totals.backend(flow.backend).ended_flows += 1;
    }
    context.flows.by_client.insert(flow.client, flow.clone());
    flow
}

/// Whether a client's packet shows that it gets answers: the table of *Flow entries*.
fn confirms(flow: &Flow, ip: &Ip, flags: Flags, numbers: Option<Numbers>) -> bool {
    if !flow.seen.reply || ip.is_later_fragment() {
        return false;
    }
    if ip.protocol != TCP {
        return true;
    }
    let acknowledged = |numbers: Numbers| numbers.acknowledgement.wrapping_sub(flow.awaited);
    flags.ack() && numbers.is_some_and(|numbers| acknowledged(numbers) < 65_536)
}

/// A packet of a backend of a known flow, with these flags and numbers.
pub(crate) fn replied(
    flows: &mut Flows,
    totals: &mut Totals,
    flow: &Flow,
    (flags, numbers): (Flags, Option<Numbers>),
    clock: u32,
) {
    let Some(flow) = flows.by_client.get_mut(&flow.client) else {
        return;
    };
    flow.spoke[1] = clock;
    let before = flow.seen.closed();
    flow.seen.reply = true;
    if let Some(numbers) = numbers
        && !flow.seen.confirmed
    {
        flow.awaited = numbers.sequence.wrapping_add(u32::from(flags.syn()));
    }
    flow.seen.backend_fin |= flags.fin();
    flow.seen.rst |= flags.rst();
    if flow.seen.closed() && !before {
        totals.backend(flow.backend).ended_flows += 1;
    }
}

/// *Drained backends*: a packet of a side, 0 for the client and 1 for the backend, ends the
/// flow. What it was before.
pub(crate) fn reset(
    flows: &mut Flows,
    totals: &mut Totals,
    client: &Tuple,
    (side, clock): (usize, u32),
) -> Option<Flow> {
    let flow = flows.by_client.get_mut(client)?;
    let before = flow.clone();
    if !flow.seen.closed() {
        totals.backend(flow.backend).ended_flows += 1;
    }
    flow.seen.rst = true;
    flow.spoke[side] = clock;
    Some(before)
}

/// The table "a packet without an entry" of the architecture.
fn begins(mode: Mode, ip: &Ip, flags: Flags) -> bool {
    match mode {
        // "They begin no flow."
        _ if ip.is_later_fragment() => false,
        _ if ip.protocol != TCP => true,
        Mode::FullNat => flags.opens(),
        _ => !flags.rst() && !flags.accepts(),
    }
}

/// Whether a client may begin a flow, which costs what the limits say.
fn admit(context: &mut Context<'_>, service: &Service, ip: &Ip) -> Result<(), Drop> {
    let refused = |reason| Drop::forward(reason, service.id, 0);
    if sources::is_martian(ip.src, ip.dst) {
        return Err(refused(Reason::MartianSource));
    }
    context.buckets.begin(service, ip.src).map_err(refused)
}

fn begin(
    context: &mut Context<'_>,
    service: &Service,
    tuple: Tuple,
    ip: &Ip,
    flags: Flags,
) -> Result<Flow, Drop> {
    let refused = |reason, backend| Drop::forward(reason, service.id, backend);
    let (id, backend) = named_or_of_ring(context.world, service, tuple, context.named)?;
    if reset::refuses(backend, flags) {
        return Err(refused(Reason::Drained, id));
    }
    if backend.path.is_none() {
        return Err(refused(Reason::NextHopUnresolved, id));
    }
    if sources::is_hairpin(service.mode, ip.src, backend) {
        return Err(refused(Reason::Hairpin, id));
    }
    let server = server(context, service, backend, tuple).map_err(|reason| refused(reason, id))?;
    let flow = Flow {
        client: tuple,
        server,
        backend: id,
        pool: if service.mode == Mode::FullNat {
            backend.pool
        } else {
            0
        },
        mtu: context
            .world
            .interfaces
            .get(&context.way_back.ifindex)
            .copied(),
        path: context.way_back.clone(),
        seen: Seen {
            client_fin: flags.fin(),
            ..Seen::default()
        },
        awaited: 0,
        spoke: [context.clock; 2],
    };
    context.flows.insert(flow.clone());
    context.totals.backend(id).new_flows += 1;
    Ok(flow)
}

/// The backend that a packet names, or that of its slot.
///
/// # Errors
///
/// Where there is none.
pub fn named_or_of_ring<'a>(
    world: &'a World,
    service: &Service,
    tuple: Tuple,
    named: Option<u32>,
) -> Result<(u32, &'a Backend), Drop> {
    match named.and_then(|id| Some((id, world.backends.get(&id)?))) {
        Some(named) => Ok(named),
        None => of_ring(world, service, tuple),
    }
}

/// The backend of the slot that the flow's hash leads to.
///
/// # Errors
///
/// Where there is none.
pub fn of_ring<'a>(
    world: &'a World,
    service: &Service,
    tuple: Tuple,
) -> Result<(u32, &'a Backend), Drop> {
    let slot = hash::slot(hash::five_tuple(tuple.src, tuple.dst, tuple.protocol));
    let id = service.ring.get(slot).copied().unwrap_or(0);
    match world.backends.get(&id) {
        Some(backend) if id != 0 && backend.health != Health::Removed => Ok((id, backend)),
        _ => Err(Drop::forward(Reason::NoBackend, service.id, 0)),
    }
}

/// What the backend of a new flow gets: the table of *Modes*, and *Source ports*.
fn server(
    context: &mut Context<'_>,
    service: &Service,
    backend: &Backend,
    tuple: Tuple,
) -> Result<Tuple, Reason> {
    let port = backend.port.unwrap_or(tuple.dst.port());
    let dst = SocketAddr::new(backend.address, port);
    let with_source = |src| Tuple { src, dst, ..tuple };
    let is_free = |flows: &Flows, src| flows.of_backend(&with_source(src).reversed()).is_none();
    if service.mode == Mode::Nat {
        if is_free(context.flows, tuple.src) {
            return Ok(with_source(tuple.src));
        }
        // "The table of replies is the second guard: an entry is never overwritten."
        let Some(chosen) = (context.choice)(&tuple) else {
            return Err(Reason::ReplyTupleTaken);
        };
        let src = SocketAddr::new(tuple.src.ip(), chosen);
        if chosen < 1_024 || !is_free(context.flows, src) {
            *context.complaint = Some(format!("source port {chosen} is privileged or in use"));
        }
        return Ok(with_source(src));
    }
    let source = backend.source.ok_or(Reason::SourcePortsExhausted)?;
    let used = context.flows.ports.entry(backend.pool).or_default();
    if backend
        .source_ports
        .clone()
        .all(|port| used.contains(&port))
    {
        let Some(chosen) = (context.choice)(&tuple) else {
            return Err(Reason::SourcePortsExhausted);
        };
        // "A port of an embryonic flow is taken over."
        let reply = with_source(SocketAddr::new(source, chosen)).reversed();
        match context.flows.of_backend(&reply).cloned() {
            Some(other) if !other.seen.confirmed && other.pool == backend.pool => {
                end(context, &other);
            }
            other => {
                *context.complaint = Some(format!("took port {chosen} over from {other:?}"));
            }
        }
        return Ok(with_source(SocketAddr::new(source, chosen)));
    }
    let Some(chosen) = (context.choice)(&tuple) else {
        *context.complaint = Some("no source port although some are free".to_owned());
        return Err(Reason::SourcePortsExhausted);
    };
    if used.contains(&chosen) || !backend.source_ports.contains(&chosen) {
        *context.complaint = Some(format!(
            "source port {chosen} is in use or not in {:?}",
            backend.source_ports
        ));
    }
    Ok(with_source(SocketAddr::new(source, chosen)))
}

/// Gives an IP packet the addresses and ports of another tuple, its checksums as right or
/// wrong as they were. Of the quote of an ICMP error not all may be there.
pub fn translate(packet: &mut [u8], ip: &Ip, to: Tuple) {
    let addresses = [ip.src, ip.dst];
    let mut before = packet::octets(addresses);
    let mut after = packet::octets([to.src.ip(), to.dst.ip()]);
    packet::edit_header(packet, |header| {
        packet::set_addresses(header, to.src.ip(), to.dst.ip());
    });
    if ip.is_later_fragment() {
        return;
    }
    let segment = &mut packet[ip.headers..];
    before.extend(&segment[..4]);
    put16(segment, 0, to.src.port());
    put16(segment, 2, to.dst.port());
    after.extend(&segment[..4]);
    let at = checksum_offset(ip.protocol);
    if segment.len() < at + 2 {
        return;
    }
    let old = be16(segment, at);
    let is_udp = ip.protocol != TCP;
    // Of a datagram, zero says that there is no checksum.
    if old == 0 && is_udp {
        return;
    }
    let new = checksum::updated(old, &before, &after);
    put16(
        segment,
        at,
        if is_udp { checksum::of_udp(new) } else { new },
    );
}

/// Where the checksum is in a transport header.
#[must_use]
pub fn checksum_offset(protocol: u8) -> usize {
    if protocol == TCP { 16 } else { 6 }
}
