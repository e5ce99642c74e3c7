//! Shapes of lost and held memory in Rust: what `leakscope leaks` says of each must be what memcheck says. One program holds
//! them all: the argument chooses one, `list` names them all, several are built each in a forked child. As in shapes.h, each
//! is built by a function that returns nothing, and dead stack slots and registers are cleared afterwards.
use std::alloc::Layout;
use std::any::Any;
use std::arch::asm;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap, LinkedList, VecDeque};
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::ptr::null_mut;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

static HELD: AtomicPtr<u8> = AtomicPtr::new(null_mut());
static RESTING: AtomicBool = AtomicBool::new(false);

fn hold<T: ?Sized>(pointer: *const T) {
    HELD.store(pointer as *mut u8, SeqCst);
    black_box(&HELD);
}

/// Clears the stack below the caller and the registers that a callee may change.
#[inline(never)]
fn clear_traces() {
    let mut dead = [0u8; 65536];
    black_box(dead.as_mut_ptr());
    for byte in &mut dead {
        // SAFETY: a reference is valid for a write.
        unsafe { std::ptr::write_volatile(byte, 0) };
    }
    // SAFETY: only registers change, all of them declared.
    unsafe {
        if std::is_x86_feature_detected!("avx512f") {
            asm!(
                ".irp n,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "vpxorq zmm\\n, zmm\\n, zmm\\n",
                ".endr"
            );
        }
        if std::is_x86_feature_detected!("avx") {
            asm!("vzeroall");
        } else {
            asm!(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "pxor xmm\\n, xmm\\n", ".endr");
        }
        asm!(
            "xor eax, eax", "xor ecx, ecx", "xor edx, edx", "xor esi, esi", "xor edi, edi",
            "xor r8d, r8d", "xor r9d, r9d", "xor r10d, r10d", "xor r11d, r11d",
            clobber_abi("C"),
        );
    }
}

