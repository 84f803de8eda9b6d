//! The end of flows: which entries of the flow tables have been silent for too long,
//! and taking them away.
//!
//! The datapath only ever adds a flow or replaces it; it notes when each direction
//! last spoke. A sweep, once a second or so, does the rest.

mod expiry;
mod listing;
mod sweep;

pub use expiry::Lifetimes;
pub(crate) use expiry::ticks;
pub use listing::{Named, Query};
pub use sweep::{Report, Sweeper};
