//! `TUTORIAL.md` shows the whole program of `examples/tutorial`, and nothing else: each source file
//! is what the blocks with its name make together. The program and its tests are built and run as
//! the example `tutorial`.

use std::collections::BTreeMap;

const TUTORIAL: &str = include_str!("../TUTORIAL.md");
const FENCE: &str = "```rust title=\"src/";

/// The lines that are not empty: blank lines between two blocks are in neither of them.
fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.trim().is_empty()).collect()
}

/// What the blocks of each file make together, by the file's name.
fn blocks() -> BTreeMap<&'static str, String> {
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    let mut rest = TUTORIAL;
    while let Some(at) = rest.find(FENCE) {
        rest = &rest[at + FENCE.len()..];
        let (name, after) = rest.split_once("\"\n").expect("a fence names its file");
        let (block, after) = after.split_once("\n```\n").expect("a block ends");
        let file = files.entry(name).or_default();
        file.push_str(block);
        file.push('\n');
        rest = after;
    }
    files
}

#[test]
fn the_blocks_of_the_tutorial_are_the_program_that_is_tested() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tutorial");
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        files.insert(name, std::fs::read_to_string(&path).unwrap());
    }
    let blocks = blocks();
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(blocks.keys().copied().collect::<Vec<_>>(), names);
    for (name, source) in &files {
        let (shown, wanted) = (lines(&blocks[name.as_str()]), lines(source));
        for (at, (shown, wanted)) in shown.iter().zip(&wanted).enumerate() {
            assert_eq!(shown, wanted, "{name}: line {at} that is not empty");
        }
        assert_eq!(shown.len(), wanted.len(), "{name}: the blocks end too early or too late");
    }
}

#[test]
fn every_block_of_code_names_its_file() {
    let fences = TUTORIAL.lines().filter(|line| line.starts_with("```"));
    // Every second fence ends a block.
    for fence in fences.step_by(2) {
        let is_known = fence.starts_with(FENCE) || ["```text", "```toml"].contains(&fence);
        assert!(is_known, "{fence}: no test compiles this block");
    }
}
