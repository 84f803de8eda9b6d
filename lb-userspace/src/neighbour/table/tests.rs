//! The state machine against a kernel that is a few maps.

use lb_common::addr::LinkPath;

use super::*;
use crate::neighbour::Interface;

const ETH0: u32 = 2;
const ETH1: u32 = 3;
const GATEWAY: &str = "192.0.2.1";
const ADDRESS: &str = "198.51.100.9";
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 99];

/// A kernel that answers at once, and what it was asked.
#[derive(Default)]
struct FakeKernel {
    routes: BTreeMap<IpAddr, Route>,
    links: BTreeMap<u32, Link>,
    neighbours: BTreeMap<NeighbourKey, Neighbour>,
    /// How often routes were asked for.
    routes_asked: usize,
    provoked: Vec<NeighbourKey>,
    told: Vec<Event>,
    /// It answers nothing about neighbours.
    mute: bool,
}

impl FakeKernel {
    fn answer(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::AskRoute(address) => {
                self.routes_asked += 1;
                let route = self.routes.get(&address).cloned().unwrap_or(Route::None);
                Some(Input::Route(address, route))
            }
            Action::AskLink(ifindex) => {
                Some(Input::Link(ifindex, self.links.get(&ifindex).cloned()))
            }
            Action::AskLinks => Some(Input::Links(self.links.values().cloned().collect())),
            Action::AskNeighbour(key) => {
                let neighbour = self.neighbours.get(&key).copied();
                let neighbour = neighbour.unwrap_or(Neighbour::Unresolved);
                (!self.mute).then_some(Input::Neighbour(key, neighbour))
            }
            Action::Provoke(key) => {
                self.provoked.push(key);
                None
            }
            Action::Tell(event) => {
                self.told.push(event);
                None
            }
        }
    }
}

/// A table, its kernel and the time.
struct World {
    table: Table,
    kernel: FakeKernel,
    now: Instant,
}

impl World {
    /// Two interfaces; `ADDRESS` is behind `GATEWAY`, which is on the first and known.
    fn new() -> Self {
        let mut kernel = FakeKernel::default();
        for ifindex in [ETH0, ETH1] {
            kernel.links.insert(ifindex, link(ifindex));
        }
        kernel.routes.insert(ip(ADDRESS), out(ETH0, Some(GATEWAY)));
        kernel
            .neighbours
            .insert(key(ETH0, GATEWAY), Neighbour::Valid(MAC));
        let now = Instant::now();
        let mut world = Self {
            table: Table::new(now),
            kernel,
            now,
        };
        world.take(Input::Time);
        world.kernel.told.clear();
        world
    }

    fn watching(addresses: &[&str]) -> Self {
        let mut world = Self::new();
        world.watch(addresses);
        world
    }

    fn watch(&mut self, addresses: &[&str]) {
        self.take(Input::Watch(addresses.iter().copied().map(ip).collect()));
    }

