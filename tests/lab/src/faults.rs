//! Faults of hosts and links. Those of processes are methods of
//! [`Process`](crate::Process).

use anyhow::Result;

use crate::Host;

impl Host {
    /// Takes an interface down: its peer loses the carrier.
    ///
    /// IPv6 addresses and all routes of the interface go with it and do not come
    /// back by themselves; to cut a host off for a while, take down the switch's end.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn link_down(&self, interface: &str) -> Result<()> {
        self.ip(&format!("link set dev {interface} down")).map(drop)
    }

    /// Brings an interface up.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn link_up(&self, interface: &str) -> Result<()> {
        self.ip(&format!("link set dev {interface} up")).map(drop)
    }

    /// Makes the host drop, without a word, what it sends to `prefix`.
    ///
    /// # Errors
    ///
    /// When there is such a route already.
    pub fn blackhole(&self, prefix: &str) -> Result<()> {
        self.ip(&format!("route add blackhole {prefix}")).map(drop)
    }

    /// Takes the route of [`Host::blackhole`] away.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn remove_blackhole(&self, prefix: &str) -> Result<()> {
        self.ip(&format!("route delete blackhole {prefix}"))
            .map(drop)
    }

    /// Gives an interface another Ethernet address, without telling its neighbours.
    ///
    /// # Errors
    ///
    /// When there is no such interface, or the address is none.
    pub fn set_mac(&self, interface: &str, mac: &str) -> Result<()> {
        // Down and up again would take away routes and tell the neighbours.
        self.ip(&format!("link set dev {interface} address {mac}"))
            .map(drop)
    }

    /// Gives an interface another MTU, in bytes of an IP packet.
    ///
    /// # Errors
    ///
    /// When there is no such interface, or it does not take this size. The IPv6
    /// of the interface is lost below 1,280.
    pub fn set_mtu(&self, interface: &str, mtu: u32) -> Result<()> {
        self.ip(&format!("link set dev {interface} mtu {mtu}"))
            .map(drop)
    }

    /// Forgets the neighbours of an interface, in both families.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn flush_neighbours(&self, interface: &str) -> Result<()> {
        for family in ["-4", "-6"] {
            self.ip(&format!("{family} neighbour flush dev {interface} nud all"))?;
        }
        Ok(())
    }
}
