//! Keyed limiters against a model, and at their bounds.

use std::collections::HashMap;
use std::hash::Hasher;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn keyed(quotas: &[Quota], max_keys: usize, when_full: WhenFull) -> Keyed<u64> {
    let config = KeyedConfig { max_keys, when_full, ..KeyedConfig::default() };
    Keyed::with_config(quotas, config).unwrap()
}

/// A clock that stands still.
#[derive(Debug)]
struct At(u64);

impl Clock for At {
    fn now(&self) -> u64 {
        self.0
    }
}

/// `Keyed::reclaim` at a time given by the test.
fn reclaim_at(limiter: &Keyed<u64>, now: u64) {
    if let Table::Cells(cells) = &limiter.table {
        cells.reclaim(now);
    }
}

#[test]
fn keys_are_independent_and_costs_count() {
    let limiter = keyed(&[Quota::gcra(1, SECOND).burst(3)], 100, WhenFull::Share);
    assert!(limiter.check_at(&1, 0, 3).is_ok());
    assert!(limiter.check_at(&1, 0, 1).is_err());
    assert!(limiter.check_at(&2, 0, 3).is_ok());
    assert_eq!(limiter.check_at(&3, 0, 4).unwrap_err().retry_after(), None);
    assert_eq!(limiter.len(), 2, "a key that took nothing takes no room");
}

#[test]
fn a_flood_of_new_keys_does_not_reset_a_hot_one() {
    let limiter = keyed(&[Quota::gcra(1, SECOND).burst(2)], 200, WhenFull::Share);
    let hot = u64::MAX;
    let mut admitted = 0;
    // In 10 seconds a million keys come by, and the hot one tries all the time.
    for turn in 0..1_000_000_u64 {
        let now = turn * 10_000;
        let _ = limiter.check_at(&turn, now, 1);
        admitted += u64::from(limiter.check_at(&hot, now, 1).is_ok());
        assert!(limiter.stats().table_bytes < 200 * 100);
    }
    assert_eq!(admitted, 11, "burst 2 and 9 more in just under 10 seconds");
    assert!(limiter.stats().overflowed > 0 && limiter.stats().reclaimed > 1000);
}

#[test]
fn keys_without_room_share_are_rejected_or_pass() {
    let gcra = Quota::gcra(1, SECOND).burst(2);
    let log = Quota::sliding_log(2, SECOND);
    for (quota, room) in [(gcra, 20), (log, 10)] {
        for (when_full, expected) in
            [(WhenFull::Share, 2), (WhenFull::Reject, 0), (WhenFull::Admit, 50)]
        {
            let limiter = keyed(&[quota], 10, when_full);
            for key in 0..room {
                limiter.check_at(&key, 1, 1).unwrap();
            }
            let admitted = (100..150).filter(|key| limiter.check_at(key, 1, 1).is_ok()).count();
            assert_eq!(admitted, expected, "{when_full:?}");
            assert_eq!((limiter.len(), limiter.stats().overflowed), (room as usize, 50));
        }
    }
}

#[test]
fn as_many_keys_as_promised_find_room_also_when_all_places_were_used_before() {
    let limiter = keyed(&[Quota::gcra(1, SECOND)], 100_000, WhenFull::Reject);
    for round in 1..=4_u64 {
        for key in 0..100_000 {
            limiter.check_at(&(round << 32 | key), round * 2_000_000_000, 1).unwrap();
        }
    }
    let stats = limiter.stats();
    assert_eq!(stats.overflowed, 0);
    assert!(stats.keys <= 200_000 && stats.reclaimed >= 200_000, "{stats:?}");
}

#[test]
fn keys_do_not_meet_in_a_hash() {
    let config = KeyedConfig { max_keys: 200_000, ..KeyedConfig::default() };
    let limiter: Keyed<String> = Keyed::with_config(&[Quota::gcra(1, MINUTE)], config).unwrap();
    for key in 0..200_000_u64 {
        limiter.check_at(&format!("user-{key}"), 1, 1).unwrap();
    }
    let limiter = keyed(&[Quota::gcra(1, MINUTE)], 1_000_000, WhenFull::Reject);
    for key in 0..500_000_u64 {
        limiter.check_at(&key, 1, 1).unwrap();
        limiter.check_at(&(key << 32 | 1 << 63), 1, 1).unwrap();
    }
}

/// Threads that bring new keys at once, into places that were used before: no key is counted
/// twice, and none for another.
#[test]
fn threads_that_bring_the_same_new_keys_take_what_one_would() {
    let limiter = keyed(&[Quota::gcra(1, MINUTE).burst(3)], 1000, WhenFull::Reject);
    for round in 1..=40_u64 {
        let admitted = std::sync::atomic::AtomicU64::new(0);
        let now = round * 1_000_000_000_000;
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (limiter, admitted) = (&limiter, &admitted);
                scope.spawn(move || {
                    let keys = (0..1000_u64).map(|key| round * 333 + (key + thread * 250) % 1000);
                    let ok = keys.filter(|key| limiter.check_at(key, now, 1).is_ok()).count();
                    admitted.fetch_add(ok as u64, std::sync::atomic::Ordering::Relaxed);
                });
            }
        });
        assert_eq!(admitted.into_inner(), 3000, "round {round}");
    }
    assert_eq!(limiter.stats().overflowed, 0);
}