/// Keeps this thread as it is until the process ends.
#[inline(never)]
fn rest() {
    clear_traces();
    RESTING.store(true, SeqCst);
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

#[inline(never)]
fn await_rest() {
    while !RESTING.load(SeqCst) {
        std::thread::sleep(Duration::from_micros(500));
    }
}

struct Node {
    next: RefCell<Option<Rc<Node>>>,
    back: RefCell<Weak<Node>>,
    _payload: [u64; 4],
}

fn new_node() -> Rc<Node> {
    Rc::new(Node { next: RefCell::default(), back: RefCell::default(), _payload: [1; 4] })
}

struct Link {
    _next: Option<Box<Link>>,
    _payload: [u64; 3],
}

#[inline(never)]
fn new_list(length: usize) -> Option<Box<Link>> {
    let mut head = None;
    for _ in 0..length {
        head = Some(Box::new(Link { _next: head, _payload: [2; 3] }));
    }
    head
}

// Given up on purpose.

fn forgotten_box() {
    std::mem::forget(black_box(Box::new([1u8; 100])));
}
fn forgotten_vector() {
    std::mem::forget(black_box(vec![1u64; 50]));
}
fn forgotten_string() {
    std::mem::forget(black_box("forgotten ".repeat(10)));
}
fn forgotten_vector_of_strings() {
    let words: Vec<String> = (10..20).map(|number| format!("word {number}")).collect();
    std::mem::forget(black_box(words));
}
#[inline(never)]
fn forgotten_list() {
    std::mem::forget(black_box(new_list(10)));
}
fn leaked_box() {
    black_box(Box::leak(Box::new([2u8; 100])));
}
#[inline(never)]
fn leaked_and_held_box() {
    hold(Box::leak(Box::new([2u8; 100])));
}
fn leaked_slice_held_inside() {
    hold(&vec![3u64; 20].leak()[5]);
}
fn raw_box_with_a_list() {
    black_box(Box::into_raw(Box::new(new_list(5))));
}
fn vector_of_vectors() {
    std::mem::forget(black_box(vec![vec![1u32; 10]; 10]));
}
fn overaligned_box() {
    #[repr(align(256))]
    struct Wide {
        _payload: [u8; 256],
    }
    std::mem::forget(black_box(Box::new(Wide { _payload: [1; 256] })));
}
fn zero_sized_box() {
    std::mem::forget(black_box(Box::new(())));
}

// Counted references.

fn cycle_of_two() {
    let (one, two) = (new_node(), new_node());
    *one.next.borrow_mut() = Some(two.clone());
    *two.next.borrow_mut() = Some(one.clone());
}
fn cycle_of_three() {
    let (one, two, three) = (new_node(), new_node(), new_node());
    *one.next.borrow_mut() = Some(two.clone());
    *two.next.borrow_mut() = Some(three.clone());
    *three.next.borrow_mut() = Some(one.clone());
}
fn cycle_with_itself() {
    let one = new_node();
    *one.next.borrow_mut() = Some(one.clone());
}
/// What is dropped, but kept from being freed by a weak reference in a lost cycle.
fn weakly_kept() {
    let (one, two) = (new_node(), new_node());
    *one.next.borrow_mut() = Some(one.clone());
    *one.back.borrow_mut() = Rc::downgrade(&two);
}
fn held_cycle() {
    let (one, two) = (new_node(), new_node());
    *one.next.borrow_mut() = Some(two.clone());
    *two.next.borrow_mut() = Some(one.clone());
    hold(Box::into_raw(Box::new(one)));
}
/// `into_raw` gives a pointer behind the two counters.
fn raw_counted_pointer() {
    hold(Rc::into_raw(new_node()));
}
fn raw_counted_slice() {
    hold(Rc::into_raw(Rc::<[u64]>::from(vec![1u64; 20])));
}
fn forgotten_arc_of_text() {
    std::mem::forget(black_box(Arc::<str>::from("shared text")));
}

// Trait objects and futures.

trait Speak {
    fn speak(&self) -> usize;
}
struct Dog {
    name: String,
}
impl Speak for Dog {
    fn speak(&self) -> usize {
        self.name.len()
    }
}
fn new_dog() -> Box<dyn Speak> {
    Box::new(Dog { name: "r".repeat(40) })
}
fn lost_trait_object() {
    let dog = new_dog();
    assert_eq!(dog.speak(), 40);
    std::mem::forget(black_box(dog));
}
fn lost_boxed_trait_object() {
    black_box(Box::into_raw(Box::new(new_dog())));
}
fn held_trait_object() {
    hold(Box::into_raw(new_dog()));
}
fn lost_any() {
    let any: Box<dyn Any> = Box::new([7u64; 9]);
    std::mem::forget(black_box(any));
}
fn lost_closure() {
    let list = new_list(2);
    let closure: Box<dyn FnOnce() -> bool> = Box::new(move || list.is_some());
    std::mem::forget(black_box(closure));
}
fn lost_future() {
    let list = new_list(2);
    let future: Pin<Box<dyn Future<Output = bool>>> = Box::pin(async move { list.is_some() });
    std::mem::forget(black_box(future));
}

// Collections.

/// Nodes of larger trees point back to their parents, so that which of them leads the lost ones is chance.
fn lost_tree_map() {
    let map: BTreeMap<u32, String> = (10..20).map(|key| (key, format!("value {key}"))).collect();
    black_box(Box::into_raw(Box::new(map)));
}
fn held_tree_map() {
    let map: BTreeMap<u32, String> = (10..60).map(|key| (key, format!("value {key}"))).collect();
    hold(Box::into_raw(Box::new(map)));
}
/// A table's pointer leads behind its entries, to the control bytes.
fn lost_hash_map() {
    let mut map = Box::new(HashMap::with_capacity(28));
    for key in 10..30u32 {
        map.insert(key, format!("value {key}"));
    }
    black_box(Box::into_raw(map));
}
fn held_hash_map() {
    let mut map = Box::new(HashMap::with_capacity(28));
    for key in 10..30u32 {
        map.insert(key, format!("value {key}"));
    }
    hold(Box::into_raw(map));
}
fn lost_linked_list() {
    let list: LinkedList<u64> = (0..10).collect();
    std::mem::forget(black_box(list));
}
fn lost_queue() {
    let mut queue = VecDeque::with_capacity(4);
    for _ in 0..4 {
        queue.push_back(new_list(1));
    }
    black_box(Box::into_raw(Box::new(queue)));
}

// A pool of its own within one block.

struct Pool {
    memory: *mut u8,
    used: Cell<usize>,
}
impl Pool {
    fn new(size: usize) -> Pool {
        // SAFETY: the size is not zero.
        let memory = unsafe { std::alloc::alloc_zeroed(Layout::from_size_align(size, 16).unwrap()) };
        Pool { memory: black_box(memory), used: Cell::new(0) }
    }
    fn put<T>(&self, value: T) -> *mut T {
        let place = self.memory.wrapping_add(self.used.get()).cast::<T>();
        self.used.set(self.used.get() + size_of::<T>().next_multiple_of(16));
        // SAFETY: the pool is larger than all that is put here, and aligned for it.
        unsafe { place.write(value) };
        place
    }
}
fn pool_lost() {
    let pool = Pool::new(4096);
    for _ in 0..10 {
        pool.put(new_list(1));
    }
}
fn pool_held() {
    let pool = Pool::new(4096);
    for _ in 0..10 {
        pool.put(new_list(1));
    }
    hold(pool.memory);
}
fn pool_held_by_a_part() {
    let pool = Pool::new(4096);
    pool.put([1u64; 10]);
    hold(pool.put(new_list(3)));
}

// Statics, threads and what is local to them.

fn static_once_lock() {
    static WORDS: OnceLock<Mutex<Vec<String>>> = OnceLock::new();
    WORDS.get_or_init(|| Mutex::new(vec!["w".repeat(100), "v".repeat(200)]));
}

thread_local! {
    static LOCAL: RefCell<Option<Box<Link>>> = const { RefCell::new(None) };
    static NEVER_DROPPED: Cell<*mut u8> = const { Cell::new(null_mut()) };
    static LAZY: OnceCell<Vec<Box<u64>>> = OnceCell::new();
}
#[inline(never)]
fn fill_thread_locals() {
    LOCAL.with(|local| *local.borrow_mut() = new_list(3));
    LAZY.with(|lazy| lazy.set((0..4).map(Box::new).collect()).unwrap());
}
/// Destructors of the main thread's locals run at exit.
fn thread_locals_of_the_main_thread() {
    fill_thread_locals();
}
fn thread_local_raw_pointer() {
    NEVER_DROPPED.set(Box::into_raw(Box::new([4u64; 8])).cast());
    NEVER_DROPPED.with(|local| _ = black_box(local));
}
fn thread_locals_of_a_resting_thread() {
    std::thread::spawn(|| {
        fill_thread_locals();
        rest();
    });
    await_rest();
}
fn thread_locals_of_an_ended_thread() {
    let thread = std::thread::spawn(|| {
        fill_thread_locals();
        clear_traces();
    });
    thread.join().unwrap();
}
fn counted_reference_held_by_a_resting_thread() {
    let shared = Arc::new(new_list(3).map(|list| Mutex::new(black_box(list)._payload)));
    let other = shared.clone();
    std::thread::spawn(move || {
        black_box(&other);
        rest();
    });
    await_rest();
}
fn lost_by_a_resting_thread() {
    std::thread::spawn(|| {
        forgotten_list();
        rest();
    });
    await_rest();
}
fn lost_by_an_ended_thread() {
    let thread = std::thread::spawn(|| {
        forgotten_list();
        clear_traces();
    });
    thread.join().unwrap();
}
fn lost_in_a_forgotten_channel() {
    let (sender, receiver) = mpsc::channel();
    for _ in 0..3 {
        sender.send(new_list(2)).unwrap();
    }
    std::mem::forget(black_box((sender, receiver)));
}

// Ends.

fn end_by_exit() {
    forgotten_list();
    leaked_and_held_box();
    clear_traces();
    std::process::exit(0);
}
fn end_by_exit_with_a_list_on_the_stack() {
    let list = black_box([None, new_list(3)]);
    clear_traces();
    black_box(&list);
    std::process::exit(0);
}
fn end_by_a_caught_panic() {
    std::panic::set_hook(Box::new(|_| {}));
    let result = std::panic::catch_unwind(|| {
        let list = new_list(3);
        forgotten_list();
        assert!(list.is_none(), "on purpose");
    });
    assert!(result.is_err());
}

macro_rules! shapes {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name)),*] };
}

