//! The program that unwraps tunnels on a backend host, and its maps.

use std::net::IpAddr;

use aya::{
    Ebpf, EbpfLoader,
    maps::{LpmTrie, MapData, PerCpuArray, lpm_trie::Key},
};
use lb_common::{
    decap::{Address6, Passed, SourceKey4, SourceKey6, VipCounters, name},
    drop_reason::DropReason,
};

use super::{
    Table, XdpMode,
    attach::{self, AttachedMode, Attachment},
    error::{self, Result, map_error},
    insert,
    key::{word, words6},
    plain::{Plain, Stored},
    program, remove, take,
    test_run::{self, TestRun},
};

/// The program and its maps as the compiler made them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap"));

type Trie<K> = LpmTrie<MapData, Plain<K>, u32>;

/// The value of entries of which the key says all.
const PRESENT: u32 = 1;

/// The unwrapping program in the kernel. Detached and unloaded when it is dropped.
pub struct Decap {
    ebpf: Ebpf,
    locals_v4: Table<u32, u32>,
    locals_v6: Table<Address6, u32>,
    sources_v4: Trie<SourceKey4>,
    sources_v6: Trie<SourceKey6>,
    vips_v4: Trie<u32>,
    vips_v6: Trie<Address6>,
    counters: PerCpuArray<MapData, Plain<VipCounters>>,
    drops: PerCpuArray<MapData, u64>,
    passed: PerCpuArray<MapData, u64>,
    attachments: Vec<Attachment>,
}

impl Decap {
    /// Loads the program and its maps into the kernel. Nothing is attached yet.
    /// `gue_port` is the UDP port of GUE.
    ///
    /// # Errors
    ///
    /// See [`Error`](super::Error): missing privileges, an old kernel.
    pub fn load(gue_port: u16) -> Result<Self> {
        let failed = |error| error::loading(error, None);
        let mut ebpf = EbpfLoader::new()
            .override_global(name::GUE_PORT, &gue_port.to_be(), true)
            .load(OBJECT)
            .map_err(failed)?;
        let program = program(&mut ebpf, name::PROGRAM)?;
        program.load().map_err(|error| failed(error.into()))?;
        Ok(Self {
            locals_v4: take(&mut ebpf, name::LOCALS_V4)?,
            locals_v6: take(&mut ebpf, name::LOCALS_V6)?,
            sources_v4: take(&mut ebpf, name::SOURCES_V4)?,
            sources_v6: take(&mut ebpf, name::SOURCES_V6)?,
            vips_v4: take(&mut ebpf, name::VIPS_V4)?,
            vips_v6: take(&mut ebpf, name::VIPS_V6)?,
            counters: take(&mut ebpf, name::COUNTERS)?,
            drops: take(&mut ebpf, name::DROPS)?,
            passed: take(&mut ebpf, name::PASSED)?,
            attachments: Vec::new(),
            ebpf,
        })
    }

    /// Attaches the program to an interface.
    ///
    /// # Errors
    ///
    /// Like [`Datapath::attach`](super::Datapath::attach).
    pub fn attach(&mut self, interface: &str, mode: XdpMode) -> Result<AttachedMode> {
        let program = program(&mut self.ebpf, name::PROGRAM)?;
        let ifindex = attach::index_of(interface)?;
        let (attachment, attached) = attach::attach(program, interface, ifindex, mode, None)?;
        self.attachments.push(attachment);
        Ok(attached)
    }

    /// Lets tunnels end at this address.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses. So with all methods that write.
    pub fn set_local(&mut self, address: IpAddr) -> Result<()> {
        match address {
            IpAddr::V4(address) => {
                insert(&mut self.locals_v4, name::LOCALS_V4, word(address), PRESENT)
            }
            IpAddr::V6(address) => insert(
                &mut self.locals_v6,
                name::LOCALS_V6,
                Address6(words6(address)),
                PRESENT,
            ),
        }
    }

    /// No tunnel ends at this address any more.
    pub fn remove_local(&mut self, address: IpAddr) -> Result<()> {
        match address {
            IpAddr::V4(address) => remove(&mut self.locals_v4, name::LOCALS_V4, word(address)),
            IpAddr::V6(address) => remove(
                &mut self.locals_v6,
                name::LOCALS_V6,
                Address6(words6(address)),
            ),
        }
    }

