//! Leak records: lost blocks by kind and stack, suppressions, comparisons over time.
