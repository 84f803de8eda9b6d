//! What can be typed.

use std::{
    env,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{
    CommandFactory, Parser, Subcommand,
    builder::{NonEmptyStringValueParser, PossibleValue, PossibleValuesParser, TypedValueParser},
    error::ErrorKind,
    value_parser,
};
use tracing_subscriber::{EnvFilter, filter::ParseError};

use crate::{
    address::AddressPrefix,
    config::{self, DEFAULT_SOCKET, DatapathLog, XdpMode, duration},
    decap::Prefix,
    state::{
        BackendAddress, BackendSpec, EventId, FlowFilter, FlowState, Hash, HealthKey, Mode,
        OnDeadline, OnEmpty, OtherPorts, Piece, ProbeKind, Protocol, Question, Quorum, RateLimit,
        Reason, Revision, Scheduler, ServerId, ServiceAddress, SlowStartCurve, TcpFlags, Track,
        Word, parse_jitter, parse_port, parse_port_range, parse_source, parse_sources, rules,
    },
};

/// A layer-4 load balancer in XDP
///
/// `lb run` attaches a program to network interfaces that forwards TCP and UDP flows
/// to backends, checks the health of the backends, and listens on a Unix socket. The
/// other commands ask or change the running balancer through that socket.
#[derive(Debug, Parser)]
#[command(name = "lb", version, max_term_width = 100, subcommand_required = true)]
pub(super) struct Args {
    /// Unix socket of the balancer [default: /run/lb/lb.sock, of `decap` /run/lb/decap.sock]
    /// [env: LB_SOCKET]
    // The environment is not clap's to read: it would show the option in every usage line
    // as if it had been given.
    #[arg(
        long,
        global = true,
        display_order = 1000,
        value_name = "PATH",
        value_parser = typed(config::parse_socket)
    )]
    pub(super) socket: Option<PathBuf>,

    #[command(subcommand)]
    pub(super) command: Command,
}

const SELECTION: &str = "Choice of backends";

const GUARD: &str = "Sources and limits";
const QUIC: &str = "QUIC";
const HEALTH: &str = "Health checks";

const ADD_EXAMPLE: &str = "Example:
  lb service add web --address 192.0.2.10:443 --mode full-nat \\
      --health http:/healthz --backend 10.0.0.11:8443 --backend 10.0.0.12:8443@50";

/// The whole command, for what is made of it.
pub(super) fn command() -> clap::Command {
    Args::command()
}

/// The socket that the environment names. Ends the process with the exit status for
/// wrong usage where that can be none.
pub(super) fn socket_of_environment() -> Option<PathBuf> {
    let path = env::var_os("LB_SOCKET").filter(|path| !path.is_empty())?;
    let socket = config::parse_socket(&path.to_string_lossy());
    Some(socket.unwrap_or_else(|reason| {
        let hint = reason.hint.unwrap_or_default();
        let message = format!("LB_SOCKET: {}; {hint}", reason.message);
        Args::command()
            .error(ErrorKind::ValueValidation, message)
            .exit()
    }))
}

/// Where the balancer listens unless somebody says otherwise.
pub(super) fn default_socket() -> PathBuf {
    DEFAULT_SOCKET.into()
}

/// Ends the process with the exit status for wrong usage of `lb service set` or
/// `lb backend set`, by `what`.
pub(super) fn nothing_to_set(what: &str) -> ! {
    let mut command = Args::command();
    command.build();
    let set = command
        .find_subcommand_mut(what)
        .and_then(|what| what.find_subcommand_mut("set"))
        .expect("it is defined below");
    let message = "nothing to change; give at least one option";
    set.error(ErrorKind::MissingRequiredArgument, message)
        .exit()
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Run(Box<Run>),
    Check(Check),
    Apply(Apply),
    #[command(subcommand)]
    Config(Config),
    Status(Status),
    Events(Events),
    Flows(Flows),
    Explain(Explain),
    #[command(subcommand)]
    Service(Service),
    #[command(subcommand)]
    Backend(Backend),
    Doctor(Doctor),
    Detach(Detach),
    /// Print the OpenAPI document about the API of the balancer
    ///
    /// The balancer answers `GET /v1/openapi.json` by the same. Asks no balancer.
    Openapi,
    Decap(Box<Decap>),
    Completions(Completions),
    Man(Man),
}

/// Run the balancer in the foreground
///
/// Reads the configuration, attaches to the interfaces and manages the forwarding of
/// packets until SIGINT or SIGTERM. When the file changes, and on SIGHUP, it is read again.
/// What was changed by other commands holds on. The kernel forwards packets on then, without health
/// checks, and the next `lb run` goes on from there, with all connections; `lb detach`
/// ends that. Needs root.
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// Configuration file, in TOML
    #[arg(long, short, value_name = "FILE")]
    pub(super) config: PathBuf,

    /// Interface to attach to, instead of those in the file; may be given again
    #[arg(
        long = "interface",
        short,
        value_name = "IF",
        value_parser = typed(config::parse_interface)
    )]
    pub(super) interfaces: Vec<String>,

    /// Where the program runs on an interface, instead of what the file says
    ///
    /// `native` is in the network driver; `generic` works with every driver, and is
    /// slow; `auto` is native where the driver can, else generic with a warning.
    #[arg(long, value_name = "MODE", value_parser = word::<XdpMode>())]
    pub(super) xdp_mode: Option<XdpMode>,

    /// Start with what the file says alone
    ///
    /// What was changed while the balancer ran before is put aside, in a file beside the state
    /// file, whether that can be read or not.
    #[arg(long)]
    pub(super) forget_changes: bool,

    /// What the balancer logs to stderr: a level, or levels by module
    #[arg(
        long,
        value_name = "LEVEL",
        env = "LB_LOG",
        hide_env_values = true,
        default_value = "info",
        value_parser = log_filter
    )]
    pub(super) log: EnvFilter,

    /// What the XDP program logs: costs every packet, for debugging only
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "off",
        value_parser = word::<DatapathLog>()
    )]
    pub(super) datapath_log: DatapathLog,
}

