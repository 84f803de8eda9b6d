//! Durations as text, `2s` or `1h 30m`: in the file, in JSON and on the command line.

use std::time::Duration;

use crate::state::Reason;

/// Reads a duration.
///
/// # Errors
///
/// When the text is none, with an example in the hint.
pub fn parse(text: &str) -> Result<Duration, Reason> {
    humantime::parse_duration(text).map_err(|_| {
        Reason::new(
            format!("`{}` is no duration", text.escape_debug()),
            "write a number with its unit: `500ms`, `2s`, `5m` or `1h 30m`",
        )
    })
}

/// Writes a duration so that [`parse`] reads the same.
#[must_use]
pub fn format(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "2", "s", "-1s", "2 parsecs", "99999999999999999999s"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(millis in 0..=u64::from(u32::MAX)) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }
    }
}
