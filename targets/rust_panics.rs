//! Panics that are caught: Rust's runtime unwinds, and allocates, on the same stacks as the tracer.
use std::hint::black_box;
use std::panic::{catch_unwind, set_hook};

#[inline(never)]
fn descend(depth: u32) -> u32 {
    if depth == 0 {
        std::mem::forget(black_box(Box::new([0u8; 37]))); // LEAK bytes=7400 blocks=200
        panic!("at the bottom"); // FREED
    }
    black_box(descend(depth - 1)) + 1
}

fn main() {
    set_hook(Box::new(|_| ()));
    let mut caught = 0;
    for _ in 0..200 {
        let held = black_box(vec![1u8; 500]); // FREED bytes=100000 blocks=200
        if catch_unwind(|| descend(black_box(30))).is_err() {
            caught += held.len();
        }
    }
    assert_eq!(caught, 100_000);
    std::process::exit(0);
}
