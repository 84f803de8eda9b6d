//! `lb decap`: unwraps tunnels on a backend host.
//!
//! The XDP program knows four things: at which addresses tunnels end, whose it takes,
//! for whom, and at which port GUE is. The last two are given at the start. The first
//! two follow, unless they are given, from the addresses of the interfaces, and are
//! kept fresh while those change.

mod prefix;
mod status;
mod wanted;
mod watch;

use std::{
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use lb_common::decap::{MAX_VIPS, Passed, REASONS};

use self::{
    wanted::{Source, Wanted},
    watch::Watch,
};
use crate::{
    config::XdpMode,
    daemon::{explained, index_of, xdp_mode},
    datapath,
    neighbour::{self, Locality},
    state::{InterfaceStatus, Reason},
};

pub use prefix::Prefix;
pub use status::{SourceStatus, Status, VipStatus};

/// Where the API listens unless the command line says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/lb/decap.sock";

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names of the interfaces that tunnels come in by.
    pub interfaces: Vec<String>,
    /// Whom the inner packets are for. Others are left alone.
    pub vips: Vec<Prefix>,
    /// Where tunnels may begin; empty for the networks of each interface.
    pub sources: Vec<Prefix>,
    /// Where tunnels may end; empty for all addresses of the interfaces.
    pub locals: Vec<std::net::IpAddr>,
    /// UDP port of GUE.
    pub gue_port: u16,
    /// How to attach.
    pub xdp_mode: XdpMode,
    /// Where the API listens.
    pub socket: PathBuf,
}

/// The running program. Detached when this and its [`Handle`]s are dropped.
#[derive(Debug)]
pub struct Decap {
    state: Arc<Mutex<State>>,
    watch: Watch,
}

/// What the program is told, and tells. Clones are of the same program.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Mutex<State>>);

struct State {
    program: datapath::Decap,
    config: Config,
    attached: Vec<Attached>,
    written: Wanted,
}

/// An interface that the program is attached to.
#[derive(Clone, Debug)]
struct Attached {
    ifindex: u32,
    name: String,
    mode: datapath::AttachedMode,
}

impl Decap {
    /// Loads the program, tells it what `config` says and attaches it. Needs the Tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// See [`datapath::Error`].
    pub fn start(mut config: Config) -> anyhow::Result<Self> {
        config.interfaces.sort_unstable();
        config.interfaces.dedup();
        config.vips.sort_unstable();
        config.vips.dedup();
        if config.vips.len() > MAX_VIPS as usize {
            return Err(Reason::new(
                format!("{} VIPs are too many", config.vips.len()),
                format!("name at most {MAX_VIPS}; a prefix is one"),
            )
            .into());
        }
        // Listening begins before anything is asked, so that no change falls between.
        let watch = Watch::open().context("listening to the kernel's addresses")?;
        let interfaces = neighbour::interfaces()?;
        let indices: Vec<u32> = config
            .interfaces
            .iter()
            .map(|name| index_of(&interfaces, name))
            .collect::<Result<_, _>>()
            .map_err(explained)?;

        let mut program = datapath::Decap::load(config.gue_port).map_err(explained)?;
        for (index, vip) in (0..).zip(&config.vips) {
            program
                .set_vip(index, vip.address(), vip.length())
                .map_err(explained)?;
        }
        let mut state = State {
            program,
            attached: Vec::new(),
            written: Wanted::default(),
            config,
        };
        // Before it is attached, so that no tunnel is refused that will be taken.
        state.refresh(&indices)?;
        for (name, ifindex) in state.config.interfaces.iter().zip(indices) {
            let mode = state
                .program
                .attach(name, xdp_mode(state.config.xdp_mode))
                .map_err(explained)?;
            tracing::info!(interface = %name, mode = mode.as_str(), "attached");
            state.attached.push(Attached {
                ifindex,
                name: name.clone(),
                mode,
            });
        }
        state.warn_of_foreign_vips();
        Ok(Self {
            state: Arc::new(Mutex::new(state)),
            watch,
        })
    }

    /// What can ask it while it runs.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.state))
    }

    /// Follows the addresses of the interfaces until `shutdown` comes.
    ///
    /// # Errors
    ///
    /// Where the kernel no longer tells what changes.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                changed = self.watch.changed() => changed.context("listening to the kernel's addresses")?,
            }
            let mut state = lock(&self.state);
            let indices: Vec<_> = state.attached.iter().map(|on| on.ifindex).collect();
            // What was written before stays; the next change is another try.
            if let Err(error) = state.refresh(&indices) {
                tracing::error!("cannot follow the addresses of this host: {error:#}");
            }
        }
    }
}

