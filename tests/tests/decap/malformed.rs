//! Tunnels to this host whose headers make no sense.

use lb_common::drop_reason::DropReason;
use lb_tests::{Form, Tag, Tunnel, edit_ipv4};

use crate::{
    bench::{Case, Outcome, run},
    family, request,
};

fn malformed(name: impl Into<String>, frame: Vec<u8>) -> Case {
    Case::new(name, frame, Outcome::Dropped(DropReason::TunnelHeader))
}

/// Every form and pair of families.
fn tunnels() -> Vec<(String, Tunnel)> {
    let mut tunnels = Vec::new();
    for form in Form::ALL {
        for outer in [false, true] {
            for inner in [false, true] {
                let name = format!("{form:?}: {} in {}", family(inner), family(outer));
                tunnels.push((name, Tunnel::new(form, outer, &request(inner, true))));
            }
        }
    }
    tunnels
}

/// Shorter than a frame can be.
const ETHERNET: usize = 14;

/// The frame ends early, wherever: what shows that it is ours is there, or it passes.
#[test]
fn truncated_frames() {
    let mut cases = Vec::new();
    for (name, tunnel) in tunnels() {
        for tags in [&[][..], &[Tag::provider(2), Tag::new(3)]] {
            let tunnel = tunnel.clone().with(|tunnel| tunnel.tags = tags.to_vec());
            let frame = tunnel.build();
            let shows = match tunnel.form {
                Form::Ipip => tunnel.payload_offset(),
                // The ports.
                Form::Gue0 | Form::Gue1 => tunnel.payload_offset() + 4,
            };
            for length in ETHERNET..frame.len() {
                let name = format!("{name}, {} tags, {length} bytes", tags.len());
                let outcome = if length < shows {
                    Outcome::Foreign
                } else {
                    Outcome::Dropped(DropReason::TunnelHeader)
                };
                cases.push(Case::new(name, frame[..length].to_vec(), outcome));
            }
        }
    }
    run("truncated frames", &cases);
}

/// A fragment header that is not there to be read shows nothing.
#[test]
fn truncated_fragment_headers() {
    let mut cases = Vec::new();
    for (name, tunnel) in tunnels() {
        if tunnel.src.is_ipv4() {
            continue;
        }
        let tunnel = tunnel.with(|tunnel| tunnel.fragment = Some((0, false)));
        let frame = tunnel.build();
        let shows = tunnel.payload_offset() + if tunnel.form == Form::Ipip { 0 } else { 4 };
        for length in ETHERNET + 40..frame.len() {
            let outcome = if length < shows {
                Outcome::Foreign
            } else {
                Outcome::Dropped(DropReason::TunnelHeader)
            };
            let name = format!("{name}, fragment header, {length} bytes");
            cases.push(Case::new(name, frame[..length].to_vec(), outcome));
        }
    }
    run("truncated fragment headers", &cases);
}

/// The inner packet ends early, and the outer headers know: with what else is in the
/// frame, or without.
#[test]
fn truncated_inner_packets() {
    let mut cases = Vec::new();
    for (name, tunnel) in tunnels() {
        for length in 0..tunnel.inner.len() {
            let rest = tunnel.inner[length..].to_vec();
            let short = tunnel.clone().with(|tunnel| {
                // The protocol of no packet would be IPv4's.
                tunnel.gue = Some([0, if tunnel.inner[0] >> 4 == 6 { 41 } else { 4 }, 0, 0]);
                tunnel.inner.truncate(length);
            });
            let name = format!("{name}, {length} bytes inside");
            cases.push(malformed(&name, short.build()));
            let followed = short.with(|tunnel| tunnel.padding = rest);
            cases.push(malformed(
                format!("{name}, the rest behind"),
                followed.build(),
            ));
        }
    }
    run("truncated inner packets", &cases);
}

