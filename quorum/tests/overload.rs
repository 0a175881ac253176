//! More operations at once than the nodes answer in time: what a queue answers is answered, and the
//! rest is turned away before anything is sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use voussoir_quorum::table::{CallError, OperationError, Outcome, Rejected, TableConfig};
use voussoir_quorum::*;

const NODES: [u64; 3] = [1, 2, 3];

/// A link to nodes each of which answers one request after the other.
struct Served {
    nodes: Vec<Node>,
    /// How long a node takes for a request.
    each: Duration,
    /// When each node has answered all that it was sent.
    free_at: Mutex<BTreeMap<u64, Instant>>,
    calls: AtomicU64,
}

impl Served {
    async fn new(requests_per_second: u32) -> Arc<Self> {
        let mut nodes = Vec::new();
        for id in NODES {
            let store = Arc::new(MemoryStore::new());
            nodes.push(Node::create(id, store, NodeConfig::with_replicas(NODES)).await.unwrap());
        }
        let each = Duration::from_secs(1) / requests_per_second;
        let (free_at, calls) = (Mutex::default(), AtomicU64::new(0));
        Arc::new(Self { nodes, each, free_at, calls })
    }

    fn free_at(&self, node: u64) -> Instant {
        let now = Instant::now();
        self.free_at.lock().get(&node).map_or(now, |at| now.max(*at))
    }
}

#[async_trait]
impl Link for Served {
    async fn call(
        &self,
        to: u64,
        _: Class,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        // Also what nobody waits for any more takes its time.
        let turn = self.free_at(to) + self.each;
        self.free_at.lock().insert(to, turn);
        tokio::time::sleep_until(turn.min(deadline)).await;
        if deadline < turn {
            return Err(CallError::Unknown);
        }
        let node = self.nodes.iter().find(|node| node.id() == to).ok_or(CallError::NotSent)?;
        node.answer(request).await.ok_or(CallError::Unknown)
    }
}

/// How the operations of a burst have ended.
#[derive(Debug, Default)]
struct Ended {
    ok: u32,
    /// Nothing was done.
    refused: u32,
    unknown: u32,
}

async fn ended(mut running: JoinSet<Option<Outcome>>) -> Ended {
    let mut ended = Ended::default();
    while let Some(result) = running.join_next().await {
        match result.unwrap() {
            None => ended.ok += 1,
            Some(Outcome::Unknown) => ended.unknown += 1,
            Some(_) => ended.refused += 1,
        }
    }
    ended
}

fn outcome_of(error: &TableError) -> Outcome {
    match error {
        TableError::Rejected(Rejected::Busy { .. })
        | TableError::Failed(OperationError::Unavailable { .. }) => assert!(error.is_retryable()),
        TableError::Failed(OperationError::WriteUnknown { .. }) => {}
        other => panic!("{other:?}"),
    }
    error.outcome()
}

async fn puts(table: &Table, count: u32) -> Ended {
    let mut running = JoinSet::new();
    for key in 0..count {
        let table = table.clone();
        running.spawn(async move {
            let result = table.put_blind(format!("k{key}"), "v").await;
            result.err().map(|error| outcome_of(&error))
        });
    }
    ended(running).await
}

async fn changes(registers: &Registers, round: u32, count: u32) -> Ended {
    let mut running = JoinSet::new();
    for key in 0..count {
        let registers = registers.clone();
        running.spawn(async move {
            match registers.put(format!("k{round}-{key}"), "v").await {
                Ok(_) => None,
                Err(RegisterError::Unknown(_)) => Some(Outcome::Unknown),
                Err(error) => {
                    assert!(error.is_retryable(), "{error:?}");
                    Some(Outcome::NotApplied)
                }
            }
        });
    }
    ended(running).await
}

/// Of ten times what the nodes do in the time of an operation, at least half of what they do is
/// answered, and next to nothing has an unknown outcome. Each put is one request to each node.
#[tokio::test(start_paused = true)]
async fn a_burst_on_a_table_costs_no_more_than_a_queue() {
    for capacity in [150, 400, 2_000] {
        let link = Served::new(capacity).await;
        let table = Table::new(TableConfig::with_replicas(NODES), link.clone()).unwrap();
        table.put_blind("first", "v").await.unwrap();
        for _ in 0..3 {
            let began = Instant::now();
            let ended = puts(&table, 10 * capacity).await;
            println!("{capacity} puts a second: {ended:?} in {:?}", began.elapsed());
            assert!(ended.ok >= capacity / 2, "{ended:?}");
            assert!(ended.unknown <= capacity / 20, "{ended:?}");
            assert!(began.elapsed() <= Duration::from_secs(1));
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        // What can be answered in time is, however many there are at once.
        let ended = puts(&table, capacity * 6 / 10).await;
        println!("{ended:?}");
        assert!(ended.ok >= capacity / 2, "{ended:?}");
    }
}

/// The same of registers that were never written. Each put is two requests to each node, and none
/// is sent twice.
#[tokio::test(start_paused = true)]
async fn a_burst_on_registers_costs_no_more_than_a_queue() {
    for capacity in [150, 400, 2_000] {
        let link = Served::new(2 * capacity).await;
        let config = RegisterConfig::with_acceptors(NODES);
        let registers = Registers::new(9, config, link.clone()).unwrap();
        registers.put("first", "v").await.unwrap();
        for round in 0..3 {
            let (began, calls) = (Instant::now(), link.calls.load(Ordering::Relaxed));
            let ended = changes(&registers, round, 10 * capacity).await;
            let calls = link.calls.load(Ordering::Relaxed) - calls;
            println!(
                "{capacity} changes a second: {ended:?}, {calls} calls, {:?}",
                began.elapsed()
            );
            assert!(ended.ok >= capacity / 2, "{ended:?}");
            assert!(ended.unknown <= capacity / 20, "{ended:?}");
            assert!(began.elapsed() <= Duration::from_secs(1));
            assert!(calls <= u64::from(ended.ok + ended.unknown) * 6, "{calls} calls of {ended:?}");
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
}

/// A slow acceptor is not sent what it has been sent already; a lost request is sent again.
#[tokio::test(start_paused = true)]
async fn an_acceptor_has_one_call_of_a_change_at_a_time() {
    let link = Served::new(4).await;
    let registers = RegisterConfig::with_acceptors(NODES);
    let registers = Registers::new(9, registers, link.clone()).unwrap();
    // Asks who the acceptors are.
    let _ = registers.get("first").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let calls = link.calls.load(Ordering::Relaxed);
    assert_eq!(registers.put("k", "v").await, Ok(1));
    assert_eq!(link.calls.load(Ordering::Relaxed) - calls, 6);
}
