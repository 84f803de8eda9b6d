//! Packets as fields, and as the bytes on the wire.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header,
    Ipv6RawExtHeader, SingleVlanHeader, TcpHeader, UdpHeader, VlanId, VlanPcp,
};

/// A TCP or UDP packet in an Ethernet frame. Lengths, types and checksums are not
/// fields: [`Packet::build`] computes them.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Ethernet destination address.
    pub dst_mac: [u8; 6],
    /// Ethernet source address.
    pub src_mac: [u8; 6],
    /// VLAN tags, the outer first.
    pub tags: Vec<Tag>,
    /// The IP header.
    pub net: Net,
    /// The transport header.
    pub transport: Transport,
    /// What the transport carries.
    pub payload: Vec<u8>,
    /// What follows the IP packet in the frame: Ethernet pads to 60 bytes.
    pub padding: Vec<u8>,
}

/// A VLAN tag (IEEE 802.1Q).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// 0x8100 for a customer's tag, 0x88a8 for a provider's.
    pub tpid: u16,
    /// Priority, 0 to 7.
    pub pcp: u8,
    /// May be dropped first.
    pub dei: bool,
    /// VLAN identifier, 0 to 4095.
    pub vlan: u16,
}

impl Tag {
    /// A customer's tag without priority.
    #[must_use]
    pub const fn new(vlan: u16) -> Self {
        Self {
            tpid: 0x8100,
            pcp: 0,
            dei: false,
            vlan,
        }
    }

    /// A provider's tag without priority.
    #[must_use]
    pub const fn provider(vlan: u16) -> Self {
        Self {
            tpid: 0x88a8,
            ..Self::new(vlan)
        }
    }

    /// The same tag with a priority.
    #[must_use]
    pub const fn priority(self, pcp: u8, dei: bool) -> Self {
        Self { pcp, dei, ..self }
    }
}

/// An IP header.
#[derive(Clone, Debug)]
pub enum Net {
    /// IPv4, with options or without.
    V4(Ipv4Header),
    /// IPv6 and its extension headers.
    V6(Ipv6Header, Vec<Extension>),
}

/// An IPv6 extension header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Hop-by-hop options, padding of this many bytes: six and a multiple of eight.
    HopByHop(usize),
    /// Destination options, like hop-by-hop options.
    Destination(usize),
    /// A routing header with this many segments left.
    Routing(u8),
    /// A fragment header: offset in units of eight bytes, more fragments.
    Fragment(u16, bool),
}

/// A transport header.
#[derive(Clone, Debug)]
pub enum Transport {
    /// TCP.
    Tcp(TcpHeader),
    /// UDP, with a checksum or without.
    Udp {
        /// The header.
        header: UdpHeader,
        /// Zero instead of a checksum.
        unchecked: bool,
    },
}

/// TTL and hop limit that senders begin with here.
const TTL: u8 = 64;

impl Packet {
    /// A TCP packet, of which `set` sets the flags.
    #[must_use]
    pub fn tcp(src: SocketAddr, dst: SocketAddr, set: impl FnOnce(&mut TcpHeader)) -> Self {
        let mut header = TcpHeader::new(src.port(), dst.port(), 0x1234_5678, 0x7fff);
        header.acknowledgment_number = 0x8765_4321;
        set(&mut header);
        Self::new(src.ip(), dst.ip(), Transport::Tcp(header))
    }

    /// A UDP packet.
    #[must_use]
    pub fn udp(src: SocketAddr, dst: SocketAddr) -> Self {
        let header = UdpHeader {
            source_port: src.port(),
            destination_port: dst.port(),
            ..UdpHeader::default()
        };
        let unchecked = false;
        Self::new(src.ip(), dst.ip(), Transport::Udp { header, unchecked })
    }

