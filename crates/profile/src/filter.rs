//! Which functions belong to the allocator, to a standard library or to a runtime's start rather than to the program.

use crate::Frame;

/// Names of the allocator's own functions.
const ALLOCATOR_FUNCTIONS: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "free",
    "cfree",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "valloc",
    "pvalloc",
    "mmap",
    "mmap64",
    "mremap",
    "__rust_alloc",
    "__rust_alloc_zeroed",
    "__rust_realloc",
    "__rdl_alloc",
    "__rdl_alloc_zeroed",
    "__rdl_realloc",
    "exchange_malloc",
];
/// How longer names of the allocator begin.
const ALLOCATOR_PREFIXES: &[&str] = &[
    "operator new",
    "std::allocator<",
    "std::__new_allocator<",
    "__gnu_cxx::new_allocator<",
    "std::allocator_traits<",
    "std::__allocate_guarded",
    "alloc::alloc::",
    "<alloc::alloc::Global",
    "__rustc::__rust_",
    "__rustc::__rdl_",
    "std::sys::alloc::",
    "std::alloc::",
    "<std::alloc::System",
    "core::alloc::",
];

/// Whether a demangled function name is the allocator's own, so that a report should start at its caller:
/// C's allocation functions, `operator new`, the standard libraries' allocator adaptors.
pub fn is_allocator_function(name: &str) -> bool {
    ALLOCATOR_FUNCTIONS.contains(&name) || ALLOCATOR_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// A regular expression (RE2 and most others) that matches whole names exactly as [`is_allocator_function`] does, for
/// formats that carry one.
pub fn allocator_function_pattern() -> String {
    let exact = ALLOCATOR_FUNCTIONS.iter().map(|name| escaped(name));
    let prefixes = ALLOCATOR_PREFIXES.iter().map(|prefix| escaped(prefix) + ".*");
    exact.chain(prefixes).collect::<Vec<_>>().join("|")
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Whether a function is a well-known program's or library's own wrapper around the allocator, so that the line to
/// blame is further out. Unlike the allocator's functions they stay in the stack.
pub fn is_allocation_wrapper(name: &str) -> bool {
    const EXACT: &[&str] = &[
        "xmalloc",
        "xcalloc",
        "xrealloc",
        "xzalloc",
        "xstrdup",
        "xstrndup",
        "xmemdup",
        "mallocWithAlarm",
        "CRYPTO_malloc",
        "CRYPTO_zalloc",
        "CRYPTO_realloc",
        "CRYPTO_strdup",
        "ngx_alloc",
        "ngx_calloc",
        "ngx_memalign",
        "ngx_palloc",
        "ngx_palloc_large",
        "ngx_pnalloc",
        "ngx_pcalloc",
        "apr_palloc",
        "apr_pcalloc",
    ];
    const PREFIXES: &[&str] = &[
        "g_malloc",
        "g_realloc",
        "g_try_malloc",
        "g_strdup",
        "g_slice_alloc",
        "zmalloc",
        "zcalloc",
        "zrealloc",
        "ztrymalloc",
        "ztrycalloc",
        "ztryrealloc",
        "sqlite3Malloc",
        "sqlite3MemMalloc",
        "sqlite3Realloc",
        "sqlite3DbMalloc",
        "PyMem_",
        "_PyMem_",
        "PyObject_Malloc",
        "PyObject_Calloc",
        "PyObject_Realloc",
        "_PyObject_Malloc",
        "_PyObject_Calloc",
        "_PyObject_Realloc",
        "Perl_safesys",
    ];
    EXACT.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a frame lies in a standard library, so that the line to blame is further out: the C, C++ and Rust
/// libraries' own functions, also those inlined or instantiated into the program.
pub fn is_library_frame(frame: &Frame) -> bool {
    const FUNCTIONS: &[&str] = &[
        "std::",
        "__gnu_cxx::",
        "core::",
        "alloc::",
        "hashbrown::",
        "<std::",
        "<core::",
        "<alloc::",
        "<hashbrown::",
        "__rustc::",
    ];
    const DIRECTORIES: &[&str] = &["/usr/include/c++/", "/rustc/", "/rust/deps/", "/lib/rustlib/src/rust/"];
    const MODULES: &[&str] =
        &["libc.so.", "libc-2.", "libstdc++.so.", "libc++.so.", "libc++abi.so.", "libgcc_s.so.", "ld-linux"];
    let function = frame.function.as_deref().unwrap_or("");
    let file = frame.file.as_deref().unwrap_or("");
    let module = file_name(frame.module.as_deref().unwrap_or(""));
    is_allocator_function(function)
        || FUNCTIONS.iter().any(|prefix| return_type_stripped(function).starts_with(prefix))
        || DIRECTORIES.iter().any(|directory| file.contains(directory))
        || MODULES.iter().any(|prefix| module.starts_with(prefix))
}

/// Whether a frame is how a C, C++ or Rust runtime gets to `main` or to a thread's function. True of frames at the
/// outer end of nearly every stack, where they tell a reader nothing. `inner` is the next inner frame, by which the C
/// `main` that a Rust program has is told from a program's own, and the `_start` of a stripped program.
pub fn is_start_frame(frame: &Frame, inner: Option<&Frame>) -> bool {
    const EXACT: &[&str] = &[
        "_start",
        "__libc_start_main",
        "__libc_start_main_impl",
        "__libc_start_call_main",
        "start_thread",
        "clone",
        "clone3",
        "__clone",
        "__clone3",
        "execute_native_thread_routine",
        "__rust_try",
    ];
    const PREFIXES: &[&str] = &[
        "__libc_start_main@",
        "std::rt::lang_start",
        "std::rt::init",
        "std::panicking::",
        "std::panic::",
        "std::sys::backtrace::__rust_begin_short_backtrace",
        "std::sys_common::backtrace::__rust_begin_short_backtrace",
        "std::sys::thread::",
        "std::sys::pal::unix::thread::",
        "std::sys::unix::thread::",
        "std::thread::",
        "<std::thread::",
        "core::ops::function::",
        "<&dyn core::ops::function::Fn",
        "<core::panic::unwind_safe::AssertUnwindSafe",
        "<alloc::boxed::Box<",
        "std::__invoke",
    ];
    let inner = inner.and_then(|frame| frame.function.as_deref());
    let Some(function) = frame.function.as_deref() else {
        // Stripped of its symbol table, the C library's start code has no names.
        let module = file_name(frame.module.as_deref().unwrap_or(""));
        return module.starts_with("libc.so.")
            || module.starts_with("ld-linux")
            || inner.is_some_and(|function| function.starts_with("__libc_start_main"));
    };
    if function == "main" {
        return inner.is_some_and(|function| function.starts_with("std::rt::lang_start"));
    }
    let function = return_type_stripped(function);
    EXACT.contains(&function) || PREFIXES.iter().any(|prefix| function.starts_with(prefix))
}

/// A demangled C++ function template starts with its return type: `void std::f<int>(int)`.
fn return_type_stripped(function: &str) -> &str {
    let end = function.find(['(', '<']).unwrap_or(function.len());
    let start = function.get(..end).and_then(|name| name.rfind(' ')).map_or(0, |space| space + 1);
    let name = function.get(start..).unwrap_or(function);
    // `operator new(...)` and a Rust `<T as Trait>` have spaces of their own.
    if function.starts_with('<') || function.starts_with("operator ") { function } else { name }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operator_new_is_the_allocators_and_a_users_function_is_not() {
        assert!(is_allocator_function("operator new(unsigned long)"));
        assert!(is_allocator_function("malloc"));
        assert!(!is_allocator_function("malloc_users_request"));
        assert!(!is_allocator_function("std::vector<int>::push_back(int&&)"));
    }

    #[test]
    fn the_pattern_holds_every_name_with_its_metacharacters_escaped() {
        let pattern = allocator_function_pattern();
        assert!(pattern.starts_with("malloc|calloc|"), "{pattern}");
        assert!(pattern.contains("|operator new.*|std::allocator<.*|"), "{pattern}");
        assert_eq!(escaped("a.b(c)*"), r"a\.b\(c\)\*");
    }

    fn frame(function: &str, file: &str, module: &str) -> Frame {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Frame { function: some(function), file: some(file), module: some(module), ..Frame::default() }
    }

    #[test]
    fn a_standard_librarys_frame_is_told_from_the_programs() {
        for (function, file, module) in [
            ("std::vector<int>::push_back(int&&)", "", "/srv/app"),
            ("void std::vector<int>::_M_realloc_insert<int>(int&&)", "", "/srv/app"),
            ("alloc::raw_vec::RawVec<u8>::reserve", "", "/srv/app"),
            ("<alloc::vec::Vec<u8> as core::clone::Clone>::clone", "", "/srv/app"),
            ("strdup", "", "/lib/x86_64-linux-gnu/libc.so.6"),
            ("grow", "/usr/include/c++/12/bits/vector.tcc", "/srv/app"),
            ("", "", "/lib/x86_64-linux-gnu/libstdc++.so.6"),
        ] {
            assert!(is_library_frame(&frame(function, file, module)), "{function}");
        }
        for function in
            ["stdio_init", "mystd::f()", "alloc_cache", "core_loop", "int parse<std::string>(int)", ""]
        {
            assert!(!is_library_frame(&frame(function, "src/a.c", "/srv/app")), "{function}");
        }
    }

    #[test]
    fn well_known_wrappers_are_told_from_their_callers() {
        for name in ["xmalloc", "zmalloc_usable", "g_malloc0", "_PyMem_RawMalloc", "Perl_safesysmalloc"] {
            assert!(is_allocation_wrapper(name), "{name}");
        }
        for name in ["cache_insert", "leak_malloc", "alloc", "PyDict_New", "malloc_stats_print"] {
            assert!(!is_allocation_wrapper(name), "{name}");
        }
    }

    #[test]
    fn start_code_is_told_from_main() {
        let rust = frame("std::rt::lang_start::<()>", "", "");
        let user = frame("app::main", "", "");
        assert!(is_start_frame(&frame("_start", "", ""), None));
        assert!(is_start_frame(&frame("", "", "/usr/lib/libc.so.6"), None));
        assert!(is_start_frame(&rust, Some(&user)));
        assert!(is_start_frame(&frame("main", "", ""), Some(&rust)));
        assert!(!is_start_frame(&frame("main", "", ""), Some(&user)));
        assert!(!is_start_frame(&user, None));
        assert!(!is_start_frame(&frame("", "", "/srv/app"), None));
        let start = frame("__libc_start_main_impl", "", "/usr/lib/libc.so.6");
        assert!(is_start_frame(&frame("", "", "/srv/app"), Some(&start)));
        assert!(!is_start_frame(&frame("", "", "/srv/app"), Some(&user)));
    }
}
