//! Another version of `lb`, to upgrade to.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use lb_lab::Host;
use object::{
    Object as _, ObjectSection as _, SectionFlags,
    elf::{EM_BPF, SHF_EXECINSTR},
    read::elf::ElfFile64,
};

use crate::programs;

/// Operation codes of instructions that compare two registers for being equal, or not, in 64
/// bits and in 32 (RFC 9669, section 4.3).
const COMPARISONS: [u8; 4] = [0x1d, 0x5d, 0x1e, 0x5e];
/// That of the one instruction which has 16 bytes; all others have 8.
const LOAD_64_BITS: u8 = 0x18;

/// Makes a version of `lb` in `directory` whose eBPF programs are others for the kernel, and do
/// the same: wherever two registers are compared, they have changed places.
pub(crate) fn other(directory: &Path) -> Result<PathBuf> {
    let mut program = fs::read(&programs::paths().lb)?;
    let mut changed = 0;
    for code in code_for_bpf(&program)? {
        let mut at = code.0;
        while at < code.1 {
            let instruction = program.get_mut(at..at + 8).context("half an instruction")?;
            if COMPARISONS.contains(&instruction[0]) {
                // Both registers are in one byte.
                instruction[1] = instruction[1].rotate_left(4);
                changed += 1;
            }
            at += if instruction[0] == LOAD_64_BITS {
                16
            } else {
                8
            };
        }
    }
    ensure!(changed > 0, "the programs compare no registers");
    let path = directory.join("lb-other");
    fs::write(&path, program)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Where the instructions of the eBPF objects are that a program has inside: their begins and
/// ends.
fn code_for_bpf(program: &[u8]) -> Result<Vec<(usize, usize)>> {
    let mut code = Vec::new();
    // They are aligned so that they can be read where they are.
    for at in (0..program.len().saturating_sub(64)).step_by(8) {
        let header = &program[at..at + 64];
        if !header.starts_with(b"\x7fELF") || header[18..20] != EM_BPF.to_ne_bytes() {
            continue;
        }
        let object: ElfFile64<'_> = ElfFile64::parse(&program[at..])?;
        for section in object.sections() {
            let SectionFlags::Elf { sh_flags } = section.flags() else {
                continue;
            };
            if sh_flags & u64::from(SHF_EXECINSTR) != 0
                && let Some((offset, size)) = section.file_range()
            {
                let begin = at + usize::try_from(offset)?;
                code.push((begin, begin + usize::try_from(size)?));
            }
        }
    }
    ensure!(!code.is_empty(), "there is no eBPF object in it");
    Ok(code)
}

/// The XDP program of an interface: the kernel's id of it, and the digest of its instructions.
pub(crate) fn attached(host: &Host, interface: &str) -> Result<(u32, String)> {
    let json = host.ip(&format!("-details -json link show dev {interface}"))?;
    let links: serde_json::Value = serde_json::from_str(&json)?;
    let program = &links[0]["xdp"]["prog"];
    let id = program["id"].as_u64().context("no program is attached")?;
    let tag = program["tag"].as_str().context("it has no tag")?;
    Ok((id.try_into()?, tag.to_owned()))
}
