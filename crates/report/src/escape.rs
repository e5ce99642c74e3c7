//! Hostile names made safe. A name stays text: it never moves the cursor, closes a tag or splits a line.

use leakscope_profile::Frame;
use std::borrow::Cow;
use std::fmt::Write;

/// `text` with everything a terminal or an editor might obey written out (`\x1b`, `\u{202e}`), and cut to `limit`
/// characters with an ellipsis in the middle, since both ends of a long C++ or Rust name tell something.
pub(crate) fn printable(text: &str, limit: usize) -> Cow<'_, str> {
    let bounded = elided(text, limit);
    if !bounded.chars().any(is_active) {
        return bounded;
    }
    let mut out = String::with_capacity(bounded.len() + 16);
    for c in bounded.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if !is_active(c) => out.push(c),
            c if u32::from(c) < 0x100 => _ = write!(out, "\\x{:02x}", u32::from(c)),
            c => _ = write!(out, "\\u{{{:x}}}", u32::from(c)),
        }
    }
    Cow::Owned(out)
}

/// `text` cut to `limit` characters with an ellipsis in the middle.
pub(crate) fn elided(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit || text.chars().count() <= limit {
        return Cow::Borrowed(text);
    }
    let head = limit.saturating_sub(1) * 2 / 3;
    let tail = limit.saturating_sub(1) - head;
    let mut out: String = text.chars().take(head).collect();
    out.push('…');
    let last: Vec<char> = text.chars().rev().take(tail).collect();
    out.extend(last.into_iter().rev());
    Cow::Owned(out)
}

/// Characters that do something instead of being seen: controls (C0, DEL, C1), line and paragraph separators,
/// directional marks that reorder what follows, zero-width characters, and those that XML forbids.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{e0000}'..='\u{e007f}')
}

/// What a frame is called: its function, else `module+0xoffset`, else its address.
pub(crate) fn frame_name(frame: &Frame) -> Cow<'_, str> {
    match (&frame.function, &frame.module) {
        (Some(function), _) if !function.is_empty() => Cow::Borrowed(function),
        (_, Some(module)) => {
            let file_name = module.rsplit('/').find(|part| !part.is_empty()).unwrap_or(module);
            Cow::Owned(format!("{}+{:#x}", file_name, frame.address))
        }
        _ => Cow::Owned(format!("{:#x}", frame.address)),
    }
}

/// `file:line`, `file` where the line is not known, or nothing.
pub(crate) fn location(frame: &Frame) -> Option<String> {
    let file = frame.file.as_deref().filter(|file| !file.is_empty())?;
    Some(match frame.line {
        Some(line) => format!("{file}:{line}"),
        None => file.to_owned(),
    })
}

/// An argument vector as one would type it into a shell.
pub(crate) fn command_line(arguments: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "%+,-./:=@_^".contains(c);
    let quote = |argument: &String| {
        if !argument.is_empty() && argument.chars().all(plain) {
            argument.clone()
        } else {
            format!("'{}'", argument.replace('\'', r"'\''"))
        }
    };
    arguments.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_and_direction_marks_are_written_out() {
        assert_eq!(printable("a\x1b[2Jb\r\n\u{9b}m\u{202e}x", 99), "a\\x1b[2Jb\\r\\n\\x9bm\\u{202e}x");
        assert_eq!(printable("naïve<T>::λ", 99), "naïve<T>::λ");
    }

    #[test]
    fn a_long_name_keeps_both_ends_within_the_limit() {
        let name = format!("start{}end", "x".repeat(100_000));
        let short = printable(&name, 40);
        assert_eq!(short.chars().count(), 40);
        assert!(short.starts_with("start") && short.ends_with("end"), "{short}");
        assert_eq!(elided("äöü", 3), "äöü");
    }

    #[test]
    fn a_frame_without_a_name_is_module_and_offset() {
        let mut frame =
            Frame { module: Some("/usr/lib/libz.so.1".to_owned()), address: 0x1234, ..Frame::default() };
        assert_eq!(frame_name(&frame), "libz.so.1+0x1234");
        frame.module = None;
        assert_eq!(frame_name(&frame), "0x1234");
    }

    #[test]
    fn a_command_line_is_quoted_as_a_shell_needs_it() {
        let arguments = ["sh", "-c", "echo 'hi'", ""].map(str::to_owned);
        assert_eq!(command_line(&arguments), r"sh -c 'echo '\''hi'\''' ''");
    }
}
