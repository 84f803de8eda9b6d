//! What a driver says of an interface (linux/ethtool.h).

#![expect(unsafe_code, reason = "the ioctl SIOCETHTOOL takes pointers")]

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `SIOCETHTOOL` of linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
/// `ETHTOOL_GFLAGS`, with a `struct ethtool_value`.
const GET_FLAGS: u32 = 0x25;
/// `ETHTOOL_GCHANNELS`, with a `struct ethtool_channels`.
const GET_CHANNELS: u32 = 0x3c;
/// `ETH_FLAG_RXVLAN`.
const RX_VLAN: u32 = 1 << 8;
/// `ETH_FLAG_LRO`.
const LRO: u32 = 1 << 15;

/// What of a driver's settings matters to XDP. What it does not tell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Driver {
    /// It joins received packets to larger ones (large receive offload).
    pub lro: Option<bool>,
    /// It takes VLAN tags out of received frames.
    pub rx_vlan: Option<bool>,
    /// Queues that frames come in by.
    pub rx_queues: Option<u32>,
}

/// Asks the driver of an interface of the calling thread's network namespace.
///
/// # Errors
///
/// Where there is no socket to ask by.
pub fn driver(interface: &str) -> io::Result<Driver> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut flags = [GET_FLAGS, 0];
    let flags = ask(&socket, interface, &mut flags).then_some(flags[1]);
    let mut channels = [GET_CHANNELS, 0, 0, 0, 0, 0, 0, 0, 0];
    // max_rx, max_tx, max_other, max_combined, and the same of what is.
    let rx_queues = ask(&socket, interface, &mut channels).then(|| channels[5] + channels[8]);
    Ok(Driver {
        lro: flags.map(|flags| flags & LRO != 0),
        rx_vlan: flags.map(|flags| flags & RX_VLAN != 0),
        rx_queues: rx_queues.filter(|queues| *queues > 0),
    })
}

/// Has the driver fill in a structure of 32-bit words that begins with a command. `false` where
/// it does not know that.
fn ask(socket: &OwnedFd, interface: &str, words: &mut [u32]) -> bool {
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return false;
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: words.as_mut_ptr().cast(),
        },
    };
    // SAFETY: the kernel reads the name and writes as many words as the structure of the
    // command has, which is what each caller passes.
    unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) == 0 }
}