const DECAP_EXAMPLE: &str = "Example, on a backend of a service on 192.0.2.10:
  ip address add 192.0.2.10/32 dev lo
  lb decap --interface eth0 --vip 192.0.2.10
  lb decap status";

/// Unwrap tunnels on a backend host
///
/// Run on a backend of services in the modes `ipip` and `gue`, it takes the inner packets
/// out of the tunnels that are addressed to this host, hands them to the network stack
/// and counts them, until SIGINT or SIGTERM. Everything else passes. Needs root.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = DECAP_EXAMPLE
)]
pub(super) struct Decap {
    #[command(flatten)]
    pub(super) run: DecapRun,

    #[command(subcommand)]
    pub(super) command: Option<DecapCommand>,
}

#[derive(Debug, Subcommand)]
pub(super) enum DecapCommand {
    /// Show what was unwrapped, passed and dropped
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct DecapRun {
    /// Interface that tunnels come in by; may be given again
    #[arg(
        long = "interface",
        short,
        value_name = "IF",
        required = true,
        value_parser = typed(config::parse_interface)
    )]
    pub(super) interfaces: Vec<String>,

    /// Service address that inner packets are for, or a prefix; may be given again
    ///
    /// Tunnels with other packets inside are left to the network stack.
    #[arg(
        long = "vip",
        value_name = "ADDRESS[/LENGTH]",
        required = true,
        value_parser = typed(Prefix::from_str)
    )]
    pub(super) vips: Vec<Prefix>,

    /// Where tunnels may begin [default: the networks of each interface]; may be given again
    #[arg(long, value_name = "ADDRESS[/LENGTH]", value_parser = typed(Prefix::from_str))]
    pub(super) from: Vec<Prefix>,

    /// Where tunnels may end [default: every address of the interfaces]; may be given again
    #[arg(long = "local", value_name = "ADDRESS")]
    pub(super) locals: Vec<IpAddr>,

    /// UDP port of GUE
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = lb_common::decap::GUE_PORT,
        value_parser = value_parser!(u16).range(1..)
    )]
    pub(super) gue_port: u16,

    /// Where the program runs on an interface [default: auto]
    ///
    /// `native` is in the network driver; `generic` works with every driver, and is
    /// slow; `auto` is native where the driver can, else generic with a warning.
    #[arg(long, value_name = "MODE", value_parser = word::<XdpMode>())]
    pub(super) xdp_mode: Option<XdpMode>,

    /// What is logged to stderr: a level, or levels by module
    #[arg(
        long,
        value_name = "LEVEL",
        env = "LB_LOG",
        hide_env_values = true,
        default_value = "info",
        value_parser = |text: &str| EnvFilter::try_new(text)
    )]
    pub(super) log: EnvFilter,
}

/// Take the balancer out of the kernel
///
/// Packets are not forwarded any more, and what is known of connections is lost. `lb run`
/// must have ended. Needs root.
#[derive(Debug, clap::Args)]
pub(super) struct Detach {
    /// Where the datapath is kept: `pin-directory` of the configuration
    #[arg(
        long,
        value_name = "DIRECTORY",
        default_value = config::DEFAULT_PIN_DIRECTORY,
        value_parser = typed(config::parse_pin_directory)
    )]
    pub(super) pin_directory: PathBuf,
}

/// Find every mistake in a configuration file
///
/// Shows each with its line, the reason and a hint. Changes nothing, and needs no
/// rights but to read the file. The exit status is 1 if there is an error, and 0 if
/// there are none or only warnings.
#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// Configuration file, in TOML
    pub(super) file: PathBuf,

    /// Print the mistakes as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Bring about what a configuration file says
///
/// Its services and backends are compared to what the balancer has, and the difference is made;
/// connections of what does not change go on. What was changed by other commands holds on,
/// unless the file says something new about it. A file with an error changes nothing.
///
/// The file that the balancer was started with is taken by itself when it changes, too. Another
/// one holds in its place until that changes.
#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    /// Configuration file, in TOML
    pub(super) file: PathBuf,

    /// Show what would change, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Only if the state has this revision, as `lb status --json` shows it
    #[arg(long, value_name = "REVISION", value_parser = typed(Revision::from_str))]
    pub(super) if_revision: Option<Revision>,

    /// Print what changes as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Find what on this host will hurt, and say how to mend it
