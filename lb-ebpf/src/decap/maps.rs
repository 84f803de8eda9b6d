//! The maps. Their layout is the ABI in `lb_common::decap`.

use aya_ebpf::{
    btf_maps::{HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    macros::btf_map,
};
use lb_common::decap::{
    self, Address6, DROP_SLOTS, MAX_LOCALS, MAX_SOURCES, MAX_VIPS, Passed, SourceKey4, SourceKey6,
    VipCounters,
};

const LOCALS: usize = MAX_LOCALS as usize;
const SOURCES: usize = MAX_SOURCES as usize;
const VIPS: usize = MAX_VIPS as usize;

/// The host's IPv4 addresses that tunnels may end at.
#[btf_map]
pub static LOCALS_V4: HashMap<u32, u32, LOCALS> = HashMap::new();

/// The host's IPv6 addresses that tunnels may end at.
#[btf_map]
pub static LOCALS_V6: HashMap<Address6, u32, LOCALS> = HashMap::new();

/// IPv4 prefixes that tunnels may begin at.
#[btf_map]
pub static SOURCES_V4: LpmTrie<SourceKey4, u32, SOURCES> = LpmTrie::new();

/// IPv6 prefixes that tunnels may begin at.
#[btf_map]
pub static SOURCES_V6: LpmTrie<SourceKey6, u32, SOURCES> = LpmTrie::new();

/// IPv4 VIPs.
#[btf_map]
pub static VIPS_V4: LpmTrie<u32, u32, VIPS> = LpmTrie::new();

/// IPv6 VIPs.
#[btf_map]
pub static VIPS_V6: LpmTrie<Address6, u32, VIPS> = LpmTrie::new();

/// Counters by index of the VIP.
#[btf_map]
pub static COUNTERS: PerCpuArray<VipCounters, VIPS> = PerCpuArray::new();

/// Dropped packets by reason.
#[btf_map]
pub static DROPS: PerCpuArray<u64, { DROP_SLOTS as usize }> = PerCpuArray::new();

/// Packets that were left to the stack, by [`Passed`].
#[btf_map]
pub static PASSED: PerCpuArray<u64, { Passed::ALL.len() }> = PerCpuArray::new();

/// The UDP port of GUE, network byte order. The daemon sets it when it loads the
/// program.
#[unsafe(no_mangle)]
static GUE_PORT: u16 = decap::GUE_PORT.to_be();

/// The UDP port of GUE, network byte order.
#[inline(always)]
pub fn gue_port() -> u16 {
    // SAFETY: the variable is there; what the compiler knows of it is not what the
    // daemon has written.
    unsafe { (&raw const GUE_PORT).read_volatile() }
}

/// A key of a trie on the stack, where the kernel wants words aligned: the length of
/// the prefix takes four bytes, so without more the data would not be.
#[repr(C, align(8))]
pub struct Query<K> {
    reserved: u32,
    key: Key<K>,
}

impl<K> Query<K> {
    /// Asks for the longest prefix of `data`, of all its bits.
    #[inline(always)]
    pub const fn new(data: K) -> Self {
        Self {
            reserved: 0,
            key: Key::new(8 * size_of::<K>() as u32, data),
        }
    }

    /// What the trie is asked.
    #[inline(always)]
    pub const fn key(&self) -> &Key<K> {
        &self.key
    }
}
