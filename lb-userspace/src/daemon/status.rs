//! What is, in the form that people and programs see.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lb_common::{counters::Direction, drop_reason::DropReason};

use super::{
    balancer::{Attached, Attachment, Balancer},
    ledger::{Drops, Figures, Reading},
    plane::Plane,
};
use crate::{
    neighbour::NextHopState,
    reconcile::{self, TakenPorts},
    state::{
        BackendSpec, BackendState, BackendStatus, DropStatus, InterfaceStatus, NextHopStatus,
        ServiceSpec, ServiceStatus, Status,
    },
};

pub(super) fn status<P: Plane>(balancer: &Balancer<P>, reading: &Reading, now: Duration) -> Status {
    let drops = |reason: &DropReason| {
        let packets = reading.drops.get(&(*reason as u16));
        (
            reason.name().to_owned(),
            packets.copied().unwrap_or_default(),
        )
    };
    let services = balancer.desired.services();
    let mut taken = TakenPorts::new(&balancer.desired);
    Status {
        services: services
            .map(|spec| service(balancer, reading, spec, &mut taken, now))
            .collect(),
        drops: DropReason::ALL
            .iter()
            .map(drops)
            .collect::<BTreeMap<_, _>>(),
        interfaces: balancer.attached.iter().map(interface).collect(),
        configuration: None,
    }
}

fn interface(attached: &Attached) -> InterfaceStatus {
    let (state, mode, error) = match &attached.state {
        Attachment::On { mode, .. } => ("attached", mode.as_str(), None),
        Attachment::Gone => ("gone", "none", None),
        Attachment::Back { error, .. } => ("not-attached", "none", error.clone()),
    };
    InterfaceStatus {
        name: attached.name.clone(),
        state: state.to_owned(),
        mode: mode.to_owned(),
        error,
    }
}

fn service<P: Plane>(
    balancer: &Balancer<P>,
    reading: &Reading,
    spec: &ServiceSpec,
    taken: &mut TakenPorts<'_>,
    now: Duration,
) -> ServiceStatus {
    let name: Arc<str> = spec.name.as_str().into();
    let ids = balancer.reconciler.ids();
    let figures = ids
        .services
        .get(&name)
        .and_then(|id| reading.services.get(&id).cloned())
        .unwrap_or_default();
    let backends = spec.backends.iter().map(|backend| {
        let id = ids.backends.get(&(Arc::clone(&name), backend.address));
        let figures = id.and_then(|id| reading.backends.get(&id).cloned());
        let figures = figures.unwrap_or_default();
        self::backend(balancer, spec, backend, &figures, taken, now)
    });
    ServiceStatus {
        name: spec.name.clone(),
        address: spec.address.to_string(),
        protocol: spec.protocol,
        mode: spec.mode,
        scheduler: spec.scheduler,
        packets: figures.counters.packets,
        bytes: figures.counters.bytes,
        reply_packets: figures.counters.reply_packets,
        reply_bytes: figures.counters.reply_bytes,
        new_flows: figures.counters.new_flows,
        ended_flows: ended(&figures),
        active_flows: active(spec, &figures),
        active_is_exact: spec.has_entries(),
        drops: drops(&figures.drops),
        backends: backends.collect(),
    }
}

fn backend<P: Plane>(
    balancer: &Balancer<P>,
    spec: &ServiceSpec,
    backend: &BackendSpec,
    figures: &Figures,
    taken: &mut TakenPorts<'_>,
    now: Duration,
) -> BackendStatus {
    let health = balancer.health_of(&spec.name, backend.address);
    let state = match health {
        Some(health) if !health.is_up => BackendState::Down,
        _ if !backend.takes_flows() => BackendState::Draining,
        _ => BackendState::Up,
    };
    let hop = balancer.hop(backend.address.ip);
    let mut next_hop = hop.map_or_else(
        || NextHopStatus {
            // It is being looked up.
            state: "no-route".to_owned(),
            error: None,
            address: None,
            interface: None,
            mac: None,
        },
        |hop| hop.status(&balancer.ifindexes()),
    );
    if let Some(hop) = hop
        && hop.state == NextHopState::Resolved
        && let Some(obstacle) = reconcile::obstacle(spec, backend, hop, taken)
    {
        next_hop.state = obstacle.as_str().to_owned();
        next_hop.error = Some(obstacle.reason());
    }
    BackendStatus {
        address: backend.address.to_string(),
        weight: backend.weight,
        state,
        health: health.map_or_else(crate::health::unknown, |health| health.status.clone()),
        next_hop,
        drain: balancer
            .drain(&spec.name, backend.address)
            .map(|drain| drain.status(now, active(spec, figures))),
        packets: figures.counters.packets,
        bytes: figures.counters.bytes,
        reply_packets: figures.counters.reply_packets,
        reply_bytes: figures.counters.reply_bytes,
        new_flows: figures.counters.new_flows,
        ended_flows: ended(figures),
        active_flows: active(spec, figures),
        drops: drops(&figures.drops),
    }
}

fn ended(figures: &Figures) -> u64 {
    figures.counters.ended_flows + figures.expired
}

/// Flows of a service that are live. Where they have no entries, and nobody knows which of
/// them are silent for good, those that began less those whose end was seen. Per-CPU counters
/// are not read in one moment: the end of a flow may be seen before its begin.
pub(super) fn active(spec: &ServiceSpec, figures: &Figures) -> u64 {
    if spec.has_entries() {
        figures.live
    } else {
        figures.counters.new_flows.saturating_sub(ended(figures))
    }
}

fn drops(drops: &Drops) -> Vec<DropStatus> {
    drops
        .iter()
        .map(|((reason, direction), packets)| DropStatus {
            reason: DropReason::from_number(*reason).map_or_else(
                || format!("reason-{reason}"),
                |reason| reason.name().to_owned(),
            ),
            direction: if *direction == Direction::Forward as u16 {
                "forward"
            } else {
                "reply"
            }
            .to_owned(),
            packets: *packets,
        })
        .collect()
}
