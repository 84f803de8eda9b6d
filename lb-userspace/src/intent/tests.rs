//! What becomes of changes and files, one after the other.

use serde_json::json;

use super::*;
use crate::{
    config::{self, Source},
    state::BackendSpec,
};

const FILE: &str = "/etc/lb/lb.toml";

/// A file of this name that says this about services.
fn file(name: &str, services: &str) -> FileContent {
    let text = format!("interfaces = ['eth0']\n{services}");
    let source = Source::new(name, text.as_bytes());
    let outcome = config::read(&source);
    let complaints = outcome.diagnostics.render(&source, false);
    outcome
        .config
        .unwrap_or_else(|| panic!("{complaints}"))
        .content(&source)
}

/// The service `web` on these backends, with weights.
fn web(backends: &[(&str, u32)]) -> String {
    let mut toml =
        "[[service]]\nname = 'web'\naddress = '192.0.2.10:80'\nmode = 'nat'\n".to_owned();
    for (address, weight) in backends {
        toml +=
            &format!("[[service.backend]]\naddress = '10.0.0.{address}:80'\nweight = {weight}\n");
    }
    toml
}

/// A daemon with all that survives it.
struct Daemon {
    intent: Intent,
    desired: Desired,
}

impl Daemon {
    fn start(services: &str, kept: Kept) -> Self {
        let own = file(FILE, services);
        let applied = kept
            .applied
            .filter(|applied| applied.instead_of == own.text)
            .map(|applied| {
                let source = Source::new(applied.name.clone(), applied.text.as_bytes());
                let content = config::read(&source).config.unwrap().content(&source);
                (applied, content)
            });
        let (intent, desired) = Intent::begin(own, applied, &kept.services, &[]).unwrap();
        Self { intent, desired }
    }

    /// It ends, and another starts with this file.
    fn restart(self, services: &str) -> Self {
        let text = serde_json::to_string(&self.intent.kept()).unwrap();
        Self::start(services, serde_json::from_str(&text).unwrap())
    }

    fn take(&mut self, proposal: Result<Proposal, Refusal>) -> Vec<Difference> {
        let proposal = proposal.unwrap();
        self.intent = proposal.after;
        self.desired = proposal.desired;
        proposal.differences
    }

    fn change(&mut self, change: Change) {
        let proposal = self.intent.change(&self.desired, change, None);
        self.take(proposal);
    }

    fn set(&mut self, backend: &str, weight: u32) {
        let backend = BackendSpec {
            weight,
            ..spec(backend)
        };
        self.change(Change::SetBackend {
            service: "web".into(),
            backend,
        });
    }

    fn add(&mut self, backend: &str) {
        self.change(Change::AddBackend {
            service: "web".into(),
            backend: spec(backend),
        });
    }

    fn remove(&mut self, backend: &str) {
        let address = spec(backend).address;
        self.change(Change::RemoveBackend {
            service: "web".into(),
            address,
        });
    }

    fn apply(&mut self, name: &str, services: &str) -> Vec<Difference> {
        let proposal = self.intent.apply(&self.desired, file(name, services), None);
        self.take(proposal)
    }

    /// The backends of `web` with their weights.
    fn backends(&self) -> String {
        let Some(web) = self.desired.service("web") else {
            return "gone".to_owned();
        };
        let backends = web.backends.iter().map(|backend| {
            let address = backend.address.to_string();
            format!(
                "{}={}",
                address
                    .trim_start_matches("10.0.0.")
                    .trim_end_matches(":80"),
                backend.weight
            )
        });
        backends.collect::<Vec<_>>().join(" ")
    }
}

fn spec(backend: &str) -> BackendSpec {
    BackendSpec::new(format!("10.0.0.{backend}:80").parse().unwrap())
}

