//! Lists flows for people.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use lb_common::{
    CLOCK_TICK_MS,
    flow::{FlowKey4, FlowKey6, FlowValue as _, state},
};

use super::expiry::age;
use crate::{
    address::AddressPrefix,
    datapath::{Family, FlowPair, FlowTables, Ipv4, Ipv6, Result},
    state::{FlowList, FlowState, FlowStatus, Protocol},
};

/// The service and the address of a backend.
pub type Named = (Arc<str>, Arc<str>);

/// Which flows are wanted, in the terms of the tables.
#[derive(Clone, Debug)]
pub struct Query {
    /// The flow clock.
    pub now: u32,
    /// Backends whose flows are wanted, by id, as they are called.
    pub backends: HashMap<u32, Named>,
    /// Clients whose flows are wanted; `None` for all.
    pub client: Option<AddressPrefix>,
    /// The state that is wanted; `None` for any.
    pub state: Option<FlowState>,
    /// Most flows of the answer.
    pub limit: usize,
}

/// Lists flows, in the order of the tables.
///
/// # Errors
///
/// Where the kernel refuses to read a table.
pub(super) fn list(tables: &mut FlowTables, query: &Query) -> Result<FlowList> {
    let mut list = FlowList::default();
    if !query.backends.is_empty() {
        walk(&mut tables.v4, query, &mut list)?;
        walk(&mut tables.v6, query, &mut list)?;
    }
    Ok(list)
}

fn walk<F: Addresses>(pair: &mut FlowPair<F>, query: &Query, list: &mut FlowList) -> Result<()> {
    let mut found = Vec::new();
    let room = query.limit - list.flows.len();
    pair.flows.for_each_batch(|entries| {
        for (key, flow) in entries {
            let entry = flow.entry();
            let (source, _, _) = F::addresses(flow.to());
            let Some(status) = query.describe::<F>(key, entry.backend, entry.state, source) else {
                continue;
            };
            if found.len() == room {
                list.truncated = true;
                continue;
            }
            found.push((status, age(entry.last_seen, query.now), flow.partner()));
        }
    })?;
    for (mut status, mut idle, partner) in found {
        if let Some(reply) = pair.replies.get(&partner)? {
            idle = idle.min(age(reply.entry().last_seen, query.now));
        }
        status.idle_seconds = seconds(idle);
        list.flows.push(status);
    }
    pair.pins.for_each_batch(|entries| {
        for (key, pin) in entries {
            let (client, _, _) = F::addresses(key);
            let Some(mut status) = query.describe::<F>(key, pin.backend, pin.state, client) else {
                continue;
            };
            if list.flows.len() >= query.limit {
                list.truncated = true;
                continue;
            }
            status.idle_seconds = seconds(age(pin.last_seen, query.now));
            list.flows.push(status);
        }
    })
}

impl Query {
    /// What is told of a flow that is wanted. `source` is who the backend takes for the
    /// client.
    fn describe<F: Addresses>(
        &self,
        key: &F::Key,
        backend: u32,
        bits: u32,
        source: SocketAddr,
    ) -> Option<FlowStatus> {
        let (client, address, protocol) = F::addresses(key);
        let (service, name) = self.backends.get(&backend)?;
        let state = state_of(bits);
        let is_wanted = self
            .client
            .is_none_or(|prefix| prefix.contains(client.ip()))
            && self.state.is_none_or(|wanted| wanted == state);
        is_wanted.then(|| FlowStatus {
            service: service.to_string(),
            backend: name.to_string(),
            protocol,
            client: client.to_string(),
            address: address.to_string(),
            source: source.to_string(),
            state,
            idle_seconds: 0,
        })
    }
}

fn seconds(ticks: u32) -> u64 {
    u64::from(ticks) * u64::from(CLOCK_TICK_MS) / 1_000
}

/// A flow that began before the balancer saw it was confirmed then.
fn state_of(bits: u32) -> FlowState {
    if state::is_closing(bits) {
        FlowState::Closing
    } else if bits & (state::CONFIRMED | state::JOINED) != 0 {
        FlowState::Established
    } else {
        FlowState::Embryonic
    }
}

/// Reads tuples.
trait Addresses: Family {
    /// Source, destination and protocol.
    fn addresses(key: &Self::Key) -> (SocketAddr, SocketAddr, Protocol);
}

impl Addresses for Ipv4 {
    fn addresses(key: &FlowKey4) -> (SocketAddr, SocketAddr, Protocol) {
        let ip = |address: u32| Ipv4Addr::from(address.to_ne_bytes()).into();
        let src = socket(ip(key.src), key.src_port);
        (
            src,
            socket(ip(key.dst), key.dst_port),
            protocol(key.protocol),
        )
    }
}

impl Addresses for Ipv6 {
    fn addresses(key: &FlowKey6) -> (SocketAddr, SocketAddr, Protocol) {
        let ip = |address: [u32; 4]| {
            let bits = address.iter().fold(0, |bits: u128, word| {
                bits << 32 | u128::from(u32::from_be(*word))
            });
            Ipv6Addr::from_bits(bits).into()
        };
        let src = socket(ip(key.src), key.src_port);
        (
            src,
            socket(ip(key.dst), key.dst_port),
            protocol(key.protocol),
        )
    }
}

fn socket(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, u16::from_be(port))
}

