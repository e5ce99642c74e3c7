//! Values of options.

use leakscope_reach::{Heuristic, Heuristics};
use std::time::Duration;

/// memcheck's `--leak-check-heuristics`.
pub(super) fn heuristics(text: &str) -> Result<Heuristics, String> {
    match text.trim() {
        "all" => return Ok(Heuristics::ALL),
        "none" => return Ok(Heuristics::NONE),
        _ => {}
    }
    text.split(',').try_fold(Heuristics::NONE, |set, word| {
        let word = word.trim();
        let found = Heuristic::ALL.into_iter().find(|heuristic| heuristic.name() == word);
        found.map(|heuristic| set.with(heuristic)).ok_or_else(|| {
            let names = Heuristic::ALL.map(Heuristic::name).join(", ");
            format!("unknown heuristic {word:?}: use a comma-separated list of {names}, or else all, or none")
        })
    })
}

/// A mask in hexadecimal (`0x...`) or decimal.
pub(super) fn mask(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match parsed {
        Ok(0) => Err("a mask of 0 leaves no pointer at all".to_owned()),
        Ok(mask) => Ok(mask),
        Err(_) => Err(format!("{text:?} is no number of 64 bits; write it as 0x0000fffffffffff8")),
    }
}

/// A time such as `500ms`, `60s`, `5m`, `1.5h`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write it as 500ms, 60s, 5m or 1h");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(wrong()),
    };
    let time = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
    if time < Duration::from_millis(1) {
        return Err(format!("{text:?} is too short: at least 1ms"));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heuristics_are_named_as_in_memcheck() {
        assert_eq!(heuristics("all"), Ok(Heuristics::ALL));
        assert_eq!(heuristics("none"), Ok(Heuristics::NONE));
        let two = Heuristics::NONE.with(Heuristic::ALL[0]).with(Heuristic::ALL[3]);
        let text = format!("{}, {}", Heuristic::ALL[0].name(), Heuristic::ALL[3].name());
        assert_eq!(heuristics(&text), Ok(two));
        assert!(heuristics("stdstring,foo").unwrap_err().contains("\"foo\""));
    }

    #[test]
    fn masks_are_hexadecimal_or_decimal() {
        assert_eq!(mask("0xfffffff8"), Ok(0xffff_fff8));
        assert_eq!(mask("7"), Ok(7));
        assert!(mask("0").is_err());
        assert!(mask("0x1ffffffffffffffff").is_err());
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(time("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(time("1.5h"), Ok(Duration::from_secs(5400)));
        for wrong in ["", "5", "s", "5x", "-5s", "1..2s", "0s", "0.1ms", "1e400s", "99999999999999999999h"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
