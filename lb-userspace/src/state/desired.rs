//! The desired state as a whole: which services there are, and the changes that
//! keep it free of contradictions.

use std::collections::BTreeMap;

use super::{
    BackendAddress, BackendSpec, Change, Reason, Refusal, ServiceSpec,
    rules::{
        self, MAX_ALL_SOURCES, MAX_BACKENDS, MAX_SERVER_IDS, MAX_SERVICES, no_such_backend,
        no_such_service, same_name, too_many_backends, too_many_server_ids, too_many_services,
        too_many_sources,
    },
};

/// Services by name. Every service keeps the [`rules`], every packet says which one it is
/// for, and all fit into the datapath's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    services: BTreeMap<String, ServiceSpec>,
}

impl Desired {
    /// The state with these services.
    ///
    /// # Errors
    ///
    /// The first reason why they cannot be.
    pub fn new(services: impl IntoIterator<Item = ServiceSpec>) -> Result<Self, Refusal> {
        let mut desired = Self::default();
        for service in services {
            desired.add_service(service)?;
        }
        Ok(desired)
    }

    /// The services, by name.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &ServiceSpec> {
        self.services.values()
    }

    /// The service of this name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&ServiceSpec> {
        self.services.get(name)
    }

    /// Makes a change, or none of it.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotFound`], [`Refusal::Conflict`] or [`Refusal::Invalid`]; the
    /// state is then as it was.
    pub fn apply(&mut self, change: Change) -> Result<(), Refusal> {
        match change {
            Change::AddService(service) => self.add_service(*service),
            Change::SetService(service) => self.set_service(*service),
            Change::RemoveService(name) => {
                let removed = self.services.remove(&name);
                removed
                    .map(drop)
                    .ok_or_else(|| Refusal::NotFound(no_such_service(&name)))
            }
            Change::AddBackend { service, backend } => {
                let mut changed = self.get(&service)?.clone();
                if let Some(index) = position(&changed, backend.address) {
                    return Err(Refusal::Conflict(Reason::new(
                        format!(
                            "service `{service}` has backend `{}` already",
                            backend.address
                        ),
                        if changed.backends[index].drain.is_some() {
                            "it is drained: `lb backend undrain` lets new flows go to it again"
                        } else {
                            "its weight can be changed by `lb backend set`"
                        },
                    )));
                }
                changed.backends.push(backend);
                self.replace(changed)
            }
            Change::SetBackend { service, backend } => {
                let mut changed = self.get(&service)?.clone();
                let index = position(&changed, backend.address)
                    .ok_or_else(|| Refusal::NotFound(no_such_backend(&service, backend.address)))?;
                changed.backends[index] = backend;
                self.replace(changed)
            }
            Change::RemoveBackend { service, address } => {
                let mut changed = self.get(&service)?.clone();
                let index = position(&changed, address)
                    .ok_or_else(|| Refusal::NotFound(no_such_backend(&service, address)))?;
                changed.backends.remove(index);
                self.replace(changed)
            }
        }
    }

    fn get(&self, name: &str) -> Result<&ServiceSpec, Refusal> {
        self.services
            .get(name)
            .ok_or_else(|| Refusal::NotFound(no_such_service(name)))
    }

    fn add_service(&mut self, service: ServiceSpec) -> Result<(), Refusal> {
        if self.services.contains_key(&service.name) {
            return Err(Refusal::Conflict(same_name(&service.name)));
        }
        if self.services.len() == MAX_SERVICES {
            return Err(Refusal::Conflict(too_many_services()));
        }
        self.replace(service)
    }

    fn set_service(&mut self, service: ServiceSpec) -> Result<(), Refusal> {
        let before = self.get(&service.name)?;
        if let Some(reason) = rules::other_slots(before, &service) {
            return Err(Refusal::Conflict(reason));
        }
        self.replace(service)
    }

    /// Puts the service in the place of the one of the same name, if there is one.
    fn replace(&mut self, service: ServiceSpec) -> Result<(), Refusal> {
        if let Some(violation) = rules::check(&service).into_iter().next() {
            let reason = Reason::new(violation.message, violation.hint);
            return Err(Refusal::Invalid(reason.about(violation.field)));
        }
        let others = || {
            let services = self.services.values();
            services.filter(|other| other.name != service.name)
        };
        let conflict = others().find_map(|other| rules::conflict(&service, other));
        if let Some((field, _, reason)) = conflict {
            return Err(Refusal::Conflict(reason.about(field)));
        }
        let backends: usize = others().map(|other| other.backends.len()).sum();
        if backends + service.backends.len() > MAX_BACKENDS {
            return Err(Refusal::Conflict(too_many_backends()));
        }
        let server_ids: usize = others().map(ServiceSpec::server_ids).sum();
        if server_ids + service.server_ids() > MAX_SERVER_IDS {
            return Err(Refusal::Conflict(too_many_server_ids()));
        }
        let of = |service: &ServiceSpec| service.allow.len() + service.deny.len();
        let sources: usize = others().map(of).sum();
        if of(&service) != 0 && sources + of(&service) > MAX_ALL_SOURCES {
            return Err(Refusal::Conflict(too_many_sources()));
        }
        self.services.insert(service.name.clone(), service);
        Ok(())
    }
}

fn position(service: &ServiceSpec, address: BackendAddress) -> Option<usize> {
    let same = |backend: &BackendSpec| backend.address == address;
    service.backends.iter().position(same)
}

#[cfg(test)]
mod tests;
