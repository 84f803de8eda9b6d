//! That the benchmark runs. What it measures here means nothing; that every packet
//! became what it should, it checks by itself.

use lb_bench::{Row, Scenario, Size};

#[test]
fn every_row_runs_with_correct_verdicts() {
    let size = Size {
        flows: &[64],
        rounds: 1,
        packets: 256,
        new_flows: 64,
        room: 1_024,
    };
    let mut rows: Vec<Row> = Vec::new();
    lb_bench::packet(&size, &[], |row, figures| {
        assert!(figures.floor_ns > 0.0, "{row}: {figures:?}");
        rows.push(*row);
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error:?}"));

    let (featured, plain): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|row| row.feature.is_some());
    let count = |rows: &[&Row], scenario| {
        let alike = |row: &&&Row| row.scenario == scenario;
        rows.iter().filter(alike).count()
    };
    // Modes, families and protocols.
    const TRANSLATED: usize = 2 * 2 * 2;
    // Families and protocols of flows that have entries without translation.
    const TRACKED: usize = 2 * 2;
    assert_eq!(count(&plain, Scenario::Tracked), TRANSLATED + TRACKED);
    assert_eq!(count(&plain, Scenario::Reply), TRANSLATED);
    assert_eq!(count(&plain, Scenario::New), TRANSLATED + TRACKED);
    assert_eq!(count(&plain, Scenario::Changing), 2);
    assert_eq!(count(&plain, Scenario::Pinned), 2);
    assert_eq!(count(&plain, Scenario::Clean), 3 * 2 * 2);
    assert_eq!(count(&plain, Scenario::Quic), 2);
    // TCP alone.
    assert_eq!(count(&plain, Scenario::CleanSyn), 3 * 2);
    // Either family; ARP is measured beside one flow alone.
    assert_eq!(count(&plain, Scenario::NotOurs), 2);
    // Features and families.
    for scenario in [
        Scenario::New,
        Scenario::NotOurs,
        Scenario::Clean,
        Scenario::CleanSyn,
    ] {
        assert_eq!(count(&featured, scenario), 6 * 2);
    }
}

#[test]
fn a_filter_leaves_the_rows_that_it_names() {
    let mut names = Vec::new();
    let filter = ["not-ours/-/-/-/1".to_owned()];
    lb_bench::packet(
        &Size {
            flows: &[1],
            ..Size::QUICK
        },
        &filter,
        |row, _| {
            names.push(row.to_string());
            Ok(())
        },
    )
    .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(names, filter);
}

/// Measured beside one flow alone, like ARP.
#[test]
fn echo_requests_are_answered_in_both_families() {
    let mut names = Vec::new();
    let filter = ["echo".to_owned()];
    let one = Size {
        flows: &[1],
        ..Size::QUICK
    };
    lb_bench::packet(&one, &filter, |row, _| {
        names.push(row.to_string());
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(names, ["echo/-/ipv4/-/1", "echo/-/ipv6/-/1"]);
}
