//! How often allocations are sampled: the option's value, and how a run is repeated.

use anyhow::{Context, Result};
use leakscope_holder::{INTERVAL_MAX, Sampling};

/// Names a number from which chance starts, so that the same allocations are recorded each time. For tests: it is not
/// in the help.
const SEED: &str = "LEAKSCOPE_SEED";

/// Sampling with one record per `interval` bytes on average; 0: all are recorded.
///
/// # Errors
/// If `LEAKSCOPE_SEED` is set to something else than a number.
pub fn every(interval: u64) -> Result<Sampling> {
    let seed = match std::env::var(SEED) {
        Ok(text) => text.parse().with_context(|| format!("{SEED}={text:?} is not a number"))?,
        Err(_) => 0,
    };
    Ok(Sampling { interval, seed })
}

/// The value of `--sample`: bytes, at least 1.
///
/// # Errors
/// Says what is wrong with the value, and how one is written.
pub fn interval(text: &str) -> Result<u64, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        _ => 64,
    };
    if number.is_empty() || shift == 64 {
        return Err(format!(
            "not a number of bytes such as 65536, 512K or 1MiB (if {text:?} is the command, write -- before it)"
        ));
    }
    // Too many digits for a number are too large, too.
    let number = number.parse().unwrap_or(u64::MAX);
    match number.checked_mul(1 << shift) {
        Some(0) => {
            Err("every byte cannot be sampled more than once: at least 1, or leave --sample out to record \
                        everything"
                .into())
        }
        Some(bytes) if bytes <= INTERVAL_MAX => Ok(bytes),
        _ => Err(format!("at most {} GiB, since next to nothing would be recorded", INTERVAL_MAX >> 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::interval;

    #[test]
    fn an_interval_is_bytes_with_or_without_a_unit() {
        let cases = [
            ("1", 1),
            ("524288", 524_288),
            ("512K", 524_288),
            ("512k", 524_288),
            ("512KiB", 524_288),
            ("2M", 2 << 20),
            ("2MiB", 2 << 20),
            ("1G", 1 << 30),
            ("1024GiB", 1 << 40),
        ];
        for (text, bytes) in cases {
            assert_eq!(interval(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_interval_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "such as 65536"),
            ("K", "such as 65536"),
            ("-1", "such as 65536"),
            ("1.5M", "such as 65536"),
            ("512KB", "such as 65536"),
            ("sleep", "write -- before it"),
            ("0", "at least 1"),
            ("0K", "at least 1"),
            ("1025G", "at most 1024 GiB"),
            ("99999999999999999999", "at most 1024 GiB"),
            ("18446744073709551615G", "at most 1024 GiB"),
        ] {
            let refusal = interval(text).unwrap_err();
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
    }
}
