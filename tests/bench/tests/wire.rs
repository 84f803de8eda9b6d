//! That frames go through virtual cables. How many, means nothing here.

use lb_bench::{Traffic, wire};

#[test]
fn every_forwarder_forwards() {
    let results = wire(&Traffic::QUICK).unwrap_or_else(|error| panic!("{error:?}"));
    let names: Vec<&str> = results.iter().map(|wire| wire.forwarder.as_str()).collect();
    let own = ["lb full-nat", "lb nat", "lb dsr", "lb ipip", "lb gue"];
    assert_eq!(names[0], "least program");
    assert!(own.iter().all(|name| names.contains(name)), "{names:?}");
    assert!(results.iter().all(|wire| wire.frames_per_second > 0.0));
}