    /// Lets tunnels that come in by an interface begin at addresses with the first
    /// `length` bits of this one.
    pub fn set_source(&mut self, ifindex: u32, address: IpAddr, length: u8) -> Result<()> {
        match source_key(ifindex, address, length) {
            SourceKey::V4(key) => {
                insert_prefix(&mut self.sources_v4, name::SOURCES_V4, &key, PRESENT)
            }
            SourceKey::V6(key) => {
                insert_prefix(&mut self.sources_v6, name::SOURCES_V6, &key, PRESENT)
            }
        }
    }

    /// Takes back what [`Self::set_source`] said.
    pub fn remove_source(&mut self, ifindex: u32, address: IpAddr, length: u8) -> Result<()> {
        match source_key(ifindex, address, length) {
            SourceKey::V4(key) => self
                .sources_v4
                .remove(&key)
                .map_err(map_error("removing", name::SOURCES_V4)),
            SourceKey::V6(key) => self
                .sources_v6
                .remove(&key)
                .map_err(map_error("removing", name::SOURCES_V6)),
        }
    }

    /// Unwraps what is for addresses with the first `length` bits of this one, unless
    /// another VIP has more of their bits. `index`, below
    /// [`MAX_VIPS`](lb_common::decap::MAX_VIPS), is where it is counted.
    pub fn set_vip(&mut self, index: u32, address: IpAddr, length: u8) -> Result<()> {
        let length = u32::from(length);
        match address {
            IpAddr::V4(address) => {
                let key = Key::new(length, Plain(word(address)));
                insert_prefix(&mut self.vips_v4, name::VIPS_V4, &key, index)
            }
            IpAddr::V6(address) => {
                let key = Key::new(length, Plain(Address6(words6(address))));
                insert_prefix(&mut self.vips_v6, name::VIPS_V6, &key, index)
            }
        }
    }

    /// What was unwrapped for the VIP of this index.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read. So with all methods that read.
    pub fn counters(&self, index: u32) -> Result<VipCounters> {
        let values = self
            .counters
            .get(&index, 0)
            .map_err(map_error("reading", name::COUNTERS))?;
        let sum = |sum: VipCounters, Plain(value): &Plain<VipCounters>| VipCounters {
            packets: sum.packets + value.packets,
            bytes: sum.bytes + value.bytes,
        };
        Ok(values.iter().fold(VipCounters::default(), sum))
    }

    /// Packets that were dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> Result<u64> {
        let values = self
            .drops
            .get(&(reason as u32), 0)
            .map_err(map_error("reading", name::DROPS))?;
        Ok(values.iter().sum())
    }

    /// Tunnel packets that were left to the network stack.
    pub fn passed(&self, why: Passed) -> Result<u64> {
        let values = self
            .passed
            .get(&(why as u32), 0)
            .map_err(map_error("reading", name::PASSED))?;
        Ok(values.iter().sum())
    }

    /// Runs the program on a frame that came in by interface `ifindex`. The maps are
    /// the real ones.
    pub fn test_run(&mut self, frame: &[u8], ifindex: u32) -> Result<TestRun> {
        let program = program(&mut self.ebpf, name::PROGRAM)?;
        test_run::test_run(program, frame, ifindex)
    }
}

/// A key of the tables of sources.
enum SourceKey {
    V4(Key<Plain<SourceKey4>>),
    V6(Key<Plain<SourceKey6>>),
}

fn source_key(ifindex: u32, address: IpAddr, length: u8) -> SourceKey {
    let length = u32::from(length);
    match address {
        IpAddr::V4(address) => {
            let address = word(address);
            let key = SourceKey4 { ifindex, address };
            SourceKey::V4(Key::new(SourceKey4::INTERFACE_BITS + length, Plain(key)))
        }
        IpAddr::V6(address) => {
            let key = SourceKey6 {
                ifindex,
                reserved: 0,
                address: Address6(words6(address)),
            };
            SourceKey::V6(Key::new(SourceKey6::INTERFACE_BITS + length, Plain(key)))
        }
    }
}

fn insert_prefix<K: Stored>(
    trie: &mut Trie<K>,
    name: &'static str,
    key: &Key<Plain<K>>,
    value: u32,
) -> Result<()> {
    trie.insert(key, value, 0)
        .map_err(map_error("writing", name))
}
