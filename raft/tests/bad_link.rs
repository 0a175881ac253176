//! A snapshot over real sockets and a link that breaks: what `examples/snapshot.rs` measures holds
//! of a small one too, but for the time that writes take.

#[path = "../examples/snapshot.rs"]
#[allow(dead_code, reason = "the example prints more than is judged here")]
mod snapshot;

use std::time::Duration;

use snapshot::{BREAKS, Folder, Trial, run};

#[tokio::test]
async fn a_snapshot_goes_on_where_its_link_broke() {
    let trial = Trial {
        snapshot_bytes: 24 << 20,
        // Slow enough for the breaks to come where they are wanted, on a busy machine too.
        bytes_per_second: Some(16 << 20),
        capacity_for: Duration::from_millis(200),
        down_for: Duration::from_millis(300),
    };
    let folder = Folder::new("bad-link").unwrap();
    let outcome = run(&trial, &folder.0).await.unwrap();
    assert_eq!(outcome.broken(), Vec::<String>::new(), "{outcome:?}");
    assert_eq!((outcome.breaks, outcome.chunks), (BREAKS, 25));
    assert!(!outcome.resent.is_empty(), "the chunks that were cut leave again: {outcome:?}");
}
