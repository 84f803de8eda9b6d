//! Changes, one by one and in random order.

use std::net::IpAddr;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    address::AddressPrefix,
    state::{
        Hash, Mode, Protocol, QuicSpec, Scheduler,
        rules::{MAX_SOURCES, same_address},
    },
};

fn service(name: &str, address: &str, protocol: Protocol, backends: &[&str]) -> ServiceSpec {
    ServiceSpec {
        protocol,
        backends: backends
            .iter()
            .map(|address| backend(address, 100))
            .collect(),
        ..ServiceSpec::new(name, address.parse().unwrap(), Mode::FullNat)
    }
}

fn backend(address: &str, weight: u32) -> BackendSpec {
    BackendSpec {
        weight,
        ..BackendSpec::new(address.parse().unwrap())
    }
}

fn web() -> Desired {
    Desired::new([service(
        "web",
        "192.0.2.10:443",
        Protocol::Tcp,
        &["10.0.0.11:8443", "10.0.0.12:8443"],
    )])
    .unwrap()
}

#[test]
fn a_second_service_of_the_same_name_is_a_conflict() {
    let other = service("web", "192.0.2.11:443", Protocol::Tcp, &[]);
    let refusal = web()
        .apply(Change::AddService(Box::new(other)))
        .unwrap_err();
    assert_eq!(refusal, Refusal::Conflict(same_name("web")));
}

#[test]
fn an_address_belongs_to_one_service_for_each_protocol() {
    let mut desired = web();
    let udp = service("quic", "192.0.2.10:443", Protocol::Udp, &[]);
    desired.apply(Change::AddService(Box::new(udp))).unwrap();
    let tcp = service("quic", "192.0.2.10:443", Protocol::Tcp, &[]);
    let web = desired.service("web").unwrap();
    let conflict = Refusal::Conflict(same_address(&tcp, web).about("address"));
    assert_eq!(
        desired.apply(Change::SetService(Box::new(tcp.clone()))),
        Err(conflict)
    );
    // The address is free again as soon as its owner has left it.
    let moved = service("web", "192.0.2.10:444", Protocol::Tcp, &[]);
    desired.apply(Change::SetService(Box::new(moved))).unwrap();
    desired.apply(Change::SetService(Box::new(tcp))).unwrap();
}

/// Where flows have entries, or no slot that says more than where new ones go, nothing is lost.
#[test]
fn slots_that_flows_live_by_stay_the_same() {
    let set = |mode: Mode, protocol, edit: &dyn Fn(&mut ServiceSpec)| {
        let backends: &[&str] = if mode.translates() {
            &["10.0.0.11:8443"]
        } else {
            &["10.0.0.11"]
        };
        let mut spec = service("web", "192.0.2.10:443", protocol, backends);
        spec.mode = mode;
        let mut desired = Desired::new([spec.clone()]).unwrap();
        edit(&mut spec);
        desired.apply(Change::SetService(Box::new(spec)))
    };
    let hash: &dyn Fn(&mut ServiceSpec) = &|spec| spec.hash = Hash::Client;
    let size: &dyn Fn(&mut ServiceSpec) = &|spec| spec.ring_size = 251;
    for edit in [hash, size] {
        let refusal = set(Mode::Dsr, Protocol::Tcp, edit);
        assert!(matches!(refusal, Err(Refusal::Conflict(_))), "{refusal:?}");
        set(Mode::Dsr, Protocol::Udp, edit).unwrap();
        set(Mode::FullNat, Protocol::Tcp, edit).unwrap();
    }
    let scheduler = |spec: &mut ServiceSpec| spec.scheduler = Scheduler::Random;
    set(Mode::Dsr, Protocol::Tcp, &scheduler).unwrap();
}

#[test]
fn a_removed_service_leaves_its_address() {
    let mut desired = web();
    desired.apply(Change::RemoveService("web".into())).unwrap();
    assert_eq!(desired, Desired::default());
    assert!(matches!(
        desired.apply(Change::RemoveService("web".into())),
        Err(Refusal::NotFound(_))
    ));
}

#[test]
fn backends_come_change_and_go() {
    let mut desired = web();
    let change = |weight| backend("10.0.0.13:8443", weight);
    let name = || "web".to_owned();
    let add = Change::AddBackend {
        service: name(),
        backend: change(7),
    };
    desired.apply(add.clone()).unwrap();
    assert!(matches!(desired.apply(add), Err(Refusal::Conflict(_))));
    desired
        .apply(Change::SetBackend {
            service: name(),
            backend: change(0),
        })
        .unwrap();
    assert_eq!(desired.service("web").unwrap().backends[2], change(0));
    let remove = Change::RemoveBackend {
        service: name(),
        address: change(0).address,
    };
    desired.apply(remove.clone()).unwrap();
    assert_eq!(desired, web());
    assert!(matches!(desired.apply(remove), Err(Refusal::NotFound(_))));
}

#[test]
fn a_backend_that_breaks_a_rule_is_invalid() {
    let mut desired = web();
    for wrong in ["10.0.0.13:*", "[2001:db8::1]:80", "127.0.0.1:80"] {
        let refusal = desired
            .apply(Change::AddBackend {
                service: "web".into(),
                backend: backend(wrong, 1),
            })
            .unwrap_err();
        assert!(
            matches!(refusal, Refusal::Invalid(_)),
            "{wrong}: {refusal:?}"
        );
    }
    assert_eq!(desired, web());
}

