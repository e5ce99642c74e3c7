//! The same work on several threads.

/// Runs `work` on `threads` threads, this one among them, and waits for all. Each is told its number.
pub(crate) fn run(threads: usize, work: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        let work = &work;
        for number in 1..threads {
            // A thread that cannot be started is one less to help.
            _ = std::thread::Builder::new().spawn_scoped(scope, move || work(number));
        }
        work(0);
    });
}
