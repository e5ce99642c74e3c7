//! Starts a command under the tracer, keeps its heap file and seals it.
