//! Work that goes on in a host while a test does something else.

use std::{
    panic,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Tells work in the background that it should come to its end. Clones tell the
/// same.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks for the end.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Work on a thread of its own, made by [`Host::background`](crate::Host::background).
/// Dropping it asks for its end and waits for it.
#[derive(Debug)]
pub struct Background<R> {
    stop: Stop,
    thread: Option<JoinHandle<R>>,
}

impl<R: Send + 'static> Background<R> {
    pub(crate) fn start(work: impl FnOnce(&Stop) -> R + Send + 'static) -> Self {
        let stop = Stop::default();
        let thread = thread::spawn({
            let stop = stop.clone();
            move || work(&stop)
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl<R> Background<R> {
    /// Asks for the end, waits for it, and returns what the work returned.
    ///
    /// # Panics
    ///
    /// When the work did, with the same payload.
    pub fn finish(self) -> R {
        self.stop.request();
        self.join()
    }

    /// Waits until the work ends by itself, and returns what it returned.
    ///
    /// # Panics
    ///
    /// When the work did, with the same payload.
    pub fn join(mut self) -> R {
        let Some(thread) = self.thread.take() else {
            unreachable!("only `join`, which takes `self`, and `drop` take the thread");
        };
        thread
            .join()
            .unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// Whether the work has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl<R> Drop for Background<R> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop.request();
            // Whoever drops it does not want the result, not even a panic.
            let _ = thread.join();
        }
    }
}