    fn new(src: IpAddr, dst: IpAddr, transport: Transport) -> Self {
        let net = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => Net::V4(Ipv4Header {
                source: src.octets(),
                destination: dst.octets(),
                time_to_live: TTL,
                identification: 0xbeef,
                dont_fragment: true,
                ..Ipv4Header::default()
            }),
            (IpAddr::V6(src), IpAddr::V6(dst)) => Net::V6(
                Ipv6Header {
                    source: src.octets(),
                    destination: dst.octets(),
                    hop_limit: TTL,
                    flow_label: 0xf_1234.try_into().expect("20 bits"),
                    ..Ipv6Header::default()
                },
                Vec::new(),
            ),
            _ => panic!("{src} and {dst} are of different families"),
        };
        Self {
            dst_mac: [0; 6],
            src_mac: [0; 6],
            tags: Vec::new(),
            net,
            transport,
            payload: Vec::new(),
            padding: Vec::new(),
        }
    }

    /// The same packet with this payload.
    #[must_use]
    pub fn with_payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = payload.into();
        self
    }

    /// The same packet with this TTL or hop limit.
    #[must_use]
    pub fn with_ttl(mut self, ttl: u8) -> Self {
        self.set_ttl(ttl);
        self
    }

    /// The same packet with these VLAN tags.
    #[must_use]
    pub fn with_tags(mut self, tags: &[Tag]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    /// The same IPv6 packet with these extension headers.
    #[must_use]
    pub fn with_extensions(mut self, extensions: &[Extension]) -> Self {
        let Net::V6(_, old) = &mut self.net else {
            panic!("IPv4 has no extension headers");
        };
        *old = extensions.to_vec();
        self
    }

    /// The same packet with its IPv4 header changed.
    #[must_use]
    pub fn with_ipv4(mut self, change: impl FnOnce(&mut Ipv4Header)) -> Self {
        let Net::V4(header) = &mut self.net else {
            panic!("this is an IPv6 packet");
        };
        change(header);
        self
    }

    /// The same packet with its IPv6 header changed.
    #[must_use]
    pub fn with_ipv6(mut self, change: impl FnOnce(&mut Ipv6Header)) -> Self {
        let Net::V6(header, _) = &mut self.net else {
            panic!("this is an IPv4 packet");
        };
        change(header);
        self
    }

    /// The same packet with its TCP header changed.
    #[must_use]
    pub fn with_tcp(mut self, change: impl FnOnce(&mut TcpHeader)) -> Self {
        let Transport::Tcp(header) = &mut self.transport else {
            panic!("this is a UDP packet");
        };
        change(header);
        self
    }

    /// The same UDP packet without a checksum.
    #[must_use]
    pub fn unchecked(mut self) -> Self {
        let Transport::Udp { unchecked, .. } = &mut self.transport else {
            panic!("a TCP packet has a checksum");
        };
        *unchecked = true;
        self
    }

    /// TTL or hop limit.
    #[must_use]
    pub fn ttl(&self) -> u8 {
        match &self.net {
            Net::V4(header) => header.time_to_live,
            Net::V6(header, _) => header.hop_limit,
        }
    }

    /// Sets the TTL or hop limit.
    pub fn set_ttl(&mut self, ttl: u8) {
        match &mut self.net {
            Net::V4(header) => header.time_to_live = ttl,
            Net::V6(header, _) => header.hop_limit = ttl,
        }
    }

    /// Sets addresses and ports.
    pub fn set_tuple(&mut self, src: SocketAddr, dst: SocketAddr) {
        match (&mut self.net, src.ip(), dst.ip()) {
            (Net::V4(header), IpAddr::V4(src), IpAddr::V4(dst)) => {
                header.source = src.octets();
                header.destination = dst.octets();
            }
            (Net::V6(header, _), IpAddr::V6(src), IpAddr::V6(dst)) => {
                header.source = src.octets();
                header.destination = dst.octets();
            }
            _ => panic!("{src} and {dst} are not of the packet's family"),
        }
        match &mut self.transport {
            Transport::Tcp(header) => {
                header.source_port = src.port();
                header.destination_port = dst.port();
            }
            Transport::Udp { header, .. } => {
                header.source_port = src.port();
                header.destination_port = dst.port();
            }
        }
    }

    /// Source and destination.
    #[must_use]
    pub fn sockets(&self) -> (SocketAddr, SocketAddr) {
        let (src, dst): (IpAddr, IpAddr) = match &self.net {
            Net::V4(header) => (header.source.into(), header.destination.into()),
            Net::V6(header, _) => (header.source.into(), header.destination.into()),
        };
        let (src_port, dst_port) = match &self.transport {
            Transport::Tcp(header) => (header.source_port, header.destination_port),
            Transport::Udp { header, .. } => (header.source_port, header.destination_port),
        };
        ((src, src_port).into(), (dst, dst_port).into())
    }

    /// Takes from the IP header what tells of the sender or of other packets.
    pub(crate) fn strip(&mut self) {
        match &mut self.net {
            Net::V4(header) => header.identification = 0,
            Net::V6(header, _) => header.flow_label = Default::default(),
        }
    }

    /// The same packet as a fragment at an offset in units of eight bytes. What stands in
    /// the place of the transport header is one, also in a later fragment.
    #[must_use]
    pub fn as_fragment(self, offset: u16, more: bool) -> Self {
        match self.net {
            Net::V6(..) => self.with_extensions(&[Extension::Fragment(offset, more)]),
            Net::V4(_) => self.with_ipv4(|ip| {
                ip.fragment_offset = offset.try_into().expect("13 bits");
                (ip.more_fragments, ip.dont_fragment) = (more, false);
            }),
        }
    }

    /// The Ethernet header with its tags.
    #[must_use]
    pub fn ethernet(&self) -> Vec<u8> {
        self.build()[..self.ip_offset()].to_vec()
    }

    /// The IP packet.
    #[must_use]
    pub fn ip(&self) -> Vec<u8> {
        let begin = self.ip_offset();
        self.build()[begin..begin + self.ip_length()].to_vec()
    }

    /// Offset of the IP header in the frame.
    #[must_use]
    pub fn ip_offset(&self) -> usize {
        Ethernet2Header::LEN + self.tags.len() * SingleVlanHeader::LEN
    }

    /// Offset of the transport header in the frame.
    #[must_use]
    pub fn transport_offset(&self) -> usize {
        let headers = match &self.net {
            Net::V4(header) => header.header_len(),
            Net::V6(_, extensions) => {
                Ipv6Header::LEN + extensions.iter().map(Extension::length).sum::<usize>()
            }
        };
        self.ip_offset() + headers
    }

    /// Length of the transport header in bytes, its options included.
    #[must_use]
    pub fn transport_length(&self) -> usize {
        match &self.transport {
            Transport::Tcp(header) => header.header_len(),
            Transport::Udp { .. } => UdpHeader::LEN,
        }
    }

    /// Length of the IP packet in bytes, its header included.
    #[must_use]
    pub fn ip_length(&self) -> usize {
        self.build().len() - self.ip_offset() - self.padding.len()
    }

    /// The checksum in the transport header.
    #[must_use]
    pub fn transport_checksum(&self) -> u16 {
        let segment = self.segment();
        let offset = match self.transport {
            Transport::Tcp(_) => 16,
            Transport::Udp { .. } => 6,
        };
        u16::from_be_bytes([segment[offset], segment[offset + 1]])
    }

    /// The frame.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        let mut types: Vec<u16> = self.tags.iter().map(|tag| tag.tpid).collect();
        types.push(match self.net {
            Net::V4(_) => EtherType::IPV4.0,
            Net::V6(..) => EtherType::IPV6.0,
        });
        let ethernet = Ethernet2Header {
            source: self.src_mac,
            destination: self.dst_mac,
            ether_type: EtherType(types[0]),
        };
        frame.extend(ethernet.to_bytes());
        for (tag, ether_type) in self.tags.iter().zip(&types[1..]) {
            let header = SingleVlanHeader {
                pcp: VlanPcp::try_new(tag.pcp).expect("three bits"),
                drop_eligible_indicator: tag.dei,
                vlan_id: VlanId::try_new(tag.vlan).expect("twelve bits"),
                ether_type: EtherType(*ether_type),
            };
            frame.extend(header.to_bytes());
        }
        let segment = self.segment();
        match &self.net {
            Net::V4(header) => {
                let mut header = header.clone();
                header.protocol = self.protocol();
                header.set_payload_len(segment.len()).expect("16 bits");
                header.header_checksum = header.calc_header_checksum();
                frame.extend(header.to_bytes());
            }
            Net::V6(header, extensions) => {
                let mut next: Vec<_> = extensions.iter().map(Extension::number).collect();
                next.push(self.protocol());
                let mut chain = Vec::new();
                for (extension, next) in extensions.iter().zip(&next[1..]) {
                    extension.write(*next, &mut chain);
                }
                let mut header = header.clone();
                header.next_header = next[0];
                header
                    .set_payload_length(chain.len() + segment.len())
                    .expect("16 bits");
                frame.extend(header.to_bytes());
                frame.extend(chain);
            }
        }
        frame.extend(segment);
        frame.extend(&self.padding);
        frame
    }

    fn protocol(&self) -> IpNumber {
        match self.transport {
            Transport::Tcp(_) => IpNumber::TCP,
            Transport::Udp { .. } => IpNumber::UDP,
        }
    }

    /// The transport header, with its checksum, and the payload.
    fn segment(&self) -> Vec<u8> {
        let payload = &self.payload;
        let mut bytes = match &self.transport {
            Transport::Tcp(header) => {
                let mut header = header.clone();
                header.checksum = match &self.net {
                    Net::V4(ip) => header.calc_checksum_ipv4(ip, payload),
                    Net::V6(ip, _) => header.calc_checksum_ipv6(ip, payload),
                }
                .expect("the payload fits a packet");
                header.to_bytes().to_vec()
            }
            Transport::Udp { header, unchecked } => {
                let mut header = header.clone();
                header.length = (UdpHeader::LEN + payload.len()) as u16;
                header.checksum = match &self.net {
                    _ if *unchecked => Ok(0),
                    Net::V4(ip) => header.calc_checksum_ipv4(ip, payload),
                    Net::V6(ip, _) => header.calc_checksum_ipv6(ip, payload),
                }
                .expect("the payload fits a packet");
                header.to_bytes().to_vec()
            }
        };
        bytes.extend(payload);
        bytes
    }
}

