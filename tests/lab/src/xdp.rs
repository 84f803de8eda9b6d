//! The XDP program of interfaces that only receive.
//!
//! A veth takes frames of `XDP_TX` and `XDP_REDIRECT` from its peer only while it
//! polls for them (NAPI), as it does with an XDP program of its own. Switching GRO
//! on starts the polling, too (since Linux 5.13), but is not enough: after
//! `XDP_TX` the kernel wakes only a peer that has a program (`veth_xdp_flush` in
//! `drivers/net/veth.c`; so in 6.1 and in 6.18, where frames were seen to stay in
//! the ring until something else woke it).
//!
//! The program is two instructions, given to the kernel as they are, so that a lab
//! needs neither a compiler for BPF nor an object file. It is attached through
//! netlink rather than by a BPF link: so it belongs to the interface, not to this
//! process.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use anyhow::{Context, Result, ensure};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
        socket,
    },
};

/// Attaches a program that passes every frame to an interface of the calling
/// thread's network namespace, in native mode.
///
/// # Errors
///
/// When there is no such interface, or it has a program, or the kernel refuses.
pub(crate) fn pass_everything(interface: &str) -> Result<()> {
    const XDP_PASS: u32 = 2;
    attach_verdict(interface, XDP_PASS)
}

/// Attaches a program that has the same verdict on every frame.
fn attach_verdict(interface: &str, verdict: u32) -> Result<()> {
    let index = if_nametoindex(interface).with_context(|| format!("no interface `{interface}`"))?;
    let program = load(verdict).context("cannot load an XDP program")?;
    attach(&program, index).with_context(|| format!("cannot attach XDP to `{interface}`"))
}

/// Loads `r0 = verdict; exit` (bpf(2), `BPF_PROG_LOAD`).
fn load(verdict: u32) -> io::Result<OwnedFd> {
    /// The beginning of `union bpf_attr` as `BPF_PROG_LOAD` reads it.
    #[repr(C)]
    struct Attributes {
        program_type: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        program_flags: u32,
    }
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_XDP: u32 = 6;
    /// Takes frames that lie in several pages: without it, an interface keeps its MTU below
    /// a page.
    const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
    /// Class ALU64, operation MOV, source immediate; the immediate stands in the
    /// upper half (RFC 9669, section 3).
    const MOV_R0: u64 = 0xb7;
    const EXIT: u64 = 0x95;

    let instructions = [MOV_R0 | u64::from(verdict) << 32, EXIT].map(u64::to_le_bytes);
    let license = c"Dual MIT/GPL";
    let attributes = Attributes {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        program_flags: BPF_F_XDP_HAS_FRAGS,
    };
    #[expect(unsafe_code, reason = "libc has no function for bpf(2)")]
    // SAFETY: the kernel reads `attributes` and, before it returns, what they point
    // to; all of it lives until then. A result that is not negative is a descriptor
    // that nobody else owns.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attributes,
            size_of::<Attributes>(),
        );
        match RawFd::try_from(fd) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Sets `IFLA_XDP` of an interface (rtnetlink(7), `linux/if_link.h`).
fn attach(program: &OwnedFd, index: u32) -> Result<()> {
    const IFLA_XDP: u16 = 43 | libc::NLA_F_NESTED as u16;
    const IFLA_XDP_FD: u16 = 1;
    const IFLA_XDP_FLAGS: u16 = 3;
    const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1 << 0;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    /// `struct nlmsghdr`, which an error message begins with, too.
    const HEADER: usize = 16;

    let nested = [
        attribute(IFLA_XDP_FD, &program.as_raw_fd().to_ne_bytes()),
        attribute(
            IFLA_XDP_FLAGS,
            &(XDP_FLAGS_UPDATE_IF_NOEXIST | XDP_FLAGS_DRV_MODE).to_ne_bytes(),
        ),
    ]
    .concat();
    let body = [
        // `struct ifinfomsg`: family, padding, type, index, flags, change mask.
        &[0; 4][..],
        &index.to_ne_bytes(),
        &[0; 8],
        &attribute(IFLA_XDP, &nested),
    ]
    .concat();
    let length = (HEADER + body.len()) as u32;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let message = [
        // `struct nlmsghdr`: length, type, flags, sequence number, port.
        &length.to_ne_bytes()[..],
        &libc::RTM_SETLINK.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &[0; 8],
        &body,
    ]
    .concat();

    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    // `struct nlmsgerr`: a negated error number, 0 for success, follows the header.
    let mut answer = [0; 512];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    ensure!(length >= HEADER + 4, "the kernel's answer is too short");
    match i32::from_ne_bytes(answer[HEADER..HEADER + 4].try_into()?) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error).into()),
    }
}

/// `struct nlattr` and its value, whose length here is always a multiple of four.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
}

#[cfg(test)]
mod tests {
    use std::{
        net::UdpSocket,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::{End, Lab, Link};

    /// Frames that `XDP_TX` sends back arrive. Those of `XDP_REDIRECT` take the same way
    /// into the interface, and are what the tests of the balancer are made of.
    #[test]
    fn an_interface_takes_frames_that_its_peer_reflects() -> Result<()> {
        const XDP_TX: u32 = 3;
        const FRAMES: u64 = 100;

        let lab = Lab::new("reflect")?;
        let (sender, mirror) = (lab.host("sender")?, lab.host("mirror")?);
        let end = End::of(&sender, "eth0").address("10.0.0.1/24");
        Link::between(end.takes_xdp_frames(), End::of(&mirror, "eth0")).up()?;
        sender.ip("neighbour add 10.0.0.2 lladdr 02:00:00:00:00:02 dev eth0")?;
        let received = || -> Result<u64> {
            let json = sender.ip("-json -statistics link show dev eth0")?;
            let link: serde_json::Value = serde_json::from_str(&json)?;
            link[0]["stats64"]["rx"]["packets"]
                .as_u64()
                .context("the interface has no statistics")
        };

        mirror.enter(|| attach_verdict("eth0", XDP_TX))?;
        let before = received()?;
        let socket = sender.enter(|| UdpSocket::bind("10.0.0.1:0"))?;
        for _ in 0..FRAMES {
            socket.send_to(b"reflect me", "10.0.0.2:9")?;
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while received()? < before + FRAMES {
            ensure!(
                Instant::now() < deadline,
                "of {FRAMES} frames {} came back",
                received()? - before
            );
        }
        Ok(())
    }
}