///
/// Looks at the kernel, the interfaces, the routes and the running balancer. Changes nothing.
/// Each finding has a word that stays the same, in brackets. The exit status is 1 if there is
/// an error among them, and 0 if there are none, or warnings and notes alone.
#[derive(Debug, clap::Args)]
pub(super) struct Doctor {
    /// Configuration file, in TOML [default: /etc/lb/lb.toml, if it is there]
    #[arg(long, short, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Show what is configured, and undo changes
#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Show the whole configuration that is in force
    ///
    /// In the form of the configuration file. What is not as the file says is marked.
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of the configuration file
    ///
    /// For editors, and for those who write it by program: `lb check` says more. Asks no balancer.
    Schema,
    /// Forget what was changed beside the file
    ///
    /// Services and backends become what the file says, drains end that it does not name.
    Reset {
        /// Show what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print what changes as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Print what a shell needs to complete commands
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lb completions bash > /etc/bash_completion.d/lb")]
pub(super) struct Completions {
    /// The shell
    pub(super) shell: clap_complete::Shell,
}

/// Print the manual page, or write that of every command
#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// Write the pages of all commands to this directory: lb.1, lb-run.1, ...
    pub(super) directory: Option<PathBuf>,
}

/// Show services, backends, their health and counters
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// Only this service
    #[arg(value_name = "SERVICE")]
    pub(super) service: Option<String>,

    /// Show it again every so many seconds, 1 if none are said, until interrupted
    ///
    /// With --json, one object on a line each time.
    #[arg(
        long,
        short,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = value_parser!(u64).range(1..=3_600)
    )]
    pub(super) watch: Option<u64>,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Show what happens: health, drains, changes and files
///
/// First what is remembered, up to 1024 events of the daemon that runs; then what happens, until
/// the balancer ends or this command does. Where events are missing, that is said.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lb events --new --json | jq 'select(.event == \"health\")'")]
pub(super) struct Events {
    /// Begin with what has not happened yet
    #[arg(long, conflicts_with_all = ["after", "no_follow"])]
    pub(super) new: bool,

    /// Begin behind the event of this id, as --json shows it
    #[arg(long, value_name = "ID", value_parser = typed(EventId::from_str))]
    pub(super) after: Option<EventId>,

    /// Show what has happened, and do not wait for more
    #[arg(long)]
    pub(super) no_follow: bool,

    /// Print JSON, an object on a line
    #[arg(long)]
    pub(super) json: bool,
}

/// List the flows that the balancer remembers
///
/// In no order, and without those that come or go meanwhile. Options leave out flows of
/// others.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lb flows web --client 198.51.100.0/24 --state established")]
pub(super) struct Flows {
    /// Only of this service
    #[arg(value_name = "SERVICE")]
    pub(super) service: Option<String>,

    /// Only of this backend: 10.0.0.11:8443; without a port, of those on any
    #[arg(long, value_name = "ADDRESS", value_parser = typed(BackendAddress::from_str))]
    pub(super) backend: Option<BackendAddress>,

    /// Only of these clients
    #[arg(long, value_name = "ADDRESS[/LENGTH]", value_parser = typed(parse_sources))]
    pub(super) client: Option<AddressPrefix>,

    /// Only in this state
    #[arg(long, value_parser = word::<FlowState>())]
    pub(super) state: Option<FlowState>,

    /// At most so many
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = FlowFilter::DEFAULT_LIMIT,
        value_parser = value_parser!(u32).range(1..=i64::from(FlowFilter::MAX_LIMIT))
    )]
    pub(super) limit: u32,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Say what becomes of a packet
///
/// Sends it through the program that is attached, in an instance of its own that sees the same
/// services, rings, backends and flows: nothing leaves, is written or counted. Tells which
/// service, slot, flow and backend it meets, and what leaves, or why it is dropped. The exit
/// status is 0 in any case that could be told.
#[derive(Debug, clap::Args)]
#[command(after_help = EXPLAIN_EXAMPLE)]
pub(super) struct Explain {
    /// Transport protocol
    #[arg(value_name = "PROTOCOL", value_parser = word::<Protocol>())]
    pub(super) protocol: Protocol,

    /// Who sends it: 198.51.100.7:40000, [2001:db8::7]:40000
    #[arg(value_name = "SOURCE")]
    pub(super) source: SocketAddr,

    /// Where to
    #[arg(value_name = "DESTINATION")]
    pub(super) destination: SocketAddr,

    /// Flags of TCP, with commas between, or `none`
    #[arg(long, value_name = "FLAGS", default_value = "syn", value_parser = typed(TcpFlags::from_str))]
    pub(super) tcp_flags: TcpFlags,

    /// It is a fragment: the first one, or a later one that comes behind it
    #[arg(long, value_name = "WHICH", value_parser = word::<Piece>())]
    pub(super) fragment: Option<Piece>,

    /// Interface that it comes in by [default: the first one of the configuration]
    #[arg(long, short, value_name = "IF", value_parser = typed(config::parse_interface))]
    pub(super) interface: Option<String>,

    /// Bytes behind the transport header
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 0,
        value_parser = value_parser!(u16).range(..=i64::from(Question::MAX_LENGTH))
    )]
    pub(super) length: u16,

    /// TTL or hop limit
    #[arg(long, default_value_t = Question::TTL, value_parser = value_parser!(u8).range(1..))]
    pub(super) ttl: u8,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