/// There are flows of these two alone.
fn protocol(number: u32) -> Protocol {
    if number == u32::from(Protocol::Udp.number()) {
        Protocol::Udp
    } else {
        Protocol::Tcp
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        flow::{Flow4, Flow6, FlowEntry, Tuple as _},
        pin::Pin,
    };

    use super::*;
    use crate::datapath::{Datapath, LogLevel, Options};

    fn key4(client: u8, port: u16) -> FlowKey4 {
        FlowKey4 {
            src: u32::from_ne_bytes([198, 51, 100, client]),
            dst: u32::from_ne_bytes([192, 0, 2, 10]),
            src_port: port.to_be(),
            dst_port: 443_u16.to_be(),
            protocol: 6,
        }
    }

    fn key6() -> FlowKey6 {
        let words = |last: u32| [0x2001_0db8_u32.to_be(), 0, 0, last.to_be()];
        FlowKey6 {
            src: words(1),
            dst: words(2),
            src_port: 5_000_u16.to_be(),
            dst_port: 53_u16.to_be(),
            protocol: 17,
        }
    }

    /// Tables with three flows of backend 7, of clients 1 to 3, and one of backend 8; and one
    /// of backend 9 that is not translated.
    fn tables(datapath: &Datapath) -> FlowTables {
        let mut tables = datapath.flow_tables().unwrap();
        let entry = |backend, last_seen, state| FlowEntry {
            backend,
            last_seen,
            state,
            ..FlowEntry::default()
        };
        for (client, state) in [
            (1, state::REPLIED),
            (2, state::CONFIRMED),
            (3, state::FIN_CLIENT),
        ] {
            let to = FlowKey4 {
                src: u32::from_ne_bytes([10, 0, 0, 1]),
                dst: u32::from_ne_bytes([10, 0, 0, 11]),
                ..key4(0, 2_000 + u16::from(client))
            };
            let entry = entry(7, 100, state);
            tables
                .v4
                .flows
                .insert(&key4(client, 5_000), &Flow4 { entry, to })
                .unwrap();
        }
        let answered = Flow4 {
            entry: entry(7, 190, 0),
            to: key4(2, 5_000).reversed(),
        };
        let reply = FlowKey4 {
            src: u32::from_ne_bytes([10, 0, 0, 1]),
            dst: u32::from_ne_bytes([10, 0, 0, 11]),
            ..key4(0, 2_002)
        };
        tables
            .v4
            .replies
            .insert(&reply.reversed(), &answered)
            .unwrap();
        let flow = Flow6 {
            entry: entry(8, 100, 0),
            to: key6(),
        };
        tables.v6.flows.insert(&key6(), &flow).unwrap();
        let pin = Pin {
            backend: 9,
            last_seen: 150,
            state: state::CONFIRMED,
            slot: 0,
        };
        tables.v4.pins.insert(&key4(9, 5_000), &pin).unwrap();
        tables
    }

    #[test]
    fn flows_are_listed_by_backend_client_and_state() {
        let options = Options {
            max_flows: 1_024,
            max_embryonic: 1_024,
            log: LogLevel::Off,
        };
        let datapath =
            Datapath::load(&options).expect("this test loads BPF programs and must run as root");
        let mut tables = tables(&datapath);
        let named = |backend: &str| (Arc::from("web"), Arc::from(backend));
        let all = Query {
            now: 200,
            backends: HashMap::from([(7, named("10.0.0.11:443")), (8, named("b"))]),
            client: None,
            state: None,
            limit: 10,
        };
        let mut clients = |query: &Query| {
            let list = list(&mut tables, query).unwrap();
            let mut clients: Vec<_> = list.flows.iter().map(|f| f.client.clone()).collect();
            clients.sort();
            (clients, list.truncated)
        };
        let (one, two, three) = (
            "198.51.100.1:5000",
            "198.51.100.2:5000",
            "198.51.100.3:5000",
        );
        let six = "[2001:db8::1]:5000";
        let expect = |clients: &[&str]| {
            let clients: Vec<_> = clients.iter().map(|client| (*client).to_owned()).collect();
            (clients, false)
        };
        assert_eq!(clients(&all), expect(&[one, two, three, six]));
        let mut query = all.clone();
        query.backends.remove(&7);
        assert_eq!(clients(&query), expect(&[six]));
        query = all.clone();
        query.client = Some(AddressPrefix::new([198, 51, 100, 2].into(), 31));
        assert_eq!(clients(&query), expect(&[two, three]));
        query.state = Some(FlowState::Closing);
        assert_eq!(clients(&query), expect(&[three]));
        query = all.clone();
        query.limit = 2;
        let (some, truncated) = clients(&query);
        assert_eq!((some.len(), truncated), (2, true));
        query.limit = 4;
        assert!(!clients(&query).1);

        query = all;
        query.state = Some(FlowState::Established);
        let expected = FlowStatus {
            service: "web".into(),
            backend: "10.0.0.11:443".into(),
            protocol: Protocol::Tcp,
            client: two.into(),
            address: "192.0.2.10:443".into(),
            source: "10.0.0.1:2002".into(),
            state: FlowState::Established,
            // The backend spoke last.
            idle_seconds: 1,
        };
        assert_eq!(list(&mut tables, &query).unwrap().flows, [expected]);

        query.backends = HashMap::from([(9, named("10.0.0.12"))]);
        let expected = FlowStatus {
            service: "web".into(),
            backend: "10.0.0.12".into(),
            protocol: Protocol::Tcp,
            client: "198.51.100.9:5000".into(),
            address: "192.0.2.10:443".into(),
            source: "198.51.100.9:5000".into(),
            state: FlowState::Established,
            idle_seconds: 5,
        };
        assert_eq!(list(&mut tables, &query).unwrap().flows, [expected]);
    }
}
