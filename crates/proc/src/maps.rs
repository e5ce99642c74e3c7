//! `/proc/PID/maps` (proc(5)).

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
    pub path: Vec<u8>,
}