const EXPLAIN_EXAMPLE: &str = "Examples:
  lb explain tcp 198.51.100.7:40000 192.0.2.10:443
  lb explain udp [2001:db8::7]:40000 [2001:db8::10]:53 --length 1400";

/// Add, change, remove and show services
#[derive(Debug, Subcommand)]
pub(super) enum Service {
    /// Add a service
    ///
    /// What is not given has the same default as in the configuration file.
    #[command(after_help = ADD_EXAMPLE)]
    Add(Box<AddService>),
    /// Change what is given, and leave the rest
    ///
    /// The value `default` takes back an option that was given before.
    #[command(
        override_usage = "lb service set [OPTIONS] <NAME>",
        after_help = "Example:\n  lb service set web --health-interval 500ms"
    )]
    Set(Box<SetService>),
    /// Remove a service, with its backends and flows
    Remove {
        /// Its name
        name: String,
        /// Print the removed service as JSON
        #[arg(long)]
        json: bool,
    },
    /// List the services that are configured
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show all that is configured for one service
    Show {
        /// Its name
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct AddService {
    /// Name: letters, digits, `-`, `_` and `.`
    pub(super) name: String,

    /// Where clients reach it: 192.0.2.10:443 or [2001:db8::10]:443
    ///
    /// A prefix, `192.0.2.0/24:443`, stands for all its addresses; ports may be a range,
    /// `8000-8099`, or `*` for every port.
    #[arg(long, value_parser = typed(ServiceAddress::from_str))]
    pub(super) address: ServiceAddress,

    /// How packets are forwarded
    ///
    /// `full-nat` works with any backend and hides the client's address; `nat` keeps
    /// it, and needs backends that route replies through this host. With `dsr`, `ipip`
    /// and `gue` backends have the service address and answer clients directly: `dsr`
    /// needs them on the same Ethernet, `ipip` and `gue` wrap packets in IP and UDP.
    #[arg(long, value_parser = word::<Mode>())]
    pub(super) mode: Mode,

    /// Backend, and its weight if it is not 100; may be given again
    #[arg(
        long = "backend",
        value_name = "ADDRESS[@WEIGHT]",
        value_parser = typed(parse_backend)
    )]
    pub(super) backends: Vec<BackendSpec>,

    #[command(flatten)]
    pub(super) options: ServiceOptions,

    /// Print the new service as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct SetService {
    /// Its name
    pub(super) name: String,

    #[command(flatten)]
    pub(super) changes: ServiceChanges,

    /// Print the changed service as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What can be changed.
#[derive(Debug, clap::Args)]
pub(super) struct ServiceChanges {
    /// Where clients reach it: 192.0.2.10:443 or [2001:db8::10]:443
    #[arg(long, value_parser = typed(ServiceAddress::from_str))]
    pub(super) address: Option<ServiceAddress>,

    /// How packets are forwarded
    #[arg(long, value_parser = word::<Mode>())]
    pub(super) mode: Option<Mode>,

    #[command(flatten)]
    pub(super) options: ServiceOptions,
}

/// What has a default.
#[derive(Debug, clap::Args)]
pub(super) struct ServiceOptions {
    /// What clients speak [default: tcp]
    #[arg(long, value_parser = setting_word::<Protocol>())]
    pub(super) protocol: Option<Setting<Protocol>>,

    /// How new flows find a backend [default: maglev]
    #[arg(long, value_parser = setting_word::<Scheduler>())]
    pub(super) scheduler: Option<Setting<Scheduler>>,

    /// What of a packet chooses its backend with `maglev` [default: 5-tuple]
    #[arg(long, value_parser = setting_word::<Hash>(), help_heading = SELECTION)]
    pub(super) hash: Option<Setting<Hash>>,

