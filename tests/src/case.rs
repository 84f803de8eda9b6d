//! Cases: a world, and what becomes of packets in it.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    counters::{Counters, Direction, DropKey},
    drop_reason::DropReason,
};

use crate::{
    flow::{Flow, Kind},
    fragment::First,
    icmp,
    packet::{Packet, Transport},
    reset::{reset_for, reset_onward},
    world::{CLIENT_IF, World},
};

/// What a packet finds, and what becomes of it and of those that follow.
pub struct Case {
    /// What is tested, in a line.
    pub name: String,
    /// The kind of service that it is about, if it is about one, and what is sent to it.
    pub(crate) subject: Option<(Kind, String)>,
    pub(crate) world: World,
    pub(crate) steps: Vec<Step>,
    /// The flow clock stands still while it runs.
    pub(crate) is_one_tick: bool,
}

/// One thing that happens in a [`Case`].
pub struct Step {
    pub(crate) label: String,
    /// It only makes ready for what is tested.
    pub(crate) is_preparation: bool,
    pub(crate) action: Action,
}

#[expect(clippy::large_enum_variant, reason = "nearly all are frames")]
pub(crate) enum Action {
    /// A frame comes in.
    Frame {
        ifindex: u32,
        frame: Vec<u8>,
        outcome: Outcome,
        change: Change,
    },
    /// The daemon changes the maps.
    Reconcile(Box<dyn Fn(&mut World) + Send + Sync>),
    /// The daemon removes a flow that was silent for too long.
    Sweep(Box<Flow>),
    /// This many ticks of the flow clock pass.
    Wait(u32),
    /// So much time passes for limits that this many tokens come.
    Fill(u32),
}

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It leaves by this interface, with these bytes.
    Sent(u32, Vec<u8>),
    /// The kernel gets it as it came.
    Passed,
    /// It is gone.
    Dropped,
}

/// How counters and tables change with a packet. What is not here stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Counters by backend id.
    pub counters: BTreeMap<u32, Counters>,
    /// Drops by key.
    pub drops: BTreeMap<DropKey, u64>,
    /// Entries of each of the two flow tables.
    pub flows: i64,
    /// Entries of flows that are not translated.
    pub pins: i64,
    /// Pool and number of the ports that are taken.
    pub taken: BTreeSet<(u32, u16)>,
    /// Pool and number of the ports that are given back.
    pub freed: BTreeSet<(u32, u16)>,
    /// First fragments that are remembered.
    pub fragments: BTreeSet<First>,
    /// Errors that are sent and taken from the budget of this tick.
    pub errors: u32,
    /// Tokens that are taken from buckets of sources.
    pub source_tokens: i64,
    /// Tokens that are taken from buckets of services.
    pub service_tokens: i64,
    /// Entries of flows that have spoken; `None` where the packet does not tell.
    pub spoken: Option<u64>,
}

impl Change {
    fn counters(&mut self, backend: u32) -> &mut Counters {
        self.counters.entry(backend).or_default()
    }

    /// A packet of `bytes` bytes from the client goes to the flow's backend. It tells
    /// nothing of the flow.
    #[must_use]
    pub fn forwarded(flow: &Flow, bytes: usize) -> Self {
        let mut change = Self {
            spoken: Some(0),
            ..Self::default()
        };
        let counters = change.counters(flow.backend);
        (counters.packets, counters.bytes) = (1, bytes as u64);
        change
    }

    /// A packet of `bytes` bytes from the flow's backend goes to the client. It tells
    /// nothing of the flow.
    #[must_use]
    pub fn replied(flow: &Flow, bytes: usize) -> Self {
        let mut change = Self {
            spoken: Some(0),
            ..Self::default()
        };
        let counters = change.counters(flow.backend);
        (counters.reply_packets, counters.reply_bytes) = (1, bytes as u64);
        change
    }

