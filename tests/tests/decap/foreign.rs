//! What is no tunnel to this host passes byte for byte.

use lb_tests::{BACKEND_IF, Extension, Form, Packet, Tag, Tunnel, edit_ipv4};

use crate::{
    bench::{Case, Outcome, run},
    client, family, request,
};

fn foreign(name: impl Into<String>, frame: Vec<u8>) -> Case {
    Case::new(name, frame, Outcome::Foreign)
}

#[test]
fn no_tunnel() {
    let mut cases = Vec::new();
    let tunnel = Tunnel::new(Form::Ipip, false, &request(false, true));
    let (host_v4, host_v6) = (
        "10.0.0.11:6081".parse().expect("an address"),
        "[2001:db8:3::11]:6081".parse().expect("an address"),
    );
    for ether_type in [0x0806_u16, 0x88cc, 0x0004, 0x8847, 0x8863, 0xffff] {
        let mut frame = tunnel.build();
        frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
        cases.push(foreign(format!("EtherType {ether_type:#06x}"), frame));
    }
    for ipv6 in [false, true] {
        for tcp in [false, true] {
            let name = format!("{} without a tunnel, TCP {tcp}", family(ipv6));
            cases.push(foreign(name, request(ipv6, tcp).build()));
        }
        let host = if ipv6 { host_v6 } else { host_v4 };
        let name = |what: &str| format!("{}: {what}", family(ipv6));
        let mut from_port = client(ipv6);
        from_port.set_port(6080);
        cases.push(foreign(
            name("from port 6080"),
            Packet::udp(from_port, host).build(),
        ));
        let mut to_port = host;
        to_port.set_port(6080);
        let tcp = Packet::tcp(client(ipv6), to_port, |tcp| tcp.syn = true);
        cases.push(foreign(name("TCP to port 6080"), tcp.build()));
    }
    for number in (0..=255_u8).filter(|number| ![4, 17, 41].contains(number)) {
        let mut frame = tunnel.build();
        edit_ipv4(&mut frame, 14, |ip| ip.protocol = number.into());
        cases.push(foreign(format!("IPv4 protocol {number}"), frame));
    }
    for number in (0..=255_u8).filter(|number| ![4, 17, 41, 44].contains(number)) {
        let mut frame = Tunnel::new(Form::Ipip, true, &request(false, true)).build();
        frame[20] = number;
        cases.push(foreign(format!("IPv6 next header {number}"), frame));
    }
    // Senders of tunnels put no extension headers but fragment headers before them.
    for extension in [
        Extension::HopByHop(6),
        Extension::Destination(6),
        Extension::Routing(0),
    ] {
        let name = format!("{extension:?} before UDP");
        let packet = Packet::udp(
            client(true),
            "[2001:db8:3::11]:6080".parse().expect("an address"),
        );
        cases.push(foreign(name, packet.with_extensions(&[extension]).build()));
    }
    run("no tunnel", &cases);
}

#[test]
fn tunnels_of_others() {
    let mut cases = Vec::new();
    for form in Form::ALL {
        for inner in [false, true] {
            let v4 = Tunnel::new(form, false, &request(inner, true));
            let v6 = Tunnel::new(form, true, &request(inner, true));
            for address in [
                "10.0.0.10",
                "10.0.0.12",
                "10.0.0.255",
                "192.0.2.10",
                "0.0.0.0",
            ] {
                let tunnel = v4.clone();
                let tunnel = tunnel.with(|tunnel| tunnel.dst = address.parse().expect("IPv4"));
                cases.push(foreign(format!("{form:?} to {address}"), tunnel.build()));
            }
            for address in ["2001:db8:3::12", "2001:db8:3:1::11", "::", "2001:db8:2::10"] {
                let tunnel = v6.clone();
                let tunnel = tunnel.with(|tunnel| tunnel.dst = address.parse().expect("IPv6"));
                cases.push(foreign(format!("{form:?} to {address}"), tunnel.build()));
            }
            for tunnel in [v4, v6] {
                let outer = family(tunnel.src.is_ipv6());
                let name = |what: &str| format!("{form:?}: {} in {outer}, {what}", family(inner));
                if form != Form::Ipip {
                    for port in [0, 6079, 6081, 0xc017, 0xffff] {
                        let other = tunnel.clone().with(|tunnel| tunnel.port = port);
                        cases.push(foreign(name(&format!("port {port}")), other.build()));
                    }
                }
                for mac in [
                    [0xff; 6],
                    [0x01, 0, 0x5e, 0, 0, 1],
                    [0x33, 0x33, 0, 0, 0, 1],
                ] {
                    let group = tunnel.clone().with(|tunnel| tunnel.dst_mac = mac);
                    cases.push(foreign(name(&format!("to {mac:02x?}")), group.build()));
                }
                let tags = [Tag::provider(1), Tag::new(2), Tag::new(3)];
                let tagged = tunnel.clone().with(|tunnel| tunnel.tags = tags.to_vec());
                cases.push(foreign(name("three tags"), tagged.build()));
                for version in (0..=15_u8).filter(|version| *version != tunnel_version(&tunnel)) {
                    let mut frame = tunnel.build();
                    frame[14] = frame[14] & 0x0f | version << 4;
                    cases.push(foreign(name(&format!("version {version}")), frame));
                }
                let mut case = foreign(
                    name("to another host, by another interface"),
                    tunnel
                        .clone()
                        .with(|tunnel| {
                            tunnel.dst = match tunnel.dst.is_ipv6() {
                                true => "2001:db8:3::12".parse().expect("IPv6"),
                                false => "10.0.0.12".parse().expect("IPv4"),
                            };
                        })
                        .build(),
                );
                case.ifindex = BACKEND_IF;
                cases.push(case);
            }
        }
    }
    run("tunnels of others", &cases);
}

fn tunnel_version(tunnel: &Tunnel) -> u8 {
    if tunnel.src.is_ipv6() { 6 } else { 4 }
}
