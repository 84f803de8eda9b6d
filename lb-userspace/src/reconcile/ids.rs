//! Ids: the numbers that the datapath knows services, their addresses, backends and port
//! pools by.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_common::{backend::MAX_BACKENDS, ports::MAX_PORT_POOLS, service::MAX_SERVICES};

use crate::{
    address::AddressPrefix,
    state::{BackendAddress, BackendPort},
};

/// How long an id rests at least after the datapath has lost it: longer than any packet
/// that was on its way then, and that may still write a flow entry with it.
const GRACE: Duration = Duration::from_millis(100);

/// No number is free: those that are not in use rest, since flow entries still name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no {what} id is free: {used} are in use, and {resting} wait until no flow uses them any \
     more; try again in a few seconds"
)]
pub struct Exhausted {
    what: &'static str,
    used: usize,
    resting: usize,
}

/// What names a backend: its service and its address.
pub type BackendName = (Arc<str>, BackendAddress);

/// What a port pool is for: source ports are unique towards one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolName {
    /// The balancer's address.
    pub source: IpAddr,
    /// The backend.
    pub backend: BackendAddress,
    /// IP protocol number.
    pub protocol: u8,
}

impl PoolName {
    /// The pool for all ports of the backend's address, if full NAT reaches some backend
    /// there at whichever port the client asked for (`every_port`): with a pool for each
    /// port beside it, both would hand out the same source port towards one of them.
    pub(super) fn shared(mut self, every_port: &BTreeSet<(IpAddr, u8)>) -> Self {
        if every_port.contains(&(self.backend.ip, self.protocol)) {
            self.backend.port = BackendPort::Every;
        }
        self
    }
}

/// The ids of everything that is wanted, and of what was and still has flows.
#[derive(Clone, Debug)]
pub struct Ids {
    /// Services, by name.
    pub services: Numbers<Arc<str>>,
    /// Backends.
    pub backends: Numbers<BackendName>,
    /// Port pools.
    pub pools: Numbers<PoolName>,
    /// Addresses whose services are found by way of a number.
    pub vips: Numbers<AddressPrefix>,
}

impl Ids {
    /// Takes back what was given and retired since `before`, at the time `now`.
    pub(super) fn restore(&mut self, before: Self, now: Duration) {
        self.services.restore(before.services, now);
        self.backends.restore(before.backends, now);
        self.pools.restore(before.pools, now);
        self.vips.restore(before.vips, now);
    }

    /// The tables hold nothing any more of what was released.
    pub(super) fn recycle(&mut self) {
        self.services.recycle();
        self.backends.recycle();
        self.pools.recycle();
        self.vips.recycle();
    }
}

impl Default for Ids {
    fn default() -> Self {
        Self {
            services: Numbers::new("service", MAX_SERVICES),
            backends: Numbers::new("backend", MAX_BACKENDS),
            pools: Numbers::new("port pool", MAX_PORT_POOLS),
            vips: Numbers::new("service address", u32::MAX),
        }
    }
}

/// Numbers from 1 on for names. The number of a name that is not wanted any more rests
/// until nothing uses it; 0 is never given.
#[derive(Clone, Debug)]
pub struct Numbers<K> {
    what: &'static str,
    used: BTreeMap<K, u32>,
    /// Names and the numbers that they had, and since when these rest.
    resting: BTreeMap<(K, u32), Duration>,
    /// Numbers that rest and whose names are not known, and since when.
    strays: BTreeMap<u32, Duration>,
    /// Numbers that nothing uses any more, but that the tables may still hold.
    released: Vec<u32>,
    /// Numbers that were used before and are free again.
    free: BTreeSet<u32>,
    /// The lowest number that was never used.
    next: u32,
    /// One more than the highest number.
    limit: u32,
}

impl<K: Ord + Clone> Numbers<K> {
    fn new(what: &'static str, limit: u32) -> Self {
        Self {
            what,
            used: BTreeMap::new(),
            resting: BTreeMap::new(),
            strays: BTreeMap::new(),
            released: Vec::new(),
            free: BTreeSet::new(),
            next: 1,
            limit,
        }
    }

