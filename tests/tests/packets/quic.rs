//! Connection IDs of QUIC that name a backend: it gets their packets, whatever the ring and
//! the entry of the tuple say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{
    backend::BackendState,
    drop_reason::DropReason,
    quic::{ConnectionIds, MAX_SERVER_ID, ServerIdKey},
    service::{Mode, Service},
};
use lb_tests::{Case, Flow, IcmpError, Kind, Packet, World, at_once};

use crate::{errors, fragments, run};

/// Kinds of datagrams, in the modes that do not translate without entries and with.
fn sorts() -> impl Iterator<Item = Sort> {
    Kind::all(|kind| !kind.tcp).flat_map(|kind| {
        let sort = |has_entries| Sort { kind, has_entries };
        let with = Some(sort(true));
        let without = (!kind.translates()).then(|| sort(false));
        [with, without].into_iter().flatten()
    })
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for sort in sorts() {
        cases.extend([
            forms(sort),
            migration(sort),
            shared_tuple(sort),
            rotation(sort),
            unknown(sort),
            truncated(sort),
            state(sort, BackendState::Down),
            state(sort, BackendState::Absent),
            state(sort, BackendState::Resetting),
            unresolved(sort),
            in_fragments(sort),
            at_most(sort),
            no_quic(sort),
        ]);
        cases.extend(PLACES.map(|place| placed(sort, place)));
        if !sort.kind.is_tunnel() {
            cases.push(short_datagram(sort));
        }
        if !sort.kind.translates() {
            cases.push(error(sort));
        }
        if sort.has_entries && !sort.kind.translates() {
            cases.push(spoken_twice(sort));
        }
        if sort.has_entries {
            cases.push(limited(sort));
        }
        // The same in all modes that do not translate, and with many packets.
        if sort.has_entries && sort.kind.mode == Mode::Dsr {
            cases.push(table_full(sort));
        }
        if sort.kind.translates() {
            cases.push(answered(sort));
        }
    }
    cases
}

/// A kind of service of QUIC.
#[derive(Clone, Copy)]
struct Sort {
    kind: Kind,
    /// Every flow has an entry.
    has_entries: bool,
}

/// Offset and length of server IDs.
const PLACES: [(u8, u8); 5] = [(1, 1), (1, 15), (5, 15), (19, 1), (8, 7)];

/// Where connection IDs have server IDs here unless a case says otherwise.
const USUAL: ConnectionIds = ConnectionIds {
    offset: 2,
    length: 4,
    configurations: 0b101,
    reserved: 0,
};

/// Bytes of an ID behind the server ID.
const NONCE: [u8; 3] = [0xd0, 0xd1, 0xd2];

/// The server ID of a backend.
fn server_id(backend: u32, length: u8) -> Vec<u8> {
    (0..length)
        .map(|index| (backend as u8).wrapping_mul(16) ^ index ^ 0x55)
        .collect()
}

/// A connection ID with this server ID.
fn connection_id(ids: ConnectionIds, configuration: u8, server_id: &[u8]) -> Vec<u8> {
    let mut id = vec![configuration << 5 | 0x1b];
    id.resize(ids.offset.into(), 0xee);
    id.extend(server_id);
    id
}

/// The usual one of a backend.
fn id_of(backend: u32) -> Vec<u8> {
    connection_id(USUAL, 0, &server_id(backend, USUAL.length))
}

/// A packet with a long header, of a version that nobody knows.
fn long(id: &[u8]) -> Vec<u8> {
    let header = [0xc3, 0xfa, 0xce, 0xb0, 0x0c, id.len() as u8];
    let source = [4, 0xaa, 0xbb, 0xcc, 0xdd];
    [&header[..], id, &source, b"crypto"].concat()
}

/// A packet with a short header.
fn short(id: &[u8]) -> Vec<u8> {
    [&[0x43][..], id, &NONCE, b"data"].concat()
}

impl Sort {
    fn case(self, what: &str) -> Case {
        let entries = match (self.kind.translates(), self.has_entries) {
            (true, _) => "",
            (_, true) => ", with entries",
            (_, false) => ", without entries",
        };
        Case::of(self.kind, format!("QUIC: {what}{entries}"))
    }

    /// A case in which connection IDs name both backends.
    fn quic(self, what: &str) -> Case {
        self.placed(what, USUAL)
    }

