//! Work on several files at a time.

use crate::demangle::Demangler;
use std::sync::Mutex;
use std::thread;

/// Stack of a symbolizing thread, in bytes: debug information nests as deeply as it likes.
const STACK_SIZE: usize = 256 << 20;
/// More threads than this only fight for the disk.
const MAX_THREADS: usize = 8;

/// Does `work` for each item, several at a time. The answers are in the order of the items; what could not be done
/// has none.
pub(crate) fn for_each<T: Sync, R: Send>(
    items: &[T],
    weight: impl Fn(&T) -> usize,
    work: impl Fn(&T, &mut Demangler) -> R + Sync,
) -> Vec<Option<R>> {
    let results: Mutex<Vec<Option<R>>> = Mutex::new(items.iter().map(|_| None).collect());
    // The biggest first, so that it does not start last.
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&at| items.get(at).map_or(0, &weight));
    let queue = Mutex::new(order);
    let run = || {
        let mut demangler = Demangler::default();
        loop {
            let next = queue.lock().ok().and_then(|mut queue| queue.pop());
            let Some((at, item)) = next.and_then(|at| Some((at, items.get(at)?))) else { break };
            let done = work(item, &mut demangler);
            if let Ok(mut results) = results.lock()
                && let Some(slot) = results.get_mut(at)
            {
                *slot = Some(done);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, |count| count.get()).min(MAX_THREADS);
    thread::scope(|scope| {
        let mut started = 0;
        for _ in 0..threads.min(items.len()) {
            let builder = thread::Builder::new().name("symbolize".to_owned()).stack_size(STACK_SIZE);
            started += usize::from(builder.spawn_scoped(scope, run).is_ok());
        }
        // No thread could be had (a limit on address space, say): do it here.
        if started == 0 {
            run();
        }
    });
    results.into_inner().unwrap_or_default()
}
