//! Is it ours? Services by address, port and protocol.

use core::mem::transmute;

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::{
    Runtime,
    service::{PortKey, Service, Vip},
};

use crate::{
    family::Family,
    maps::{PORTS, switches},
    packet::{Protocol, TCP, UDP},
};

/// The service that `tuple` is sent to: one on its very address and port, else of those
/// on its address, or the longest prefix of it, the one with the fewest ports. Its id is 0
/// if there is none: a value, since the verifier would follow the rest of the program
/// once for each table that a reference may lead to.
#[inline(always)]
pub fn find<F: Family>(tuple: &F::Tuple) -> Service {
    of_word(find_word::<F>(tuple))
}

/// A service in a word. Of a structure with an id of 0 the compiler would leave the other
/// fields unset, and move them about all the same.
#[inline(always)]
fn find_word<F: Family>(tuple: &F::Tuple) -> u64 {
    // SAFETY: the program never writes the table, and an entry that the daemon
    // replaces stays readable until the program has ended (RCU).
    if let Some(service) = unsafe { F::services().get(F::service_key(tuple)) } {
        return word(service);
    }
    if switches() & Runtime::WIDE == 0 {
        return 0;
    }
    on_several_ports::<F>(tuple)
}

/// The service on several ports, or on a prefix, that `tuple` is sent to. A call of its
/// own: most hosts have none, and the stack of the caller has no room for the keys.
#[inline(never)]
fn on_several_ports<F: Family>(tuple: &F::Tuple) -> u64 {
    let (_, address) = F::addresses(tuple);
    let (_, port) = F::ports(tuple);
    let vip = vip::<F>(address);
    if vip.id == 0 {
        return 0;
    }
    let key = PortKey {
        vip: vip.id,
        protocol: u16::from(F::protocol(tuple)),
        port,
    };
    PORTS.get(&Key::new(PortKey::ONE_PORT, key)).map_or(0, word)
}

/// A service in a word, as calls take it.
#[inline(always)]
pub fn word(service: &Service) -> u64 {
    // SAFETY: as in `of_word`; the reference is aligned to a word.
    unsafe { (&raw const *service).cast::<u64>().read() }
}

/// A service that was given in a word.
#[inline(always)]
pub fn of_word(word: u64) -> Service {
    // SAFETY: a service is made of integers alone, and as large as a word.
    unsafe { transmute::<u64, Service>(word) }
}

/// Whether `tuple`, which no service takes, is sent to an address whose other ports are
/// to be dropped.
#[inline(always)]
pub fn refuses<F: Family>(tuple: &F::Tuple) -> bool {
    let (_, address) = F::addresses(tuple);
    switches() & Runtime::WIDE != 0 && vip::<F>(address).flags & Vip::DROP_OTHER_PORTS != 0
}

/// Whether any service has this address and protocol.
#[inline(always)]
pub fn owns<F: Family>(address: F::Address, protocol: Protocol) -> bool {
    let protocols = match protocol {
        Protocol::Known(TCP) => Vip::TCP,
        Protocol::Known(UDP) => Vip::UDP,
        Protocol::Known(_) => return false,
        Protocol::Unknown => Vip::TCP | Vip::UDP,
    };
    vip::<F>(address).flags & protocols != 0
}

/// What holds for a service address, or the longest prefix of it that is one. Without
/// flags if there is none.
#[inline(always)]
pub fn vip<F: Family>(address: F::Address) -> Vip {
    let word = vip_word::<F>(address);
    Vip {
        id: word as u32,
        flags: (word >> 32) as u32,
    }
}

/// A [`Vip`] in a word, which a call returns in a register.
#[inline(never)]
fn vip_word<F: Family>(address: F::Address) -> u64 {
    let word = |vip: &Vip| u64::from(vip.id) | u64::from(vip.flags) << 32;
    // SAFETY: as in `find`.
    if let Some(vip) = unsafe { F::vips().get(address) } {
        return word(vip);
    }
    if switches() & Runtime::PREFIXES == 0 {
        return 0;
    }
    F::prefixes()
        .get(&Key::new(F::ADDRESS_BITS, address))
        .map_or(0, word)
}
