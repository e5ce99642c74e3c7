//! The shared object that lives inside the traced process.
