//! Real programs do under leakscope what they do without it: the same output byte for byte, the same status, the same files.

use crate::support::build::{compile, targets};
use crate::support::directory::Directory;
use crate::support::process::{Outcome, kill, run, wait, wait_until};
use crate::support::report::Report;
use crate::support::traced::{Run, Traced, leakscope, report_of};
use crate::support::{find_program, need_program, skip};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Runs what `make` makes for a fresh directory twice, without leakscope and with it, and compares all that can be seen.
fn same(make: impl Fn(&Path) -> Run) -> (Outcome, Traced) {
    let (first, second) = (Directory::new(), Directory::new());
    let native = make(first.path()).natively();
    let traced = make(second.path()).traced();
    assert_eq!(traced.outcome.code(), native.code(), "{}{}", traced.outcome.out(), traced.outcome.err());
    assert_eq!(native.code(), 0, "{}{}", native.out(), native.err());
    assert!(
        traced.outcome.stdout == native.stdout,
        "standard output differs:\n{}\n--- natively:\n{}",
        traced.outcome.out(),
        native.out()
    );
    traced.said(&native);
    assert_eq!(files(second.path()), files(first.path()), "the files it made");
    let report = traced.report();
    assert_eq!(report.process.end.reason, "exited");
    assert_eq!(report.process.end.status, Some(0));
    assert!(report.totals.allocated_blocks > 0, "nothing was traced");
    assert_eq!(report.totals.missed_events, 0);
    (native, traced)
}

/// The files below a directory: a hash of what is in each.
fn files(root: &Path) -> BTreeMap<PathBuf, u64> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut files = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.is_file() {
                let mut hasher = DefaultHasher::new();
                std::fs::read(&path).unwrap().hash(&mut hasher);
                files.insert(path.strip_prefix(root).unwrap().to_owned(), hasher.finish());
            }
        }
    }
    files
}

const PYTHON: &str = r#"
import collections, ctypes, hashlib, json, os, re, subprocess, sys, tempfile, threading, zlib
table = {str(i): [i, i * i, {"k": "v" * (i % 50)}] for i in range(20000)}
text = json.dumps(table, sort_keys=True)
print(hashlib.sha256(text.encode()).hexdigest(), len(re.findall(r"\d{3,}", text)))
print(zlib.crc32(zlib.compress(text.encode())))
counts = collections.Counter(word for word in re.split(r"\W+", text))
print(counts.most_common(3))
results = [None] * 4
def work(i):
    results[i] = sum(len(str(n)) for n in range(20000))
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(results)
sys.stdout.flush()
child = os.fork()
if child == 0:
    print("child", sum(range(1000)), flush=True)
    os._exit(3)
