//! Valgrind as an oracle: programs are built, run under memcheck, and its loss records read from its XML.
#![allow(dead_code, reason = "each test file uses some of it")]

use leakscope_leaks::Kind;
use leakscope_profile::Frame;
use quick_xml::events::Event;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loss record as memcheck reports it.
#[derive(Debug, Default)]
pub struct Loss {
    /// `Leak_DefinitelyLost` and the like.
    pub kind: String,
    /// `33 bytes in 1 blocks are definitely lost in loss record 1 of 1`.
    pub text: String,
    pub bytes: u64,
    pub blocks: u64,
    /// Frames, the allocating function first.
    pub frames: Vec<Frame>,
    /// The suppression that memcheck proposes.
    pub suppression: String,
}

impl Loss {
    pub fn kind(&self) -> Kind {
        match self.kind.as_str() {
            "Leak_DefinitelyLost" => Kind::Definite,
            "Leak_IndirectlyLost" => Kind::Indirect,
            "Leak_PossiblyLost" => Kind::Possible,
            "Leak_StillReachable" => Kind::Reachable,
            other => panic!("memcheck has a new kind: {other}"),
        }
    }

    /// The stack as leakscope records it: from the allocating function's caller on.
    pub fn callers(&self) -> &[Frame] {
        &self.frames[1..]
    }

    pub fn allocator(&self) -> Option<&str> {
        self.frames[0].function.as_deref()
    }

    pub fn innermost(&self) -> &str {
        self.callers()[0].function.as_deref().expect("a name")
    }
}

/// Builds `source` with `compiler` and `options`.
pub fn build(directory: &Path, name: &str, source: &str, compiler: &str, options: &[&str]) -> PathBuf {
    let (file, program) = (directory.join(name), directory.join(format!("{name}.out")));
    std::fs::write(&file, source).expect("the temporary directory can be written");
    let built = Command::new(compiler).args(options).arg("-o").arg(&program).arg(&file).status();
    assert!(built.expect("a compiler").success(), "{name} builds");
    program
}

/// The loss records of all kinds of a run under memcheck.
pub fn memcheck(program: &Path, options: &[&str]) -> Vec<Loss> {
    let xml = program.with_extension("xml");
    let run = Command::new("valgrind")
        .args(["-q", "--leak-check=full", "--show-leak-kinds=all", "--gen-suppressions=all", "--xml=yes"])
        .arg(format!("--xml-file={}", xml.display()))
        .args(options)
        .arg(program)
        .output()
        .expect("valgrind, which these tests compare with, is installed");
    let text = std::fs::read_to_string(&xml)
        .unwrap_or_else(|_| panic!("valgrind wrote no XML: {}", String::from_utf8_lossy(&run.stderr)));
    read(&text)
}

fn read(xml: &str) -> Vec<Loss> {
    let mut reader = quick_xml::Reader::from_str(xml);
    let (mut losses, mut path, mut directory) = (Vec::new(), Vec::new(), String::new());
    loop {
        let event = reader.read_event().expect("XML");
        let text = match event {
            Event::Eof => break,
            Event::Start(tag) => {
                let tag = tag.name().as_ref().to_owned();
                match tag.as_str() {
                    "error" => losses.push(Loss::default()),
                    "frame" => losses.last_mut().expect("an error").frames.push(Frame::default()),
                    _ => {}
                }
                path.push(tag);
                continue;
            }
            Event::End(_) => {
                path.pop();
                continue;
            }
            Event::Text(text) => text.to_string(),
            Event::GeneralRef(name) => match &*name {
                "lt" => "<".to_owned(),
                "gt" => ">".to_owned(),
                "amp" => "&".to_owned(),
                other => panic!("&{other};"),
            },
            Event::CData(text) => text.to_string(),
            _ => continue,
        };
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let Some(loss) = losses.last_mut() else { continue };
        let append = |field: &mut Option<String>| field.get_or_insert_default().push_str(&text);
        match path.as_slice() {
            [_, "error", "kind"] => loss.kind.push_str(&text),
            [_, "error", "xwhat", "text"] => loss.text.push_str(&text),
            [_, "error", "xwhat", "leakedbytes"] => loss.bytes = text.parse().expect("a number"),
            [_, "error", "xwhat", "leakedblocks"] => loss.blocks = text.parse().expect("a number"),
            [_, "error", "suppression", "rawtext"] => loss.suppression.push_str(&text),
            [_, "error", "stack", "frame", field] => {
                let frame = loss.frames.last_mut().expect("a frame");
                match *field {
                    "ip" => frame.address = u64::from_str_radix(&text[2..], 16).expect("an address"),
                    "obj" => append(&mut frame.module),
                    "fn" => append(&mut frame.function),
                    "dir" => directory.clone_from(&text),
                    "file" => frame.file = Some(format!("{directory}/{text}")),
                    "line" => frame.line = text.parse().ok(),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    for loss in &mut losses {
        // An inlined function has the address of the one that it was inlined into.
        let addresses: Vec<u64> = loss.frames.iter().map(|frame| frame.address).collect();
        for (frame, pair) in loss.frames.iter_mut().zip(addresses.windows(2)) {
            frame.inlined = pair[0] == pair[1];
        }
    }
    losses
}
