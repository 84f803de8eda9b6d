//! What differs between two states, item by item.

use serde_json::Value;

use super::{
    item_of,
    merge::{ADDRESS, BACKENDS, Item, backends, find},
};
use crate::state::{Action, Desired, Difference, KeyChange, ServiceSpec};

/// What has to be done to come from one state to the other, by name.
pub(super) fn between(before: &Desired, after: &Desired) -> Vec<Difference> {
    let mut found = Vec::new();
    for spec in before.services() {
        if after.service(&spec.name).is_none() {
            found.push(Difference::of_service(Action::Remove, &spec.name));
        }
    }
    for spec in after.services() {
        of_service(before.service(&spec.name), spec, &mut found);
    }
    found
}

/// The same for a service that is there afterwards.
pub(super) fn of_service(
    before: Option<&ServiceSpec>,
    after: &ServiceSpec,
    found: &mut Vec<Difference>,
) {
    if before == Some(after) {
        return;
    }
    let name = &after.name;
    let after = item_of(after);
    let Some(before) = before.map(item_of) else {
        found.push(Difference::of_service(Action::Add, name));
        found.extend(
            backends(&after)
                .into_iter()
                .map(|(address, _)| Difference::of_backend(Action::Add, name, address)),
        );
        return;
    };
    let keys = keys(&before, &after);
    if !keys.is_empty() {
        found.push(Difference {
            keys,
            ..Difference::of_service(Action::Change, name)
        });
    }
    let (before, after) = (backends(&before), backends(&after));
    for (address, _) in &before {
        if find(&after, address).is_none() {
            found.push(Difference::of_backend(Action::Remove, name, address));
        }
    }
    for (address, backend) in &after {
        match find(&before, address) {
            None => found.push(Difference::of_backend(Action::Add, name, address)),
            Some(before) => {
                let keys = self::keys(before, backend);
                if !keys.is_empty() {
                    found.push(Difference {
                        keys,
                        ..Difference::of_backend(Action::Change, name, address)
                    });
                }
            }
        }
    }
}

/// The keys with other values, without those that are items of their own.
fn keys(before: &Item, after: &Item) -> Vec<KeyChange> {
    let mut keys: Vec<&String> = before.keys().collect();
    keys.extend(after.keys().filter(|key| !before.contains_key(*key)));
    keys.into_iter()
        .filter(|key| {
            ![BACKENDS, ADDRESS].contains(&key.as_str())
                || (*key == ADDRESS && before.contains_key(BACKENDS))
        })
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| KeyChange {
            key: key.clone(),
            before: before.get(key).cloned().unwrap_or(Value::Null),
            after: after.get(key).cloned().unwrap_or(Value::Null),
        })
        .collect()
}
