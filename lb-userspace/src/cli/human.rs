//! Numbers for people.

/// A count: exact below 100,000, then with three digits and a decimal prefix.
pub(super) fn count(number: u64) -> String {
    if number < 100_000 {
        return number.to_string();
    }
    scaled(number, 1000.0, &["k", "M", "G", "T", "P", "E"])
}

/// A number of bytes, with three digits and a binary prefix.
pub(super) fn bytes(number: u64) -> String {
    if number < 1024 {
        return format!("{number} B");
    }
    scaled(
        number,
        1024.0,
        &[" KiB", " MiB", " GiB", " TiB", " PiB", " EiB"],
    )
}

/// `number` in the largest of the units that leaves at least 1, the first of which is
/// `step`.
fn scaled(number: u64, step: f64, units: &[&str]) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = number as f64 / step;
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    // What would be shown as 1000 or more is better shown in the next unit.
    while value >= step.min(999.5) {
        let Some(next) = units.next() else { break };
        value /= step;
        unit = next;
    }
    let digits = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_three_digits_where_they_are_long() {
        for (number, shown) in [
            (0, "0"),
            (99_999, "99999"),
            (100_000, "100k"),
            (999_499, "999k"),
            (999_500, "1.00M"),
            (1_234_567, "1.23M"),
            (12_345_678, "12.3M"),
            (123_456_789, "123M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(number), shown, "{number}");
        }
    }

    #[test]
    fn bytes_have_binary_prefixes() {
        for (number, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (1024 * 1000, "0.98 MiB"),
            (1024 * 1024, "1.00 MiB"),
            (123 << 30, "123 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(number), shown, "{number}");
        }
    }
}