    /// How long a client keeps its backend with the other schedulers [default: not at all]
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = setting(duration::parse),
        help_heading = SELECTION
    )]
    pub(super) affinity: Option<Setting<Duration>>,

    /// Slots of the ring, a prime number [default: 65537]
    #[arg(
        long,
        value_name = "SLOTS",
        value_parser = setting(parse_number),
        help_heading = SELECTION
    )]
    pub(super) ring_size: Option<Setting<u32>>,

    /// Which flows have an entry in the flow tables [default: those that need one; with udp all]
    #[arg(long, value_parser = setting_word::<Track>(), help_heading = SELECTION)]
    pub(super) track: Option<Setting<Track>>,

    /// Backends of the tiers above, or share of them, with which a lower tier rests [default: 1]
    #[arg(
        long,
        value_name = "COUNT|PERCENT%",
        value_parser = setting(Quorum::from_str),
        help_heading = SELECTION
    )]
    pub(super) quorum: Option<Setting<Quorum>>,

    /// With fewer backends that are up, or a smaller share, all are used [default: never]
    #[arg(
        long,
        value_name = "COUNT|PERCENT%",
        value_parser = setting(Quorum::from_str),
        help_heading = SELECTION
    )]
    pub(super) panic_threshold: Option<Setting<Quorum>>,

    /// What happens while all backends are down [default: drop]
    #[arg(long, value_parser = setting_word::<OnEmpty>(), help_heading = SELECTION)]
    pub(super) on_empty: Option<Setting<OnEmpty>>,

    /// How long a backend that comes back has less than its share [default: not at all]
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = setting(duration::parse),
        help_heading = SELECTION
    )]
    pub(super) slow_start: Option<Setting<Duration>>,

    /// How its share grows [default: linear]
    #[arg(long, value_parser = setting_word::<SlowStartCurve>(), help_heading = SELECTION)]
    pub(super) slow_start_curve: Option<Setting<SlowStartCurve>>,

    /// Source whose packets are taken, others are not [default: all]; may be given again
    #[arg(
        long,
        value_name = "ADDRESS[/LENGTH]",
        value_parser = setting(parse_sources),
        help_heading = GUARD
    )]
    pub(super) allow: Vec<Setting<AddressPrefix>>,

    /// Source whose packets are dropped [default: none]; may be given again
    #[arg(
        long,
        value_name = "ADDRESS[/LENGTH]",
        value_parser = setting(parse_sources),
        help_heading = GUARD
    )]
    pub(super) deny: Vec<Setting<AddressPrefix>>,

    /// Flows that may begin from one source in a second, and at once [default: any number]
    #[arg(
        long,
        value_name = "RATE[:BURST]",
        value_parser = setting(RateLimit::from_str),
        help_heading = GUARD
    )]
    pub(super) new_per_source: Option<Setting<RateLimit>>,

    /// Flows that may begin in a second, and at once [default: any number]
    #[arg(
        long,
        value_name = "RATE[:BURST]",
        value_parser = setting(RateLimit::from_str),
        help_heading = GUARD
    )]
    pub(super) new_per_service: Option<Setting<RateLimit>>,

    /// Bytes of a connection ID of QUIC that name the backend [default: none do]
    #[arg(
        long,
        value_name = "BYTES",
        value_parser = setting(parse_number),
        help_heading = QUIC
    )]
    pub(super) quic_server_id_length: Option<Setting<u32>>,

    /// Bytes before them [default: 1]
    #[arg(
        long,
        value_name = "BYTES",
        value_parser = setting(parse_number),
        help_heading = QUIC
    )]
    pub(super) quic_server_id_offset: Option<Setting<u32>>,

    /// Configuration of connection IDs that is read, 0 to 6 [default: 0]; may be given again
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = setting(parse_number),
        help_heading = QUIC
    )]
    pub(super) quic_config_rotation: Vec<Setting<u32>>,

    /// Source address of full NAT and of tunnels [default: as the kernel would towards
    /// the backend]
    ///
    /// Of tunnels a prefix, `10.0.0.0/24`, lets it vary with the flow.
    #[arg(long, value_name = "IP", value_parser = setting(parse_source))]
    pub(super) source: Option<Setting<AddressPrefix>>,

    /// Source ports of full NAT [default: 1024-32767]
    #[arg(long, value_name = "FIRST-LAST", value_parser = setting(parse_port_range))]
    pub(super) source_ports: Option<Setting<RangeInclusive<u16>>>,

    /// UDP port that backends take GUE at [default: 6080]
    #[arg(long, value_name = "PORT", value_parser = setting(parse_port))]
    pub(super) gue_port: Option<Setting<u16>>,

    /// Largest segment that TCP connections may announce, in bytes [default: any]
    #[arg(long, value_name = "BYTES", value_parser = setting(parse_segment_size))]
    pub(super) max_segment_size: Option<Setting<u16>>,

    /// What becomes of packets to ports of the address that no service has [default: pass]
    #[arg(long, value_parser = setting_word::<OtherPorts>())]
    pub(super) other_ports: Option<Setting<OtherPorts>>,

    /// Whether ICMP echo requests to the address are answered [default: true]
    #[arg(long, value_name = "BOOL", value_parser = setting_bool())]
    pub(super) icmp_echo: Option<Setting<bool>>,

    #[command(flatten)]
    pub(super) health: HealthOptions,

    /// Of flows that no backend has answered [default: 30s]
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = setting(duration::parse),
        help_heading = "Timeouts of silent flows"
    )]
    pub(super) timeout_unreplied: Option<Setting<Duration>>,

    /// Of established TCP connections [default: 2h 4m]
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = setting(duration::parse),
        help_heading = "Timeouts of silent flows"
    )]
    pub(super) timeout_tcp_established: Option<Setting<Duration>>,

    /// Of TCP connections that one side has ended [default: 1m]
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = setting(duration::parse),
        help_heading = "Timeouts of silent flows"
    )]
    pub(super) timeout_tcp_closing: Option<Setting<Duration>>,

    /// Of UDP flows [default: 5m]
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = setting(duration::parse),
        help_heading = "Timeouts of silent flows"
    )]
    pub(super) timeout_udp: Option<Setting<Duration>>,
}

