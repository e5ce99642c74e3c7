//! Medians, and the spread around them.

use std::fmt::Write;

/// A median with the smallest and the largest of its samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle sample (the mean of the two middle ones of an even number).
    pub median: f64,
    /// The smallest sample.
    pub min: f64,
    /// The largest sample.
    pub max: f64,
    /// How many samples there were.
    pub count: usize,
}

impl Spread {
    /// The spread of `samples`; none if there are none.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        let upper = *sorted.get(count / 2)?;
        let lower = *sorted.get(count.saturating_sub(1) / 2)?;
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self { median: f64::midpoint(lower, upper), min, max, count })
    }

    /// `median (min-max)` with `decimals` digits, each number after `sign` handling: `+` before positive ones if `signed`.
    pub fn show(&self, decimals: usize, signed: bool) -> String {
        let mut text = number(self.median, decimals, signed);
        if self.count > 1 {
            let _ = write!(
                text,
                " ({} to {})",
                number(self.min, decimals, signed),
                number(self.max, decimals, signed)
            );
        }
        text
    }
}

/// A number with thousands separated, since nanoseconds of slow tools run into five digits.
pub fn number(value: f64, decimals: usize, signed: bool) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), ""), |(w, f)| (w, f));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let zero = text.chars().all(|c| matches!(c, '0' | '.'));
    let sign = if value < 0.0 && !zero {
        "-"
    } else if signed && !zero {
        "+"
    } else {
        ""
    };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_samples_lies_between_the_middle_two() {
        let spread = Spread::of([9.0, 1.0, 2.0, 4.0]).expect("four samples");
        assert_eq!((spread.median, spread.min, spread.max, spread.count), (3.0, 1.0, 9.0, 4));
        assert_eq!(Spread::of([5.0, 1.0, 2.0]).map(|spread| spread.median), Some(2.0));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn numbers_show_groups_of_thousands_and_signs() {
        assert_eq!(number(13_512.34, 0, true), "+13,512");
        assert_eq!(number(-1_234_567.0, 0, false), "-1,234,567");
        assert_eq!(number(0.1534, 2, false), "0.15");
        assert_eq!(number(-0.001, 1, true), "0.0");
        assert_eq!(number(999.5, 1, true), "+999.5");
    }
}