impl Extension {
    /// What fragments of a packet have in common.
    pub const IDENTIFICATION: u32 = 0x00c0_ffee;

    fn number(&self) -> IpNumber {
        match self {
            Self::HopByHop(_) => IpNumber::IPV6_HEADER_HOP_BY_HOP,
            Self::Destination(_) => IpNumber::IPV6_DESTINATION_OPTIONS,
            Self::Routing(_) => IpNumber::IPV6_ROUTE_HEADER,
            Self::Fragment(..) => IpNumber::IPV6_FRAGMENTATION_HEADER,
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            Self::HopByHop(padding) | Self::Destination(padding) => 2 + padding,
            Self::Routing(_) | Self::Fragment(..) => 8,
        }
    }

    fn write(&self, next: IpNumber, bytes: &mut Vec<u8>) {
        let raw = |payload: &[u8]| {
            Ipv6RawExtHeader::new_raw(next, payload)
                .expect("six bytes and a multiple of eight")
                .to_bytes()
        };
        match *self {
            // Pad1 options (RFC 8200, section 4.2).
            Self::HopByHop(padding) | Self::Destination(padding) => {
                bytes.extend(raw(&vec![0; padding]));
            }
            // A type of no meaning: what is left says enough.
            Self::Routing(segments_left) => {
                bytes.extend(raw(&[253, segments_left, 0, 0, 0, 0]));
            }
            Self::Fragment(offset, more_fragments) => {
                let header = Ipv6FragmentHeader {
                    next_header: next,
                    fragment_offset: offset.try_into().expect("13 bits"),
                    more_fragments,
                    identification: Self::IDENTIFICATION,
                };
                bytes.extend(header.to_bytes());
            }
        }
    }
}

/// Changes fields of the IPv4 header at `offset` of a frame that [`Packet`] has not,
/// and makes the header checksum right again.
pub fn edit_ipv4(frame: &mut [u8], offset: usize, change: impl FnOnce(&mut Ipv4Header)) {
    let (mut header, _) = Ipv4Header::from_slice(&frame[offset..]).expect("an IPv4 header");
    change(&mut header);
    header.header_checksum = header.calc_header_checksum();
    let bytes = header.to_bytes();
    frame[offset..offset + bytes.len()].copy_from_slice(&bytes);
}
