//! Single packets through the real program, without a network.

use std::time::Duration;

use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use zerocopy::{Immutable, IntoBytes};

use super::error::{Error, Result};

/// What XDP is to do with a packet: `enum xdp_action` of linux/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The program failed. Never seen of a program that works.
    Aborted,
    /// Drop it.
    Drop,
    /// Hand it to the network stack.
    Pass,
    /// Send it out of the interface that it came in by.
    Tx,
    /// Send it out of another interface.
    Redirect,
}

/// What the program made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// What is to happen to it.
    pub verdict: Verdict,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// How long the program ran, by the kernel's clock.
    pub duration: Duration,
}

/// `struct xdp_md` of linux/bpf.h.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// What a frame may grow by.
const GROWTH: usize = 256;

pub(super) fn test_run(program: &Xdp, frame: &[u8], ifindex: u32) -> Result<TestRun> {
    let context = Context {
        data: 0,
        data_end: frame.len() as u32,
        data_meta: 0,
        ingress_ifindex: ifindex,
        rx_queue_index: 0,
        egress_ifindex: 0,
    };
    let mut output = vec![0; frame.len() + GROWTH];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut output),
            ctx_in: Some(context.as_bytes()),
            ..TestRunOptions::default()
        })
        .map_err(Error::TestRun)?;
    output.truncate(result.data_size_out as usize);
    Ok(TestRun {
        verdict: match result.return_value {
            1 => Verdict::Drop,
            2 => Verdict::Pass,
            3 => Verdict::Tx,
            4 => Verdict::Redirect,
            _ => Verdict::Aborted,
        },
        frame: output,
        duration: result.duration,
    })
}
