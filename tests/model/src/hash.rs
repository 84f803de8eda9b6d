//! The hash of a flow and the slot of the ring that it leads to: section *Which backend*
//! of the design, and the descriptions in `lb-common`'s `hash` and `ring`.

use std::net::{IpAddr, SocketAddr};

/// Slots of a ring.
pub const RING_SIZE: u32 = 65_537;

/// The fraction of the golden ratio, times 2^64 and odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
/// The fraction of the square root of 3, times 2^64.
const ROOT_3: u64 = 0xbb67_ae85_84ca_a73b;
/// The fraction of the square root of 5, times 2^64.
const ROOT_5: u64 = 0x3c6e_f372_fe94_f82b;

/// Hash of the five-tuple of a packet from a client.
///
/// What the packet holds is read as it lies in the memory of a little-endian host.
///
/// # Panics
///
/// Where the addresses are of different families, which no packet has.
#[must_use]
pub fn five_tuple(src: SocketAddr, dst: SocketAddr, protocol: u8) -> u32 {
    let ports = u64::from(src.port().swap_bytes()) << 32
        | u64::from(dst.port().swap_bytes()) << 16
        | u64::from(protocol);
    let words = match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let [src, dst] = [src, dst].map(|address| word(&address.octets()));
            vec![(src << 32 | dst, GOLDEN), (ports, ROOT_3), (0, ROOT_5)]
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let half = |address: std::net::Ipv6Addr, at: usize| {
                let octets = address.octets();
                word(&octets[at..at + 4]) << 32 | word(&octets[at + 4..at + 8])
            };
            vec![
                (half(src, 0), GOLDEN),
                (half(src, 8), ROOT_3),
                (half(dst, 0), ROOT_5),
                (half(dst, 8), GOLDEN),
                (ports, ROOT_3),
                (0, ROOT_5),
            ]
        }
        _ => panic!("{src} and {dst} are of different families"),
    };
    words.into_iter().fold(0_u64, |hash, (word, multiplier)| {
        let product = (hash ^ word).wrapping_mul(multiplier);
        product ^ product >> 32
    }) as u32
}

fn word(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .take(4)
        .fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// The slot of a flow with this hash: the hash as a fraction of 2^32, times the slots.
#[must_use]
pub fn slot(hash: u32) -> usize {
    (u64::from(hash) * u64::from(RING_SIZE) / (1 << 32)) as usize
}
