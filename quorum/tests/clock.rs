//! The hybrid logical clock and the source of dots, over jumps of the wall clock and restarts.

use std::collections::BTreeSet;

use voussoir_quorum::version::{Actor, Dot, DotError, DotSource};
use voussoir_quorum::version::{Hlc, HlcConfig, TickError, Timestamp};
use voussoir_sim::{Rng, Situations};

const SECOND: u64 = 1_000_000_000;

static SITUATIONS: [&str; 6] = [
    "the wall clock jumped back",
    "a restart right after a mark was written",
    "a restart that lost a mark",
    "a peer was refused",
    "a peer was ahead and accepted",
    "a peer was far behind and accepted",
];

fn tick(clock: &mut Hlc, now: u64, mark: &mut u64) -> Timestamp {
    match clock.tick(now) {
        Ok(timestamp) => timestamp,
        Err(TickError::MarkNeeded { mark: needed }) => {
            *mark = needed;
            clock.mark_persisted(needed);
            clock.tick(now).unwrap()
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn timestamps_rise_over_jumps_peers_and_restarts() {
    let situations = Situations::new(&SITUATIONS);
    let (actor, peer) = (Actor::new(1, 1), Actor::new(2, 1));
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let config = HlcConfig::default();
        let drift = config.max_drift.as_nanos() as u64;
        let (mut wall, mut mark) = (1_000 * SECOND, 0);
        let mut clock = Hlc::recover(actor, config.clone(), 0, []).unwrap();
        let mut last: Option<Timestamp> = None;
        for _ in 0..300 {
            wall += rng.below(SECOND / 100);
            match rng.below(100) {
                0..=1 => wall += rng.below(10 * SECOND),
                2..=3 => {
                    wall -= rng.below(10 * SECOND);
                    situations.reached("the wall clock jumped back");
                }
                4..=6 => {
                    if let Some(ahead) = clock.next_mark(wall) {
                        // Half of the marks that are written ahead reach the disk.
                        let is_durable = rng.chance(500_000);
                        mark = if is_durable { ahead } else { mark };
                        situations.reached(if is_durable {
                            "a restart right after a mark was written"
                        } else {
                            "a restart that lost a mark"
                        });
                    }
                    // No record was replayed: the mark alone must do.
                    clock = Hlc::recover(actor, config.clone(), mark, []).unwrap();
                }
                7..=40 => {
                    let physical = match rng.below(3) {
                        0 => wall + rng.below(2 * drift),
                        1 => wall - rng.below(900 * SECOND).min(wall),
                        _ => wall,
                    };
                    let remote = Timestamp { physical, logical: rng.below(5) as u32, actor: peer };
                    let before = clock.clone();
                    match clock.observe(wall, remote) {
                        Ok(()) => {
                            assert!(physical <= wall + drift);
                            assert!(tick(&mut clock, wall, &mut mark) > remote);
                            situations
                                .add("a peer was ahead and accepted", (physical > wall).into());
                            let is_old = physical + 100 * SECOND < wall;
                            situations.add("a peer was far behind and accepted", is_old.into());
                        }
                        Err(error) => {
                            assert_eq!((error.node, error.max_ns), (2, drift));
                            assert_eq!(error.ahead_ns, physical - wall);
                            assert_eq!(clock.tick(wall), before.clone().tick(wall), "not merged");
                            situations.reached("a peer was refused");
                        }
                    }
                }
                _ => {}
            }
            let next = tick(&mut clock, wall, &mut mark);
            assert!(last.is_none_or(|last| last < next), "seed {seed}: {last:?} then {next:?}");
            assert!(next.physical < mark, "seed {seed}: given out above the durable mark");
            last = Some(next);
        }
    }
    situations.assert_all_reached();
}

/// A process that restarts again and again, on clocks that are right, is never refused by its
/// peers.
#[test]
fn a_clock_that_restarts_is_accepted_by_its_peers() {
    let config = HlcConfig::default();
    let peer = Actor::new(2, 1);
    let (mut wall, mut mark) = (1_000 * SECOND, 0);
    let mut last = None;
    for _ in 0..1_000 {
        wall += SECOND / 100;
        let mut clock = Hlc::recover(Actor::new(1, 1), config.clone(), mark, []).unwrap();
        let next = tick(&mut clock, wall, &mut mark);
        assert!(last.is_none_or(|last| last < next), "{last:?} then {next:?}");
        last = Some(next);
        let mut other = Hlc::recover(peer, config.clone(), 0, []).unwrap();
        other.observe(wall, next).unwrap();
    }
}

/// calimero #2662: with an equal physical time the greater of both counters counts.
#[test]
fn a_peer_of_the_same_time_is_overtaken_by_its_counter() {
    let mut clock = Hlc::recover(Actor::new(1, 1), HlcConfig::default(), 0, []).unwrap();
    clock.mark_persisted(100 * SECOND);
    let now = SECOND;
    for (peer_logical, expected) in [(9, 10), (3, 11), (u32::MAX - 1, u32::MAX)] {
        let actor = Actor::new(2, 1);
        clock.observe(now, Timestamp { physical: now, logical: peer_logical, actor }).unwrap();
        let next = clock.tick(now).unwrap();
        assert_eq!((next.physical, next.logical), (now, expected));
    }
    // The counter is used up: the next timestamp borrows a nanosecond and is still greater.
    let next = clock.tick(now).unwrap();
    assert_eq!((next.physical, next.logical), (now + 1, 0));
}

/// interfold #1669: a record newer than the mark counts too.
#[test]
fn a_clock_restarts_after_every_replayed_record() {
    let replayed =
        [70, 90, 80].map(|physical| Timestamp { physical, logical: 4, actor: Actor::new(2, 1) });
    let mut clock = Hlc::recover(Actor::new(1, 1), HlcConfig::default(), 50, replayed).unwrap();
    clock.mark_persisted(SECOND);
    let next = clock.tick(10).unwrap();
    assert_eq!((next.physical, next.logical), (90, 5));
}

#[test]
fn a_clock_at_the_end_of_its_range_gives_no_timestamp() {
    let config = HlcConfig::default();
    let mut clock = Hlc::recover(Actor::new(1, 1), config, 0, []).unwrap();
    clock.mark_persisted(u64::MAX);
    assert_eq!(clock.tick(u64::MAX), Err(TickError::Exhausted));
    assert_eq!(clock.next_mark(u64::MAX), None);
    let beyond = Timestamp { physical: 1 << 62, logical: 0, actor: Actor::new(2, 1) };
    let error = clock.observe(u64::MAX, beyond).unwrap_err();
    assert_eq!((error.node, clock.refused()), (2, 1));
    assert!(clock.tick(7).is_ok());
}

#[test]
fn no_dot_is_given_out_twice() {
    let actor = Actor::new(1, 1);
    let (mut rng, mut mark, mut drawn) = (Rng::new(1), 0, BTreeSet::new());
    let mut restarts = 0;
    let mut source = DotSource::recover(actor, mark, []);
    for _ in 0..200_000 {
        match source.draw() {
            Ok(dot) => {
                assert!(drawn.insert(dot), "{dot} twice");
                assert!(dot.counter < mark);
            }
            Err(DotError::MarkNeeded { mark: needed }) => {
                mark = needed;
                source.mark_persisted(needed);
            }
            Err(error) => panic!("{error}"),
        }
        if rng.chance(100) {
            source = DotSource::recover(actor, mark, []);
            restarts += 1;
        }
    }
    assert!(restarts > 5 && drawn.len() > 150_000);
    let greatest = drawn.last().unwrap().counter;
    let mut source = DotSource::recover(actor, 3, [greatest, 2]);
    source.mark_persisted(u64::MAX);
    assert_eq!(source.draw(), Ok(Dot::new(actor, greatest + 1)));
    let mut source = DotSource::recover(actor, 0, [Dot::MAX_COUNTER]);
    assert_eq!(source.draw(), Err(DotError::Exhausted));
}