/// Lengths that the frame does not have, or that leave no room.
#[test]
fn outer_lengths() {
    let mut cases = Vec::new();
    for (name, tunnel) in tunnels() {
        let all = tunnel.build().len() as i32 - tunnel.ip_offset() as i32;
        let base = if tunnel.src.is_ipv6() { 40 } else { 0 };
        let exact = all - base;
        for length in [
            0,
            1,
            7,
            8,
            19,
            20,
            27,
            28,
            31,
            32,
            exact - 1,
            exact + 1,
            0xffff,
        ] {
            if length == exact {
                continue;
            }
            let lie = tunnel
                .clone()
                .with(|tunnel| tunnel.ip_excess = length - exact);
            cases.push(malformed(
                format!("{name}, IP length {length}"),
                lie.build(),
            ));
        }
        if tunnel.form != Form::Ipip {
            let exact = all - tunnel.ip_headers() as i32;
            for length in [0, 1, 7, 8, 9, 11, 12, 13, exact - 1, exact + 1, 0xffff] {
                let lie = tunnel
                    .clone()
                    .with(|tunnel| tunnel.udp_excess = length - exact);
                cases.push(malformed(
                    format!("{name}, UDP length {length}"),
                    lie.build(),
                ));
                // Behind the IP packet there is something, but not of the datagram.
                let lie = lie.with(|tunnel| tunnel.padding = vec![0; 64]);
                if length > exact {
                    cases.push(malformed(
                        format!("{name}, UDP length {length}, padded"),
                        lie.build(),
                    ));
                }
            }
        }
    }
    run("outer lengths", &cases);
}

/// A jumbo frame of several buffers is held to its length, too.
#[test]
fn jumbo_lengths() {
    let mut cases = Vec::new();
    for form in Form::ALL {
        for outer in [false, true] {
            for inner in [false, true] {
                let packet = request(inner, false).with_payload(vec![0x5a; 8_000]);
                let tunnel = Tunnel::new(form, outer, &packet);
                let name = format!("{form:?}: {} in {}", family(inner), family(outer));
                let lie = tunnel.clone().with(|tunnel| tunnel.ip_excess = 1);
                cases.push(malformed(format!("{name}, IP length"), lie.build()));
                let mut frame = tunnel.build();
                frame.pop();
                cases.push(malformed(format!("{name}, truncated"), frame));
                let short = tunnel.with(|tunnel| {
                    tunnel.inner.pop();
                });
                cases.push(malformed(format!("{name}, inner length"), short.build()));
            }
        }
    }
    run("jumbo lengths", &cases);
}

/// The header of an outer IPv4 packet.
#[test]
fn outer_ipv4_headers() {
    let mut cases = Vec::new();
    for (name, tunnel) in tunnels() {
        if tunnel.src.is_ipv6() {
            continue;
        }
        for options in [0, 4, 40] {
            let tunnel = tunnel
                .clone()
                .with(|tunnel| tunnel.options = vec![1; options]);
            for bit in 0..16 {
                let mut frame = tunnel.build();
                frame[ETHERNET + 10 + bit / 8] ^= 1 << (bit % 8);
                let name = format!("{name}, {options} bytes of options, checksum bit {bit}");
                cases.push(malformed(name, frame));
            }
            for byte in 0..options {
                let mut frame = tunnel.build();
                frame[ETHERNET + 20 + byte] ^= 0x40;
                cases.push(malformed(
                    format!("{name}, option byte {byte} of {options}"),
                    frame,
                ));
            }
        }
        if tunnel.form == Form::Ipip {
            for words in 0..5 {
                let mut frame = tunnel.build();
                frame[ETHERNET] = 0x40 | words;
                cases.push(malformed(format!("{name}, header of {words} words"), frame));
            }
        }
    }
    // Options that the packet has no room for.
    let mut frame = Tunnel::new(Form::Ipip, false, &request(false, true)).build();
    frame[ETHERNET] = 0x4f;
    edit_total_length(&mut frame, 40);
    cases.push(malformed("header longer than the packet", frame));
    run("outer IPv4 headers", &cases);
}

