//! leakscope.
fn main() {}
