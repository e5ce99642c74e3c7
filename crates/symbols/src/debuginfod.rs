//! Debug information from debuginfod servers, kept in the cache that debuginfod's own clients use.
//!
//! A server is asked `GET URL/buildid/BUILDID/debuginfo`. The answer lands in `CACHE/BUILDID/debuginfo`; an empty
//! file there records for a while that no server has it, as elfutils' client does.

use crate::elf::{ElfFile, hex};
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What a server must deliver within the timeout, in bytes.
const MIN_PART: u64 = 100 << 10;
/// How long a recorded "no server has it" is believed.
const MISS_LIFETIME: Duration = Duration::from_secs(600);

/// Where debuginfod is asked and how much it may give.
#[derive(Debug, Clone)]
pub struct Debuginfod {
    /// Servers, in the order they are asked; `http` or `https`. None: no network is used.
    pub urls: Vec<String>,
    /// Directory of the cache; none: nothing is fetched.
    pub cache: Option<PathBuf>,
    /// How long a server may take for its answer and the first 100 KiB of a file, and between two parts of it.
    pub timeout: Duration,
    /// Longest time for one file.
    pub max_time: Duration,
    /// Largest file that is fetched, in bytes.
    pub max_size: u64,
}

impl Default for Debuginfod {
    /// No servers, no cache; 90 seconds of patience as elfutils' client has, ten minutes and 2 GiB for a file.
    fn default() -> Self {
        Debuginfod {
            urls: Vec::new(),
            cache: None,
            timeout: Duration::from_secs(90),
            max_time: Duration::from_secs(600),
            max_size: 2 << 30,
        }
    }
}

impl Debuginfod {
    /// What the environment asks for: `DEBUGINFOD_URLS`, `DEBUGINFOD_CACHE_PATH` (else below `XDG_CACHE_HOME` or
    /// `~/.cache`), `DEBUGINFOD_TIMEOUT` and `DEBUGINFOD_MAXTIME` in seconds, `DEBUGINFOD_MAXSIZE` in bytes.
    pub fn from_env() -> Self {
        Debuginfod::from_variables(|name| std::env::var_os(name))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let text = |name: &str| variable(name)?.into_string().ok();
        let number = |name: &str| text(name).and_then(|value| value.parse::<u64>().ok()).filter(|&n| n > 0);
        let defaults = Debuginfod::default();
        let cache = path("DEBUGINFOD_CACHE_PATH").or_else(|| {
            let base = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")))?;
            Some(base.join("debuginfod_client"))
        });
        Debuginfod {
            urls: text("DEBUGINFOD_URLS")
                .map(|urls| urls.split_whitespace().map(str::to_owned).collect())
                .unwrap_or_default(),
            cache,
            timeout: number("DEBUGINFOD_TIMEOUT").map_or(defaults.timeout, Duration::from_secs),
            max_time: number("DEBUGINFOD_MAXTIME").map_or(defaults.max_time, Duration::from_secs),
            max_size: number("DEBUGINFOD_MAXSIZE").unwrap_or(defaults.max_size),
        }
    }
}

/// Fetches debug information; remembers which servers do not answer.
pub(crate) struct Client<'a> {
    options: &'a Debuginfod,
    /// Servers that may still answer.
    servers: Vec<&'a str>,
    agents: Agents,
}

impl<'a> Client<'a> {
    pub(crate) fn new(options: &'a Debuginfod) -> Self {
        let servers = options.urls.iter().map(String::as_str).collect();
        Client { options, servers, agents: Agents::default() }
    }

