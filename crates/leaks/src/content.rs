//! What kind of data a block holds, told without showing it; and, if asked for, shown.

use std::fmt::{self, Write};

/// How much of a block is looked at, in bytes.
const LOOKED_AT: usize = 64 << 10;

/// The kind of data in a block. Says nothing of the data itself, which can be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentHint {
    /// There are no bytes.
    Empty,
    /// Every byte is zero.
    Zeroes,
    /// Text in ASCII or UTF-8, perhaps up to a zero byte.
    Text,
    /// Text in UTF-16, least significant byte first.
    Utf16,
    /// Every word that is not zero points into the process's memory.
    Pointers,
    /// More than half of the words that are not zero do.
    MostlyPointers,
    /// Integers of moderate size.
    Integers,
    /// Floating-point numbers of moderate size.
    Doubles,
    /// Nearly every byte value is as likely: compressed, encrypted or random.
    HighEntropy,
    /// Nothing of the above.
    Mixed,
}

impl ContentHint {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            ContentHint::Empty => "empty",
            ContentHint::Zeroes => "zeroes",
            ContentHint::Text => "text",
            ContentHint::Utf16 => "utf16",
            ContentHint::Pointers => "pointers",
            ContentHint::MostlyPointers => "mostly_pointers",
            ContentHint::Integers => "integers",
            ContentHint::Doubles => "doubles",
            ContentHint::HighEntropy => "high_entropy",
            ContentHint::Mixed => "mixed",
        }
    }
}

/// For people: `mostly pointers`.
impl fmt::Display for ContentHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ContentHint::Empty => "nothing",
            ContentHint::Zeroes => "zeroes",
            ContentHint::Text => "text",
            ContentHint::Utf16 => "UTF-16 text",
            ContentHint::Pointers => "pointers",
            ContentHint::MostlyPointers => "mostly pointers",
            ContentHint::Integers => "integers",
            ContentHint::Doubles => "floating-point numbers",
            ContentHint::HighEntropy => "high-entropy data (compressed, encrypted or random)",
            ContentHint::Mixed => "mixed data",
        })
    }
}

/// The kind of data in a block. Only the first 64 KiB are looked at. `is_pointer` says whether a word is an address
/// of the process's memory.
pub fn hint(bytes: &[u8], is_pointer: impl Fn(u64) -> bool) -> ContentHint {
    let bytes = bytes.get(..LOOKED_AT).unwrap_or(bytes);
    if bytes.is_empty() {
        return ContentHint::Empty;
    }
    if bytes.iter().all(|&byte| byte == 0) {
        return ContentHint::Zeroes;
    }
    let words: Vec<u64> =
        bytes.chunks_exact(8).filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?))).collect();
    let set = words.iter().filter(|&&word| word != 0).count();
    let pointers = words.iter().filter(|&&word| word != 0 && is_pointer(word)).count();
    if set > 0 && pointers == set {
        return ContentHint::Pointers;
    }
    if pointers * 2 > set {
        return ContentHint::MostlyPointers;
    }
    if is_text(bytes) {
        return ContentHint::Text;
    }
    if is_utf16(bytes) {
        return ContentHint::Utf16;
    }
    if set > 0 && is_most(words.iter().filter(|&&word| is_moderate_double(word)).count(), set) {
        return ContentHint::Doubles;
    }
    if is_integers(bytes) {
        return ContentHint::Integers;
    }
    if is_random(bytes) { ContentHint::HighEntropy } else { ContentHint::Mixed }
}

/// At least nine in ten.
fn is_most(part: usize, whole: usize) -> bool {
    part.saturating_mul(10) >= whole.saturating_mul(9)
}

fn is_text_char(c: char) -> bool {
    !c.is_control() || matches!(c, '\t' | '\n' | '\r' | '\x1b')
}

/// A C string, with whatever after it if it is most of the block; or a buffer that is nearly all printable.
fn is_text(bytes: &[u8]) -> bool {
    const SHORTEST: usize = 3;
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let head = bytes.get(..end).unwrap_or_default();
    let rest_is_zero = bytes.get(end..).unwrap_or_default().iter().all(|&byte| byte == 0);
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The first 64 KiB of a long text can end in the middle of a character.
        Err(error) if error.error_len().is_none() => {
            head.get(..error.valid_up_to()).and_then(|head| std::str::from_utf8(head).ok()).unwrap_or("")
        }
        Err(_) => "",
    };
    if valid.len() >= SHORTEST
        && valid.chars().all(is_text_char)
        && (rest_is_zero || head.len() * 2 > bytes.len())
    {
        return true;
    }
    let set = bytes.iter().filter(|&&byte| byte != 0).count();
    let printable = bytes.iter().filter(|&&byte| matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r')).count();
    set * 2 > bytes.len() && set >= SHORTEST && is_most(printable, set)
}

/// Units up to the first zero are characters, nearly all of one script (one upper byte): four random units would do
/// for characters of some script.
fn is_utf16(bytes: &[u8]) -> bool {
    const SHORTEST: usize = 3;
    let units: Vec<u16> =
        bytes.chunks_exact(2).filter_map(|unit| Some(u16::from_le_bytes(unit.try_into().ok()?))).collect();
    let end = units.iter().position(|&unit| unit == 0).unwrap_or(units.len());
    let (head, rest) = units.split_at(end);
    if head.len() < SHORTEST || (head.len() * 2 <= units.len() && rest.iter().any(|&unit| unit != 0)) {
        return false;
    }
    let first = head.iter().map(|unit| unit >> 8).find(|&upper| upper != 0).unwrap_or(0);
    let one_script = head.iter().filter(|&&unit| unit >> 8 == first || (unit >> 8 == 0)).count();
    let text = head.iter().filter(|&&unit| char::from_u32(u32::from(unit)).is_some_and(is_text_char)).count();
    // Above U+06FF a run of equal upper bytes is likelier a table of numbers.
    first <= 6 && is_most(one_script, head.len()) && text == head.len()
}