print("child ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(subprocess.run(["/bin/sh", "-c", "cat; echo done >&2"], input=b"piped", capture_output=True))
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
for i in range(10):
    libc.malloc(123457)
try:
    raise ValueError("caught")
except ValueError as error:
    print(error)
print(sys.stdin.read())
print("to stderr", file=sys.stderr)
"#;

fn python(malloc: Option<&str>) -> Report {
    let python = need_program("python3", "python3");
    let (_, traced) = same(|_| {
        let run = Run::new([python.as_os_str(), "-c".as_ref(), PYTHON.as_ref()])
            .env("PYTHONHASHSEED", "0")
            .input("some input\n");
        match malloc {
            Some(name) => run.env("PYTHONMALLOC", name),
            None => run,
        }
    });
    let report = traced.report();
    let lost: Vec<_> = report.sites.iter().filter(|site| site.inuse_bytes == 10 * 123_457).collect();
    assert_eq!(lost.len(), 1, "the loop's ten blocks have one stack");
    assert_eq!(lost[0].inuse_blocks, 10);
    assert!(lost[0].stack.len() > 5, "{:?}", lost[0].functions());
    report
}

#[test]
fn python_does_the_same() {
    python(None);
}

#[test]
fn python_with_malloc_for_every_object_does_the_same() {
    let report = python(Some("malloc"));
    assert!(report.totals.allocated_blocks > 200_000, "{}", report.totals.allocated_blocks);
}

#[test]
fn perl_does_the_same() {
    let perl = need_program("perl", "perl");
    let script = r#"
        my %h; $h{$_ % 977} .= chr(65 + $_ % 26) for 1..50000;
        print join(",", map { length $h{$_} } sort { $a <=> $b } keys %h), "\n";
        my $text = join " ", map { "word$_" } 1..20000; my $n = () = $text =~ /\bword\d*7\b/g; print "$n\n";
        my $pid = open(my $pipe, "-|") // die; if (!$pid) { print "from the child\n" x 1000; exit 4; }
        my $lines = () = <$pipe>; close $pipe; print "$lines lines, status ", $? >> 8, "\n";
        eval { die { code => 5 } }; print "died with $@->{code}\n"; print STDERR "warned\n";
        print sort { $b cmp $a } <STDIN>; system("echo", "from echo");
    "#;
    same(|_| Run::new([perl.as_os_str(), "-e".as_ref(), script.as_ref()]).input("b\na\nc\n"));
}

#[test]
fn git_does_the_same() {
    let git = need_program("git", "git");
    let script = format!(
        r#"set -e; git() {{ '{}' "$@"; }}; export HOME="$PWD" GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b.c
        export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b.c GIT_AUTHOR_DATE=2020-01-01T00:00:00Z GIT_COMMITTER_DATE=2020-01-01T00:00:00Z
        git init -q -b main repo; cd repo
        for i in 1 2 3 4 5 6; do seq $((i * 1000)) >file$((i % 3)); git add .; git commit -q -m "commit $i"; done
        git log --stat --format=%H; git checkout -q -b other HEAD~2; seq 7 >file9; git add file9; git commit -q -m other
        git merge -q -m merged main; git log --graph --oneline; git diff HEAD~1 | tail -5; git blame file1 | tail -3
        git grep -c 99; git -c pack.threads=2 repack -q -a -d; git fsck --full; git count-objects -v | grep -v size
        cd ..; git clone -q repo copy; git -C copy rev-parse HEAD; rm -rf copy repo
        "#,
        git.display()
    );
    same(|directory| Run::new(["sh", "-c", &script]).current_dir(directory));
}

fn compiler_does_the_same(compiler: &Path, source: &str, flags: &[&str]) {
    let source = targets().join(source);
    let (_, traced) = same(|directory| {
        let mut command = vec![compiler.as_os_str(), source.as_os_str()];
        command.extend(flags.iter().map(std::ffi::OsStr::new));
        command.extend(["-c", "-o", "out.o"].map(std::ffi::OsStr::new));
        Run::new(command).current_dir(directory)
    });
    if compiler.ends_with("gcc") || compiler.ends_with("g++") {
        // The driver starts the compiler proper and the assembler: processes of their own.
        assert!(traced.other_heaps().len() >= 2, "{:?}", traced.other_heaps());
    }
}

#[test]
fn gcc_compiles_to_the_same_object() {
    compiler_does_the_same(&need_program("gcc", "gcc"), "leaks_in_c.c", &["-O2"]);
    compiler_does_the_same(&need_program("g++", "g++"), "cpp_containers_leak.cpp", &["-O1"]);
}

#[test]
fn clang_compiles_to_the_same_object() {
    match find_program(&["clang", "clang-14", "clang-16", "clang-19"]) {
        Some(clang) => compiler_does_the_same(&clang, "leaks_in_c.c", &["-O2"]),
        None => skip("clang is not installed"),
    }
}

#[test]
fn sqlite_does_the_same() {
    let sqlite = need_program("sqlite3", "sqlite3");
    let script = "create table t(a integer primary key, b text, c real);
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)
            insert into t select i, 'text ' || (i * 7919 % 1000), i / 3.0 from n;
        create index i on t(b); select b, count(*), round(sum(c), 3) from t group by b order by 2 desc, 1 limit 5;
        begin; update t set b = upper(b) where a % 3 = 0; delete from t where a % 5 = 0; rollback;
        select count(distinct b), max(length(b)) from t where b like '%99%'; vacuum; pragma integrity_check;
        select hex(zeroblob(10)), json_group_array(a) from t where a < 5; select nothing;\n";
    let (first, second) = (Directory::new(), Directory::new());
    // The last statement is an error: its message and status come through as well.
    let run = |directory: &Directory| {
        Run::new([sqlite.as_os_str(), "data".as_ref()]).input(script).current_dir(directory.path())
    };
    let (native, traced) = (run(&first).natively(), run(&second).traced());
    assert_eq!(native.code(), 1);
    assert_eq!((traced.outcome.code(), traced.outcome.out()), (1, native.out()));
    traced.said(&native);
    assert_eq!(files(second.path()), files(first.path()));
    assert!(traced.report().totals.allocated_blocks > 1000);
}

