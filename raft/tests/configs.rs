//! Every configuration that validates works a little, at its extremes too; what cannot work does
//! not validate.

mod common;

use std::time::Duration;

use common::Lab;
use proptest::prelude::*;
use voussoir_raft::core::{Input, Output, TransferEnd};
use voussoir_raft::{Change, Config, SnapshotMeta};

const HOUR_MS: u64 = 3_600_000;

/// From 1 to the end of the range, small numbers and powers of two above all.
fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(1),
        Just(u64::MAX),
        1..=100_u64,
        (0..64_u32).prop_map(|bits| 1 << bits),
        (1..=64_u32).prop_map(|bits| u64::MAX >> (64 - bits)),
    ]
}

fn count() -> impl Strategy<Value = usize> {
    size().prop_map(|size| usize::try_from(size).unwrap_or(usize::MAX))
}

fn size_or_never() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), size()]
}

/// A duration from `least` to an hour, in milliseconds.
fn at_least(least: u64) -> impl Strategy<Value = u64> {
    let exponent = (0..=22_u32).prop_map(move |bits| (least << bits).min(HOUR_MS));
    prop_oneof![Just(least), Just(HOUR_MS), least..=HOUR_MS, exponent]
}

fn timing() -> impl Strategy<Value = [u64; 5]> {
    at_least(1)
        .prop_map(|heartbeat| heartbeat.min(HOUR_MS / 2))
        .prop_flat_map(|heartbeat| (Just(heartbeat), at_least(2 * heartbeat), at_least(heartbeat)))
        .prop_flat_map(|(heartbeat, min, resend)| {
            (Just(heartbeat), Just(min), Just(resend), at_least(min))
        })
        .prop_flat_map(|(heartbeat, min, resend, max)| {
            at_least(max).prop_map(move |stall| [heartbeat, min, max, stall, resend])
        })
}

fn config() -> impl Strategy<Value = Config> {
    let bytes = (size(), size(), size(), size(), size(), size());
    let counts = (count(), count(), count(), count(), size());
    let snapshots = (size_or_never(), size_or_never(), size_or_never(), count());
    let entries = (1..=u32::MAX as usize, 1..=usize::from(u16::MAX));
    let drift = prop::option::of(prop_oneof![Just(1), Just(500_000), 1..=500_000_u32]);
    let quiesce = prop::option::of(at_least(1));
    (timing(), bytes, counts, snapshots, entries, any::<u64>(), drift, quiesce).prop_map(
        |(timing, bytes, counts, snapshots, entries, group, drift, quiesce)| {
            let mut config = Config::default();
            let [heartbeat, min, max, stall, resend] = timing.map(Duration::from_millis);
            config.heartbeat_interval = heartbeat;
            (config.min_election_timeout, config.max_election_timeout) = (min, max);
            (config.disk_stall, config.resend_interval) = (stall, resend);
            (config.max_append_bytes, config.max_inflight_bytes) = (bytes.0, bytes.1);
            (config.max_uncommitted_bytes, config.max_persist_bytes) = (bytes.2, bytes.3);
            (config.max_window_bytes, config.max_applying_bytes) = (bytes.4, bytes.5);
            (config.max_inflight_appends, config.max_undecided) = (counts.0, counts.1);
            (config.max_persists, config.max_reads) = (counts.2, counts.3);
            config.max_applying = counts.4;
            (config.snapshot_after_entries, config.snapshot_after_bytes) =
                (snapshots.0, snapshots.1);
            (config.keep_entries, config.max_snapshots_sending) = (snapshots.2, snapshots.3);
            config.keep_bytes = snapshots.1;
            (config.max_entry_bytes, config.max_append_entries) = entries;
            config.group = group;
            config.max_clock_drift_ppm = drift;
            config.quiesce_after = quiesce.map(Duration::from_millis);
            config
        },
    )
}

/// Answers what the cores ask for beside writing and applying: reads from the store, snapshots.
fn serve(lab: &mut Lab) {
    for id in lab.ids() {
        lab.fetched(id);
        let asked =
            |output: &Output| matches!(output, Output::TakeSnapshot | Output::SendSnapshot { .. });
        for output in lab.seen(id, asked) {
            lab.node_mut(id).seen.retain(|seen| *seen != output);
            match output {
                Output::TakeSnapshot => {
                    let index = lab.status(id).applied;
                    if lab.status(id).members_index > index {
                        lab.step(id, Input::SnapshotFailed);
                        continue;
                    }
                    let term = lab.core(id).term_at(index).unwrap();
                    let members = lab.core(id).members().clone();
                    let meta = SnapshotMeta { index, term, members };
                    lab.node_mut(id).disk.snapshot = Some(meta.clone());
                    lab.step(id, Input::SnapshotTaken { meta });
                }
                Output::SendSnapshot { id: transfer, to, term, .. } => {
                    let meta = lab.core(id).snapshot().cloned().unwrap();
                    lab.step(to, Input::SnapshotReceived { from: id, term, meta });
                    lab.step(
                        id,
                        Input::SnapshotSent { id: transfer, ended: TransferEnd::Complete },
                    );
                }
                _ => {}
            }
        }
    }
    lab.settle();
}

