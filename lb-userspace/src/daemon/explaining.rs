//! Says what becomes of packets, on a thread of its own: to load the program takes a second.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::{sync::oneshot, task::spawn_blocking};

use super::chain;
use crate::{
    datapath::{PinnedMaps, Twin},
    explain::{self, Names, Port},
    neighbour,
    privileges::with_lookups,
    state::{Explanation, Question, Reason, Refusal},
};

/// Answers one question after the other.
pub(super) struct Explaining {
    maps: Option<PinnedMaps>,
    /// Held while a question is answered, so that only one more program is loaded at a time.
    turn: Arc<Mutex<()>>,
}

impl Explaining {
    /// Of a datapath whose maps are pinned there.
    pub(super) fn new(maps: Option<PinnedMaps>) -> Self {
        Self {
            maps,
            turn: Arc::default(),
        }
    }

    /// Answers a question. The ids of backends are below `ids`.
    pub(super) fn answer(
        &self,
        names: Names,
        ids: u32,
        question: Question,
        answer: oneshot::Sender<Result<Explanation, Refusal>>,
    ) {
        let Some(maps) = self.maps.clone() else {
            let reason = Reason::new(
                "the maps of the datapath are not pinned",
                "name a `pin-directory` on a BPF file system",
            );
            drop(answer.send(Err(Refusal::Conflict(reason))));
            return;
        };
        let turn = Arc::clone(&self.turn);
        spawn_blocking(move || {
            // What is kept in order is only the turn itself.
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever asked may have gone away.
            if !answer.is_closed() {
                drop(answer.send(explain(&maps, names, ids, &question)));
            }
        });
    }
}

fn explain(
    maps: &PinnedMaps,
    mut names: Names,
    ids: u32,
    question: &Question,
) -> Result<Explanation, Refusal> {
    let interfaces = neighbour::interfaces().map_err(|error| {
        Refusal::Failed(format!("cannot read the interfaces of this host: {error}"))
    })?;
    names.interfaces = interfaces
        .into_iter()
        .filter_map(|interface| {
            let port = Port {
                name: interface.name,
                mac: interface.mac?,
                outlet: interface.bond.unwrap_or(interface.ifindex),
            };
            Some((interface.ifindex, port))
        })
        .collect();
    let explain = || {
        let mut twin = Twin::load(maps, ids).map_err(|error| Refusal::Failed(chain(&error)))?;
        explain::explain(&mut twin, &names, question)
    };
    Ok(with_lookups(explain)?.explanation)
}