    fn take(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            for action in self.table.step(input, self.now) {
                inputs.extend(self.kernel.answer(action));
            }
        }
    }

    /// Lets time pass, and wakes the table whenever it wants.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(deadline) = self.table.deadline().filter(|deadline| *deadline <= end) {
            assert!(deadline >= self.now, "the table does not wait");
            self.now = deadline;
            self.take(Input::Time);
        }
        self.now = end;
    }

    /// The next hops that were told since the last call.
    fn hops(&mut self) -> Vec<(IpAddr, NextHop)> {
        self.kernel
            .told
            .drain(..)
            .filter_map(|event| match event {
                Event::NextHop { address, hop } => Some((address, hop)),
                _ => None,
            })
            .collect()
    }

    /// The only next hop that was told since the last call.
    fn hop(&mut self) -> NextHop {
        let mut hops = self.hops();
        assert_eq!(hops.len(), 1, "{hops:?}");
        hops.remove(0).1
    }

    fn set_link(&mut self, change: impl Fn(&mut Link)) {
        change(self.kernel.links.get_mut(&ETH0).unwrap());
        self.take(Input::LinkChanged(ETH0));
    }

    fn set_gateway(&mut self, neighbour: Neighbour) {
        self.kernel.neighbours.insert(key(ETH0, GATEWAY), neighbour);
        self.take(Input::NeighbourChanged(key(ETH0, GATEWAY)));
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key(ifindex: u32, address: &str) -> NeighbourKey {
    NeighbourKey {
        ifindex,
        address: ip(address),
    }
}

fn out(ifindex: u32, gateway: Option<&str>) -> Route {
    Route::Out {
        ifindex,
        gateway: gateway.map(ip),
        source: Some(ip("192.0.2.7")),
    }
}

fn mac_of(ifindex: u32) -> [u8; 6] {
    [2, 0, 0, 0, 0, u8::try_from(ifindex).unwrap()]
}

fn link(ifindex: u32) -> Link {
    Link {
        interface: Interface {
            ifindex,
            name: format!("eth{}", ifindex - ETH0),
            mac: Some(mac_of(ifindex)),
            mtu: 1500,
            up: true,
            bond: None,
        },
        vlan: None,
    }
}

#[test]
fn interfaces_are_told_at_the_start_and_when_they_change() {
    let mut world = World::new();
    world.set_link(|link| link.interface.mtu = 9000);
    let Some(Event::Interface(interface)) = world.kernel.told.pop() else {
        panic!("the change was not told");
    };
    assert_eq!((interface.ifindex, interface.mtu), (ETH0, 9000));
    world.take(Input::LinkChanged(ETH0));
    assert_eq!(world.kernel.told, [], "nothing has changed");
    world.kernel.links.remove(&ETH1);
    world.take(Input::LinkChanged(ETH1));
    assert_eq!(world.kernel.told, [Event::InterfaceGone(ETH1)]);
}

#[test]
fn a_watched_address_is_told_at_once_and_only_once() {
    let mut world = World::watching(&[ADDRESS]);
    assert_eq!(
        world.hop(),
        NextHop {
            state: NextHopState::Resolved,
            address: Some(ip(GATEWAY)),
            ifindex: ETH0,
            interface: Some("eth0".to_owned()),
            path: Some(LinkPath::new(ETH0, MAC, mac_of(ETH0))),
            mtu: 1500,
            source: Some(ip("192.0.2.7")),
        }
    );
    world.take(Input::RoutesChanged);
    world.pass(Duration::from_secs(60));
    world.watch(&[ADDRESS]);
    assert_eq!(world.hops(), []);
    assert_eq!(world.kernel.provoked, [], "it is valid");
}

#[test]
fn nothing_is_told_before_the_kernel_has_answered() {
    let mut world = World::new();
    world.kernel.mute = true;
    world.watch(&[ADDRESS]);
    assert_eq!(world.hops(), []);
}

#[test]
fn addresses_that_go_are_forgotten_with_their_neighbours() {
    let mut world = World::new();
    world.kernel.neighbours.clear();
    world.watch(&[ADDRESS]);
    world.watch(&[]);
    world.hops();
    world.kernel.provoked.clear();
    world.set_gateway(Neighbour::Valid(MAC));
    world.pass(Duration::from_secs(60));
    assert_eq!(world.hops(), []);
    assert_eq!(world.kernel.provoked, []);
    world.watch(&[ADDRESS]);
    assert_eq!(world.hop().state, NextHopState::Resolved);
}

#[test]
fn addresses_behind_one_gateway_share_its_tries() {
    let mut world = World::new();
    world.kernel.neighbours.clear();
    let other = "198.51.100.10";
    world
        .kernel
        .routes
        .insert(ip(other), out(ETH0, Some(GATEWAY)));
    world.watch(&[ADDRESS, other]);
    assert_eq!(world.kernel.provoked, [key(ETH0, GATEWAY)]);
    assert_eq!(world.hops().len(), 2);

    world.set_gateway(Neighbour::Valid(MAC));
    let told = world.hops();
    assert_eq!(told.len(), 2);
    assert!(
        told.iter()
            .all(|(_, hop)| hop.state == NextHopState::Resolved)
    );
}

#[test]
fn an_unresolved_neighbour_is_provoked_until_it_answers() {
    let mut world = World::new();
    world.kernel.neighbours.clear();
    world.watch(&[ADDRESS]);
    assert_eq!(world.hop().state, NextHopState::NoNeighbour);
    world.pass(Duration::from_secs(30));
    assert_eq!(world.kernel.provoked.len(), 6, "at 0, 1, 3, 7, 15 and 25 s");

    world.set_gateway(Neighbour::Valid(MAC));
    assert_eq!(world.hop().state, NextHopState::Resolved);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.kernel.provoked.len(), 6);
}

