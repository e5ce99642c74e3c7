// Trait objects that are lost, and others held by a static: boxed, counted, and a closure. Prints "ready" and waits for the end
// of its input.
use std::io::{Read, Write};
use std::sync::Mutex;

trait Task: Send + Sync {
    fn run(&self) -> u64;
}

// Something to drop, so that its table has a function for that.
struct Download {
    parts: Vec<u64>,
    fill: [u64; 40],
}

impl Task for Download {
    fn run(&self) -> u64 {
        self.parts.iter().sum::<u64>() + self.fill[0]
    }
}

// Nothing to drop.
struct Ping([u64; 50]);

impl Task for Ping {
    #[inline(never)]
    fn run(&self) -> u64 {
        self.0[1]
    }
}

static HELD: Mutex<Vec<Box<dyn Task>>> = Mutex::new(Vec::new());

#[inline(never)]
fn hold() {
    let mut held = HELD.lock().unwrap();
    for _ in 0..7 {
        held.push(Box::new(Download { parts: Vec::new(), fill: [1; 40] }));
        held.push(Box::new(Ping([2; 50])));
    }
}

// Each vector is lost, and with it the tasks that it holds.
#[inline(never)]
fn lose() {
    for _ in 0..3 {
        let mut lost: Vec<Box<dyn Task>> = Vec::with_capacity(17);
        lost.push(Box::new(Download { parts: Vec::new(), fill: [3; 40] }));
        std::mem::forget(std::hint::black_box(lost));
    }
}

#[inline(never)]
fn clear_traces() {
    std::hint::black_box([0u64; 4096]);
}

fn main() {
    hold();
    lose();
    clear_traces();
    std::io::stdout().write_all(b"ready\n").unwrap();
    std::io::stdout().flush().unwrap();
    let mut end = [0; 1];
    let _ = std::io::stdin().read(&mut end);
    let ran: u64 = HELD.lock().unwrap().iter().map(|task| task.run()).sum();
    assert_eq!(ran, 7 * 3);
}