static SHAPES: &[(&str, fn())] = shapes![
    forgotten_box, // definite=100/1
    forgotten_vector, // definite=400/1
    forgotten_string, // definite=100/1
    forgotten_vector_of_strings, // definite=240/1 indirect=100/10
    forgotten_list, // definite=32/1 indirect=288/9
    leaked_box, // definite=100/1
    leaked_and_held_box, // reachable=100/1
    leaked_slice_held_inside, // possible=160/1
    raw_box_with_a_list, // definite=8/1 indirect=160/5
    vector_of_vectors, // definite=240/1 indirect=400/10
    overaligned_box, // definite=256/1
    zero_sized_box, // nothing
    cycle_of_two, // definite=80/1 indirect=80/1
    cycle_of_three, // definite=80/1 indirect=160/2
    cycle_with_itself, // definite=80/1
    weakly_kept, // definite=80/1 indirect=80/1
    held_cycle, // reachable=168/3
    raw_counted_pointer, // possible=80/1
    raw_counted_slice, // possible=176/1
    forgotten_arc_of_text, // definite=32/1
    lost_trait_object, // definite=24/1 indirect=40/1
    lost_boxed_trait_object, // definite=16/1 indirect=64/2
    held_trait_object, // reachable=64/2
    lost_any, // definite=72/1
    lost_closure, // definite=8/1 indirect=64/2
    lost_future, // definite=16/1 indirect=64/2
    lost_tree_map, // definite=24/1 indirect=?/11
    held_tree_map, // reachable=?
    lost_hash_map, // definite=48/1 indirect=?/21
    held_hash_map, // possible=?/21 reachable=48/1
    lost_linked_list, // definite=24/1 indirect=216/9
    lost_queue, // definite=32/1 indirect=160/5
    pool_lost, // definite=4096/1 indirect=320/10
    pool_held, // reachable=4416/11
    pool_held_by_a_part, // possible=4192/4
    static_once_lock, // reachable=348/3
    thread_locals_of_the_main_thread, // nothing
    thread_local_raw_pointer, // reachable=64/1
    thread_locals_of_a_resting_thread, // reachable=?
    thread_locals_of_an_ended_thread, // nothing
    counted_reference_held_by_a_resting_thread, // reachable=?
    lost_by_a_resting_thread, // definite=32/1 indirect=288/9 reachable=?
    lost_by_an_ended_thread, // definite=32/1 indirect=288/9
    lost_in_a_forgotten_channel, // definite=?/1 indirect=?/7
    end_by_exit, // definite=32/1 indirect=288/9 reachable=100/1
    end_by_exit_with_a_list_on_the_stack, // reachable=96/3
    end_by_a_caught_panic, // definite=32/1 indirect=288/9
];

