//! *Fragments*: later ones go where the first one's flow goes.

use std::{collections::HashMap, net::IpAddr};

use crate::packet::{Ip, Piece};

/// "Within 30 seconds", in ticks of a tenth of a second.
const LIFETIME: u32 = 300;

/// What the fragments of a packet have in common (RFC 791, section 3.2; RFC 8200,
/// section 4.5).
type Key = (IpAddr, IpAddr, u32, u8);

/// A first fragment that has been seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct First {
    ports: [u16; 2],
    seen: u32,
    /// Bytes of the fragmentable part that it held.
    length: usize,
    /// The backend that its connection ID named.
    named: Option<u32>,
}

/// The first fragments that are remembered.
#[derive(Clone, Debug, Default)]
pub struct Fragments(HashMap<Key, First>);

/// What is known of a later fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Its first fragment had these ports.
    Ports([u16; 2]),
    /// "One that begins within the first one's bytes."
    Overlap,
    /// "Its first has not been seen within 30 seconds."
    Missing,
}

fn key(ip: &Ip, piece: Piece) -> Key {
    (ip.src, ip.dst, piece.identification, ip.protocol)
}

impl Fragments {
    /// What is known of a fragment that has no ports of its own.
    #[must_use]
    pub fn of_later(&self, ip: &Ip, piece: Piece, clock: u32) -> Known {
        match self.0.get(&key(ip, piece)) {
            Some(first) if clock.wrapping_sub(first.seen) <= LIFETIME => {
                if piece.offset < first.length {
                    Known::Overlap
                } else {
                    Known::Ports(first.ports)
                }
            }
            _ => Known::Missing,
        }
    }

    /// Whether the first fragment of this one's packet is known.
    #[must_use]
    pub fn is_known(&self, ip: &Ip, piece: Piece, clock: u32) -> bool {
        self.0
            .get(&key(ip, piece))
            .is_some_and(|first| clock.wrapping_sub(first.seen) <= LIFETIME)
    }

    /// Whether this is "a second first fragment with other ports".
    #[must_use]
    pub fn contradicts(&self, ip: &Ip, piece: Piece, ports: [u16; 2], clock: u32) -> bool {
        self.0
            .get(&key(ip, piece))
            .is_some_and(|first| clock.wrapping_sub(first.seen) <= LIFETIME && first.ports != ports)
    }

    /// The backend that the connection ID of the first fragment named.
    #[must_use]
    pub fn named(&self, ip: &Ip, piece: Piece) -> Option<u32> {
        self.0.get(&key(ip, piece))?.named
    }

    /// Remembers a first fragment that has been forwarded, whose connection ID named a backend.
    pub fn remember(
        &mut self,
        ip: &Ip,
        piece: Piece,
        ports: [u16; 2],
        clock: u32,
        named: Option<u32>,
    ) {
        let first = First {
            ports,
            seen: clock,
            length: ip.payload(),
            named,
        };
        self.0.insert(key(ip, piece), first);
    }

    /// Number of first fragments that are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
