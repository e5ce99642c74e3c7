//! The requests that keep the demo's service busy.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Longest answer that is read.
const MAX_RESPONSE: usize = 1 << 20;

/// Sends `rounds` rounds of requests over one connection, then tells the service to end.
///
/// Each round shows a page, logs a user in and asks for the health, and every `rounds_per_report`-th orders a report.
///
/// # Errors
/// If the service cannot be reached or answers anything but 200.
pub fn drive(port: u16, rounds: u32, rounds_per_report: u32, pause: Duration) -> Result<()> {
    let mut connection = Connection::open(port)?;
    for round in 0..rounds {
        connection.request("GET", &format!("/pages/{}", round % 40))?;
        connection.request("POST", &format!("/login/user-{}", round % 25))?;
        connection.request("GET", "/health")?;
        if round.checked_rem(rounds_per_report) == Some(0) {
            connection.request("POST", "/reports")?;
        }
        std::thread::sleep(pause);
    }
    connection.request("POST", "/quit")?;
    Ok(())
}

/// A connection that is kept open from request to request.
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Connects to a service on this machine.
    ///
    /// # Errors
    /// If nothing listens there.
    pub fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("cannot connect to 127.0.0.1:{port}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { stream })
    }

    /// Sends a request and returns the body of the answer.
    ///
    /// # Errors
    /// If the service does not answer, or with another status than 200.
    pub fn request(&mut self, method: &str, path: &str) -> Result<Vec<u8>> {
        let what = || format!("{method} {path}");
        write!(self.stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
            .with_context(what)?;
        let (status, body) = self.response().with_context(what)?;
        if status != 200 {
            bail!("{method} {path} was answered with {status}");
        }
        Ok(body)
    }

    /// Reads one response: its status and its body.
    fn response(&mut self) -> Result<(u16, Vec<u8>)> {
        let mut bytes = Vec::new();
        loop {
            if let Some((status, head, length)) = parse_head(&bytes)?
                && let Some(body) = bytes.get(head..head.saturating_add(length))
            {
                return Ok((status, body.to_vec()));
            }
            if bytes.len() > MAX_RESPONSE {
                bail!("the answer is longer than {MAX_RESPONSE} bytes");
            }
            let mut chunk = [0; 8192];
            let length = self.stream.read(&mut chunk)?;
            if length == 0 {
                bail!("the service closed the connection");
            }
            bytes.extend_from_slice(chunk.get(..length).unwrap_or_default());
        }
    }
}

/// Status, length of the head and length of the body, once the head is complete.
fn parse_head(bytes: &[u8]) -> Result<Option<(u16, usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).context("not an HTTP response")? else {
        return Ok(None);
    };
    let status = response.code.context("a response without a status")?;
    Ok(Some((status, head, super::service::content_length(response.headers)?)))
}
