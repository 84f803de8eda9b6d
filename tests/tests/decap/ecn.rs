//! Congestion notification: the table of RFC 6040, section 4.2.

use lb_common::drop_reason::DropReason;
use lb_tests::{Form, Packet, Tunnel};

use crate::{
    bench::{Case, Outcome, run},
    family, request, vip_index,
};

const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// Outgoing ECN by that of the inner (row) and the outer header (column), in the order
/// of the RFC: Not-ECT, ECT(0), ECT(1), CE.
const ORDER: [u8; 4] = [NOT_ECT, ECT_0, ECT_1, CE];
const TABLE: [[Option<u8>; 4]; 4] = [
    [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
    [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)],
    [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
    [Some(CE), Some(CE), Some(CE), Some(CE)],
];

/// A request with these ECN bits, and a DSCP that must stay.
fn marked(ipv6: bool, dscp: u8, ecn: u8) -> Packet {
    let packet = request(ipv6, true);
    if ipv6 {
        packet.with_ipv6(|ip| ip.traffic_class = dscp << 2 | ecn)
    } else {
        packet.with_ipv4(|ip| {
            ip.dscp = dscp.try_into().expect("six bits");
            ip.ecn = ecn.try_into().expect("two bits");
        })
    }
}

#[test]
fn every_pair_of_marks() {
    let mut cases = Vec::new();
    for form in Form::ALL {
        for outer in [false, true] {
            for inner in [false, true] {
                for dscp in [0, 0b101_110, 0b111_111] {
                    for (row, of_inner) in TABLE.into_iter().zip(ORDER) {
                        for (result, of_outer) in row.into_iter().zip(ORDER) {
                            let tunnel = Tunnel::new(form, outer, &marked(inner, dscp, of_inner))
                                .with(|tunnel| tunnel.ecn = of_outer);
                            let outcome =
                                result.map_or(Outcome::Dropped(DropReason::TunnelEcn), |ecn| {
                                    let packet = marked(inner, dscp, ecn).build();
                                    Outcome::Unwrapped {
                                        frame: tunnel.unwrapped(&packet[14..]),
                                        vip: vip_index(inner),
                                        bytes: tunnel.inner.len(),
                                    }
                                });
                            let name = format!(
                                "{form:?}: {} in {}, DSCP {dscp}, {of_inner} in {of_outer}",
                                family(inner),
                                family(outer)
                            );
                            cases.push(Case::new(name, tunnel.build(), outcome));
                        }
                    }
                }
            }
        }
    }
    run("ECN", &cases);
}

/// The change is to the checksum what it is to the bits: a wrong one stays wrong.
#[test]
fn a_wrong_checksum_stays_wrong() {
    let mut cases = Vec::new();
    for error in [0x0001_u16, 0x8000, 0x1234, 0xfffe] {
        let spoil = |packet: &Packet| {
            let mut bytes = packet.build()[14..].to_vec();
            let right = u16::from_be_bytes([bytes[10], bytes[11]]);
            // In one's complement, as the checksum itself.
            let sum = u32::from(right) + u32::from(error);
            let wrong = (sum & 0xffff) as u16 + (sum >> 16) as u16;
            bytes[10..12].copy_from_slice(&wrong.to_be_bytes());
            bytes
        };
        let tunnel = Tunnel::new(Form::Ipip, false, &request(false, true)).with(|tunnel| {
            tunnel.ecn = CE;
            tunnel.inner = spoil(&marked(false, 9, ECT_0));
        });
        let outcome = Outcome::Unwrapped {
            frame: tunnel.unwrapped(&spoil(&marked(false, 9, CE))),
            vip: 0,
            bytes: tunnel.inner.len(),
        };
        cases.push(Case::new(
            format!("off by {error:#x}"),
            tunnel.build(),
            outcome,
        ));
    }
    run("wrong checksums", &cases);
}
