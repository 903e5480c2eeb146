use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::*;

/// Version of the journal, and the fingerprint of all types that can be in one of that version.
const KNOWN: (u32, &str) = (10, "0a1708170b9775f3");

/// The definitions behind an attribute that `wanted` accepts, without comments and white space.
fn definitions(text: &str, wanted: impl Fn(&str) -> bool, found: &mut BTreeSet<String>) {
    let code: String = text
        .lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .fold(String::new(), |code, line| code + line + " ");
    let mut rest = code.as_str();
    while let Some(start) = rest.find("#[") {
        rest = &rest[start..];
        let attribute = &rest[..rest.find(']').unwrap_or(0)];
        if !wanted(attribute) {
            rest = &rest[2..];
            continue;
        }
        let (mut depth, mut end) = (0_u32, rest.len());
        for (place, byte) in rest.bytes().enumerate() {
            match byte {
                b'{' | b'(' | b'[' => depth += 1,
                b'}' | b')' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            // A body, or the end of a definition without one.
            if depth == 0 && (byte == b'}' || byte == b';') {
                end = place + 1;
                break;
            }
        }
        found.insert(rest[..end].split_ascii_whitespace().collect());
        rest = &rest[end..];
    }
}

fn in_folder(folder: &Path, wanted: &impl Fn(&str) -> bool, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            in_folder(&path, wanted, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            definitions(&fs::read_to_string(&path).unwrap(), wanted, found);
        }
    }
}

#[test]
fn another_layout_has_another_version() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut types = BTreeSet::new();
    let journalled = |attribute: &str| {
        attribute.starts_with("#[derive")
            && ["Serialize", "Deserialize"].iter().all(|word| attribute.contains(word))
            && !attribute.contains("ToSchema")
    };
    in_folder(&source, &journalled, &mut types);
    // Events are in it as the kernel programs wrote them.
    let common = source.join("../../auditor-common/src");
    in_folder(&common, &|attribute: &str| attribute.starts_with("#[repr(C"), &mut types);
    for name in ["enumItem{", "structSession{", "structConversation{", "structStatement{", "structPacket{"] {
        assert!(types.iter().any(|found| found.contains(name)), "{name} is not among {}", types.len());
    }
    let mut digest = Sha256::new();
    types.iter().for_each(|found| digest.update(found));
    let fingerprint = digest.finalize().iter().take(8).fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    });
    assert_eq!(
        (VERSION, fingerprint.as_str()),
        KNOWN,
        "a type that a journal can hold has changed: raise the version in MAGIC, and write both down in KNOWN"
    );
}

#[test]
fn a_definition_is_found_whatever_is_said_about_it() {
    let found = |text: &str| {
        let mut found = BTreeSet::new();
        definitions(text, |attribute| attribute.contains("Serialize"), &mut found);
        found.into_iter().collect::<Vec<_>>()
    };
    let plain = "#[derive(Serialize)]\nstruct A {\n    b: Vec<(u8, [u8; 4])>,\n}\nfn a() {}";
    let said = "#[derive(Serialize)]\n/// It is one.\nstruct A {\n    // }\n    b: Vec<(u8, [u8; 4])>,\n}\n";
    assert_eq!(found(plain), ["#[derive(Serialize)]structA{b:Vec<(u8,[u8;4])>,}"]);
    assert_eq!(found(plain), found(said));
    assert_eq!(
        found("#[derive(Serialize)] struct B(u8);\n#[derive(Debug)] struct C;"),
        ["#[derive(Serialize)]structB(u8);"]
    );
}

/// Who writes down hundreds of megabytes can say in between that it is still there, and what was written is read.
#[test]
fn a_large_state_is_written_piece_by_piece() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity { boot_id: "boot".to_owned(), trail: "trail".to_owned(), rings: (1, 2) };
    let position = Position { rings: (3, 4), sequence: 5 };
    let mut journal = Journal::begin(folder.path(), identity.clone(), 1, Position::default(), &()).unwrap();
    let state: Vec<u32> = (0..4_000_000).collect();
    let mut pieces = 0;
    journal.next(position, &state, &mut || pieces += 1).unwrap();
    let length = fs::metadata(folder.path().join(file_name(2))).unwrap().len();
    assert!(pieces >= length >> 20 && length > 8 << 20, "{pieces} pieces, {length} bytes");
    journal.settle(5).unwrap();
    let found = find::<Vec<u32>>(folder.path(), &identity, 5).unwrap().unwrap();
    let (read, at, generation, _) = found.split();
    assert!(read == state && at == position && generation == 2);
}
