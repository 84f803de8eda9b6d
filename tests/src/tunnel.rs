//! Tunnel packets as fields, and as the bytes on the wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpNumber, Ipv4Header, Ipv4Options,
    Ipv6FragmentHeader, Ipv6Header, SingleVlanHeader, UdpHeader, VlanId, VlanPcp,
};

use crate::packet::{Packet, Tag};

/// The headers that the balancer should put in front of the packets of a flow, as
/// `docs/forwarding.md` has them.
#[derive(Clone, Debug)]
pub struct Outer {
    /// Source address, or a prefix.
    pub src: IpAddr,
    /// Lowest bits of the source address that the flow's hash replaces.
    pub source_bits: u32,
    /// Destination address: the backend.
    pub dst: IpAddr,
    /// Port of GUE; `None` for IP in IP.
    pub gue: Option<u16>,
}

impl Outer {
    /// TTL and hop limit.
    const TTL: u8 = 64;
    /// The highest bit of source ports.
    const SOURCE_PORTS: u16 = 0x8000;

    /// The source address for a flow with this hash.
    #[must_use]
    pub fn source(&self, hash: u32) -> IpAddr {
        let mask = (1_u32 << self.source_bits) - 1;
        match self.src {
            IpAddr::V4(src) => Ipv4Addr::from_bits(src.to_bits() & !mask | hash & mask).into(),
            IpAddr::V6(src) => {
                let (mask, hash) = (u128::from(mask), u128::from(hash));
                Ipv6Addr::from_bits(src.to_bits() & !mask | hash & mask).into()
            }
        }
    }

    /// Wraps the IP packet at `offset` of a frame, which belongs to a flow with this hash.
    /// What stands behind the packet stays there.
    #[must_use]
    pub fn wrap(&self, frame: &[u8], offset: usize, hash: u32) -> Vec<u8> {
        let (ethernet, packet) = frame.split_at(offset);
        let inner = Inner::read(packet);
        let (packet, padding) = packet.split_at(inner.length);
        let (protocol, payload) = match self.gue {
            None => (inner.protocol, packet.to_vec()),
            Some(port) => (IpNumber::UDP, self.gue(port, &inner, packet, hash)),
        };
        let (ether_type, header) = match (self.source(hash), self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header = Ipv4Header {
                    dscp: IpDscp::try_new(inner.traffic_class >> 2).expect("six bits"),
                    ecn: IpEcn::try_new(inner.traffic_class & 3).expect("two bits"),
                    identification: inner.identification,
                    dont_fragment: inner.dont_fragment,
                    time_to_live: Self::TTL,
                    protocol,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv4Header::default()
                };
                header.set_payload_len(payload.len()).expect("it fits");
                header.header_checksum = header.calc_header_checksum();
                (EtherType::IPV4, header.to_bytes().to_vec())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut header = Ipv6Header {
                    traffic_class: inner.traffic_class,
                    next_header: protocol,
                    hop_limit: Self::TTL,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv6Header::default()
                };
                header.set_payload_length(payload.len()).expect("it fits");
                (EtherType::IPV6, header.to_bytes().to_vec())
            }
            (src, dst) => panic!("{src} and {dst} are of different families"),
        };
        let ethernet = &ethernet[..offset - size_of::<u16>()];
        let ether_type = ether_type.0.to_be_bytes();
        [ethernet, &ether_type, &header, &payload, padding].concat()
    }

    /// The packet behind a UDP and a GUE header.
    fn gue(&self, port: u16, inner: &Inner, packet: &[u8], hash: u32) -> Vec<u8> {
        // Version 0, data, no options.
        let payload = [&[0, inner.protocol.0, 0, 0], packet].concat();
        let mut header = UdpHeader {
            source_port: hash as u16 | Self::SOURCE_PORTS,
            destination_port: port,
            length: (UdpHeader::LEN + payload.len()) as u16,
            checksum: 0,
        };
        if let (IpAddr::V6(src), IpAddr::V6(dst)) = (self.source(hash), self.dst) {
            header.checksum = header
                .calc_checksum_ipv6_raw(src.octets(), dst.octets(), &payload)
                .expect("it fits");
        }
        [&header.to_bytes()[..], &payload].concat()
    }
}

/// What the outer header follows from.
struct Inner {
    /// Length of the packet in bytes.
    length: usize,
    /// 4 or 41.
    protocol: IpNumber,
    traffic_class: u8,
    dont_fragment: bool,
    identification: u16,
}

