//! Pins: what the datapath remembers of a flow that is not translated, where the slot of
//! its ring alone does not say which backend it has.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Value of `PINS_V4` and `PINS_V6`, by the tuple that the client sends.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Pin {
    /// Id of the backend.
    pub backend: u32,
    /// [`Runtime::clock`](crate::Runtime::clock) when the last packet passed.
    pub last_seen: u32,
    /// Bits of [`state`](crate::flow::state).
    pub state: u32,
    /// Slot of the service's ring that the flow belongs to.
    pub slot: u32,
}

const _: () = assert!(size_of::<Pin>() == 16);
