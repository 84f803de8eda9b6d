//! Tunnel packets as fields, and as the bytes on the wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::{Packet, Tag};
use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv4Options, Ipv6FragmentHeader, Ipv6Header,
    SingleVlanHeader, UdpHeader, VlanId, VlanPcp,
};

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
