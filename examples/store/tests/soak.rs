//! A short soak: random kills, stops, partitions and slow links, and a check of everything.
//!
//! `VOUSSOIR_SOAK_SECONDS` says how long (default 20). The long form with its own report is
//! `cargo run --release -p store -- soak --minutes 10`.

use std::path::Path;
use std::time::Duration;

use store::demo::soak::soak;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_lose_nothing() {
    let seconds = std::env::var("VOUSSOIR_SOAK_SECONDS").ok();
    let seconds = seconds.map_or(20, |given| given.parse().expect("a number of seconds"));
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_store"));
    soak(program, folder.path(), Duration::from_secs(seconds), 1).await.unwrap();
}