/// How backends are checked. The help stands at the type of what is checked.
#[derive(Debug, clap::Args)]
pub(super) struct HealthOptions {
    /// Health check: none, tcp, http[:/PATH], https[:/PATH], grpc[:SERVICE], udp[:TEXT], dns:NAME
    /// or icmp [default: none; of a backend, that of the service]
    #[arg(
        long,
        value_name = "CHECK",
        value_parser = typed(parse_health),
        help_heading = HEALTH
    )]
    pub(super) health: Option<Health>,

    /// Host header of the check [default: the backend's address]
    #[arg(
        long,
        value_name = "NAME",
        value_parser = setting(|text| Ok(text.to_owned())),
        help_heading = HEALTH
    )]
    pub(super) health_host: Option<Setting<String>>,

    /// Another key of the check, as in the file: status=200-204; may be given again
    #[arg(
        long,
        value_name = "KEY=VALUE",
        value_parser = typed(parse_health_option),
        help_heading = HEALTH
    )]
    pub(super) health_option: Vec<(HealthKey, Setting<String>)>,

    /// Port that is checked [default: the backend's]
    #[arg(
        long,
        value_name = "PORT",
        value_parser = setting(parse_port),
        help_heading = HEALTH
    )]
    pub(super) health_port: Option<Setting<u16>>,

    /// From one check to the next [default: 2s]
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = setting(duration::parse),
        help_heading = HEALTH
    )]
    pub(super) health_interval: Option<Setting<Duration>>,

    /// The same while the backend is down [default: the interval]
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = setting(duration::parse),
        help_heading = HEALTH
    )]
    pub(super) health_down_interval: Option<Setting<Duration>>,

    /// Share of the interval by which a check may come earlier [default: 0%]
    #[arg(
        long,
        value_name = "PERCENT%",
        value_parser = setting(parse_jitter),
        help_heading = HEALTH
    )]
    pub(super) health_jitter: Option<Setting<u32>>,

    /// How long an answer may take [default: 1s, or the interval if that is shorter]
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = setting(duration::parse),
        help_heading = HEALTH
    )]
    pub(super) health_timeout: Option<Setting<Duration>>,

    /// Successes in a row that bring a backend up [default: 2]
    #[arg(long, value_name = "COUNT", help_heading = HEALTH)]
    pub(super) health_rise: Option<u32>,

    /// Failures in a row that take a backend down [default: 3]
    #[arg(long, value_name = "COUNT", help_heading = HEALTH)]
    pub(super) health_fall: Option<u32>,
}

/// Add, change, drain, remove and list the backends of a service
#[derive(Debug, Subcommand)]
pub(super) enum Backend {
    /// Add a backend to a service
    #[command(after_help = "Example:\n  lb backend add web 10.0.0.11:8443 --weight 50")]
    Add {
        #[command(flatten)]
        backend: BackendName,
        #[command(flatten)]
        options: BackendOptions,
        /// Print the new backend as JSON
        #[arg(long)]
        json: bool,
    },
    /// Change what is given of a backend, and leave the rest
    ///
    /// With weight 0 the flows that it has go on, and it gets no new ones. The value
    /// `default` takes back an option that was given before.
    #[command(
        override_usage = "lb backend set [OPTIONS] <SERVICE> <ADDRESS>",
        after_help = "Example:\n  lb backend set web 10.0.0.11:8443 --weight 50"
    )]
    Set {
        #[command(flatten)]
        backend: BackendName,
        #[command(flatten)]
        options: BackendOptions,
        /// Print the changed backend as JSON
        #[arg(long)]
        json: bool,
    },
    /// Let no new flows go to a backend; those that it has go on
    ///
    /// `lb status` shows how many are left. At the deadline they are kept, or each is reset
    /// with its next packet. Given again, it sets another deadline, which
    /// counts from the beginning of the drain.
    #[command(
        after_help = "Example:\n  lb backend drain web 10.0.0.11:8443 --deadline 5m --on-deadline reset"
    )]
    Drain {
        #[command(flatten)]
        backend: BackendName,
        /// How long flows may go on [default: as long as they like]
        #[arg(long, value_name = "DURATION", value_parser = typed(duration::parse))]
        deadline: Option<Duration>,
        /// What becomes of flows that are left at the deadline [default: keep]
        #[arg(
            long,
            alias = "then",
            value_parser = word::<OnDeadline>(),
            requires = "deadline"
        )]
        on_deadline: Option<OnDeadline>,
        /// Print the backend as JSON
        #[arg(long)]
        json: bool,
    },
    /// Let new flows go to a backend again
    Undrain {
        #[command(flatten)]
        backend: BackendName,
        /// Print the backend as JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a backend, with its flows
    Remove {
        #[command(flatten)]
        backend: BackendName,
        /// Print the removed backend as JSON
        #[arg(long)]
        json: bool,
    },
    /// List the backends of a service that are configured
    List {
        /// Name of the service
        service: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct BackendName {
    /// Name of the service
    pub(super) service: String,

    /// Where the backend listens: 10.0.0.11:8443 or [2001:db8::11]:8443; port * to
    /// keep the client's
    #[arg(value_parser = typed(BackendAddress::from_str))]
    pub(super) address: BackendAddress,
}

/// What of a backend has a default.
#[derive(Debug, clap::Args)]
pub(super) struct BackendOptions {
    /// Share of new flows, from 0 to 65535; 0 for none [default: 100]
    #[arg(long, allow_negative_numbers = true, value_parser = setting(parse_weight))]
    pub(super) weight: Option<Setting<u32>>,

    /// Tier: the lowest serves first, the others where it has too few [default: 0]
    #[arg(
        long,
        value_name = "0-255",
        allow_negative_numbers = true,
        value_parser = setting(parse_priority)
    )]
    pub(super) priority: Option<Setting<u32>>,

    /// Live flows from which on it gets no new ones [default: any number]
    #[arg(long, value_name = "COUNT", value_parser = setting(parse_number))]
    pub(super) max_connections: Option<Setting<u32>>,

    /// Server ID in connection IDs of QUIC, in hex [default: none]; may be given again
    #[arg(long = "server-id", value_name = "HEX", value_parser = setting(ServerId::from_str))]
    pub(super) server_ids: Vec<Setting<ServerId>>,

    #[command(flatten)]
    pub(super) health: HealthOptions,
}