    fn placed(self, what: &str, ids: ConnectionIds) -> Case {
        self.case(what).given(|world| self.name(world, ids))
    }

    /// Connection IDs name both backends.
    fn name(self, world: &mut World, ids: ConnectionIds) {
        let kind = self.kind;
        self.edit(world, |service| service.flags |= Service::QUIC);
        if self.has_entries && !kind.translates() {
            self.edit(world, |service| service.flags |= Service::TRACKED);
        }
        let service = kind.service().id();
        world.connection_ids.insert(service, ids);
        for backend in [kind.backend(), kind.spare_backend()] {
            let key = key(service, &server_id(backend, ids.length));
            world.server_ids.insert(key, backend);
        }
    }

    fn edit(self, world: &mut World, change: impl Fn(&mut Service)) {
        let of_kind = |service: &&mut Service| service.id() == self.kind.service().id();
        world.services.values_mut().filter(of_kind).for_each(change);
    }

    /// A flow at the backend that the ring knows.
    fn ring(self) -> Flow {
        Flow::first(self.kind)
    }

    /// A flow at the one that it does not know.
    fn spare(self) -> Flow {
        Flow::first(self.kind).moved()
    }

    /// A packet that begins a flow.
    fn begin(self, case: Case, label: &str, flow: &Flow, payload: Vec<u8>) -> Case {
        let packet = flow.request().with_payload(payload);
        if self.kind.translates() {
            return case.begin(label, flow, &packet);
        }
        let case = case.forward(label, flow, &packet);
        if self.has_entries {
            case.pinning(1)
                .counting(|counters| counters.new_flows = 1, flow.backend)
        } else {
            case
        }
    }

    /// A packet of a flow that is there.
    fn next(self, case: Case, label: &str, flow: &Flow, payload: Vec<u8>) -> Case {
        case.forward(label, flow, &flow.request().with_payload(payload))
    }

    /// A packet that ends the flow of its tuple and begins another.
    fn switch(self, case: Case, label: &str, old: &Flow, new: &Flow, payload: Vec<u8>) -> Case {
        self.ending(self.begin(case, label, new, payload), old)
    }

    /// The last step's packet ends a flow, where there is one.
    fn ending(self, case: Case, flow: &Flow) -> Case {
        if self.kind.translates() {
            case.removing(flow).ending(flow)
        } else if self.has_entries {
            case.pinning(-1)
                .counting(|counters| counters.ended_flows = 1, flow.backend)
        } else {
            case
        }
    }
}

fn key(service: u32, server_id: &[u8]) -> ServerIdKey {
    let mut id = [0; MAX_SERVER_ID];
    id[..server_id.len()].copy_from_slice(server_id);
    ServerIdKey {
        id,
        length: server_id.len() as u8,
        service,
        reserved: 0,
    }
}

/// Long headers and short ones, of flows that are new and known.
fn forms(sort: Sort) -> Case {
    let flow = sort.spare();
    let other = sort.ring().from_port(41_000);
    let (id, other_id) = (id_of(flow.backend), id_of(other.backend));
    let case = sort.quic("a long header and a short one");
    let case = sort.begin(case, "long", &flow, long(&id));
    let case = sort.next(case, "short", &flow, short(&id));
    let case = sort.next(case, "long again", &flow, long(&id));
    // That of the backend that the ring would have chosen, too.
    let case = sort.begin(case, "short, of the other", &other, short(&other_id));
    let case = sort.next(case, "long, of the other", &other, long(&other_id));
    // The bits of the first byte that differ from version to version say nothing.
    let mut odd = short(&id);
    odd[0] = 0;
    let case = sort.next(case, "without the fixed bit", &flow, odd);
    let mut odd = long(&id);
    odd[0] = 0x80;
    odd[1..5].fill(0);
    sort.next(case, "version 0", &flow, odd)
}

/// The client comes from another address and port: its packets go to the same backend.
fn migration(sort: Sort) -> Case {
    let before = sort.spare();
    let mut after = nth(sort.spare().from_port(41_000), 1);
    let address: IpAddr = if sort.kind.ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xcc, 0, 0, 0, 0, 8).into()
    } else {
        Ipv4Addr::new(203, 0, 113, 8).into()
    };
    after.client.set_ip(address);
    if !sort.kind.is_full_nat() {
        after.source = after.client;
    }
    let id = id_of(before.backend);
    let case = sort.quic("a client that changes its address");
    let case = sort.begin(case, "before", &before, short(&id));
    let case = sort.begin(case, "after", &after, short(&id));
    let case = sort.next(case, "after, again", &after, short(&id));
    sort.next(case, "before, late", &before, short(&id))
}

