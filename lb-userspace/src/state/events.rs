//! What has happened: the health of backends, drains, changes of what is wanted, files that
//! were taken or refused. The last of it is remembered, for those who were away.
//!
//! However much happens, and however slowly somebody listens, no more is kept than
//! [`REMEMBERED`] events of a bounded size; whoever has missed some is told so.

use std::{
    collections::VecDeque,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Difference, DrainPhase, Reason};

/// How many events are remembered.
pub const REMEMBERED: usize = 1_024;
/// Bytes that the differences of one event may have as JSON.
const DIFFERENCES: usize = 8 * 1_024;
/// Bytes that a text in an event may have.
const TEXT: usize = 1_024;
/// Events that a listener is given at a time.
const AT_A_TIME: usize = 16;

/// Names an event. No two of one host have the same, also of daemons one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventId {
    /// When the daemon began, in milliseconds since 1970.
    daemon: u64,
    /// Which of its events it is, from 1; 0 for the time before the first.
    number: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.daemon, self.number)
    }
}

impl FromStr for EventId {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Reason> {
        let read = || {
            let (daemon, number) = text.split_once('-')?;
            Some(Self {
                daemon: u64::from_str_radix(daemon, 16).ok()?,
                number: number.parse().ok()?,
            })
        };
        read().ok_or_else(|| {
            Reason::new(
                format!("`{}` is no id of an event", text.escape_debug()),
                "take the one that an event has, as it is",
            )
        })
    }
}

/// Something that happened. Fields and kinds are added, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Names it.
    pub id: String,
    /// When it happened, as in RFC 3339, in UTC.
    pub time: String,
    /// What it was.
    #[serde(flatten)]
    pub what: Happening,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happening {
    /// The daemon has begun: the datapath is as it is wanted.
    Started {
        /// Its version.
        version: String,
        /// The revision of the state.
        revision: String,
    },
    /// The daemon ends. Packets are forwarded on.
    Stopping,
    /// A backend is up or down by another result of its checks, or by the first.
    Health {
        /// Name of the service.
        service: String,
        /// Address of the backend.
        backend: String,
        /// Whether it is up.
        up: bool,
        /// Why it is not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A drain has begun, or has come to another phase.
    Drain {
        /// Name of the service.
        service: String,
        /// Address of the backend.
        backend: String,
        /// How far it is.
        phase: DrainPhase,
        /// Live flows that are left.
        flows_left: u64,
    },
    /// A drain is no more: it was taken back, or its backend was removed.
    DrainEnded {
        /// Name of the service.
        service: String,
        /// Address of the backend.
        backend: String,
    },
    /// A request has changed what is wanted.
    Change(Changes),
    /// What a configuration file says is wanted: it has changed or was applied, or what was
    /// changed beside it was forgotten.
    Reload {
        /// The file.
        file: String,
        /// What has changed.
        #[serde(flatten)]
        changes: Changes,
        /// Settings of the file that hold only after the next start of the daemon.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        restart_needed: Vec<String>,
    },
    /// The configuration file was refused; all is as it was.
    ReloadRefused {
        /// The file.
        file: String,
        /// Why.
        error: String,
    },
    /// Events that are remembered no more come before the next one.
    Missed {
        /// How many; absent where nobody knows, since they were of a daemon before this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        events: Option<u64>,
    },
}

impl Happening {
    /// The word for its kind, as under `event`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::Stopping => "stopping",
            Self::Health { .. } => "health",
            Self::Drain { .. } => "drain",
            Self::DrainEnded { .. } => "drain-ended",
            Self::Change(_) => "change",
            Self::Reload { .. } => "reload",
            Self::ReloadRefused { .. } => "reload-refused",
            Self::Missed { .. } => "missed",
        }
    }
}

/// Another state of what is wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Changes {
    /// The revision of the state.
    pub revision: String,
    /// How many services and backends are not as they were.
    pub changes: u64,
    /// What has changed of them: the first ones, as far as 8 KiB go.
    pub differences: Vec<Difference>,
}

impl Changes {
    /// The changes to the state of this revision.
    #[must_use]
    pub fn new(revision: impl fmt::Display, differences: &[Difference]) -> Self {
        let mut room = DIFFERENCES;
        let fits = |difference: &&Difference| {
            let size = serde_json::to_string(difference).map_or(usize::MAX, |json| json.len());
            let rest = room.checked_sub(size);
            room = rest.unwrap_or(0);
            rest.is_some()
        };
        Self {
            revision: revision.to_string(),
            changes: differences.len() as u64,
            differences: differences.iter().take_while(fits).cloned().collect(),
        }
    }
}

/// The text, or as much of it as an event may have.
#[must_use]
pub fn shortened(text: &str) -> String {
    if text.len() <= TEXT {
        return text.to_owned();
    }
    format!("{}...", &text[..text.floor_char_boundary(TEXT)])
}

