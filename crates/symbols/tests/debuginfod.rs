//! Debug information is fetched by build id, once, and only if it is what was asked for.

mod support;

use leakscope_profile::Symbols;
use leakscope_symbols::{Debuginfod, Options, symbolize};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use support::*;

/// What the server answers with.
#[derive(Clone)]
enum Answer {
    File(Vec<u8>),
    /// A body that breaks off.
    Cut(Vec<u8>),
    /// A body of this many bytes whose length is not announced.
    Endless(usize),
    Status(u16),
}

/// A server on the loopback that gives every request the same answer and notes what was requested.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
    stop: TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn new(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // The first connection is the one that ends the server when it is closed.
        let stop = TcpStream::connect(address).unwrap();
        let (held, _) = listener.accept().unwrap();
        held.set_nonblocking(true).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                let mut end = [0];
                if matches!(held.peek(&mut end), Ok(0)) {
                    return;
                }
                serve(stream.unwrap(), &answer, &seen);
            }
        });
        Server { url: format!("http://{address}"), requests, stop, thread: Some(thread) }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.shutdown(std::net::Shutdown::Both).unwrap();
        // Wakes the server up.
        let _ = TcpStream::connect(self.stop.peer_addr().unwrap());
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(mut stream: TcpStream, answer: &Answer, seen: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut request = String::new();
    if reader.read_line(&mut request).is_err() {
        return; // Not text: somebody speaks TLS.
    }
    seen.lock().unwrap().push(request.trim().to_owned());
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    // The client may hang up at any time.
    let _ = match answer {
        Answer::File(bytes) => {
            head(&mut stream, 200, Some(bytes.len())).and_then(|()| stream.write_all(bytes))
        }
        Answer::Cut(bytes) => {
            head(&mut stream, 200, Some(bytes.len() + 1)).and_then(|()| stream.write_all(bytes))
        }
        Answer::Endless(size) => {
            head(&mut stream, 200, None).and_then(|()| stream.write_all(&vec![0; *size]))
        }
        Answer::Status(status) => head(&mut stream, *status, Some(0)),
    };
}

fn head(stream: &mut TcpStream, status: u16, length: Option<usize>) -> std::io::Result<()> {
    let length = length.map(|length| format!("Content-Length: {length}\r\n")).unwrap_or_default();
    write!(stream, "HTTP/1.1 {status} x\r\n{length}Connection: close\r\n\r\n")
}

/// A stripped program whose debug information is nowhere on this machine.
struct Case {
    shop: Workshop,
    program: PathBuf,
    debug: Vec<u8>,
    site: u64,
    oracle: Told,
}

impl Case {
    fn new() -> Self {
        let shop = Workshop::new();
        let program = shop.compile("gcc", C, "leak", &["-g", "-O2"]);
        let site = call_sites(&program, &["<outer"])[0];
        let oracle = addr2line(&program, site);
        let debug = shop.path("leak.debug");
        run("objcopy", &["--only-keep-debug", text_of(&program), text_of(&debug)]);
        run("strip", &["--strip-all", text_of(&program)]);
        let bytes = fs::read(&debug).unwrap();
        fs::remove_file(debug).unwrap();
        Case { shop, program, debug: bytes, site, oracle }
    }

