//! The driver program in the kernel: makes packets and calls the program under test with each,
//! as many as it is told, in one system call.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
pub use aya::programs::ProgramFd;
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, ProgramArray},
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
};
use lb_bench_driver::name;
pub use lb_bench_driver::{FRAME, Order, Plan, Reply4, Reply6, Vary};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::ClockId,
    unistd::Pid,
};
use zerocopy::{FromBytes as _, Immutable, IntoBytes};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/driver"));

const PLAN: usize = size_of::<Plan>();
const REPLY4: usize = size_of::<Reply4>();
const REPLY6: usize = size_of::<Reply6>();

/// Most bytes that a tunnel puts in front: headers of IPv6, UDP and GUE.
const MAX_OVERHEAD: usize = 40 + 8 + 4;

/// `enum xdp_action` of linux/bpf.h, as far as programs here return it.
pub const XDP_PASS: u32 = 2;
/// See [`XDP_PASS`].
pub const XDP_TX: u32 = 3;

/// What the driver calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callee {
    /// A program that does nothing.
    Empty,
    /// The program under test.
    UnderTest,
}

/// The driver, loaded.
pub struct Driver {
    ebpf: Ebpf,
    plan: Array<MapData, [u8; PLAN]>,
    replies_v4: Array<MapData, [u8; REPLY4]>,
    replies_v6: Array<MapData, [u8; REPLY6]>,
    callee: ProgramArray<MapData>,
    ifindex: u32,
}

/// What is done to every frame that comes in by an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fixed {
    /// It is dropped.
    Swallow,
    /// It is sent back, with its Ethernet addresses exchanged.
    Reflect,
}

/// What runs of the driver came to.
pub struct Outcome {
    /// CPU time that the thread spent, in user and kernel mode.
    pub time: Duration,
    /// What the last run returned.
    pub verdict: u32,
    /// The frame after the last run.
    pub frame: Vec<u8>,
}