/// The events of a daemon. Clones are of the same.
#[derive(Clone, Debug)]
pub struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    daemon: u64,
    remembered: Mutex<VecDeque<Arc<Event>>>,
    newest: watch::Sender<Newest>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Newest {
    /// Number of the newest event.
    number: u64,
    /// No more will come.
    is_closed: bool,
}

impl Default for Events {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let (newest, _) = watch::channel(Newest::default());
        Self(Arc::new(Shared {
            daemon: now.unwrap_or_default().as_millis() as u64,
            remembered: Mutex::default(),
            newest,
        }))
    }
}

impl Events {
    /// Tells all who listen.
    pub fn publish(&self, what: Happening) {
        let mut remembered = self.lock();
        let number = self.0.newest.borrow().number + 1;
        let event = self.event(number, what);
        remembered.push_back(Arc::new(event));
        if remembered.len() > REMEMBERED {
            remembered.pop_front();
        }
        self.0.newest.send_modify(|newest| newest.number = number);
    }

    fn event(&self, number: u64, what: Happening) -> Event {
        Event {
            id: self.id(number).to_string(),
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            what,
        }
    }

    fn id(&self, number: u64) -> EventId {
        EventId {
            daemon: self.0.daemon,
            number,
        }
    }

    /// Says that no more will come. Those who listen are still told of what has.
    pub fn close(&self) {
        self.0.newest.send_modify(|newest| newest.is_closed = true);
    }

    /// Somebody who is told of what comes after this.
    #[must_use]
    pub fn listen(&self, after: After) -> Listener {
        let remembered = self.lock();
        let newest = self.0.newest.subscribe();
        let now = newest.borrow().number;
        let (last, is_foreign) = match after {
            After::Now => (now, false),
            After::Start => (now - remembered.len() as u64, false),
            After::Event(id) if id.daemon == self.0.daemon && id.number <= now => {
                (id.number, false)
            }
            After::Event(_) => (0, true),
        };
        Listener {
            events: self.clone(),
            newest,
            last,
            is_foreign,
        }
    }

    // The queue is whole also when a thread has panicked while it held the lock.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Event>>> {
        self.0
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where somebody begins to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// At what has not happened yet.
    Now,
    /// At the oldest event that is remembered.
    Start,
    /// Behind this one.
    Event(EventId),
}

/// Somebody who is told of events.
#[derive(Debug)]
pub struct Listener {
    events: Events,
    newest: watch::Receiver<Newest>,
    /// Number of the last event that they were told of.
    last: u64,
    /// What they were told of before is of another daemon.
    is_foreign: bool,
}

impl Listener {
    /// What they have not been told of yet, the oldest first, not all at a time.
    #[must_use]
    pub fn news(&mut self) -> Vec<Arc<Event>> {
        let remembered = self.events.lock();
        let newest = self.newest.borrow().number;
        let first = newest + 1 - remembered.len() as u64;
        let mut news = Vec::new();
        if self.is_foreign || first > self.last + 1 {
            let events = (!self.is_foreign).then(|| first - self.last - 1);
            // Its id is that of the last one that they miss, so that they can go on from it.
            let missed = self.events.event(first - 1, Happening::Missed { events });
            news.push(Arc::new(missed));
            self.is_foreign = false;
            self.last = first - 1;
        }
        let known = (self.last + 1 - first) as usize;
        news.extend(remembered.iter().skip(known).take(AT_A_TIME).cloned());
        let new = remembered.len().saturating_sub(known).min(AT_A_TIME);
        self.last += new as u64;
        news
    }

    /// The id of the last event that they were told of, or of the one before the first, if it is
    /// of this daemon.
    #[must_use]
    pub fn last(&self) -> Option<EventId> {
        (!self.is_foreign).then(|| self.events.id(self.last))
    }

