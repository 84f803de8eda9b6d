//! What the process may do once it runs: no more than that needs.
//!
//! Capabilities belong to threads. The one that starts the daemon keeps all of them until the
//! datapath is loaded and attached, and gives up the rest then, before it starts others but
//! those of the runtime, which give them up as they begin.

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;

/// What is needed all the time: programs and maps (`CAP_BPF`, `CAP_PERFMON`), interfaces,
/// routes and neighbours (`CAP_NET_ADMIN`), ICMP sockets of health checks (`CAP_NET_RAW`).
const EFFECTIVE: [Capability; 4] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
];

/// What is asked for where it is needed, in [`with_lookups`] alone: the kernel opens a map
/// that is in another one by its number, and tells of other programs, only with this.
const ON_DEMAND: Capability = Capability::CAP_SYS_ADMIN;

/// Gives up what the calling thread need not have, and the right to get it back by executing
/// anything.
///
/// # Errors
///
/// Where the kernel refuses, which it does for no reason that is known.
pub fn reduce() -> anyhow::Result<()> {
    prctl::set_no_new_privs()?;
    let permitted = caps::read(None, CapSet::Permitted)?;
    let wanted: CapsHashSet = EFFECTIVE.into_iter().chain([ON_DEMAND]).collect();
    let kept: CapsHashSet = permitted.intersection(&wanted).copied().collect();
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::all() {
            // One that this kernel does not know has no bound.
            if !wanted.contains(&capability)
                && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false)
            {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
    }
    let effective: CapsHashSet = kept
        .iter()
        .copied()
        .filter(|one| *one != ON_DEMAND)
        .collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &effective)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    Ok(())
}

/// Does something for which maps are looked up by their numbers, on the calling thread.
pub fn with_lookups<T>(act: impl FnOnce() -> T) -> T {
    let may = caps::has_cap(None, CapSet::Permitted, ON_DEMAND).unwrap_or(false);
    let has = caps::has_cap(None, CapSet::Effective, ON_DEMAND).unwrap_or(true);
    let is_raised = may && !has && caps::raise(None, CapSet::Effective, ON_DEMAND).is_ok();
    let result = act();
    if is_raised && let Err(error) = caps::drop(None, CapSet::Effective, ON_DEMAND) {
        tracing::warn!(%error, "a capability cannot be given up");
    }
    result
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_is_given_up_is_gone_and_the_rest_comes_back_for_a_moment() {
        let test = || {
            let before = caps::read(None, CapSet::Permitted).unwrap();
            reduce().unwrap();
            let has = |set, capability| caps::has_cap(None, set, capability).unwrap();
            for capability in before {
                let is_kept = EFFECTIVE.contains(&capability);
                assert_eq!(has(CapSet::Effective, capability), is_kept, "{capability}");
                assert_eq!(
                    has(CapSet::Permitted, capability),
                    is_kept || capability == ON_DEMAND,
                    "{capability}"
                );
            }
            assert!(prctl::get_no_new_privs().unwrap());
            let may = has(CapSet::Permitted, ON_DEMAND);
            assert_eq!(with_lookups(|| has(CapSet::Effective, ON_DEMAND)), may);
            assert!(!has(CapSet::Effective, ON_DEMAND));
        };
        // Capabilities are the thread's own.
        thread::spawn(test).join().unwrap();
    }
}
