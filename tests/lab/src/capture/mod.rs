//! Captures: written by tcpdump while a test does its work, read by tshark afterwards.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;

use crate::{Host, Process, command::run};

/// How long tcpdump may take to write what the kernel has caught.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is asked meanwhile.
const POLL: Duration = Duration::from_millis(20);
/// Kilobytes that the kernel keeps for tcpdump: enough for bursts on a loaded machine.
const BUFFER: &str = "65536";
/// Bytes of a packet that are kept. The kernel takes room for so many for each packet that
/// tcpdump has not read, however short it is: with the usual 262,144 there are few.
const LONGEST: &str = "65000";

/// What of a packet is read, and nothing above: the bytes that tests send are nobody's
/// protocol, whatever the ports are. Protocols by the names of `tshark -G protocols`;
/// those that begin with one of [`READ_FAMILIES`] are read, too.
const READ: [&str; 14] = [
    "frame",
    "eth",
    "eth_maybefcs",
    "eth_withoutfcs",
    "ethertype",
    "vlan",
    "ieee8021ad",
    "arp",
    "ip",
    "ipv6",
    "icmp",
    "icmpv6",
    "tcp",
    "udp",
];
/// IPv6 extension headers, and what tshark itself says of a packet.
const READ_FAMILIES: [&str; 2] = ["ipv6.", "_ws."];

/// Tunnels in UDP that tshark learns from a script of ours.
const GUE: &str = include_str!("gue.lua");

/// What no packet may be: cut short, not understood, with a bad checksum (`PI_CHECKSUM` in
/// `epan/proto.h`), or otherwise in error (`PI_ERROR`).
///
/// A TCP checksum of 0xffff is as right as one of 0 (RFC 1624, section 3); senders make
/// it, and tshark calls it an error.
///
/// The quote of an ICMP error is cut by design, and tshark takes the checksum of the
/// quoted TCP or UDP to be over what is left; so of these packets, the other layers are
/// looked at one by one.
const FLAWED: &str = "_ws.malformed || _ws.short \
    || ip.checksum.status == 0 || icmp.checksum.status == 0 || icmpv6.checksum.status == 0 \
    || ip.bogus_ip_length || ipv6.plen_exceeds_framing \
    || (!icmp && !icmpv6 && !tcp.checksum.ffff \
        && (tcp.checksum.status == 0 || udp.checksum.status == 0)) \
    || (!icmp && !icmpv6 && !tcp.checksum.ffff \
        && (_ws.expert.severity == 0x00800000 || _ws.expert.group == 0x01000000))";

/// Packets of an interface on their way into a file.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    packets: Packets,
}

impl Capture {
    /// Captures on an interface of `host` whose directory is `directory`, until `limit`
    /// packets are written. `label` tells this file from others of the interface.
    pub(crate) fn start(
        host: &Host,
        directory: &Path,
        interface: &str,
        label: &str,
        limit: u32,
    ) -> Result<Self> {
        let name = format!("{}-{interface}-{label}", host.name());
        let file = directory.join(format!("{name}.pcap"));
        let mut command = host.command("tcpdump");
        command
            .args(["-n", "--immediate-mode", "-s", LONGEST, "-B", BUFFER])
            .args(["-c", &limit.to_string(), "-i", interface, "-w"])
            .arg(&file);
        let tcpdump = host.spawn(&format!("tcpdump-{interface}-{label}"), command)?;
        tcpdump.wait_for_log("listening on")?;
        Ok(Self {
            tcpdump,
            packets: Packets { file },
        })
    }

    /// Ends the capture, with every packet until now in the file.
    ///
    /// # Errors
    ///
    /// When tcpdump does not end, or has failed.
    pub fn finish(mut self) -> Result<Packets> {
        self.drain()?;
        if self.tcpdump.is_running()? {
            // It may reach its limit just now: then it ends by itself.
            let _ = self.tcpdump.signal(Signal::SIGTERM);
        }
        let status = self.tcpdump.wait()?;
        ensure!(
            status.success(),
            "tcpdump ended, {status}; its log:\n{}",
            self.tcpdump.log()
        );
        Ok(self.packets)
    }

    /// Waits until tcpdump has read what the kernel keeps for it, or has all it wants: a
    /// signal to end would throw away the rest.
    fn drain(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.tcpdump.is_running()? {
            if let Some(caught) = statistics(&self.tcpdump.log())
                && caught.written + caught.dropped >= caught.received
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("tcpdump lags behind; its log:\n{}", self.tcpdump.log());
            }
            // It answers with its statistics (tcpdump(8)).
            let _ = self.tcpdump.signal(Signal::SIGUSR1);
            thread::sleep(POLL);
        }
        Ok(())
    }
}

/// Numbers of packets in the statistics of tcpdump.
#[derive(Debug, PartialEq, Eq)]
struct Statistics {
    written: u64,
    received: u64,
    dropped: u64,
}

