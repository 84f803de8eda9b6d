//! Programs that the main one calls for packets that few hosts see many of.
//!
//! Each is verified by itself, and what they do costs other packets nothing.

use aya_ebpf::{bindings::xdp_action::XDP_DROP, programs::XdpContext};
use lb_common::stage::Handover;
pub use lb_common::stage::Stage;

use crate::maps::{HANDOVER, STAGES};

/// Goes on with another program. It is always there, or the packet is dropped.
#[inline(always)]
pub fn enter(ctx: &XdpContext, stage: Stage) -> u32 {
    // SAFETY: nothing here has anything to drop.
    unsafe { STAGES.tail_call(ctx, stage as u32) };
    XDP_DROP
}

/// Leaves a word to the next program, see [`Handover`].
#[inline(always)]
pub fn hand_over(word: u32) {
    if let Some(handover) = HANDOVER.get_ptr_mut(0) {
        // SAFETY: the element belongs to this CPU, and a program does not migrate or
        // re-enter itself while it runs.
        unsafe { *handover = Handover { word } };
    }
}

/// What the program before has left.
#[inline(always)]
pub fn handed_over() -> Option<u32> {
    // SAFETY: as above.
    HANDOVER
        .get_ptr(0)
        .map(|handover| unsafe { (*handover).word })
}
