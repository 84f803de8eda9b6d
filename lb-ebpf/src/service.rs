//! Is it ours? Services by address, port and protocol.

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::{
    Runtime,
    service::{PortKey, Service, Vip},
};

use crate::{
    family::Family,
    maps::{PORTS, RUNTIME},
    packet::{Packet, Protocol, TCP, UDP},
};

/// The service that a packet is sent to: one on its very address and port, else of those
/// on its address, or the longest prefix of it, the one with the fewest ports.
#[inline(always)]
pub fn find<F: Family>(packet: &Packet<'_, F>) -> Option<&'static Service> {
    // SAFETY: the program never writes the table, and an entry that the daemon
    // replaces stays readable until the program has ended (RCU).
    let exact = unsafe { F::services().get(F::service_key(&packet.tuple)) };
    if exact.is_some() || switches() & Runtime::WIDE == 0 {
        return exact;
    }
    let vip = vip::<F>(F::service_address(&packet.tuple))?;
    let (_, port) = F::ports(&packet.tuple);
    PORTS.get(&Key::new(
        PortKey::ONE_PORT,
        PortKey {
            vip: vip.id,
            protocol: u16::from(F::protocol(&packet.tuple)),
            port,
        },
    ))
}

/// Whether any service has this address and protocol.
#[inline(always)]
pub fn owns<F: Family>(address: F::Address, protocol: Protocol) -> bool {
    let has = |protocols| vip::<F>(address).is_some_and(|vip| vip.flags & protocols != 0);
    match protocol {
        Protocol::Known(TCP) => has(Vip::TCP),
        Protocol::Known(UDP) => has(Vip::UDP),
        Protocol::Known(_) => false,
        Protocol::Unknown => has(Vip::TCP | Vip::UDP),
    }
}

/// What holds for a service address, or the longest prefix of it that is one.
#[inline(always)]
fn vip<F: Family>(address: F::Address) -> Option<&'static Vip> {
    // SAFETY: as in `find`.
    let exact = unsafe { F::vips().get(address) };
    if exact.is_some() || switches() & Runtime::PREFIXES == 0 {
        return exact;
    }
    F::prefixes().get(&Key::new(F::ADDRESS_BITS, address))
}

/// The flags of [`Runtime`].
#[inline(always)]
fn switches() -> u32 {
    RUNTIME.get(0).map_or(0, |runtime| runtime.flags)
}
