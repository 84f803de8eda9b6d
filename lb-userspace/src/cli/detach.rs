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

/// The name of an interface.
fn name(ifindex: u32) -> String {
    match if_indextoname(ifindex) {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("the interface of index {ifindex}, which is gone"),
    }
}
