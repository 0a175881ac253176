//! The gate: order, bounds, and permits that are given back.

use super::*;
use crate::bulkhead::QueueConfig;
use std::sync::atomic::AtomicUsize;
use tokio::task::yield_now;

fn gate(limit: usize, max_len: usize) -> Arc<Gate> {
    QueueConfig { max_len, order: QueueOrder::Fifo, ..Default::default() }.gate(limit)
}

fn counts(gate: &Gate) -> (usize, usize) {
    (gate.stats().running, gate.stats().waiting)
}

#[tokio::test(start_paused = true)]
async fn the_line_is_served_in_turn() {
    let gate = gate(1, 2);
    let first = gate.try_enter().unwrap();
    let waiters: Vec<_> = (0..2)
        .map(|_| {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move { gate.enter().await })
        })
        .collect();
    yield_now().await;
    assert_eq!(counts(&gate), (1, 2));
    let full = gate.enter().await.unwrap_err();
    assert_eq!(full, GateError::Full { limit: 1, queue: 2 });
    drop(first);
    let mut waiters = waiters.into_iter();
    let second = waiters.next().unwrap().await.unwrap().unwrap();
    assert_eq!(counts(&gate), (1, 1));
    assert!(gate.try_enter().is_err(), "nobody overtakes the line");
    drop(second);
    drop(waiters.next().unwrap().await.unwrap().unwrap());
    assert_eq!(counts(&gate), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn patience_ends() {
    let gate = gate(1, 1);
    let _place = gate.try_enter().unwrap();
    let start = tokio::time::Instant::now();
    let late = gate.enter().await.unwrap_err();
    assert_eq!(late, GateError::QueueTimeout(Duration::from_millis(100)));
    assert_eq!(start.elapsed().as_millis(), 100);
    assert_eq!((counts(&gate), gate.stats().expired), ((1, 0), 1));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_dropped_at_any_point_leaves_nothing_behind() {
    // Dropped while it waits, and dropped with the place granted but not yet taken.
    for granted in [false, true] {
        let gate = gate(1, 2);
        let place = gate.try_enter().unwrap();
        let mut waiter = Box::pin(gate.enter());
        std::future::poll_fn(|cx| {
            assert!(waiter.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        assert_eq!(counts(&gate), (1, 1));
        if granted {
            drop(place);
            assert_eq!(counts(&gate), (1, 0));
            drop(waiter);
        } else {
            drop(waiter);
            assert_eq!(counts(&gate), (1, 0));
            drop(place);
        }
        assert_eq!(counts(&gate), (0, 0), "granted: {granted}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_rises_serves_the_line_and_one_that_falls_waits() {
    let gate = gate(1, 5);
    let mut places = vec![gate.try_enter().unwrap()];
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move { gate.enter().await.unwrap() })
        })
        .collect();
    yield_now().await;
    gate.set_limit(3);
    assert_eq!(counts(&gate), (3, 1));
    gate.set_limit(2);
    places.clear();
    assert_eq!(counts(&gate), (2, 1), "over the limit: the place is not passed on");
    for waiter in waiters {
        drop(waiter.await.unwrap());
    }
    assert_eq!(counts(&gate), (0, 0));
}

#[test]
fn never_more_than_the_limit_under_threads_that_come_and_go() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build();
    let runtime = runtime.unwrap();
    let gate = QueueConfig { max_len: 8, ..Default::default() }.gate(3);
    let running = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..32_u64)
        .map(|seed| {
            let (gate, running) = (Arc::clone(&gate), Arc::clone(&running));
            runtime.spawn(async move {
                let mut rng = fastrand::Rng::with_seed(seed);
                for _ in 0..400 {
                    // Some give up at an arbitrary point of their wait.
                    let patience = Duration::from_micros(rng.u64(..300));
                    let Ok(Ok(_place)) = tokio::time::timeout(patience, gate.enter()).await else {
                        continue;
                    };
                    assert!(running.fetch_add(1, AcqRel) < 3, "too many");
                    for _ in 0..rng.u64(..3) {
                        yield_now().await;
                    }
                    running.fetch_sub(1, AcqRel);
                }
            })
        })
        .collect();
    runtime.block_on(async {
        for task in tasks {
            task.await.expect("no task saw too many");
        }
    });
    assert_eq!(counts(&gate), (0, 0), "places and line are empty");
}
