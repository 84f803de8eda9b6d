//! Transfers through a path that narrows on the way.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use crate::{Backend, Host, Mode, Routed, Topology, http};

/// What is transferred: more than the buffers of both ends hold, a megabyte each, so that a
/// transfer that pauses is not over.
const LENGTH: u64 = 6_000_000;
/// What is transferred before the path narrows.
const BEGIN: u64 = 1_000_000;
/// What the path narrows to: room for the headers of any tunnel above the least of IPv6.
const NARROW: u32 = 1_400;
/// Longest silence of a transfer, and longest time that it may take to stand still.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the path of a transfer narrows, and with it which way the bytes go: through the
/// narrow link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Narrowing {
    /// Between `r1` and the client, for downloads.
    BeforeClient,
    /// Between `r2` and the backends, for uploads.
    BeforeBackends,
    /// At the switch behind the balancer, for uploads: the balancer's own link.
    BehindBalancer,
}

impl Narrowing {
    /// All that there are with this mode. With `dsr` there is no router before the backends,
    /// and a network without a router has one MTU.
    #[must_use]
    pub const fn of(mode: Mode) -> &'static [Self] {
        match mode {
            Mode::Dsr => &[Self::BeforeClient, Self::BehindBalancer],
            _ => &[
                Self::BeforeClient,
                Self::BeforeBackends,
                Self::BehindBalancer,
            ],
        }
    }
}

/// A transfer of either direction that has begun.
enum Transfer {
    Download(http::Transfer),
    Upload(http::Upload),
}

