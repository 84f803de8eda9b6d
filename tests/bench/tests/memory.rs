//! That the memory of the flow tables is found.

use lb_bench::memory;

#[test]
fn a_flow_takes_its_key_and_value_at_least() {
    let kinds = memory(1 << 12).unwrap_or_else(|error| panic!("{error:?}"));
    let bytes: Vec<u64> = kinds.iter().map(|kind| kind.bytes_per_flow).collect();
    // Two entries, one, and a place in a queue; IPv4 and IPv6.
    for (bytes, least) in bytes
        .iter()
        .zip([2 * (16 + 64), 2 * (40 + 88), 16 + 16, 40 + 16, 16, 40])
    {
        assert!((least..4 * least).contains(bytes), "{kinds:?}");
    }
}