/// Three nodes with this configuration: an election, commands, a follower that falls behind and
/// catches up, reads, a restart.
fn work_a_little(config: Config) {
    let heartbeat = config.heartbeat_interval.as_nanos() as u64;
    let mut lab = Lab::with(3, move |own| {
        let (id, voters) = (own.id, own.voters.clone());
        own.clone_from(&config);
        (own.id, own.voters, own.seed) = (id, voters, Some(0));
    });
    // Where the configuration has it so, the group may rest in between.
    for (id, node) in [1, 2, 3].into_iter().flat_map(|id| [1, 2, 3].map(|node| (id, node))) {
        lab.step(id, Input::Node { node, life: Some(node) });
    }
    lab.elect(1);
    for token in 0..12 {
        match token {
            3 => lab.isolate(3),
            9 => {
                lab.heal();
                lab.step(1, Input::Unreachable { peer: 3 });
            }
            _ => {}
        }
        lab.propose(1, token, "x");
        lab.settle();
        serve(&mut lab);
    }
    for _ in 0..40 {
        lab.run(heartbeat);
        serve(&mut lab);
    }
    assert_eq!(lab.leader(), Some(1));
    let last = lab.status(1).last;
    assert_eq!(last, 13, "{:?}", lab.seen(1, |output| matches!(output, Output::Rejected { .. })));
    for id in lab.ids() {
        let status = lab.status(id);
        assert_eq!(
            (status.commit, status.applied, status.halted),
            (last, last, None),
            "{status:?}"
        );
    }
    for id in [1, 2] {
        lab.step(id, Input::Read { token: 99 });
        lab.run(heartbeat);
        let ready = Output::ReadReady { token: 99, index: last };
        assert!(lab.node(id).seen.contains(&ready), "{:?}", lab.node(id).seen);
    }
    lab.restart(2);
    // A leader at rest speaks up for a node that is back.
    lab.step(1, Input::Node { node: 2, life: Some(4) });
    lab.run(2 * heartbeat);
    assert_eq!(lab.status(2).leader, Some(1));
}

/// Asks node 1 for a change and waits until it is done.
fn change(lab: &mut Lab, heartbeat: u64, change: Change) {
    lab.step(1, Input::Change { token: 7, change });
    let done = |output: &Output| matches!(output, Output::Changed { token: 7, .. });
    for _ in 0..200 {
        lab.run(heartbeat);
        serve(lab);
        if !lab.seen(1, done).is_empty() {
            lab.node_mut(1).seen.retain(|output| !done(output));
            return;
        }
    }
    panic!("the change is not done: {:?}, {:?}", lab.core(1).members(), lab.node(1).seen);
}

