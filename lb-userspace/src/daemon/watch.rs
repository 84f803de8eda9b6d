//! Reads the configuration file again when SIGHUP comes, and when the file has changed.
//!
//! It is looked at twice a second, through all symbolic links: so it does not matter whether
//! somebody writes into it, renames another over it, or swaps a link anywhere on the way, and
//! on which file system. It is read when it has stayed the same from one look to the next, so
//! that it is not read while it is being written.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    signal::unix::Signal,
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use crate::{
    config::{self, Outcome, Source},
    state::Reason,
};

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(500);

/// What was read.
pub(super) struct News {
    /// Whether somebody has asked for it; else the file has changed.
    pub(super) is_asked_for: bool,
    /// The file, or why it cannot be read.
    pub(super) read: Result<Box<(Source, Outcome)>, Reason>,
}

/// What tells one state of a file from another: device, inode, size, and the times of the last
/// change of its content and of itself.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Look {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Look {
    /// Looks at a file; nothing where there is none.
    fn at(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// Sends news of the file until nobody takes them any more.
pub(super) async fn watch(path: PathBuf, mut hangup: Signal, news: mpsc::Sender<News>) {
    // Nothing has been seen: whatever has happened since the start is found at once.
    let mut seen: Option<Option<Look>> = None;
    let mut last: Option<Option<Look>> = None;
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_asked_for = tokio::select! {
            _ = looks.tick() => false,
            _ = hangup.recv() => true,
        };
        let path = path.clone();
        let before = (seen, last);
        // The file system may take its time, where it is on another host.
        let looked = tokio::task::spawn_blocking(move || {
            let now = Some(Look::at(&path));
            let (seen, last) = before;
            let is_settled = now != seen && now == last;
            let read = (is_asked_for || is_settled).then(|| {
                let source = Source::open(&path)?;
                let outcome = config::read(&source);
                Ok(Box::new((source, outcome)))
            });
            (now, read)
        });
        let Ok((now, read)) = looked.await else {
            continue;
        };
        last = now;
        if let Some(read) = read {
            seen = now;
            if news.send(News { is_asked_for, read }).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::signal::unix::{SignalKind, signal};

    use super::*;

    /// Waits for the next news, and says which interface the file names.
    async fn interface(news: &mut mpsc::Receiver<News>) -> Option<String> {
        let news = news.recv().await.unwrap();
        assert!(!news.is_asked_for);
        let read = news.read.ok()?;
        let (_, outcome) = *read;
        outcome.config.map(|config| config.interfaces[0].clone())
    }

    fn write(path: &Path, interface: &str) {
        fs::write(path, format!("interfaces = [\"{interface}\"]\n")).unwrap();
    }

    #[tokio::test]
    async fn every_way_to_change_a_file_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        // As Kubernetes lays out the files of a ConfigMap.
        for revision in ["1", "2"] {
            fs::create_dir(at(revision)).unwrap();
            write(&at(revision).join("lb.toml"), &format!("map{revision}"));
        }
        symlink("1", at("..data")).unwrap();
        symlink("..data/lb.toml", at("lb.toml")).unwrap();
        let (sender, mut news) = mpsc::channel(1);
        let hangup = signal(SignalKind::hangup()).unwrap();
        let task = tokio::spawn(watch(at("lb.toml"), hangup, sender));
        assert_eq!(interface(&mut news).await.as_deref(), Some("map1"));

        symlink("2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert_eq!(interface(&mut news).await.as_deref(), Some("map2"));
        // An editor renames another file over it,
        write(&at("lb.toml~"), "renamed");
        fs::rename(at("lb.toml~"), at("lb.toml")).unwrap();
        assert_eq!(interface(&mut news).await.as_deref(), Some("renamed"));
        // or writes into it,
        write(&at("lb.toml"), "written");
        assert_eq!(interface(&mut news).await.as_deref(), Some("written"));
        // or does it wrong.
        fs::write(at("lb.toml"), "interfaces =").unwrap();
        assert_eq!(interface(&mut news).await, None);
        fs::remove_file(at("lb.toml")).unwrap();
        assert_eq!(interface(&mut news).await, None);
        write(&at("lb.toml"), "again");
        assert_eq!(interface(&mut news).await.as_deref(), Some("again"));
        drop(news);
        write(&at("lb.toml"), "for nobody");
        task.await.unwrap();
    }
}
