//! Packets through the real program: tables of cases and their comparison.
//!
//! A [`Case`] is a [`World`] (what the daemon would have written to the maps) and the
//! packets that come then, each with all that is expected of it: the verdict, every
//! byte of the frame, and the change of every counter and table. A [`Bench`] runs
//! cases through the XDP program in the kernel, in a network of its own.
//!
//! Frames are built from fields, with checksums computed whole, and read again by a
//! library that the program does not use.

mod bench;
mod case;
pub mod conformance;
mod connection;
mod decode;
mod flood;
mod flow;
mod fragment;
mod icmp;
mod namespace;
mod packet;
mod reset;
pub mod rng;
mod site;
mod snapshot;
pub mod soak;
mod tunnel;
mod world;

pub use self::{
    bench::Bench,
    case::{Case, Change, Outcome, Step},
    connection::Connection,
    decode::difference,
    flood::Flood,
    flow::{Flow, Kind},
    fragment::{First, split},
    icmp::{IcmpError, echo, too_big_about},
    namespace::{in_network_namespace, on_one_cpu, with_bpf_file_system},
    packet::{Extension, Net, Packet, Tag, Transport, edit_ipv4},
    reset::reset_for,
    site::{Fate, Front, Site, slot_of},
    tunnel::{Form, Outer, Tunnel},
    world::{BACKEND_IF, CLIENT_IF, INTERVAL, Link, OTHER_IF, World, at_once},
};
