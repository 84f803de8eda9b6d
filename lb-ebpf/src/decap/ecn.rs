//! Congestion notification at the end of a tunnel.

/// Not capable of notification (RFC 3168, section 5; so with the others).
const NOT_ECT: u8 = 0b00;
/// Capable, mark 1.
const ECT_1: u8 = 0b01;
/// Capable, mark 0.
const ECT_0: u8 = 0b10;
/// Congestion was met.
const CE: u8 = 0b11;

/// The ECN field that the inner packet gets: the table of RFC 6040, section 4.2. `None`
/// for a packet to drop: its sender could not be told of the congestion that it met.
#[inline(always)]
pub const fn decapsulated(outer: u8, inner: u8) -> Option<u8> {
    match (outer, inner) {
        (CE, NOT_ECT) => None,
        (CE, _) => Some(CE),
        (ECT_1, ECT_0) => Some(ECT_1),
        _ => Some(inner),
    }
}