/// Three nodes with this configuration and one that joins: it learns, gets its vote, takes the
/// place of another one, and leads.
fn grow(mut config: Config) {
    let heartbeat = config.heartbeat_interval.as_nanos() as u64;
    // A learner that needs a second snapshot gets it after this interval; an hour of heartbeats of
    // 1 ms would be too many to play.
    config.resend_interval = config.resend_interval.min(16 * config.heartbeat_interval);
    let mut lab = Lab::with(4, move |own| {
        let id = own.id;
        own.clone_from(&config);
        (own.id, own.seed, own.dynamic) = (id, Some(0), true);
        own.voters = if id < 4 { vec![1, 2, 3] } else { Vec::new() };
        assert_eq!(own.validate(), Ok(()));
    });
    lab.elect(1);
    for token in 0..12 {
        lab.propose(1, token, "x");
        lab.settle();
        serve(&mut lab);
    }
    change(&mut lab, heartbeat, Change::new().learner(4).address(4, "four"));
    change(&mut lab, heartbeat, Change::new().voter(4).remove(2).remove(3));
    assert_eq!(lab.core(1).members().voters(), [1, 4]);
    change(&mut lab, heartbeat, Change::new().voter(2));
    lab.restart(4);
    assert_eq!(lab.core(4).members().voters(), [1, 2, 4]);
    lab.run(2 * heartbeat);
    assert_eq!(lab.status(4).leader, Some(1));
    lab.step(1, Input::TransferLeadership { to: Some(4) });
    lab.run(2 * heartbeat);
    serve(&mut lab);
    assert_eq!(lab.leader(), Some(4));
    let last = lab.status(4).last;
    for id in [1, 2, 4] {
        let status = lab.status(id);
        assert_eq!((status.commit, status.halted, status.removed), (last, None, None), "{id}");
    }
    // Node 3 has heard of its removal: it asks for no votes.
    assert!(lab.status(3).removed.is_some());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_valid_configuration_works(mut config in config()) {
        (config.id, config.voters) = (1, vec![1, 2, 3]);
        prop_assert_eq!(config.validate(), Ok(()));
        work_a_little(config);
    }

    #[test]
    fn every_valid_configuration_changes_its_members(config in config()) {
        grow(config);
    }

    /// Any durations at all: they are refused or accepted, and nothing overflows.
    #[test]
    fn validation_never_panics(
        nanos in prop::array::uniform5(any::<u64>()),
        long in any::<bool>(),
    ) {
        let mut config = Config::new(1, [1, 2, 3]);
        let [heartbeat, min, max, stall, resend] = nanos.map(|nanos| {
            if long { Duration::new(nanos, 999_999_999) } else { Duration::from_nanos(nanos) }
        });
        config.heartbeat_interval = heartbeat;
        (config.min_election_timeout, config.max_election_timeout) = (min, max);
        (config.disk_stall, config.resend_interval) = (stall, resend);
        let _ = config.validate();
    }
}

#[test]
fn timing_that_cannot_work_does_not_validate() {
    type Set = fn(&mut Config, Duration);
    let ms = Duration::from_millis;
    let (heartbeat, election) = ("heartbeat_interval", "max_election_timeout");
    let refused: [(&str, Set, Duration, &str); 11] = [
        ("no heartbeat", |c, d| c.heartbeat_interval = d, ms(0), heartbeat),
        ("999 us", |c, d| c.heartbeat_interval = d, Duration::from_micros(999), heartbeat),
        ("half a wait", |c, d| c.heartbeat_interval = d, ms(101), "min_election_timeout"),
        ("without end", |c, d| c.heartbeat_interval = d, Duration::MAX, "min_election_timeout"),
        ("in the wrong order", |c, d| c.max_election_timeout = d, ms(199), election),
        ("without end", |c, d| c.max_election_timeout = d, Duration::MAX, election),
        ("before an election", |c, d| c.disk_stall = d, ms(399), "disk_stall"),
        ("without end", |c, d| c.disk_stall = d, Duration::MAX, "disk_stall"),
        ("within a heartbeat", |c, d| c.resend_interval = d, ms(49), "resend_interval"),
        ("without end", |c, d| c.resend_interval = d, Duration::MAX, "resend_interval"),
        ("no time for a proposal", |c, d| c.proposal_timeout = d, ms(0), "proposal_timeout"),
    ];
    for (what, set, duration, field) in refused {
        let mut config = Config::new(1, [1, 2, 3]);
        assert_eq!(config.validate(), Ok(()));
        set(&mut config, duration);
        assert_eq!(config.validate().map_err(|error| error.field), Err(field), "{what}");
    }
}

#[test]
fn voters_and_limits_that_cannot_work_name_their_field() {
    type Set = fn(&mut Config);
    let refused: [(Set, &str); 8] = [
        (|c| c.voters.clear(), "`voters` must name at least one node, unless `dynamic` is set"),
        (|c| c.voters.push(3), "`voters` must name each node once"),
        (|c| c.voters.extend(100..200), "`voters` must not name more than `MAX_VOTERS` nodes"),
        (|c| c.id = 4, "`id` must be one of `voters`, unless `dynamic` is set"),
        (|c| c.max_reads = 0, "`max_reads` must be at least 1"),
        (|c| c.snapshot_window = 0, "`snapshot_window` must be at least 1"),
        (
            |c| c.snapshot_bytes_per_second = Some((64 << 10) - 1),
            "`snapshot_bytes_per_second` must be at least 64 KiB: a chunk of 1 MiB takes 16 s then",
        ),
        (
            |c| c.max_append_entries = 1 << 16,
            "`max_append_entries` must be below 2^16: the message keeps it in 16 bits",
        ),
    ];
    for (set, said) in refused {
        let mut config = Config::new(1, [1, 2, 3]);
        set(&mut config);
        assert_eq!(config.validate().unwrap_err().to_string(), said);
    }
}