#[test]
fn a_stale_neighbour_is_used_and_confirmed() {
    let mut world = World::watching(&[ADDRESS]);
    world.hops();
    world.set_gateway(Neighbour::Stale(MAC));
    assert_eq!(world.hops(), [], "the path is the same");
    assert_eq!(world.kernel.provoked, [key(ETH0, GATEWAY)]);
}

#[test]
fn another_mac_is_told() {
    let mut world = World::watching(&[ADDRESS]);
    world.hops();
    world.set_gateway(Neighbour::Stale([4; 6]));
    assert_eq!(world.hop().path.unwrap().dst_mac(), [4; 6]);
    world.set_link(|link| link.interface.mac = Some([6; 6]));
    assert_eq!(world.hop().path.unwrap().src_mac(), [6; 6]);
}

#[test]
fn a_lost_neighbour_is_told_and_provoked_at_once() {
    let mut world = World::watching(&[ADDRESS]);
    world.hops();
    world.set_gateway(Neighbour::Unresolved);
    let hop = world.hop();
    assert_eq!((hop.state, hop.path), (NextHopState::NoNeighbour, None));
    assert_eq!((hop.ifindex, hop.address), (ETH0, Some(ip(GATEWAY))));
    assert_eq!(world.kernel.provoked, [key(ETH0, GATEWAY)]);
}

#[test]
fn changes_of_routes_are_gathered_but_not_put_off() {
    let mut world = World::watching(&[ADDRESS]);
    world.hops();
    let asked = world.kernel.routes_asked;
    world
        .kernel
        .routes
        .insert(ip(ADDRESS), out(ETH1, Some(GATEWAY)));
    for _ in 0..40 {
        world.take(Input::RoutesChanged);
        world.pass(Duration::from_millis(1));
    }
    assert_eq!(world.kernel.routes_asked, asked, "40 ms after the first");
    world.take(Input::RoutesChanged);
    world.pass(Duration::from_millis(10));
    assert_eq!(
        world.kernel.routes_asked,
        asked + 1,
        "50 ms after the first"
    );
    let hop = world.hop();
    assert_eq!(
        (hop.state, hop.ifindex),
        (NextHopState::NoNeighbour, ETH1),
        "the gateway is not known there"
    );
    assert_eq!(world.kernel.provoked, [key(ETH1, GATEWAY)]);
}

#[test]
fn no_route_and_local_addresses_have_no_way_out() {
    let local = "192.0.2.7";
    let mut world = World::new();
    let source = Some(ip(local));
    world
        .kernel
        .routes
        .insert(ip(local), Route::Local { source });
    world.watch(&[local, "203.0.113.1"]);
    let states = world.hops().into_iter().map(|(_, hop)| {
        assert_eq!((hop.ifindex, &hop.address, hop.path), (0, &None, None));
        hop.state
    });
    assert_eq!(
        states.collect::<BTreeSet<_>>(),
        BTreeSet::from([NextHopState::NoRoute, NextHopState::Local])
    );
    assert_eq!(world.kernel.provoked, []);
}

#[test]
fn a_link_without_carrier_is_no_way_out_until_it_is_back() {
    let mut world = World::watching(&[ADDRESS]);
    world.hops();
    world.set_link(|link| link.interface.up = false);
    let hop = world.hop();
    assert_eq!((hop.state, hop.path), (NextHopState::LinkDown, None));
    assert_eq!(hop.interface.as_deref(), Some("eth0"));
    world.set_link(|link| link.interface.up = true);
    assert_eq!(world.hop().state, NextHopState::Resolved);
}