/// The value of an option that can be taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting<T> {
    /// As if it had never been given.
    Default,
    Value(T),
}

/// A health check as one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// None, or as it was before.
    None,
    /// One of a type, with the key that is most often given of it.
    Of(ProbeKind, Option<(HealthKey, String)>),
}

/// The key that may stand behind a type.
pub(super) const fn argument(kind: ProbeKind) -> Option<HealthKey> {
    Some(match kind {
        ProbeKind::Http | ProbeKind::Https => HealthKey::Path,
        ProbeKind::Grpc => HealthKey::GrpcService,
        ProbeKind::Udp => HealthKey::Send,
        ProbeKind::Dns => HealthKey::Query,
        ProbeKind::Tcp | ProbeKind::Icmp | ProbeKind::Exec => return None,
    })
}

fn parse_health(text: &str) -> Result<Health, Reason> {
    let (word, argument) = match text.split_once(':') {
        Some((word, argument)) => (word, Some(argument)),
        None => (text, None),
    };
    if matches!(text, "none" | "default") {
        return Ok(Health::None);
    }
    let unknown = |text: &str| Reason {
        hint: Some("use `none`, `tcp`, `http`, `http:/healthz`, `dns:example.org` ...".to_owned()),
        ..rules::unknown_probe(text)
    };
    let kind: ProbeKind = word.parse().map_err(|_| unknown(word))?;
    if kind == ProbeKind::Exec {
        return Err(rules::exec_by_file());
    }
    let key = self::argument(kind);
    match (argument, key) {
        (None, _) => Ok(Health::Of(kind, None)),
        (Some(argument), Some(key)) => Ok(Health::Of(kind, Some((key, argument.to_owned())))),
        (Some(_), None) => Err(Reason::new(
            format!("nothing can stand behind type `{kind}`"),
            format!("use `{kind}` alone"),
        )),
    }
}

fn parse_health_option(text: &str) -> Result<(HealthKey, Setting<String>), Reason> {
    let example = "write `status=200-204`, `verify=false` or `body=ok`";
    let (key, value) = text.split_once('=').ok_or_else(|| {
        Reason::new(
            format!("`{}` is no key with a value", text.escape_debug()),
            example,
        )
    })?;
    let has_option = |key: &HealthKey| {
        let list = matches!(key, HealthKey::Command | HealthKey::Environment);
        let other = matches!(key, HealthKey::HoldDown | HealthKey::Passive);
        (key.is_of_probe() || other) && *key != HealthKey::Host && !list
    };
    let unknown = || {
        let known = HealthKey::ALL.iter().filter(|key| has_option(key));
        let known: Vec<_> = known.map(|key| format!("`{key}`")).collect();
        Reason::new(
            format!("`{}` is no key of a health check", key.escape_debug()),
            format!("known here are {}", known.join(", ")),
        )
    };
    let key: HealthKey = key.parse().map_err(|_| unknown())?;
    if !has_option(&key) {
        return Err(unknown());
    }
    let value = match value {
        "default" => Setting::Default,
        value => Setting::Value(value.to_owned()),
    };
    Ok((key, value))
}

/// Reads what is to be logged. What the library that loads the program says of every
/// instruction is left out, unless it is named.
fn log_filter(text: &str) -> Result<EnvFilter, ParseError> {
    const LOADER: [&str; 2] = ["aya", "aya_obj"];
    let mut filter = EnvFilter::try_new(text)?;
    for target in LOADER {
        let is_named = text
            .split(',')
            .any(|directive| directive.split(['=', ':']).next() == Some(target));
        if !is_named {
            filter = filter.add_directive(format!("{target}=warn").parse()?);
        }
    }
    Ok(filter)
}

fn parse_number(text: &str) -> Result<u32, Reason> {
    text.parse().map_err(|_| {
        Reason::new(
            format!("`{}` is no number", text.escape_debug()),
            format!("write a whole number up to {}", u32::MAX),
        )
    })
}

fn parse_segment_size(text: &str) -> Result<u16, Reason> {
    text.parse().map_err(|_| {
        Reason::new(
            format!("`{}` is no size of a segment", text.escape_debug()),
            format!(
                "write a number of bytes from {} to {}",
                rules::MIN_SEGMENT_SIZE,
                u16::MAX
            ),
        )
    })
}

fn parse_backend(text: &str) -> Result<BackendSpec, Reason> {
    let (address, weight) = match text.split_once('@') {
        Some((address, weight)) => (address, weight.parse().ok()),
        None => (text, Some(BackendSpec::DEFAULT_WEIGHT)),
    };
    let weight = weight.ok_or_else(|| {
        Reason::new(
            format!("`{text}` has no weight after the `@`"),
            "write a number: `10.0.0.11:8443@50`",
        )
    })?;
    Ok(BackendSpec {
        weight,
        ..BackendSpec::new(address.parse()?)
    })
}

