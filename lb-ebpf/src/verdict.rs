//! What becomes of a packet of ours that is not forwarded.

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    programs::XdpContext,
};
use aya_log_ebpf::debug;
use lb_common::{
    counters::{Direction, DropKey},
    drop_reason::DropReason,
    stage::Handover,
};

use crate::{
    count,
    family::Family,
    packet::{Packet, Part, Protocol},
    service,
    stage::{self, Stage},
};

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
    /// What the program is told that answers its sender, see [`Handover`]; 0 where nobody
    /// does.
    answer: u32,
}

/// Does what has been decided.
#[inline(always)]
pub fn conclude(ctx: &XdpContext, verdict: Verdict) -> u32 {
    match verdict {
        Ok(action) => action,
        Err(refused) => refused.drop(ctx),
    }
}

/// Drops a packet of which no more could be read than destination and protocol, if a
/// service has these.
#[inline(always)]
pub fn malformed<F: Family>(
    ctx: &XdpContext,
    destination: F::Address,
    protocol: Protocol,
    reason: DropReason,
) -> u32 {
    if service::owns::<F>(destination, protocol) {
        Refused::unknown(reason).drop(ctx)
    } else {
        XDP_PASS
    }
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
            answer: 0,
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
            answer: 0,
        }
    }

    /// Has the sender told the size of packets that would pass. No word is sent about
    /// later fragments (RFC 1122, section 3.2.2).
    #[inline(always)]
    pub fn with_mtu(mut self, part: Part, mtu: u32) -> Self {
        if part != Part::Later {
            self.answer = mtu;
        }
        self
    }

    /// Has the sender told that its connection has ended, where that is what the packet is
    /// dropped for.
    #[inline(always)]
    pub fn with_reset<F: Family>(mut self, packet: &Packet<'_, F>) -> Self {
        if self.reason == DropReason::Drained && packet.takes_reset() {
            self.answer = packet.headers as u32;
            if self.direction as u16 == Direction::Reply as u16 {
                self.answer |= Handover::REPLY;
            }
        }
        self
    }

    /// Counts the packet and drops it, or sends what it is to its sender.
    #[inline(always)]
    pub fn drop(self, ctx: &XdpContext) -> u32 {
        let kind = u32::from(self.reason as u16) | u32::from(self.direction as u16) << 16;
        note(ctx, kind, self.service, self.backend);
        if self.answer != 0 {
            stage::hand_over(self.answer);
            if self.reason == DropReason::Drained {
                return stage::enter(ctx, Stage::Reset);
            }
            return stage::enter(ctx, Stage::TooBig);
        }
        XDP_DROP
    }
}

/// Counts a dropped packet. A call of its own, with arguments that fit registers, since
/// the stack of the caller is scarce.
#[inline(never)]
fn note(ctx: &XdpContext, kind: u32, service: u32, backend: u32) {
    let reason = kind as u16;
    let direction = (kind >> 16) as u16;
    debug!(
        ctx,
        "drop: reason {} service {} backend {} direction {}", reason, service, backend, direction
    );
    count::dropped(DropKey {
        service,
        backend,
        reason,
        direction,
        reserved: 0,
    });
}
