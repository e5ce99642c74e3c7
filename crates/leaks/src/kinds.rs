//! Sets of kinds of leak, in memcheck's option syntax, and what a scan's result means for the exit status.

use crate::Summary;
use leakscope_reach::Kind;
use std::fmt;
use std::str::FromStr;

/// The kind's name in options, suppressions and JSON: `definite`, `indirect`, `possible`, `reachable`.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Definite => "definite",
        Kind::Indirect => "indirect",
        Kind::Possible => "possible",
        Kind::Reachable => "reachable",
    }
}

/// A set of kinds of leak, as memcheck's `--show-leak-kinds`, `--errors-for-leak-kinds` and the line
/// `match-leak-kinds:` of a suppression write it: names separated by commas, or `all`, or `none`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KindSet(u8);

impl KindSet {
    /// Every kind, in memcheck's order.
    pub const KINDS: [Kind; 4] = [Kind::Definite, Kind::Indirect, Kind::Possible, Kind::Reachable];
    /// All of them.
    pub const ALL: KindSet = KindSet(0b1111);
    /// No kind.
    pub const NONE: KindSet = KindSet(0);
    /// What memcheck shows if it is not told otherwise: definite and possible.
    pub const DEFAULT_SHOWN: KindSet = KindSet(bit(Kind::Definite) | bit(Kind::Possible));
    /// What makes leakscope fail if it is not told otherwise: definite. (memcheck counts possible ones, too.)
    pub const DEFAULT_ERRORS: KindSet = KindSet(bit(Kind::Definite));

    /// The set of these kinds.
    pub fn of(kinds: &[Kind]) -> KindSet {
        KindSet(kinds.iter().fold(0, |set, &kind| set | bit(kind)))
    }

    /// Whether `kind` is in it.
    pub fn contains(self, kind: Kind) -> bool {
        self.0 & bit(kind) != 0
    }
}

const fn bit(kind: Kind) -> u8 {
    match kind {
        Kind::Definite => 1,
        Kind::Indirect => 2,
        Kind::Possible => 4,
        Kind::Reachable => 8,
    }
}

/// In the syntax that it is read from.
impl fmt::Display for KindSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            KindSet::ALL => f.pad("all"),
            KindSet::NONE => f.pad("none"),
            set => {
                let kinds = KindSet::KINDS.into_iter().filter(|&kind| set.contains(kind));
                f.pad(&kinds.map(kind_name).collect::<Vec<_>>().join(","))
            }
        }
    }
}

impl fmt::Debug for KindSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KindSet({self})")
    }
}

/// A word that names no kind of leak.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown kind of leak {0:?}: use a comma-separated list of definite, indirect, possible and reachable, or \
     else all, or none"
)]
pub struct UnknownKind(pub String);

impl FromStr for KindSet {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<KindSet, UnknownKind> {
        match text.trim() {
            "all" => return Ok(KindSet::ALL),
            "none" => return Ok(KindSet::NONE),
            _ => {}
        }
        text.split(',').try_fold(KindSet::NONE, |set, word| {
            let word = word.trim();
            let kind = KindSet::KINDS.into_iter().find(|&kind| kind_name(kind) == word);
            kind.map(|kind| KindSet(set.0 | bit(kind))).ok_or_else(|| UnknownKind(word.to_owned()))
        })
    }
}

/// What a scan's result means to whoever has to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Outcome {
    /// No block is left of a kind that counts as an error.
    #[default]
    Clean,
    /// Blocks are left of a kind that counts as an error and that no suppression names.
    Leaks,
}

impl Outcome {
    /// Judges by the kinds of `--errors-for-leak-kinds`. A lost block of no bytes is a leak, too.
    pub fn of(summary: &Summary, errors: KindSet) -> Outcome {
        let left = |kind: Kind| errors.contains(kind) && summary.of(kind).blocks > 0;
        if KindSet::KINDS.into_iter().any(left) { Outcome::Leaks } else { Outcome::Clean }
    }

    /// The exit status of `leakscope leaks` where no command's own status goes first: 0, or 1 for leaks.
    pub fn exit_status(self) -> u8 {
        match self {
            Outcome::Clean => 0,
            Outcome::Leaks => 1,
        }
    }

    /// The name in JSON: `clean` or `leaks`.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Clean => "clean",
            Outcome::Leaks => "leaks",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Amount;

    #[test]
    fn sets_are_written_as_they_are_read_and_in_any_order() {
        for text in ["all", "none", "definite", "indirect,possible", "definite,indirect,possible"] {
            assert_eq!(text.parse::<KindSet>().map(|set| set.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("reachable, possible,definite,indirect".parse(), Ok(KindSet::ALL));
        assert_eq!("possible,definite".parse(), Ok(KindSet::DEFAULT_SHOWN));
    }

    #[test]
    fn as_in_memcheck_all_and_none_stand_alone_and_other_words_are_refused_by_name() {
        for text in ["definite,all", "", "definite,", "lost"] {
            let error = text.parse::<KindSet>().expect_err(text);
            assert!(error.to_string().contains(&format!("{:?}", error.0)), "{error}");
        }
    }

    #[test]
    fn only_kinds_that_count_as_errors_make_it_fail() {
        let mut summary = Summary::default();
        *summary.of_mut(Kind::Possible) = Amount { bytes: 8, blocks: 1 };
        *summary.of_mut(Kind::Reachable) = Amount { bytes: 800, blocks: 100 };
        assert_eq!(Outcome::of(&summary, KindSet::DEFAULT_ERRORS), Outcome::Clean);
        assert_eq!(Outcome::of(&summary, KindSet::DEFAULT_SHOWN).exit_status(), 1);
        assert_eq!(Outcome::of(&summary, KindSet::NONE).exit_status(), 0);
        *summary.of_mut(Kind::Definite) = Amount { bytes: 0, blocks: 1 };
        assert_eq!(Outcome::of(&summary, KindSet::DEFAULT_ERRORS), Outcome::Leaks);
    }
}
