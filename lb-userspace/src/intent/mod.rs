//! What is wanted, and who said so: the configuration file, and those who changed something
//! while the balancer ran.
//!
//! What was changed is kept as an item of both words, the file's and the other, so that the
//! next word of the file can be told from its last one (`merge`). It is written to the
//! state file ([`Store`]), and found there by the next daemon.

mod difference;
mod disk;
mod merge;
mod store;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::merge::Item;
pub use self::store::{Kept, KeptDrain, Store};
use crate::{
    state::{
        Action, Change, Condition, ConfigurationStatus, Desired, Difference, FileContent, Reason,
        Refusal, Reloaded, Revision, ServiceSpec, View, rules,
    },
    wire,
};

/// A service of which the file says something else than what is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Override {
    /// What the file says; nothing where it does not name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<Item>,
    /// What is; nothing where it was taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    now: Option<Item>,
}

/// The services of which the file says something else than what is, by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Overrides(BTreeMap<String, Override>);

impl Overrides {
    /// All that differ.
    fn between(file: &Desired, now: &Desired) -> Self {
        let mut overrides = Self::default();
        let names = file.services().chain(now.services()).map(|spec| &spec.name);
        for name in names {
            overrides.note(name, file, now);
        }
        overrides
    }

    /// Looks anew whether the service of this name differs.
    fn note(&mut self, name: &str, file: &Desired, now: &Desired) {
        let (file, now) = (file.service(name), now.service(name));
        if file == now {
            self.0.remove(name);
            return;
        }
        let (file, now) = (file.map(item_of), now.map(item_of));
        self.0.insert(name.to_owned(), Override { file, now });
    }

    /// What is wanted where the file says this now.
    fn merge(&self, file: &Desired) -> Result<Desired, Refusal> {
        if self.0.is_empty() {
            return Ok(file.clone());
        }
        let untouched = file
            .services()
            .filter(|spec| !self.0.contains_key(&spec.name));
        let mut services: Vec<ServiceSpec> = untouched.cloned().collect();
        for (name, Override { file: before, now }) in &self.0 {
            let after = file.service(name).map(item_of);
            if let Some(merged) = merge::service(before.as_ref(), after.as_ref(), now.as_ref()) {
                services.push(read(merged).map_err(Refusal::Invalid)?);
            }
        }
        Desired::new(services)
    }
}

/// A file that was applied in the place of the one that the daemon was started with. It holds
/// until that one says something else than it did then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    /// What messages call it.
    pub name: String,
    /// Its text.
    pub text: String,
    /// The text of the other when it was applied.
    pub instead_of: String,
}

/// Who said what of that which is wanted.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The configuration file that the daemon was started with.
    path: Arc<str>,
    /// Its text, as it was last taken or refused.
    text: Arc<str>,
    applied: Option<Arc<Applied>>,
    /// What the file says, or the one that was applied.
    file: Arc<Desired>,
    overrides: Overrides,
    /// The settings that the daemon has started with.
    running: Arc<Item>,
    /// The settings of the file.
    settings: Arc<Item>,
    /// The settings that the command line says, whatever the file does.
    fixed: Arc<[&'static str]>,
    /// Why the file was refused when it was last read.
    error: Option<Arc<str>>,
    revision: Revision,
}

/// A change that makes sense, before anything has come of it.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// What is wanted then.
    pub desired: Desired,
    /// And who said so.
    pub after: Intent,
    /// What that changes.
    pub differences: Vec<Difference>,
}

