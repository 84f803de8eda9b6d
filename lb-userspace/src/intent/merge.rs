//! What comes of an item that was changed while the balancer ran, when the file says
//! something about it again.
//!
//! An item is a service, or a backend of one. Of each key the later word holds: that of the
//! file where the file says something else than it said before, else that of who changed it.
//!
//! | the file said | says | what is | what comes of it |
//! |---|---|---|---|
//! | something | nothing | anything | nothing: it is taken away |
//! | nothing | nothing | something | stays: it was never the file's |
//! | nothing | something | anything | what the file says |
//! | something | the same | nothing | nothing: it was taken away by hand, and stays away |
//! | something | else | nothing | what the file says |
//! | something | something | something | key by key |

use serde_json::{Map, Value};

/// A service or a backend in its JSON form, without a key that has no value.
pub(super) type Item = Map<String, Value>;

/// The key of a service under which its backends are.
pub(super) const BACKENDS: &str = "backends";
/// The key of a backend that names it.
pub(super) const ADDRESS: &str = "address";

/// The service that comes of what the file said and says, and of what is.
pub(super) fn service(
    before: Option<&Item>,
    after: Option<&Item>,
    now: Option<&Item>,
) -> Option<Item> {
    let mut merged = item(before, after, now)?;
    if let (Some(after), Some(now)) = (after, now) {
        let (before, after, now) = (
            before.map(backends).unwrap_or_default(),
            backends(after),
            backends(now),
        );
        // The order of the file, and what it does not name behind it.
        let mut addresses: Vec<&str> = after.iter().map(|(address, _)| *address).collect();
        for (address, _) in &now {
            if find(&after, address).is_none() {
                addresses.push(address);
            }
        }
        let merged_backends = addresses.into_iter().filter_map(|address| {
            item(
                find(&before, address),
                find(&after, address),
                find(&now, address),
            )
        });
        let merged_backends: Vec<Value> = merged_backends.map(Value::Object).collect();
        merged.insert(BACKENDS.to_owned(), merged_backends.into());
    }
    Some(merged)
}

/// The same for the keys of one item, of which `backends` is not one.
fn item(before: Option<&Item>, after: Option<&Item>, now: Option<&Item>) -> Option<Item> {
    match (before, after, now) {
        (Some(_), None, _) | (None, None, None) => None,
        (None, None, Some(now)) => Some(now.clone()),
        (None, Some(after), _) => Some(after.clone()),
        (Some(before), Some(after), None) => (before != after).then(|| after.clone()),
        (Some(before), Some(after), Some(now)) => {
            let mut merged = after.clone();
            let keys = before.keys().chain(now.keys());
            for key in keys.filter(|key| *key != BACKENDS) {
                if before.get(key) != after.get(key) {
                    continue;
                }
                match now.get(key) {
                    Some(value) => merged.insert(key.clone(), value.clone()),
                    None => merged.remove(key),
                };
            }
            Some(merged)
        }
    }
}

/// The backends of a service by address.
pub(super) fn backends(service: &Item) -> Vec<(&str, &Item)> {
    let backends = service.get(BACKENDS).and_then(Value::as_array);
    backends
        .into_iter()
        .flatten()
        .filter_map(|backend| {
            let backend = backend.as_object()?;
            Some((backend.get(ADDRESS)?.as_str()?, backend))
        })
        .collect()
}

/// The backend of this address.
pub(super) fn find<'a>(backends: &[(&str, &'a Item)], address: &str) -> Option<&'a Item> {
    let mut backends = backends.iter();
    backends
        .find(|(other, _)| *other == address)
        .map(|(_, backend)| *backend)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Item {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no object"),
        }
    }

    fn web(weights: &[(&str, u32)]) -> Item {
        let backends = weights
            .iter()
            .map(|(address, weight)| json!({"address": address, "weight": weight}));
        map(
            json!({"name": "web", "mode": "nat", "quorum": 1, "backends": backends.collect::<Vec<_>>()}),
        )
    }

    fn weights(item: &Item) -> Vec<(&str, u64)> {
        let backends = backends(item).into_iter();
        backends
            .map(|(address, backend)| (address, backend["weight"].as_u64().unwrap()))
            .collect()
    }

    #[test]
    fn the_table_is_kept() {
        let (one, other, hand) = (web(&[("a", 1)]), web(&[("a", 2)]), web(&[("a", 3)]));
        for (before, after, now, expected) in [
            (None, None, None, None),
            (Some(&one), None, None, None),
            (Some(&one), None, Some(&hand), None),
            (None, None, Some(&hand), Some(&hand)),
            (None, Some(&one), None, Some(&one)),
            (None, Some(&one), Some(&hand), Some(&one)),
            (Some(&one), Some(&one), None, None),
            (Some(&one), Some(&other), None, Some(&other)),
            (Some(&one), Some(&one), Some(&hand), Some(&hand)),
            (Some(&one), Some(&other), Some(&hand), Some(&other)),
            (Some(&one), Some(&other), Some(&one), Some(&other)),
        ] {
            assert_eq!(
                service(before, after, now).as_ref(),
                expected,
                "{before:?} {after:?} {now:?}"
            );
        }
    }

    #[test]
    fn backends_are_items_of_their_own() {
        // b was taken away by hand, d was added, and the weight of a is another.
        let before = web(&[("a", 1), ("b", 1), ("c", 1)]);
        let now = web(&[("a", 9), ("c", 1), ("d", 5)]);
        let merged = |file: &[(&str, u32)]| {
            let merged = service(Some(&before), Some(&web(file)), Some(&now)).unwrap();
            weights(&merged)
                .into_iter()
                .map(|(a, w)| format!("{a}{w}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(merged(&[("a", 1), ("b", 1), ("c", 1)]), "a9 c1 d5");
        // The file's new word about c, b and a; e is new.
        assert_eq!(merged(&[("a", 1), ("b", 1), ("c", 7)]), "a9 c7 d5");
        assert_eq!(merged(&[("a", 1), ("b", 2), ("c", 1)]), "a9 b2 c1 d5");
        assert_eq!(merged(&[("c", 1), ("e", 4)]), "c1 e4 d5");
        // What was added by hand becomes the file's.
        assert_eq!(
            merged(&[("d", 6), ("a", 1), ("b", 1), ("c", 1)]),
            "d6 a9 c1"
        );
    }

    #[test]
    fn a_key_that_has_no_value_is_a_word_too() {
        let mut before = web(&[]);
        before.insert("affinity".into(), json!("10m"));
        let mut now = before.clone();
        now.remove("affinity");
        now.insert("track".into(), json!("all"));
        let merged = service(Some(&before), Some(&before), Some(&now)).unwrap();
        assert_eq!(
            (merged.get("affinity"), merged.get("track")),
            (None, Some(&json!("all")))
        );
        let mut after = before.clone();
        after.remove("affinity");
        after.insert("quorum".into(), json!(2));
        let merged = service(Some(&before), Some(&after), Some(&before)).unwrap();
        assert_eq!(
            (merged.get("affinity"), &merged["quorum"]),
            (None, &json!(2))
        );
    }
}
