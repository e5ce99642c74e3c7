//! The layout of the heap file: what the tracer writes and everyone else reads.
