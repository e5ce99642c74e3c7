//! The demo's service: HTTP/1.1 with a thread per connection, and three leaks made on purpose.
//!
//! | request              | mistake                                                                    |
//! |----------------------|----------------------------------------------------------------------------|
//! | `POST /login/NAME`   | [`lose_session_token`]: the only pointer to the session's token is dropped |
//! | `GET /pages/NUMBER`  | [`remember_rendered_page`]: a cache by request id, so never hit            |
//! | `POST /reports`      | [`hold_report_buffers`]: a worker waits forever, its buffers in hand       |
//!
//! `GET /health` allocates as much and leaks nothing; `POST /quit` ends the service. The functions that leak are never
//! inlined, so that the report names them.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Options of the hidden subcommand `demo-service`.
#[derive(clap::Args)]
pub struct ServiceArgs {
    /// Where to write the number of the port, once it is open
    #[arg(long, value_name = "FILE")]
    pub port_file: PathBuf,
}

/// Should the demo be killed, nobody is left to tell the service to end.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);
const MAX_REQUEST: usize = 64 << 10;
const SESSION_TOKEN_BYTES: usize = 2 << 10;
const PAGE_BYTES: usize = 16 << 10;
const REPORT_BUFFER_BYTES: usize = 256 << 10;

/// Serves on a free port of 127.0.0.1 until `POST /quit`, or until nobody has been connected for half a minute.
///
/// # Errors
/// If no port can be opened or the port file cannot be written.
pub fn serve(args: &ServiceArgs) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on 127.0.0.1")?;
    let port = listener.local_addr()?.port();
    // Renamed into place, so that no reader sees half a number.
    let unfinished = args.port_file.with_extension("new");
    std::fs::write(&unfinished, port.to_string())
        .and_then(|()| std::fs::rename(&unfinished, &args.port_file))
        .with_context(|| format!("cannot write {}", args.port_file.display()))?;
    listener.set_nonblocking(true)?;
    let quit = AtomicBool::new(false);
    let talking = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let mut last_busy = Instant::now();
        while !quit.load(Ordering::Acquire) && last_busy.elapsed() < FORGOTTEN_AFTER {
            if talking.load(Ordering::Acquire) > 0 {
                last_busy = Instant::now();
            }
            let Ok((connection, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            talking.fetch_add(1, Ordering::AcqRel);
            let (quit, talking) = (&quit, &talking);
            scope.spawn(move || {
                // A client that sends nonsense or goes away harms its own connection only.
                if matches!(talk(connection), Ok(Next::Quit)) {
                    quit.store(true, Ordering::Release);
                }
                talking.fetch_sub(1, Ordering::AcqRel);
            });
        }
    });
    Ok(())
}

/// What follows an answer.
enum Next {
    Continue,
    Quit,
}

/// Answers the requests of one connection until it is closed.
fn talk(mut stream: TcpStream) -> Result<Next> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut bytes = Vec::new();
    loop {
        if let Some((method, path, length)) = parse_request(&bytes)? {
            bytes.drain(..length);
            let (status, body, next) = answer(&method, &path);
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(&[head.as_bytes(), &body].concat())?;
            if let Next::Quit = next {
                return Ok(next);
            }
            continue;
        }
        if bytes.len() > MAX_REQUEST {
            bail!("the request is longer than {MAX_REQUEST} bytes");
        }
        let mut chunk = [0; 4096];
        let length = stream.read(&mut chunk)?;
        if length == 0 {
            return Ok(Next::Continue);
        }
        bytes.extend_from_slice(chunk.get(..length).unwrap_or_default());
    }
}

/// Method, path and whole length of the request at the start of `bytes`, once all of it is there.
fn parse_request(bytes: &[u8]) -> Result<Option<(String, String, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(bytes).context("not an HTTP request")? else {
        return Ok(None);
    };
    let length = head.saturating_add(content_length(request.headers)?);
    let method = request.method.context("a request without a method")?.to_owned();
    let path = request.path.context("a request without a path")?.to_owned();
    Ok((bytes.len() >= length).then_some((method, path, length)))
}

/// The value of `Content-Length`, zero where there is none.
pub(super) fn content_length(headers: &[httparse::Header]) -> Result<usize> {
    let Some(header) = headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"))
    else {
        return Ok(0);
    };
    let value = std::str::from_utf8(header.value).context("Content-Length is not text")?;
    value.trim().parse().context("Content-Length is not a number")
}

/// Routes a request: status line, body, and what follows.
#[inline(never)]
fn answer(method: &str, path: &str) -> (&'static str, Vec<u8>, Next) {
    const OK: &str = "200 OK";
    let (_, request) = path.split_once('/').unwrap_or_default();
    let (area, rest) = request.split_once('/').unwrap_or((request, ""));
    match (method, area) {
        ("GET", "pages") => (OK, show_page(rest), Next::Continue),
        ("POST", "login") => (OK, log_in(rest), Next::Continue),
        ("POST", "reports") => (OK, order_report(), Next::Continue),
        ("GET", "health") => (OK, check_health(), Next::Continue),
        ("POST", "quit") => (OK, b"bye\n".to_vec(), Next::Quit),
        _ => ("404 Not Found", b"no such page\n".to_vec(), Next::Continue),
    }
}

// --- first leak: a lost pointer -------------------------------------------------------------------------------------

