//! Changes of what is wanted, from the request to the answer: first the datapath has them, then
//! the state file, then who asked is told. Where the file cannot be written, all is taken back.
//!
//! While the disk is waited for, all else goes on but other changes.

use std::{future, io, time::Duration};

use tokio::{sync::oneshot, task::JoinHandle};

use super::{
    balancer::{Balancer, Before},
    plane::Plane,
};
use crate::{
    intent::{Intent, Kept, Proposal, Store},
    state::{
        Apply, Change, Changes, Condition, Difference, FileContent, Happening, Refusal, Reloaded,
        Revision, shortened,
    },
};

/// What is wanted, and where it is kept.
pub(super) struct Keeping {
    pub(super) intent: Intent,
    /// Not here while it is being written.
    store: Option<Store>,
    writing: Option<Writing>,
}

/// Somebody waits for a change.
pub(super) enum Asker {
    /// For a change of an item.
    Change(oneshot::Sender<Result<Revision, Refusal>>),
    /// For a file to be applied.
    Apply(oneshot::Sender<Result<Reloaded, Refusal>>),
    /// For nothing: the file has changed.
    File,
}

/// A change that the datapath has, and the disk not yet.
struct Writing {
    task: JoinHandle<(Store, io::Result<()>)>,
    /// Nothing where the datapath has nothing to do with it.
    before: Option<Before>,
    after: Intent,
    differences: Vec<Difference>,
    asker: Asker,
}

impl Keeping {
    pub(super) const fn new(intent: Intent, store: Store) -> Self {
        Self {
            intent,
            store: Some(store),
            writing: None,
        }
    }

    /// Whether another change may come.
    pub(super) const fn is_free(&self) -> bool {
        self.writing.is_none()
    }

    /// Begins a change of an item. Says whether something else is wanted now.
    pub(super) fn change<P: Plane>(
        &mut self,
        balancer: &mut Balancer<P>,
        change: Change,
        condition: Option<&Condition>,
        asker: Asker,
        now: Duration,
    ) -> bool {
        let proposal = self.intent.change(&balancer.desired, change, condition);
        self.begin(balancer, proposal, asker, now)
    }

    /// Begins to apply a file, or to forget what was changed beside it. Says whether something
    /// else is wanted now.
    pub(super) fn apply<P: Plane>(
        &mut self,
        balancer: &mut Balancer<P>,
        apply: Apply,
        asker: Asker,
        now: Duration,
    ) -> bool {
        let condition = apply.condition.as_ref();
        let proposal = match apply.content {
            Some(content) => self.intent.apply(&balancer.desired, *content, condition),
            None => self.intent.reset(&balancer.desired, condition),
        };
        match (proposal, asker) {
            (Ok(proposal), Asker::Apply(answer)) if apply.is_dry_run => {
                // Nothing becomes of it, so the state keeps its revision.
                let reloaded = Reloaded {
                    revision: self.intent.revision().to_string(),
                    ..proposal.after.reloaded(proposal.differences)
                };
                drop(answer.send(Ok(reloaded)));
                false
            }
            (proposal, asker) => self.begin(balancer, proposal, asker, now),
        }
    }

    /// Begins to bring about what the file says that the daemon was started with.
    pub(super) fn reload<P: Plane>(
        &mut self,
        balancer: &mut Balancer<P>,
        content: FileContent,
        now: Duration,
    ) -> bool {
        let apply = Apply {
            content: Some(Box::new(content)),
            condition: None,
            is_dry_run: false,
        };
        self.apply(balancer, apply, Asker::File, now)
    }

    fn begin<P: Plane>(
        &mut self,
        balancer: &mut Balancer<P>,
        proposal: Result<Proposal, Refusal>,
        asker: Asker,
        now: Duration,
    ) -> bool {
        let begun = proposal.and_then(|proposal| {
            let Proposal {
                desired,
                after,
                differences,
            } = proposal;
            let before = match differences.is_empty() {
                true => None,
                false => Some(balancer.want(desired, now)?),
            };
            Ok((before, after, differences))
        });
        match begun {
            Ok((before, after, differences)) => {
                let kept = Kept {
                    drains: balancer.kept_drains(now),
                    ..after.kept()
                };
                let is_changed = before.is_some();
                self.write(kept, before, after, differences, asker);
                is_changed
            }
            Err(refusal) => {
                self.refuse(balancer, asker, refusal);
                false
            }
        }
    }

