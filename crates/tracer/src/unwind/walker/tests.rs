//! Oracle: `_Unwind_Backtrace` of libgcc, at every walk, frame by frame.

// The foreign functions only hand the trees on.
#![allow(improper_ctypes, improper_ctypes_definitions)]

use super::{Context, KEPT_FRAMES, MAX_FRAMES, TRUNCATED_KEY, Walked, Walker};
use crate::testing::{Random, TestHeap};
use crate::unwind;
use core::ffi::{c_char, c_int, c_void};
use core::hint::black_box;
use leakscope_heapfile::layout::PC_BITS;
use std::boxed::Box;
use std::collections::HashMap;
use std::vec::Vec;

unsafe extern "C-unwind" {
    fn _Unwind_Backtrace(
        visit: extern "C-unwind" fn(*mut c_void, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

extern "C-unwind" fn collect(context: *mut c_void, data: *mut c_void) -> c_int {
    // SAFETY: called by `_Unwind_Backtrace` with its context and the vector handed to it.
    unsafe { (*data.cast::<Vec<usize>>()).push(_Unwind_GetIP(context)) };
    0
}

// `leakscope_test_probe(tree)` is what the exported shims are to their hooks. The others are frames of the kinds
// that compilers make: of a size known at run time, with a realigned stack (as gcc's), on another stack.
core::arch::global_asm!(
    ".text",
    ".globl leakscope_test_probe",
    ".hidden leakscope_test_probe",
    "leakscope_test_probe:",
    ".cfi_startproc",
    "mov rsi, rsp",
    "mov rdx, rbp",
    "jmp {probe}",
    ".cfi_endproc",
    ".globl leakscope_test_dynamic",
    ".hidden leakscope_test_dynamic",
    "leakscope_test_dynamic:", // (size, callback, tree, depth)
    ".cfi_startproc",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "and rdi, -16",
    "sub rsp, rdi",
    "mov rax, rsi",
    "mov rdi, rdx",
    "mov rsi, rcx",
    "call rax",
    "leave",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_endproc",
    ".globl leakscope_test_realigned",
    ".hidden leakscope_test_realigned",
    "leakscope_test_realigned:", // (callback, tree, depth)
    ".cfi_startproc",
    "lea r10, [rsp + 8]",
    ".cfi_def_cfa r10, 0",
    "and rsp, -64",
    "push qword ptr [r10 - 8]",
    "push rbp",
    "mov rbp, rsp",
    ".cfi_escape 0x10, 6, 2, 0x76, 0", // rbp is saved at breg6 + 0
    "push r10",
    ".cfi_escape 0x0f, 3, 0x76, 0x78, 0x06", // the CFA is at breg6 - 8
    "sub rsp, 40",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "call rax",
    "mov r10, qword ptr [rbp - 8]",
    ".cfi_def_cfa r10, 0",
    "leave",
    "lea rsp, [r10 - 8]",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_endproc",
    ".globl leakscope_test_other_stack",
    ".hidden leakscope_test_other_stack",
    "leakscope_test_other_stack:", // (top, callback, tree, depth)
    ".cfi_startproc",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "mov rsp, rdi",
    "mov rax, rsi",
    "mov rdi, rdx",
    "mov rsi, rcx",
    "call rax",
    "leave",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_endproc",
    probe = sym probe,
);
type Visit = extern "C-unwind" fn(&mut Tree<'_>, u32);
unsafe extern "C-unwind" {
    fn leakscope_test_probe(tree: &mut Tree<'_>);
    fn leakscope_test_dynamic(size: usize, visit: Visit, tree: &mut Tree<'_>, depth: u32);
    fn leakscope_test_realigned(visit: Visit, tree: &mut Tree<'_>, depth: u32);
    fn leakscope_test_other_stack(top: usize, visit: Visit, tree: &mut Tree<'_>, depth: u32);
}

/// What a stack is expected to be recorded as.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Expect {
    /// Wholly.
    Whole,
    /// Its innermost frames, at least this many, or wholly.
    AtLeast(usize),
}

/// A random tree of calls that probes the walker at random places.
struct Tree<'a> {
    heap: &'a TestHeap,
    walker: Box<Walker>,
    random: Random,
    probes: u32,
    deepest: u32,
    expect: Expect,
    stacks: HashMap<u32, Vec<usize>>,
    numbers: HashMap<Vec<usize>, u32>,
    longest: usize,
    truncated: u32,
}

fn new_walker() -> Box<Walker> {
    // SAFETY: all zero is a valid value, as the type says.
    let mut walker: Box<Walker> = unsafe { Box::new_zeroed().assume_init() };
    walker.reset();
    walker
}

impl<'a> Tree<'a> {
    fn new(heap: &'a TestHeap, seed: u64, probes: u32) -> Tree<'a> {
        Tree {
            heap,
            walker: new_walker(),
            random: Random::new(seed),
            probes,
            deepest: 40,
            expect: Expect::Whole,
            stacks: HashMap::new(),
            numbers: HashMap::new(),
            longest: 0,
            truncated: 0,
        }
    }

    /// Calls until all probes are made.
    fn grow(&mut self) {
        while self.probes > 0 {
            visit_small(self, 0);
        }
    }

    fn check(&mut self, Walked { stack, truncated }: Walked, expected: Vec<usize>) {
        let mask = (1usize << PC_BITS) - 1;
        let mut keys = self.heap.keys_of(stack);
        if truncated {
            self.truncated += 1;
            assert_eq!(keys.pop(), Some(TRUNCATED_KEY));
        }
        let walked: Vec<usize> = keys.iter().map(|&key| key as usize & mask).collect();
        self.longest = self.longest.max(walked.len());
        match self.expect {
            Expect::Whole => {
                assert_eq!(walked, expected, "{walked:x?} instead of {expected:x?}");
                assert!(!truncated);
                let before = self.numbers.insert(expected.clone(), stack);
                assert!(before.is_none_or(|before| before == stack), "two numbers for {expected:x?}");
                let before = self.stacks.insert(stack, expected);
                assert!(before.is_none_or(|before| before == walked), "two stacks have number {stack}");
            }
            Expect::AtLeast(least) => {
                assert!(expected.starts_with(&walked), "{walked:x?} instead of {expected:x?}");
                assert!(walked.len() >= least || walked.len() == expected.len(), "{} frames", walked.len());
                assert!(walked.len() <= MAX_FRAMES);
            }
        }
    }
}

/// What a hook does. The oracle's frames are those from the probe's caller on.
extern "C-unwind" fn probe(tree: &mut Tree<'_>, sp: usize, bp: usize) {
    let context = Context { arena: tree.heap.arena, window: tree.heap.window, tick: 0 };
    let walked = tree.walker.walk(context, sp, bp);
    let mut expected: Vec<usize> = Vec::new();
    // SAFETY: `collect` is told the vector; `sp` points to the return address.
    let pc = unsafe {
        _Unwind_Backtrace(collect, (&raw mut expected).cast());
        *(sp as *const usize)
    };
    let own = expected.iter().position(|&frame| frame == pc).expect("the probe's caller is on the stack");
    expected.drain(..own);
    // The end of the stack is reported, too.
    expected.retain(|&frame| frame != 0);
    tree.check(walked, expected);
}

fn probe_now(tree: &mut Tree<'_>) {
    tree.probes = tree.probes.saturating_sub(1);
    // SAFETY: the shim hands its argument on.
    unsafe { leakscope_test_probe(tree) };
}

macro_rules! visits {
    ($($name:ident $size:literal;)*) => {
        $(
            #[inline(never)]
            extern "C-unwind" fn $name(tree: &mut Tree<'_>, depth: u32) {
                let mut room = [0u8; $size];
                black_box(&mut room);
                while tree.probes > 0 {
                    match tree.random.below(12) {
                        0 | 1 => break,
                        2 => probe_now(tree),
                        // SAFETY: the shim hands its argument on.
                        3 => unsafe { tree.probes -= 1; leakscope_test_probe(tree) },
                        _ if depth >= tree.deepest => break,
                        4 => visit_small(tree, depth + 1),
                        5 => visit_large(tree, depth + 1),
                        6 => visit_middling(tree, depth + 1),
                        7 => call_dynamic(tree, depth + 1),
                        // SAFETY: calls back with its arguments.
                        8 => unsafe { leakscope_test_realigned(visit_small, tree, depth + 1) },
                        9 => through_qsort(tree, depth + 1),
                        10 => through_bsearch(tree, depth + 1),
                        _ => visit_large(tree, depth + 1),
                    }
                }
                black_box(&mut room);
            }
        )*
    };
}
visits! { visit_small 8; visit_middling 200; visit_large 1500; }

#[inline(never)]
fn call_dynamic(tree: &mut Tree<'_>, depth: u32) {
    let size = tree.random.below(2000) as usize;
    let visit: Visit = if size.is_multiple_of(2) { visit_small } else { visit_middling };
    // SAFETY: calls back with its arguments.
    unsafe { leakscope_test_dynamic(size, visit, tree, depth) };
}

/// What is handed through the C library.
struct Passed<'a, 'b> {
    tree: &'a mut Tree<'b>,
    depth: u32,
    calls: u32,
}

unsafe extern "C-unwind" {
    fn bsearch(
        key: *const c_void,
        base: *const c_void,
        count: usize,
        size: usize,
        compare: extern "C-unwind" fn(*const c_void, *const c_void) -> c_int,
    ) -> *mut c_void;
    fn qsort_r(
        base: *mut c_void,
        count: usize,
        size: usize,
        compare: extern "C-unwind" fn(*const c_void, *const c_void, &mut Passed<'_, '_>) -> c_int,
        passed: &mut Passed<'_, '_>,
    );
}

extern "C-unwind" fn compare_visiting(
    a: *const c_void,
    b: *const c_void,
    passed: &mut Passed<'_, '_>,
) -> c_int {
    passed.calls += 1;
    if passed.calls % 3 == 1 {
        visit_middling(passed.tree, passed.depth);
    }
    // SAFETY: elements of the array that is sorted.
    unsafe { (*a.cast::<u8>()).cmp(&*b.cast::<u8>()) as c_int }
}

#[inline(never)]
fn through_qsort(tree: &mut Tree<'_>, depth: u32) {
    let mut elements = [5u8, 3, 9, 1];
    // SAFETY: four elements of one byte.
    unsafe {
        qsort_r(
            elements.as_mut_ptr().cast(),
            4,
            1,
            compare_visiting,
            &mut Passed { tree, depth: depth + 2, calls: 0 },
        );
    }
    assert_eq!(elements, [1, 3, 5, 9]);
}

extern "C-unwind" fn match_visiting(key: *const c_void, _: *const c_void) -> c_int {
    // SAFETY: the key is what `through_bsearch` passes.
    let passed = unsafe { &mut *key.cast_mut().cast::<Passed<'_, '_>>() };
    visit_small(passed.tree, passed.depth);
    0
}

#[inline(never)]
fn through_bsearch(tree: &mut Tree<'_>, depth: u32) {
    let mut passed = Passed { tree, depth, calls: 0 };
    // SAFETY: one element, which is not looked at.
    unsafe {
        bsearch((&raw mut passed).cast(), [0u8].as_ptr().cast(), 1, 1, match_visiting);
    }
}

fn on_thread_with_stack(bytes: usize, body: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(bytes).spawn(body).expect("a thread");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_stack_has_one_number_and_a_number_one_stack() {
    let heap = TestHeap::new(64 << 20);
    for seed in 1..=3 {
        let mut tree = Tree::new(&heap, seed, 6_000);
        tree.grow();
        assert!(tree.numbers.len() > 1000 && tree.longest > 40, "{} stacks", tree.numbers.len());
    }
}

#[test]
fn threads_walk_alike_while_rules_are_forgotten() {
    let heap = std::sync::Arc::new(TestHeap::new(64 << 20));
    let numbers: Vec<HashMap<Vec<usize>, u32>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|seed| {
                let heap = &heap;
                scope.spawn(move || {
                    let mut tree = Tree::new(heap, 100 + seed, 0);
                    for _ in 0..150 {
                        tree.probes = 40;
                        tree.grow();
                        if seed == 0 {
                            unwind::clear_cache();
                        }
                    }
                    tree.numbers
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(numbers.iter().all(|numbers| numbers.len() > 100));
}

/// Calls itself `more` times.
#[inline(never)]
fn recurse(tree: &mut Tree<'_>, more: u32, act: &mut dyn FnMut(&mut Tree<'_>)) {
    if more == 0 {
        act(tree);
    } else {
        recurse(tree, more - 1, act);
    }
    black_box(&tree.probes);
}

#[test]
fn a_stack_at_the_depth_limit_is_recorded_whole() {
    on_thread_with_stack(8 << 20, || {
        let heap = TestHeap::new(64 << 20);
        let mut tree = Tree::new(&heap, 5, 1);
        recurse(&mut tree, 0, &mut |tree| probe_now(tree));
        let frames = tree.longest;
        for more in 0..=(MAX_FRAMES - frames) as u32 {
            // From anew and from what is remembered alike.
            recurse(&mut tree, more, &mut |tree| probe_now(tree));
            recurse(&mut tree, more, &mut |tree| {
                tree.walker = new_walker();
                probe_now(tree);
            });
        }
        assert_eq!((tree.longest, tree.truncated), (MAX_FRAMES, 0));
        tree.expect = Expect::AtLeast(KEPT_FRAMES);
        recurse(&mut tree, (MAX_FRAMES - frames) as u32 + 1, &mut |tree| {
            tree.walker = new_walker();
            probe_now(tree);
        });
        assert_eq!(tree.truncated, 1);
    });
}

#[test]
fn a_stack_deeper_than_the_limit_keeps_at_least_128_frames() {
    on_thread_with_stack(64 << 20, || {
        let heap = TestHeap::new(64 << 20);
        let mut tree = Tree::new(&heap, 6, 0);
        tree.expect = Expect::AtLeast(128);
        // A random walk over depths, so that what is remembered grows and shrinks in all ways.
        let mut depth = 300u64;
        for _ in 0..3_000 {
            depth = (depth + tree.random.below(121)).saturating_sub(60).min(1_500);
            recurse(&mut tree, depth as u32, &mut |tree| probe_now(tree));
        }
        assert!(tree.truncated > 500 && tree.longest > 128);
        // Bushes on a trunk that is too deep.
        for trunk in [150, 245, 260, 700, 2_000] {
            recurse(&mut tree, trunk, &mut |tree| {
                tree.probes = 600;
                tree.grow();
            });
        }
        // Once the stack is shallow again, all of it is recorded.
        tree.expect = Expect::Whole;
        let before = tree.truncated;
        tree.probes = 500;
        tree.grow();
        assert_eq!(tree.truncated, before);
    });
}

#[test]
fn the_same_deep_stack_is_given_few_numbers() {
    on_thread_with_stack(16 << 20, || {
        let heap = TestHeap::new(64 << 20);
        let mut tree = Tree::new(&heap, 7, 0);
        tree.expect = Expect::AtLeast(128);
        for _ in 0..1_000 {
            recurse(&mut tree, 600, &mut |tree| probe_now(tree));
        }
        assert!(heap.window.stacks.load(core::sync::atomic::Ordering::Relaxed) <= 4);
    });
}

/// A mapping to be used as a stack.
struct OtherStack {
    base: *mut c_void,
    length: usize,
}

impl OtherStack {
    fn new(length: usize) -> OtherStack {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping disturbs nothing.
        let base = unsafe { libc::mmap(core::ptr::null_mut(), length, protection, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED);
        OtherStack { base, length }
    }
    fn top(&self) -> usize {
        self.base as usize + self.length
    }
}

impl Drop for OtherStack {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; nothing runs on it any more.
        unsafe { libc::munmap(self.base, self.length) };
    }
}

extern "C-unwind" fn grow_a_little(tree: &mut Tree<'_>, depth: u32) {
    tree.probes = depth;
    while tree.probes > 0 {
        visit_small(tree, 20);
    }
}

#[test]
fn a_walk_on_a_foreign_stack_ends_where_that_stack_ends() {
    let heap = TestHeap::new(64 << 20);
    let mut tree = Tree::new(&heap, 8, 0);
    for round in 0..30u64 {
        // Now and then at an address that was another stack before.
        let stack = OtherStack::new((256 << 10) + (round as usize % 3) * 4096);
        tree.expect = Expect::AtLeast(2);
        // SAFETY: the stack is as large as the tree needs.
        unsafe { leakscope_test_other_stack(stack.top(), grow_a_little, &mut tree, 40) };
        drop(stack);
        tree.expect = Expect::Whole;
        tree.probes = 40;
        tree.grow();
    }
}

/// Contexts of a fiber and of who resumes it.
struct Fiber<'a, 'b> {
    tree: &'a mut Tree<'b>,
    own: libc::ucontext_t,
    resumer: libc::ucontext_t,
}

extern "C-unwind" fn fiber_main(low: u32, high: u32) {
    let address = (high as usize) << 32 | low as usize;
    // SAFETY: `makecontext` was given this address in two halves.
    let fiber = unsafe { &mut *(address as *mut Fiber<'_, '_>) };
    for _ in 0..20 {
        grow_a_little(fiber.tree, 10);
        // SAFETY: both contexts are alive.
        unsafe { libc::swapcontext(&raw mut fiber.own, &raw const fiber.resumer) };
    }
}

#[test]
fn fibers_have_stacks_of_their_own() {
    let heap = TestHeap::new(64 << 20);
    let mut tree = Tree::new(&heap, 9, 0);
    let stack = OtherStack::new(256 << 10);
    // SAFETY: zeroed contexts are filled by `getcontext`; the fiber outlives its use; a fiber that is never
    // resumed again just stays.
    unsafe {
        let mut fiber = Fiber { tree: &mut tree, own: core::mem::zeroed(), resumer: core::mem::zeroed() };
        let address = &raw mut fiber as usize;
        libc::getcontext(&raw mut fiber.own);
        fiber.own.uc_stack.ss_sp = stack.base;
        fiber.own.uc_stack.ss_size = stack.length;
        let main: extern "C" fn() = core::mem::transmute(fiber_main as extern "C-unwind" fn(u32, u32));
        libc::makecontext(&raw mut fiber.own, main, 2, address as u32, (address >> 32) as u32);
        let fiber = &mut *(address as *mut Fiber<'_, '_>);
        for _ in 0..20 {
            libc::swapcontext(&raw mut fiber.resumer, &raw const fiber.own);
            grow_a_little(fiber.tree, 10);
        }
    }
}

std::thread_local! {
    static INTERRUPTED: core::cell::Cell<*mut c_void> = const { core::cell::Cell::new(core::ptr::null_mut()) };
}

extern "C-unwind" fn on_signal(_: c_int) {
    let tree = INTERRUPTED.with(core::cell::Cell::get).cast::<Tree<'_>>();
    // SAFETY: set by the thread that raises the signal, which does not use the tree meanwhile.
    if let Some(tree) = unsafe { tree.as_mut() } {
        grow_a_little(tree, 12);
    }
}

#[inline(never)]
fn raise(tree: &mut Tree<'_>, signal: c_int) {
    INTERRUPTED.with(|place| place.set((&raw mut *tree).cast()));
    // SAFETY: the handler is `on_signal`.
    unsafe { libc::raise(signal) };
    INTERRUPTED.with(|place| place.set(core::ptr::null_mut()));
}

fn handle(signal: c_int, flags: c_int) {
    // SAFETY: a zeroed sigaction is valid; the handler takes the signal's number.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = on_signal as extern "C-unwind" fn(c_int) as usize;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &raw const action, core::ptr::null_mut()), 0);
    }
}

#[test]
fn a_walk_goes_through_a_signal_to_what_it_interrupted() {
    let heap = TestHeap::new(64 << 20);
    let mut tree = Tree::new(&heap, 10, 0);
    handle(libc::SIGUSR1, 0);
    for more in 0..60 {
        recurse(&mut tree, more, &mut |tree| raise(tree, libc::SIGUSR1));
        tree.probes = 10;
        tree.grow();
    }
    assert!(tree.longest > 60);
}

#[test]
fn a_walk_goes_from_an_alternate_signal_stack_back_to_the_threads_own() {
    let heap = TestHeap::new(64 << 20);
    let mut tree = Tree::new(&heap, 11, 0);
    let stack = OtherStack::new(256 << 10);
    let alternate = libc::stack_t { ss_sp: stack.base, ss_flags: 0, ss_size: stack.length };
    let mut before = libc::stack_t { ss_sp: core::ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: the stack outlives its use as an alternate one.
    assert_eq!(unsafe { libc::sigaltstack(&raw const alternate, &raw mut before) }, 0);
    handle(libc::SIGUSR2, libc::SA_ONSTACK);
    for more in 0..60 {
        recurse(&mut tree, more, &mut |tree| raise(tree, libc::SIGUSR2));
        tree.probes = 10;
        tree.grow();
    }
    assert!(tree.longest > 60);
    // SAFETY: what was in place before.
    unsafe { libc::sigaltstack(&raw const before, core::ptr::null_mut()) };
}

type Write = unsafe extern "C-unwind" fn(*mut c_void, *const c_char, usize) -> isize;

unsafe extern "C-unwind" {
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, functions: Cookie) -> *mut libc::FILE;
}

/// `cookie_io_functions_t`.
#[repr(C)]
struct Cookie {
    read: usize,
    write: Option<Write>,
    seek: usize,
    close: usize,
}

unsafe extern "C-unwind" fn write_visiting(tree: *mut c_void, _: *const c_char, length: usize) -> isize {
    // SAFETY: the cookie is the tree.
    if let Some(tree) = unsafe { tree.cast::<Tree<'_>>().as_mut() } {
        grow_a_little(tree, 20);
    }
    length as isize
}

#[test]
fn a_walk_goes_through_stdio() {
    let heap = TestHeap::new(64 << 20);
    let mut tree = Tree::new(&heap, 12, 0);
    let functions = Cookie { read: 0, write: Some(write_visiting), seek: 0, close: 0 };
    // SAFETY: the stream is closed before the tree goes.
    unsafe {
        let stream = fopencookie((&raw mut tree).cast(), c"w".as_ptr(), functions);
        assert!(!stream.is_null());
        for number in 0..50 {
            libc::fprintf(stream, c"%d %s\n".as_ptr(), number as c_int, c"text".as_ptr());
            if number % 3 == 0 {
                libc::fflush(stream);
            }
        }
        libc::fclose(stream);
    }
    assert!(tree.numbers.len() > 20);
}

std::thread_local! {
    static NEW_HANDLER_TREE: core::cell::Cell<*mut c_void> = const { core::cell::Cell::new(core::ptr::null_mut()) };
}

#[test]
fn a_walk_goes_through_the_cxx_library() {
    type Handler = extern "C-unwind" fn();
    type SetHandler = unsafe extern "C-unwind" fn(Option<Handler>) -> Option<Handler>;
    type New = unsafe extern "C-unwind" fn(usize, *const c_void) -> *mut c_void;
    static SET_HANDLER: std::sync::OnceLock<usize> = std::sync::OnceLock::new();

    extern "C-unwind" fn out_of_memory() {
        let tree = NEW_HANDLER_TREE.with(core::cell::Cell::get).cast::<Tree<'_>>();
        // SAFETY: set below by this thread.
        if let Some(tree) = unsafe { tree.as_mut() } {
            grow_a_little(tree, 20);
        }
        // Without a handler, the next attempt fails.
        let function = SET_HANDLER.get().copied().unwrap_or(0);
        // SAFETY: `std::set_new_handler`.
        unsafe { core::mem::transmute::<usize, SetHandler>(function)(None) };
    }

    // SAFETY: names of libstdc++'s functions with the types that they have.
    unsafe {
        let library = libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW);
        if library.is_null() {
            std::eprintln!("libstdc++ is not installed; nothing to test");
            return;
        }
        let set_handler = libc::dlsym(library, c"_ZSt15set_new_handlerPFvvE".as_ptr());
        let new = libc::dlsym(library, c"_ZnwmRKSt9nothrow_t".as_ptr());
        let nothrow = libc::dlsym(library, c"_ZSt7nothrow".as_ptr());
        assert!(!set_handler.is_null() && !new.is_null() && !nothrow.is_null());
        SET_HANDLER.get_or_init(|| set_handler as usize);
        let heap = TestHeap::new(64 << 20);
        let mut tree = Tree::new(&heap, 13, 0);
        NEW_HANDLER_TREE.with(|place| place.set((&raw mut tree).cast()));
        for _ in 0..20 {
            core::mem::transmute::<*mut c_void, SetHandler>(set_handler)(Some(out_of_memory));
            let block = core::mem::transmute::<*mut c_void, New>(new)(usize::MAX / 4, nothrow);
            assert!(block.is_null());
        }
        NEW_HANDLER_TREE.with(|place| place.set(core::ptr::null_mut()));
        assert!(tree.numbers.len() > 20);
    }
}
