//! Byte parsers for /proc.
