//! Is it ours? Services by address, port and protocol.

use lb_common::{Runtime, service::Service};

use crate::{
    family::Family,
    maps::RUNTIME,
    packet::{Packet, Protocol, TCP, UDP},
};

/// The service that a packet is sent to: one on its port, else one on any port.
#[inline(always)]
pub fn find<F: Family>(packet: &Packet<'_, F>) -> Option<&'static Service> {
    let (_, port) = F::ports(&packet.tuple);
    if let Some(service) = on_port::<F>(packet, port) {
        return Some(service);
    }
    let flags = RUNTIME.get(0).map_or(0, |runtime| runtime.flags);
    if flags & Runtime::ANY_PORT == 0 {
        return None;
    }
    on_port::<F>(packet, 0)
}

#[inline(always)]
fn on_port<F: Family>(packet: &Packet<'_, F>, port: u16) -> Option<&'static Service> {
    // SAFETY: the program never writes the table, and an entry that the daemon
    // replaces stays readable until the program has ended (RCU).
    unsafe { F::services().get(F::service_key(&packet.tuple, port)) }
}

/// Whether any service has this address and protocol.
#[inline(always)]
pub fn owns<F: Family>(address: F::Address, protocol: Protocol) -> bool {
    let has = |protocol| F::vips().get_ptr(F::vip_key(address, protocol)).is_some();
    match protocol {
        Protocol::Known(protocol) => has(protocol),
        Protocol::Unknown => has(TCP) || has(UDP),
    }
}
