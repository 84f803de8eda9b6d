//! What becomes of a packet of ours that is not forwarded.

use aya_ebpf::{bindings::xdp_action::XDP_DROP, programs::XdpContext};
use aya_log_ebpf::debug;
use lb_common::{
    counters::{Direction, DropKey},
    drop_reason::DropReason,
};

use crate::count;

/// An XDP action, or why there is none but to drop.
pub type Verdict = Result<u32, Refused>;

/// A packet that will be dropped, and under what it is counted.
#[derive(Clone, Copy)]
#[repr(align(8))]
pub struct Refused {
    reason: DropReason,
    service: u32,
    backend: u32,
    direction: Direction,
}

impl Refused {
    /// A packet to one of our addresses, of which no more could be read.
    #[inline(always)]
    pub fn unknown(reason: DropReason) -> Self {
        Self::forward(reason, 0, 0)
    }

    /// A packet from a client to a service and, where one was found, a backend.
    #[inline(always)]
    pub fn forward(reason: DropReason, service: u32, backend: u32) -> Self {
        Self {
            reason,
            service,
            backend,
            direction: Direction::Forward,
        }
    }

    /// A packet from a backend to a client.
    #[inline(always)]
    pub fn reply(reason: DropReason, service: u32, backend: u32) -> Self {
        Self {
            reason,
            service,
            backend,
            direction: Direction::Reply,
        }
    }

    /// Counts the packet and drops it.
    #[inline(always)]
    pub fn drop(self, ctx: &XdpContext) -> u32 {
        debug!(
            ctx,
            "drop: reason {} service {} backend {} direction {}",
            self.reason as u16,
            self.service,
            self.backend,
            self.direction as u16
        );
        count::dropped(DropKey {
            service: self.service,
            backend: self.backend,
            reason: self.reason as u16,
            direction: self.direction as u16,
            reserved: 0,
        });
        XDP_DROP
    }
}
