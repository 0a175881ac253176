//! What comes back by a refund, in particular where the quotas have changed since the taking.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use voussoir_limit::*;

const SECOND: Duration = Duration::from_secs(1);

/// A clock that is set by the test, in ns.
#[derive(Debug, Default)]
struct Set(AtomicU64);

impl Set {
    fn advance(&self, ns: u64) {
        self.0.fetch_add(ns, Ordering::Relaxed);
    }
}

impl Clock for Set {
    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A limiter for all, or a keyed one that is asked for one key.
enum Either {
    All(Limiter),
    Keyed(Keyed<u8>),
}

impl Either {
    fn new(keyed: bool, quotas: &[Quota], clock: &Arc<Set>) -> Self {
        if keyed {
            let config = KeyedConfig::default();
            return Self::Keyed(Keyed::with_clock(quotas, config, Arc::clone(clock) as _).unwrap());
        }
        let config = LimiterConfig::default();
        Self::All(Limiter::with_clock(quotas, config, Arc::clone(clock) as _).unwrap())
    }

    fn take(&self, cost: u64) -> Option<Admitted> {
        match self {
            Self::All(limiter) => limiter.check_n(cost).ok(),
            Self::Keyed(keyed) => keyed.check_n(&0, cost).ok(),
        }
    }

    fn left(&self) -> u64 {
        self.take(0).expect("a cost of 0 is never rejected").remaining()
    }

    fn refund(&self, admitted: Admitted) {
        match self {
            Self::All(limiter) => limiter.refund(admitted),
            Self::Keyed(keyed) => keyed.refund(&0, admitted),
        }
    }

    fn set_quotas(&self, quotas: &[Quota]) {
        match self {
            Self::All(limiter) => limiter.set_quotas(quotas).unwrap(),
            Self::Keyed(keyed) => keyed.set_quotas(quotas).unwrap(),
        }
    }
}

fn quota(algorithm: usize, draw: &mut impl FnMut(u64) -> u64) -> Quota {
    let (count, per) = (1 + draw(20), SECOND * (1 + draw(3)) as u32);
    match algorithm {
        0 => Quota::gcra(count, per).burst(1 + draw(20)),
        1 => Quota::token_bucket(count, per).burst(1 + draw(20)),
        2 => Quota::fixed_window(count, per),
        3 => Quota::sliding_log(count, per),
        _ => Quota::sliding_counter(count, per),
    }
}

/// Units that are taken and given back leave no more than there would be, had they never been
/// taken: with changes of the quotas between the taking and the refund too.
#[test]
fn a_refund_never_leaves_more_than_if_nothing_had_been_taken() {
    let (mut plain, mut across_changes) = (0, 0);
    for life in 0..4_000_u64 {
        let mut state = life.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) % below
        };
        let (algorithm, keyed, tiers) = (life as usize % 5, life / 5 % 2 == 1, 1 + life / 10 % 2);
        let mut quotas: Vec<_> = (0..tiers).map(|_| quota(algorithm, &mut draw)).collect();
        let clock = Arc::new(Set(AtomicU64::new(7_000_000_001)));
        let (real, without) =
            (Either::new(keyed, &quotas, &clock), Either::new(keyed, &quotas, &clock));
        let (mut unused, mut changes) = (Vec::new(), 0_u32);
        for turn in 0..60 {
            clock.advance(draw(400_000_000) + 1);
            match draw(8) {
                0..=2 => {
                    if let Some(admitted) = real.take(1 + draw(4)) {
                        unused.push((admitted, changes));
                    }
                }
                3..=4 => {
                    let cost = 1 + draw(4);
                    let both = real.take(cost).is_some_and(|_| without.take(cost).is_none());
                    assert!(!both, "life {life} turn {turn}: {quotas:?} admits {cost} too many");
                }
                5..=6 if !unused.is_empty() => {
                    let (admitted, at) = unused.swap_remove(draw(unused.len() as u64) as usize);
                    real.refund(admitted);
                    if at == changes { plain += 1 } else { across_changes += 1 }
                }
                7 => {
                    quotas = quotas.iter().map(|_| quota(algorithm, &mut draw)).collect();
                    real.set_quotas(&quotas);
                    without.set_quotas(&quotas);
                    changes += 1;
                }
                _ => {}
            }
            let (left, most) = (real.left(), without.left());
            assert!(left <= most, "life {life} turn {turn}: {quotas:?} has {left} of {most}");
        }
    }
    assert!(plain > 1_000 && across_changes > 1_000, "{plain} and {across_changes} refunds");
}

/// A configuration that is loaded again, or a burst that is raised, leaves receipts what they are.
#[test]
fn a_change_that_keeps_the_pace_keeps_refunds() {
    let clock = Arc::new(Set(AtomicU64::new(7_000_000_001)));
    for keyed in [false, true] {
        for tiers in [1, 2] {
            let before = vec![Quota::gcra(1, SECOND).burst(5); tiers];
            let limiter = Either::new(keyed, &before, &clock);
            let taken = limiter.take(5).unwrap();
            limiter.set_quotas(&before);
            limiter.set_quotas(&vec![Quota::gcra(1, SECOND).burst(6); tiers]);
            assert_eq!(limiter.left(), 1);
            limiter.refund(taken);
            assert_eq!(limiter.left(), 6);
        }
    }
}
