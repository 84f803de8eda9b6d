//! Next hops of backends, from the kernel's routes, neighbours and links, and kept
//! fresh. The datapath asks no FIB: what this module says is how packets leave.
//!
//! [`Neighbours`] runs a thread that listens to rtnetlink(7) and tells what has
//! changed. What it learns and what follows from it is a plain state machine, in
//! `table`.

mod decode;
mod facts;
mod hop;
mod kernel;
mod local;
mod monitor;
mod path;
mod provoking;
mod table;
mod watcher;

use std::{collections::BTreeSet, net::IpAddr, thread};

use anyhow::Context;
use tokio::sync::mpsc;

use facts::Route;
use kernel::Kernel;
use monitor::Monitor;
use path::Egress;
use watcher::{End, Watcher};

use crate::address::AddressPrefix;

pub use hop::{NextHop, NextHopState, remedy};
pub use local::Locality;

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
    /// Index of the bond that it belongs to, if any: frames that XDP sees there come in by
    /// this interface, and the bond chooses by which of its interfaces frames leave.
    pub bond: Option<u32>,
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// Index of the interface that has it.
    pub ifindex: u32,
    /// Index of the device that frames to it come in by: below a VLAN interface, else the
    /// interface itself.
    pub device: u32,
    /// The address.
    pub address: IpAddr,
    /// An address in the network that is reached by the interface directly, and the
    /// length of that network's prefix.
    pub network: (IpAddr, u8),
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
        // A thread of its own: the kernel answers a request while it is made, which takes
        // as long as somebody else holds its lock on the network configuration.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("cannot make a runtime to watch routes")?;
        // Listening begins before anything is asked, so that no change falls between.
        let monitor = {
            let _reactor = runtime.enter();
            Monitor::open().context("cannot listen to changes of routes")?
        };
        let kernel = Kernel::open().context("cannot open a socket to ask for routes")?;
        let (watched, addresses) = mpsc::unbounded_channel();
        let watcher = Watcher::new(kernel, events);
        thread::Builder::new()
            .name("neighbours".to_owned())
            .spawn(
                move || match runtime.block_on(watcher.run(monitor, addresses)) {
                    End::Unwanted => {}
                    End::Deaf(error) => tracing::error!(
                        %error,
                        "changes of routes and neighbours are no longer seen; restart the balancer"
                    ),
                },
            )
            .context("cannot start a thread to watch routes")?;
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
    let links = Kernel::open()
        .and_then(|mut kernel| kernel.links())
        .context("cannot list the network interfaces")?;
    Ok(links.into_iter().map(|link| link.interface).collect())
}

/// The addresses of the calling thread's network namespace.
///
/// # Errors
///
/// When the kernel does not list them.
pub fn addresses() -> anyhow::Result<Vec<HostAddress>> {
    let list = |mut kernel: Kernel| Ok((kernel.links()?, kernel.addresses()?));
    let (links, mut addresses) = Kernel::open()
        .and_then(list)
        .context("cannot list the addresses of this host")?;
    let links = links
        .into_iter()
        .map(|link| (link.interface.ifindex, link))
        .collect();
    for address in &mut addresses {
        if let Some(egress) = Egress::new(&links, address.ifindex) {
            address.device = egress.device.interface.ifindex;
        }
    }
    Ok(addresses)
}

/// How many of these addresses the kernel of the calling thread's network namespace takes
/// packets to. Of one address, that is what it says itself; of several, what the local routes
/// say that hold for every packet.
///
/// # Errors
///
/// When it does not say.
pub fn locality(prefix: AddressPrefix) -> anyhow::Result<Locality> {
    let ask = |mut kernel: Kernel| {
        if !prefix.is_address() {
            let routes = kernel.local_routes(prefix.address().into())?;
            return Ok(Locality::of(prefix, &routes));
        }
        Ok(match kernel.route(prefix.address())? {
            Route::Local { .. } => Locality::All,
            _ => Locality::None,
        })
    };
    Kernel::open()
        .and_then(ask)
        .with_context(|| format!("cannot ask for the routes to {prefix}"))
}

#[cfg(test)]
mod tests;
