//! Lives of a journal that loses its power, on the journal's crash-simulating files.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use voussoir_journal::{Config, Files, Journal};

pub(crate) const LOSSES_A_LIFE: u64 = 10;

pub(crate) fn journal(files: Arc<dyn Files>) -> Journal {
    let mut config = Config::manual();
    config.segment_bytes = 64 << 10;
    config.max_bytes = 64 * config.segment_bytes;
    config.identity = Some(7);
    Journal::open_with(files, config).expect("the journal opens")
}

/// Runs `work` while the journal writes.
pub(crate) async fn pumped<T>(
    journal: &Journal,
    now: &mut u64,
    work: impl Future<Output = T>,
) -> T {
    let pump = async {
        // Ends: with the work beside it.
        loop {
            *now += 200_000;
            journal.work(*now);
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    };
    tokio::select! {
        biased;
        done = work => done,
        never = pump => never,
    }
}

/// Plays lives with as many losses as `VOUSSOIR_POWER_LOSSES` says (default 400), or the one of
/// `VOUSSOIR_SEED`. `test` is what replays a failure. Returns whether all were played.
pub(crate) fn play<F: Future<Output = ()>>(test: &str, life: impl Fn(u64) -> F) -> bool {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let losses = number("VOUSSOIR_POWER_LOSSES").unwrap_or(400);
    let run = |seed: u64| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(life(seed));
    };
    if let Some(seed) = number("VOUSSOIR_SEED") {
        run(seed);
        return false;
    }
    for seed in 0..losses.div_ceil(LOSSES_A_LIFE) {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed)));
        if let Err(panic) = result {
            eprintln!("replay: VOUSSOIR_SEED={seed} cargo test -p voussoir-txn --test {test}");
            std::panic::resume_unwind(panic);
        }
    }
    true
}