/// The entry of the tuple has another backend: the ID goes before it.
fn shared_tuple(sort: Sort) -> Case {
    let (ring, spare) = (sort.ring(), sort.spare());
    let case = sort.quic("an ID that names another backend than the entry");
    let case = sort.begin(case, "no ID", &ring, b"no".to_vec());
    let id = short(&id_of(spare.backend));
    let case = sort.switch(case, "an ID", &ring, &spare, id.clone());
    let case = sort.next(case, "the ID again", &spare, id);
    // What has no ID follows the entry, where there is one.
    let last = if sort.has_entries { &spare } else { &ring };
    let case = sort.next(case, "no ID again", last, b"no".to_vec());
    let case = sort.next(case, "confirmed", last, b"no".to_vec());
    // And back, from an entry that has been confirmed.
    let id = short(&id_of(ring.backend));
    sort.switch(
        case,
        "an ID of the first",
        &spare,
        &nth(ring.clone(), 1),
        id,
    )
}

/// The same flow, the `nth` to its backend: full NAT gives it the port that comes then.
fn nth(flow: Flow, nth: u16) -> Flow {
    if flow.kind.is_full_nat() {
        flow.through_port(20_000 + nth)
    } else {
        flow
    }
}

/// Only IDs of the configurations that are read.
fn rotation(sort: Sort) -> Case {
    let mut case = sort.quic("the configurations that are read");
    let mut flows = [0; 2];
    for number in 0..8 {
        let is_read = USUAL.configurations >> number & 1 == 1;
        let flow = if is_read { sort.spare() } else { sort.ring() };
        let earlier = &mut flows[usize::from(is_read)];
        let flow = nth(flow.from_port(41_000 + u16::from(number)), *earlier);
        *earlier += 1;
        let server_id = server_id(sort.kind.spare_backend(), USUAL.length);
        let id = connection_id(USUAL, number, &server_id);
        case = sort.begin(case, &format!("short, {number}"), &flow, short(&id));
        case = sort.next(case, &format!("long, {number}"), &flow, long(&id));
    }
    case
}

/// Server IDs of other lengths and at other places.
fn placed(sort: Sort, (offset, length): (u8, u8)) -> Case {
    let ids = ConnectionIds {
        offset,
        length,
        ..USUAL
    };
    let flow = sort.spare();
    let id = connection_id(ids, 2, &server_id(flow.backend, length));
    let what = format!("a server ID of {length} behind {offset}");
    let case = sort.placed(&what, ids);
    let case = sort.begin(case, "long", &flow, long(&id));
    let case = sort.next(case, "short", &flow, short(&id));
    // Not a byte behind it.
    let case = sort.next(case, "the least", &flow, [&[0x43][..], &id].concat());
    let long = [&[0xc0, 0, 0, 0, 1, id.len() as u8][..], &id].concat();
    sort.next(case, "the least with a long header", &flow, long)
}

/// IDs that no backend of the service has.
fn unknown(sort: Sort) -> Case {
    let kind = sort.kind;
    let flow = sort.ring();
    let spare = server_id(kind.spare_backend(), USUAL.length);
    let case = sort.quic("IDs that nobody has").given(|world| {
        // Of another service, and of a length that is not read.
        let other = kind.service().id() + 1;
        let foreign = key(other, &[9; 4]);
        world.server_ids.insert(foreign, kind.spare_backend());
        let longer = key(kind.service().id(), &[9; 5]);
        world.server_ids.insert(longer, kind.spare_backend());
        // Of this one, but with a backend of another.
        let stray = key(kind.service().id(), &[8; 4]);
        world.server_ids.insert(stray, foreign_backend(kind));
    });
    let unknown = [
        ("of nobody", connection_id(USUAL, 0, &[7; 4])),
        ("of another service", connection_id(USUAL, 0, &[9; 4])),
        ("of another length", connection_id(USUAL, 0, &[9; 5])),
        ("of a stray backend", connection_id(USUAL, 0, &[8; 4])),
        ("one too early", connection_id(at(1), 0, &spare)),
        ("one too late", connection_id(at(3), 0, &spare)),
    ];
    let mut case = sort.begin(case, "no ID", &flow, Vec::new());
    for (label, id) in unknown {
        case = sort.next(case, label, &flow, short(&id));
        case = sort.next(case, &format!("{label}, long"), &flow, long(&id));
    }
    case
}

