//! Which memory nobody touches: the kernel forgets which pages were referenced, and after a while tells which were again.

use crate::Error;
use leakscope_target::Mapping;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A measurement that is under way.
///
/// It disturbs the kernel's own reclaim: for a while all pages of the process look as if they were not in use, so under
/// memory pressure it is the first to be swapped.
#[derive(Debug)]
pub struct Staleness {
    directory: PathBuf,
    pid: u32,
    began: Instant,
}

/// What was referenced meanwhile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Referenced {
    /// For how long was looked.
    pub(crate) waited: Duration,
    /// By address.
    pub(crate) mappings: Vec<MappingUse>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MappingUse {
    pub(crate) range: Range<u64>,
    pub(crate) resident: u64,
    pub(crate) referenced: u64,
}

impl Staleness {
    /// Makes the kernel forget which pages of process `pid` were referenced.
    ///
    /// # Errors
    /// If the kernel does not offer it, or does not allow it.
    pub fn begin(pid: u32) -> Result<Staleness, Error> {
        Staleness::begin_under(Path::new("/proc"), pid)
    }

    fn begin_under(root: &Path, pid: u32) -> Result<Staleness, Error> {
        let directory = root.join(pid.to_string());
        let path = directory.join("clear_refs");
        let written =
            std::fs::OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(b"1"));
        match written {
            Ok(()) => Ok(Staleness { directory, pid, began: Instant::now() }),
            Err(source) => Err(Error::Staleness { pid, path, source }),
        }
    }

    /// What was referenced since.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn end(self) -> Result<Referenced, Error> {
        let path = self.directory.join("smaps");
        let failed = |source| Error::Staleness { pid: self.pid, path: path.clone(), source };
        let text = std::fs::read(&path).map_err(failed)?;
        let mappings = parse(&text);
        if mappings.is_empty() {
            return Err(failed(std::io::Error::other("it has no line `Referenced`")));
        }
        Ok(Referenced { waited: self.began.elapsed(), mappings })
    }
}

impl Referenced {
    /// Of the mapping that holds `address`.
    pub(crate) fn at(&self, address: u64) -> Option<&MappingUse> {
        let behind = self.mappings.partition_point(|mapping| mapping.range.start <= address);
        let mapping = behind.checked_sub(1).and_then(|index| self.mappings.get(index))?;
        mapping.range.contains(&address).then_some(mapping)
    }
}

/// The mappings of a `smaps` file that have pages in memory.
fn parse(text: &[u8]) -> Vec<MappingUse> {
    let mut mappings: Vec<MappingUse> = Vec::new();
    let mut current: Option<MappingUse> = None;
    for line in text.split(|&byte| byte == b'\n') {
        if let Some([Mapping { start, end, .. }]) = leakscope_proc::parse_maps(line).as_deref() {
            mappings.extend(current.take().filter(|mapping| mapping.resident > 0));
            current = Some(MappingUse { range: *start..*end, ..MappingUse::default() });
            continue;
        }
        let Some(mapping) = &mut current else { continue };
        if let Some(bytes) = amount(line, b"Rss:") {
            mapping.resident = bytes;
        } else if let Some(bytes) = amount(line, b"Referenced:") {
            mapping.referenced = bytes;
        }
    }
    mappings.extend(current.filter(|mapping| mapping.resident > 0));
    mappings
}

/// `Rss:    12 kB` in bytes.
fn amount(line: &[u8], label: &[u8]) -> Option<u64> {
    let rest = std::str::from_utf8(line.strip_prefix(label)?).ok()?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_and_referenced_memory_is_read_by_mapping() {
        let text = b"55d0a000-55d0c000 rw-p 00000000 00:00 0                          [heap]\n\
            Size:                  8 kB\nRss:                   8 kB\nReferenced:            4 kB\nVmFlags: rd wr\n\
            7f00a000-7f00b000 r--p 00001000 08:01 1234                       /lib/x: Rss\n\
            Rss:                   0 kB\nReferenced:            0 kB\n";
        let heap = MappingUse { range: 0x55d0_a000..0x55d0_c000, resident: 8192, referenced: 4096 };
        assert_eq!(parse(text), std::slice::from_ref(&heap));
        let referenced = Referenced { waited: Duration::ZERO, mappings: parse(text) };
        assert_eq!(referenced.at(0x55d0_bfff), Some(&heap));
        assert_eq!((referenced.at(0x55d0_c000), referenced.at(0)), (None, None));
        assert!(parse(b"\xff\xff\nRss: 99999999999999999999 kB\n\n").is_empty());
    }

    #[test]
    fn a_kernel_that_does_not_offer_it_is_named() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("7")).unwrap();
        let error = Staleness::begin_under(root.path(), 7).unwrap_err().to_string();
        assert!(error.contains("clear_refs") && error.contains("CONFIG_PROC_PAGE_MONITOR"), "{error}");
    }

    #[test]
    fn of_this_process_something_was_referenced() {
        match Staleness::begin(std::process::id()) {
            Ok(staleness) => {
                let referenced = staleness.end().unwrap();
                assert!(referenced.mappings.iter().any(|mapping| mapping.referenced > 0));
            }
            Err(error) => assert!(error.to_string().contains("clear_refs"), "{error}"),
        }
    }
}
