//! Whatever validates works, at its extremes too.

use std::time::Duration;

use proptest::prelude::*;
use voussoir_quorum::paxos::{
    Acceptor, AcceptorInput, AcceptorOutput, Change, Outcome, Proposer, ProposerConfig,
    ProposerInput, ProposerOutput, Record,
};
use voussoir_quorum::store::JournalStoreConfig;
use voussoir_quorum::table::CallError;
use voussoir_quorum::table::{
    Coordinator, CoordinatorInput, CoordinatorOutput, Level, OperationError, ReadRepair, Rejected,
    Replica, ReplicaInput, ReplicaOutput, TableConfig, Value,
};
use voussoir_quorum::version::{Actor, Dot, Hlc, HlcConfig, TickError, Timestamp};
use voussoir_quorum::version::{DotSource, VersionVector};
use voussoir_quorum::{Bytes, Class, Instant, Link, MemoryStore, Node, NodeConfig, async_trait};
use voussoir_quorum::{RegisterConfig, Registers, Table};

/// A link to the only node.
struct Direct(Node);

#[async_trait]
impl Link for Direct {
    async fn call(
        &self,
        _to: u64,
        _class: Class,
        request: Bytes,
        _deadline: Instant,
    ) -> Result<Bytes, CallError> {
        self.0.answer(request).await.ok_or(CallError::Unknown)
    }
}

#[test]
fn a_node_that_cannot_work_is_refused_by_name() {
    let field = |change: &dyn Fn(&mut NodeConfig)| {
        let mut config = NodeConfig::with_replicas([1, 2, 3]);
        change(&mut config);
        config.validate().unwrap_err().field
    };
    let ns = Duration::from_nanos(1);
    assert_eq!(field(&|c| c.replicas = vec![1, 1]), "replicas");
    assert_eq!(field(&|c| (c.replicas, c.write) = (vec![1], Level::Two)), "write");
    // A write that one replica alone holds is lost with it: nothing could be rebuilt.
    assert_eq!(field(&|c| c.write = Level::One), "write");
    assert_eq!(field(&|c| (c.replicas, c.write) = (vec![1, 2], Level::One)), "write");
    for replicas in [vec![1], vec![1, 2], vec![1, 2, 3, 4]] {
        NodeConfig::with_replicas(replicas).validate().unwrap();
    }
    assert_eq!(field(&|c| c.timeout = Duration::from_secs(3_600) + ns), "timeout");
    assert_eq!(field(&|c| c.max_requests = 63), "max_requests");
    assert_eq!(field(&|c| c.max_batch_bytes = (64 << 10) - 1), "max_batch_bytes");
    assert_eq!(field(&|c| c.max_hints = 10_000_001), "max_hints");
    assert_eq!(field(&|c| c.repair_every = Some(Duration::ZERO)), "repair_every");
    let slow = |c: &mut NodeConfig| c.repair_bytes_per_second = (64 << 10) - 1;
    assert_eq!(field(&slow), "repair_bytes_per_second");
    assert_eq!(field(&|c| c.maintain_every = Duration::ZERO), "maintain_every");
    assert_eq!(field(&|c| c.rebuild_bytes_per_second = 0), "rebuild_bytes_per_second");
    assert_eq!(field(&|c| c.collect_every = Some(Duration::ZERO)), "collect_every");
    let mut config = RegisterConfig::with_acceptors([1]);
    config.timeout = Duration::ZERO;
    assert_eq!(config.validate().unwrap_err().field, "timeout");
    config = RegisterConfig::with_acceptors([1]);
    config.max_registers = 0;
    assert_eq!(config.validate().unwrap_err().field, "max_registers");
    config = RegisterConfig::with_acceptors([1]);
    config.max_changes = 0;
    assert_eq!(config.validate().unwrap_err().field, "max_changes");
    assert_eq!(RegisterConfig::default().validate().unwrap_err().field, "acceptors");
    let mut config = JournalStoreConfig::default();
    config.max_garbage_bytes = (64 << 10) - 1;
    assert_eq!(config.validate().unwrap_err().field, "max_garbage_bytes");
}

