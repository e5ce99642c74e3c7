//! Folded stacks.

mod common;

use common::{add_up, frame, in_service, service};
use leakscope_profile::*;
use leakscope_report::folded;

#[test]
fn each_stack_is_one_line_with_the_outermost_frame_first() {
    let (profile, symbols) = service();
    assert_eq!(
        folded(&profile, &symbols, View::InUse),
        "\
[truncated];libstripped.so.1+0x1234 24
_start;__libc_start_main;__libc_start_call_main;main;Worker::fill();\
std::vector<char, std::allocator<char> >::reserve(unsigned long) 1048576
_start;__libc_start_main;__libc_start_call_main;main;[mmap] 1048576
_start;__libc_start_main;__libc_start_call_main;main;handle_request(Request const&);parse_header;cache_insert 13631488
"
    );
    assert_eq!(
        folded(&profile, &symbols, View::Temporary).lines().last(),
        Some(
            "_start;__libc_start_main;__libc_start_call_main;main;handle_request(Request const&);parse_header;\
             cache_insert 3"
        )
    );
}

#[test]
fn a_name_cannot_split_its_line_or_its_stack() {
    let mut symbols = Symbols::default();
    symbols.frames.insert(in_service(1), vec![frame("evil;frame\nother 99\x1b[0m", "a.c", 1)]);
    symbols.frames.insert(in_service(2), vec![frame("<[u8; 4] as Trait>::f", "a.rs", 2)]);
    let counts = Counts { inuse_bytes: 5, inuse_blocks: 1, ..Counts::default() };
    let stack = vec![in_service(1), in_service(2)];
    let mut profile =
        Profile { sites: vec![Site { stack, counts, ..Site::default() }], ..Profile::default() };
    add_up(&mut profile);
    assert_eq!(
        folded(&profile, &symbols, View::InUse),
        "<[u8: 4] as Trait>::f;evil:frame\\nother 99\\x1b[0m 5\n"
    );
}

#[test]
fn memory_without_a_stack_is_still_counted() {
    let counts = Counts { inuse_bytes: 5, inuse_blocks: 1, ..Counts::default() };
    let mut profile = Profile { sites: vec![Site { counts, ..Site::default() }], ..Profile::default() };
    add_up(&mut profile);
    assert_eq!(folded(&profile, &Symbols::default(), View::InUse), "[no stack] 5\n");
}
