//! Leak records: lost blocks by kind and stack, suppressions, comparisons over time. No I/O but the reading of
//! suppression files.
//!
//! The caller brings blocks whose kind a scan has found ([`FoundBlock`]) and the names of their stacks; a [`Collector`]
//! makes [`LeakRecord`]s of them as memcheck does, and [`Suppressions`] says which of these are known and harmless.
//! [`compare`] tells what a later scan has found more. What is shown, and how, is `leakscope-report`'s.

mod compare;
pub mod content;
mod kinds;
pub mod records;
mod report;
mod retention;
mod suppress;

pub use compare::{Change, ChangeStatus, Comparison, HeldBefore, LostBetween, Scan, compare};
pub use content::ContentHint;
pub use kinds::{KindSet, Outcome, UnknownKind, kind_name};
pub use leakscope_reach::Kind;
pub use records::{Collector, FoundBlock, Merged, Names, SizeClass, Stack, merge};
pub use report::{
    Ages, Amount, BlockSource, Chain, LeakRecord, LeakReport, SizeRange, SnapshotKind, Source, Summary,
};
pub use retention::{Cohort, Cohorts, History, Known, Retained, Retention, Staleness, retained};
pub use suppress::{Error, Origin, Problem, Subject, SuppressionUse, Suppressions, generate};