#[test]
fn a_service_may_not_take_more_backends_than_all_may_have() {
    let many = (0..=MAX_BACKENDS).map(|n| {
        let [_, a, b, c] = u32::try_from(n).unwrap().to_be_bytes();
        backend(&format!("10.{a}.{b}.{c}:80"), 1)
    });
    let mut big = service("big", "192.0.2.20:80", Protocol::Tcp, &[]);
    big.backends = many.collect();
    let last = big.backends.pop().unwrap();
    let mut desired = Desired::new([big]).unwrap();
    let add = Change::AddBackend {
        service: "big".into(),
        backend: last,
    };
    assert!(matches!(desired.apply(add), Err(Refusal::Invalid(_))));
    let small = service("small", "192.0.2.21:80", Protocol::Tcp, &["10.200.0.1:80"]);
    assert_eq!(
        desired.apply(Change::AddService(Box::new(small))),
        Err(Refusal::Conflict(too_many_backends()))
    );
}

#[test]
fn a_service_may_not_take_more_server_ids_than_all_may_have() {
    let quic = |name, address, count: usize| {
        let mut spec = service(name, address, Protocol::Udp, &["10.0.0.11:443"]);
        spec.quic = Some(QuicSpec::new(3));
        let ids = (0..count).map(|number| format!("{number:06x}").parse().unwrap());
        spec.backends[0].server_ids = ids.collect();
        spec
    };
    let mut desired = Desired::new([quic("big", "192.0.2.20:443", MAX_SERVER_IDS - 1)]).unwrap();
    let two = quic("small", "192.0.2.21:443", 2);
    let refusal = Refusal::Conflict(too_many_server_ids());
    assert_eq!(
        desired.apply(Change::AddService(Box::new(two))),
        Err(refusal)
    );
    let one = quic("small", "192.0.2.21:443", 1);
    desired.apply(Change::AddService(Box::new(one))).unwrap();
}

#[test]
fn sources_of_all_services_have_to_fit() {
    let guarded = |number: usize| {
        let name = format!("service-{number}");
        let address = format!("192.0.2.{number}:80");
        let mut service = service(&name, &address, Protocol::Tcp, &[]);
        let prefix = |index: usize| {
            let [_, a, b, c] = (index as u32).to_be_bytes();
            AddressPrefix::from(IpAddr::from([198, a, b, c]))
        };
        service.deny = (0..MAX_SOURCES).map(prefix).collect();
        service
    };
    let most = MAX_ALL_SOURCES / MAX_SOURCES;
    let mut desired = Desired::new((1..=most).map(guarded)).unwrap();
    let mut last = guarded(most + 1);
    let full = desired.apply(Change::AddService(Box::new(last.clone())));
    assert_eq!(full, Err(Refusal::Conflict(too_many_sources())));
    last.deny.truncate(MAX_ALL_SOURCES - most * MAX_SOURCES);
    desired.apply(Change::AddService(Box::new(last))).unwrap();
}

/// Few names and addresses, so that changes meet each other; some are wrong.
fn any_service() -> impl Strategy<Value = ServiceSpec> {
    let names = prop::sample::select(vec!["a", "b", "c", "-"]);
    let addresses = prop::sample::select(vec![
        "192.0.2.1:80",
        "192.0.2.1:*",
        "192.0.2.2:80",
        "[2001:db8::1]:80",
        "224.0.0.1:80",
    ]);
    let protocols = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    (names, addresses, protocols, vec(any_backend(), 0..3)).prop_map(
        |(name, address, protocol, backends)| ServiceSpec {
            backends,
            ..service(name, address, protocol, &[])
        },
    )
}

fn any_backend() -> impl Strategy<Value = BackendSpec> {
    let addresses = prop::sample::select(vec![
        "10.0.0.1:80",
        "10.0.0.2:80",
        "10.0.0.2:*",
        "[2001:db8::2]:80",
    ]);
    let weights = prop::sample::select(vec![0, 1, BackendSpec::MAX_WEIGHT + 1]);
    (addresses, weights).prop_map(|(address, weight)| backend(address, weight))
}

fn any_change() -> impl Strategy<Value = Change> {
    let names = || prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned);
    prop_oneof![
        3 => any_service().prop_map(|service| Change::AddService(Box::new(service))),
        2 => any_service().prop_map(|service| Change::SetService(Box::new(service))),
        1 => names().prop_map(Change::RemoveService),
        3 => (names(), any_backend())
            .prop_map(|(service, backend)| Change::AddBackend { service, backend }),
        2 => (names(), any_backend())
            .prop_map(|(service, backend)| Change::SetBackend { service, backend }),
        2 => (names(), any_backend()).prop_map(|(service, backend)| Change::RemoveBackend {
            service,
            address: backend.address,
        }),
    ]
}

proptest! {
    /// After every change the state is one that could be made from nothing, and a
    /// refused change leaves no trace.
    #[test]
    fn no_sequence_of_changes_leads_to_a_contradiction(changes in vec(any_change(), 0..60)) {
        let mut desired = Desired::default();
        for change in changes {
            let before = desired.clone();
            if desired.apply(change.clone()).is_err() {
                prop_assert_eq!(&desired, &before, "refused: {:?}", change);
            }
            let again = Desired::new(desired.services().cloned());
            prop_assert_eq!(again.as_ref(), Ok(&desired), "after {:?}", change);
        }
    }
}
