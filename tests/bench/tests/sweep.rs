//! That sweeps are measured. What they take here means nothing.

#[test]
fn flows_are_kept_and_ended() {
    let mut kinds = Vec::new();
    lb_bench::sweeps(1 << 12, |sweep| {
        kinds.push((sweep.mode, sweep.family, sweep.flows_are));
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(kinds.len(), 2 * 2 * 2, "modes, families, and both ends");
}
