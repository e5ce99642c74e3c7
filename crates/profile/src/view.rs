//! The numbers one can look at a profile by.

use crate::Counts;
use std::fmt;
use std::str::FromStr;

/// Which number sites are sorted by and drawn with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum View {
    /// Bytes not yet freed: the leaks.
    #[default]
    InUse,
    /// Bytes in use when the process's heap was at its largest.
    Peak,
    /// Bytes ever allocated, freed or not.
    Allocated,
    /// Blocks freed by their own thread before it allocated anything else.
    Temporary,
}

impl View {
    /// Every view, in the order in which help lists them.
    pub const ALL: [View; 4] = [View::InUse, View::Peak, View::Allocated, View::Temporary];

    /// The view's name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            View::InUse => "inuse",
            View::Peak => "peak",
            View::Allocated => "allocated",
            View::Temporary => "temporary",
        }
    }

    /// The number of this view: bytes, or blocks for [`View::Temporary`].
    pub fn value(self, counts: &Counts) -> u64 {
        match self {
            View::InUse => counts.inuse_bytes,
            View::Peak => counts.peak_bytes,
            View::Allocated => counts.allocated_bytes,
            View::Temporary => counts.temporary_blocks,
        }
    }

    /// The number of blocks behind [`View::value`].
    pub fn blocks(self, counts: &Counts) -> u64 {
        match self {
            View::InUse => counts.inuse_blocks,
            View::Peak => counts.peak_blocks,
            View::Allocated => counts.allocated_blocks,
            View::Temporary => counts.temporary_blocks,
        }
    }

    /// Whether [`View::value`] is in bytes (else in blocks).
    pub fn is_bytes(self) -> bool {
        self != View::Temporary
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no view's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownView(String);

impl fmt::Display for UnknownView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown view {:?}: use inuse, peak, allocated or temporary", self.0)
    }
}

impl std::error::Error for UnknownView {}

impl FromStr for View {
    type Err = UnknownView;

    fn from_str(name: &str) -> Result<View, UnknownView> {
        View::ALL.into_iter().find(|view| view.name() == name).ok_or_else(|| UnknownView(name.to_owned()))
    }
}

impl std::ops::AddAssign for Counts {
    /// Adds each number; a sum too large for 64 bits (only a corrupt file has one) stays at the largest.
    fn add_assign(&mut self, other: Counts) {
        let add = |mine: &mut u64, theirs: u64| *mine = mine.saturating_add(theirs);
        add(&mut self.inuse_bytes, other.inuse_bytes);
        add(&mut self.inuse_blocks, other.inuse_blocks);
        add(&mut self.allocated_bytes, other.allocated_bytes);
        add(&mut self.allocated_blocks, other.allocated_blocks);
        add(&mut self.peak_bytes, other.peak_bytes);
        add(&mut self.peak_blocks, other.peak_blocks);
        add(&mut self.temporary_blocks, other.temporary_blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::View;
    use crate::Counts;

    #[test]
    fn every_view_is_read_back_from_its_own_name_and_others_are_refused() {
        for view in View::ALL {
            assert_eq!(view.to_string().parse(), Ok(view));
        }
        let error = "leaks".parse::<View>().expect_err("no such view");
        assert!(error.to_string().contains("\"leaks\""), "{error}");
    }

    #[test]
    fn adding_counts_from_a_corrupt_file_saturates() {
        let mut sum = Counts { inuse_bytes: u64::MAX, inuse_blocks: 1, ..Counts::default() };
        sum += Counts { inuse_bytes: 1, inuse_blocks: 2, peak_bytes: 5, ..Counts::default() };
        assert_eq!(
            sum,
            Counts { inuse_bytes: u64::MAX, inuse_blocks: 3, peak_bytes: 5, ..Counts::default() }
        );
    }
}