fn parse_weight(text: &str) -> Result<u32, Reason> {
    parse_up_to(BackendSpec::MAX_WEIGHT, text)
}

fn parse_priority(text: &str) -> Result<u32, Reason> {
    parse_up_to(BackendSpec::MAX_PRIORITY, text)
}

/// Reads a whole number from 0 to `most`.
fn parse_up_to(most: u32, text: &str) -> Result<u32, Reason> {
    let number = text.parse().ok().filter(|number| *number <= most);
    number.ok_or_else(|| Reason::bare(format!("{} is not in 0..={most}", text.escape_debug())))
}

/// Reads a value, with the hint in the error.
fn typed<T: Clone + Send + Sync + 'static>(
    parse: fn(&str) -> Result<T, Reason>,
) -> impl TypedValueParser<Value = T> {
    NonEmptyStringValueParser::new().try_map(move |text| {
        parse(&text).map_err(|reason| match reason.hint {
            Some(hint) => format!("{}; {hint}", reason.message),
            None => reason.message,
        })
    })
}

/// Reads a value, or the word `default`.
fn setting<T: Clone + Send + Sync + 'static>(
    parse: fn(&str) -> Result<T, Reason>,
) -> impl TypedValueParser<Value = Setting<T>> {
    NonEmptyStringValueParser::new().try_map(move |text| {
        if text == "default" {
            return Ok(Setting::Default);
        }
        parse(&text).map(Setting::Value).map_err(|reason| {
            let hint = reason.hint.map(|hint| format!("; {hint}"));
            format!("{}{}", reason.message, hint.unwrap_or_default())
        })
    })
}

/// Reads one of the words of `T`, or the word `default`.
fn setting_word<T: Word + Clone + Send + Sync>() -> impl TypedValueParser<Value = Setting<T>> {
    let words = T::ALL.iter().map(|word| word.as_str());
    let words = words.chain(["default"]).map(PossibleValue::new);
    PossibleValuesParser::new(words).map(|word| match word.as_str() {
        "default" => Setting::Default,
        word => Setting::Value(
            word.parse()
                .unwrap_or_else(|_| unreachable!("one of the possible values")),
        ),
    })
}

/// Reads `true` or `false`, or the word `default`.
fn setting_bool() -> impl TypedValueParser<Value = Setting<bool>> {
    let words = ["true", "false", "default"].map(PossibleValue::new);
    PossibleValuesParser::new(words).map(|word| match word.as_str() {
        "default" => Setting::Default,
        word => Setting::Value(word == "true"),
    })
}

/// Reads one of the words of `T`.
fn word<T: Word + Clone + Send + Sync>() -> impl TypedValueParser<Value = T> {
    let words = T::ALL.iter().map(|word| PossibleValue::new(word.as_str()));
    PossibleValuesParser::new(words).map(|word| {
        word.parse()
            .unwrap_or_else(|_| unreachable!("one of the possible values"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn backends_may_name_a_weight() {
        let backend = |text| parse_backend(text).map(|backend| backend.weight);
        assert_eq!(backend("10.0.0.1:80"), Ok(100));
        assert_eq!(backend("10.0.0.1:80@0"), Ok(0));
        assert_eq!(backend("[2001:db8::1]:80@65535"), Ok(65_535));
        assert_eq!(backend("10.0.0.1@5"), Ok(5));
        for wrong in ["10.0.0.1:80@", "10.0.0.1:80@-1", "[::1@5", "@5"] {
            assert!(backend(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_loader_speaks_when_it_is_asked() {
        let shown = |text| log_filter(text).unwrap().to_string();
        assert_eq!(shown("debug"), "aya_obj=warn,aya=warn,debug");
        assert_eq!(shown("debug,aya=trace"), "aya_obj=warn,aya=trace,debug");
        assert!(log_filter("debug=debug=debug").is_err());
    }

    #[test]
    fn health_checks_are_one_word() {
        let of = |kind, argument: Option<(HealthKey, &str)>| {
            let argument = argument.map(|(key, text)| (key, text.to_owned()));
            Ok(Health::Of(kind, argument))
        };
        assert_eq!(
            parse_health("http:/a:b"),
            of(ProbeKind::Http, Some((HealthKey::Path, "/a:b")))
        );
        assert_eq!(parse_health("tcp"), of(ProbeKind::Tcp, None));
        assert_eq!(parse_health("icmp"), of(ProbeKind::Icmp, None));
        assert_eq!(
            parse_health("dns:example.org"),
            of(ProbeKind::Dns, Some((HealthKey::Query, "example.org")))
        );
        assert_eq!(parse_health("none"), Ok(Health::None));
        for wrong in ["", "ping", "tcp:/x", "icmp:", "exec", "exec:/bin/true"] {
            assert!(parse_health(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn other_keys_of_health_checks() {
        let status = Setting::Value("200-204".to_owned());
        assert_eq!(
            parse_health_option("status=200-204"),
            Ok((HealthKey::Status, status))
        );
        assert_eq!(
            parse_health_option("body=default"),
            Ok((HealthKey::Body, Setting::Default))
        );
        for wrong in [
            "status",
            "=",
            "fall=1",
            "command=/bin/true",
            "host=a",
            "type=tcp",
        ] {
            assert!(parse_health_option(wrong).is_err(), "{wrong}");
        }
    }
}