impl Driver {
    /// Loads the driver with room for `replies` replies of either family. Frames come in by
    /// the interface `ifindex`.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses: it takes root and BPF.
    pub fn load(replies: u32, ifindex: u32) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(name::REPLIES_V4, replies)
            .map_max_entries(name::REPLIES_V6, replies)
            .load(OBJECT)
            .context("cannot load the driver program; the benchmark must run as root")?;
        for program in [
            name::DRIVER,
            name::EMPTY,
            name::TRANSMIT,
            name::SWALLOW,
            name::REFLECT,
        ] {
            xdp(&mut ebpf, program)?.load()?;
        }
        let mut take = |name| {
            ebpf.take_map(name)
                .context("a map of the driver is missing")
        };
        Ok(Self {
            plan: take(name::PLAN)?.try_into()?,
            replies_v4: take(name::REPLIES_V4)?.try_into()?,
            replies_v6: take(name::REPLIES_V6)?.try_into()?,
            callee: take(name::CALLEE)?.try_into()?,
            ebpf,
            ifindex,
        })
    }

    /// Writes the IPv4 replies.
    ///
    /// # Errors
    ///
    /// Where there are more than there is room for.
    pub fn set_replies4(&mut self, replies: &[Reply4]) -> Result<()> {
        set_all(&mut self.replies_v4, replies)
    }

    /// Writes the IPv6 replies.
    ///
    /// # Errors
    ///
    /// Where there are more than there is room for.
    pub fn set_replies6(&mut self, replies: &[Reply6]) -> Result<()> {
        set_all(&mut self.replies_v6, replies)
    }

    /// Runs the driver `runs` times, at least once. The plan goes on in `plan`.
    ///
    /// # Errors
    ///
    /// Where the kernel does not run it, or not as often.
    pub fn run(
        &mut self,
        callee: Callee,
        under_test: &ProgramFd,
        plan: &mut Plan,
        runs: u32,
    ) -> Result<Outcome> {
        let callee = match callee {
            Callee::Empty => xdp(&mut self.ebpf, name::EMPTY)?.fd()?,
            Callee::UnderTest => under_test,
        };
        self.callee.set(0, callee, 0)?;
        self.plan.set(0, bytes(plan), 0)?;
        let mut frame = vec![0; FRAME + MAX_OVERHEAD];
        let context = context(self.ifindex);
        let driver = xdp(&mut self.ebpf, name::DRIVER)?;
        let start = thread_time()?;
        let result = driver.test_run(TestRunOptions {
            data_in: Some(&plan.frame),
            data_out: Some(&mut frame),
            ctx_in: Some(&context),
            repeat: runs,
            ..TestRunOptions::default()
        })?;
        let time = thread_time()? - start;

        frame.truncate(result.data_size_out as usize);
        self.take_plan(plan, runs)?;
        Ok(Outcome {
            time,
            verdict: result.return_value,
            frame,
        })
    }

    /// Sends so many frames out of the interface that was given to [`Self::load`], in the
    /// network namespace of the calling thread. The plan goes on in `plan`. Returns how long it
    /// took, by the clock.
    ///
    /// # Errors
    ///
    /// Where the kernel does not send them.
    pub fn transmit(&mut self, plan: &mut Plan, frames: u32) -> Result<Duration> {
        let transmit = xdp(&mut self.ebpf, name::TRANSMIT)?.fd()?;
        self.callee.set(0, transmit, 0)?;
        self.plan.set(0, bytes(plan), 0)?;
        let context = context(self.ifindex);
        let driver = xdp(&mut self.ebpf, name::DRIVER)?;
        let start = Instant::now();
        driver.test_run(TestRunOptions {
            data_in: Some(&plan.frame),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        })?;
        let time = start.elapsed();
        self.take_plan(plan, frames)?;
        Ok(time)
    }

    /// Does this to every frame that comes in by an interface of the network namespace of the
    /// calling thread, until this value is dropped.
    ///
    /// # Errors
    ///
    /// Where there is no such interface, or it has a program.
    pub fn attach(&mut self, fixed: Fixed, interface: &str) -> Result<()> {
        let name = match fixed {
            Fixed::Swallow => name::SWALLOW,
            Fixed::Reflect => name::REFLECT,
        };
        xdp(&mut self.ebpf, name)?
            .attach(interface, XdpMode::Driver)
            .with_context(|| format!("cannot attach to {interface}"))?;
        Ok(())
    }

    /// Reads how far the driver has come, which is to be by so many runs.
    fn take_plan(&self, plan: &mut Plan, runs: u32) -> Result<()> {
        let next = plan.next.wrapping_add(runs);
        *plan = Plan::read_from_bytes(&self.plan.get(&0, 0)?)
            .ok()
            .context("the plan has another size")?;
        if plan.next != next {
            bail!("the driver counted to {} in place of {next}", plan.next);
        }
        Ok(())
    }
}

/// Frames that are sent at a time, as a network card's driver does it.
const BATCH: u32 = 64;

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf
        .program_mut(name)
        .with_context(|| format!("the driver has no program {name}"))?
        .try_into()?)
}

fn set_all<T: IntoBytes + Immutable, const N: usize>(
    map: &mut Array<MapData, [u8; N]>,
    values: &[T],
) -> Result<()> {
    for (index, value) in (0..).zip(values) {
        map.set(index, bytes(value), 0)?;
    }
    Ok(())
}

/// The bytes of a value that has `N` of them.
fn bytes<T: IntoBytes + Immutable, const N: usize>(value: &T) -> [u8; N] {
    value
        .as_bytes()
        .try_into()
        .expect("the array has the size of the value")
}

/// `struct xdp_md` of linux/bpf.h: the frame's length and where it came in.
fn context(ifindex: u32) -> [u8; 24] {
    zerocopy::transmute!([0, FRAME as u32, 0, ifindex, 0, 0])
}

/// CPU time of this thread.
///
/// # Errors
///
/// Where the kernel does not tell.
pub fn thread_time() -> Result<Duration> {
    Ok(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?.into())
}

/// Keeps this thread on one CPU: the last that it may use, since the first has the
/// most interrupts.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn pin_thread() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut last = None;
    for cpu in 0..CpuSet::count() {
        if allowed.is_set(cpu)? {
            last = Some(cpu);
        }
    }
    let mut one = CpuSet::new();
    one.set(last.context("the thread may run on no CPU")?)?;
    sched_setaffinity(this, &one).context("cannot keep the thread on one CPU")
}
