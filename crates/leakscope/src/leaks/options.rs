//! Values of options.

use leakscope_reach::{Heuristic, Heuristics};

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
}