/// The last statistics that tcpdump has logged, complete with their newline.
fn statistics(log: &str) -> Option<Statistics> {
    let (complete, _) = log.rsplit_once('\n')?;
    let line = complete
        .lines()
        .rfind(|line| line.contains(" dropped by kernel"))?;
    // `tcpdump: 3 packets captured, 3 packets received by filter, 0 packets dropped by
    // kernel`; 1 is of one `packet`.
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    Some(Statistics {
        written: numbers.next()?,
        received: numbers.next()?,
        dropped: numbers.next()?,
    })
}

/// Packets in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packets {
    file: PathBuf,
}

impl Packets {
    /// The packets of a capture file.
    #[must_use]
    pub fn of(file: PathBuf) -> Self {
        Self { file }
    }

    /// The file, in the form of pcap.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The packets that are malformed or have a bad checksum, in whatever header: those
    /// within tunnels and those of datagrams put together from fragments too. The TCP or UDP
    /// checksum in the quote of an ICMP error is not looked at. A line for each packet: its
    /// number in the file, its headers, a summary, and what is wrong.
    ///
    /// # Errors
    ///
    /// When tshark cannot read the file.
    pub fn flawed(&self) -> Result<Vec<String>> {
        self.select(FLAWED)
    }

    /// Checks that no packet is [`Packets::flawed`].
    ///
    /// # Errors
    ///
    /// With the first packets that are.
    pub fn check(&self) -> Result<()> {
        const SHOWN: usize = 5;

        let flawed = self.flawed()?;
        ensure!(
            flawed.is_empty(),
            "{} packets of {} are flawed; the first are\n{}",
            flawed.len(),
            self.file.display(),
            flawed[..flawed.len().min(SHOWN)].join("\n")
        );
        Ok(())
    }

    /// The number of packets that a display filter (wireshark-filter(4)) selects.
    ///
    /// # Errors
    ///
    /// When the filter is wrong, or tshark cannot read the file.
    pub fn count(&self, filter: &str) -> Result<usize> {
        Ok(self.select(filter)?.len())
    }

    /// A line for each packet that a display filter selects.
    fn select(&self, filter: &str) -> Result<Vec<String>> {
        let settings = settings(&self.file)?;
        let mut command = Command::new("tshark");
        command
            .env("WIRESHARK_CONFIG_DIR", &settings)
            .arg("-X")
            .arg(format!("lua_script:{}", settings.join("gue.lua").display()))
            .arg("-n");
        for protocol in ["ip", "tcp", "udp"] {
            command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
        }
        command.args(["-Y", filter, "-T", "fields"]);
        for field in [
            "frame.number",
            "frame.protocols",
            "_ws.col.Info",
            "_ws.expert.message",
        ] {
            command.args(["-e", field]);
        }
        command.arg("-r").arg(&self.file);
        let lines = run(&mut command)?;
        Ok(lines.lines().map(str::to_owned).collect())
    }
}

/// The directory of tshark's settings beside a capture file; makes it.
fn settings(file: &Path) -> Result<PathBuf> {
    /// The names of the protocols that are not read, a line each. tshark is asked once.
    static UNREAD: LazyLock<Result<String>> = LazyLock::new(unread_protocols);

    let directory = file.with_extension("tshark");
    if directory.exists() {
        return Ok(directory);
    }
    let unread = UNREAD.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    fs::create_dir(&directory)
        .and_then(|()| fs::write(directory.join("disabled_protos"), unread))
        .and_then(|()| fs::write(directory.join("gue.lua"), GUE))
        .with_context(|| format!("cannot write {}", directory.display()))?;
    Ok(directory)
}

/// All protocols but [`READ`], as tshark's `disabled_protos` names them.
fn unread_protocols() -> Result<String> {
    let list = run(Command::new("tshark").args(["-G", "protocols"]))?;
    let is_read = |name: &str| {
        READ.contains(&name) || READ_FAMILIES.iter().any(|family| name.starts_with(family))
    };
    let mut unread = String::new();
    // Full name, short name, and the one for filters.
    for name in list.lines().filter_map(|line| line.split('\t').nth(2)) {
        if !is_read(name) {
            unread.push_str(name);
            unread.push('\n');
        }
    }
    Ok(unread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_complete_statistics_count() {
        let log = "tcpdump: listening on eth0\n\
                   tcpdump: 1 packet captured, 3 packets received by filter, 0 packets dropped by kernel\n\
                   tcpdump: 2 packets captured, 3 packets received by filter, 1 packet dropped by kernel\n\
                   tcpdump: 3 packets captured, 3 pack";
        let last = Statistics {
            written: 2,
            received: 3,
            dropped: 1,
        };
        assert_eq!(statistics(log), Some(last));
        assert_eq!(statistics("tcpdump: listening on eth0\n"), None);
    }
}
