//! What becomes of the connections that clients begin, for passive health checks: counted
//! for services with [`Service::WATCHED`](crate::service::Service::WATCHED) alone.

/// Name of the table: backend id to [`Outcomes`], in memory that the daemon maps.
pub const OUTCOMES: &str = "OUTCOMES";

/// Words that a backend has in the table, each a count of packets that only grows while the
/// program is loaded.
pub const WORDS: usize = 4;

/// SYNs of clients that went to the backend. Where packets are translated, those alone that
/// begin a flow; else also those that are sent again.
pub const BEGUN: usize = 0;
/// SYNs with ACK that came from the backend. Seen only where packets are translated, like
/// [`REFUSED`].
pub const ANSWERED: usize = 1;
/// RSTs that came from the backend as the first answer to a SYN.
pub const REFUSED: usize = 2;

/// What was counted of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// See [`BEGUN`].
    pub begun: u64,
    /// See [`ANSWERED`].
    pub answered: u64,
    /// See [`REFUSED`].
    pub refused: u64,
}

impl Outcomes {
    /// What was counted since it was `before`.
    #[must_use]
    pub const fn since(self, before: Self) -> Self {
        Self {
            begun: self.begun.wrapping_sub(before.begun),
            answered: self.answered.wrapping_sub(before.answered),
            refused: self.refused.wrapping_sub(before.refused),
        }
    }
}