fn at(offset: u8) -> ConnectionIds {
    ConnectionIds { offset, ..USUAL }
}

/// A backend of another service.
fn foreign_backend(kind: Kind) -> u32 {
    let others = Kind::all(|other| *other != kind);
    others.map(Kind::backend).next().expect("another kind")
}

/// IDs that end before the server ID does.
fn truncated(sort: Sort) -> Case {
    let flow = sort.ring();
    let id = id_of(sort.kind.spare_backend());
    let mut case = sort.begin(
        sort.quic("IDs that are cut off"),
        "empty",
        &flow,
        Vec::new(),
    );
    for length in 1..=id.len() {
        let cut = [&[0x43][..], &id[..length - 1]].concat();
        case = sort.next(case, &format!("short, {length} bytes"), &flow, cut.clone());
        // What stands behind the packet in the frame is no part of it.
        let mut packet = flow.request().with_payload(cut);
        packet.padding = [&id[length - 1..], &NONCE].concat();
        case = case.forward(format!("short, {length} bytes, padded"), &flow, &packet);
    }
    let whole = long(&id);
    for length in 1..6 + id.len() {
        let cut = whole[..length].to_vec();
        case = sort.next(case, &format!("long, {length} bytes"), &flow, cut);
    }
    for length in 0..id.len() {
        let mut wrong = whole.clone();
        wrong[5] = length as u8;
        case = sort.next(case, &format!("long, {length} said"), &flow, wrong);
    }
    let mut wrong = whole.clone();
    wrong[5] = whole.len() as u8 - 5;
    case = sort.next(case, "long, one more said than there is", &flow, wrong);
    let mut wrong = whole;
    wrong[5] = 0xff;
    sort.next(case, "long, 255 said", &flow, wrong)
}

/// A datagram that ends before its IP packet does: the rest is no part of it.
fn short_datagram(sort: Sort) -> Case {
    const UDP_LENGTH: usize = 4;
    let (ring, spare) = (sort.ring(), sort.spare());
    let id = id_of(spare.backend);
    let cut = |flow: &Flow, length: usize| {
        let packet = flow.request().unchecked();
        let packet = packet.with_payload(short(&id));
        let shorten = |mut frame: Vec<u8>, packet: &Packet| {
            let at = packet.transport_offset() + UDP_LENGTH;
            frame[at..at + 2].copy_from_slice(&(8 + length as u16).to_be_bytes());
            frame
        };
        let delivered = flow.delivered(&packet);
        (
            shorten(packet.build(), &packet),
            shorten(delivered.build(), &delivered),
            packet,
        )
    };
    let case = sort.quic("a datagram that is shorter than its packet");
    let case = sort.begin(case, "no ID", &ring, Vec::new());
    let (frame, delivered, packet) = cut(&ring, id.len());
    let case = case
        .forward("one byte is missing", &ring, &packet)
        .with_frames(frame, delivered);
    let (frame, delivered, packet) = cut(&spare, 1 + id.len());
    sort.switch(case, "all is there", &ring, &spare, packet.payload)
        .with_frames(frame, delivered)
}

/// The backend is down or gone, or resets what it has: its IDs say nothing, as with entries of
/// datagrams.
fn state(sort: Sort, state: BackendState) -> Case {
    let (ring, spare) = (sort.ring(), sort.spare());
    let id = id_of(spare.backend);
    let case = sort.quic(&format!("IDs of a backend that is {state:?}"));
    let case = sort.begin(case, "up", &spare, short(&id));
    let case = case.then("it is not", move |world| {
        world.set_state(spare.backend, state);
    });
    let spare = sort.spare();
    let case = sort.switch(case, "to the ring's", &spare, &ring, short(&id));
    let case = sort.next(case, "again", &ring, long(&id));
    let case = case.then("back", move |world| {
        world.set_state(spare.backend, BackendState::Up);
    });
    let spare = nth(sort.spare(), 1);
    sort.switch(case, "to the named one", &ring, &spare, short(&id))
}

