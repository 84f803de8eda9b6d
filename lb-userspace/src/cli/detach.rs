//! `lb detach`: takes the datapath out of the kernel.

use nix::net::if_::if_indextoname;

use super::{args::Detach, output};
use crate::{daemon, datapath::Pinned};

pub(super) fn detach(command: &Detach) -> anyhow::Result<()> {
    let pinned = Pinned::open_existing(&command.pin_directory).map_err(daemon::explained)?;
    let links = match pinned {
        Some(pinned) => pinned.remove_all().map_err(daemon::explained)?,
        None => Vec::new(),
    };
    if links.is_empty() {
        return output::print("nothing was attached\n");
    }
    let names: Vec<String> = links.into_iter().map(name).collect();
    output::print(&format!("detached from {}\n", names.join(", ")))
}

/// The name of an interface. For one that is gone, or is in another network namespace, nix
/// returns an empty one: it takes the null of if_indextoname(3) for success.
fn name(ifindex: u32) -> String {
    match if_indextoname(ifindex) {
        Ok(name) if !name.is_empty() => name.to_string_lossy().into_owned(),
        _ => format!("the interface of index {ifindex}, which is not here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_here_is_named_by_its_index() {
        assert_eq!(name(1), "lo");
        let gone = "the interface of index 2147483647, which is not here";
        assert_eq!(name(2_147_483_647), gone);
    }
}