    /// What a packet from the client tells of its flow.
    #[must_use]
    pub fn speaking(mut self, flow: &Flow, request: &Packet) -> Self {
        if flow.kind.translates() {
            self.spoken = Some(1);
            return self;
        }
        // Without flows the flags are all that is known.
        if let Transport::Tcp(tcp) = &request.transport {
            let counters = self.counters(flow.backend);
            counters.new_flows += u64::from(tcp.syn && !tcp.ack);
            counters.ended_flows += u64::from(tcp.fin || tcp.rst);
        }
        self
    }

    /// A packet is dropped.
    #[must_use]
    pub fn dropped(reason: DropReason, direction: Direction, service: u32, backend: u32) -> Self {
        let key = DropKey {
            service,
            backend,
            reason: reason as u16,
            direction: direction as u16,
            reserved: 0,
        };
        Self {
            drops: [(key, 1)].into(),
            ..Self::default()
        }
    }

    /// The flow begins, if flows of its kind are kept.
    pub fn begin(&mut self, flow: &Flow) {
        if !flow.kind.translates() {
            return;
        }
        self.spoken = self.spoken.map(|spoken| spoken + 1);
        self.counters(flow.backend).new_flows += 1;
        self.flows += 1;
        self.taken.extend(flow.pool_port());
    }

    /// A packet goes to the backend without the entry that its flow should have.
    pub fn untracked(&mut self, backend: u32) {
        self.counters(backend).untracked += 1;
    }

    /// The program takes the flow's entries away, if flows of its kind are kept.
    pub fn remove(&mut self, flow: &Flow) {
        if !flow.kind.translates() {
            return;
        }
        self.flows -= 1;
        self.freed.extend(flow.pool_port());
    }
}

