//! Short runs over what the fuzzers found: each input of `fuzz/corpus`, and variants of each.

use test_support::corpus;
use voussoir_journal::testing::decoders;

#[test]
fn any_manifest_is_decoded_or_refused() {
    corpus::run("journal_manifest", 600, decoders::manifest_slot);
}

#[test]
fn any_frame_is_decoded_or_refused() {
    corpus::run("journal_frame", 600, decoders::frame);
}

#[test]
fn any_directory_is_opened_or_refused() {
    corpus::run("journal_directory", 600, decoders::directory);
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
