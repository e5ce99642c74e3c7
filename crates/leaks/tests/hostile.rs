//! Suppression files and names that nobody sane would write.

use leakscope_leaks::*;
use leakscope_profile::Frame;
use proptest::prelude::*;
use std::path::Path;

/// Lines that are nearly right, so that the parsers get far.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("{".to_owned()),
        Just("}".to_owned()),
        Just("Memcheck:Leak".to_owned()),
        Just("match-leak-kinds: definite,possible".to_owned()),
        Just("...".to_owned()),
        "fun:[_ZNCsBE0-9a-z*?@(<>]{0,30}",
        "(obj|src|fun|leak|race):.{0,20}",
        ".{0,20}",
    ]
}

proptest! {
    #[test]
    fn no_file_makes_the_parsers_panic_or_the_matcher_hang(lines in prop::collection::vec(line(), 0..60), name in ".{0,40}") {
        let mut suppressions = Suppressions::none();
        let text = lines.join("\n");
        // Whether it is an error does not matter; a wrong one must not leave half of itself.
        if suppressions.add_text(Path::new("x"), &text).is_err() {
            prop_assert!(suppressions.is_empty());
        }
        let frames = [Frame { function: Some(name.clone()), inlined: true, ..Frame::default() }, Frame::default()];
        let subject = Subject { kind: Kind::Definite, frames: &frames, mangled: &[], allocator: Some(&name) };
        suppressions.find(&subject);
    }

    #[test]
    fn right_files_are_read_as_they_were_meant(
        names in prop::collection::vec("[a-z]{1,9}", 1..20),
        frames in prop::collection::vec("(fun|obj):[a-z*]{1,9}", 1..20),
    ) {
        let text: String = names.iter().map(|name| format!("{{\n{name}\nMemcheck:Leak\n{}\n}}\n", frames.join("\n"))).collect();
        let mut suppressions = Suppressions::none();
        prop_assert!(suppressions.add_text(Path::new("x"), &text).is_ok());
        let read: Vec<_> = (0..suppressions.len()).filter_map(|index| suppressions.name(index)).collect();
        prop_assert_eq!(read, names);
    }

    #[test]
    fn a_generated_suppression_is_read_back_and_matches_whatever_the_names_are(
        names in prop::collection::vec(prop_oneof!["[a-z:<>(), ~]{1,20}", ".{0,20}"], 1..20),
        inlined in any::<u32>(),
    ) {
        let frames: Vec<Frame> = (0..)
            .zip(&names)
            .map(|(index, name)| Frame {
                function: Some(name.clone()),
                module: Some("/srv/app".to_owned()),
                inlined: inlined >> index & 1 == 1,
                ..Frame::default()
            })
            .collect();
        let stacks = [Stack { frames, ..Stack::default() }];
        let block = FoundBlock {
            address: 1, size: 2, kind: Kind::Definite, indirect_bytes: 0, indirect_blocks: 0, stack: Some(0),
            signature: None, age: None,
        };
        let merged = merge([block], &Names { stacks: &stacks, types: &[] }, &Suppressions::none());
        let text = generate(&merged.records[0]).expect("it has a stack");
        let mut suppressions = Suppressions::none();
        suppressions.add_text(Path::new("generated"), &text).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(suppressions.len(), 1);
        let again = merge([block], &Names { stacks: &stacks, types: &[] }, &suppressions);
        prop_assert_eq!(again.summary.suppressed.blocks, 1, "{}", text);
    }
}

#[test]
fn a_file_that_is_not_there_and_one_that_is_too_large_are_errors() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("large.supp");
    let error = Suppressions::none().add_file(&path).expect_err("nothing there").to_string();
    assert!(
        error.starts_with("cannot read the suppression file ") && error.contains("large.supp"),
        "{error}"
    );
    let file = std::fs::File::create(&path).expect("it can be written");
    file.set_len(1 << 40).expect("a sparse file");
    let error = Suppressions::none().add_file(&path).expect_err("a terabyte").to_string();
    assert!(error.ends_with("is larger than 16777216 bytes"), "{error}");
}