#[test]
fn bash_with_pipes_and_subshells_does_the_same() {
    let bash = need_program("bash", "bash");
    let script = r#"
        set -o pipefail; seq 1000 | grep 7 | sort -rn | head -3; echo "${PIPESTATUS[@]}"
        x=$(echo sub; (echo deeper; exit 5); echo "status $?"); echo "$x"; (cd /; pwd); declare -A a; for i in {1..300}; do a[$i]=$((i * i)); done
        echo "${#a[@]} ${a[17]}"; diff <(seq 5) <(seq 2 6); cat <<END | tr a-z A-Z
here document $((6 * 7))
END
        trap 'echo trapped' USR1; kill -USR1 $$; sleep 0 & wait $!; echo "waited $?"; f() { local v=$1; ((v > 0)) && f $((v - 1)); echo -n "$v "; }; f 20; echo
        exec 7>&1; echo seven >&7; exec 7>&-; read -r line; echo "read $line"; mapfile -t rest; echo "${#rest[@]}"; nothing_like_this 2>/dev/null; echo "not found $?"
        kill -9 $BASHPID & wait $! 2>/dev/null; echo "killed $?"; echo to stderr >&2; exec /bin/echo "replaced itself"
    "#;
    same(|_| Run::new([bash.as_os_str(), "-c".as_ref(), script.as_ref()]).input("first\nsecond\nthird\n"));
}

#[test]
fn tar_and_xz_make_and_read_the_same_archive() {
    let (tar, xz) = (need_program("tar", "tar"), need_program("xz", "xz-utils"));
    let script = format!(
        r#"set -e; '{tar}' --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C '{targets}' -cf all.tar .
        '{xz}' -T2 -9 -k all.tar; '{xz}' -dc all.tar.xz | cmp - all.tar; mkdir out; '{tar}' -C out -xJf all.tar.xz; ls out | wc -l
        '{tar}' --sort=name --mtime=@0 --owner=0 --group=0 -C '{targets}' -cJf piped.tar.xz ."#,
        tar = tar.display(),
        xz = xz.display(),
        targets = targets().display()
    );
    same(|directory| Run::new(["sh", "-c", &script]).current_dir(directory));
}

#[test]
fn node_does_the_same() {
    let node = need_program("node", "nodejs");
    let script = r#"
        const { Worker, isMainThread } = require('worker_threads'), crypto = require('crypto'), zlib = require('zlib');
        const objects = Array.from({ length: 50000 }, (_, i) => ({ i, text: 'x'.repeat(i % 30), list: [i, i + 1] }));
        const text = JSON.stringify(objects); console.log(crypto.createHash('sha256').update(text).digest('hex'));
        console.log(zlib.gunzipSync(zlib.gzipSync(text)).length, text.match(/\d+/g).length);
        console.log(Buffer.alloc(1 << 20, 'ab').subarray(0, 10).toString(), [3, 1, 2].sort().join());
        console.log(require('child_process').execFileSync('/bin/echo', ['from a child']).toString().trim());
        const worker = new Worker(`const { parentPort } = require('worker_threads');
            let s = 0; for (let i = 0; i < 1e6; i++) s += i; parentPort.postMessage(s);`, { eval: true });
        worker.on('message', m => console.log('worker', m)); worker.on('exit', c => { console.log('exit', c); console.error('end'); });
    "#;
    same(|_| Run::new([node.as_os_str(), "-e".as_ref(), script.as_ref()]));
}

/// A server that ends with its test.
struct Server(Child);

