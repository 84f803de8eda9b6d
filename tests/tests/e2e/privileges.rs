//! What the daemon may do once it runs.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use lb_lab::{Balancer, TopologyOptions};

use crate::{http_of_each_kind, load, programs, standard};

/// `CAP_NET_ADMIN`, `CAP_NET_RAW`, `CAP_PERFMON` and `CAP_BPF` (linux/capability.h).
const EFFECTIVE: u64 = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;
/// `CAP_SYS_ADMIN`, which is asked for where a map is looked up by its number.
const ON_DEMAND: u64 = 1 << 21;

/// A field of `/proc/PID/status`, as the number that it is.
fn field(status: &str, name: &str) -> Result<u64> {
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .with_context(|| format!("no field {name}"))?;
    Ok(u64::from_str_radix(value.trim(), 16)?)
}

#[test]
fn the_daemon_keeps_no_rights_that_it_does_not_need() -> Result<()> {
    let (topology, _servers) = standard("privileges", TopologyOptions::default())?;
    let services = http_of_each_kind(&topology);
    let mut balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
    let check = |balancer: &mut Balancer| -> Result<usize> {
        let process = balancer.process().id();
        let tasks = Path::new("/proc").join(process.to_string()).join("task");
        let mut threads = 0;
        for task in fs::read_dir(&tasks)? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            let of = |name| field(&status, name);
            ensure!(of("CapEff")? == EFFECTIVE, "{status}");
            ensure!(of("CapPrm")? & !(EFFECTIVE | ON_DEMAND) == 0, "{status}");
            ensure!(of("CapBnd")? & !(EFFECTIVE | ON_DEMAND) == 0, "{status}");
            ensure!(of("CapInh")? == 0 && of("CapAmb")? == 0, "{status}");
            ensure!(of("NoNewPrivs")? == 1, "{status}");
            threads += 1;
        }
        Ok(threads)
    };
    ensure!(check(&mut balancer)? > 2, "its threads were looked at");
    // All that the daemon does goes on so: a change, a question, another start.
    balancer.lb("backend set full-nat-v4 10.0.0.11:8080 --weight 50")?;
    balancer.lb("explain tcp 198.51.100.2:40000 192.0.2.10:80")?;
    load(&topology, &services, 3)?;
    check(&mut balancer)?;
    balancer.process().kill()?;
    balancer.start_again()?;
    load(&topology, &services, 3)?;
    check(&mut balancer)?;

    // Nobody reaches it but by its Unix socket.
    let listening = topology.lb.enter(|| -> Result<Vec<String>> {
        let mut listening = Vec::new();
        for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
            let table = fs::read_to_string(table)?;
            let sockets = table.lines().skip(1).map(str::to_owned);
            listening.extend(sockets.filter(|line| line.split_whitespace().nth(3) == Some("0A")));
        }
        Ok(listening)
    })?;
    ensure!(listening.is_empty(), "{listening:?}");
    balancer.stop()
}
