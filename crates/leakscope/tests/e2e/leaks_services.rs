//! Services under load, scanned again and again: every request is answered, rightly, and nothing is left in the service.

use crate::support::directory::Directory;
use crate::support::leaks::Leaks;
use crate::support::need_program;
use crate::support::process::{children_of, kill, run, running, state, threads, tracer_of, wait, wait_until};
use crate::support::random::rounds;
use crate::support::traced::leakscope;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Clients at once.
const CLIENTS: u64 = 3;
/// Between two requests of a client, so that there is time for leakscope on a small machine.
const BREATH: Duration = Duration::from_micros(300);
/// What a service may have more after all the scans than before: far less than one copy of it.
const MORE: u64 = 8 << 20;

/// A service that ends with its test.
struct Service {
    child: Child,
    pid: u32,
    port: u16,
    directory: Directory,
}

impl Service {
    /// Starts `program` by `prefix`, with the arguments that `arguments` makes of a port and a directory.
    fn start(
        prefix: &[&OsStr],
        program: &Path,
        arguments: impl Fn(u16, &Directory) -> Vec<String>,
    ) -> Service {
        let directory = Directory::new();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let mut words: Vec<&OsStr> = prefix.to_vec();
        words.push(program.as_os_str());
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .args(arguments(port, &directory))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        wait_until("the service to listen", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{}", std::fs::read_to_string(directory.join("log")).unwrap());
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        // redis-server is a link to a program that looks at its name.
        let pid = running(child.id(), &program.canonicalize().unwrap())[0];
        Service { child, pid, port, directory }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Private memory in bytes: that is what copies cost.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Scans it while `clients` ask it, many times; gives each scan's report to `check`. Every client must get every
    /// answer.
    fn scan_under_load(&self, client: impl Fn(u64, &AtomicBool) -> u64 + Sync, check: impl Fn(&Leaks)) {
        let stop = AtomicBool::new(false);
        let answers: u64 = std::thread::scope(|scope| {
            // Also when a check fails.
            let _stop = OnDrop(|| stop.store(true, Ordering::Relaxed));
            let clients: Vec<_> = (0..CLIENTS)
                .map(|number| {
                    let (client, stop) = (&client, &stop);
                    scope.spawn(move || client(number, stop))
                })
                .collect();
            let scan = || {
                let outcome =
                    run(leakscope(["leaks", "--json", "--max-pause=10000"]).arg(self.pid.to_string()));
                assert!([0, 1].contains(&outcome.code()), "{}{}", outcome.err(), self.log());
                check(&Leaks::parse(&outcome.stdout));
                let children = children_of(self.pid);
                assert!(children.len() <= 1, "{children:?} are left after a scan");
            };
            scan();
            let before = self.memory();
            for _ in 1..rounds("LEAKSCOPE_SCAN_ROUNDS", 20) {
                scan();
            }
            let after = self.memory();
            assert!(after < before + MORE, "{before} bytes before, {after} after");
            stop.store(true, Ordering::Relaxed);
            clients.into_iter().map(|client| client.join().unwrap()).sum()
        });
        assert!(answers > CLIENTS, "only {answers} answers");
        assert_eq!(children_of(self.pid), [] as [u32; 0]);
        assert_eq!(tracer_of(self.pid), 0);
        assert!(threads(self.pid).iter().all(|&(tid, _)| !matches!(state(tid), Some('t' | 'T'))));
    }

    /// Ends it by a signal to what the test started; its exit must be a success.
    fn end(mut self, signal: i32) {
        kill(self.child.id(), signal);
        let status = wait(&mut self.child, "the service to end");
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            for pid in crate::support::process::tree_of(self.child.id()) {
                kill(pid, libc::SIGKILL);
            }
            let _ = self.child.wait();
        }
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn redis(prefix: &[&OsStr]) -> Service {
    let server = need_program("redis-server", "redis-server");
    Service::start(prefix, &server, |port, _| {
        let port = port.to_string();
        let words = ["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"];
        words.map(str::to_owned).to_vec()
    })
}

/// Sets and gets until it is told to stop; each reply must be the right one. Gives their number.
fn redis_client(port: u16, number: u64, stop: &AtomicBool) -> u64 {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).unwrap());
    let mut replies = 0;
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let key = format!("key:{number}:{}", round % 200);
        let value = format!("{round}:{}", "v".repeat((round % 300) as usize));
        let request = format!("SET {key} {value}\r\nGET {key}\r\nINCR count:{number}\r\nDEL {key}\r\n");
        stream.get_mut().write_all(request.as_bytes()).unwrap();
        round += 1;
        let expected =
            ["+OK".to_owned(), format!("${}", value.len()), value, format!(":{round}"), ":1".to_owned()];
        for line in expected {
            let mut reply = String::new();
            stream.read_line(&mut reply).unwrap();
            assert_eq!(reply.trim_end(), line, "client {number}, round {round}");
        }
        replies += 4;
        std::thread::sleep(BREATH);
    }
    replies
}