impl Inner {
    fn read(packet: &[u8]) -> Self {
        if packet[0] >> 4 == 6 {
            let (header, _) = Ipv6Header::from_slice(packet).expect("an IPv6 header");
            return Self {
                length: Ipv6Header::LEN + usize::from(header.payload_length),
                protocol: IpNumber::IPV6,
                traffic_class: header.traffic_class,
                dont_fragment: true,
                identification: 0,
            };
        }
        let (header, _) = Ipv4Header::from_slice(packet).expect("an IPv4 header");
        // Fragments of one packet have one identification, but their outer packets must
        // not: the whole fragment field is added.
        let more = if header.more_fragments { 0x2000 } else { 0 };
        let fragment = header.fragment_offset.value() | more;
        let identification = header.identification.wrapping_add(fragment);
        Self {
            length: header.total_len.into(),
            protocol: IpNumber::IPV4,
            traffic_class: header.dscp.value() << 2 | header.ecn.value(),
            dont_fragment: header.dont_fragment,
            identification: if header.dont_fragment {
                0
            } else {
                identification
            },
        }
    }
}

/// How the inner packet is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Directly in IP.
    Ipip,
    /// In UDP, with a GUE header of version 0.
    Gue0,
    /// In UDP, without a header between: GUE version 1.
    Gue1,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ipip, Self::Gue0, Self::Gue1];
}

/// A packet in a tunnel. What is not set is right.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// How it is wrapped.
    pub form: Form,
    /// Outer source address.
    pub src: IpAddr,
    /// Outer destination address.
    pub dst: IpAddr,
    /// Ethernet destination address.
    pub dst_mac: [u8; 6],
    /// Ethernet source address.
    pub src_mac: [u8; 6],
    /// VLAN tags, the outer first.
    pub tags: Vec<Tag>,
    /// ECN bits of the outer header.
    pub ecn: u8,
    /// Options of an outer IPv4 header, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Fragment offset in units of eight bytes, and more fragments.
    pub fragment: Option<(u16, bool)>,
    /// UDP destination port.
    pub port: u16,
    /// The GUE header of version 0; the right one for the inner packet if there is none.
    pub gue: Option<[u8; 4]>,
    /// The inner packet from its IP header on.
    pub inner: Vec<u8>,
    /// What the UDP length is too large by.
    pub udp_excess: i32,
    /// What the outer IP length is too large by.
    pub ip_excess: i32,
    /// Bytes behind the outer packet.
    pub padding: Vec<u8>,
}

