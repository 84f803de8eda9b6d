//! Replacing a file so that whoever reads it after a crash, at whatever instant, finds all of
//! the old or all of the new one.
//!
//! ```text
//! write a new file -> fsync -> rename over the old one -> fsync of the directory
//! ```

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The steps, each of which may fail.
pub(super) trait Disk {
    /// An open file.
    type File;

    /// Makes a file, or empties the one that is there.
    fn create(&mut self, path: &Path) -> io::Result<Self::File>;
    /// Writes all of the bytes.
    fn write(&mut self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;
    /// Waits until the bytes of a file are on the disk.
    fn sync(&mut self, file: &Self::File) -> io::Result<()>;
    /// Gives a file another name, in the place of what has it.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    /// Waits until the names in a directory are on the disk.
    fn sync_directory(&mut self, directory: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, path: &Path) -> io::Result<()>;
}

/// The disk of this host.
pub(super) struct Host;

/// Only its owner may read what was changed.
const MODE: u32 = 0o600;

impl Disk for Host {
    type File = File;

    fn create(&mut self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(MODE)
            .open(path)
    }

    fn write(&mut self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_directory(&mut self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// Gives the file at `path` other bytes. An error leaves the old ones, or, where the last step
/// has failed, perhaps the new ones.
pub(super) fn replace(disk: &mut impl Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    let written = write(disk, &temporary, bytes).and_then(|()| disk.rename(&temporary, path));
    if let Err(error) = written {
        // There is room again for another attempt.
        let _not_there = disk.remove(&temporary);
        return Err(error);
    }
    disk.sync_directory(path.parent().unwrap_or(Path::new("/")))
}

fn write(disk: &mut impl Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = disk.create(path)?;
    disk.write(&mut file, bytes)?;
    disk.sync(&file)
}

/// Where the new file is written: beside the old one, so that it can be renamed.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A disk that crashes before, in the middle of or after any of its steps, and loses
    /// what it has not been told to keep: of the bytes of a file any part from the end on, of
    /// the changes of names any from the last one on (as a journal does), and of both
    /// independently.
    #[derive(Clone, Default)]
    struct Model {
        /// Bytes of each file by its number: how many are certain, and all of them.
        files: Vec<(usize, Vec<u8>)>,
        /// Names that are certain.
        certain: BTreeMap<PathBuf, usize>,
        /// What was done to names since then.
        pending: Vec<Naming>,
        /// The steps that are left before the crash.
        steps_left: usize,
        /// How many bytes the write that crashes gets through.
        torn: usize,
        crashed: bool,
    }

    #[derive(Clone)]
    enum Naming {
        Create(PathBuf, usize),
        Rename(PathBuf, PathBuf),
        Remove(PathBuf),
    }

    fn apply(names: &mut BTreeMap<PathBuf, usize>, naming: &Naming) {
        match naming {
            Naming::Create(path, file) => drop(names.insert(path.clone(), *file)),
            Naming::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Naming::Remove(path) => drop(names.remove(path)),
        }
    }

    impl Model {
        fn names(&self) -> BTreeMap<PathBuf, usize> {
            let mut names = self.certain.clone();
            self.pending
                .iter()
                .for_each(|naming| apply(&mut names, naming));
            names
        }

        /// Counts a step. After the crash nothing is done any more.
        fn step(&mut self) -> io::Result<()> {
            if self.crashed || self.steps_left == 0 {
                self.crashed = true;
                return Err(io::Error::other("crash"));
            }
            self.steps_left -= 1;
            Ok(())
        }

        /// What may be read at `path` after the crash, in every case.
        fn found(&self, path: &Path) -> Vec<Option<Vec<u8>>> {
            let mut found = Vec::new();
            for kept in 0..=self.pending.len() {
                let mut names = self.certain.clone();
                self.pending[..kept]
                    .iter()
                    .for_each(|naming| apply(&mut names, naming));
                match names.get(path) {
                    None => found.push(None),
                    Some(file) => {
                        let (certain, bytes) = &self.files[*file];
                        found.extend(
                            (*certain..=bytes.len()).map(|end| Some(bytes[..end].to_vec())),
                        );
                    }
                }
            }
            found
        }
    }

    impl Disk for Model {
        type File = usize;

        fn create(&mut self, path: &Path) -> io::Result<usize> {
            self.step()?;
            match self.names().get(path) {
                Some(file) => {
                    self.files[*file] = (0, Vec::new());
                    Ok(*file)
                }
                None => {
                    let file = self.files.len();
                    self.files.push((0, Vec::new()));
                    self.pending.push(Naming::Create(path.to_owned(), file));
                    Ok(file)
                }
            }
        }

        fn write(&mut self, file: &mut usize, bytes: &[u8]) -> io::Result<()> {
            let step = self.step();
            let written = if step.is_ok() {
                bytes.len()
            } else {
                self.torn.min(bytes.len())
            };
            self.files[*file].1.extend(&bytes[..written]);
            step
        }

        fn sync(&mut self, file: &usize) -> io::Result<()> {
            self.step()?;
            self.files[*file].0 = self.files[*file].1.len();
            Ok(())
        }

        fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
            self.step()?;
            self.pending
                .push(Naming::Rename(from.to_owned(), to.to_owned()));
            Ok(())
        }

        fn sync_directory(&mut self, _directory: &Path) -> io::Result<()> {
            self.step()?;
            self.certain = self.names();
            self.pending.clear();
            Ok(())
        }

        fn remove(&mut self, path: &Path) -> io::Result<()> {
            self.step()?;
            self.pending.push(Naming::Remove(path.to_owned()));
            Ok(())
        }
    }

    /// Three files, one after the other, with a crash at every step and every byte: one of
    /// them is found, whole, and none that is older than the last that was reported as kept.
    #[test]
    fn a_crash_at_any_step_leaves_the_old_or_the_new() {
        let path = Path::new("/state/state.json");
        let contents: [&[u8]; 3] = [b"first", b"the second", b"3rd"];
        let mut cases = 0;
        for steps in 0..=3 * 5 {
            for torn in 0..=contents[1].len() {
                let mut disk = Model {
                    steps_left: steps,
                    torn,
                    ..Model::default()
                };
                let mut kept = None;
                let mut tried = None;
                for (index, bytes) in contents.iter().enumerate() {
                    tried = Some(index);
                    if replace(&mut disk, path, bytes).is_err() {
                        break;
                    }
                    kept = Some(index);
                }
                for found in disk.found(path) {
                    cases += 1;
                    let index = found.as_ref().map(|bytes| {
                        let whole = contents.iter().position(|whole| whole == bytes);
                        whole.unwrap_or_else(|| panic!("{steps} steps, {torn}: {bytes:?} is torn"))
                    });
                    assert!(
                        index >= kept && index <= tried,
                        "{steps} steps: {index:?}, not {kept:?}"
                    );
                }
            }
        }
        assert!(cases > 200, "only {cases} cases");
    }

    /// A step that fails without a crash leaves nothing lying about, but for the last one.
    #[test]
    fn a_failure_leaves_what_was_there() {
        struct Failing(Host, usize);
        impl Failing {
            fn step(&mut self) -> io::Result<()> {
                self.1 = self.1.wrapping_sub(1);
                if self.1 == 0 {
                    Err(io::ErrorKind::StorageFull.into())
                } else {
                    Ok(())
                }
            }
        }
        impl Disk for Failing {
            type File = File;
            fn create(&mut self, path: &Path) -> io::Result<File> {
                self.step().and_then(|()| self.0.create(path))
            }
            fn write(&mut self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
                self.0.write(file, &bytes[..1])?;
                self.step().and_then(|()| self.0.write(file, &bytes[1..]))
            }
            fn sync(&mut self, file: &File) -> io::Result<()> {
                self.step().and_then(|()| self.0.sync(file))
            }
            fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
                self.step().and_then(|()| self.0.rename(from, to))
            }
            fn sync_directory(&mut self, directory: &Path) -> io::Result<()> {
                self.step().and_then(|()| self.0.sync_directory(directory))
            }
            fn remove(&mut self, path: &Path) -> io::Result<()> {
                self.0.remove(path)
            }
        }
        for step in 1..=5 {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("state.json");
            replace(&mut Host, &path, b"old").unwrap();
            replace(&mut Failing(Host, step), &path, b"new").unwrap_err();
            let expected: &[u8] = if step == 5 { b"new" } else { b"old" };
            assert_eq!(fs::read(&path).unwrap(), expected, "step {step}");
            assert_eq!(
                fs::read_dir(directory.path()).unwrap().count(),
                1,
                "step {step}"
            );
        }
    }
}
