//! What is known of routes, neighbours and links, and what follows from it: a
//! state machine without sockets and without a clock of its own.
//!
//! Notifications of the kernel are only taken as hints that something must be
//! asked again, but for the end of a link. So the last answer is always the newest truth, whatever the order
//! in which notifications and answers are read, and what a notification leaves out
//! (bridges send link messages of their own kind) does no harm.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    Event, NextHop, NextHopState,
    facts::{Link, Neighbour, NeighbourKey, Route},
    path::Egress,
    provoking::Provoking,
};

/// From the first sign of changed routes until they are asked again: changes come
/// in bursts (a routing daemon, an interface that goes).
const SETTLE: Duration = Duration::from_millis(50);

/// From a request that the kernel did not answer until everything is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// What has happened.
#[derive(Debug)]
pub(super) enum Input {
    /// These addresses are watched, and no others.
    Watch(BTreeSet<IpAddr>),
    /// Routes, rules or addresses may have changed.
    RoutesChanged,
    /// This link may have changed, come or gone.
    LinkChanged(u32),
    /// This link has gone. One that has its index, and may look the same, is another:
    /// what was attached to the link went with it.
    LinkGone(u32),
    /// This neighbour may have changed, come or gone.
    NeighbourChanged(NeighbourKey),
    /// Notifications were lost.
    Overrun,
    /// A request failed for a reason that says nothing about what was asked.
    Unanswered,
    /// The route to this address.
    Route(IpAddr, Route),
    /// The link of this index; `None` where there is none.
    Link(u32, Option<Link>),
    /// All links.
    Links(Vec<Link>),
    /// A neighbour.
    Neighbour(NeighbourKey, Neighbour),
    /// Nothing, but [`Table::deadline`] has passed.
    Time,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Ask for the route to this address.
    AskRoute(IpAddr),
    /// Ask for this link.
    AskLink(u32),
    /// Ask for all links.
    AskLinks,
    /// Ask for this neighbour.
    AskNeighbour(NeighbourKey),
    /// Make the kernel resolve or confirm this neighbour.
    Provoke(NeighbourKey),
    /// Tell the daemon.
    Tell(Event),
}

/// A watched address.
#[derive(Debug, Default)]
struct Watched {
    /// The last answer; `None` before the first.
    route: Option<Route>,
    /// What the daemon was told last.
    told: Option<NextHop>,
}

