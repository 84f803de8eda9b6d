//! What the driver program of the benchmark and its loader agree on.
//!
//! `BPF_PROG_TEST_RUN` repeats a program on one frame, which a program that rewrites
//! has changed from the second run on. The driver is what is repeated: it writes the
//! headers anew, for another flow each time, and calls the program under test.
#![no_std]
#![forbid(unsafe_code)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of every frame. IPv6 and TCP headers take 74; the last six are payload.
pub const FRAME: usize = 80;

/// Offset of the last word of a frame. It is payload that keeps transport checksums
/// right when the flow changes: with every address and port, their complement.
pub const BALANCE: usize = 76;

/// Most replies that the driver can tell apart.
pub const MAX_REPLIES: u32 = 1 << 20;

/// Names of the maps and programs, as the loader sees them.
pub mod name {
    /// [`Plan`](crate::Plan), one element.
    pub const PLAN: &str = "PLAN";
    /// Index to [`Reply4`](crate::Reply4).
    pub const REPLIES_V4: &str = "REPLIES_V4";
    /// Index to [`Reply6`](crate::Reply6).
    pub const REPLIES_V6: &str = "REPLIES_V6";
    /// The program to call, one element.
    pub const CALLEE: &str = "CALLEE";
    /// The program that calls it.
    pub const DRIVER: &str = "driver";
    /// The program that does nothing.
    pub const EMPTY: &str = "empty";
    /// The program that sends every frame out.
    pub const TRANSMIT: &str = "transmit";
    /// The program that drops every frame.
    pub const SWALLOW: &str = "swallow";
    /// The program that sends every frame back.
    pub const REFLECT: &str = "reflect";
}

/// What the driver is to do. Element 0 of `PLAN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Plan {
    /// The frame, with zeros in the fields that vary and in the balance, and with
    /// checksums as if both were zero.
    pub frame: [u8; FRAME],
    /// What varies: a [`Vary`].
    pub vary: u16,
    /// Not 0 where the program under test wraps packets: the driver takes off again what
    /// it put in front. Beside the floor it moves the beginning of the frame by nothing,
    /// which takes it as long.
    pub unwraps: u16,
    /// The order in which flows come.
    pub order: Order,
    /// What is added to the number that [`Order::nth`] gives.
    pub base: u32,
    /// Number of the next run; the driver counts it up.
    pub next: u32,
}

/// What of the frame depends on the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Vary {
    /// Nothing.
    Nothing = 0,
    /// The client of an IPv4 packet: [`client`].
    Client4 = 1,
    /// The client of an IPv6 packet: [`client`].
    Client6 = 2,
    /// Addresses and ports, from `REPLIES_V4`.
    Reply4 = 3,
    /// Addresses and ports, from `REPLIES_V6`.
    Reply6 = 4,
}

/// An order of the numbers below a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Order {
    /// The power of two, less one.
    pub mask: u32,
    /// Odd.
    pub multiplier: u32,
    /// 1 to 31.
    pub shift: u32,
}

impl Order {
    /// One after the other.
    #[must_use]
    pub const fn ascending(count: u32) -> Self {
        assert!(count.is_power_of_two());
        Self {
            mask: count - 1,
            multiplier: 1,
            shift: 31,
        }
    }

    /// All over the place, so that neighbours in time are none in memory.
    #[must_use]
    pub const fn scattered(count: u32) -> Self {
        assert!(count.is_power_of_two());
        Self {
            mask: count - 1,
            multiplier: 0x9E37_79B1,
            // Half of the bits of the numbers, so that every bit of the result
            // depends on every one before it.
            shift: count.trailing_zeros() / 2 + 1,
        }
    }

    /// The `n`th number. Every one comes once before the first comes again, since
    /// multiplication by an odd number and an exclusive or with higher bits can both
    /// be undone.
    #[inline(always)]
    #[must_use]
    pub const fn nth(&self, n: u32) -> u32 {
        let product = n.wrapping_mul(self.multiplier) & self.mask;
        let mixed = product ^ (product >> (self.shift & 31));
        mixed.wrapping_mul(self.multiplier) & self.mask
    }
}

/// The client of a flow, below 2^31: the last 16 bits of its address and its port, in
/// network byte order.
#[inline(always)]
#[must_use]
pub const fn client(flow: u32) -> (u16, u16) {
    let address = (flow >> 15) as u16;
    let port = 0x8000 | (flow as u16 & 0x7fff);
    (address.to_be(), port.to_be())
}

/// The fields of an IPv4 packet from a backend that differ from flow to flow. Words
/// as they lie in the frame.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Reply4 {
    /// Source and destination address.
    pub addresses: [u32; 2],
    /// Source and destination port.
    pub ports: u32,
    /// The identification, which keeps the header checksum right.
    pub identification: u16,
    /// The first half of the balance; the other is zero.
    pub balance: u16,
}

/// The fields of an IPv6 packet from a backend that differ from flow to flow. Words
/// as they lie in the frame.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Reply6 {
    /// Source and destination address.
    pub addresses: [u64; 4],
    /// Source and destination port.
    pub ports: u32,
    /// The balance, of which the second half is zero.
    pub balance: u32,
}

const _: () = assert!(size_of::<Plan>() == FRAME + 24);
const _: () = assert!(size_of::<Reply4>() == 16);
const _: () = assert!(size_of::<Reply6>() == 40);