    /// The file with the debug information of `build_id`, from the cache or a server. `Ok(None)` if nobody was
    /// asked; an error says in a phrase what the servers answered.
    pub(crate) fn find(&mut self, build_id: &[u8]) -> Result<Option<PathBuf>, String> {
        let (Some(cache), false) = (&self.options.cache, build_id.is_empty()) else { return Ok(None) };
        let directory = cache.join(hex(build_id));
        let file = directory.join("debuginfo");
        if ElfFile::read(&file).is_ok_and(|elf| elf.build_id == build_id) {
            return Ok(Some(file));
        }
        if self.options.urls.is_empty() {
            return Ok(None);
        }
        if is_recent_miss(&file) {
            return Err("not known to debuginfod".to_owned());
        }
        if self.servers.is_empty() {
            return Err("debuginfod does not answer".to_owned());
        }
        let mut problems = Vec::new();
        let mut unreachable = Vec::new();
        for server in self.servers.clone() {
            match self.fetch(server, build_id, &directory, &file) {
                Ok(true) => return Ok(Some(file)),
                Ok(false) => {}
                Err(failure) => {
                    // Do not wait for a dead server once per module.
                    if matches!(failure, Failure::Server(_) | Failure::Io(_)) {
                        unreachable.push(server);
                    }
                    problems.push(format!("debuginfod {server}: {failure}"));
                }
            }
        }
        self.servers.retain(|server| !unreachable.contains(server));
        if problems.is_empty() {
            // Only a hint to later runs.
            let _ = create_private_dir(&directory).and_then(|()| fs::write(&file, b""));
        }
        match problems.is_empty() {
            true => Err("not known to debuginfod".to_owned()),
            false => Err(problems.join("; ")),
        }
    }

    /// Whether `server` had the file, which then is at `file`.
    fn fetch(
        &mut self,
        server: &str,
        build_id: &[u8],
        directory: &Path,
        file: &Path,
    ) -> Result<bool, Failure> {
        let url = format!("{}/buildid/{}/debuginfo", server.trim_end_matches('/'), hex(build_id));
        let agent = self.agents.for_url(&url, self.options).map_err(Failure::Server)?;
        let response = agent.get(&url).call().map_err(|error| Failure::Server(error.to_string()))?;
        match response.status().as_u16() {
            200 => {}
            404 => return Ok(false),
            status => return Err(Failure::Server(format!("HTTP status {status}"))),
        }
        let max = self.options.max_size;
        let body = response.into_body();
        if body.content_length().is_some_and(|length| length > max) {
            return Err(Failure::TooLarge(max));
        }
        let mut body = body.into_with_config().limit(u64::MAX).reader().take(max.saturating_add(1));
        create_private_dir(directory)?;
        let mut partial = tempfile::NamedTempFile::new_in(directory)?;
        if copy_in_time(&mut body, &mut partial, self.options.timeout)? > max {
            return Err(Failure::TooLarge(max));
        }
        match ElfFile::read(partial.path()) {
            Ok(elf) if elf.build_id == build_id => {}
            Ok(_) => return Err(Failure::BadFile("has another build id".to_owned())),
            Err(error) => return Err(Failure::BadFile(format!("is useless ({error})"))),
        }
        // Readers see the whole file or none.
        partial.persist(file).map_err(|error| error.error)?;
        Ok(true)
    }
}

/// Why a server gave nothing although it may have the file.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// It cannot be reached or does not work.
    #[error("{0}")]
    Server(String),
    /// The transfer broke off, or the file could not be stored.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Larger than this many bytes.
    #[error("the file is larger than {0} bytes")]
    TooLarge(u64),
    /// What came is not what was asked for.
    #[error("the file it sent {0}")]
    BadFile(String),
}

/// Copies all, unless the first part does not come in time.
fn copy_in_time(from: &mut impl io::Read, to: &mut impl io::Write, timeout: Duration) -> io::Result<u64> {
    let start = Instant::now();
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        let count = from.read(&mut buffer)?;
        to.write_all(buffer.get(..count).unwrap_or_default())?;
        total += count as u64;
        if count == 0 {
            return Ok(total);
        }
        if total < MIN_PART && start.elapsed() > timeout {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "too slow"));
        }
    }
}

