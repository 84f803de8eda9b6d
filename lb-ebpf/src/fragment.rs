//! Fragments: later ones go where the first one went, because the ports of the first are
//! remembered.

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    programs::XdpContext,
};
use lb_common::{
    drop_reason::DropReason,
    fragment::{FRAGMENT_TICKS, Fragment},
    ring::NO_BACKEND,
};

use crate::{
    family::{Family, Position},
    forward,
    link::Link,
    maps::clock,
    packet::{Packet, Part, Payload, Protocol, Transport},
    service,
    verdict::{Refused, malformed},
};

/// Largest IP packet, its header not counted.
const MAX_PAYLOAD: u32 = 65_535;

/// The path of a fragment of TCP or UDP.
#[inline(always)]
pub fn path<F: Family>(ctx: &XdpContext, link: &Link) -> u32 {
    let Some(ip) = F::header(ctx, link) else {
        return XDP_PASS;
    };
    let Some(draft) = F::draft() else {
        return XDP_PASS;
    };
    let position = F::position(ctx, link.payload, ip);
    // SAFETY: the draft belongs to this CPU, and a program does not migrate or re-enter
    // itself while it runs. Making a flow uses other parts of it.
    let key = unsafe { &mut (*draft).fragment_key };
    // SAFETY: as above.
    let first = unsafe { &raw mut (*draft).fragment };
    *key = F::fragment_key(ip, position.protocol, position.identification);
    let payload = Payload {
        protocol: position.protocol,
        headers: position.headers,
    };
    let earlier = known::<F>(key);
    let packet = if position.offset == 0 {
        // SAFETY: as above.
        begin::<F>(ctx, link, ip, &payload, earlier, unsafe { &mut *first })
    } else {
        // SAFETY: as above. Where the first one went, for `quic::named`.
        unsafe { (*first).backend = earlier.backend };
        follow::<F>(link, ip, &payload, &position, earlier)
    };
    let packet = match packet {
        Ok(packet) => packet,
        // Ours, because the first was.
        Err(reason) if earlier.is_known => return Refused::unknown(reason).drop(ctx),
        Err(reason) => {
            let protocol = Protocol::Known(position.protocol);
            return malformed::<F>(ctx, F::destination(ip), protocol, reason);
        }
    };
    let action = forward::packet(ctx, &packet);
    if position.offset == 0 && is_remembered::<F>(action, key) {
        // SAFETY: as above. `quic::named` may have written to it.
        let _full = F::fragments().insert(key, unsafe { &*first }, 0);
    }
    action
}

/// Whether later fragments need to know of a first one: it was forwarded, or it is the
/// host's own, but sent to a service address.
#[inline(always)]
fn is_remembered<F: Family>(action: u32, key: &F::FragmentKey) -> bool {
    if action != XDP_PASS {
        return action != XDP_DROP;
    }
    let (destination, protocol) = F::fragment_owner(key);
    service::owns::<F>(destination, Protocol::Known(protocol))
}

/// What is remembered of the first fragment of a packet, nothing if it has not been seen
/// or too long ago.
#[inline(always)]
fn known<F: Family>(key: &F::FragmentKey) -> Earlier {
    // SAFETY: the value is copied; should the entry be used again meanwhile, it reads as
    // that of another packet, which the receiver's checksum finds.
    if let Some(first) = unsafe { F::fragments().get(key) }
        && clock().wrapping_sub(first.seen) <= FRAGMENT_TICKS
    {
        return Earlier {
            is_known: true,
            ports: first.ports,
            length: first.length,
            backend: first.backend,
        };
    }
    Earlier {
        is_known: false,
        ports: 0,
        length: 0,
        backend: NO_BACKEND,
    }
}

/// The first fragment of a packet, as remembered. No `Option`: its compiler leaves the
/// registers of `None` unset, and moves them about.
#[derive(Clone, Copy)]
struct Earlier {
    is_known: bool,
    ports: u32,
    length: u32,
    backend: u32,
}

/// A first fragment, and in `first` what is to be remembered of it.
#[inline(always)]
fn begin<'a, F: Family>(
    ctx: &XdpContext,
    link: &'a Link,
    ip: *mut F::Header,
    payload: &Payload,
    earlier: Earlier,
    first: &mut Fragment,
) -> Result<Packet<'a, F>, DropReason> {
    let transport = Transport::parse(ctx, link, payload).ok_or(DropReason::FragmentTiny)?;
    let ports = transport.ports();
    if earlier.is_known && earlier.ports != ports {
        return Err(DropReason::FragmentOverlap);
    }
    *first = Fragment {
        ports,
        seen: clock(),
        length: F::length(ip).saturating_sub(payload.headers) as u32,
        backend: NO_BACKEND,
    };
    Ok(Packet::part(
        link,
        ip,
        payload,
        transport,
        ports,
        Part::First,
    ))
}

/// A later fragment.
#[inline(always)]
fn follow<'a, F: Family>(
    link: &'a Link,
    ip: *mut F::Header,
    payload: &Payload,
    position: &Position,
    first: Earlier,
) -> Result<Packet<'a, F>, DropReason> {
    if !first.is_known {
        return Err(DropReason::FragmentFirstMissing);
    }
    if position.offset < first.length {
        return Err(DropReason::FragmentOverlap);
    }
    let length = F::length(ip).saturating_sub(payload.headers) as u32;
    if position.offset + length > MAX_PAYLOAD {
        return Err(DropReason::IpLength);
    }
    let transport = Transport::absent(payload.protocol);
    Ok(Packet::part(
        link,
        ip,
        payload,
        transport,
        first.ports,
        Part::Later,
    ))
}
