//! Tests of random things, as many as the environment says.

use std::{
    env,
    fmt::Display,
    io::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

/// A number from the environment.
///
/// # Panics
///
/// If something else stands there.
#[must_use]
pub fn number(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    let parsed = value.parse();
    Some(parsed.unwrap_or_else(|error| panic!("{name}={value}: {error}")))
}

/// The seed that the environment names, or another one each time.
///
/// # Panics
///
/// If the clock is wrong by decades.
#[must_use]
pub fn seed(name: &str) -> u64 {
    number(name).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.expect("it is after 1970").as_secs()
    })
}

/// Past the test runner, which shows the output of failed tests alone.
pub fn say(line: impl Display) {
    let _unseen = writeln!(std::io::stderr(), "{line}");
}
