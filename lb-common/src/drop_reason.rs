//! Why a packet was dropped: one numbered list for counters, messages, the
//! command line and the documentation. Numbers and names are never reused.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal;)+) => {
        /// Why the datapath dropped a packet.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl DropReason {
            /// Every reason, by number.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name in counters, JSON and messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What happened, in a sentence.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+).trim_ascii(),)+
                }
            }

            /// The reason with this number.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

drop_reasons! {
    /// The IP header is truncated, or its length field is too small.
    IpHeader = 1, "ip-header";
    /// The IP length field says more bytes than the frame has, or fewer than the headers need.
    IpLength = 2, "ip-length";
    /// The IPv4 header checksum is wrong.
    IpChecksum = 3, "ip-checksum";
    /// The IPv6 extension headers are truncated, too many, misplaced, or route the packet onward.
    Ipv6Extension = 5, "ipv6-extension";
    /// The TCP or UDP header is truncated, or its length field is wrong.
    TransportHeader = 6, "transport-header";
    /// The TCP flags contradict each other, as no real connection's do.
    TcpFlags = 7, "tcp-flags";
    /// The TTL or hop limit would reach zero here.
    TtlExpired = 8, "ttl-expired";
    /// The service has no backend that takes new flows.
    NoBackend = 9, "no-backend";
    /// The flow's backend was removed.
    BackendGone = 10, "backend-gone";
    /// The backend's next hop is not resolved (no route, or no neighbour entry).
    NextHopUnresolved = 11, "next-hop-unresolved";
    /// A TCP packet that begins no connection, of no connection that is known.
    NoFlow = 12, "no-flow";
    /// The flow table is full.
    FlowTableFull = 13, "flow-table-full";
    /// No source port is free towards this backend.
    SourcePortsExhausted = 14, "source-ports-exhausted";
    /// The reply tuple is taken by another flow.
    ReplyTupleTaken = 15, "reply-tuple-taken";
    /// The packet is larger than the MTU of the interface that it would leave by.
    TooBig = 16, "too-big";
    /// The frame would leave by an interface that the balancer does not use.
    NoInterface = 17, "no-interface";
    /// The kernel could not make room for another header.
    NoHeadroom = 18, "no-headroom";
    /// No service has this port, and other ports of the address are to be dropped.
    NoService = 19, "no-service";
    /// The source address is the destination's, or no client's address at all.
    MartianSource = 20, "martian-source";
    /// The client is the backend itself, which would get its own packet back.
    Hairpin = 21, "hairpin";
    /// The first fragment of the packet has not been seen.
    FragmentFirstMissing = 22, "fragment-first-missing";
    /// The first fragment is too short for the transport header.
    FragmentTiny = 23, "fragment-tiny";
    /// The fragment overlaps the first one.
    FragmentOverlap = 24, "fragment-overlap";
    /// The ICMP error is truncated, or quotes less than the ports of a packet.
    IcmpHeader = 25, "icmp-header";
    /// Every backend that was tried has as many flows as it takes.
    BackendsFull = 26, "backends-full";
    /// The service takes no packets from this source.
    SourceDenied = 30, "source-denied";
    /// The source has begun as many flows as the service lets one begin.
    RateLimitedSource = 31, "rate-limited-source";
    /// All sources together have begun as many flows as the service lets begin.
    RateLimitedService = 32, "rate-limited-service";
    /// The deadline of the backend's drain has passed; of a TCP connection, an RST goes to one of its ends.
    Drained = 35, "drained";
    /// The headers of a tunnel to a backend host are truncated, contradict each other, or are of no form that is unwrapped.
    TunnelHeader = 40, "tunnel-header";
    /// A tunnel packet to a backend host comes from a source that is not allowed.
    TunnelSource = 41, "tunnel-source";
    /// A tunnel packet met congestion, and what it carries cannot say so (RFC 6040).
    TunnelEcn = 42, "tunnel-ecn";
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{format, string::String};

    use super::*;

    #[test]
    fn numbers_and_names_lead_back_to_the_reason() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(DropReason::from_number(*reason as u16), Some(*reason));
            let others = &DropReason::ALL[index + 1..];
            assert!(others.iter().all(|other| other.name() != reason.name()));
        }
        assert_eq!(DropReason::from_number(0), None);
    }

    #[test]
    fn the_readme_has_the_same_list() {
        let row =
            |reason: &DropReason| format!("| `{}` | {} |\n", reason.name(), reason.description());
        let table: String = DropReason::ALL.iter().map(row).collect();
        let readme = include_str!("../../README.md");
        assert!(
            readme.contains(&table),
            "README.md should have these rows:\n{table}"
        );
    }
}
