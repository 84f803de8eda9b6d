//! An interrupt from the terminal ends a lab in order.

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};

use crate::{Lab, lab};

/// SIGINT and SIGTERM, taken by one thread instead of ending the process.
#[derive(Debug)]
pub(crate) struct Interrupts {
    signals: SigSet,
    came: Arc<AtomicBool>,
}

impl Interrupts {
    /// Keeps the signals back, in this thread and those that it will start.
    pub(crate) fn block() -> Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block()?;
        Ok(Self {
            signals,
            came: Arc::default(),
        })
    }

    /// From now on, either signal removes `lab` and ends this process, with the status
    /// that a shell gives to a process that the signal has killed.
    pub(crate) fn guard(&self, lab: &Lab) {
        let id = lab.id().to_owned();
        let (signals, came) = (self.signals, Arc::clone(&self.came));
        thread::spawn(move || {
            let Ok(signal) = signals.wait() else { return };
            came.store(true, Ordering::SeqCst);
            if let Err(error) = lab::remove(&id) {
                eprintln!("{error:#}");
            }
            process::exit(128 + signal as i32);
        });
    }

    /// Does `work`, and does not return when the end of the process is near: then
    /// `work` has failed only because the lab was taken away below it.
    pub(crate) fn unless_interrupted<R>(&self, work: impl FnOnce() -> R) -> R {
        let result = work();
        while self.came.load(Ordering::SeqCst) {
            thread::park();
        }
        result
    }
}