/// The file may say its next word while the daemon runs or while it does not: that is the same.
#[test]
fn changes_hold_until_the_file_says_otherwise() {
    let before = web(&[("1", 10), ("2", 20), ("3", 30)]);
    for (after, expected) in [
        // The same: 1 has another weight, 2 is gone, 4 was added.
        (&[("1", 10), ("2", 20), ("3", 30)][..], "1=99 3=30 4=100"),
        (&[("1", 11), ("2", 20), ("3", 30)], "1=11 3=30 4=100"),
        (&[("1", 10), ("2", 21), ("3", 31)], "1=99 2=21 3=31 4=100"),
        (&[("2", 20), ("3", 30)], "3=30 4=100"),
        (
            &[("1", 10), ("2", 20), ("3", 30), ("4", 7)],
            "1=99 3=30 4=7",
        ),
    ] {
        for is_running in [true, false] {
            let mut daemon = Daemon::start(&before, Kept::default());
            daemon.set("1", 99);
            daemon.remove("2");
            daemon.add("4");
            assert_eq!(daemon.backends(), "1=99 3=30 4=100");
            let after = web(after);
            let mut daemon = match is_running {
                true => daemon,
                false => daemon.restart(&after),
            };
            daemon.apply(FILE, &after);
            assert_eq!(daemon.backends(), expected, "running: {is_running}");
            // What holds then holds on.
            let daemon = daemon.restart(&after);
            assert_eq!(daemon.backends(), expected, "running: {is_running}");
        }
    }
}

#[test]
fn a_service_that_was_removed_stays_away_until_the_file_changes_it() {
    let file = web(&[("1", 10)]);
    let mut daemon = Daemon::start(&file, Kept::default());
    daemon.change(Change::RemoveService("web".into()));
    let mut daemon = daemon.restart(&file);
    assert_eq!(daemon.backends(), "gone");
    daemon.apply(FILE, &web(&[("1", 11)]));
    assert_eq!(daemon.backends(), "1=11");
    assert_eq!(daemon.intent.kept(), Kept::default());
    // What the file takes away goes, whatever became of it.
    daemon.set("1", 50);
    daemon.apply(FILE, "");
    assert_eq!(daemon.backends(), "gone");
    assert_eq!(daemon.intent.kept(), Kept::default());
}

#[test]
fn what_is_set_back_is_no_change_any_more() {
    let file = web(&[("1", 10), ("2", 20)]);
    let mut daemon = Daemon::start(&file, Kept::default());
    daemon.set("1", 50);
    daemon.remove("2");
    assert_eq!(daemon.intent.status().changed_services, 1);
    daemon.set("1", 10);
    let two = BackendSpec {
        weight: 20,
        ..spec("2")
    };
    daemon.change(Change::AddBackend {
        service: "web".into(),
        backend: two,
    });
    assert_eq!(daemon.intent.kept(), Kept::default());
    daemon.set("1", 50);
    let proposal = daemon.intent.reset(&daemon.desired, None);
    let differences = daemon.take(proposal);
    assert_eq!(differences.len(), 1);
    assert_eq!(daemon.backends(), "1=10 2=20");
    assert_eq!(daemon.intent.kept(), Kept::default());
}

#[test]
fn another_file_holds_until_the_first_one_changes() {
    let own = web(&[("1", 10)]);
    let mut daemon = Daemon::start(&own, Kept::default());
    daemon.apply("/tmp/other.toml", &web(&[("1", 10), ("2", 20)]));
    daemon.set("1", 50);
    let mut daemon = daemon.restart(&own);
    assert_eq!(daemon.backends(), "1=50 2=20");
    let status = daemon.intent.status();
    assert_eq!(status.applied.as_deref(), Some("/tmp/other.toml"));
    daemon.apply(FILE, &web(&[("1", 10), ("3", 30)]));
    assert_eq!(daemon.backends(), "1=50 3=30");
    assert_eq!(daemon.intent.status().applied, None);
    // The same text is the same file, under whatever name.
    daemon.apply("/etc/lb/../lb/lb.toml", &web(&[("1", 10), ("3", 30)]));
    assert_eq!(daemon.intent.status().applied, None);

    // Also while no daemon runs.
    daemon.apply("/tmp/other.toml", &web(&[("4", 40)]));
    assert_eq!(daemon.backends(), "4=40");
    let daemon = daemon.restart(&web(&[("5", 5)]));
    assert_eq!(daemon.backends(), "5=5");
}

