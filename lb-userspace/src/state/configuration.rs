//! Which state it is, who said what of it, and what changes from one to the next.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Desired, Reason, Refusal, words::words};

/// Names a state of what is wanted. No two of one host have the same, also of daemons one
/// after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revision {
    /// When the daemon began, in milliseconds since 1970.
    daemon: u64,
    /// Which of its states it is, from 1.
    number: u64,
}

impl Revision {
    /// The first one of a daemon that began then.
    #[must_use]
    pub const fn first(milliseconds: u64) -> Self {
        Self {
            daemon: milliseconds,
            number: 1,
        }
    }

    /// The one that follows.
    #[must_use]
    pub const fn next(self) -> Self {
        Self {
            number: self.number + 1,
            ..self
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.daemon, self.number)
    }
}

impl FromStr for Revision {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Reason> {
        let read = || {
            let (daemon, number) = text.split_once('-')?;
            Some(Self {
                daemon: u64::from_str_radix(daemon, 16).ok()?,
                number: number.parse().ok()?,
            })
        };
        read().ok_or_else(|| {
            Reason::new(
                format!("`{}` is no revision", text.escape_debug()),
                "take the one that an answer named, as it is",
            )
        })
    }
}

/// The states that a change may be made to: those that it names, or any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition(Option<Vec<Revision>>);

impl Condition {
    /// That it is this one.
    #[must_use]
    pub fn is(revision: Revision) -> Self {
        Self(Some(vec![revision]))
    }

    /// Whether the change may be made to this state.
    #[must_use]
    pub fn is_met_by(&self, revision: Revision) -> bool {
        self.0
            .as_ref()
            .is_none_or(|named| named.contains(&revision))
    }

    /// Refuses a change that may not be made to this state.
    ///
    /// # Errors
    ///
    /// [`Refusal::Outdated`].
    pub fn require(&self, revision: Revision) -> Result<(), Refusal> {
        if self.is_met_by(revision) {
            return Ok(());
        }
        Err(Refusal::Outdated(Reason::new(
            format!("the state has changed since it was read: its revision is {revision}"),
            "read it again, and see whether the change is still right",
        )))
    }
}

/// As in `If-Match` (RFC 9110, section 13.1.1): `"6a1f-3"`, several with commas between, or
/// `*`.
impl FromStr for Condition {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Reason> {
        if text.trim() == "*" {
            return Ok(Self(None));
        }
        let named = text.split(',').map(|tag| {
            let tag = tag.trim();
            let bare = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
            bare.unwrap_or(tag).parse()
        });
        named
            .collect::<Result<_, _>>()
            .map(|named| Self(Some(named)))
    }
}

/// What a configuration file says.
#[derive(Clone, Debug)]
pub struct FileContent {
    /// What messages call the file.
    pub name: String,
    /// Its text.
    pub text: String,
    /// Its services.
    pub services: Desired,
    /// All else, as JSON.
    pub settings: serde_json::Map<String, Value>,
}

words! {
    /// What is done to an item.
    Action, "action", "`add`, `remove` or `change`" {
        /// It comes.
        Add = "add",
        /// It goes.
        Remove = "remove",
        /// It gets other values.
        Change = "change",
    }
}

/// Something that differs between two states: a service, or a backend of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Difference {
    /// What is done to it.
    pub action: Action,
    /// Name of the service.
    pub service: String,
    /// Address of the backend, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The keys that change, where it is there before and afterwards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyChange>,
}

impl Difference {
    /// One of a service.
    #[must_use]
    pub fn of_service(action: Action, service: &str) -> Self {
        Self {
            action,
            service: service.to_owned(),
            backend: None,
            keys: Vec::new(),
        }
    }

    /// One of a backend.
    #[must_use]
    pub fn of_backend(action: Action, service: &str, backend: &str) -> Self {
        Self {
            backend: Some(backend.to_owned()),
            ..Self::of_service(action, service)
        }
    }
}

/// A key that gets another value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KeyChange {
    /// Its name.
    pub key: String,
    /// Its value before; `null` where it has none.
    pub before: Value,
    /// Its value afterwards; `null` where it has none.
    pub after: Value,
}

/// What came of a file that was applied, or would come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reloaded {
    /// The state's revision afterwards.
    pub revision: String,
    /// What changes.
    pub differences: Vec<Difference>,
    /// Settings of the file that hold only after the next start of the daemon.
    pub restart_needed: Vec<String>,
}

/// Where what is wanted comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigurationStatus {
    /// The configuration file that the daemon was started with.
    pub file: String,
    /// The file that was applied in its place, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<String>,
    /// The state's revision.
    pub revision: String,
    /// How many services are not as the file says.
    pub changed_services: usize,
    /// Why the file was refused when it was last read; absent where it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Settings of the file that hold only after the next start of the daemon.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart_needed: Vec<String>,
}

/// All that is wanted, beside what the file says of it.
#[derive(Clone, Debug)]
pub struct View {
    /// The state's revision.
    pub revision: Revision,
    /// Where it comes from.
    pub status: ConfigurationStatus,
    /// The settings that the daemon runs with, as JSON.
    pub settings: Value,
    /// What differs from what the file says, as the way from there.
    pub differences: Vec<Difference>,
    /// What is wanted.
    pub now: Desired,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_names_revisions() {
        let revision = Revision::first(0x6a1f);
        assert_eq!(revision.to_string(), "6a1f-1");
        for (text, is_met) in [
            ("*", true),
            ("\"6a1f-1\"", true),
            ("6a1f-1", true),
            ("\"6a1f-2\", \"6a1f-1\"", true),
            ("\"6a1f-2\"", false),
            ("\"6a20-1\"", false),
        ] {
            let condition: Condition = text.parse().unwrap();
            assert_eq!(condition.is_met_by(revision), is_met, "{text}");
            assert!(text == "*" || !condition.is_met_by(revision.next()) || text.contains("-2"));
        }
        for wrong in ["", "\"", "6a1f", "6a1f-", "x-1", "W/\"6a1f-1\"", "*, *"] {
            assert!(wrong.parse::<Condition>().is_err(), "{wrong}");
        }
    }
}
