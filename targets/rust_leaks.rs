//! The ways in which Rust programs lose memory, or keep what they no longer need.
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, mpsc};

struct Node {
    other: RefCell<Option<Rc<Node>>>,
    _payload: [u64; 10],
}

static CACHE: OnceLock<Mutex<HashMap<u32, Vec<u8>>>> = OnceLock::new();

#[inline(never)]
fn leak_a_box() {
    black_box(Box::leak(Box::new([1u8; 100]))); // LEAK bytes=100 blocks=1
}

#[inline(never)]
fn leak_a_cycle() {
    let one = Rc::new(Node { other: RefCell::new(None), _payload: [1; 10] }); // LEAK bytes=112 blocks=1
    let two = Rc::new(Node { other: RefCell::new(Some(one.clone())), _payload: [2; 10] }); // LEAK bytes=112 blocks=1
    *one.other.borrow_mut() = Some(two.clone());
}

#[inline(never)]
fn grow_a_vector() -> Vec<u64> {
    let mut numbers = Vec::new();
    for i in 0..1000 {
        numbers.push(i); // LEAK bytes=8192 blocks=1 allocated=16352/9
    }
    numbers
}

#[inline(never)]
fn forget_a_string() {
    std::mem::forget(black_box("forgotten ".repeat(10))); // LEAK bytes=100 blocks=1
}

#[inline(never)]
fn fill_the_cache() {
    let cache = CACHE.get_or_init(Default::default);
    for key in 0..50 {
        let value = vec![0u8; 200]; // LEAK bytes=10000 blocks=50
        cache.lock().unwrap().insert(key, value); // LIBC
    }
}

#[inline(never)]
fn lose_in_a_thread() {
    let worker = std::thread::spawn(|| { // LIBC
        for size in 0..20usize {
            drop(black_box(vec![1u8; size + 1])); // FREED bytes=210 blocks=20
        }
        Box::into_raw(black_box(Box::new([0u32; 16]))) as usize // LEAK bytes=64 blocks=1
    });
    black_box(worker.join().unwrap());
}

#[inline(never)]
fn lose_what_was_sent() {
    let (sender, receiver) = mpsc::channel::<Arc<[u8; 300]>>(); // LIBC
    for _ in 0..5 {
        let message = Arc::new([0u8; 300]); // LEAK bytes=1600 blocks=5
        std::mem::forget(message.clone());
        sender.send(message).unwrap(); // LIBC
    }
    drop(receiver);
}

#[inline(never)]
fn free_all() {
    let mut map = BTreeMap::new();
    for i in 0..100u32 {
        map.insert(i, Box::new(i)); // FREED
    }
    let words: Vec<String> = (0..100).map(|i| format!("word {i}")).collect(); // FREED
    black_box((map, words));
}

fn main() {
    leak_a_box();
    leak_a_cycle();
    std::mem::forget(black_box(grow_a_vector()));
    forget_a_string();
    fill_the_cache();
    lose_in_a_thread();
    lose_what_was_sent();
    free_all();
    let zeroed = black_box(vec![0u64; 4096]); // LEAK bytes=32768 blocks=1
    std::mem::forget(zeroed);
    std::process::exit(12);
}
