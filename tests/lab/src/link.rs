//! Links: pairs of veth interfaces between two hosts.

use std::{fmt::Write, process::Command};

use anyhow::{Context, Result};

use crate::{Host, command::run, xdp};

/// One end of a [`Link`]: an interface of a host.
#[derive(Clone, Debug)]
pub struct End {
    host: Host,
    interface: String,
    addresses: Vec<String>,
    bridge: Option<String>,
    takes_xdp_frames: bool,
}

impl End {
    /// The interface of this name, which the link will make.
    #[must_use]
    pub fn of(host: &Host, interface: &str) -> Self {
        Self {
            host: host.clone(),
            interface: interface.to_owned(),
            addresses: Vec::new(),
            bridge: None,
            takes_xdp_frames: false,
        }
    }

    /// Gives it an address with its prefix length, such as `10.0.0.1/24`.
    #[must_use]
    pub fn address(mut self, address: &str) -> Self {
        self.addresses.push(address.to_owned());
        self
    }

    /// Makes it a port of a bridge that its host has.
    #[must_use]
    pub fn port_of(mut self, bridge: &str) -> Self {
        self.bridge = Some(bridge.to_owned());
        self
    }

    /// Lets it receive what an XDP program on its peer sends with `XDP_TX` or
    /// `XDP_REDIRECT`, by a program of its own that passes everything.
    #[must_use]
    pub fn takes_xdp_frames(mut self) -> Self {
        self.takes_xdp_frames = true;
        self
    }

    /// Sets up the interface after the link has made it.
    fn configure(&self) -> Result<()> {
        let Self {
            host, interface, ..
        } = self;
        // A sender leaves the checksum half done for its network card to finish;
        // a veth is none, and XDP_TX and XDP_REDIRECT send the frame on like that.
        run(host.command("ethtool").args(["-K", interface, "tx", "off"]))?;
        let mut batch = String::new();
        if let Some(bridge) = &self.bridge {
            writeln!(batch, "link set dev {interface} master {bridge}")?;
        }
        writeln!(batch, "link set dev {interface} up")?;
        for address in &self.addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            writeln!(batch, "address add {address} dev {interface} {nodad}")?;
        }
        host.ip_batch(&batch)?;
        self.keep_flows_together()?;
        if self.takes_xdp_frames {
            host.enter(|| xdp::pass_everything(interface))?;
            // The program switches it on (`veth_enable_xdp` in `drivers/net/veth.c`), but
            // kernels and captures here are to see packets as they came.
            run(host
                .command("ethtool")
                .args(["-K", interface, "gro", "off"]))?;
        }
        Ok(())
    }

    /// Has the packets of a flow received by one CPU, as a network card with several queues
    /// does. A veth leaves them to the CPU that sent them, and a kernel that handles the two
    /// packets with which a client ends its handshake and asks at the same moment may find no
    /// socket for the second one, and reset the connection: it takes the request out of its
    /// table a moment before the connection is in it (`inet_ehash_insert` in
    /// `net/ipv4/inet_hashtables.c`).
    fn keep_flows_together(&self) -> Result<()> {
        let file = format!("/sys/class/net/{}/queues/rx-0/rps_cpus", self.interface);
        // Unlike the host's, the `/sys` of `ip netns exec` shows the interfaces of a namespace.
        let script = format!("sed -n 's/^Cpus_allowed:[[:blank:]]*//p' /proc/self/status > {file}");
        let netns = self.host.netns();
        run(Command::new("ip").args(["netns", "exec", netns, "sh", "-c", &script]))?;
        Ok(())
    }
}

/// A cable between two hosts.
#[derive(Clone, Debug)]
pub struct Link {
    ends: [End; 2],
    mtu: u32,
}

impl Link {
    /// The MTU of a link that names none, in bytes of an IP packet.
    pub const DEFAULT_MTU: u32 = 1500;

    /// A link between two ends, which [`Link::up`] makes.
    #[must_use]
    pub fn between(left: End, right: End) -> Self {
        Self {
            ends: [left, right],
            mtu: Self::DEFAULT_MTU,
        }
    }

    /// The MTU of both ends, in bytes of an IP packet. An XDP program that takes frames in
    /// one piece only, on either end, allows up to about 3,500.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// Makes the interfaces and brings them up. The link goes with either host.
    ///
    /// Ethernet addresses and interface indices are the same in every run, and tell
    /// the number of the host and of the interface: 02:00:00:00:03:01 and 301.
    ///
    /// # Errors
    ///
    /// When an interface exists, or an address is wrong or taken.
    pub fn up(&self) -> Result<()> {
        let [left, right] = &self.ends;
        let name = |end: &End| format!("{} of `{}`", end.interface, end.host.name());
        let context = || format!("cannot link {} and {}", name(left), name(right));
        let arguments = |end: &End| {
            let (host, interface) = end.host.next_interface();
            // No two interfaces of a lab have the same index. The kernel waits up to
            // a second before it says that a link is up, unless the indices of the
            // ends differ: it takes equal ones for a device of its own
            // (`linkwatch_urgent_event` in `net/core/link_watch.c`).
            let index = 100 * u32::from(host) + u32::from(interface);
            format!(
                "{} index {index} mtu {} address 02:00:00:00:{host:02x}:{interface:02x} netns {}",
                end.interface,
                self.mtu,
                end.host.netns()
            )
        };
        left.host
            .ip(&format!(
                "link add {} type veth peer name {}",
                arguments(left),
                arguments(right)
            ))
            .with_context(context)?;
        for end in &self.ends {
            end.configure().with_context(context)?;
        }
        Ok(())
    }
}
