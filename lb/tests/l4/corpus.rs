//! Short runs over what the fuzzers found: each input of `fuzz/corpus`, and variants of each.

use std::path::Path;

use proptest::prelude::*;

use crate::decoders;

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
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) };
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
fn any_proxy_header_is_decoded_or_refused() {
    run("lb_proxy_header", decoders::proxy_header);
}

#[test]
fn any_client_hello_is_decoded_or_refused() {
    run("lb_client_hello", decoders::client_hello);
}