#[test]
fn differences_are_told_item_by_item() {
    let mut daemon = Daemon::start(&web(&[("1", 10), ("2", 20)]), Kept::default());
    let other = web(&[("1", 11), ("3", 30)]).replace("'nat'", "'full-nat'")
        + "[[service]]\nname = 'dns'\naddress = '192.0.2.53:53'\nprotocol = 'udp'\nmode = 'nat'\n";
    let revision = daemon.intent.revision();
    let differences = daemon.apply(FILE, &other);
    assert_eq!(
        serde_json::to_value(&differences).unwrap(),
        json!([
            {"action": "add", "service": "dns"},
            {"action": "change", "service": "web", "keys": [{"key": "mode", "before": "nat", "after": "full-nat"}]},
            {"action": "remove", "service": "web", "backend": "10.0.0.2:80"},
            {"action": "change", "service": "web", "backend": "10.0.0.1:80",
                "keys": [{"key": "weight", "before": 10, "after": 11}]},
            {"action": "add", "service": "web", "backend": "10.0.0.3:80"},
        ])
    );
    assert_ne!(daemon.intent.revision(), revision);
    let revision = daemon.intent.revision();
    assert_eq!(daemon.apply(FILE, &other), []);
    assert_eq!(daemon.intent.revision(), revision);
    assert_eq!(
        daemon.apply(FILE, ""),
        [
            Difference::of_service(Action::Remove, "dns"),
            Difference::of_service(Action::Remove, "web"),
        ]
    );
}

#[test]
fn a_change_names_the_state_that_it_is_for() {
    let mut daemon = Daemon::start(&web(&[("1", 10)]), Kept::default());
    let first = Condition::is(daemon.intent.revision());
    let remove = || Change::RemoveService("web".into());
    let proposal = daemon
        .intent
        .change(&daemon.desired, remove(), Some(&first))
        .unwrap();
    assert_ne!(proposal.after.revision(), daemon.intent.revision());
    daemon.set("1", 50);
    let outdated = |result: Result<Proposal, Refusal>| matches!(result, Err(Refusal::Outdated(_)));
    assert!(outdated(daemon.intent.change(
        &daemon.desired,
        remove(),
        Some(&first)
    )));
    assert!(outdated(daemon.intent.apply(
        &daemon.desired,
        file(FILE, ""),
        Some(&first)
    )));
    assert!(outdated(daemon.intent.reset(&daemon.desired, Some(&first))));
    let any: Condition = "*".parse().unwrap();
    assert!(daemon.intent.reset(&daemon.desired, Some(&any)).is_ok());
}

#[test]
fn what_does_not_go_together_changes_nothing() {
    let mut daemon = Daemon::start(&web(&[("1", 10)]), Kept::default());
    let same = ServiceSpec::new(
        "hand",
        "192.0.2.20:80".parse().unwrap(),
        crate::state::Mode::Nat,
    );
    daemon.change(Change::AddService(Box::new(same)));
    let clash =
        web(&[("1", 10)]) + "[[service]]\nname = 'file'\naddress = '192.0.2.20:80'\nmode = 'nat'\n";
    let refusal = daemon
        .intent
        .apply(&daemon.desired, file(FILE, &clash), None)
        .unwrap_err();
    assert!(matches!(refusal, Refusal::Conflict(_)), "{refusal:?}");
    assert!(refusal.to_string().contains("192.0.2.20:80"), "{refusal}");
    let kept = daemon.intent.kept().services;
    assert!(Intent::begin(file(FILE, &clash), None, &kept, &[]).is_err());
}

#[test]
fn settings_that_need_another_start_are_told() {
    let mut daemon = Daemon::start("", Kept::default());
    daemon.apply(FILE, "socket = '/run/other.sock'\nlimits.flows = 2048\n");
    assert_eq!(daemon.intent.status().restart_needed, ["limits", "socket"]);
    daemon.apply(FILE, "");
    assert!(daemon.intent.status().restart_needed.is_empty());
}