impl Case {
    /// A case in the standard world.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            subject: None,
            world: World::standard(),
            steps: Vec::new(),
            is_one_tick: false,
        }
    }

    /// A case about one kind of service, in the standard world. `what` is a row of
    /// `docs/conformance.md`.
    #[must_use]
    pub fn of(kind: Kind, what: impl Into<String>) -> Self {
        let what = what.into();
        Self {
            subject: Some((kind, what.clone())),
            ..Self::new(format!("{kind}: {what}"))
        }
    }

    /// The same case, but the flow clock stands still.
    #[must_use]
    pub fn in_one_tick(mut self) -> Self {
        self.is_one_tick = true;
        self
    }

    /// The same case in another world.
    #[must_use]
    pub fn given(mut self, change: impl FnOnce(&mut World)) -> Self {
        change(&mut self.world);
        self
    }

    /// A packet from the client reaches the backend.
    #[must_use]
    pub fn forward(self, label: impl Into<String>, flow: &Flow, request: &Packet) -> Self {
        let change = Change::forwarded(flow, request.ip_length()).speaking(flow, request);
        let sent = Outcome::Sent(flow.backend_link.ifindex, flow.delivered_frame(request));
        self.frame(
            label,
            flow.client_link.ifindex,
            request.build(),
            sent,
            change,
        )
    }

    /// The first packet from the client reaches the backend and begins the flow.
    #[must_use]
    pub fn begin(self, label: impl Into<String>, flow: &Flow, request: &Packet) -> Self {
        self.forward(label, flow, request)
            .changing(|change| change.begin(flow))
    }

    /// The flow is established.
    #[must_use]
    pub fn established(self, flow: &Flow) -> Self {
        self.begin("opening", flow, &flow.opening())
            .preparing()
            .reply("acceptance", flow, &flow.acceptance())
            .preparing()
            .forward("confirmation", flow, &flow.confirmation())
            .preparing()
    }

    /// A packet from the backend reaches the client. In the modes that don't translate it
    /// does so without the balancer, which hands one that comes to it to the host.
    #[must_use]
    pub fn reply(self, label: impl Into<String>, flow: &Flow, reply: &Packet) -> Self {
        if !flow.kind.translates() {
            return self.pass(label, flow.backend_link.ifindex, reply.build());
        }
        let mut change = Change::replied(flow, reply.ip_length());
        change.spoken = Some(1);
        let sent = Outcome::Sent(flow.client_link.ifindex, flow.returned(reply).build());
        self.frame(
            label,
            flow.backend_link.ifindex,
            reply.build(),
            sent,
            change,
        )
    }

    /// A packet from the client is dropped before a backend was chosen.
    #[must_use]
    pub fn refuse(
        self,
        label: impl Into<String>,
        flow: &Flow,
        request: &Packet,
        reason: DropReason,
    ) -> Self {
        self.refuse_frame(label, flow, request.build(), reason)
    }

    /// Like [`Self::refuse`], for a frame that no [`Packet`] describes.
    #[must_use]
    pub fn refuse_frame(
        self,
        label: impl Into<String>,
        flow: &Flow,
        frame: Vec<u8>,
        reason: DropReason,
    ) -> Self {
        let change = Change::dropped(reason, Direction::Forward, flow.service, 0);
        let ifindex = flow.client_link.ifindex;
        self.frame(label, ifindex, frame, Outcome::Dropped, change)
    }

    /// A packet from the client is dropped on its way to the backend.
    #[must_use]
    pub fn lose(
        self,
        label: impl Into<String>,
        flow: &Flow,
        request: &Packet,
        reason: DropReason,
    ) -> Self {
        let change = Change::dropped(reason, Direction::Forward, flow.service, flow.backend);
        let ifindex = flow.client_link.ifindex;
        self.frame(label, ifindex, request.build(), Outcome::Dropped, change)
    }

    /// A frame to a service address that could not be read is dropped.
    #[must_use]
    pub fn discard(self, label: impl Into<String>, frame: Vec<u8>, reason: DropReason) -> Self {
        let change = Change::dropped(reason, Direction::Forward, 0, 0);
        self.frame(label, CLIENT_IF, frame, Outcome::Dropped, change)
    }

    /// A packet from the backend is dropped on its way to the client; handed to the host in
    /// the modes that don't translate.
    #[must_use]
    pub fn refuse_reply(
        self,
        label: impl Into<String>,
        flow: &Flow,
        frame: Vec<u8>,
        reason: DropReason,
    ) -> Self {
        if !flow.kind.translates() {
            return self.pass(label, flow.backend_link.ifindex, frame);
        }
        let change = Change::dropped(reason, Direction::Reply, flow.service, flow.backend);
        let ifindex = flow.backend_link.ifindex;
        self.frame(label, ifindex, frame, Outcome::Dropped, change)
    }

    /// A packet from the client is too big for the backend's way: it is dropped, and the
    /// client told that `mtu` bytes pass.
    #[must_use]
    pub fn lose_too_big(
        self,
        label: impl Into<String>,
        flow: &Flow,
        request: &Packet,
        mtu: u16,
    ) -> Self {
        let reason = DropReason::TooBig;
        let mut change = Change::dropped(reason, Direction::Forward, flow.service, flow.backend);
        change.errors = 1;
        let ifindex = flow.client_link.ifindex;
        let told = Outcome::Sent(ifindex, icmp::too_big(request, mtu));
        self.frame(label, ifindex, request.build(), told, change)
    }

    /// A packet from the backend is too big for the client's way: it is dropped, and the
    /// backend told that `mtu` bytes pass; handed to the host in the modes that don't
    /// translate.
    #[must_use]
    pub fn refuse_too_big_reply(
        self,
        label: impl Into<String>,
        flow: &Flow,
        reply: &Packet,
        mtu: u16,
    ) -> Self {
        if !flow.kind.translates() {
            return self.pass(label, flow.backend_link.ifindex, reply.build());
        }
        let reason = DropReason::TooBig;
        let mut change = Change::dropped(reason, Direction::Reply, flow.service, flow.backend);
        change.errors = 1;
        let ifindex = flow.backend_link.ifindex;
        let told = Outcome::Sent(ifindex, icmp::too_big(reply, mtu));
        self.frame(label, ifindex, reply.build(), told, change)
    }

    /// A packet of a connection whose backend's drain is over: it is dropped, and the client
    /// gets an RST.
    #[must_use]
    pub fn reset(self, label: impl Into<String>, flow: &Flow, request: &Packet) -> Self {
        let reason = DropReason::Drained;
        let mut change = Change::dropped(reason, Direction::Forward, flow.service, flow.backend);
        change.spoken = Some(flow.kind.translates().into());
        let ifindex = flow.client_link.ifindex;
        let told = Outcome::Sent(ifindex, reset_for(request).build());
        self.frame(label, ifindex, request.build(), told, change)
    }

    /// The same, but the backend, which has not been told, gets the RST.
    #[must_use]
    pub fn reset_onward(self, label: impl Into<String>, flow: &Flow, request: &Packet) -> Self {
        let reason = DropReason::Drained;
        let mut change = Change::dropped(reason, Direction::Forward, flow.service, flow.backend);
        change.spoken = Some(1);
        let told = reset_onward(request, flow.source, flow.server);
        let told = flow.backend_link.outgoing(told).build();
        let told = Outcome::Sent(flow.backend_link.ifindex, told);
        let ifindex = flow.client_link.ifindex;
        self.frame(label, ifindex, request.build(), told, change)
    }

    /// A packet from the backend of a translated connection in whose place the client, which
    /// has not been told, gets an RST.
    #[must_use]
    pub fn reset_back_onward(self, label: impl Into<String>, flow: &Flow, reply: &Packet) -> Self {
        let reason = DropReason::Drained;
        let mut change = Change::dropped(reason, Direction::Reply, flow.service, flow.backend);
        change.spoken = Some(1);
        let told = reset_onward(reply, flow.vip, flow.client);
        let told = flow.client_link.outgoing(told).build();
        let told = Outcome::Sent(flow.client_link.ifindex, told);
        let ifindex = flow.backend_link.ifindex;
        self.frame(label, ifindex, reply.build(), told, change)
    }

    /// The same of a packet from the backend, which gets the RST; handed to the host in the
    /// modes that don't translate.
    #[must_use]
    pub fn reset_back(self, label: impl Into<String>, flow: &Flow, reply: &Packet) -> Self {
        if !flow.kind.translates() {
            return self.pass(label, flow.backend_link.ifindex, reply.build());
        }
        let reason = DropReason::Drained;
        let mut change = Change::dropped(reason, Direction::Reply, flow.service, flow.backend);
        change.spoken = Some(1);
        let ifindex = flow.backend_link.ifindex;
        let told = Outcome::Sent(ifindex, reset_for(reply).build());
        self.frame(label, ifindex, reply.build(), told, change)
    }

    /// A frame goes to the kernel as it came, and leaves no trace.
    #[must_use]
    pub fn pass(self, label: impl Into<String>, ifindex: u32, frame: Vec<u8>) -> Self {
        self.frame(label, ifindex, frame, Outcome::Passed, Change::default())
    }

    /// The last step only makes ready for what is tested.
    fn preparing(mut self) -> Self {
        if let Some(step) = self.steps.last_mut() {
            step.is_preparation = true;
        }
        self
    }

    /// Time passes, in ticks of the flow clock.
    #[must_use]
    pub fn wait(self, ticks: u32) -> Self {
        self.step(format!("{ticks} ticks pass"), Action::Wait(ticks))
    }

    /// Time passes for limits: this many [`INTERVAL`](crate::INTERVAL)s.
    #[must_use]
    pub fn fill(self, tokens: u32) -> Self {
        self.step(format!("{tokens} tokens come"), Action::Fill(tokens))
    }

    /// The last step's packet takes these tokens: of its source, and of the service.
    #[must_use]
    pub fn taking(self, source: i64, service: i64) -> Self {
        self.changing(|change| {
            change.source_tokens += source;
            change.service_tokens += service;
        })
    }

    /// The last step's packet is a first fragment that is remembered.
    #[must_use]
    pub fn remembering(self, first: &Packet) -> Self {
        let first = First::of(first);
        self.changing(|change| {
            change.fragments.insert(first);
        })
    }

    /// The change of the last step's counters is also this.
    #[must_use]
    pub fn changing(mut self, edit: impl FnOnce(&mut Change)) -> Self {
        match self.steps.last_mut() {
            Some(Step {
                action: Action::Frame { change, .. },
                ..
            }) => edit(change),
            _ => panic!("`{}`: the last step is no frame", self.name),
        }
        self
    }

    /// With the last step's packet there are that many more entries of flows that are not
    /// translated.
    #[must_use]
    pub fn pinning(self, more: i64) -> Self {
        self.changing(|change| change.pins += more)
    }

    /// For the last step's packet the counters of a backend change like this, too.
    #[must_use]
    pub fn counting(self, set: impl FnOnce(&mut Counters), backend: u32) -> Self {
        self.changing(|change| {
            let counters = change.counters(backend);
            (counters.new_flows, counters.ended_flows) = (0, 0);
            set(counters);
        })
    }

    /// The last step's packet is another, of the same flow.
    #[must_use]
    pub fn with_request(self, flow: &Flow, request: &Packet) -> Self {
        let bytes = request.ip_length() as u64;
        self.changing(|change| change.counters(flow.backend).bytes = bytes)
            .with_frames(request.build(), flow.delivered_frame(request))
    }

    /// The last step's packet comes and leaves with these bytes.
    ///
    /// # Panics
    ///
    /// Where the last step's packet does not leave.
    #[must_use]
    pub fn with_frames(mut self, comes: Vec<u8>, leaves: Vec<u8>) -> Self {
        match self.steps.last_mut() {
            Some(Step {
                action:
                    Action::Frame {
                        frame,
                        outcome: Outcome::Sent(_, sent),
                        ..
                    },
                ..
            }) => (*frame, *sent) = (comes, leaves),
            _ => panic!("`{}`: the last step sends no frame", self.name),
        }
        self
    }

    /// The last step's packet ends the flow. Where flows are not kept, what is counted as an
    /// end follows from the flags of each packet alone.
    #[must_use]
    pub fn ending(self, flow: &Flow) -> Self {
        if !flow.kind.translates() {
            return self;
        }
        self.changing(|change| change.counters(flow.backend).ended_flows += 1)
    }

    /// The last step's packet is of a flow that is reset, and the first that says so: its end
    /// counts, also where nothing else is counted of it.
    #[must_use]
    pub fn ending_by_reset(self, flow: &Flow) -> Self {
        self.counting(|counters| counters.ended_flows = 1, flow.backend)
    }

    /// For the last step's packet the program takes the entries of an old flow away.
    #[must_use]
    pub fn removing(self, flow: &Flow) -> Self {
        self.changing(|change| change.remove(flow))
    }

    /// The daemon changes the maps.
    #[must_use]
    pub fn then(
        self,
        label: impl Into<String>,
        change: impl Fn(&mut World) + Send + Sync + 'static,
    ) -> Self {
        self.step(label, Action::Reconcile(Box::new(change)))
    }

    /// The daemon removes a flow that was silent for too long.
    #[must_use]
    pub fn sweep(self, flow: &Flow) -> Self {
        self.step("sweep", Action::Sweep(Box::new(flow.clone())))
    }

    /// A frame comes in.
    #[must_use]
    pub fn frame(
        self,
        label: impl Into<String>,
        ifindex: u32,
        frame: Vec<u8>,
        outcome: Outcome,
        change: Change,
    ) -> Self {
        let action = Action::Frame {
            ifindex,
            frame,
            outcome,
            change,
        };
        self.step(label, action)
    }

    fn step(mut self, label: impl Into<String>, action: Action) -> Self {
        self.steps.push(Step {
            label: label.into(),
            is_preparation: false,
            action,
        });
        self
    }
}
