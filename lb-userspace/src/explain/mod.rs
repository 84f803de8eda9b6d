//! What becomes of a packet: it goes through the real program, in an instance of its own that
//! sees what the real one sees ([`Twin`]), and what it met there is given its names.

mod frame;
mod read;

use std::collections::{BTreeMap, HashMap};

use lb_common::{
    backend::BackendState,
    counters::Counters,
    drop_reason::DropReason,
    flow::state,
    ring::{NO_BACKEND, NOBODY},
};

use crate::{
    datapath::{self, Entry, Kind, Trace, Tuple, Twin, Verdict},
    state::{
        Explanation, Fate, FlowState, MetBackend, MetFlow, MetService, MetSlot, Mode, Protocol,
        Question, QuestionStatus, Reason, Refusal, Scheduler, Sent, SlotState,
    },
};

/// A service as it is called.
#[derive(Clone, Debug)]
pub struct ServiceName {
    /// Its name.
    pub name: String,
    /// Its addresses and ports, as in the configuration.
    pub address: String,
    /// How it forwards.
    pub mode: Mode,
    /// How it chooses backends.
    pub scheduler: Scheduler,
}

/// An interface.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// The index of the interface that transmits for it: itself, or its bond.
    pub outlet: u32,
}

/// What the numbers of the datapath are called.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Services, by id.
    pub services: HashMap<u32, ServiceName>,
    /// Addresses of backends, by id.
    pub backends: HashMap<u32, String>,
    /// The interfaces of this host, by index.
    pub interfaces: BTreeMap<u32, Port>,
    /// Those that the program is attached to; the first is where packets come in by.
    pub attached: Vec<u32>,
}

/// What was sent to the program, and what it said.
#[derive(Clone, Debug)]
pub struct Explained {
    /// For people.
    pub explanation: Explanation,
    /// The frames that came in, one after the other, and by which interface.
    pub frames: Vec<Vec<u8>>,
    /// Index of that interface.
    pub ifindex: u32,
    /// What the program did with the last one.
    pub trace: Trace,
}

/// Says what becomes of a packet.
///
/// # Errors
///
/// Where the packet makes no sense, there is no such interface, or the kernel refuses.
pub fn explain(twin: &mut Twin, names: &Names, question: &Question) -> Result<Explained, Refusal> {
    question.check().map_err(Refusal::Invalid)?;
    let failed = |error: datapath::Error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        Refusal::Failed(format!("{error}{}", cause.unwrap_or_default()))
    };
    // The families are the same.
    let tuple = Tuple::new(
        question.source,
        question.destination,
        question.protocol.number(),
    )
    .ok_or(Refusal::ShuttingDown)?;
    let ifindex = interface(names, question)?;
    let port = names.interfaces.get(&ifindex);
    let frames = frame::frames(question, port.map_or([2, 0, 0, 0, 0, 2], |port| port.mac));
    let trace = twin.run(&frames, ifindex, tuple).map_err(failed)?;
    let teller = Teller {
        twin,
        names,
        question,
        tuple,
        ifindex,
        trace: &trace,
    };
    let bytes = frames.last().map_or(0, Vec::len);
    let explanation = teller.tell(bytes).map_err(failed)?;
    Ok(Explained {
        explanation,
        frames,
        ifindex,
        trace,
    })
}

/// The interface that a packet comes in by.
fn interface(names: &Names, question: &Question) -> Result<u32, Refusal> {
    let Some(name) = &question.interface else {
        return names.attached.first().copied().ok_or_else(|| {
            Refusal::Conflict(Reason::new(
                "the program is attached to no interface",
                "`lb status` says why",
            ))
        });
    };
    let found = names.interfaces.iter().find(|(_, port)| port.name == *name);
    let (ifindex, _) = found.ok_or_else(|| {
        Refusal::NotFound(Reason::new(
            format!("no such interface: `{name}`"),
            "`ip link` lists those that there are",
        ))
    })?;
    let is_attached = names.attached.contains(ifindex);
    is_attached.then_some(*ifindex).ok_or_else(|| {
        Refusal::Conflict(Reason::new(
            format!("the program is not attached to `{name}`, and sees none of its packets"),
            "name one of those that `lb status` lists",
        ))
    })
}

struct Teller<'a> {
    twin: &'a Twin,
    names: &'a Names,
    question: &'a Question,
    tuple: Tuple,
    ifindex: u32,
    trace: &'a Trace,
}

