//! Short runs over what the fuzzers found.

use std::path::Path;

use proptest::prelude::*;

/// Runs `entry` on each input of `fuzz/corpus/TARGET` as it is, and on `variants` of them with a
/// few bytes changed and the rest cut off. Where the repository's `fuzz` folder is absent, the
/// only input is the empty one.
///
/// # Panics
/// As `entry` does.
pub fn run(target: &str, variants: u32, entry: fn(&[u8])) {
    let inputs = inputs(target);
    for input in &inputs {
        entry(input);
    }
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    let strategy = (prop::sample::select(inputs), changes, any::<prop::sample::Index>());
    let config =
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(variants) };
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
    if let Err(error) = result {
        panic!("{target}: {error}");
    }
}

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut inputs: Vec<Vec<u8>> =
        files.filter_map(|file| std::fs::read(file.path()).ok()).collect();
    inputs.push(Vec::new());
    inputs
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_is_found() {
        assert!(super::inputs("net_frames").len() > 1);
        assert_eq!(super::inputs("no such target"), [Vec::new()]);
    }

    #[test]
    #[should_panic(expected = "net_frames")]
    fn a_variant_that_panics_fails_the_run() {
        super::run("net_frames", 20, |input| {
            assert!(super::inputs("net_frames").iter().any(|one| one == input));
        });
    }
}