/// A node of one replica works, with its maintenance.
async fn use_node(config: NodeConfig, registers: RegisterConfig) {
    // Several turns of the maintenance, if it has any within a minute.
    let (timeout, pause) = (config.timeout, config.maintain_every * 3);
    let pause = pause.min(Duration::from_secs(60));
    let store = std::sync::Arc::new(MemoryStore::new());
    let node = Node::create(1, store, config).await.unwrap();
    let link: std::sync::Arc<dyn Link> = std::sync::Arc::new(Direct(node.clone()));
    node.maintain(&link);
    let mut table = TableConfig::with_replicas([1]);
    table.timeout = timeout;
    let table = Table::with_hints(table, std::sync::Arc::clone(&link), &node).unwrap();
    let registers = Registers::new(9, registers, link).unwrap();
    for round in 1..=3 {
        let seen = table.get("k").await.unwrap();
        let state = table.put("k", seen.context(), "v").await.unwrap();
        table.delete("k", state.context()).await.unwrap();
        for key in ["a", "b"] {
            assert_eq!(registers.put(key, "v").await.unwrap(), round);
        }
        tokio::time::sleep(pause).await;
    }
    assert!(node.is_whole());
    let status = node.status();
    drop((node, table, registers));
    // Ends: the last handles go with what was under way, within the longest timeout.
    let ended = async {
        while status.has_changed().is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let wait = pause + timeout + Duration::from_secs(2);
    tokio::time::timeout(wait, ended).await.expect("the node has ended");
}

fn config(max_drift: Duration, mark_step: Duration) -> HlcConfig {
    let mut config = HlcConfig::default();
    (config.max_drift, config.mark_step) = (max_drift, mark_step);
    config
}

#[test]
fn a_clock_that_cannot_work_is_refused_by_name() {
    let (below, second) = (Duration::from_nanos(99_999), Duration::from_secs(1));
    let nanosecond = Duration::from_nanos(1);
    let field = |config: HlcConfig| config.validate().unwrap_err().field;
    assert_eq!(field(config(below, second)), "max_drift");
    assert_eq!(field(config(Duration::from_secs(86_400) + nanosecond, second)), "max_drift");
    assert_eq!(field(config(second, below)), "mark_step");
    assert_eq!(field(config(second, Duration::MAX)), "mark_step");
    let error = Hlc::recover(Actor::new(1, 1), config(second, Duration::ZERO), 0, []).unwrap_err();
    assert_eq!(error.to_string(), "`mark_step` must be from 100 µs to half of `max_drift`");
}

#[test]
fn a_proposer_that_cannot_work_is_refused_by_name() {
    let dot = Dot::new(Actor::new(1, 1), 1);
    let valid = || ProposerConfig::with_acceptors([1, 2, 3]);
    let field = |change: &dyn Fn(&mut ProposerConfig)| {
        let mut config = valid();
        change(&mut config);
        Proposer::new(dot, config).unwrap_err().field
    };
    assert_eq!(field(&|c| c.acceptors = Vec::new()), "acceptors");
    assert_eq!(field(&|c| c.acceptors = vec![1, 2, 1]), "acceptors");
    assert_eq!(field(&|c| c.acceptors = (0..32).collect()), "acceptors");
    assert_eq!(field(&|c| c.resend_after = Duration::from_micros(999)), "resend_after");
    assert_eq!(field(&|c| c.backoff = Duration::MAX), "backoff");
    assert_eq!(field(&|c| c.max_tokens = 0), "max_tokens");
    assert_eq!(field(&|c| c.max_tokens = 1_025), "max_tokens");
    let session = Dot::new(Actor::new(1, 1), 0);
    assert_eq!(Proposer::new(session, valid()).unwrap_err().field, "session");
}

#[test]
fn a_table_that_cannot_work_is_refused_by_name() {
    let field = |change: &dyn Fn(&mut TableConfig)| {
        let mut config = TableConfig::with_replicas([1, 2, 3]);
        change(&mut config);
        config.validate().unwrap_err().field
    };
    assert_eq!(field(&|c| c.replicas = Vec::new()), "replicas");
    assert_eq!(field(&|c| c.replicas = vec![1, 1]), "replicas");
    assert_eq!(field(&|c| c.local = Some(4)), "local");
    assert_eq!(field(&|c| (c.replicas, c.read) = (vec![1], Level::Two)), "read");
    assert_eq!(field(&|c| (c.replicas, c.write) = (vec![1], Level::Two)), "write");
    assert_eq!(field(&|c| c.write = Level::One), "require");
    assert_eq!(field(&|c| c.timeout = Duration::ZERO), "timeout");
    assert_eq!(field(&|c| c.hedge_after = Duration::MAX), "hedge_after");
    assert_eq!(field(&|c| c.max_hedge_percent = 101), "max_hedge_percent");
    assert_eq!(field(&|c| c.max_operations = 0), "max_operations");
}

/// Runs an operation with the first `down` of the coordinator's replicas silent.
fn operate(
    coordinator: &mut Coordinator,
    replicas: &mut [(u64, Replica)],
    down: usize,
    now: &mut u64,
    operation: u64,
) -> Result<Value, OperationError> {
    let mut result = None;
    // Ends: the operation has a deadline, and time moves on when nothing else is to be done.
    loop {
        match coordinator.poll_output() {
            Some(CoordinatorOutput::Done { operation: id, result: given }) => {
                assert!(id == operation && result.is_none(), "one answer");
                result = Some(given);
            }
            Some(CoordinatorOutput::Call { id: call, to, request }) => {
                let at = replicas.iter().position(|(id, _)| *id == to).unwrap();
                if at < down {
                    continue;
                }
                let replica = &mut replicas[at].1;
                replica.request(call, request).unwrap();
                while let Some(output) = replica.poll_output() {
                    match output {
                        ReplicaOutput::Persist { id, .. } => {
                            replica.step(ReplicaInput::Persisted { id });
                        }
                        ReplicaOutput::Reply { id: call, reply } => {
                            coordinator.step(*now, CoordinatorInput::Reply { call, reply });
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            Some(_) => {}
            None => {
                let Some(due) = coordinator.next_deadline() else {
                    return result.expect("an operation that has ended was answered");
                };
                *now = due.max(*now);
                coordinator.step(*now, CoordinatorInput::Time);
            }
        }
    }
}

/// Runs a change with the acceptors in `down` silent.
fn run(config: ProposerConfig, down: usize, now: u64, deadline: u64) -> Outcome {
    let dot = |counter| Dot::new(Actor::new(1, 1), counter);
    let mut acceptors: Vec<_> =
        config.acceptors.iter().map(|_| Acceptor::new(Record::EMPTY)).collect();
    let ids = config.acceptors.clone();
    let mut proposer = Proposer::new(dot(1), config).unwrap();
    proposer.propose(now, dot(2), Change::Write(None), deadline).unwrap();
    let mut now = now;
    // Ends: the change has a deadline, and time moves to the next one when nothing is to be sent.
    loop {
        match proposer.poll_output() {
            Some(ProposerOutput::Done { outcome }) => return outcome,
            Some(ProposerOutput::Send { to, request }) => {
                let at = ids.iter().position(|id| *id == to).unwrap();
                if at < down {
                    continue;
                }
                acceptors[at].step(AcceptorInput::Request { from: 9, request });
                while let Some(output) = acceptors[at].poll_output() {
                    match output {
                        AcceptorOutput::Persist { id, .. } => {
                            acceptors[at].step(AcceptorInput::Persisted { id });
                        }
                        AcceptorOutput::Reply { reply, .. } => {
                            proposer.step(now, ProposerInput::Reply { from: to, reply });
                        }
                    }
                }
            }
            Some(other) => panic!("{other:?}"),
            None => {
                let due = proposer.next_deadline().expect("a change under way has a deadline");
                assert!(due >= now, "time stands still");
                now = due;
                proposer.step(now, ProposerInput::Time);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_valid_node_works(
        timeout_ms in prop_oneof![Just(1), Just(3_600_000), 1..3_600_000_u64],
        max_requests in prop_oneof![Just(64_usize), Just(1_000_000)],
        max_batch_bytes in prop_oneof![Just(64_usize << 10), Just(64 << 20)],
        max_hints in prop_oneof![Just(0_usize), Just(10_000_000)],
        maintain_ms in prop_oneof![Just(1), Just(86_400_000), 1..86_400_000_u64],
        rate in prop_oneof![Just(64_u64 << 10), Just(u64::MAX)],
        collect_ms in proptest::option::of(prop_oneof![Just(1), Just(2_592_000_000_u64)]),
        repair in (proptest::option::of(prop_oneof![Just(1), Just(2_592_000_000_u64)]),
            prop_oneof![Just(64_u64 << 10), Just(u64::MAX)]),
        sizes in (1..3_usize, 1..3_usize),
    ) {
        let mut config = NodeConfig::with_replicas([1]);
        config.repair_every = repair.0.map(Duration::from_millis);
        config.repair_bytes_per_second = repair.1;
        config.timeout = Duration::from_millis(timeout_ms);
        (config.max_requests, config.max_batch_bytes) = (max_requests, max_batch_bytes);
        (config.max_hints, config.rebuild_bytes_per_second) = (max_hints, rate);
        config.maintain_every = Duration::from_millis(maintain_ms);
        config.collect_every = collect_ms.map(Duration::from_millis);
        let mut registers = RegisterConfig::with_acceptors([1]);
        (registers.max_registers, registers.max_changes) = sizes;
        // A new session of the only client may be rejected once, and back off.
        registers.timeout = config.timeout.max(Duration::from_secs(1));
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(use_node(config, registers));
    }
}

proptest! {
    #[test]
    fn every_valid_table_ends_its_operations(
        ids in proptest::collection::btree_set(any::<u64>(), 1..=31),
        levels in (0..4_usize, 0..4_usize),
        repair in 0..3_usize,
        timeout_ms in prop_oneof![Just(1), Just(3_600_000), 1..3_600_000_u64],
        hedge_ms in prop_oneof![Just(1), Just(3_600_000), 100..3_600_000_u64],
        digest_bytes in prop_oneof![Just(0), Just(u32::MAX), 0..200_u32],
        now in prop_oneof![Just(0), 0..u64::MAX / 2],
        down in 0..31_usize,
    ) {
        let all = [Level::One, Level::Two, Level::Quorum, Level::All];
        let mut config = TableConfig::with_replicas(ids);
        (config.read, config.write) = (all[levels.0], all[levels.1]);
        let repairs = [ReadRepair::Off, ReadRepair::Background, ReadRepair::Blocking];
        config.read_repair = repairs[repair];
        config.require = config.guarantee();
        config.timeout = Duration::from_millis(timeout_ms);
        config.hedge_after = Duration::from_millis(hedge_ms);
        config.min_digest_bytes = digest_bytes;
        (config.max_operations, config.local) = (1, config.replicas.last().copied());
        let n = config.replicas.len();
        prop_assume!(config.validate().is_ok());
        let mut coordinator = Coordinator::new(config.clone()).unwrap();
        let mut replicas: Vec<_> = config.replicas.iter().map(|id| {
            let dots = DotSource::recover(Actor::new(*id, 1), 0, []);
            (*id, Replica::recover(dots, [], true))
        }).collect();
        let mut now = now;
        let key = || Bytes::from_static(b"k");
        let put = coordinator.put_blind(now, key(), Bytes::from_static(b"v")).unwrap();
        prop_assert_eq!(
            coordinator.get(now, key(), VersionVector::new()),
            Err(Rejected::Busy { max: 1 })
        );
        let down = down.min(n);
        let up = n - down;
        // The last replica is the primary.
        let written = operate(&mut coordinator, &mut replicas, down, &mut now, put);
        prop_assert_eq!(written.is_ok(), up >= config.write.count(n), "{:?}", written);
        let seen = written.map(|value| value.context().clone()).unwrap_or_default();
        let get = coordinator.get(now, key(), seen).unwrap();
        let read = operate(&mut coordinator, &mut replicas, down, &mut now, get);
        let is_hedged = hedge_ms * n as u64 <= timeout_ms;
        let needed = config.read.count(n).max(config.write.count(n));
        if read.is_ok() {
            prop_assert!(up >= config.read.count(n));
        } else if down == 0 || (is_hedged && up >= needed) {
            prop_assert!(false, "{:?}", read);
        }
    }

    #[test]
    fn every_valid_proposer_ends_its_changes(
        ids in proptest::collection::btree_set(any::<u64>(), 1..=31),
        resend_ms in prop_oneof![Just(1), Just(60_000), 1..60_000_u64],
        backoff_ms in prop_oneof![Just(1), Just(60_000), 1..60_000_u64],
        max_tokens in prop_oneof![Just(1), Just(1_024), 1..1_024_usize],
        now in prop_oneof![Just(0), any::<u64>()],
        down in 0..31_usize,
    ) {
        let mut config = ProposerConfig::with_acceptors(ids);
        config.resend_after = Duration::from_millis(resend_ms);
        config.backoff = Duration::from_millis(backoff_ms);
        (config.max_tokens, config.seed) = (max_tokens, Some(1));
        let count = config.acceptors.len();
        let has_quorum = down.min(count) < count.div_ceil(2);
        let deadline = now.saturating_add(300_000_000);
        let outcome = run(config, down, now, deadline);
        let is_applied = outcome == Outcome::Applied { version: 1 };
        prop_assert_eq!(is_applied, has_quorum, "{:?}", outcome);
    }

    #[test]
    fn every_valid_clock_rises(
        drift_ms in prop_oneof![Just(1), Just(86_400_000), 1..86_400_000_u64],
        share in prop_oneof![Just(0), Just(1_000), 0..1_000_u64],
        walls in proptest::collection::vec(
            prop_oneof![Just(0), Just(Timestamp::MAX_PHYSICAL), 0..1_u64 << 61], 1..20),
    ) {
        let drift = Duration::from_millis(drift_ms);
        let least = Duration::from_micros(100);
        let config = config(drift, least.max(drift / 2 * share as u32 / 1_000));
        let mut clock = Hlc::recover(Actor::new(1, 1), config, 0, []).unwrap();
        let mut last = None;
        for wall in walls {
            if let Some(mark) = clock.next_mark(wall) {
                clock.mark_persisted(mark);
            }
            // What was written ahead is not enough where the wall clock has jumped back.
            let mut tick = clock.tick(wall);
            if let Err(TickError::MarkNeeded { mark }) = tick {
                clock.mark_persisted(mark);
                tick = clock.tick(wall);
            }
            match tick {
                Ok(next) => {
                    prop_assert!(last.is_none_or(|last| last < next));
                    last = Some(next);
                }
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }
}