    fn hex(&self) -> String {
        build_id(&self.program).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn cached(&self) -> PathBuf {
        self.shop.path("cache").join(self.hex()).join("debuginfo")
    }

    fn symbolize(&self, urls: &[&str], max_size: u64) -> Symbols {
        let debuginfod = Debuginfod {
            urls: urls.iter().map(|&url| url.to_owned()).collect(),
            cache: Some(self.shop.path("cache")),
            max_size,
            ..Debuginfod::default()
        };
        let options = Options { debuginfod, ..Options::default() };
        symbolize(&profile_of(module_of(&self.program), &[self.site]), &options).unwrap()
    }

    fn is_full(&self, symbols: &Symbols) -> bool {
        let full = told(symbols, BIAS, self.site) == self.oracle;
        assert_eq!(full, symbols.missing.is_empty(), "{:?}", symbols.missing);
        full
    }
}

const LARGE: u64 = 1 << 30;

#[test]
fn a_server_is_asked_once_by_build_id_and_then_the_cache_answers() {
    let case = Case::new();
    let server = Server::new(Answer::File(case.debug.clone()));
    // A path and a slash at the end of the address are fine.
    let url = format!("{}/debug/", server.url);
    assert!(case.is_full(&case.symbolize(&[&url], LARGE)));
    assert!(case.is_full(&case.symbolize(&[&url], LARGE)));
    assert_eq!(server.requests(), [format!("GET /debug/buildid/{}/debuginfo HTTP/1.1", case.hex())]);
    assert_eq!(fs::read(case.cached()).unwrap(), case.debug, "laid out as debuginfod's own client does");
    let left: Vec<_> = fs::read_dir(case.cached().parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "no partial files stay: {left:?}");
}

#[test]
fn a_build_id_that_no_server_knows_is_not_asked_for_again_soon() {
    let case = Case::new();
    let server = Server::new(Answer::Status(404));
    for _ in 0..2 {
        let symbols = case.symbolize(&[&server.url], LARGE);
        assert!(!case.is_full(&symbols));
        assert!(symbols.missing[0].reason.ends_with("not known to debuginfod"), "{}", symbols.missing[0]);
    }
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn the_next_server_is_asked_when_one_fails() {
    let case = Case::new();
    let broken = Server::new(Answer::Status(500));
    let working = Server::new(Answer::File(case.debug.clone()));
    assert!(case.is_full(&case.symbolize(&[&broken.url, "ftp://127.0.0.1", &working.url], LARGE)));
    assert_eq!((broken.requests().len(), working.requests().len()), (1, 1));
}

#[test]
fn what_is_broken_foreign_or_too_large_is_neither_used_nor_kept() {
    let case = Case::new();
    let other = Case::new();
    assert_ne!(case.hex(), other.hex());
    let size = case.debug.len() as u64;
    for (answer, max_size, why) in [
        (Answer::File(other.debug.clone()), LARGE, "another build id"),
        (Answer::File(b"<html>Sign in</html>".to_vec()), LARGE, "useless"),
        (Answer::File(case.debug.clone()), size - 1, "larger than"),
        (Answer::Endless(1 << 20), 1 << 16, "larger than"),
        (Answer::Cut(case.debug.clone()), LARGE, "debuginfod http://127.0.0.1"),
        (Answer::Status(503), LARGE, "HTTP status 503"),
    ] {
        let server = Server::new(answer);
        let symbols = case.symbolize(&[&server.url], max_size);
        assert!(!case.is_full(&symbols));
        assert!(symbols.missing[0].reason.contains(why), "{why}: {}", symbols.missing[0]);
        assert!(!case.cached().exists(), "{why}");
    }
    let server = Server::new(Answer::File(case.debug.clone()));
    assert!(case.is_full(&case.symbolize(&[&server.url], size)), "exactly the limit is fine");
}

#[test]
fn without_servers_nothing_is_asked_but_the_cache_still_counts() {
    let case = Case::new();
    assert!(!case.is_full(&case.symbolize(&[], LARGE)));
    fs::create_dir_all(case.cached().parent().unwrap()).unwrap();
    fs::write(case.cached(), &case.debug).unwrap();
    assert!(case.is_full(&case.symbolize(&[], LARGE)));
}

#[test]
fn a_server_that_is_not_there_is_said_so() {
    let case = Case::new();
    // A port that was just free.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let symbols = case.symbolize(&[&format!("http://{address}")], LARGE);
    assert!(!case.is_full(&symbols));
    assert!(
        symbols.missing[0].reason.contains(&format!("debuginfod http://{address}")),
        "{}",
        symbols.missing[0]
    );
}

#[test]
fn a_server_that_does_not_speak_tls_is_said_so() {
    let case = Case::new();
    let server = Server::new(Answer::File(case.debug.clone()));
    let url = server.url.replace("http://", "https://");
    let symbols = case.symbolize(&[&url], LARGE);
    assert!(!case.is_full(&symbols));
    assert!(symbols.missing[0].reason.contains(&format!("debuginfod {url}: ")), "{}", symbols.missing[0]);
    assert_eq!(server.requests(), [""; 0]);
}