impl Server {
    fn start(command: &mut Command, log: &Path) -> Server {
        let log = std::fs::File::create(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Server(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            for pid in crate::support::process::tree_of(self.0.id()) {
                kill(pid, libc::SIGKILL);
            }
            let _ = self.0.wait();
        }
    }
}

/// Puts `leakscope run -o HEAP --` before a command, or nothing.
fn maybe_traced(heap: Option<&Path>, command: &[&std::ffi::OsStr]) -> Command {
    match heap {
        Some(heap) => {
            let mut run = leakscope(["run", "-o"]);
            run.arg(heap).arg("--").args(command);
            run
        }
        None => {
            let mut native = Command::new(command[0]);
            native.args(&command[1..]);
            native
        }
    }
}

#[test]
fn redis_under_its_benchmark_answers_the_same() {
    let server = need_program("redis-server", "redis-server");
    let client = need_program("redis-cli", "redis-tools");
    let benchmark = need_program("redis-benchmark", "redis-tools");
    let commands = "SET key value\nGET key\nAPPEND key -more\nGET key\nRPUSH list a b c d\nLRANGE list 0 -1\n\
        HSET hash f1 1 f2 2\nHGETALL hash\nZADD z 3 three 1 one 2 two\nZRANGE z 0 -1 WITHSCORES\nINCRBY n 41\nINCR n\n\
        SADD s x\nSISMEMBER s x\nEVAL \"return redis.call('get', KEYS[1])\" 1 key\nSETRANGE big 100000 end\nSTRLEN big\n\
        DEL big\nEXISTS big\nNOSUCHCOMMAND\nDBSIZE\nDEBUG JMAP\nFLUSHALL\nDBSIZE\n";
    let mut answers = Vec::new();
    for traced in [false, true] {
        let directory = Directory::new();
        let (socket, heap, log) = (directory.join("s"), directory.join("heap"), directory.join("log"));
        // A path of a socket has at most 107 bytes: relative to the directory it is short.
        let arguments =
            ["--port", "0", "--unixsocket", "s", "--save", "", "--appendonly", "no", "--io-threads", "2"];
        let mut command = vec![server.as_os_str()];
        command.extend(arguments.map(std::ffi::OsStr::new));
        let mut command = maybe_traced(traced.then_some(heap.as_path()), &command);
        let mut process = Server::start(command.current_dir(directory.path()), &log);
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        wait_until("redis to listen", || {
            assert!(process.0.try_wait().unwrap().is_none(), "{}", said());
            let short = format!("/proc/self/fd/{}", open_directory(directory.path()));
            UnixStream::connect(Path::new(&short).join("s")).ok()
        });
        let load = run(Command::new(&benchmark)
            .args(["-s", "s", "-n", "4000", "-c", "10", "-q", "-r", "500", "-d", "100"])
            .args(["-t", "set,get,incr,lpush,rpop,sadd,hset,mset"])
            .current_dir(directory.path()));
        assert_eq!(load.code(), 0, "{}{}", load.err(), said());
        assert!(!load.out().contains("Error"), "{}", load.out());
        let flush = run(Command::new(&client).args(["-s", "s", "FLUSHALL"]).current_dir(directory.path()));
        assert_eq!(flush.out(), "OK\n");
        let answer = crate::support::process::run_with_input(
            Command::new(&client).args(["-s", "s"]).current_dir(directory.path()),
            commands.as_bytes(),
        );
        answers.push(answer.out());
        let saved = run(Command::new(&client).args(["-s", "s", "SAVE"]).current_dir(directory.path()));
        assert_eq!(saved.out(), "OK\n");
        run(Command::new(&client).args(["-s", "s", "SHUTDOWN", "NOSAVE"]).current_dir(directory.path()));
        let status = wait(&mut process.0, "redis to shut down");
        assert_eq!(status.code(), Some(0), "{}", said());
        if traced {
            let report = report_of(&heap);
            assert!(report.totals.allocated_blocks > 20_000, "{}", report.totals.allocated_blocks);
            assert_eq!(report.totals.missed_events, 0);
        }
        let _ = socket;
    }
    assert_eq!(answers[1], answers[0]);
    assert!(answers[0].contains("value-more"), "{}", answers[0]);
}

/// A descriptor of a directory, for a short path to what is in it; kept for the life of the test process.
fn open_directory(path: &Path) -> i32 {
    use std::os::fd::IntoRawFd;
    std::fs::File::open(path).unwrap().into_raw_fd()
}

#[test]
fn nginx_with_workers_under_load_serves_the_same() {
    let nginx = need_program("nginx", "nginx-light");
    let mut served = Vec::new();
    for traced in [false, true] {
        let directory = Directory::new();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let root = directory.join("www");
        std::fs::create_dir(&root).unwrap();
        open_to_workers(directory.path());
        std::fs::write(root.join("index.html"), "hello\n".repeat(5000)).unwrap();
        let here = directory.path().display();
        let configuration = format!(
            "daemon off; worker_processes 2; pid {here}/pid; error_log {here}/error.log warn;
            events {{ worker_connections 64; }}
            http {{ access_log off; gzip on; gzip_types text/plain; gzip_min_length 1; client_body_temp_path {here}/t1;
                proxy_temp_path {here}/t2; fastcgi_temp_path {here}/t3; uwsgi_temp_path {here}/t4; scgi_temp_path {here}/t5;
                server {{ listen 127.0.0.1:{port}; root {here}/www; location /text {{ default_type text/plain; return 200 \"text $arg_n\\n\"; }} }} }}"
        );
        std::fs::write(directory.join("conf"), configuration).unwrap();
        let (heap, log, conf) = (directory.join("heap"), directory.join("log"), directory.join("conf"));
        let command = [nginx.as_os_str(), "-c".as_ref(), conf.as_os_str(), "-e".as_ref(), "stderr".as_ref()];
        let mut process = Server::start(&mut maybe_traced(traced.then_some(heap.as_path()), &command), &log);
        let said = || {
            let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
            format!("{}{}", read(&log), read(&directory.join("error.log")))
        };
        wait_until("nginx to listen", || {
            assert!(process.0.try_wait().unwrap().is_none(), "{}", said());
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        let clients: Vec<_> = (0..4)
            .map(|client| {
                std::thread::spawn(move || {
                    let requests = 60;
                    (0..requests)
                        .map(|n| {
                            let path = if n % 2 == 0 {
                                "/index.html".into()
                            } else {
                                format!("/text?n={client}.{n}")
                            };
                            request(port, &path, n % 3 == 0)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        served.push(clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>());
        // The signal goes to leakscope, which passes it on to nginx: a graceful end.
        kill(process.0.id(), libc::SIGQUIT);
        let status = wait(&mut process.0, "nginx to end gracefully");
        assert_eq!(status.code(), Some(0), "{}", said());
        if traced {
            let report = report_of(&heap);
            assert!(report.totals.allocated_blocks > 100);
            let workers = std::fs::read_dir(directory.path())
                .unwrap()
                .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("heap."))
                .map(|entry| report_of(&entry.unwrap().path()))
                .filter(|report| report.totals.allocated_blocks > 50)
                .count();
            assert_eq!(workers, 2, "a heap file of each worker");
        }
    }
    assert!(served[0] == served[1], "the responses differ");
    assert!(
        served[0].iter().flatten().all(|response| response.starts_with(b"HTTP/1.1 200")),
        "not all were served"
    );
}

/// Workers that dropped root's rights must be able to reach the directory.
fn open_to_workers(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// One request; the response without the headers that tell the time.
fn request(port: u16, path: &str, compressed: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let encoding = if compressed { "Accept-Encoding: gzip\r\n" } else { "" };
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n{encoding}Connection: close\r\n\r\n").unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).unwrap();
    let mut kept = Vec::new();
    for line in response.split_inclusive(|byte| *byte == b'\n') {
        let changes =
            [b"Date:" as &[u8], b"Last-Modified:", b"ETag:"].iter().any(|name| line.starts_with(name));
        if !changes {
            kept.extend_from_slice(line);
        }
    }
    kept
}

#[test]
fn two_programs_joined_by_a_pipe_are_both_traced() {
    let program = compile("leaks_in_c.c", &["-O0"]);
    let script = format!("'{}' | cat; exit 11", program.display());
    let traced = Run::new(["sh", "-c", &script]).traced();
    assert_eq!(traced.outcome.code(), 11);
    let sources = ["leaks_in_c.c".to_owned()];
    let with_leaks =
        traced.other_reports().iter().filter(|report| !report.found(&sources).is_empty()).count();
    assert_eq!(with_leaks, 1);
}
