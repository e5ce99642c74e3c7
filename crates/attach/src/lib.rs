//! Puts the tracer into a running process, and takes it out again.

mod object;

pub use object::{Segment, TracerObject};