/// A neighbour that a route leads to.
#[derive(Debug, Default)]
struct Entry {
    /// The last answer; `None` before the first.
    neighbour: Option<Neighbour>,
    provoking: Provoking,
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Table {
    watched: BTreeMap<IpAddr, Watched>,
    neighbours: BTreeMap<NeighbourKey, Entry>,
    links: BTreeMap<u32, Link>,
    /// When all routes are asked again.
    refresh: Option<Instant>,
    /// Links and neighbours are then asked too.
    resync: bool,
}

impl Table {
    /// A table that knows nothing and wants to ask for everything at once.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            watched: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            links: BTreeMap::new(),
            refresh: Some(now),
            resync: true,
        }
    }

    /// When [`Input::Time`] is due; `None` where nothing waits.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let provoking = self.neighbours.values();
        provoking
            .filter_map(|entry| entry.provoking.due())
            .chain(self.refresh)
            .min()
    }

    /// Takes in what has happened.
    pub(super) fn step(&mut self, input: Input, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Watch(addresses) => self.watch(&addresses, &mut actions),
            Input::RoutesChanged => self.refresh_by(now + SETTLE),
            Input::LinkChanged(ifindex) => actions.push(Action::AskLink(ifindex)),
            Input::LinkGone(ifindex) => {
                self.link(ifindex, None, now, &mut actions);
                actions.push(Action::AskLink(ifindex));
            }
            Input::NeighbourChanged(key) => {
                if self.neighbours.contains_key(&key) {
                    actions.push(Action::AskNeighbour(key));
                }
            }
            Input::Overrun => self.resync_by(now + SETTLE),
            Input::Unanswered => self.resync_by(now + RETRY),
            Input::Route(address, route) => self.route(address, route, &mut actions),
            Input::Link(ifindex, link) => self.link(ifindex, link, now, &mut actions),
            Input::Links(links) => self.all_links(links, now, &mut actions),
            Input::Neighbour(key, neighbour) => {
                self.neighbour(key, neighbour, now, &mut actions);
            }
            Input::Time => self.provoke_where_due(now, &mut actions),
        }
        self.refresh_if_due(now, &mut actions);
        actions
    }

    fn watch(&mut self, addresses: &BTreeSet<IpAddr>, actions: &mut Vec<Action>) {
        self.watched
            .retain(|address, _| addresses.contains(address));
        for address in addresses {
            self.watched.entry(*address).or_insert_with(|| {
                actions.push(Action::AskRoute(*address));
                Watched::default()
            });
        }
        self.forget_unused_neighbours();
    }

    fn refresh_by(&mut self, by: Instant) {
        // The first sign sets the time, so that a stream of changes cannot put it off.
        self.refresh.get_or_insert(by);
    }

    fn resync_by(&mut self, by: Instant) {
        self.resync = true;
        self.refresh_by(by);
    }

    fn refresh_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.refresh.is_none_or(|due| now < due) {
            return;
        }
        self.refresh = None;
        if std::mem::take(&mut self.resync) {
            actions.push(Action::AskLinks);
            actions.extend(self.neighbours.keys().copied().map(Action::AskNeighbour));
        }
        actions.extend(self.watched.keys().copied().map(Action::AskRoute));
    }

    fn provoke_where_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for (key, entry) in &mut self.neighbours {
            if entry.provoking.fire(now) {
                actions.push(Action::Provoke(*key));
            }
        }
    }

    fn route(&mut self, address: IpAddr, route: Route, actions: &mut Vec<Action>) {
        let Some(watched) = self.watched.get_mut(&address) else {
            return;
        };
        let neighbour = next_hop(address, &route);
        let before = watched.route.replace(route);
        if before.is_some() && before != watched.route {
            self.forget_unused_neighbours();
        }
        if let Some(key) = neighbour {
            // A link that came a moment ago may not have been asked for yet.
            if !self.links.contains_key(&key.ifindex) {
                actions.push(Action::AskLink(key.ifindex));
            }
            self.neighbours.entry(key).or_insert_with(|| {
                actions.push(Action::AskNeighbour(key));
                Entry::default()
            });
        }
        self.tell_hop(address, actions);
    }

    fn neighbour(
        &mut self,
        key: NeighbourKey,
        neighbour: Neighbour,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(entry) = self.neighbours.get_mut(&key) else {
            return;
        };
        entry.provoking.note(entry.neighbour, neighbour, now);
        entry.neighbour = Some(neighbour);
        if entry.provoking.fire(now) {
            actions.push(Action::Provoke(key));
        }
        let reached_by = |(address, watched): (&IpAddr, &Watched)| {
            let route = watched.route.as_ref()?;
            (next_hop(*address, route) == Some(key)).then_some(*address)
        };
        let concerned: Vec<IpAddr> = self.watched.iter().filter_map(reached_by).collect();
        for address in concerned {
            self.tell_hop(address, actions);
        }
    }

    fn all_links(&mut self, links: Vec<Link>, now: Instant, actions: &mut Vec<Action>) {
        let present: BTreeSet<u32> = links.iter().map(|link| link.interface.ifindex).collect();
        let gone: Vec<u32> = self.links.keys().copied().collect();
        for ifindex in gone.into_iter().filter(|index| !present.contains(index)) {
            self.link(ifindex, None, now, actions);
        }
        for link in links {
            self.link(link.interface.ifindex, Some(link), now, actions);
        }
    }

    fn link(&mut self, ifindex: u32, link: Option<Link>, now: Instant, actions: &mut Vec<Action>) {
        if self.links.get(&ifindex) == link.as_ref() {
            return;
        }
        // The kernel drops IPv4 routes of an interface that goes down without a
        // notification for each of them.
        self.refresh_by(now + SETTLE);
        let event = match &link {
            Some(link) => Event::Interface(link.interface.clone()),
            None => Event::InterfaceGone(ifindex),
        };
        actions.push(Action::Tell(event));
        // What had no answer so far may have one on the changed link.
        for (key, entry) in &mut self.neighbours {
            if key.ifindex == ifindex {
                entry.provoking.again(entry.neighbour, now);
            }
        }
        match link {
            Some(link) => self.links.insert(ifindex, link),
            None => self.links.remove(&ifindex),
        };
        self.provoke_where_due(now, actions);
        let addresses: Vec<IpAddr> = self.watched.keys().copied().collect();
        for address in addresses {
            self.tell_hop(address, actions);
        }
    }

    fn forget_unused_neighbours(&mut self) {
        let used: BTreeSet<NeighbourKey> = self
            .watched
            .iter()
            .filter_map(|(address, watched)| next_hop(*address, watched.route.as_ref()?))
            .collect();
        self.neighbours.retain(|key, _| used.contains(key));
    }

    /// Tells the next hop of a watched address, if it has changed.
    fn tell_hop(&mut self, address: IpAddr, actions: &mut Vec<Action>) {
        let Some(watched) = self.watched.get_mut(&address) else {
            return;
        };
        let Some(route) = watched.route.as_ref() else {
            return;
        };
        let hop = hop(address, route, &self.links, &self.neighbours);
        if hop.is_some() && hop != watched.told {
            watched.told.clone_from(&hop);
            actions.extend(hop.map(|hop| Action::Tell(Event::NextHop { address, hop })));
        }
    }
}

/// The neighbour that packets to `address` go to.
fn next_hop(address: IpAddr, route: &Route) -> Option<NeighbourKey> {
    match *route {
        Route::None | Route::Local { .. } => None,
        Route::Out {
            ifindex, gateway, ..
        } => Some(NeighbourKey {
            ifindex,
            address: gateway.unwrap_or(address),
        }),
    }
}

/// The next hop; `None` while the kernel has not answered every question.
fn hop(
    address: IpAddr,
    route: &Route,
    links: &BTreeMap<u32, Link>,
    neighbours: &BTreeMap<NeighbourKey, Entry>,
) -> Option<NextHop> {
    let (state, source) = match *route {
        Route::None => (NextHopState::NoRoute, None),
        Route::Local { source } => (NextHopState::Local, source),
        Route::Out { source, .. } => (NextHopState::LinkDown, source),
    };
    let mut hop = NextHop {
        state,
        address: None,
        ifindex: 0,
        interface: None,
        path: None,
        mtu: 0,
        source,
    };
    let Some(key) = next_hop(address, route) else {
        return Some(hop);
    };
    let neighbour = neighbours.get(&key)?.neighbour?;
    hop.address = Some(key.address);
    let Some(egress) = Egress::new(links, key.ifindex) else {
        return Some(hop);
    };
    hop.ifindex = egress.device.interface.ifindex;
    hop.interface = Some(egress.device.interface.name.clone());
    hop.mtu = egress.route.interface.mtu;
    if egress.up {
        hop.path = neighbour.mac().and_then(|mac| egress.path(mac));
        hop.state = match hop.path {
            Some(_) => NextHopState::Resolved,
            None => NextHopState::NoNeighbour,
        };
    }
    Some(hop)
}

#[cfg(test)]
mod tests;
