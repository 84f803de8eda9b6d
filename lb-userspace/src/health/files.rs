//! How many sockets checks may have.

use nix::sys::resource::{Resource, getrlimit};

/// Most checks that are under way at a time, however many files this process may have.
const MOST: u64 = 16_384;
/// The fewest.
const FEWEST: u64 = 64;

/// How many checks may be under way at a time, each with a socket or a program: as many as
/// leave half of the files that this process may open to everything else.
pub(super) fn for_checks() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    (limit / 2).clamp(FEWEST, MOST) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_leave_files_to_others() {
        let checks = for_checks() as u64;
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!((FEWEST..=MOST).contains(&checks));
        assert!(checks <= (soft / 2).max(FEWEST));
    }
}