/// What an ID begins takes a token, also where the flow of its tuple ends for it. It goes on
/// where there is none: forged IDs are no way to end it.
fn limited(sort: Sort) -> Case {
    const LIMITED: DropReason = DropReason::RateLimitedSource;
    let (ring, spare) = (sort.ring(), sort.spare());
    let id = id_of(spare.backend);
    let case = sort.quic("IDs and a limit of new flows").given(|world| {
        world.guard(sort.kind).per_source = at_once(2);
    });
    let case = sort.begin(case, "an ID", &spare, short(&id)).taking(1, 0);
    let case = sort.next(case, "again", &spare, long(&id));
    let named = id_of(ring.backend);
    let case = sort.switch(case, "an ID of the other", &spare, &ring, short(&named));
    let case = case.taking(1, 0);
    let refused = ring.request().with_payload(short(&id));
    let case = case.refuse("one more change", &ring, &refused, LIMITED);
    let case = sort.next(case, "its flow goes on", &ring, short(&named));
    let late = nth(sort.spare().from_port(41_000), 1);
    let refused = late.request().with_payload(short(&id));
    let case = case.refuse("a tuple more", &late, &refused, LIMITED);
    let case = case.fill(1);
    sort.begin(case, "a token later", &late, short(&id))
        .taking(1, 0)
}

/// There is no way to the backend: its connections can go nowhere else.
fn unresolved(sort: Sort) -> Case {
    let flow = sort.spare();
    let packet = flow.request().with_payload(short(&id_of(flow.backend)));
    let case = sort
        .quic("IDs of a backend without a next hop")
        .given(|world| world.edit(flow.backend, |backend| backend.path.ifindex = 0))
        .lose("an ID", &flow, &packet, DropReason::NextHopUnresolved);
    if sort.has_entries && !sort.kind.translates() {
        return case
            .pinning(1)
            .counting(|counters| counters.new_flows = 1, flow.backend);
    }
    case
}

/// The first fragment has the ID; the others go where it went.
fn in_fragments(sort: Sort) -> Case {
    const FIRST: usize = 64;
    let (ring, spare) = (sort.ring(), sort.spare());
    let id = id_of(spare.backend);
    let mut payload = short(&id);
    payload.resize(FIRST - 8, 0x3c);
    let first = spare.request().with_payload(payload.clone());
    let first = first.as_fragment(0, true);
    // What would be another's ID if it were looked for there.
    let later = spare.request().with_payload(short(&id_of(ring.backend)));
    let later = later.as_fragment((FIRST / 8) as u16, false);
    let case = sort.quic("fragments");
    let case = sort.begin(case, "another datagram", &ring, b"no".to_vec());
    let case = sort
        .switch(case, "first", &ring, &spare, payload.clone())
        .with_request(&spare, &first)
        .remembering(&first);
    let case = fragments::follows(case, "second", &spare, &later);
    // Where the datagram has no ID, that is so too.
    let plain = vec![0; FIRST - 8];
    let last = if sort.has_entries { &spare } else { &ring };
    let first = last.request().with_payload(plain).as_fragment(0, true);
    let case = case.forward("first of another", last, &first);
    let case = case.remembering(&first);
    let case = fragments::follows(case, "second of another", last, &later);
    // A backend that has gone meanwhile gets none.
    if sort.has_entries {
        return case;
    }
    let first = spare.request().with_payload(payload).as_fragment(0, true);
    let case = case.forward("first of a third", &spare, &first);
    let gone = spare.backend;
    let case = case.remembering(&first).then("gone", move |world| {
        world.set_state(gone, BackendState::Absent);
    });
    fragments::follows(case, "second of the third", &ring, &later)
}

/// A backend that has as many flows as it takes gets what names it all the same.
fn at_most(sort: Sort) -> Case {
    let kind = sort.kind;
    let (ring, spare) = (sort.ring(), sort.spare().from_port(41_000));
    let case = sort.quic("IDs of a backend that is full").given(|world| {
        sort.edit(world, |service| service.flags |= Service::BOUNDED);
        for backend in [kind.backend(), kind.spare_backend()] {
            world.edit(backend, |backend| backend.max_flows = 1);
        }
        world.set_ring(kind, kind.backend());
    });
    let case = sort.begin(case, "a flow", &ring, b"no".to_vec());
    let case = sort.next(case, "confirmed", &ring, b"no".to_vec());
    let case = if kind.translates() {
        let case = case.reply("an answer", &ring, &ring.reply());
        sort.next(case, "confirmed by the client", &ring, b"no".to_vec())
    } else {
        case
    };
    let case = if sort.has_entries {
        let late = ring.clone().from_port(42_000);
        case.refuse("another", &late, &late.opening(), DropReason::BackendsFull)
    } else {
        case
    };
    let id = id_of(spare.backend);
    let case = sort.begin(case, "one that is named", &spare, short(&id));
    let named = nth(sort.ring().from_port(43_000), 1);
    sort.begin(case, "one more", &named, short(&id_of(ring.backend)))
}

