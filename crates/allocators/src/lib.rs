//! The live blocks of a process, from its allocator's own structures.
