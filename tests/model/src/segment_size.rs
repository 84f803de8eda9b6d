//! *ICMP*, at its end: `service.max-segment-size`.

use crate::{
    bytes::{be16, put16},
    checksum,
    nat::checksum_offset,
    packet::{Ip, TCP},
};

/// Kinds of TCP options (RFC 9293, section 3.2).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAX_SEGMENT_SIZE: u8 = 2;

/// "Lowers the MSS option of every SYN that passes; one that has no such option is left
/// as it is."
pub fn clamp(packet: &mut [u8], ip: &Ip, most: u16) {
    if ip.protocol != TCP || ip.is_later_fragment() || !ip.flags(packet).syn() {
        return;
    }
    let segment = &mut packet[ip.headers..ip.length];
    let end = usize::from(segment[12] >> 4) * 4;
    let Some(at) = find(&segment[..end]) else {
        return;
    };
    if be16(segment, at) <= most {
        return;
    }
    // Whole words, wherever the option lies.
    let words = at & !1..(at + 3) & !1;
    let before = segment[words.clone()].to_vec();
    put16(segment, at, most);
    let sum = checksum_offset(TCP);
    let new = checksum::updated(be16(segment, sum), &before, &segment[words]);
    put16(segment, sum, new);
}

/// Offset of the value of the option.
fn find(header: &[u8]) -> Option<usize> {
    let mut at = 20;
    loop {
        match *header.get(at)? {
            END => return None,
            NO_OPERATION => at += 1,
            kind => {
                let length = usize::from(*header.get(at + 1)?);
                if length < 2 || at + length > header.len() {
                    return None;
                }
                if kind == MAX_SEGMENT_SIZE && length == 4 {
                    return Some(at + 2);
                }
                at += length;
            }
        }
    }
}