#[test]
fn a_link_that_comes_back_brings_the_next_try_forward() {
    let mut world = World::new();
    world.kernel.neighbours.clear();
    world.watch(&[ADDRESS]);
    world.set_link(|link| link.interface.up = false);
    world.pass(Duration::from_secs(28));
    world.kernel.provoked.clear();
    world.set_link(|link| link.interface.up = true);
    assert_eq!(world.kernel.provoked, [key(ETH0, GATEWAY)]);
}

#[test]
fn a_link_change_asks_for_the_routes_again() {
    let mut world = World::watching(&[ADDRESS]);
    world.hops();
    world.kernel.routes.clear();
    world.set_link(|link| link.interface.up = false);
    assert_eq!(world.hop().state, NextHopState::LinkDown);
    world.pass(SETTLE);
    assert_eq!(world.hop().state, NextHopState::NoRoute);
}

/// What was attached to the old one is not attached to its successor.
#[test]
fn a_link_that_is_made_anew_is_told_as_another() {
    let mut world = World::watching(&[ADDRESS]);
    world.kernel.told.clear();
    world.take(Input::LinkGone(ETH0));
    let links: Vec<_> = world
        .kernel
        .told
        .iter()
        .filter(|event| !matches!(event, Event::NextHop { .. }))
        .collect();
    let new = Event::Interface(link(ETH0).interface);
    assert_eq!(links, [&Event::InterfaceGone(ETH0), &new]);
}

#[test]
fn a_link_that_is_not_known_yet_is_asked_for() {
    const NEW: u32 = 9;
    let mut world = World::new();
    world.kernel.links.insert(NEW, link(NEW));
    world
        .kernel
        .neighbours
        .insert(key(NEW, ADDRESS), Neighbour::Valid(MAC));
    world.kernel.routes.insert(ip(ADDRESS), out(NEW, None));
    world.watch(&[ADDRESS]);
    let (_, last) = world.hops().pop().unwrap();
    assert_eq!((last.state, last.ifindex), (NextHopState::Resolved, NEW));
}

#[test]
fn after_an_overrun_everything_is_asked_for() {
    let mut world = World::watching(&[ADDRESS]);
    world.hops();
    let neighbours = &mut world.kernel.neighbours;
    neighbours.insert(key(ETH0, GATEWAY), Neighbour::Valid([4; 6]));
    let links = &mut world.kernel.links;
    links.get_mut(&ETH0).unwrap().interface.mtu = 1400;
    links.remove(&ETH1);
    world.take(Input::Overrun);
    assert_eq!(world.kernel.told, [], "not before the storm is over");
    world.pass(SETTLE);
    let told = &world.kernel.told;
    assert!(told.contains(&Event::InterfaceGone(ETH1)), "{told:?}");
    let (_, hop) = world.hops().pop().unwrap();
    assert_eq!((hop.mtu, hop.path.unwrap().dst_mac()), (1400, [4; 6]));
}

#[test]
fn a_request_without_an_answer_is_made_again() {
    let mut world = World::new();
    world.kernel.mute = true;
    world.watch(&[ADDRESS]);
    world.take(Input::Unanswered);
    world.kernel.mute = false;
    assert_eq!(world.hops(), []);
    world.pass(RETRY);
    assert_eq!(world.hop().state, NextHopState::Resolved);
}

#[test]
fn neighbours_that_no_route_leads_to_are_not_asked_for() {
    let mut table = Table::new(Instant::now());
    let foreign = Input::NeighbourChanged(key(ETH0, "192.0.2.200"));
    let actions = table.step(foreign, Instant::now());
    assert!(
        !actions
            .iter()
            .any(|action| matches!(action, Action::AskNeighbour(_))),
        "{actions:?}"
    );
}

#[test]
fn the_status_says_which_interface_is_not_attached() {
    let mut world = World::watching(&[ADDRESS]);
    let hop = world.hop();
    let attached = hop.status(&[ETH0]);
    assert_eq!(attached.state, "resolved");
    assert_eq!(attached.mac.as_deref(), Some("02:00:00:00:00:63"));
    assert_eq!(attached.address.as_deref(), Some(GATEWAY));
    let elsewhere = hop.status(&[ETH1]);
    assert_eq!(elsewhere.state, "not-attached");
    assert_eq!(elsewhere.interface.as_deref(), Some("eth0"));
}