/// Between 2^-40 and 2^60, or the negative of such. Small integers and pointers have other exponents.
fn is_moderate_double(word: u64) -> bool {
    let exponent = (word >> 52) & 0x7ff;
    (1023 - 40..1023 + 60).contains(&exponent)
}

/// Nearly all 32-bit units are within 2^24 of zero.
fn is_integers(bytes: &[u8]) -> bool {
    let units: Vec<i32> =
        bytes.chunks_exact(4).filter_map(|unit| Some(i32::from_le_bytes(unit.try_into().ok()?))).collect();
    let small = units.iter().filter(|unit| unit.unsigned_abs() < 1 << 24).count();
    !units.is_empty() && is_most(small, units.len())
}

/// Whether the bytes' Shannon entropy is close to the most that so many bytes can have.
fn is_random(bytes: &[u8]) -> bool {
    const FEWEST: usize = 64;
    if bytes.len() < FEWEST {
        return false;
    }
    let mut counts = [0u32; 256];
    for &byte in bytes {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
    }
    let total = bytes.len() as f64;
    let entropy: f64 = counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| {
            let p = f64::from(count) / total;
            -p * p.log2()
        })
        .sum();
    entropy >= 0.9 * total.log2().min(8.0)
}

/// The first `limit` bytes in lines of sixteen: offset, hexadecimal, and ASCII with a dot for everything else, so that
/// nothing in it acts on a terminal. A last line says what is left out.
pub fn dump(bytes: &[u8], limit: usize) -> String {
    const PER_LINE: usize = 16;
    let shown = bytes.get(..limit).unwrap_or(bytes);
    let mut out = String::with_capacity(shown.len() * 5);
    for (line, chunk) in shown.chunks(PER_LINE).enumerate() {
        _ = write!(out, "{:06x} ", line * PER_LINE);
        for index in 0..PER_LINE {
            out.push_str(if index == PER_LINE / 2 { "  " } else { " " });
            _ = match chunk.get(index) {
                Some(byte) => write!(out, "{byte:02x}"),
                None => out.write_str("  "),
            };
        }
        out.push_str("  |");
        out.extend(chunk.iter().map(|&byte| match byte {
            b' '..=b'~' => char::from(byte),
            _ => '.',
        }));
        out.push_str("|\n");
    }
    if let left @ 1.. = bytes.len() - shown.len() {
        _ = writeln!(out, "… and {left} more byte{}", if left == 1 { "" } else { "s" });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAP: std::ops::Range<u64> = 0x5555_0000_0000..0x5555_0010_0000;

    fn of(bytes: &[u8]) -> ContentHint {
        hint(bytes, |word| HEAP.contains(&word))
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Bytes of xorshift64*, a generator that compresses to nothing smaller.
    fn random(length: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let next = std::iter::repeat_with(move || {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d)
        });
        next.flat_map(u64::to_le_bytes).take(length).collect()
    }

    #[test]
    fn each_kind_of_data_is_told_from_the_others() {
        let utf16: Vec<u8> = "Grüße aus Köln".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let doubles: Vec<u8> = (1..40).flat_map(|n| (f64::from(n) * -0.37).to_le_bytes()).collect();
        let integers: Vec<u8> = (0..50i32).flat_map(|n| (n * 977 - 9).to_le_bytes()).collect();
        let mut string = b"GET /index.html HTTP/1.1\r\n".to_vec();
        string.resize(40, 0);
        let pointers = words(&[0, HEAP.start, HEAP.start + 64, 0]);
        let node = words(&[HEAP.start, HEAP.start + 64, 3]);
        for (bytes, expected) in [
            (&b""[..], ContentHint::Empty),
            (&[0; 100], ContentHint::Zeroes),
            (&string, ContentHint::Text),
            ("Žluťoučký kůň".as_bytes(), ContentHint::Text),
            (&utf16, ContentHint::Utf16),
            (&pointers, ContentHint::Pointers),
            (&node, ContentHint::MostlyPointers),
            (&doubles, ContentHint::Doubles),
            (&integers, ContentHint::Integers),
            (&random(4096), ContentHint::HighEntropy),
            (&random(64), ContentHint::HighEntropy),
            (&random(17), ContentHint::Mixed),
        ] {
            assert_eq!(of(bytes), expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn a_string_is_text_also_with_rubbish_after_its_end_if_it_is_most_of_the_block() {
        let mut bytes = b"session-0123456789-abcdef\0".to_vec();
        bytes.extend(random(14));
        assert_eq!(of(&bytes), ContentHint::Text);
    }

    #[test]
    fn a_dump_is_bounded_and_holds_nothing_that_acts_on_a_terminal() {
        let dumped = dump(b"\x1b[31mred\x07\xe2\x80\xae and more than one line", 20);
        let expected = "\
000000  1b 5b 33 31 6d 72 65 64  07 e2 80 ae 20 61 6e 64  |.[31mred.... and|
000010  20 6d 6f 72                                       | mor|
… and 15 more bytes
";
        assert_eq!(dumped, expected);
        assert_eq!(dump(b"", 10), "");
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_hint_and_a_printable_dump(bytes in prop::collection::vec(any::<u8>(), 0..300), limit in 0usize..400) {
            of(&bytes);
            prop_assert!(dump(&bytes, limit).chars().all(|c| c == '\n' || c == '…' || (' '..='~').contains(&c)));
        }
    }
}
