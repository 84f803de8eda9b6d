//! What differs between the IP versions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use lb_bench_driver::{Reply4, Reply6, Vary};
use lb_common::{
    checksum,
    flow::{FlowKey4, FlowKey6, Tuple as _},
};
use lb_driver::Driver;
use lb_userspace::datapath::{Family, FlowPair, FlowTables, Ipv4, Ipv6, word, words6};
use zerocopy::transmute;

/// Source and destination of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
}

impl Ends {
    /// Those of an answer.
    pub(crate) fn reversed(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
        }
    }
}

/// An IP version: its addresses in the benchmark, its tables and its driver.
pub(crate) trait Ip: Family {
    /// Where clients are; their last 16 bits are zero.
    const CLIENTS: IpAddr;
    /// Where packets that are not ours go.
    const ELSEWHERE: IpAddr;
    /// The balancer towards its backends.
    const SOURCE: IpAddr;
    /// The address that stands for none.
    const UNSPECIFIED: IpAddr;
    /// How the driver varies packets from clients.
    const VARY_CLIENT: Vary;
    /// How the driver varies packets from backends.
    const VARY_REPLY: Vary;

    /// The address of a service.
    fn service(number: u32) -> IpAddr;
    /// The address of a backend.
    fn backend(id: u32) -> IpAddr;
    /// The flow tables.
    fn tables(tables: &FlowTables) -> &FlowPair<Self>
    where
        Self: Sized;
    /// The flow tables, to change them.
    fn tables_mut(tables: &mut FlowTables) -> &mut FlowPair<Self>
    where
        Self: Sized;
    /// The tuple of a packet; `None` for one of the other family.
    fn key(ends: &Ends, protocol: u8) -> Option<Self::Key>;
    /// Where a packet of this tuple comes from and goes to.
    fn ends(key: &Self::Key) -> Ends;
    /// The hash that chooses a slot.
    fn hash(key: &Self::Key) -> u32;
    /// The identification and the balance of a packet from a backend, which keep its
    /// checksums as they are without addresses and ports.
    fn compensation(key: &Self::Key) -> (u16, u16);
    /// Gives the driver the packets from backends.
    fn set_replies(driver: &mut Driver, keys: &[Self::Key]) -> Result<()>;
}

impl Ip for Ipv4 {
    const CLIENTS: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 0));
    const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 255, 0, 1));
    const UNSPECIFIED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    const VARY_CLIENT: Vary = Vary::Client4;
    const VARY_REPLY: Vary = Vary::Reply4;

    fn service(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(Ipv4Addr::new(192, 0, 2, 1).to_bits() + number).into()
    }

    fn backend(id: u32) -> IpAddr {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + id).into()
    }

    fn tables(tables: &FlowTables) -> &FlowPair<Self> {
        &tables.v4
    }

    fn tables_mut(tables: &mut FlowTables) -> &mut FlowPair<Self> {
        &mut tables.v4
    }

    fn key(ends: &Ends, protocol: u8) -> Option<FlowKey4> {
        let (SocketAddr::V4(src), SocketAddr::V4(dst)) = (ends.src, ends.dst) else {
            return None;
        };
        Some(FlowKey4 {
            src: word(*src.ip()),
            dst: word(*dst.ip()),
            src_port: src.port().to_be(),
            dst_port: dst.port().to_be(),
            protocol: protocol.into(),
        })
    }

    fn ends(key: &FlowKey4) -> Ends {
        let address = |word: u32| Ipv4Addr::from(word.to_ne_bytes());
        Ends {
            src: (address(key.src), u16::from_be(key.src_port)).into(),
            dst: (address(key.dst), u16::from_be(key.dst_port)).into(),
        }
    }

    fn hash(key: &FlowKey4) -> u32 {
        key.hash()
    }

    fn compensation(key: &FlowKey4) -> (u16, u16) {
        let addresses = u64::from(key.src) + u64::from(key.dst);
        let ports = u64::from(key.src_port) + u64::from(key.dst_port);
        (
            !checksum::fold(addresses),
            !checksum::fold(addresses + ports),
        )
    }

    fn set_replies(driver: &mut Driver, keys: &[FlowKey4]) -> Result<()> {
        let replies: Vec<_> = keys
            .iter()
            .map(|key| {
                let (identification, balance) = Self::compensation(key);
                Reply4 {
                    addresses: [key.src, key.dst],
                    ports: transmute!([key.src_port, key.dst_port]),
                    identification,
                    balance,
                }
            })
            .collect();
        driver.set_replies4(&replies)
    }
}

impl Ip for Ipv6 {
    const CLIENTS: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0));
    const ELSEWHERE: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xe, 0, 0, 0, 0, 1));
    const SOURCE: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, 1));
    const UNSPECIFIED: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    const VARY_CLIENT: Vary = Vary::Client6;
    const VARY_REPLY: Vary = Vary::Reply6;

    fn service(number: u32) -> IpAddr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, number as u16).into()
    }

    fn backend(id: u32) -> IpAddr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, id as u16).into()
    }

    fn tables(tables: &FlowTables) -> &FlowPair<Self> {
        &tables.v6
    }

    fn tables_mut(tables: &mut FlowTables) -> &mut FlowPair<Self> {
        &mut tables.v6
    }

    fn key(ends: &Ends, protocol: u8) -> Option<FlowKey6> {
        let (SocketAddr::V6(src), SocketAddr::V6(dst)) = (ends.src, ends.dst) else {
            return None;
        };
        Some(FlowKey6 {
            src: words6(*src.ip()),
            dst: words6(*dst.ip()),
            src_port: src.port().to_be(),
            dst_port: dst.port().to_be(),
            protocol: protocol.into(),
        })
    }

    fn ends(key: &FlowKey6) -> Ends {
        let address = |words: [u32; 4]| {
            let octets: [u8; 16] = transmute!(words);
            Ipv6Addr::from(octets)
        };
        Ends {
            src: (address(key.src), u16::from_be(key.src_port)).into(),
            dst: (address(key.dst), u16::from_be(key.dst_port)).into(),
        }
    }

    fn hash(key: &FlowKey6) -> u32 {
        key.hash()
    }

    fn compensation(key: &FlowKey6) -> (u16, u16) {
        let words = key.src.iter().chain(&key.dst);
        let addresses: u64 = words.map(|word| u64::from(*word)).sum();
        let ports = u64::from(key.src_port) + u64::from(key.dst_port);
        (0, !checksum::fold(addresses + ports))
    }

    fn set_replies(driver: &mut Driver, keys: &[FlowKey6]) -> Result<()> {
        let replies: Vec<_> = keys
            .iter()
            .map(|key| Reply6 {
                addresses: transmute!([key.src, key.dst]),
                ports: transmute!([key.src_port, key.dst_port]),
                balance: Self::compensation(key).1.into(),
            })
            .collect();
        driver.set_replies6(&replies)
    }
}