#[test]
fn memory_comes_back_once_keys_are_idle() {
    let limiter = keyed(&[Quota::sliding_log(10, SECOND)], 100_000, WhenFull::Share);
    for key in 0..100_000 {
        limiter.check_at(&key, 1, 1).unwrap();
    }
    let full = limiter.stats().table_bytes;
    for key in 0..100_000_u64 {
        let now = 2_000_000_000 + key * 1_000_000;
        limiter.check_at(&(1 << 32 | key), now, 1).unwrap();
    }
    let stats = limiter.stats();
    assert!(stats.keys < 40_000, "{stats:?}");
    assert!(stats.table_bytes < full / 2, "{stats:?}, {full} before");
    assert_eq!(stats.overflowed, 0);
}

#[test]
fn many_at_once_are_as_many_one_by_one() {
    let [many, single] =
        [0, 1].map(|_| keyed(&[Quota::gcra(1, SECOND).burst(2)], 100, WhenFull::Reject));
    let keys: Vec<u64> = (0..100).map(|turn| turn * turn % 41).collect();
    let mut answers = Vec::new();
    many.check_many(&keys.iter().collect::<Vec<_>>(), 5, 1, |_, answer| answers.push(answer));
    let expected: Vec<_> = keys.iter().map(|key| single.check_at(key, 5, 1)).collect();
    assert_eq!(answers, expected);
}

#[test]
fn a_change_reaches_every_key() {
    let config = KeyedConfig::default();
    let limiter =
        Keyed::with_clock(&[Quota::gcra(1, SECOND).burst(2)], config, Arc::new(At(1 << 40)))
            .unwrap();
    for key in 0..20 {
        limiter.check_at(&key, 1 << 40, 1).unwrap();
    }
    let day = Quota::fixed_window(1, SECOND);
    assert_eq!(limiter.set_quotas(&[day]).unwrap_err().field, "quotas");
    limiter.set_quotas(&[Quota::gcra(1, SECOND).burst(5)]).unwrap();
    for key in 0..20 {
        assert!(limiter.check_at(&key, 1 << 40, 4).is_ok());
        assert!(limiter.check_at(&key, 1 << 40, 1).is_err());
    }
}

#[test]
fn a_late_caller_does_not_revive_a_key_that_was_forgotten_since() {
    let seconds = |tenths: u64| tenths * 100_000_000;
    for quota in [Quota::gcra(1, SECOND), Quota::sliding_log(1, SECOND)] {
        let limiter = keyed(&[quota], 1, WhenFull::Reject);
        limiter.check_at(&0, seconds(1000), 1).unwrap();
        // Key 0 is as good as new from 101 on, and makes room for another at 110.
        limiter.check_at(&1, seconds(1100), 1).unwrap();
        assert_eq!(limiter.stats().reclaimed, 1);
        reclaim_at(&limiter, seconds(1150));
        // Its quota had not come back at 100.5: a unit taken then counts as one of 101.
        limiter.check_at(&0, seconds(1005), 1).unwrap();
        let next = limiter.check_at(&0, seconds(1016), 1);
        assert!(next.is_err(), "{quota:?}: {next:?}");
        limiter.check_at(&0, seconds(1121), 1).unwrap();
    }
}

/// All keys are in one shard, and meet.
#[derive(Default)]
struct InOneShard(u64);

