//! Short runs over what the fuzzers found: each input of `fuzz/corpus`, and variants of each.

use std::path::Path;

use proptest::prelude::*;
use voussoir_journal::testing::decoders;

/// The inputs of one fuzz target; an empty one where the repository's `fuzz` folder is absent.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut inputs: Vec<Vec<u8>> =
        files.filter_map(|file| std::fs::read(file.path()).ok()).collect();
    inputs.push(Vec::new());
    inputs
}

/// Each input as it is, and variants with a few bytes changed and the rest cut off.
fn run(target: &str, entry: fn(&[u8])) {
    let inputs = corpus(target);
    for input in &inputs {
        entry(input);
    }
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    let strategy = (prop::sample::select(inputs), changes, any::<prop::sample::Index>());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) };
    let mut runner = prop::test_runner::TestRunner::new(config);
    let result = runner.run(&strategy, |(mut input, changes, end)| {
        if !input.is_empty() {
            for (at, byte) in changes {
                let at = at.index(input.len());
                input[at] = byte;
            }
        }
        let end = if end.index(4) == 0 { end.index(input.len() + 1) } else { input.len() };
        entry(&input[..end]);
        Ok(())
    });
    result.unwrap();
}

#[test]
fn any_manifest_is_decoded_or_refused() {
    run("journal_manifest", decoders::manifest_slot);
}

#[test]
fn any_frame_is_decoded_or_refused() {
    run("journal_frame", decoders::frame);
}

#[test]
fn any_directory_is_opened_or_refused() {
    run("journal_directory", decoders::directory);
}

/// The largest values in each place where a number may stand, with checksums that hold: nothing
/// overflows, and nothing is allocated for them.
#[test]
fn the_largest_numbers_are_refused_or_bounded() {
    let places = |file: u8| -> Vec<(u8, u32)> {
        let zones: &[(u32, u32)] =
            if file == 0 { &[(0, 128), (65_536, 65_664)] } else { &[(0, 64), (4_096, 4_864)] };
        let steps = zones.iter().flat_map(|(from, to)| (*from..*to).step_by(4));
        steps.map(|at| (file, at)).collect()
    };
    for (file, at) in (0..3).flat_map(places) {
        // All ones; and the same without the highest bit.
        for (length, last) in [(4, 0xff), (8, 0xff), (8, 0x7f)] {
            let change = |nth: u32| {
                let [low, middle, high, _] = (at + nth).to_le_bytes();
                [file, low, middle, high, if nth + 1 == length { last } else { 0xff }]
            };
            let changes: Vec<u8> = (0..length).flat_map(change).collect();
            decoders::directory(&changes);
        }
    }
}