impl Handle {
    /// What is: blocks while the kernel is asked.
    ///
    /// # Errors
    ///
    /// Where the kernel does not tell.
    pub fn status(&self) -> anyhow::Result<Status> {
        lock(&self.0).status()
    }
}

/// Whoever held it before has left it as whole as any system call that failed.
fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Tells the program what follows from the addresses that the interfaces of these
    /// indices have now.
    fn refresh(&mut self, indices: &[u32]) -> anyhow::Result<()> {
        let interfaces = neighbour::interfaces()?;
        let addresses = neighbour::addresses()?;
        let wanted = Wanted::new(&self.config, indices, &interfaces, &addresses);
        self.write(wanted).map_err(explained)
    }

    /// Brings the maps from what was written to `wanted`: first what is new, so that
    /// nothing that stays allowed is refused meanwhile.
    fn write(&mut self, wanted: Wanted) -> datapath::Result<()> {
        let Self {
            program, written, ..
        } = self;
        for local in wanted.locals.difference(&written.locals) {
            program.set_local(*local)?;
        }
        for Source { ifindex, prefix } in wanted.sources.difference(&written.sources) {
            program.set_source(*ifindex, prefix.address(), prefix.length())?;
        }
        for local in written.locals.difference(&wanted.locals) {
            program.remove_local(*local)?;
        }
        for Source { ifindex, prefix } in written.sources.difference(&wanted.sources) {
            program.remove_source(*ifindex, prefix.address(), prefix.length())?;
        }
        if *written != wanted {
            tracing::info!(
                locals = wanted.locals.len(),
                sources = wanted.sources.len(),
                "told the program where tunnels end and begin"
            );
        }
        *written = wanted;
        Ok(())
    }

    fn status(&self) -> anyhow::Result<Status> {
        let vip = |(index, vip): (u32, &Prefix)| -> anyhow::Result<VipStatus> {
            let counters = self.program.counters(index).map_err(explained)?;
            let locality = neighbour::locality((*vip).into())?;
            Ok(VipStatus {
                address: vip.to_string(),
                local: locality == Locality::All,
                partly_local: locality == Locality::Part,
                packets: counters.packets,
                bytes: counters.bytes,
            })
        };
        // Those of interfaces that belong to a bond are the bond's.
        let shown = |source: &Source| {
            let attached = self
                .attached
                .iter()
                .find(|on| on.ifindex == source.ifindex)?;
            Some(SourceStatus {
                interface: attached.name.clone(),
                prefix: source.prefix.to_string(),
            })
        };
        Ok(Status {
            vips: (0..)
                .zip(&self.config.vips)
                .map(vip)
                .collect::<Result<_, _>>()?,
            passed: Passed::ALL
                .iter()
                .map(|why| Ok((why.name().to_owned(), self.program.passed(*why)?)))
                .collect::<datapath::Result<_>>()
                .map_err(explained)?,
            drops: REASONS
                .iter()
                .map(|reason| Ok((reason.name().to_owned(), self.program.dropped(*reason)?)))
                .collect::<datapath::Result<_>>()
                .map_err(explained)?,
            interfaces: self
                .attached
                .iter()
                .map(|on| InterfaceStatus {
                    name: on.name.clone(),
                    state: "attached".to_owned(),
                    error: None,
                    mode: on.mode.as_str().to_owned(),
                })
                .collect(),
            gue_port: self.config.gue_port,
            locals: self
                .written
                .locals
                .iter()
                .map(ToString::to_string)
                .collect(),
            sources: self.written.sources.iter().filter_map(shown).collect(),
        })
    }

    /// Warns of VIPs whose packets this host would not take.
    fn warn_of_foreign_vips(&self) {
        for vip in &self.config.vips {
            match neighbour::locality((*vip).into()) {
                Ok(Locality::All) => {}
                Ok(Locality::Part) => tracing::warn!(
                    "only a part of {vip} is this host's, which will not take packets to the \
                     rest; {}",
                    remedy(*vip)
                ),
                Ok(Locality::None) => tracing::warn!(
                    "{vip} is no address of this host, which will not take packets to it; {}",
                    remedy(*vip)
                ),
                Err(error) => tracing::warn!("cannot tell whether {vip} is this host's: {error:#}"),
            }
        }
    }
}

/// How to make a VIP the host's own.
fn remedy(vip: Prefix) -> String {
    if vip.is_address() {
        let length = vip.length();
        format!(
            "`ip address add {}/{length} dev lo` makes it one",
            vip.address()
        )
    } else {
        format!("`ip route add local {vip} dev lo` makes it one")
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("config", &self.config)
            .field("attached", &self.attached)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}