/// Writes a total length with the checksum right, whatever the header's own length.
fn edit_total_length(frame: &mut [u8], length: u16) {
    frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let words = usize::from(frame[ETHERNET] & 0x0f) * 2;
    let mut sum: u32 = (0..words)
        .map(|word| {
            let offset = ETHERNET + 2 * word;
            u32::from(u16::from_be_bytes([frame[offset], frame[offset + 1]]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&(!sum as u16).to_be_bytes());
}

/// GUE headers that say something else than "an IP packet follows".
#[test]
fn gue_headers() {
    let mut cases = Vec::new();
    for outer in [false, true] {
        for inner in [false, true] {
            let number = if inner { 41 } else { 4 };
            let tunnel = Tunnel::new(Form::Gue0, outer, &request(inner, true));
            let name = format!("{} in {}", family(inner), family(outer));
            let header = |header: [u8; 4]| {
                let tunnel = tunnel.clone().with(|tunnel| tunnel.gue = Some(header));
                malformed(format!("{name}, {header:02x?}"), tunnel.build())
            };
            // Version 1 with a wrong version of IP, control, optional fields, versions 2
            // and 3. A first byte that begins an IP header says "version 1", of a packet
            // that does not follow.
            cases.extend((1..=255).map(|first| header([first, number, 0, 0])));
            cases.extend((0..16).map(|bit| {
                let [a, b] = (1_u16 << bit).to_be_bytes();
                header([0, number, a, b])
            }));
            cases.extend(
                (0..=255)
                    .filter(|protocol| *protocol != number)
                    .map(|protocol| header([0, protocol, 0, 0])),
            );
        }
    }
    run("GUE headers", &cases);
}

/// Inner headers that contradict what is around them, or themselves.
#[test]
fn inner_headers() {
    let mut cases = Vec::new();
    for (name, tunnel) in tunnels() {
        let version = tunnel.inner[0] >> 4;
        let number = if version == 6 { 41 } else { 4 };
        let edited = |what: &str, edit: &dyn Fn(&mut Vec<u8>)| {
            let mut tunnel = tunnel.clone();
            tunnel.gue = Some([0, number, 0, 0]);
            edit(&mut tunnel.inner);
            let mut frame = tunnel.build();
            // What is inside decides in the helper.
            if tunnel.form == Form::Ipip && tunnel.src.is_ipv4() {
                edit_ipv4(&mut frame, ETHERNET, |ip| ip.protocol = number.into());
            } else if tunnel.form == Form::Ipip {
                frame[ETHERNET + 6] = number;
            }
            malformed(format!("{name}, {what}"), frame)
        };
        for other in (0..=15).filter(|other| *other != version) {
            cases.push(edited(&format!("version {other}"), &|inner| {
                inner[0] = inner[0] & 0x0f | other << 4;
            }));
        }
        let length = tunnel.inner.len() as u16;
        if version == 4 {
            for words in 0..5 {
                cases.push(edited(&format!("header of {words} words"), &|inner| {
                    inner[0] = 0x40 | words;
                }));
            }
            for total in [0, 1, 19, length + 1, 0xffff] {
                cases.push(edited(&format!("total length {total}"), &|inner| {
                    inner[2..4].copy_from_slice(&total.to_be_bytes());
                }));
            }
            cases.push(edited("header longer than the packet", &|inner| {
                inner[0] = 0x46;
                inner[2..4].copy_from_slice(&23_u16.to_be_bytes());
            }));
        } else {
            for payload in [length - 39, 0xffff] {
                cases.push(edited(&format!("payload length {payload}"), &|inner| {
                    inner[4..6].copy_from_slice(&payload.to_be_bytes());
                }));
            }
        }
    }
    run("inner headers", &cases);
}
