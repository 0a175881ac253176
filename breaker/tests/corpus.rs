//! Short runs over what the fuzzers found: each input of `fuzz/corpus`, and variants of each.

use test_support::corpus;
use voussoir_breaker::testing::use_snapshot;

#[test]
fn any_snapshot_is_restored_or_refused() {
    corpus::run("breaker_snapshot", 3000, |json| {
        if let Ok(snapshot) = serde_json::from_slice(json) {
            use_snapshot(&snapshot);
        }
    });
}
