//! Is it ours? Services by address, port and protocol.

use core::mem::transmute;

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::{
    Runtime,
    direct::{self, DirectKey as _, MORE},
    service::{PortKey, Service, Vip},
};

use crate::{
    family::Family,
    maps::{PORTS, REPLY_SOURCES, switches},
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
    let key = F::service_key(tuple);
    let direct = direct::<F>(&key);
    if direct != NONE && direct != ELSEWHERE {
        return direct;
    }
    if direct == ELSEWHERE {
        let listed = listed::<F>(&key);
        if listed != NONE {
            return listed;
        }
    }
    if switches() & Runtime::WIDE == 0 {
        return 0;
    }
    on_several_ports::<F>(tuple)
}

/// In place of the word of a service: there is none.
const NONE: u64 = 0;
/// In place of the word of a service: the hash map says.
const ELSEWHERE: u64 = 1;

/// The service of this key as the array in front of the hash map says, [`NONE`] or
/// [`ELSEWHERE`].
#[inline(always)]
fn direct<F: Family>(key: &F::ServiceKey) -> u64 {
    let Some(entry) = F::direct(key.index()) else {
        return ELSEWHERE;
    };
    // SAFETY: the pointer is a map value of that many words, each of which the daemon
    // stores whole, the tag last.
    let word = |index: usize| unsafe { entry.add(index).read_volatile() };
    let tag = word(direct::TAG);
    let is_key = tag & !MORE == key.tag()
        && key.address().is_none_or(|[high, low]| {
            word(direct::ADDRESS) == high && word(direct::ADDRESS + 1) == low
        });
    if is_key {
        word(direct::SERVICE)
    } else if tag & MORE != 0 {
        ELSEWHERE
    } else {
        NONE
    }
}

/// The service of this key in the hash map, or [`NONE`]. A call of its own: few packets
/// need it.
#[inline(never)]
fn listed<F: Family>(key: &F::ServiceKey) -> u64 {
    // SAFETY: the program never writes the table, and an entry that the daemon
    // replaces stays readable until the program has ended (RCU).
    unsafe { F::services().get(key) }.map_or(NONE, word)
}

/// Whether any backend has the source address of `tuple`: if not, it is no reply.
#[inline(always)]
pub fn may_be_reply<F: Family>(tuple: &F::Tuple) -> bool {
    let (source, _) = F::addresses(tuple);
    let bit = F::reply_source(source);
    REPLY_SOURCES
        .get(bit / u64::BITS)
        .is_some_and(|word| word & 1 << (bit % u64::BITS) != 0)
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
