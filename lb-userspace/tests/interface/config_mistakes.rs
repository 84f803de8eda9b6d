//! Every file in `config-mistakes` has a mistake. Beside it lies, word for
//! word, what its writer is told about it. After a change that is meant,
//! `SNAPSHOTS=overwrite cargo test --test interface mistakes` writes the answers anew.

use std::{fs, path::Path};

use lb_userspace::config::{self, Severity, Source};
use snapbox::{Assert, Data, data::DataFormat};

#[test]
fn every_mistake_is_explained() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interface/config-mistakes");
    let assert = Assert::new().action_env(snapbox::assert::DEFAULT_ACTION_ENV);
    let mut seen = 0;
    let mut differences = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        seen += 1;
        let name = path.file_name().unwrap().to_str().unwrap();
        let source = Source::new(name, &fs::read(&path).unwrap());
        let outcome = config::read(&source);
        assert!(
            outcome.diagnostics.iter().len() > 0,
            "{name} has no mistake"
        );
        assert_eq!(
            outcome.config.is_none(),
            outcome.diagnostics.count(Severity::Error) > 0,
            "{name}: errors, and only they, leave no configuration"
        );
        let expected = Data::read_from(&path.with_extension("txt"), Some(DataFormat::Text)).raw();
        // Raw: a backslash of a message is not the separator of a path.
        let actual = Data::text(outcome.diagnostics.render(&source, false)).raw();
        if let Err(difference) = assert.try_eq(Some(&name), actual, expected) {
            differences.push_str(&difference.to_string());
        }
    }
    assert!(differences.is_empty(), "{differences}");
    assert!(seen >= 30, "only {seen} files were found");
}