    /// One more than the highest number that was ever given.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.next
    }

    /// The numbers that a daemon before this one gave, as far as something still uses them:
    /// those of `used`, and others, with names or without, which rest from `now` on.
    pub(super) fn adopt(
        &mut self,
        used: BTreeMap<K, u32>,
        resting: impl IntoIterator<Item = (K, u32)>,
        nameless: impl IntoIterator<Item = u32>,
        now: Duration,
    ) {
        let mut named: BTreeSet<u32> = used.values().copied().collect();
        self.used = used;
        for (name, number) in resting {
            if named.insert(number) {
                self.resting.insert((name, number), now);
            }
        }
        let nameless = nameless.into_iter().filter(|number| *number != 0);
        self.strays = nameless
            .filter(|number| !named.contains(number))
            .map(|number| (number, now))
            .collect();
        let last = named.iter().chain(self.strays.keys()).max();
        self.next = last.map_or(1, |last| last + 1);
        self.free = (1..self.next)
            .filter(|number| !named.contains(number) && !self.strays.contains_key(number))
            .collect();
    }

    /// The number that `name` has.
    #[must_use]
    pub fn get(&self, name: &K) -> Option<u32> {
        self.used.get(name).copied()
    }

    /// The number of `name`; a new one if it has none. A name that comes back while its
    /// old number rests gets another.
    pub(super) fn get_or_new(&mut self, name: &K) -> Result<u32, Exhausted> {
        if let Some(number) = self.get(name) {
            return Ok(number);
        }
        let number = match self.free.pop_first() {
            Some(number) => number,
            None if self.next < self.limit => {
                self.next += 1;
                self.next - 1
            }
            None => {
                return Err(Exhausted {
                    what: self.what,
                    used: self.used.len(),
                    resting: self.resting.len() + self.strays.len(),
                });
            }
        };
        self.used.insert(name.clone(), number);
        Ok(number)
    }

    /// The number of `name`; the one that it had, if that still rests.
    pub(super) fn get_or_revive(&mut self, name: &K) -> Result<u32, Exhausted> {
        if let Some(number) = self.get(name) {
            return Ok(number);
        }
        let rests = (name.clone(), 0)..=(name.clone(), u32::MAX);
        if let Some(((name, number), _)) = self.resting.extract_if(rests, |_, _| true).next() {
            self.used.insert(name, number);
        }
        self.get_or_new(name)
    }

    /// From `now` on the numbers rest that are not `wanted`.
    pub(super) fn retire(&mut self, now: Duration, wanted: impl Fn(u32) -> bool) {
        let gone = self.used.extract_if(.., |_, number| !wanted(*number));
        self.resting.extend(gone.map(|entry| (entry, now)));
    }

    /// The numbers that rest.
    pub fn at_rest(&self) -> impl Iterator<Item = u32> {
        let named = self.resting.keys().map(|(_, number)| *number);
        named.chain(self.strays.keys().copied())
    }

    /// The numbers that rest and whose names are not known.
    pub(super) fn strays(&self) -> impl Iterator<Item = u32> {
        self.strays.keys().copied()
    }

    /// The numbers that rest and whose names are known, with the names that they had.
    pub fn resting(&self) -> impl Iterator<Item = (&K, u32)> {
        self.resting.keys().map(|(name, number)| (name, *number))
    }

    /// Ends the rest of those numbers that a look at everything, begun at `seen_at`, did
    /// not find `in_use`, and returns them.
    pub(super) fn release(&mut self, seen_at: Duration, in_use: impl Fn(u32) -> bool) -> Vec<u32> {
        let is_over = |number: u32, since: Duration| since + GRACE <= seen_at && !in_use(number);
        let named = self
            .resting
            .extract_if(.., |(_, number), since| is_over(*number, *since));
        let mut released: Vec<u32> = named.map(|((_, number), _)| number).collect();
        let strays = self
            .strays
            .extract_if(.., |number, since| is_over(*number, *since));
        released.extend(strays.map(|(number, _)| number));
        self.released.extend(&released);
        released
    }

    /// Names have the numbers again that they had in `before`. Numbers that were given
    /// since rest from `now` on: the tables may have held them.
    fn restore(&mut self, before: Self, now: Duration) {
        let given = std::mem::replace(&mut self.used, before.used);
        self.resting = before.resting;
        self.strays = before.strays;
        for (name, number) in given {
            let entry = (name, number);
            if self.get(&entry.0) != Some(number) && !self.resting.contains_key(&entry) {
                self.resting.insert(entry, now);
            }
        }
    }

    /// The tables have lost the released numbers: they may be used again.
    pub(super) fn recycle(&mut self) {
        self.free.extend(self.released.drain(..));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn numbers_begin_at_one_and_stay() {
        let mut numbers = Numbers::new("test", 10);
        assert_eq!(numbers.get_or_new(&"a"), Ok(1));
        assert_eq!(numbers.get_or_new(&"b"), Ok(2));
        assert_eq!(numbers.get_or_new(&"a"), Ok(1));
    }

    #[test]
    fn a_number_rests_until_nothing_uses_it() {
        let mut numbers = Numbers::new("test", 10);
        numbers.get_or_new(&"a").unwrap();
        numbers.retire(at(1_000), |_| false);
        assert_eq!(numbers.resting().collect::<Vec<_>>(), [(&"a", 1)]);
        assert_eq!(numbers.get(&"a"), None);
        // A look that began before the grace had passed proves nothing.
        assert!(numbers.release(at(1_099), |_| false).is_empty());
        assert!(numbers.release(at(2_000), |number| number == 1).is_empty());
        assert_eq!(numbers.get_or_new(&"a"), Ok(2), "not the number that rests");
        assert_eq!(numbers.release(at(3_000), |_| false), [1]);
        assert_eq!(numbers.get_or_new(&"b"), Ok(3), "the tables may hold 1");
        numbers.recycle();
        assert_eq!(numbers.get_or_new(&"c"), Ok(1));
    }

    #[test]
    fn a_revived_name_has_its_number_back() {
        let mut numbers = Numbers::new("test", 10);
        numbers.get_or_revive(&"a").unwrap();
        numbers.get_or_revive(&"b").unwrap();
        numbers.retire(at(0), |number| number == 2);
        assert_eq!(numbers.get_or_revive(&"a"), Ok(1));
        assert!(numbers.release(at(1_000), |_| false).is_empty());
    }

    #[test]
    fn numbers_of_a_daemon_before_are_kept_until_nothing_uses_them() {
        let mut numbers = Numbers::new("test", 10);
        numbers.adopt(
            [("a", 2), ("b", 5)].into(),
            [("c", 7), ("a", 5), ("b", 8)],
            [0, 4, 5],
            at(0),
        );
        assert_eq!(numbers.get_or_new(&"a"), Ok(2));
        assert_eq!(numbers.get_or_revive(&"b"), Ok(5));
        assert_eq!(numbers.get_or_new(&"d"), Ok(1));
        assert_eq!(numbers.get_or_new(&"e"), Ok(3));
        assert_eq!(numbers.get_or_new(&"f"), Ok(6), "4 and 5 are taken");
        assert_eq!(numbers.at_rest().collect::<Vec<_>>(), [8, 7, 4]);
        assert_eq!(numbers.get_or_revive(&"c"), Ok(7));
        assert_eq!(numbers.release(at(1_000), |number| number == 4), [8]);
        assert_eq!(numbers.release(at(1_000), |_| false), [4]);
        numbers.recycle();
        assert_eq!(numbers.get_or_new(&"g"), Ok(4));
    }

    #[test]
    fn exhaustion_says_what_is_in_the_way() {
        let mut numbers = Numbers::new("backend", 3);
        numbers.get_or_new(&"a").unwrap();
        numbers.get_or_new(&"b").unwrap();
        numbers.retire(at(0), |number| number == 1);
        let message = numbers.get_or_new(&"c").unwrap_err().to_string();
        assert!(message.starts_with("no backend id is free: 1 are in use, and 1 wait"));
    }
}
