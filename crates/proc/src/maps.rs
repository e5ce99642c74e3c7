//! `/proc/PID/maps` (proc(5)).

use crate::Error;
use std::path::Path;

/// One line of `/proc/PID/maps`: a run of pages with one permission and one backing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// May be read.
    pub readable: bool,
    /// May be written.
    pub writable: bool,
    /// May be executed.
    pub executable: bool,
    /// Shared with other processes (`MAP_SHARED`), so not copied by fork.
    pub shared: bool,
    /// Offset in the file in bytes.
    pub offset: u64,
    /// Device of the file, `major << 32 | minor`; 0 for anonymous memory.
    pub device: u64,
    /// Inode of the file; 0 for anonymous memory.
    pub inode: u64,
    /// Path or the kernel's name (`[heap]`, `[stack]`, `[vdso]`, `[anon:...]`), unescaped; empty for anonymous memory.
    /// A file that was deleted since keeps the kernel's suffix ` (deleted)`.
    pub path: Vec<u8>,
}

/// Reads `/proc/PID/maps` under `root` (normally `/proc`), by address.
///
/// # Errors
/// If the process is gone, may not be looked at, or the content is not understood.
pub fn maps(root: &Path, pid: u32) -> Result<Vec<Mapping>, Error> {
    let path = root.join(pid.to_string()).join("maps");
    let text = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    parse_maps(&text).ok_or(Error::Format { path, item: "a mapping's line" })
}

/// Parses the text of a `maps` file. None if it is not understood.
pub fn parse_maps(text: &[u8]) -> Option<Vec<Mapping>> {
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mapping> {
    let mut rest = line;
    let start = hex(&mut rest)?;
    rest = rest.strip_prefix(b"-")?;
    let end = hex(&mut rest)?;
    rest = rest.strip_prefix(b" ")?;
    let (permissions, tail) = rest.split_first_chunk::<4>()?;
    let [read, write, execute, share] = *permissions;
    rest = tail.strip_prefix(b" ")?;
    let offset = hex(&mut rest)?;
    rest = rest.strip_prefix(b" ")?;
    let major = hex(&mut rest)?;
    rest = rest.strip_prefix(b":")?;
    let minor = hex(&mut rest)?;
    rest = rest.strip_prefix(b" ")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (inode, tail) = rest.split_at_checked(digits)?;
    let inode = crate::stat::number(Some(inode))?;
    let blanks = tail.iter().take_while(|&&byte| byte == b' ').count();
    let path = tail.get(blanks..)?;
    (start <= end).then(|| Mapping {
        start,
        end,
        readable: read == b'r',
        writable: write == b'w',
        executable: execute == b'x',
        shared: share == b's',
        offset,
        device: major << 32 | minor & 0xffff_ffff,
        inode,
        path: unescaped(path),
    })
}

/// Takes a hexadecimal number off the front.
fn hex(text: &mut &[u8]) -> Option<u64> {
    let mut value: u64 = 0;
    let mut length = 0;
    for &byte in text.iter() {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => break,
        };
        if value >> 60 != 0 {
            return None;
        }
        value = value << 4 | u64::from(digit);
        length += 1;
    }
    *text = text.get(length..)?;
    (length > 0).then_some(value)
}

/// The kernel writes a newline in a name as `\012`, and nothing else differently (`seq_file_path`).
fn unescaped(path: &[u8]) -> Vec<u8> {
    if !path.contains(&b'\\') {
        return path.to_vec();
    }
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(b"\\012") {
            plain.push(b'\n');
            rest = tail;
        } else {
            plain.push(first);
            rest = tail;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let text = b"7f00-7f10 r-xs 00001000 fd:1f 1234                       /a b/c (deleted)\n\
            ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n\
            1000-2000 rw-p 00000000 00:00 0 \n";
        let mappings = parse_maps(text).unwrap();
        assert_eq!(
            mappings[0],
            Mapping {
                start: 0x7f00,
                end: 0x7f10,
                readable: true,
                writable: false,
                executable: true,
                shared: true,
                offset: 0x1000,
                device: 0xfd << 32 | 0x1f,
                inode: 1234,
                path: b"/a b/c (deleted)".to_vec(),
            }
        );
        assert_eq!((mappings[1].start, &mappings[1].path[..]), (0xffff_ffff_ff60_0000, &b"[vsyscall]"[..]));
        assert_eq!((mappings[2].writable, mappings[2].path.len()), (true, 0));
    }

    #[test]
    fn a_newline_in_a_name_comes_back() {
        let mappings = parse_maps(b"1000-2000 r--p 00000000 00:01 5 /x\\012y\\z\xff\n").unwrap();
        assert_eq!(mappings[0].path, b"/x\ny\\z\xff");
    }

    #[test]
    fn what_is_not_a_line_is_refused() {
        for text in [
            &b"1000"[..],
            b"1000-2000",
            b"1000-2000 rw-p",
            b"2000-1000 rw-p 0 00:00 0",
            b"11112222333344445-2 rw-p 0 00:00 0",
            b"1000-2000 rw-p 00000000 00:00 x",
            b"1000-2000 rw-p 00000000 00:00 99999999999999999999999",
        ] {
            assert_eq!(parse_maps(text), None, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn own_mappings_hold_own_code_and_data() {
        let mappings = maps(Path::new("/proc"), std::process::id()).unwrap();
        let holds = |address: u64| {
            mappings.iter().find(|mapping| mapping.start <= address && address < mapping.end).unwrap()
        };
        let local = 5;
        assert!(holds(maps as *const () as u64).executable);
        assert!(holds(&raw const local as u64).writable);
        assert!(mappings.is_sorted_by_key(|mapping| mapping.start));
    }
}