impl BuildHasher for InOneShard {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl Hasher for InOneShard {
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are numbers");
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key << 16;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A single caller whose clock is a year ahead, among callers whose clocks are right.
#[test]
fn a_caller_far_ahead_does_not_hold_up_the_keys_of_others() {
    let (second, year) = (1_000_000_000, 365 * 86_400 * 1_000_000_000);
    for quota in [Quota::gcra(1, 10 * SECOND), Quota::sliding_log(1, 10 * SECOND)] {
        let config =
            KeyedConfig { max_keys: 8, when_full: WhenFull::Reject, ..KeyedConfig::default() };
        let clock = Arc::new(At(0));
        let limiter = Keyed::with_hasher(&[quota], config, clock, InOneShard::default()).unwrap();
        for key in 0..8_u64 {
            limiter.check_at(&key, second, 1).unwrap();
        }
        // The new key takes the slot of a key that has been idle since 11 s.
        limiter.check_at(&100, year, 1).unwrap();
        assert!(limiter.stats().reclaimed > 0, "{quota:?}");
        for key in 200..206 {
            limiter.check_at(&key, 12 * second, 1).unwrap();
            assert!(limiter.check_at(&key, 13 * second, 1).is_err(), "{quota:?}, key {key}");
            let answer = limiter.check_at(&key, 23 * second, 1);
            assert!(answer.is_ok(), "{quota:?}, key {key}: {answer:?}");
        }
        assert!(limiter.check_at(&100, 23 * second, 1).is_err(), "its own quota is used up");
    }
}

/// The key that was used a year ahead stays; the idle keys around it are forgotten all the same.
#[test]
fn a_key_used_far_ahead_does_not_keep_others_from_being_forgotten() {
    let (second, year) = (1_000_000_000, 365 * 86_400 * 1_000_000_000);
    for quota in [Quota::gcra(1, 10 * SECOND), Quota::sliding_log(1, 10 * SECOND)] {
        let limiter = keyed(&[quota], 8, WhenFull::Reject);
        for key in 0..8 {
            // The last one is used a year ahead, when all others are idle.
            limiter.check_at(&key, if key == 7 { year } else { second }, 1).unwrap();
        }
        reclaim_at(&limiter, year);
        // Twenty generations of seven keys, each idle when the next one comes.
        for generation in 1..=20 {
            let now = (1 + 20 * generation) * second;
            for key in 0..7 {
                let answer = limiter.check_at(&(generation * 100 + key), now, 1);
                assert!(answer.is_ok(), "{quota:?}, generation {generation}: {answer:?}");
            }
        }
        assert_eq!(limiter.stats().overflowed, 0, "{quota:?}");
    }
}

#[test]
fn a_key_that_is_known_is_not_brought_in_again() {
    let words =
        Words::new(&Quota::gcra(1, MINUTE).rules().unwrap(), 100, WhenFull::Reject).unwrap();
    assert!(words.step_new(7, 1, 1).is_some());
    // The same insertion by a thread whose lookup preceded the first insertion.
    assert!(words.step_new(7, 1, 1).is_none());
    assert_eq!(words.totals().keys, 1);
}

fn waiting(max_waiters: usize) -> Arc<Keyed<u64>> {
    let clock = Arc::new(crate::TokioClock::new());
    let config = KeyedConfig { max_waiters, ..KeyedConfig::default() };
    Arc::new(Keyed::with_clock(&[Quota::gcra(10, SECOND)], config, clock).unwrap())
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_key_are_served_in_order_and_hold_up_no_other() {
    let limiter = waiting(100);
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let start = tokio::time::Instant::now();
    for turn in 0..30_u64 {
        let (limiter, sender) = (Arc::clone(&limiter), sender.clone());
        // Twenty for key 0, and five for each of two others.
        let key = if turn % 3 == 0 { 1 + turn / 3 % 2 } else { 0 };
        tokio::spawn(async move {
            limiter.until_ready(&key).await.unwrap();
            sender.send((key, turn, start.elapsed())).unwrap();
        });
    }
    drop(sender);
    let mut served = Vec::new();
    while let Some(one) = receiver.recv().await {
        served.push(one);
    }
    for (key, count) in [(0, 20), (1, 5), (2, 5)] {
        let of_key: Vec<_> = served.iter().filter(|(k, ..)| *k == key).collect();
        assert_eq!(of_key.len(), count);
        assert!(of_key.is_sorted_by_key(|(_, turn, _)| *turn), "{of_key:?}");
        for (place, (.., at)) in of_key.iter().enumerate() {
            let due = SECOND / 10 * place as u32;
            assert!(*at >= due && *at < due + Duration::from_millis(40), "{of_key:?}");
        }
    }
    assert_eq!(limiter.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_who_gives_up_a_key_takes_nothing_and_the_queue_is_bounded() {
    let limiter = waiting(1);
    limiter.until_ready(&1).await.unwrap();
    assert_eq!(limiter.until_ready_n(&1, 2).await.unwrap_err(), WaitError::TooCostly);
    for _ in 0..9 {
        let wait = tokio::time::timeout(Duration::from_millis(10), limiter.until_ready(&1));
        wait.await.unwrap_err();
        assert_eq!(limiter.waiting(), 0);
    }
    let (first, second) = tokio::join!(limiter.until_ready(&1), limiter.until_ready(&1));
    first.unwrap();
    assert_eq!(second.unwrap_err(), WaitError::QueueFull);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Against a map that never forgets: as long as there is room, forgetting shows nowhere.
    #[test]
    fn forgetting_changes_no_decision(
        log in any::<bool>(),
        history in proptest::collection::vec((0..40_u64, 0..80_u64, 1..3_u64), 1..600),
    ) {
        let quota = |log: bool| if log {
            Quota::sliding_log(3, Duration::from_nanos(50))
        } else {
            Quota::gcra(3, Duration::from_nanos(50)).burst(3)
        };
        let limiter = keyed(&[quota(log)], 1000, WhenFull::Reject);
        let mut plain: HashMap<u64, crate::Limiter> = HashMap::new();
        let mut now = 0;
        for (pause, key, cost) in history {
            now += pause;
            let one = plain.entry(key).or_insert_with(|| crate::Limiter::new(quota(log)).unwrap());
            let (a, b) = (limiter.check_at(&key, now, cost), one.check_at(now, cost));
            prop_assert_eq!(a.is_ok(), b.is_ok());
        }
    }
}
