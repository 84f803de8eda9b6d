//! Labs do not disturb each other, and leave nothing behind.

use std::{
    env, fs,
    net::{TcpListener, TcpStream, UdpSocket},
    panic::{self, AssertUnwindSafe},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_lab::{End, Host, Lab, Link, Process, sweep_stale};

/// Names of the namespaces that belong to the lab with this id.
fn namespaces(id: &str) -> Vec<String> {
    let prefix = format!("{id}.");
    fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

/// Whether a process of this id exists and is no zombie.
fn lives(id: u32) -> bool {
    fs::read_to_string(format!("/proc/{id}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with('Z'))
}

/// Waits until the process is gone.
fn assert_ends(id: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while lives(id) {
        assert!(Instant::now() < deadline, "process {id} still lives");
        thread::yield_now();
    }
}

/// A process that would run for an hour.
fn sleeper(host: &Host) -> Result<Process> {
    let mut command = host.command("sleep");
    command.arg("3600");
    host.spawn("sleep", command)
}

#[test]
fn two_labs_use_the_same_names_and_addresses_at_once() -> Result<()> {
    let labs = [Lab::new("twin")?, Lab::new("twin")?];
    assert_ne!(labs[0].id(), labs[1].id());
    let mut pairs = Vec::new();
    for lab in &labs {
        let (left, right) = (lab.host("left")?, lab.host("right")?);
        Link::between(
            End::of(&left, "eth0").address("10.0.0.1/24"),
            End::of(&right, "eth0").address("10.0.0.2/24"),
        )
        .up()?;
        pairs.push((left, right));
    }
    // Both listen on the same address, and each connection reaches its own lab.
    let listeners: Vec<_> = pairs
        .iter()
        .map(|(_, right)| right.enter(|| TcpListener::bind("10.0.0.2:80").unwrap()))
        .collect();
    for ((left, _), listener) in pairs.iter().zip(&listeners) {
        let stream = left.enter(|| TcpStream::connect("10.0.0.2:80"))?;
        let (_, client) = listener.accept()?;
        assert_eq!(stream.local_addr()?, client);
    }

    // The end of one is not the end of the other.
    let [first, second] = labs;
    drop(first);
    let stream = pairs[1].0.enter(|| TcpStream::connect("10.0.0.2:80"))?;
    assert_eq!(stream.local_addr()?, listeners[1].accept()?.1);
    assert_eq!(namespaces(second.id()).len(), 2);
    Ok(())
}

#[test]
fn nothing_is_left_of_a_lab() -> Result<()> {
    let lab = Lab::new("tidy")?;
    let (id, directory) = (lab.id().to_owned(), lab.directory().to_owned());
    let process = sleeper(&lab.host("only")?)?;
    let pid = process.id();
    assert_eq!(namespaces(&id), [format!("{id}.only")]);
    assert!(lives(pid) && directory.exists());

    // Even a process whose guard was lost goes with the lab.
    std::mem::forget(process);
    drop(lab);
    assert_eq!(namespaces(&id), <[String; 0]>::default());
    assert!(!directory.exists());
    assert_ends(pid);
    Ok(())
}

#[test]
fn nothing_is_left_of_a_lab_after_a_panic() {
    let mut found = None;
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::new("panic").unwrap();
        let host = lab.host("only").unwrap();
        let process = sleeper(&host).unwrap();
        found = Some((lab.id().to_owned(), process.id()));
        host.enter(|| panic!("as a failed assertion within a host does"));
    }));
    let message = *result.unwrap_err().downcast::<&str>().unwrap();
    assert_eq!(message, "as a failed assertion within a host does");
    let (id, pid) = found.unwrap();
    assert_eq!(namespaces(&id), <[String; 0]>::default());
    assert_ends(pid);
}

/// Set for the process that the next test kills.
const TO_BE_KILLED: &str = "LB_LAB_TO_BE_KILLED";

#[test]
fn a_killed_process_leaves_nothing_for_long() -> Result<()> {
    if env::var_os(TO_BE_KILLED).is_some() {
        let lab = Lab::new("killed")?;
        let process = sleeper(&lab.host("only")?)?;
        println!("lab {} sleeper {} .", lab.id(), process.id());
        loop {
            thread::park();
        }
    }
    let lab = Lab::new("killer")?;
    let host = lab.host("only")?;
    let mut command = host.command(env::current_exe()?);
    command
        .args([
            "--exact",
            "a_killed_process_leaves_nothing_for_long",
            "--nocapture",
        ])
        .env(TO_BE_KILLED, "");
    let mut test = host.spawn("killed", command)?;
    test.wait_for_log(" .")?;
    let log = test.log();
    let mut words = log.split_whitespace().skip_while(|word| *word != "lab");
    let (id, pid) = (words.nth(1).unwrap(), words.nth(1).unwrap().parse()?);
    assert_eq!(namespaces(id).len(), 1);
    assert!(lives(pid));

    // Of a living owner a sweep takes nothing.
    sweep_stale()?;
    assert_eq!(namespaces(id).len(), 1);

    // The kernel ends the sleeper with its owner; a sweep does the rest.
    test.kill()?;
    assert_ends(pid);
    sweep_stale()?;
    assert_eq!(namespaces(id), <[String; 0]>::default());
    assert!(!Path::new("/run/lb-lab").join(id).exists());
    Ok(())
}

#[test]
fn a_command_and_a_closure_see_the_same_network_and_the_machine_its_own() -> Result<()> {
    let lab = Lab::new("inside")?;
    let host = lab.host("only")?;
    host.ip("link add probe type bridge")?;

    let inside = |names: &str| names.lines().any(|name| name == "probe");
    let list = |command: &mut Command| -> Result<String> {
        Ok(String::from_utf8(command.output()?.stdout)?)
    };
    let proc = "/proc/self/net/dev";
    let seen = |text: &str| text.contains("probe:");
    assert!(seen(&list(host.command("cat").arg(proc))?));
    assert!(seen(
        &host.enter(|| fs::read_to_string("/proc/thread-self/net/dev"))?
    ));
    assert!(!seen(&fs::read_to_string(proc)?));
    // `/sys` is that of the machine, so that bpffs is found in it.
    assert!(!inside(&list(host.command("ls").arg("/sys/class/net"))?));
    Ok(())
}

#[test]
fn a_kernel_parameter_is_set_in_one_host_only() -> Result<()> {
    let lab = Lab::new("sysctl")?;
    let (left, right) = (lab.host("left")?, lab.host("right")?);
    let key = "net/ipv4/ip_local_port_range";
    left.sysctl(key, "2000 2000")?;
    let port = |host: &Host| -> Result<u16> {
        Ok(host
            .enter(|| UdpSocket::bind("127.0.0.1:0"))?
            .local_addr()?
            .port())
    };
    assert_eq!(port(&left)?, 2000);
    assert_ne!(port(&right)?, 2000);

    let error = left.sysctl("net/ipv4/no_such_thing", "1").unwrap_err();
    assert!(format!("{error:#}").contains("/proc/sys/net/ipv4/no_such_thing"));
    Ok(())
}

#[test]
fn errors_say_what_failed_and_why() -> Result<()> {
    let lab = Lab::new("errors")?;
    let host = lab.host("only")?;

    let error = format!("{:#}", lab.host("only").unwrap_err());
    assert!(
        error.contains("`only`") && error.contains("File exists"),
        "{error}"
    );

    let error = format!("{:#}", host.ip("link set dev eth7 up").unwrap_err());
    assert!(
        error.contains("ip link set dev eth7 up") && error.contains("eth7"),
        "{error}"
    );

    let missing = host.command("no-such-program");
    let error = format!("{:#}", host.spawn("missing", missing).unwrap_err());
    assert!(error.contains("no-such-program"), "{error}");

    let mut talker = host.command("sh");
    talker.args(["-c", "echo what happened >&2"]);
    let talker = host.spawn("talker", talker)?;
    let error = format!("{:#}", talker.wait_for_log("ready").unwrap_err());
    assert!(error.contains("what happened"), "{error}");

    assert!(Lab::new("Bad name").is_err());
    Ok(())
}
