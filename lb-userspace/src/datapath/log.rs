//! What the XDP program logs.

#![expect(
    unsafe_code,
    reason = "tokio cannot know that a file descriptor stays open"
)]

use std::io;

use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};

/// The log of the XDP program.
#[must_use = "nothing is logged until it is forwarded"]
pub struct ProgramLog(pub(super) EbpfLogger<&'static dyn log::Log>);

impl ProgramLog {
    /// Writes what the program logs to the log of this process, for as long as this is
    /// awaited. Must run in a tokio runtime.
    ///
    /// # Errors
    ///
    /// Where the log cannot be waited for.
    pub async fn forward(self) -> io::Result<()> {
        // SAFETY: the logger owns its file descriptor, keeps it open until it is dropped
        // and does not change it.
        let mut log = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) }
            .map_err(|error| error.into_parts().1)?;
        loop {
            let mut ready = log.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}
