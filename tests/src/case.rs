//! Cases: a world, and what becomes of packets in it.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    counters::{Counters, Direction, DropKey},
    drop_reason::DropReason,
};

use crate::{
    flow::Flow,
    icmp,
    packet::Packet,
    world::{CLIENT_IF, World},
};

/// What a packet finds, and what becomes of it and of those that follow.
pub struct Case {
    /// What is tested, in a line.
    pub name: String,
    pub(crate) world: World,
    pub(crate) steps: Vec<Step>,
}

/// One thing that happens in a [`Case`].
pub struct Step {
    pub(crate) label: String,
    pub(crate) action: Action,
}

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
    /// Pool and number of the ports that are taken.
    pub taken: BTreeSet<(u32, u16)>,
    /// Pool and number of the ports that are given back.
    pub freed: BTreeSet<(u32, u16)>,
}

impl Change {
    fn counters(&mut self, backend: u32) -> &mut Counters {
        self.counters.entry(backend).or_default()
    }

    fn dropped(reason: DropReason, direction: Direction, service: u32, backend: u32) -> Self {
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

    /// The flow begins.
    pub fn begin(&mut self, flow: &Flow) {
        self.counters(flow.backend).new_flows += 1;
        self.flows += 1;
        self.taken.extend(flow.pool_port());
    }

    /// The program takes the flow's entries away.
    pub fn remove(&mut self, flow: &Flow) {
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
            world: World::standard(),
            steps: Vec::new(),
        }
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
        let mut change = Change::default();
        let counters = change.counters(flow.backend);
        counters.packets = 1;
        counters.bytes = request.ip_length() as u64;
        let sent = Outcome::Sent(flow.backend_link.ifindex, flow.delivered(request).build());
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
            .reply("acceptance", flow, &flow.acceptance())
    }

    /// A packet from the backend reaches the client.
    #[must_use]
    pub fn reply(self, label: impl Into<String>, flow: &Flow, reply: &Packet) -> Self {
        let mut change = Change::default();
        let counters = change.counters(flow.backend);
        counters.reply_packets = 1;
        counters.reply_bytes = reply.ip_length() as u64;
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

    /// A packet from the backend is dropped on its way to the client.
    #[must_use]
    pub fn refuse_reply(
        self,
        label: impl Into<String>,
        flow: &Flow,
        frame: Vec<u8>,
        reason: DropReason,
    ) -> Self {
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
        let change = Change::dropped(reason, Direction::Forward, flow.service, flow.backend);
        let ifindex = flow.client_link.ifindex;
        let told = Outcome::Sent(ifindex, icmp::too_big(request, mtu));
        self.frame(label, ifindex, request.build(), told, change)
    }

    /// A packet from the backend is too big for the client's way: it is dropped, and the
    /// backend told that `mtu` bytes pass.
    #[must_use]
    pub fn refuse_too_big_reply(
        self,
        label: impl Into<String>,
        flow: &Flow,
        reply: &Packet,
        mtu: u16,
    ) -> Self {
        let reason = DropReason::TooBig;
        let change = Change::dropped(reason, Direction::Reply, flow.service, flow.backend);
        let ifindex = flow.backend_link.ifindex;
        let told = Outcome::Sent(ifindex, icmp::too_big(reply, mtu));
        self.frame(label, ifindex, reply.build(), told, change)
    }

    /// A frame goes to the kernel as it came, and leaves no trace.
    #[must_use]
    pub fn pass(self, label: impl Into<String>, ifindex: u32, frame: Vec<u8>) -> Self {
        self.frame(label, ifindex, frame, Outcome::Passed, Change::default())
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

    /// The last step's packet ends the flow.
    #[must_use]
    pub fn ending(self, flow: &Flow) -> Self {
        self.changing(|change| change.counters(flow.backend).ended_flows += 1)
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
        let label = label.into();
        self.steps.push(Step { label, action });
        self
    }
}
