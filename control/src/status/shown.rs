//! Numbers as people read them: `3h12m`, `1.5 MB`.

/// A span of seconds in its two largest units, without a zero: `7s`, `3m`, `3h12m`, `12d4h`.
pub fn span(seconds: u64) -> String {
    let units = [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')];
    let Some(first) = units.iter().position(|(size, _)| seconds >= *size) else { return "0s".to_owned() };
    let mut rest = seconds;
    let mut text = String::new();
    for (size, name) in units.into_iter().skip(first).take(2) {
        let count = rest / size;
        rest %= size;
        if count > 0 {
            text += &format!("{count}{name}");
        }
    }
    text
}

/// How long before `now` something was.
pub fn age(then: u64, now: u64) -> String {
    span(now.saturating_sub(then))
}

/// Bytes in decimal units, three digits.
pub fn bytes(count: u64) -> String {
    let mut rest = count as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        // 999.5 and more would be shown as 1000.
        if rest < 999.5 {
            break;
        }
        rest /= 1000.0;
        unit = next;
    }
    let decimals = if unit == "B" || rest >= 99.95 {
        0
    } else if rest >= 9.995 {
        1
    } else {
        2
    };
    format!("{rest:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_two_units_at_most() {
        for (seconds, text) in [
            (0, "0s"),
            (7, "7s"),
            (60, "1m"),
            (192, "3m12s"),
            (11_520, "3h12m"),
            (7_201, "2h"),
            (86_399, "23h59m"),
            (86_400 * 12 + 4 * 3600 + 5, "12d4h"),
        ] {
            assert_eq!(span(seconds), text);
        }
        assert_eq!(age(10, 5), "0s", "clocks go backwards");
    }

    #[test]
    fn bytes_have_three_digits() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (12_340, "12.3 kB"),
            (999_999, "1.00 MB"),
            (123_456_789, "123 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
