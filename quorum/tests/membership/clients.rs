//! Clients and what they may see: registers are linearizable; no acknowledged write of a table is
//! missing, and nothing comes back that was replaced or deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::sleep;
use voussoir_quorum::paxos::{Outcome, Token};
use voussoir_quorum::table::{TableConfig, Value};
use voussoir_quorum::*;
use voussoir_sim::{History, Kv, KvOp, KvRet, Rng, check};

use super::history::{Known, ask, record};
use super::world::World;

/// Failures in a row after which a client asks its operator for the replicas, as one that starts.
const PATIENCE: u32 = 12;
pub(crate) const KEYS: u64 = 6;

#[derive(Default)]
struct Key {
    /// The latest write or delete that was begun, and the latest that was acknowledged; whether
    /// that was a write.
    issued: u64,
    acknowledged: u64,
    is_put: bool,
    /// Values that an acknowledged write or delete was told to replace.
    replaced: BTreeSet<u64>,
}

/// What all clients share.
pub(crate) struct Oracle {
    began: Instant,
    history: Mutex<History<KvOp<u8, u64>, KvRet<u64>>>,
    keys: Mutex<BTreeMap<String, Key>>,
    next_value: AtomicU64,
    pub(crate) is_over: AtomicBool,
    pub(crate) done: AtomicU64,
    pub(crate) in_joint_epochs: AtomicU64,
    pub(crate) resolved: AtomicU64,
    pub(crate) followed: AtomicU64,
    pub(crate) deleted: AtomicU64,
}

impl Oracle {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            history: Mutex::new(History::new()),
            keys: Mutex::default(),
            next_value: AtomicU64::new(1),
            is_over: AtomicBool::new(false),
            done: AtomicU64::new(0),
            in_joint_epochs: AtomicU64::new(0),
            resolved: AtomicU64::new(0),
            followed: AtomicU64::new(0),
            deleted: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn count(&self, membership: &Membership, before: u64) {
        self.done.fetch_add(1, Ordering::Relaxed);
        let is_joint = u64::from(membership.is_changing());
        self.in_joint_epochs.fetch_add(is_joint, Ordering::Relaxed);
        // The first operation of a client asks who the replicas are.
        let has_followed = before > 0 && membership.epoch() > before;
        self.followed.fetch_add(has_followed.into(), Ordering::Relaxed);
    }

    pub(crate) fn check(&self) {
        let history = self.history.lock().unwrap();
        if let Err(error) = check::<Kv<u8, u64>>(&Kv::new(), &history, 50_000_000) {
            panic!("{error}\n{}", history.to_json_lines());
        }
    }
}

fn registers(id: u64, world: &Arc<World>, ids: Vec<u64>) -> Registers {
    let mut config = RegisterConfig::with_acceptors(ids);
    config.timeout = Duration::from_millis(300);
    config.proposer.max_tokens = 512;
    config.proposer.resend_after = Duration::from_millis(20);
    Registers::new(id, config, world.link(id)).unwrap()
}

pub(crate) fn table(id: u64, world: &Arc<World>, ids: Vec<u64>) -> Table {
    let mut config = TableConfig::with_replicas(ids);
    config.timeout = Duration::from_millis(300);
    Table::new(config, world.link(id)).unwrap()
}

/// A table that asks one replica first.
pub(crate) fn near(local: u64, id: u64, world: &Arc<World>) -> Table {
    patient(local, id, world, Duration::from_millis(300))
}

/// The same with another timeout.
pub(crate) fn patient(local: u64, id: u64, world: &Arc<World>, timeout: Duration) -> Table {
    let mut config = TableConfig::with_replicas([1, 2, 3]);
    (config.timeout, config.local) = (timeout, Some(local));
    Table::new(config, world.link(id)).unwrap()
}