fn main() {
    unsafe extern "C" {
        fn mallopt(parameter: i32, value: i32) -> i32;
        fn fork() -> i32;
        fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    }
    // SAFETY: M_PERTURB only makes what is freed be overwritten, so that unused ends of vectors hold no pointers of before.
    unsafe { mallopt(-6, 0x55) };
    let mut chosen = std::env::args().nth(1).unwrap_or_default();
    if chosen == "list" {
        return SHAPES.iter().for_each(|(name, _)| println!("{name}"));
    }
    if std::env::args().len() > 2 {
        chosen = String::new();
        for next in std::env::args().skip(1) {
            let mut status = -1;
            // SAFETY: nothing else runs in this process yet, so its child may do anything.
            let child = unsafe { fork() };
            if child == 0 {
                chosen = next;
                break;
            }
            println!("{child} {next}");
            // SAFETY: the status is a place of its own.
            assert!(unsafe { waitpid(child, &mut status, 0) } == child && status == 0, "{next}");
        }
        if chosen.is_empty() {
            return;
        }
    }
    let Some((_, build)) = SHAPES.iter().find(|(name, _)| *name == chosen) else {
        eprintln!("usage: leak_shapes_rust list | SHAPE...");
        std::process::exit(2);
    };
    // Only what the shape itself allocates is to be seen.
    drop(chosen);
    build();
    clear_traces();
}
