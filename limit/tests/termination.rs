//! Every loop over shared words ends while other threads change what it reads: each thread gets
//! through a fixed number of calls in bounded time, and what is admitted stays within the bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use voussoir_limit::*;
use voussoir_sim::Situations;

const SECOND: Duration = Duration::from_secs(1);

static SITUATIONS: [&str; 6] =
    ["admitted", "rejected", "refunded", "quota changed", "place handed on", "without room"];

/// Runs the calls of each thread, and fails if one has not got through them in time.
fn all_end(calls: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = calls.into_iter().map(std::thread::spawn).collect();
    let start = Instant::now();
    // Threads that fail leave the one that changes the quotas alone.
    while !threads.iter().all(std::thread::JoinHandle::is_finished) {
        assert!(start.elapsed() < 60 * SECOND, "a loop does not end");
        std::thread::sleep(SECOND / 100);
    }
    for thread in threads {
        thread.join().expect("its calls pass");
    }
}

fn word_quotas() -> [[Quota; 2]; 3] {
    let window = |count| Quota::fixed_window(count, SECOND / 1000);
    [
        [Quota::gcra(1_000_000, SECOND).burst(50), Quota::gcra(3_000_000, SECOND).burst(9)],
        [Quota::token_bucket(50, SECOND / 1000), Quota::token_bucket(9, SECOND / 500)],
        [window(50), window(9)],
    ]
}

#[test]
fn calls_end_while_words_quotas_and_places_change() {
    let situations = Arc::new(Situations::new(&SITUATIONS));
    for quotas in word_quotas() {
        let one = Arc::new(Limiter::new(quotas[0]).unwrap());
        let mut config = KeyedConfig::default();
        // Few places, so that they change hands all the time.
        (config.max_keys, config.when_full) = (64, WhenFull::Reject);
        let keyed = Arc::new(Keyed::<u64>::with_config(&quotas[..1], config).unwrap());
        let done = Arc::new(AtomicBool::new(false));
        let left = Arc::new(AtomicU64::new(3));
        let mut calls: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
        for thread in 0..3_u64 {
            let (one, keyed) = (Arc::clone(&one), Arc::clone(&keyed));
            let (done, left, situations) =
                (Arc::clone(&done), Arc::clone(&left), Arc::clone(&situations));
            calls.push(Box::new(move || {
                let (mut admitted, mut rejected, mut refunded) = (0, 0, 0);
                for turn in 0..60_000_u64 {
                    let key = turn.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (54 + thread);
                    let answers = [one.check(), keyed.check(&key)];
                    for (of_key, answer) in answers.into_iter().enumerate() {
                        match answer {
                            Ok(taken) if turn % 3 == 0 => {
                                refunded += 1;
                                if of_key == 1 {
                                    keyed.refund(&key, taken);
                                } else {
                                    one.refund(taken);
                                }
                            }
                            Ok(_) => admitted += 1,
                            Err(_) => rejected += 1,
                        }
                    }
                }
                situations.add("admitted", admitted);
                situations.add("rejected", rejected);
                situations.add("refunded", refunded);
                done.store(left.fetch_sub(1, Ordering::AcqRel) == 1, Ordering::Release);
            }));
        }
        // Changes the quotas as long as the others decide, and at least once.
        let (of_changer, keyed_of_changer) = (Arc::clone(&one), Arc::clone(&keyed));
        let (changing, counted) = (Arc::clone(&done), Arc::clone(&situations));
        calls.push(Box::new(move || {
            for turn in 1.. {
                of_changer.set_quotas(&quotas[turn % 2..=turn % 2]).unwrap();
                keyed_of_changer.set_quotas(&quotas[turn % 2..=turn % 2]).unwrap();
                counted.reached("quota changed");
                if changing.load(Ordering::Acquire) {
                    break;
                }
            }
        }));
        all_end(calls);
        situations.add("place handed on", keyed.stats().reclaimed);
        situations.add("without room", keyed.stats().overflowed);
    }
    situations.assert_all_reached();
}

/// Callers that wait end while others change quotas, give units back and give up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_end_while_quotas_change_and_units_come_back() {
    let quotas = [Quota::gcra(2000, SECOND).burst(4), Quota::gcra(20_000, SECOND).burst(9)];
    let one = Arc::new(Limiter::new(quotas[0]).unwrap());
    let keyed = Arc::new(Keyed::<u64>::new(quotas[0]).unwrap());
    let waits = (0..60_u64).map(|caller| {
        let (one, keyed) = (Arc::clone(&one), Arc::clone(&keyed));
        tokio::spawn(async move {
            for turn in 0..10 {
                // Some give up soon: their units are the next ones'.
                let patience = if (caller + turn) % 4 == 0 { SECOND / 1000 } else { 60 * SECOND };
                let key = caller % 3;
                if let Ok(taken) = tokio::time::timeout(patience, one.until_ready()).await {
                    one.refund(taken.unwrap());
                }
                if let Ok(taken) = tokio::time::timeout(patience, keyed.until_ready(&key)).await {
                    keyed.refund(&key, taken.unwrap());
                }
            }
        })
    });
    let waits: Vec<_> = waits.collect();
    let changes = {
        let (one, keyed) = (Arc::clone(&one), Arc::clone(&keyed));
        tokio::spawn(async move {
            for turn in 0.. {
                one.set_quotas(&quotas[turn % 2..=turn % 2]).unwrap();
                keyed.set_quotas(&quotas[turn % 2..=turn % 2]).unwrap();
                tokio::task::yield_now().await;
            }
        })
    };
    let all = async {
        for wait in waits {
            wait.await.expect("its waits pass");
        }
    };
    tokio::time::timeout(60 * SECOND, all).await.expect("a wait does not end");
    changes.abort();
    assert_eq!((one.waiting(), keyed.waiting()), (0, 0));
}
