//! SIGKILL of the target and of leakscope at random instants, the OOM killer, and reading while the target runs: the heap file
//! can always be read, and agrees with the program's own account within the operations that were under way.

use crate::support::build::compile;
use crate::support::cgroup::Cgroup;
use crate::support::directory::Directory;
use crate::support::marks::line_containing;
use crate::support::process::{children_of, kill, run, running, tree_of, wait, wait_until};
use crate::support::random::{Random, rounds};
use crate::support::report::Report;
use crate::support::traced::{leakscope, report_of};
use crate::support::{is_root, skip};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Threads that the program is told to have.
pub const THREADS: usize = 3;
const SITES: usize = 3;

/// Sums over the threads of the program's own account, by site: blocks and bytes.
#[derive(Default, Clone, Copy, Debug)]
pub struct Account {
    allocate_begun: [[u64; 2]; SITES],
    pub allocate_done: [[u64; 2]; SITES],
    free_begun: [[u64; 2]; SITES],
    pub free_done: [[u64; 2]; SITES],
}

/// Reads the account, which counted_churn.c lays out.
pub fn read_account(path: &Path) -> Account {
    let bytes = std::fs::read(path).unwrap();
    let numbers: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
    let per_thread = 4 * SITES * 2 + 8;
    assert_eq!(numbers.len(), per_thread * THREADS);
    let mut sum = Account::default();
    for thread in numbers.chunks(per_thread) {
        let mut values = thread.iter();
        let Account { allocate_begun, allocate_done, free_begun, free_done } = &mut sum;
        for table in [allocate_begun, allocate_done, free_begun, free_done] {
            for counter in table.as_flattened_mut() {
                *counter += values.next().unwrap();
            }
        }
    }
    sum
}

/// The report's figures for each site lie between what was surely done before and what may have been begun by then.
fn check_between(before: &Account, after: &Account, report: &Report) {
    for site in 0..SITES {
        let line = line_containing("counted_churn.c", &format!("// SITE {site}"));
        let mut found = [[0; 2]; 2];
        for here in report.sites_at("counted_churn.c", line) {
            found[0][0] += here.allocated_blocks;
            found[0][1] += here.allocated_bytes;
            found[1][0] += here.inuse_blocks;
            found[1][1] += here.inuse_bytes;
        }
        for unit in 0..2 {
            let what = format!("site {site}, {}", ["blocks", "bytes"][unit]);
            let allocated = before.allocate_done[site][unit]..=after.allocate_begun[site][unit];
            assert!(
                allocated.contains(&found[0][unit]),
                "{what}: {} allocated, not in {allocated:?}",
                found[0][unit]
            );
            let least = before.allocate_done[site][unit].saturating_sub(after.free_begun[site][unit]);
            let most = after.allocate_begun[site][unit] - before.free_done[site][unit];
            assert!(
                (least..=most).contains(&found[1][unit]),
                "{what}: {} in use, not in {least}..={most}",
                found[1][unit]
            );
        }
    }
}