fn is_recent_miss(file: &Path) -> bool {
    let Ok(metadata) = fs::metadata(file) else { return false };
    let age = metadata.modified().ok().and_then(|time| time.elapsed().ok());
    metadata.is_file() && metadata.len() == 0 && age.is_some_and(|age| age < MISS_LIFETIME)
}

fn create_private_dir(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// HTTP agents, made when first needed: reading the system's certificates takes time.
#[derive(Default)]
struct Agents {
    plain: Option<ureq::Agent>,
    secure: Option<ureq::Agent>,
}

impl Agents {
    fn for_url(&mut self, url: &str, options: &Debuginfod) -> Result<ureq::Agent, String> {
        if url.starts_with("https://") {
            if self.secure.is_none() {
                self.secure = Some(agent(options, Some(tls_config()?)));
            }
            return self.secure.clone().ok_or_else(|| "no TLS".to_owned());
        }
        if !url.starts_with("http://") {
            return Err("only http and https addresses are supported".to_owned());
        }
        Ok(self.plain.get_or_insert_with(|| agent(options, None)).clone())
    }
}

fn agent(options: &Debuginfod, tls: Option<ureq::tls::TlsConfig>) -> ureq::Agent {
    let mut config = ureq::Agent::config_builder()
        .timeout_connect(Some(CONNECT_TIMEOUT.min(options.timeout)))
        .timeout_recv_response(Some(options.timeout))
        .timeout_per_read(Some(options.timeout))
        .timeout_global(Some(options.max_time))
        .http_status_as_error(false)
        .user_agent(concat!("leakscope/", env!("CARGO_PKG_VERSION")));
    if let Some(tls) = tls {
        config = config.tls_config(tls);
    }
    config.build().new_agent()
}

/// TLS that trusts the certificates that this machine trusts, a company's own among them.
fn tls_config() -> Result<ureq::tls::TlsConfig, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err("no certificate authorities found on this machine (install ca-certificates)".to_owned());
    }
    let certificates: Vec<_> =
        found.certs.iter().map(|der| ureq::tls::Certificate::from_der(der.as_ref()).to_owned()).collect();
    Ok(ureq::tls::TlsConfig::builder()
        .provider(ureq::tls::TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(ureq::tls::RootCerts::Specific(Arc::new(certificates)))
        .build())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Debuginfod {
        Debuginfod::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_environment_names_servers_cache_and_limits() {
        let asked = from(&[
            ("DEBUGINFOD_URLS", "  https://a.example/x http://b.example "),
            ("DEBUGINFOD_TIMEOUT", "7"),
            ("DEBUGINFOD_MAXTIME", "70"),
            ("DEBUGINFOD_MAXSIZE", "1000"),
            ("XDG_CACHE_HOME", "/cache"),
            ("HOME", "/home/me"),
        ]);
        assert_eq!(asked.urls, ["https://a.example/x", "http://b.example"]);
        assert_eq!(asked.cache.as_deref(), Some(Path::new("/cache/debuginfod_client")));
        assert_eq!((asked.timeout, asked.max_time), (Duration::from_secs(7), Duration::from_secs(70)));
        assert_eq!(asked.max_size, 1000);
    }

    #[test]
    fn without_variables_no_server_is_asked_and_nonsense_means_the_default() {
        assert!(from(&[]).urls.is_empty() && from(&[]).cache.is_none());
        let home = from(&[("HOME", "/home/me"), ("XDG_CACHE_HOME", ""), ("DEBUGINFOD_MAXSIZE", "lots")]);
        assert_eq!(home.cache.as_deref(), Some(Path::new("/home/me/.cache/debuginfod_client")));
        assert_eq!(home.max_size, Debuginfod::default().max_size);
    }

    #[test]
    fn a_server_that_drips_is_given_up() {
        struct Drip;
        impl io::Read for Drip {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                Ok(buffer.first_mut().map_or(0, |byte| (*byte = 1, 1).1))
            }
        }
        let error = copy_in_time(&mut Drip, &mut io::sink(), Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