impl Intent {
    /// The beginning: the file of the name `file.name` says this, and what was `kept` was
    /// changed before. `applied` is what a file says that was applied in its place. The
    /// daemon takes the settings in `fixed` from the command line.
    ///
    /// # Errors
    ///
    /// Where what was changed and what the file says are not possible together.
    pub fn begin(
        file: FileContent,
        applied: Option<(Applied, FileContent)>,
        overrides: &Overrides,
        fixed: &[&'static str],
    ) -> Result<(Self, Desired), Refusal> {
        let (path, text) = (file.name.clone(), file.text.clone());
        let (applied, content) = match applied {
            Some((applied, content)) => (Some(Arc::new(applied)), content),
            None => (None, file),
        };
        let desired = overrides
            .merge(&content.services)
            .map_err(Self::contradiction)?;
        let settings = Arc::new(content.settings);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let intent = Self {
            path: path.into(),
            text: text.into(),
            applied,
            overrides: Overrides::between(&content.services, &desired),
            file: Arc::new(content.services),
            running: Arc::clone(&settings),
            settings,
            fixed: fixed.into(),
            error: None,
            revision: Revision::first(now.as_millis() as u64),
        };
        Ok((intent, desired))
    }

    /// Why a file and what was changed do not go together.
    fn contradiction(refusal: Refusal) -> Refusal {
        let (Refusal::NotFound(reason) | Refusal::Conflict(reason) | Refusal::Invalid(reason)) =
            refusal
        else {
            return refusal;
        };
        Refusal::Conflict(Reason {
            message: format!(
                "what was changed while the balancer ran contradicts the file: {}",
                reason.message
            ),
            ..reason
        })
    }

    /// The state's revision.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// The configuration file that the daemon was started with.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What has to be kept of it. Drains are for the daemon to add.
    #[must_use]
    pub fn kept(&self) -> Kept {
        Kept {
            services: self.overrides.clone(),
            drains: Vec::new(),
            applied: self.applied.as_deref().cloned(),
        }
    }

    /// What comes of a change to what is wanted `now`.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] says why there is nothing to come of it.
    pub fn change(
        &self,
        now: &Desired,
        change: Change,
        condition: Option<&Condition>,
    ) -> Result<Proposal, Refusal> {
        self.require(condition)?;
        let name = change.service().to_owned();
        let mut desired = now.clone();
        desired.apply(change)?;
        let mut after = self.next();
        after.overrides.note(&name, &self.file, &desired);
        let mut differences = Vec::new();
        match desired.service(&name) {
            Some(spec) => difference::of_service(now.service(&name), spec, &mut differences),
            None => differences.push(Difference::of_service(Action::Remove, &name)),
        }
        if differences.is_empty() {
            // What is wanted is the same.
            after.revision = self.revision;
        }
        Ok(Proposal {
            desired,
            after,
            differences,
        })
    }

    /// What comes of a file that is applied: of the one that the daemon was started with, or
    /// of another in its place.
    ///
    /// # Errors
    ///
    /// Where it contradicts what was changed, or would break connections.
    pub fn apply(
        &self,
        now: &Desired,
        content: FileContent,
        condition: Option<&Condition>,
    ) -> Result<Proposal, Refusal> {
        self.require(condition)?;
        let mut after = self.next();
        if *content.name == *self.path || *content.text == *self.text {
            after.applied = None;
            after.text = content.text.as_str().into();
        } else {
            after.applied = Some(Arc::new(Applied {
                name: content.name.clone(),
                text: content.text.clone(),
                instead_of: self.text.to_string(),
            }));
        }
        let desired = self
            .overrides
            .merge(&content.services)
            .map_err(Self::contradiction)?;
        must_keep_slots(now, &desired)?;
        let differences = difference::between(now, &desired);
        after.overrides = Overrides::between(&content.services, &desired);
        after.file = Arc::new(content.services);
        after.settings = Arc::new(content.settings);
        after.error = None;
        if differences.is_empty() {
            // What is wanted is the same.
            after.revision = self.revision;
        }
        Ok(Proposal {
            desired,
            after,
            differences,
        })
    }

    /// What comes of it where nothing that was changed while the balancer ran is to hold any
    /// more: the file alone says what is wanted.
    ///
    /// # Errors
    ///
    /// Where that would break connections, or `condition` is not met.
    pub fn reset(&self, now: &Desired, condition: Option<&Condition>) -> Result<Proposal, Refusal> {
        self.require(condition)?;
        let desired = Desired::clone(&self.file);
        must_keep_slots(now, &desired)?;
        let differences = difference::between(now, &desired);
        let mut after = self.next();
        after.overrides = Overrides::default();
        if differences.is_empty() {
            after.revision = self.revision;
        }
        Ok(Proposal {
            desired,
            after,
            differences,
        })
    }

    /// Takes note that the file, whose text is this where it could be read, was refused.
    pub fn refused(&mut self, text: Option<&str>, why: &str) {
        if let Some(text) = text {
            self.text = text.into();
        }
        self.error = Some(why.into());
    }

    /// Whether the file said this already when it was last read.
    #[must_use]
    pub fn knows(&self, text: &str) -> bool {
        *self.text == *text
    }

    fn next(&self) -> Self {
        Self {
            revision: self.revision.next(),
            ..self.clone()
        }
    }

    fn require(&self, condition: Option<&Condition>) -> Result<(), Refusal> {
        condition.map_or(Ok(()), |condition| condition.require(self.revision))
    }

    /// The settings of the file that hold only after another start.
    fn restart_needed(&self) -> Vec<String> {
        let keys = self.settings.keys().chain(self.running.keys());
        let mut differing: Vec<String> = keys
            .filter(|key| !self.fixed.contains(&key.as_str()))
            .filter(|key| self.settings.get(*key) != self.running.get(*key))
            .cloned()
            .collect();
        differing.sort_unstable();
        differing.dedup();
        differing
    }

    /// What an applied file has changed.
    #[must_use]
    pub fn reloaded(&self, differences: Vec<Difference>) -> Reloaded {
        Reloaded {
            revision: self.revision.to_string(),
            differences,
            restart_needed: self.restart_needed(),
        }
    }

    /// What there is to see of it.
    #[must_use]
    pub fn status(&self) -> ConfigurationStatus {
        ConfigurationStatus {
            file: self.path.to_string(),
            applied: self.applied.as_ref().map(|applied| applied.name.clone()),
            revision: self.revision.to_string(),
            changed_services: self.overrides.0.len(),
            error: self.error.as_deref().map(str::to_owned),
            restart_needed: self.restart_needed(),
        }
    }

    /// All that is wanted, beside what the file says of it.
    #[must_use]
    pub fn view(&self, now: &Desired) -> View {
        View {
            revision: self.revision,
            status: self.status(),
            settings: Value::Object(Item::clone(&self.running)),
            differences: difference::between(&self.file, now),
            now: now.clone(),
        }
    }
}

/// Refuses what would give flows of a service that stays to other slots.
fn must_keep_slots(now: &Desired, wanted: &Desired) -> Result<(), Refusal> {
    for spec in wanted.services() {
        if let Some(before) = now.service(&spec.name)
            && let Some(reason) = rules::other_slots(before, spec)
        {
            return Err(Refusal::Conflict(reason));
        }
    }
    Ok(())
}

/// A service in its JSON form, without a key that has no value.
fn item_of(spec: &ServiceSpec) -> Item {
    let service = wire::Service::from(spec);
    match serde_json::to_value(service).expect("its keys are strings") {
        Value::Object(mut item) => {
            item.retain(|_, value| !value.is_null());
            item
        }
        other => unreachable!("a service is an object, not {other}"),
    }
}

/// The service that a JSON form says.
fn read(item: Item) -> Result<ServiceSpec, Reason> {
    ServiceSpec::try_from(wire::read::<wire::Service>(Value::Object(item))?)
}

#[cfg(test)]
mod tests;