    fn write(
        &mut self,
        kept: Kept,
        before: Option<Before>,
        after: Intent,
        differences: Vec<Difference>,
        asker: Asker,
    ) {
        let Some(mut store) = self.store.take() else {
            unreachable!("no change begins while another is being written");
        };
        let task = tokio::task::spawn_blocking(move || {
            let written = store.write(&kept);
            (store, written)
        });
        self.writing = Some(Writing {
            task,
            before,
            after,
            differences,
            asker,
        });
    }

    /// Writes what is wanted at the start, and when which drains began.
    pub(super) fn keep_drains<P: Plane>(&mut self, balancer: &Balancer<P>, now: Duration) {
        let kept = Kept {
            drains: balancer.kept_drains(now),
            ..self.intent.kept()
        };
        let written = self.store.as_mut().map(|store| store.write(&kept));
        if let Some(Err(error)) = written {
            tracing::error!(%error, "the state file cannot be written");
        }
    }

    /// Waits for the disk, if a change is being written, and ends it: `Some(true)` where it was
    /// taken back.
    pub(super) async fn written<P: Plane>(
        &mut self,
        balancer: &mut Balancer<P>,
        now: impl Fn() -> Duration,
    ) -> bool {
        let Some(writing) = &mut self.writing else {
            return future::pending().await;
        };
        let ended = (&mut writing.task).await;
        let Some(writing) = self.writing.take() else {
            unreachable!("it was there above");
        };
        let (store, result) =
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        self.store = Some(store);
        let Err(error) = result else {
            self.intent = writing.after;
            self.tell(balancer, &writing.differences, &writing.asker);
            if let Some(before) = &writing.before {
                balancer.tell_of_drains(before, now());
            }
            match writing.asker {
                Asker::Change(answer) => drop(answer.send(Ok(self.intent.revision()))),
                Asker::Apply(answer) => {
                    drop(answer.send(Ok(self.intent.reloaded(writing.differences))));
                }
                Asker::File => {}
            }
            return false;
        };
        let is_taken_back = writing.before.is_some();
        if let Some(before) = writing.before {
            balancer.take_back(before, now());
        }
        let path = self
            .store
            .as_ref()
            .map(|store| store.path().display().to_string());
        let path = path.unwrap_or_default();
        let refusal = Refusal::Failed(format!("the change cannot be kept in `{path}`: {error}"));
        self.refuse(balancer, writing.asker, refusal);
        // The last step may have failed when the rest was done.
        self.keep_drains(balancer, now());
        is_taken_back
    }

    fn refuse<P: Plane>(&mut self, balancer: &Balancer<P>, asker: Asker, refusal: Refusal) {
        match asker {
            Asker::Change(answer) => drop(answer.send(Err(refusal))),
            Asker::Apply(answer) => drop(answer.send(Err(refusal))),
            Asker::File => self.refused(balancer, None, &refusal.to_string()),
        }
    }

    /// Takes note that the configuration file, whose text is this where it could be read, is
    /// refused.
    pub(super) fn refused<P>(&mut self, balancer: &Balancer<P>, text: Option<&str>, why: &str) {
        tracing::error!(
            error = why,
            "the configuration file is not taken; all stays as it is"
        );
        self.intent.refused(text, why);
        balancer.events.publish(Happening::ReloadRefused {
            file: shortened(self.intent.path()),
            error: shortened(why),
        });
    }

    /// Tells what has changed, in the log and to those who listen.
    fn tell<P>(&self, balancer: &Balancer<P>, differences: &[Difference], asker: &Asker) {
        let revision = self.intent.revision();
        let changes = Changes::new(revision, differences);
        if matches!(asker, Asker::Change(_)) {
            if !differences.is_empty() {
                balancer.events.publish(Happening::Change(changes));
            }
            return;
        }
        let status = self.intent.status();
        tracing::info!(%revision, changes = differences.len(), "the configuration is taken");
        if !status.restart_needed.is_empty() {
            let settings = status.restart_needed.join(", ").replace('_', "-");
            tracing::warn!(settings, "these settings hold only after another start");
        }
        balancer.events.publish(Happening::Reload {
            file: shortened(&status.applied.unwrap_or(status.file)),
            changes,
            restart_needed: status.restart_needed,
        });
    }
}
