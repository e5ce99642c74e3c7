//! Numbers for people.

/// Bytes with a binary unit and one decimal (`14.2 MiB`); below 1 KiB exact (`512 bytes`).
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return plural(bytes, "byte");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or("KiB");
    // 1023.95 would print as 1024.0.
    while value >= 1023.95 {
        let Some(next) = units.next() else { break };
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// A count with thousands separators (`1,234,567`).
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 block`, `1,234 blocks`.
pub(crate) fn plural(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// An estimate and its standard error: `14.2 MiB ± 1.1 MiB`.
pub(crate) fn estimated_bytes(value: u64, error: f64) -> String {
    // A cast takes what is too large or not a number to the nearest bound, or 0.
    format!("{} ± {}", bytes(value), bytes(error.round() as u64))
}

/// The same for a count of `noun`: `1,234 ± 98 blocks`.
pub(crate) fn estimated_plural(value: u64, error: f64, noun: &str) -> String {
    format!("{} ± {} {noun}s", count(value), count(error.round() as u64))
}

/// `part` of `whole` in percent. Never "100%" or "0%" of something that is not all or nothing.
pub(crate) fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "0%".to_owned();
    }
    let percent = part as f64 / whole as f64 * 100.0;
    match percent {
        _ if part == 0 => "0%".to_owned(),
        _ if part >= whole => "100%".to_owned(),
        p if p < 0.1 => "<0.1%".to_owned(),
        p if p > 99.9 => ">99.9%".to_owned(),
        p if p < 10.0 => format!("{p:.1}%"),
        p if p >= 99.0 => format!("{p:.1}%"),
        p => format!("{p:.0}%"),
    }
}

/// A duration: `0.25 s`, `12.3 s`, `4 min 5 s`, `2 h 3 min`, `3 d 4 h`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match seconds {
        s if s < 0.9995 => format!("{:.0} ms", (s * 1000.0).max(0.0)),
        s if s < 9.995 => format!("{s:.2} s"),
        s if s < 59.95 => format!("{s:.1} s"),
        _ if whole < 3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ if whole < 86_400 => format!("{} h {} min", whole / 3600, whole / 60 % 60),
        _ => format!("{} d {} h", count(whole / 86_400), whole / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_decimal_and_never_reach_1024_of_a_unit() {
        let cases = [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1,023 bytes"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1.0 MiB"),
            (14_889_779, "14.2 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (value, expected) in cases {
            assert_eq!(bytes(value), expected, "{value}");
        }
    }

    #[test]
    fn counts_have_thousands_separators_and_their_noun_its_number() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1000), "1,000");
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(plural(1, "block"), "1 block");
        assert_eq!(plural(0, "block"), "0 blocks");
    }

    #[test]
    fn a_share_is_100_percent_only_of_everything() {
        assert_eq!(share(9_999, 10_000), ">99.9%");
        assert_eq!(share(10_000, 10_000), "100%");
        assert_eq!(share(1, 100_000), "<0.1%");
        assert_eq!(share(0, 5), "0%");
        assert_eq!(share(0, 0), "0%");
        assert_eq!(share(92, 100), "92%");
        assert_eq!(share(996, 1000), "99.6%");
    }

    #[test]
    fn durations_read_naturally_from_milliseconds_to_weeks() {
        let cases =
            [(0.0, "0 ms"), (0.25, "250 ms"), (9.0, "9.00 s"), (12.34, "12.3 s"), (245.0, "4 min 5 s")];
        for (seconds, expected) in cases {
            assert_eq!(duration(seconds), expected);
        }
        assert_eq!(duration(7_380.0), "2 h 3 min");
        assert_eq!(duration(3.0 * 86_400.0 + 4.0 * 3600.0), "3 d 4 h");
        assert_eq!(duration(f64::NAN), "0 min 0 s");
    }
}