#[inline(never)]
fn log_in(user: &str) -> Vec<u8> {
    let number = lose_session_token(user);
    format!("welcome {user}, session {number}\n").into_bytes()
}

/// Makes a token, hands out its number, and forgets where the token is.
#[inline(never)]
fn lose_session_token(user: &str) -> u64 {
    static SESSIONS: AtomicU64 = AtomicU64::new(0);
    let mut token = Box::new([0_u8; SESSION_TOKEN_BYTES]);
    for (to, from) in token.iter_mut().zip(user.bytes().cycle()) {
        *to = from;
    }
    // As code does that passes an owner through a foreign interface and never takes it back.
    std::hint::black_box(Box::into_raw(token));
    SESSIONS.fetch_add(1, Ordering::Relaxed)
}

// --- second leak: a cache that only grows ---------------------------------------------------------------------------

#[inline(never)]
fn show_page(number: &str) -> Vec<u8> {
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    let request_id = REQUESTS.fetch_add(1, Ordering::Relaxed);
    remember_rendered_page(request_id, number)
}

/// Caches a page under the number of the request that asked for it, under which nobody will ask again.
#[inline(never)]
fn remember_rendered_page(request_id: u64, number: &str) -> Vec<u8> {
    static PAGES: OnceLock<Mutex<HashMap<u64, Box<[u8]>>>> = OnceLock::new();
    let mut pages = PAGES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    pages.entry(request_id).or_insert_with(|| render_page(number)).to_vec()
}

/// A page of [`PAGE_BYTES`].
#[inline(never)]
fn render_page(number: &str) -> Box<[u8]> {
    let line = format!("<p>This is page {number}.</p>\n");
    let mut page = Vec::with_capacity(PAGE_BYTES);
    page.extend(line.bytes().cycle().take(PAGE_BYTES));
    page.into_boxed_slice()
}

// --- third leak: a forgotten thread's buffers -----------------------------------------------------------------------

#[inline(never)]
fn order_report() -> Vec<u8> {
    let (stop, stopped) = mpsc::channel::<()>();
    // Neither the handle nor the sender is kept where somebody would find it: the worker is never told to stop.
    std::mem::forget(stop);
    let started = std::thread::Builder::new()
        .name("report-worker".to_owned())
        .spawn(move || hold_report_buffers(&stopped))
        .is_ok();
    format!("report ordered: {started}\n").into_bytes()
}

/// A worker that has all it needs and waits.
#[inline(never)]
fn hold_report_buffers(stopped: &mpsc::Receiver<()>) {
    let mut buffer = Vec::with_capacity(REPORT_BUFFER_BYTES);
    buffer.resize(REPORT_BUFFER_BYTES, b' ');
    std::hint::black_box(&mut buffer);
    let _ = stopped.recv();
    drop(buffer);
}

// --- no leak --------------------------------------------------------------------------------------------------------

/// Allocates and frees: what a report must not blame.
#[inline(never)]
fn check_health() -> Vec<u8> {
    let parts: Vec<String> = (0..20).map(|part| format!("part {part} is well\n")).collect();
    parts.concat().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::client::{Connection, drive};
    use super::*;

    fn started() -> (u16, std::thread::JoinHandle<Result<()>>, tempfile::TempDir) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let args = ServiceArgs { port_file: directory.path().join("port") };
        let port_file = args.port_file.clone();
        let service = std::thread::spawn(move || serve(&args));
        while !port_file.exists() {
            assert!(!service.is_finished(), "the service did not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        let port = std::fs::read_to_string(port_file).expect("port file").parse().expect("port number");
        (port, service, directory)
    }

    #[test]
    fn the_service_answers_every_kind_of_request_and_ends_when_told_to() {
        let (port, service, _directory) = started();
        let mut connection = Connection::open(port).expect("connection");
        let page = connection.request("GET", "/pages/7").expect("page");
        assert_eq!(page.len(), PAGE_BYTES);
        assert!(page.starts_with(b"<p>This is page 7.</p>\n"));
        assert!(
            connection.request("POST", "/login/ada").expect("login").starts_with(b"welcome ada, session ")
        );
        assert_eq!(connection.request("POST", "/reports").expect("report"), b"report ordered: true\n");
        assert!(connection.request("GET", "/nowhere").is_err());
        drop(connection);
        drive(port, 3, 2, Duration::ZERO).expect("driven");
        service.join().expect("no panic").expect("clean end");
    }

    #[test]
    fn nonsense_closes_the_connection_and_the_service_goes_on() {
        let (port, service, _directory) = started();
        let mut nonsense = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connection");
        nonsense.write_all(b"\x00\x01 what?\r\n\r\n").expect("sent");
        let mut answer = Vec::new();
        let _ = nonsense.read_to_end(&mut answer);
        assert_eq!(answer, b"");
        drive(port, 1, 1, Duration::ZERO).expect("driven");
        service.join().expect("no panic").expect("clean end");
    }

    #[test]
    fn a_request_is_complete_only_with_its_whole_body() {
        let head = b"POST /login/ada HTTP/1.1\r\nContent-Length: 5\r\n\r\n";
        let whole = [&head[..], b"12345 and more"].concat();
        assert_eq!(parse_request(&whole[..head.len() + 4]).expect("valid"), None);
        let parsed = parse_request(&whole).expect("valid").expect("complete");
        assert_eq!(parsed, ("POST".to_owned(), "/login/ada".to_owned(), head.len() + 5));
        assert!(parse_request(b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n").is_err());
    }
}