pub(crate) async fn register_client(id: u64, world: Arc<World>, oracle: Arc<Oracle>, seed: u64) {
    let mut client = registers(id, &world, vec![1, 2, 3]);
    let (mut rng, mut known, mut failed) = (Rng::stream(seed, id), Known::new(), 0);
    while !oracle.is_over() {
        sleep(Duration::from_millis(rng.below(60))).await;
        if failed >= PATIENCE {
            client = registers(id, &world, world.latest().ids());
            failed = 0;
        }
        let key = rng.below(3) as u8;
        let value = oracle.next_value.fetch_add(1, Ordering::Relaxed);
        let (expected, expect) = known.get(&key).copied().unwrap_or((0, None));
        let op = match rng.below(4) {
            0 => KvOp::Get { key },
            1 => KvOp::Put { key, value },
            _ => KvOp::Cas { key, expect, value },
        };
        let epoch = client.membership().epoch();
        let call = oracle.history.lock().unwrap().invoke(id, op.clone(), oracle.now());
        let result = ask(&client, &op, expected).await;
        match result {
            Ok(_) => {
                failed = 0;
                oracle.count(&client.membership(), epoch);
            }
            Err(_) => failed += 1,
        }
        let outcome = match result {
            Err(RegisterError::Unknown(token)) => {
                oracle.resolved.fetch_add(1, Ordering::Relaxed);
                match resolve(id, &mut client, &world, key, token).await {
                    None => {
                        oracle.history.lock().unwrap().unknown(call, oracle.now());
                        continue;
                    }
                    // Resolved as not made: it never will be.
                    Some(Outcome::NotApplied { .. }) => None,
                    outcome => outcome,
                }
            }
            result => result.ok(),
        };
        let mut history = oracle.history.lock().unwrap();
        record(&mut history, oracle.now(), call, &op, outcome, &mut known);
    }
}

/// Asks until there is an answer, by a client that may start anew: the token outlives it.
async fn resolve(
    id: u64,
    client: &mut Registers,
    world: &Arc<World>,
    key: u8,
    token: Token,
) -> Option<Outcome> {
    let mut failed = 0;
    // Ends: faults do.
    loop {
        match client.resolve(vec![key], token).await {
            Ok(outcome) => return Some(outcome),
            Err(RegisterError::Forgotten) => return None,
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
        failed += 1;
        if failed >= PATIENCE {
            (*client, failed) = (registers(id, world, world.latest().ids()), 0);
        }
    }
}

fn numbers(value: &Value) -> BTreeSet<u64> {
    let number = |value: &Bytes| std::str::from_utf8(value).unwrap().parse().unwrap();
    value.values().map(number).collect()
}

/// Reads a key and checks what it sees against what was known when the read began.
pub(crate) async fn read(oracle: &Oracle, table: &Table, key: &str) -> Option<Value> {
    let (acknowledged, is_put, replaced) = {
        let mut keys = oracle.keys.lock().unwrap();
        let key = keys.entry(key.to_owned()).or_default();
        (key.acknowledged, key.is_put, key.replaced.clone())
    };
    let value = table.get(key.to_owned()).await.ok()?;
    let found = numbers(&value);
    let epoch = table.membership().epoch();
    let back: Vec<_> = found.intersection(&replaced).collect();
    assert!(back.is_empty(), "{key} in epoch {epoch}: {back:?} came back, {found:?}");
    let issued = oracle.keys.lock().unwrap()[key].issued;
    let must_be_there = is_put && acknowledged == issued;
    assert!(
        !must_be_there || found.contains(&acknowledged),
        "{key} in epoch {epoch}: {acknowledged} was acknowledged, found {found:?}"
    );
    Some(value)
}

/// The only writer of its keys, and a reader of all.
pub(crate) async fn table_client(id: u64, world: Arc<World>, oracle: Arc<Oracle>, seed: u64) {
    let mut client = table(id, &world, vec![1, 2, 3]);
    let (mut rng, mut failed) = (Rng::stream(seed, id), 0);
    while !oracle.is_over() {
        sleep(Duration::from_millis(rng.below(40))).await;
        if failed >= PATIENCE {
            client = table(id, &world, world.latest().ids());
            failed = 0;
        }
        let epoch = client.membership().epoch();
        let other = format!("{}-{}", 110 + rng.below(2), rng.below(KEYS));
        failed = if read(&oracle, &client, &other).await.is_some() { 0 } else { failed + 1 };
        let key = format!("{id}-{}", rng.below(KEYS));
        let Some(seen) = read(&oracle, &client, &key).await else { continue };
        let issued = {
            let mut keys = oracle.keys.lock().unwrap();
            let key = keys.entry(key.clone()).or_default();
            key.issued += 1;
            key.issued
        };
        let is_put = rng.below(4) > 0;
        let written = if is_put {
            client.put(key.clone(), seen.context(), issued.to_string()).await
        } else {
            client.delete(key.clone(), seen.context()).await
        };
        if written.is_ok() {
            oracle.count(&client.membership(), epoch);
            oracle.deleted.fetch_add(u64::from(!is_put), Ordering::Relaxed);
            let mut keys = oracle.keys.lock().unwrap();
            let key = keys.get_mut(&key).unwrap();
            (key.acknowledged, key.is_put) = (issued, is_put);
            key.replaced.extend(numbers(&seen));
        }
    }
}