impl Transfer {
    fn begin(narrowing: Narrowing, server: SocketAddr) -> Result<Self> {
        Ok(match narrowing {
            Narrowing::BeforeClient => {
                let mut transfer = http::Transfer::begin(server, LENGTH, u64::MAX, PATIENCE)?;
                transfer.advance(BEGIN)?;
                Self::Download(transfer)
            }
            Narrowing::BeforeBackends | Narrowing::BehindBalancer => {
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
    /// Transfers bytes, from or to each server, narrows the path while that goes on, and
    /// transfers the rest.
    ///
    /// # Errors
    ///
    /// When a transfer breaks or stands still, or a byte is not the one that was sent.
    pub fn transfer_while_narrowing(
        &self,
        narrowing: Narrowing,
        servers: &[SocketAddr],
    ) -> Result<()> {
        let begin = |server: &SocketAddr| Transfer::begin(narrowing, *server);
        let begin_all = || servers.iter().map(begin).collect::<Result<Vec<_>>>();
        let transfers = self.topology.client.enter(begin_all)?;
        self.narrow(narrowing, NARROW)?;
        transfers
            .into_iter()
            .zip(servers)
            .try_for_each(|(transfer, server)| {
                transfer
                    .finish()
                    .with_context(|| format!("{narrowing:?} to {server}"))
            })
    }

    /// Does the same where nobody tells the sender, and waits until it has sent the same
    /// several times for nothing. Then the path gets wide again, and the transfer ends well.
    ///
    /// # Errors
    ///
    /// When the transfer goes on in spite of the narrow path, or not on the wide one.
    pub fn stall_while_narrowing(&self, narrowing: Narrowing, server: SocketAddr) -> Result<()> {
        let begin = || Transfer::begin(narrowing, server);
        let transfer = self.topology.client.enter(begin)?;
        self.narrow(narrowing, NARROW)?;
        let before = self.timeouts(narrowing)?;
        let rest = thread::spawn(move || transfer.finish());
        // An acknowledgement would put an end to them: in this time, none came.
        let deadline = Instant::now() + PATIENCE;
        while self.timeouts(narrowing)? - before < 3 {
            ensure!(!rest.is_finished(), "the transfer did not stand still");
            ensure!(Instant::now() < deadline, "the sender tries nothing again");
            thread::sleep(Duration::from_millis(20));
        }
        self.narrow(narrowing, self.wide(narrowing))?;
        rest.join().map_err(|_| anyhow!("the transfer panicked"))?
    }

    /// How often the senders have waited in vain for an acknowledgement.
    fn timeouts(&self, narrowing: Narrowing) -> Result<i64> {
        let Topology {
            client, backends, ..
        } = &self.topology;
        let senders: Vec<&Host> = match narrowing {
            Narrowing::BeforeClient => backends.iter().map(|backend| &backend.host).collect(),
            Narrowing::BeforeBackends | Narrowing::BehindBalancer => vec![client],
        };
        senders
            .into_iter()
            .map(|host| Ok(host.snmp()?.get("TcpExt.TCPTimeouts")))
            .sum()
    }

    /// The MTU of the link that narrows, as it was made.
    const fn wide(&self, narrowing: Narrowing) -> u32 {
        match narrowing {
            Narrowing::BeforeClient => self.options.mtu,
            Narrowing::BeforeBackends | Narrowing::BehindBalancer => self.options.inner_mtu,
        }
    }

    /// Makes the path as wide again as it was made, and lets all hosts forget that it was
    /// not.
    ///
    /// # Errors
    ///
    /// When an interface does not take its size, or a host has not forgotten.
    pub fn widen(&self, narrowing: Narrowing) -> Result<()> {
        self.narrow(narrowing, self.wide(narrowing))?;
        let Topology {
            client,
            lb,
            backends,
            ..
        } = &self.topology;
        let ends = backends.iter().map(|backend| &backend.host);
        for host in [client, lb, &self.r1, &self.r2].into_iter().chain(ends) {
            for family in ["-4", "-6"] {
                host.ip(&format!("{family} route flush cache"))?;
                let left = host.ip(&format!("{family} route show cache"))?;
                ensure!(left.is_empty(), "{} has not forgotten {left}", host.name());
            }
        }
        Ok(())
    }

    /// Gives the network that narrows another MTU, at all of its interfaces.
    fn narrow(&self, narrowing: Narrowing, mtu: u32) -> Result<()> {
        let Topology {
            client,
            lb,
            switch,
            backends,
            ..
        } = &self.topology;
        let mut interfaces = Vec::new();
        match narrowing {
            Narrowing::BeforeClient => {
                interfaces.extend([(&self.r1, "eth0"), (client, "eth0")]);
            }
            Narrowing::BeforeBackends => {}
            Narrowing::BehindBalancer => interfaces.extend([
                (lb, "eth1"),
                (switch, "lb"),
                (switch, "r2"),
                (&self.r2, "eth0"),
            ]),
        }
        let (lan, bridge) = self.lan();
        let at_lan = match narrowing {
            Narrowing::BeforeClient => false,
            Narrowing::BeforeBackends => true,
            Narrowing::BehindBalancer => self.options.mode == Mode::Dsr,
        };
        if at_lan {
            for Backend { host, .. } in backends {
                interfaces.extend([(lan, host.name()), (host, "eth0")]);
            }
            interfaces.push((lan, bridge));
        } else if narrowing == Narrowing::BehindBalancer {
            interfaces.push((switch, "br0"));
        }
        interfaces
            .into_iter()
            .try_for_each(|(host, interface)| host.set_mtu(interface, mtu))
    }

    /// Packets that the kernel of the host before the narrow link has refused as too big so
    /// far, of both families, and told their senders.
    ///
    /// # Errors
    ///
    /// When its counters cannot be read.
    pub fn refused(&self, narrowing: Narrowing) -> Result<i64> {
        let host = match narrowing {
            Narrowing::BeforeClient => &self.r1,
            Narrowing::BeforeBackends => &self.r2,
            Narrowing::BehindBalancer => &self.topology.lb,
        };
        let counters = host.snmp()?;
        Ok(counters.get("Ip.FragFails") + counters.get("Ip6.FragFails"))
    }
}
