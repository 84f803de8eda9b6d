//! That many services are measured. What they take here means nothing.

use lb_bench::scale;

#[test]
fn every_extent_is_loaded_changed_and_adopted() {
    let extents = [(1, 20), (3, 2)];
    let mut measured = Vec::new();
    scale(&extents, |scale| {
        assert!(scale.begin_ms > 0.0 && scale.change_ms > 0.0, "{scale:?}");
        assert!(scale.change_ms <= scale.change_longest_ms, "{scale:?}");
        assert!(scale.maps_mib > 0.0 && scale.process_mib > 0.0, "{scale:?}");
        measured.push((scale.services, scale.backends));
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(measured, extents);
}
