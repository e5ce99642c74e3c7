//! Which functions belong to the allocator rather than to the program.

/// Whether a demangled function name is the allocator's own, so that a report should start at its caller:
/// C's allocation functions, `operator new`, the standard libraries' allocator adaptors.
pub fn is_allocator_function(name: &str) -> bool {
    const EXACT: &[&str] = &[
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
    const PREFIXES: &[&str] = &[
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
        "core::alloc::",
    ];
    EXACT.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::is_allocator_function;

    #[test]
    fn operator_new_is_the_allocators_and_a_users_function_is_not() {
        assert!(is_allocator_function("operator new(unsigned long)"));
        assert!(is_allocator_function("malloc"));
        assert!(!is_allocator_function("malloc_users_request"));
        assert!(!is_allocator_function("std::vector<int>::push_back(int&&)"));
    }
}