/// counted_churn under leakscope.
struct Churn {
    directory: Directory,
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Churn {
    fn start(operations: u64) -> Churn {
        let directory = Directory::new();
        let mut child = leakscope(["run", "-o"])
            .arg(directory.join("heap"))
            .arg("--")
            .arg(program())
            .arg(directory.join("account"))
            .args([THREADS.to_string(), operations.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(directory.join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Churn { directory, child, stdout }
    }

    fn wait_for_begin(&mut self) {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "begun\n", "{}", self.said());
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.directory.join("stderr")).unwrap_or_default()
    }

    fn heap(&self) -> PathBuf {
        self.directory.join("heap")
    }

    fn account(&self) -> Account {
        read_account(&self.directory.join("account"))
    }

    /// The process of the program, below leakscope's.
    fn target(&self) -> u32 {
        let program = program();
        wait_until("the target's process", || running(self.child.id(), &program).first().copied())
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        // A killed leakscope leaves the tables in shared memory, and a link to them.
        if let Ok(arena) = std::fs::read_link(self.heap()) {
            let _ = std::fs::remove_file(arena);
        }
    }
}

fn program() -> PathBuf {
    compile("counted_churn.c", &["-O2"])
}

fn pause(random: &mut Random, most_milliseconds: u64) {
    std::thread::sleep(Duration::from_micros(random.below(most_milliseconds * 1000)));
}

#[test]
fn a_target_killed_at_any_instant_leaves_a_profile_that_adds_up() {
    let mut random = Random::new();
    for round in 0..rounds("LEAKSCOPE_KILL_ROUNDS", 15) {
        let mut churn = Churn::start(0);
        churn.wait_for_begin();
        let target = churn.target();
        pause(&mut random, 60);
        kill(target, libc::SIGKILL);
        let status = wait(&mut churn.child, "leakscope after its target's death");
        assert_eq!(status.code(), Some(128 + libc::SIGKILL), "round {round}: {}", churn.said());
        let report = report_of(&churn.heap());
        assert_eq!(report.process.end.reason, "signaled");
        assert_eq!(report.process.end.status, Some(i64::from(libc::SIGKILL)));
        assert_eq!(report.totals.missed_events, 0, "round {round}");
        let account = churn.account();
        check_between(&account, &account, &report);
    }
}

#[test]
fn a_target_killed_while_it_starts_harms_nothing() {
    let mut random = Random::new();
    for round in 0..rounds("LEAKSCOPE_KILL_ROUNDS", 15) {
        let mut churn = Churn::start(0);
        let leakscope = churn.child.id();
        let target = wait_until("a child of leakscope", || {
            children_of(leakscope).into_iter().max().or_else(|| churn.child.try_wait().unwrap().map(|_| 0))
        });
        pause(&mut random, 12);
        // Perhaps this is the holder, or the target before its exec; whatever dies, leakscope must end, and say so.
        if target != 0 {
            kill(target, libc::SIGKILL);
        }
        wait_until("leakscope's end after its target's early death", || {
            if churn.child.try_wait().unwrap().is_some() {
                return Some(());
            }
            running(leakscope, &program()).iter().for_each(|pid| kill(*pid, libc::SIGKILL));
            None
        });
        if churn.heap().exists() {
            let outcome =
                run(crate::support::traced::leakscope(["report", "--format", "json"]).arg(churn.heap()));
            assert!([0, 125].contains(&outcome.code()), "round {round}: {}", outcome.err());
        }
    }
}

#[test]
fn a_target_runs_on_when_leakscope_is_killed_and_its_profile_adds_up() {
    let operations = 400_000;
    let directory = Directory::new();
    let native = run(Command::new(program())
        .arg(directory.join("account"))
        .args([THREADS.to_string(), operations.to_string()]));
    let mut random = Random::new();
    for round in 0..rounds("LEAKSCOPE_KILL_ROUNDS", 15) {
        let mut churn = Churn::start(operations);
        churn.wait_for_begin();
        let target = churn.target();
        pause(&mut random, 60);
        // Its helpers too, in every other round.
        let helpers: Vec<u32> = tree_of(churn.child.id()).into_iter().filter(|pid| *pid != target).collect();
        if round % 2 == 0 {
            kill(churn.child.id(), libc::SIGKILL);
        } else {
            helpers.iter().for_each(|pid| kill(*pid, libc::SIGKILL));
        }
        churn.child.wait().unwrap();
        // The pipe ends when the target has ended.
        let mut rest = String::new();
        churn.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(format!("begun\n{rest}"), native.out(), "round {round}: the target ends as ever");

        let report = report_of(&churn.heap());
        let account = churn.account();
        assert_eq!(account.allocate_begun, account.allocate_done, "all was done");
        if report.totals.missed_events == 0 && report.notes.is_empty() {
            check_between(&account, &account, &report);
        } else {
            // Without its holder tracing may have stopped, which the report says; then nothing is invented.
            let begun: u64 = account.allocate_begun.iter().map(|counter| counter[0]).sum();
            let booked: u64 = (0..SITES)
                .map(|site| line_containing("counted_churn.c", &format!("// SITE {site}")))
                .flat_map(|line| report.sites_at("counted_churn.c", line).map(|site| site.allocated_blocks))
                .sum();
            assert!(booked <= begun, "{booked} blocks booked, {begun} allocated");
        }
    }
}

#[test]
fn a_heap_file_can_be_read_while_the_target_runs() {
    let mut random = Random::new();
    let mut churn = Churn::start(0);
    churn.wait_for_begin();
    let target = churn.target();
    for _ in 0..rounds("LEAKSCOPE_KILL_ROUNDS", 15) {
        pause(&mut random, 20);
        let before = churn.account();
        let report = report_of(&churn.heap());
        let after = churn.account();
        assert_eq!(report.process.end.reason, "running");
        assert_eq!(report.process.pid, target);
        check_between(&before, &after, &report);
    }
    kill(target, libc::SIGKILL);
    wait(&mut churn.child, "leakscope after its target's death");
}

#[test]
fn the_oom_killer_leaves_a_complete_profile() {
    let program = compile("eats_a_memory_cgroup.c", &["-O2"]);
    for leakscope_inside in [false, true] {
        let Some(group) = Cgroup::new(80 << 20) else {
            return skip(&format!(
                "cannot make a memory cgroup ({}): neither v1 at /sys/fs/cgroup/memory nor v2 is writable",
                if is_root() { "as root" } else { "not root" }
            ));
        };
        let directory = Directory::new();
        let (heap, json, account) =
            (directory.join("heap"), directory.join("json"), directory.join("account"));
        let mut command = Command::new("sh");
        let enter = if leakscope_inside { "echo $$ >\"$0\"; exec \"$@\" '' " } else { "exec \"$@\" \"$0\" " };
        command
            .args(["-c", &format!("{enter}'{}'", account.display())])
            .arg(group.processes())
            .arg(crate::support::traced::LEAKSCOPE)
            .args(["run", "-o"])
            .arg(&heap)
            .arg(format!("--json={}", json.display()))
            .arg("--")
            .arg(&program);
        let outcome = run(&mut command);
        let what = format!("leakscope in the cgroup: {leakscope_inside}; {}", outcome.err());
        assert_eq!(outcome.code(), 128 + libc::SIGKILL, "{what}");
        let numbers = std::fs::read(&account).unwrap();
        let number = |index: usize| u64::from_ne_bytes(numbers[index * 8..][..8].try_into().unwrap());
        let (begun, done) = (number(0), number(1));
        assert!(done > 1000, "it got far: {done}; {what}");
        for report in [Report::parse(&std::fs::read(&json).unwrap()), report_of(&heap)] {
            let line = line_containing("eats_a_memory_cgroup.c", "// SITE 0");
            let site = report.sites_at("eats_a_memory_cgroup.c", line).next().unwrap();
            assert!(
                (done..=begun).contains(&site.inuse_blocks),
                "{} not in {done}..={begun}",
                site.inuse_blocks
            );
            assert_eq!(site.inuse_bytes, site.inuse_blocks * 10000);
            assert_eq!(report.totals.missed_events, 0, "{what}");
            assert_eq!(report.process.end.reason, "signaled");
        }
    }
}
