//! Faults in frames that were whole.

use lb_model::{
    checksum,
    link::{IPV4, Link},
};

use lb_tests::rng::Rng;

/// Values that fields go wrong with.
const ODD: [u8; 12] = [0, 1, 4, 5, 6, 17, 44, 58, 60, 0x45, 0x7f, 0xff];

/// Breaks a frame, or makes it another one.
pub(crate) fn mutate(rng: &mut Rng, frame: &mut Vec<u8>) {
    for _ in 0..rng.weighted(&[(75, 1), (20, 2), (5, 4)]) {
        once(rng, frame);
    }
    // Else a wrong checksum would hide every other fault of an IPv4 header.
    if rng.percent(70) {
        repair(frame);
    }
}

/// Makes the checksum of an IPv4 header right, if there is one.
fn repair(frame: &mut [u8]) {
    let Some(link) = Link::read(frame).filter(|link| link.ether_type == IPV4) else {
        return;
    };
    let packet = &mut frame[link.payload..];
    let Some(first) = packet.first() else {
        return;
    };
    let length = usize::from(first & 0xf) * 4;
    if let Some(header) = packet.get_mut(..length.max(20)) {
        header[10..12].fill(0);
        let sum = !checksum::sum(header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

fn once(rng: &mut Rng, frame: &mut Vec<u8>) {
    // Headers are the interesting part.
    let within = frame.len().min(110);
    match rng.below(12) {
        0..4 => {
            let bit = rng.below(within * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        4..6 => {
            let at = rng.below(within);
            frame[at] = *rng.pick(&ODD);
        }
        6 => {
            let at = rng.below(within);
            frame[at] = rng.byte();
        }
        7 => frame.truncate(rng.range(1, frame.len())),
        8 => {
            let length = rng.range(1, 40);
            frame.extend(rng.bytes(length));
        }
        9 => {
            // A length field that says a little more or less.
            let fields = [16, 18, 20, 22, 38, 40, 42, 58, 60];
            let at = *rng.pick(&fields);
            if at + 2 <= frame.len() {
                let old = u16::from_be_bytes([frame[at], frame[at + 1]]);
                let new = old.wrapping_add(rng.below(17) as u16).wrapping_sub(8);
                frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
            }
        }
        10 => {
            // A tag more.
            let kind = *rng.pick(&[[0x81, 0], [0x88, 0xa8], [0x91, 0]]);
            if frame.len() >= 12 {
                let tag = [kind[0], kind[1], rng.byte(), rng.byte()];
                frame.splice(12..12, tag);
            }
        }
        _ => {
            // Bytes go missing in the midst.
            let at = rng.below(within);
            let length = rng.range(1, 8).min(frame.len() - at);
            frame.drain(at..at + length);
        }
    }
    if frame.is_empty() {
        frame.push(0);
    }
}
