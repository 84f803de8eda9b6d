//! Transfers through a path that narrows on the way.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};

use crate::{Host, Mode, Routed, Topology, http};

/// What is transferred: more than the buffers of both ends hold, a megabyte each, so that a
/// transfer that pauses is not over.
const LENGTH: u64 = 6_000_000;
/// What is transferred before the path narrows.
const BEGIN: u64 = 1_000_000;
/// What the path narrows to: room for the headers of any tunnel above the least of IPv6.
const NARROW: u32 = 1_400;
/// Longest silence of a transfer, and longest time that it may take to stand still.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which way the bytes of a transfer go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a backend to the client.
    Download,
    /// From the client to a backend.
    Upload,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Download, Self::Upload];
}

/// A transfer of either direction that has begun.
enum Transfer {
    Download(http::Transfer),
    Upload(http::Upload),
}

impl Transfer {
    fn begin(direction: Direction, server: SocketAddr) -> Result<Self> {
        Ok(match direction {
            Direction::Download => {
                let mut transfer = http::Transfer::begin(server, LENGTH, u64::MAX, PATIENCE)?;
                transfer.advance(BEGIN)?;
                Self::Download(transfer)
            }
            Direction::Upload => {
                let mut upload = http::Upload::begin(server, LENGTH, PATIENCE)?;
                upload.advance(BEGIN)?;
                Self::Upload(upload)
            }
        })
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Download(transfer) => transfer.finish(),
            Self::Upload(upload) => upload.finish().map(drop),
        }
    }
}

impl Routed {
    /// Transfers bytes, narrows the path while that goes on, and transfers the rest.
    ///
    /// # Errors
    ///
    /// When the transfer breaks or stands still, or a byte is not the one that was sent.
    pub fn transfer_while_narrowing(&self, direction: Direction, server: SocketAddr) -> Result<()> {
        let begin = || Transfer::begin(direction, server);
        let transfer = self.topology.client.enter(begin)?;
        self.narrow(direction, NARROW)?;
        transfer.finish()
    }

    /// Does the same where nobody tells the sender, and waits until it has sent the same
    /// several times for nothing. Then the path gets wide again, and the transfer ends well.
    ///
    /// # Errors
    ///
    /// When the transfer goes on in spite of the narrow path, or not on the wide one.
    pub fn stall_while_narrowing(&self, direction: Direction, server: SocketAddr) -> Result<()> {
        let begin = || Transfer::begin(direction, server);
        let transfer = self.topology.client.enter(begin)?;
        self.narrow(direction, NARROW)?;
        let before = self.timeouts(direction)?;
        let rest = thread::spawn(move || transfer.finish());
        // An acknowledgement would put an end to them: in this time, none came.
        let deadline = Instant::now() + PATIENCE;
        while self.timeouts(direction)? - before < 3 {
            ensure!(!rest.is_finished(), "the transfer did not stand still");
            ensure!(Instant::now() < deadline, "the sender tries nothing again");
            thread::sleep(Duration::from_millis(20));
        }
        self.narrow(direction, self.wide(direction))?;
        rest.join().map_err(|_| anyhow!("the transfer panicked"))?
    }

    /// How often the senders have waited in vain for an acknowledgement.
    fn timeouts(&self, direction: Direction) -> Result<i64> {
        let Topology {
            client, backends, ..
        } = &self.topology;
        let senders: Vec<&Host> = match direction {
            Direction::Download => backends.iter().map(|backend| &backend.host).collect(),
            Direction::Upload => vec![client],
        };
        senders
            .into_iter()
            .map(|host| Ok(host.snmp()?.get("TcpExt.TCPTimeouts")))
            .sum()
    }

    /// The MTU of the link that [`Routed::narrow`] narrows, as it was made.
    fn wide(&self, direction: Direction) -> u32 {
        match direction {
            Direction::Download => self.options.mtu,
            Direction::Upload => self.options.inner_mtu,
        }
    }

    /// Gives the last link before the receiver another MTU: between `r1` and the client for
    /// downloads, between `r2` and the backends for uploads. With `dsr` it is the network
    /// that balancer and backends share, since a network without a router has one MTU.
    ///
    /// # Errors
    ///
    /// When an interface does not take this size.
    pub fn narrow(&self, direction: Direction, mtu: u32) -> Result<()> {
        match direction {
            Direction::Download => {
                self.r1.set_mtu("eth0", mtu)?;
                self.topology.client.set_mtu("eth0", mtu)
            }
            Direction::Upload => {
                let (host, bridge) = self.lan();
                if self.options.mode == Mode::Dsr {
                    self.topology.lb.set_mtu("eth1", mtu)?;
                    host.set_mtu("lb", mtu)?;
                }
                for backend in &self.topology.backends {
                    host.set_mtu(backend.host.name(), mtu)?;
                    backend.host.set_mtu("eth0", mtu)?;
                }
                host.set_mtu(bridge, mtu)
            }
        }
    }

    /// Packets that the kernel of the host before the narrow link has refused as too big so
    /// far, and told their senders.
    ///
    /// # Errors
    ///
    /// When its counters cannot be read.
    pub fn refused(&self, direction: Direction) -> Result<i64> {
        let host = match (direction, self.options.mode) {
            (Direction::Download, _) => &self.r1,
            (Direction::Upload, Mode::Dsr) => &self.topology.lb,
            (Direction::Upload, _) => &self.r2,
        };
        let counters = host.snmp()?;
        Ok(counters.get("Ip.FragFails") + counters.get("Ip6.FragFails"))
    }
}