impl Teller<'_> {
    fn tell(&self, bytes: usize) -> datapath::Result<Explanation> {
        let Trace { run, met, left, .. } = self.trace;
        let drop = self.trace.drops.keys().next();
        let reason = drop.and_then(|key| DropReason::from_number(key.reason));
        // Where a flow moves, its end is counted of the backend that it had.
        let mut counters = self.trace.counters.iter();
        let took = |counters: &Counters| counters.packets + counters.reply_packets > 0;
        let counted = counters
            .clone()
            .find(|(_, counters)| took(counters))
            .or_else(|| counters.next());
        let is_reply = counted.is_some_and(|(_, counters)| counters.reply_packets > 0);
        let fate = match run.verdict {
            Verdict::Pass => Fate::Passed,
            Verdict::Drop | Verdict::Aborted => Fate::Dropped,
            Verdict::Tx | Verdict::Redirect if reason.is_some() || counted.is_none() => {
                Fate::Answered
            }
            Verdict::Tx | Verdict::Redirect if is_reply => Fate::ToClient,
            Verdict::Tx | Verdict::Redirect => Fate::ToBackend,
        };
        let backend = counted
            .map(|(id, _)| *id)
            .or_else(|| drop.map(|key| key.backend))
            .filter(|id| *id != NO_BACKEND);
        let is_known_reply = met.is_some_and(|entry| entry.kind == Kind::Reply);
        let service = if fate == Fate::Passed || is_known_reply {
            None
        } else {
            self.twin.service(self.tuple)?
        };
        let slot = match service {
            Some((service, _)) => self
                .twin
                .slot(service, self.tuple)?
                .map(|found| (service, found)),
            None => None,
        };
        let of_backend = match backend {
            Some(id) => Some(self.twin.backend(id)?.service),
            None => None,
        };
        let service_id = service.map(|(service, _)| service.id()).or(of_backend);
        let source_allowed = match service {
            Some((service, _)) => self.twin.admits(service.id(), self.tuple)?,
            None => None,
        };
        let leaves = matches!(run.verdict, Verdict::Tx | Verdict::Redirect);
        Ok(Explanation {
            packet: QuestionStatus {
                protocol: self.question.protocol,
                source: self.question.source.to_string(),
                destination: self.question.destination.to_string(),
                tcp_flags: (self.question.protocol == Protocol::Tcp)
                    .then(|| self.question.tcp_flags.to_string()),
                fragment: self.question.fragment,
                interface: self.interface(self.ifindex),
                bytes: bytes as u64,
            },
            fate,
            reason: reason.map(|reason| reason.name().to_owned()),
            description: reason.map(|reason| reason.description().to_owned()),
            service: service_id.map(|id| self.service(id, source_allowed)),
            slot: slot.map(|(service, (index, slot))| MetSlot {
                index,
                of: service.ring_size(),
                state: if slot.is_clean() {
                    SlotState::Clean
                } else if slot.is_pinned() {
                    SlotState::Pinned
                } else {
                    SlotState::Changing
                },
                owner: self.backend_name(slot.owner),
                origin: self.backend_name(slot.origin),
            }),
            flow: met.map(|entry| self.flow(&entry)),
            begins_flow: left.is_some_and(|entry| {
                met.is_none_or(|met| {
                    met.backend != entry.backend
                        || state::is_closing(met.state) && !state::is_closing(entry.state)
                })
            }),
            backend: match backend {
                Some(id) => Some(self.backend(id)?),
                None => None,
            },
            sent: if leaves {
                Some(self.sent(fate, backend)?)
            } else {
                None
            },
        })
    }

    fn service(&self, id: u32, source_allowed: Option<bool>) -> MetService {
        let service = self.names.services.get(&id);
        MetService {
            name: service.map(|service| service.name.clone()),
            address: service.map(|service| service.address.clone()),
            mode: service.map(|service| service.mode),
            scheduler: service.map(|service| service.scheduler),
            source_allowed,
        }
    }

    fn backend_name(&self, id: u32) -> Option<String> {
        let name = self.names.backends.get(&id).cloned();
        name.or_else(|| (id != NO_BACKEND && id != NOBODY).then(|| format!("removed backend {id}")))
    }

    fn backend(&self, id: u32) -> datapath::Result<MetBackend> {
        let entry = self.twin.backend(id)?;
        let state = if entry.state == BackendState::Up as u8 {
            "up"
        } else if entry.state == BackendState::Down as u8 {
            "down"
        } else if entry.state == BackendState::Resetting as u8 {
            "resetting"
        } else {
            "absent"
        };
        Ok(MetBackend {
            address: self.names.backends.get(&id).cloned(),
            state: state.to_owned(),
        })
    }

    fn flow(&self, entry: &Entry) -> MetFlow {
        MetFlow {
            state: if state::is_closing(entry.state) {
                FlowState::Closing
            } else if entry.state & (state::CONFIRMED | state::JOINED) != 0
                || entry.kind == Kind::Reply
            {
                FlowState::Established
            } else {
                FlowState::Embryonic
            },
            backend: self.names.backends.get(&entry.backend).cloned(),
            kind: match entry.kind {
                Kind::Flow => "flow",
                Kind::Reply => "reply",
                Kind::Pin => "pin",
            }
            .to_owned(),
        }
    }

    fn interface(&self, ifindex: u32) -> String {
        let port = self.names.interfaces.get(&ifindex);
        port.map_or_else(|| format!("interface {ifindex}"), |port| port.name.clone())
    }

    fn sent(&self, fate: Fate, backend: Option<u32>) -> datapath::Result<Sent> {
        let run = &self.trace.run;
        let entry = match backend {
            Some(id) => Some(self.twin.backend(id)?),
            None => None,
        };
        let path = match fate {
            Fate::ToClient => self.trace.left.map(|entry| entry.path),
            _ => entry.map(|entry| entry.path),
        };
        let ifindex = match run.verdict {
            Verdict::Redirect => path.map_or(0, |path| path.ifindex),
            _ => self.ifindex,
        };
        let outlet = self
            .names
            .interfaces
            .get(&ifindex)
            .map_or(ifindex, |port| port.outlet);
        let is_gue = entry.is_some_and(|entry| {
            let service = self.names.services.get(&entry.service);
            service.is_some_and(|service| service.mode == Mode::Gue)
        });
        let gue_port = entry
            .filter(|_| is_gue)
            .map(|entry| u16::from_be(entry.port));
        Ok(Sent {
            interface: self.interface(outlet),
            bytes: run.frame.len() as u64,
            headers: read::headers(&run.frame, gue_port),
        })
    }
}