/// A service that does not read IDs, whatever the tables hold.
fn no_quic(sort: Sort) -> Case {
    let flow = sort.ring();
    let id = short(&id_of(sort.kind.spare_backend()));
    let case = sort
        .quic("a service that does not read IDs")
        .given(|world| {
            sort.edit(world, |service| service.flags &= !Service::QUIC);
        });
    let case = sort.begin(case, "an ID", &flow, id.clone());
    sort.next(case, "again", &flow, id)
}

/// An error quotes what the backend sent, with the ID of the client: without an entry it
/// goes where the ring says.
fn error(sort: Sort) -> Case {
    let (ring, spare) = (sort.ring(), sort.spare());
    let id = id_of(spare.backend);
    let case = sort.quic("an ICMP error");
    let case = sort.begin(case, "an ID", &spare, short(&id));
    let flow = if sort.has_entries { &spare } else { &ring };
    let what = if sort.kind.ipv6 {
        (IcmpError::PACKET_TOO_BIG, [0, 0, 0x05, 0x14])
    } else {
        (IcmpError::NEEDS_FRAGMENTATION, [0, 0, 0x05, 0x14])
    };
    let reply = flow.reply();
    errors::reaches_backend(case, "about a reply", flow, &reply, what, reply.ip_length())
}

/// Entries that the tables have room for.
const ROOM: u16 = 64 + 64;

/// Where no entry can be written the ID alone decides.
fn table_full(sort: Sort) -> Case {
    let mut case = sort.quic("IDs and a full table");
    let flow = |index: u16| sort.spare().from_port(41_000 + index);
    let id = id_of(sort.kind.spare_backend());
    for index in 0..ROOM {
        case = sort.begin(case, "a flow", &flow(index), short(&id));
        case = sort.next(case, "confirmed", &flow(index), short(&id));
    }
    let late = flow(ROOM);
    for label in ["one more", "the same"] {
        case = sort.next(case, label, &late, short(&id));
        case = case.changing(|change| change.untracked(late.backend));
    }
    case
}

/// A flow whose entry was taken over is confirmed like any other, and counts.
fn spoken_twice(sort: Sort) -> Case {
    let (ring, spare) = (sort.ring(), sort.spare());
    let (id, back) = (id_of(spare.backend), id_of(ring.backend));
    let case = sort.quic("entries that change their backend and are confirmed");
    let case = sort.begin(case, "no ID", &ring, b"no".to_vec());
    let case = sort.next(case, "confirmed", &ring, b"no".to_vec());
    let case = sort.switch(case, "an ID", &ring, &spare, short(&id));
    let case = sort.next(case, "confirmed again", &spare, short(&id));
    let case = sort.switch(case, "another ID", &spare, &ring, short(&back));
    sort.next(case, "confirmed once more", &ring, short(&back))
}

/// Replies of the backend that an ID names reach the client, and those of the one before
/// no more.
fn answered(sort: Sort) -> Case {
    let (ring, spare) = (sort.ring(), sort.spare());
    let id = id_of(spare.backend);
    let case = sort.quic("replies after an ID has moved the flow");
    let case = sort.begin(case, "no ID", &ring, b"no".to_vec());
    let case = case.reply("a reply", &ring, &ring.reply());
    let case = sort.next(case, "confirmed", &ring, b"no".to_vec());
    let case = sort.switch(case, "an ID", &ring, &spare, short(&id));
    let case = case.reply("a reply of the other", &spare, &spare.reply());
    let case = sort.next(case, "confirmed again", &spare, short(&id));
    let late = ring.reply().build();
    case.pass("a late reply", ring.backend_link.ifindex, late)
}

#[test]
fn quic() {
    run("quic", &cases());
}