    /// Waits for news. `false` where none will come any more.
    pub async fn wait(&mut self) -> bool {
        loop {
            let Newest { number, is_closed } = *self.newest.borrow_and_update();
            if self.is_foreign || number > self.last {
                return true;
            }
            if is_closed || self.newest.changed().await.is_err() {
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::state::{Action, KeyChange};

    fn health(backend: usize) -> Happening {
        Happening::Health {
            service: "web".into(),
            backend: backend.to_string(),
            up: true,
            error: None,
        }
    }

    /// All that a listener is told at once.
    fn all(listener: &mut Listener) -> Vec<Arc<Event>> {
        let mut all = Vec::new();
        loop {
            let news = listener.news();
            assert!(news.len() <= AT_A_TIME + 1);
            if news.is_empty() {
                return all;
            }
            all.extend(news);
        }
    }

    fn id(event: &Event) -> After {
        After::Event(event.id.parse().unwrap())
    }

    #[tokio::test]
    async fn everybody_is_told_everything_once() {
        let events = Events::default();
        events.publish(health(0));
        let mut listener = events.listen(After::Now);
        assert_eq!(listener.news(), []);
        events.publish(health(1));
        events.publish(health(2));
        assert!(listener.wait().await);
        let news = listener.news();
        assert_eq!(news.len(), 2);
        assert_eq!(news[1].what, health(2));
        assert_eq!(listener.last().unwrap().to_string(), news[1].id);
        assert_eq!(listener.news(), []);
        // Somebody who was away since the first of these, and one since the beginning.
        assert_eq!(events.listen(id(&news[0])).news(), news[1..]);
        assert_eq!(events.listen(After::Start).news().len(), 3);
        events.publish(health(3));
        events.publish(Happening::Stopping);
        events.close();
        assert!(listener.wait().await);
        assert_eq!(listener.news().len(), 2);
        assert!(!listener.wait().await);
    }

    #[test]
    fn who_is_too_slow_is_told_what_is_missing() {
        let events = Events::default();
        let mut listener = events.listen(After::Now);
        for number in 0..REMEMBERED + 10 {
            events.publish(health(number));
        }
        let told = all(&mut listener);
        assert_eq!(told[0].what, Happening::Missed { events: Some(10) });
        assert_eq!(told[1].what, health(10));
        assert_eq!(told.len(), REMEMBERED + 1);
        // Whoever begins at what is remembered misses nothing; behind the missing ones is there.
        assert_eq!(all(&mut events.listen(After::Start)), told[1..]);
        assert_eq!(all(&mut events.listen(id(&told[0]))), told[1..]);
    }

    #[tokio::test]
    async fn what_a_daemon_before_this_one_told_is_missing_for_all_that_is_known() {
        let events = Events::default();
        let missed = Happening::Missed { events: None };
        for after in ["1-7", &format!("{:x}-1", events.0.daemon)] {
            let mut listener = events.listen(After::Event(after.parse().unwrap()));
            assert_eq!(listener.last(), None);
            assert!(listener.wait().await);
            let told = listener.news();
            assert_eq!(told.len(), 1);
            assert_eq!(told[0].what, missed);
            // And nothing more, however often they come back.
            let mut again = events.listen(id(&told[0]));
            assert_eq!((again.news(), listener.news()), (vec![], vec![]));
        }
        events.publish(health(1));
        let told = events.listen(After::Event("1-7".parse().unwrap())).news();
        assert_eq!(told.len(), 2);
        assert_eq!((&told[0].what, &told[1].what), (&missed, &health(1)));
    }

    #[test]
    fn an_event_is_small_whatever_has_happened() {
        let long = "é".repeat(TEXT);
        assert!(shortened(&long).len() <= TEXT + 3);
        assert_eq!(shortened("short"), "short");
        let difference = |size: usize| Difference {
            keys: vec![KeyChange {
                key: "allow".into(),
                before: Value::Null,
                after: "x".repeat(size).into(),
            }],
            ..Difference::of_service(Action::Change, "web")
        };
        for (sizes, told) in [
            (vec![10; 3], 3),
            (vec![3_000; 5], 2),
            (vec![20_000], 0),
            // What does not fit ends the list.
            (vec![10, 20_000, 10], 1),
        ] {
            let all: Vec<_> = sizes.iter().map(|size| difference(*size)).collect();
            let changes = Changes::new("6a1f-1", &all);
            assert_eq!(changes.changes, sizes.len() as u64);
            assert_eq!(changes.differences, all[..told], "{sizes:?}");
        }
    }

    #[test]
    fn the_form_is_flat() {
        let happenings = [
            (
                health(1),
                json!({"service": "web", "backend": "1", "up": true}),
            ),
            (Happening::Stopping, json!({})),
            (
                Happening::Reload {
                    file: "/etc/lb/lb.toml".into(),
                    changes: Changes::new("6a1f-2", &[]),
                    restart_needed: Vec::new(),
                },
                json!({"file": "/etc/lb/lb.toml", "revision": "6a1f-2", "changes": 0,
                       "differences": []}),
            ),
            (
                Happening::Change(Changes::new("6a1f-2", &[])),
                json!({"revision": "6a1f-2", "changes": 0, "differences": []}),
            ),
            (Happening::Missed { events: None }, json!({})),
        ];
        for (what, form) in happenings {
            let mut json = json!({"id": "6a1f-7", "time": "2026-01-01T00:00:00.000Z",
                                  "event": what.kind()});
            let Value::Object(form) = form else {
                unreachable!("they are objects");
            };
            json.as_object_mut().unwrap().extend(form);
            let event = Event {
                id: "6a1f-7".into(),
                time: "2026-01-01T00:00:00.000Z".into(),
                what,
            };
            assert_eq!(serde_json::to_value(&event).unwrap(), json);
            assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
        }
    }

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id: EventId = "6a1f-12".parse().unwrap();
        assert_eq!(id.to_string(), "6a1f-12");
        for wrong in ["", "6a1f", "-", "x-1", "6a1f-x", "\"6a1f-1\""] {
            assert!(wrong.parse::<EventId>().is_err(), "{wrong}");
        }
    }
}
