//! Room for connections: who must go when there are too many.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// For so long somebody may be idle even when others want the place: longer than a
/// client takes that has begun to send, also on a host that is busy.
const GRACE: Duration = Duration::from_millis(250);

/// A limited number of places.
pub(super) struct Places {
    most: usize,
    taken: Arc<Taken>,
}

#[derive(Default)]
struct Taken {
    places: Mutex<Table>,
    /// Woken when there may be room that was not there before.
    changed: Notify,
}

#[derive(Default)]
struct Table {
    /// The number of the next turn to become idle.
    next: u64,
    /// Those that are idle, in the order in which they became so.
    idle: BTreeMap<u64, Idle>,
    /// How many are busy.
    busy: usize,
}

/// Somebody who is idle.
struct Idle {
    since: Instant,
    /// Tells them that they have lost their place.
    lost: Arc<Notify>,
}

/// There is no room.
enum Full {
    /// Before this time.
    Until(Instant),
    /// As long as everybody is busy.
    WhileBusy,
}

impl Places {
    /// Room for `most` at a time, at least 1.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            taken: Arc::default(),
        }
    }

    /// Takes a place, that of who has been idle longest if all are taken. Waits while
    /// everybody is busy, or has become idle just now.
    pub(super) async fn take(&self) -> Place {
        loop {
            let changed = self.taken.changed.notified();
            match self.try_take() {
                Ok(place) => return place,
                Err(Full::WhileBusy) => changed.await,
                Err(Full::Until(time)) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(time) => {}
                },
            }
        }
    }

    /// Takes a place if there is one to be had at once.
    pub(super) fn take_now(&self) -> Option<Place> {
        self.try_take().ok()
    }

    fn try_take(&self) -> Result<Place, Full> {
        let mut table = self.taken.lock();
        if table.idle.len() + table.busy >= self.most {
            let longest = table.idle.first_entry().ok_or(Full::WhileBusy)?;
            let end = longest.get().since + GRACE;
            if Instant::now() < end {
                return Err(Full::Until(end));
            }
            longest.remove().lost.notify_one();
        }
        let lost = Arc::new(Notify::new());
        let turn = table.wait(&lost);
        drop(table);
        Ok(Place {
            taken: Arc::clone(&self.taken),
            turn: Mutex::new(turn),
            lost,
        })
    }
}

impl Taken {
    // The table is whole also when a thread has panicked while it held the lock.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Puts somebody behind all others that are idle.
    fn wait(&mut self, lost: &Arc<Notify>) -> u64 {
        let turn = self.next;
        self.next += 1;
        let idle = Idle {
            since: Instant::now(),
            lost: Arc::clone(lost),
        };
        self.idle.insert(turn, idle);
        turn
    }
}

/// A place; idle from the beginning, and free when this is dropped.
pub(super) struct Place {
    taken: Arc<Taken>,
    /// Under which number it is idle, or was last.
    turn: Mutex<u64>,
    lost: Arc<Notify>,
}

impl Place {
    /// Comes when somebody else has got the place.
    pub(super) async fn lost(&self) {
        self.lost.notified().await;
    }

    /// Keeps the place until the guard is dropped; then it has become idle anew.
    pub(super) fn busy(&self) -> Busy<'_> {
        let mut table = self.taken.lock();
        // Otherwise it is lost already, and its end is near.
        let counts = table.idle.remove(&self.turn()).is_some();
        table.busy += usize::from(counts);
        Busy {
            place: self,
            counts,
        }
    }

    fn turn(&self) -> MutexGuard<'_, u64> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let turn = *self.turn();
        self.taken.lock().idle.remove(&turn);
        self.taken.changed.notify_one();
    }
}

/// Somebody is busy as long as this lives.
pub(super) struct Busy<'a> {
    place: &'a Place,
    counts: bool,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if self.counts {
            let mut table = self.place.taken.lock();
            table.busy -= 1;
            *self.place.turn() = table.wait(&self.place.lost);
            drop(table);
            self.place.taken.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use tokio::time::advance;

    use super::*;

    /// What a future gives at once, if anything.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn is_lost(place: &Place) -> bool {
        now(place.lost()).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_been_idle_longest_makes_room() {
        let places = Places::new(2);
        let first = places.take().await;
        let second = places.take().await;
        drop(first.busy());
        assert!(now(places.take()).is_none(), "both have only just come");
        advance(GRACE).await;
        let third = places.take().await;
        assert!(!is_lost(&first), "it was busy after the other came");
        assert!(is_lost(&second));

        let _busy = (first.busy(), third.busy());
        drop(second);
        advance(GRACE).await;
        assert!(now(places.take()).is_none(), "everybody is busy");
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_left_is_free() {
        let places = Places::new(1);
        let first = places.take().await;
        let busy = first.busy();
        assert!(now(places.take()).is_none());
        drop(busy);
        drop(first);
        let second = now(places.take()).unwrap();
        assert!(!is_lost(&second));
        // Time passes by itself while there is nothing to do but wait for it.
        let third = places.take().await;
        // There is nothing left to keep.
        let _late = second.busy();
        assert!(is_lost(&second));
        assert!(!is_lost(&third));
    }
}