#[test]
fn redis_answers_every_request_while_it_is_scanned() {
    let directory = Directory::new();
    let heap: PathBuf = directory.join("heap");
    let prefix: [&OsStr; 5] = [
        crate::support::traced::LEAKSCOPE.as_ref(),
        "run".as_ref(),
        "-o".as_ref(),
        heap.as_os_str(),
        "--".as_ref(),
    ];
    let redis = redis(&prefix);
    redis.scan_under_load(
        |number, stop| redis_client(redis.port, number, stop),
        |leaks| assert_eq!(leaks.source.blocks, "tracer"),
    );
    redis.end(libc::SIGTERM);
}

#[test]
fn an_allocator_that_is_not_understood_is_named_without_stopping_the_process() {
    let redis = redis(&["env".as_ref()]);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", redis.pid)).unwrap();
    if !maps.contains("jemalloc") {
        return crate::support::skip("this redis uses the C library's malloc");
    }
    let refused = || {
        let outcome = run(leakscope(["leaks"]).arg(redis.pid.to_string()));
        assert_eq!((outcome.code(), outcome.out().as_str()), (125, ""), "{}", outcome.err());
        for words in ["jemalloc", "leakscope run"] {
            assert!(outcome.err().contains(words), "{}", outcome.err());
        }
    };
    refused();
    // Who has a tracer already cannot be stopped by another one; this is said all the same.
    let gdb = need_program("gdb", "gdb");
    let mut tracer = Command::new(gdb)
        .args(["-nx", "-q", "-p", &redis.pid.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("gdb to trace", || (tracer_of(redis.pid) != 0).then_some(()));
    refused();
    drop(tracer.stdin.take());
    wait(&mut tracer, "gdb");
    redis.end(libc::SIGTERM);
}

#[test]
fn nginx_that_was_never_prepared_answers_every_request_while_it_is_scanned() {
    let nginx = need_program("nginx", "nginx-light");
    let page = "hello\n".repeat(3000);
    let service = Service::start(&["env".as_ref()], &nginx, |port, directory| {
        let here = directory.path().display();
        std::fs::create_dir(directory.join("www")).unwrap();
        std::fs::write(directory.join("www/index.html"), &page).unwrap();
        let configuration = format!(
            "daemon off; master_process off; pid {here}/pid; error_log {here}/error.log warn;
            events {{ worker_connections 64; }}
            http {{ access_log off; client_body_temp_path {here}/t1; keepalive_requests 1000000;
                proxy_temp_path {here}/t2; fastcgi_temp_path {here}/t3; uwsgi_temp_path {here}/t4; scgi_temp_path {here}/t5;
                server {{ listen 127.0.0.1:{port}; root {here}/www; }} }}"
        );
        let path = directory.join("conf");
        std::fs::write(&path, configuration).unwrap();
        ["-c", path.to_str().unwrap(), "-e", "stderr"].map(str::to_owned).to_vec()
    });
    let client = |number: u64, stop: &AtomicBool| {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", service.port)).unwrap());
        let mut answers = 0;
        while !stop.load(Ordering::Relaxed) {
            stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            assert_eq!(line, "HTTP/1.1 200 OK\r\n", "client {number}, answer {answers}");
            while line != "\r\n" {
                line.clear();
                assert!(stream.read_line(&mut line).unwrap() > 0);
            }
            let mut body = vec![0; page.len()];
            stream.read_exact(&mut body).unwrap();
            assert!(body == page.as_bytes(), "client {number}, answer {answers}");
            answers += 1;
            std::thread::sleep(BREATH);
        }
        answers
    };
    service.scan_under_load(client, |leaks| {
        assert_eq!(leaks.source.blocks, "allocator");
        // It has one thread, which may have one block in hand. Pools are held by pointers to their middle.
        assert!(leaks.summary.definite.blocks <= 1, "{:#?}", leaks.records);
    });
    service.end(libc::SIGQUIT);
}