impl Tunnel {
    /// IPv4 address that tunnels begin at: the balancer.
    pub const BEGIN_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    /// IPv6 address that tunnels begin at.
    pub const BEGIN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 1);
    /// IPv4 address that tunnels end at: the backend.
    pub const END_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
    /// IPv6 address that tunnels end at.
    pub const END_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 0x11);

    /// The balancer sends `inner` to the backend, in an outer IPv6 packet or an IPv4 one.
    #[must_use]
    pub fn new(form: Form, ipv6: bool, inner: &Packet) -> Self {
        let (src, dst) = if ipv6 {
            (Self::BEGIN_V6.into(), Self::END_V6.into())
        } else {
            (Self::BEGIN_V4.into(), Self::END_V4.into())
        };
        Self {
            form,
            src,
            dst,
            dst_mac: [2, 0, 0, 0, 0, 0x11],
            src_mac: [2, 0, 0, 0, 0, 0x01],
            tags: Vec::new(),
            ecn: 0,
            options: Vec::new(),
            fragment: None,
            port: 6080,
            gue: None,
            inner: inner.build()[inner.ip_offset()..].to_vec(),
            udp_excess: 0,
            ip_excess: 0,
            padding: Vec::new(),
        }
    }

    /// The same with something changed.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Offset of the outer IP header.
    #[must_use]
    pub fn ip_offset(&self) -> usize {
        Ethernet2Header::LEN + self.tags.len() * SingleVlanHeader::LEN
    }

    /// Length of the outer IP header, options and a fragment header included.
    #[must_use]
    pub fn ip_headers(&self) -> usize {
        match self.src {
            IpAddr::V4(_) => Ipv4Header::MIN_LEN + self.options.len(),
            IpAddr::V6(_) if self.fragment.is_some() => Ipv6Header::LEN + 8,
            IpAddr::V6(_) => Ipv6Header::LEN,
        }
    }

    /// Offset of what is behind the outer IP header.
    #[must_use]
    pub fn payload_offset(&self) -> usize {
        self.ip_offset() + self.ip_headers()
    }

    /// The frame.
    ///
    /// # Panics
    ///
    /// Like [`Self::packet`].
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let outer = match self.src {
            IpAddr::V4(_) => EtherType::IPV4,
            IpAddr::V6(_) => EtherType::IPV6,
        };
        let mut frame = self.link(outer);
        frame.extend(self.packet());
        frame.extend(&self.padding);
        frame
    }

    /// The frame that the stack should get, with this inner packet.
    #[must_use]
    pub fn unwrapped(&self, inner: &[u8]) -> Vec<u8> {
        let mut frame = self.link(match inner[0] >> 4 {
            4 => EtherType::IPV4,
            _ => EtherType::IPV6,
        });
        frame.extend(inner);
        frame
    }

    fn link(&self, ether_type: EtherType) -> Vec<u8> {
        let mut types: Vec<_> = self.tags.iter().map(|tag| EtherType(tag.tpid)).collect();
        types.push(ether_type);
        let ethernet = Ethernet2Header {
            source: self.src_mac,
            destination: self.dst_mac,
            ether_type: types[0],
        };
        let mut bytes = ethernet.to_bytes().to_vec();
        for (tag, ether_type) in self.tags.iter().zip(&types[1..]) {
            let tag = SingleVlanHeader {
                pcp: VlanPcp::try_new(tag.pcp).expect("three bits"),
                drop_eligible_indicator: tag.dei,
                vlan_id: VlanId::try_new(tag.vlan).expect("twelve bits"),
                ether_type: *ether_type,
            };
            bytes.extend(tag.to_bytes());
        }
        bytes
    }

    /// The outer packet.
    ///
    /// # Panics
    ///
    /// When a field does not fit its place in the header.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        let payload = self.payload();
        let protocol = match self.form {
            Form::Ipip => self.inner_number(),
            Form::Gue0 | Form::Gue1 => IpNumber::UDP,
        };
        let mut bytes = Vec::new();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header = Ipv4Header {
                    source: src.octets(),
                    destination: dst.octets(),
                    time_to_live: 64,
                    protocol,
                    identification: 0xfeed,
                    ecn: self.ecn.try_into().expect("two bits"),
                    options: Ipv4Options::try_from(&self.options[..]).expect("whole words"),
                    ..Ipv4Header::default()
                };
                if let Some((offset, more)) = self.fragment {
                    header.fragment_offset = offset.try_into().expect("13 bits");
                    header.more_fragments = more;
                }
                let length = header.header_len() as i32 + payload.len() as i32 + self.ip_excess;
                header.total_len = length as u16;
                header.header_checksum = header.calc_header_checksum();
                bytes.extend(header.to_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut chain = Vec::new();
                if let Some((offset, more_fragments)) = self.fragment {
                    let fragment = Ipv6FragmentHeader {
                        next_header: protocol,
                        fragment_offset: offset.try_into().expect("13 bits"),
                        more_fragments,
                        identification: 0x00c0_ffee,
                    };
                    chain.extend(fragment.to_bytes());
                }
                let header = Ipv6Header {
                    source: src.octets(),
                    destination: dst.octets(),
                    hop_limit: 64,
                    traffic_class: self.ecn,
                    flow_label: 0xf_4321.try_into().expect("20 bits"),
                    next_header: match self.fragment {
                        Some(_) => IpNumber::IPV6_FRAGMENTATION_HEADER,
                        None => protocol,
                    },
                    payload_length: ((chain.len() + payload.len()) as i32 + self.ip_excess) as u16,
                };
                bytes.extend(header.to_bytes());
                bytes.extend(chain);
            }
            (src, dst) => panic!("{src} and {dst} are of different families"),
        }
        bytes.extend(payload);
        bytes
    }

    /// What is behind the outer IP header.
    fn payload(&self) -> Vec<u8> {
        let gue = match self.form {
            Form::Ipip => return self.inner.clone(),
            Form::Gue0 => self
                .gue
                .unwrap_or([0, self.inner_number().0, 0, 0])
                .to_vec(),
            Form::Gue1 => Vec::new(),
        };
        let payload = [gue, self.inner.clone()].concat();
        let length = (UdpHeader::LEN + payload.len()) as i32 + self.udp_excess;
        let mut header = UdpHeader {
            source_port: 0xc123,
            destination_port: self.port,
            length: length as u16,
            checksum: 0,
        };
        if let (IpAddr::V6(src), IpAddr::V6(dst)) = (self.src, self.dst) {
            header.checksum = header
                .calc_checksum_ipv6_raw(src.octets(), dst.octets(), &payload)
                .expect("the payload fits a packet");
        }
        [header.to_bytes().to_vec(), payload].concat()
    }

    /// The protocol of the inner packet; IPv4 where it is of no version.
    fn inner_number(&self) -> IpNumber {
        match self.inner.first() {
            Some(byte) if byte >> 4 == 6 => IpNumber::IPV6,
            _ => IpNumber::IPV4,
        }
    }
}
