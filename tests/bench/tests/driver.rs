//! The flows of the driver, and their order.

use std::collections::HashSet;

use lb_bench_driver::{Order, client};

#[test]
fn an_order_holds_every_number_once() {
    for bits in 0..=16 {
        let count = 1 << bits;
        for order in [Order::ascending(count), Order::scattered(count)] {
            for start in [0, 12_345] {
                let numbers: HashSet<u32> = (start..start + count).map(|n| order.nth(n)).collect();
                assert_eq!(numbers.len(), count as usize, "{order:?}");
                assert!(numbers.iter().all(|number| *number < count));
            }
        }
    }
}

#[test]
fn ascending_numbers_are_those_of_the_runs() {
    let order = Order::ascending(1 << 20);
    assert!((0..1 << 20).all(|n| order.nth(n) == n));
}

#[test]
fn every_flow_has_a_client_of_its_own() {
    let flows: Vec<u32> = (0..1 << 12).map(|n| n << 9 | n).collect();
    let clients: HashSet<_> = flows.iter().map(|flow| client(*flow)).collect();
    assert_eq!(clients.len(), flows.len());
    assert!(clients.iter().all(|(_, port)| *port != 0));
}
