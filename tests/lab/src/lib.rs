//! Hosts in network namespaces, joined by veth pairs, for tests and demonstrations.
