//! Transfers between two real PostgreSQL databases, whose process is killed with `kill -9` again
//! and again.
//!
//! `VOUSSOIR_KILLS` sets how often (default 4). The child is this program with
//! `VOUSSOIR_TXN_CHILD` set to the folder of its journal.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};
use voussoir_journal::Journal;
use voussoir_sim::{Rng, Situations};
use voussoir_txn::store::{JournalStore, MemoryStore};
use voussoir_txn::two_phase::postgres::{
    BranchError, PostgresConfig, PostgresError, PostgresParticipant,
};
use voussoir_txn::two_phase::*;

const CHILD: &str = "VOUSSOIR_TXN_CHILD";
const DATABASES: &str = "VOUSSOIR_TXN_DATABASES";
const ACCOUNTS: i64 = 16;
const TRANSFERS_AT_ONCE: u64 = 6;
const LIMIT: Duration = Duration::from_secs(30);

fn config(database: Option<&str>) -> tokio_postgres::Config {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL is set by `cargo xtask test`");
    let mut config: tokio_postgres::Config = url.parse().unwrap();
    if let Some(database) = database {
        config.dbname(database);
    }
    config
}

async fn connect(database: Option<&str>) -> Client {
    let (client, connection) = config(database).connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Two databases of the test's own, each with accounts of 1,000.
struct Pair {
    names: [String; 2],
}

impl Pair {
    async fn create(name: &str) -> Self {
        let admin = connect(None).await;
        let names =
            ["left", "right"].map(|side| format!("voussoir_{name}_{}_{side}", std::process::id()));
        for database in &names {
            admin.batch_execute(&format!("CREATE DATABASE {database}")).await.unwrap();
            let client = connect(Some(database)).await;
            client
                .batch_execute(
                    "CREATE TABLE accounts (id BIGINT PRIMARY KEY, cents BIGINT NOT NULL
                     CHECK (cents >= 0))",
                )
                .await
                .unwrap();
            client
                .execute(
                    "INSERT INTO accounts SELECT id, 1000 FROM \
                     generate_series(0::BIGINT, $1::BIGINT - 1) id",
                    &[&ACCOUNTS],
                )
                .await
                .unwrap();
        }
        Self { names }
    }

    async fn total(&self) -> i64 {
        let mut total = 0;
        for database in &self.names {
            let sum = "SELECT sum(cents)::BIGINT FROM accounts";
            total +=
                connect(Some(database)).await.query_one(sum, &[]).await.unwrap().get::<_, i64>(0);
        }
        total
    }

    async fn prepared(&self) -> i64 {
        let count = "SELECT count(*) FROM pg_prepared_xacts WHERE database = ANY($1)";
        let names = self.names.to_vec();
        connect(None).await.query_one(count, &[&names]).await.unwrap().get(0)
    }

    async fn marked(&self) -> i64 {
        let mut marked = 0;
        for database in &self.names {
            let count = "SELECT count(*) FROM voussoir_txn_branches";
            marked +=
                connect(Some(database)).await.query_one(count, &[]).await.unwrap().get::<_, i64>(0);
        }
        marked
    }

    async fn participants(&self) -> [PostgresParticipant; 2] {
        let mut own = PostgresConfig::default();
        own.max_branches = 8;
        let open = |name: &str| PostgresParticipant::open(config(Some(name)), own.clone());
        [open(&self.names[0]).await.unwrap(), open(&self.names[1]).await.unwrap()]
    }

    async fn drop(self) {
        let admin = connect(None).await;
        for database in &self.names {
            let drop = format!("DROP DATABASE {database} WITH (FORCE)");
            admin.batch_execute(&drop).await.unwrap();
        }
    }
}

async fn coordinator(
    name: &str,
    participants: &[PostgresParticipant; 2],
    log: impl DecisionLog,
) -> Coordinator {
    let mut config = CoordinatorConfig::default();
    config.recover_every = Duration::from_millis(200);
    let [left, right] = participants.clone();
    // An id of a branch is unique in the whole server, which other tests use as well.
    Coordinator::builder(name)
        .config(config)
        .participant("left", Arc::new(left))
        .participant("right", Arc::new(right))
        .open(log)
        .await
        .unwrap()
}

/// Moves cents from an account at the left to one at the right, or back if there are less than 0.
async fn transfer(
    coordinator: &Coordinator,
    [left, right]: &[PostgresParticipant; 2],
    (from, to, cents): (i64, i64, i64),
) -> Result<(), String> {
    let mut txn = coordinator.begin().map_err(|error| error.to_string())?;
    let (debit, credit) = (txn.enlist("left").unwrap(), txn.enlist("right").unwrap());
    let add = "UPDATE accounts SET cents = cents + $2 WHERE id = $1";
    let at_left = left.begin(&debit, txn.time_left()).await.map_err(|error| error.to_string())?;
    at_left.execute(add, &[&from, &-cents]).await.map_err(|error| error.to_string())?;
    let at_right =
        right.begin(&credit, txn.time_left()).await.map_err(|error| error.to_string())?;
    at_right.execute(add, &[&to, &cents]).await.map_err(|error| error.to_string())?;
    drop((at_left, at_right));
    txn.commit(Ack::Decided).await.map_err(|error| error.to_string())
}

async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
#[ignore = "needs postgresql"]
async fn both_databases_commit_or_none() {
    let pair = Pair::create("both").await;
    let participants = pair.participants().await;
    let coordinator =
        coordinator(&pair.names[0], &participants, StoreLog::new(MemoryStore::new())).await;
    transfer(&coordinator, &participants, (1, 2, 300)).await.unwrap();
    // The statement itself fails: the transaction is dropped, and both sides roll back.
    let error = transfer(&coordinator, &participants, (1, 2, 701)).await.unwrap_err();
    assert!(error.contains("db error"), "{error}");
    // What only shows when it is prepared: a constraint that is checked at the end.
    let client = connect(Some(&pair.names[1])).await;
    let deferred = "CREATE TABLE notes (id BIGINT UNIQUE DEFERRABLE INITIALLY DEFERRED)";
    client.batch_execute(deferred).await.unwrap();
    let mut txn = coordinator.begin().unwrap();
    let (debit, note) = (txn.enlist("left").unwrap(), txn.enlist("right").unwrap());
    let [left, right] = &participants;
    let at_left = left.begin(&debit, LIMIT).await.unwrap();
    at_left.batch_execute("UPDATE accounts SET cents = 0").await.unwrap();
    let at_right = right.begin(&note, LIMIT).await.unwrap();
    at_right.batch_execute("INSERT INTO notes VALUES (1), (1)").await.unwrap();
    drop((at_left, at_right));
    let error = txn.commit(Ack::Applied).await.unwrap_err();
    assert_eq!(error.outcome(), TxnOutcome::NotApplied);
    assert!(error.to_string().contains("duplicate key"), "{error}");
    until("nothing is prepared", async || pair.prepared().await == 0).await;
    until("all end", async || coordinator.active() == 0).await;
    assert_eq!(pair.total().await, 2 * ACCOUNTS * 1000);
    let at_left = connect(Some(&pair.names[0])).await;
    let one = "SELECT cents FROM accounts WHERE id = 1";
    assert_eq!(at_left.query_one(one, &[]).await.unwrap().get::<_, i64>(0), 700);
    until("the rows of branches are gone", async || pair.marked().await == 0).await;
    drop(coordinator);
    pair.drop().await;
}

#[tokio::test]
#[ignore = "needs postgresql"]
async fn who_only_reads_prepares_nothing() {
    let pair = Pair::create("reads").await;
    let participants = pair.participants().await;
    let coordinator =
        coordinator(&pair.names[0], &participants, StoreLog::new(MemoryStore::new())).await;
    let mut txn = coordinator.begin().unwrap();
    let (read, write) = (txn.enlist("left").unwrap(), txn.enlist("right").unwrap());
    let at_left = participants[0].begin(&read, LIMIT).await.unwrap();
    at_left.query("SELECT * FROM accounts", &[]).await.unwrap();
    let at_right = participants[1].begin(&write, LIMIT).await.unwrap();
    at_right.batch_execute("UPDATE accounts SET cents = cents").await.unwrap();
    drop((at_left, at_right));
    assert_eq!(participants[0].prepare(&read).await.unwrap(), Vote::ReadOnly);
    // Its branch is over, as for one that was never begun, or whose transaction a statement ended.
    let error = txn.commit(Ack::Applied).await.unwrap_err();
    assert!(error.to_string().contains("no work was begun"), "{error}");
    let mut txn = coordinator.begin().unwrap();
    let ended = txn.enlist("left").unwrap();
    let branch = participants[0].begin(&ended, LIMIT).await.unwrap();
    branch.batch_execute("UPDATE accounts SET cents = cents; COMMIT").await.unwrap();
    drop(branch);
    let error = txn.commit(Ack::Applied).await.unwrap_err();
    assert!(error.to_string().contains("ended the transaction"), "{error}");
    // A branch that the caller still holds is refused, and what is sent on it afterwards fails.
    let mut txn = coordinator.begin().unwrap();
    let held = txn.enlist("left").unwrap();
    let branch = participants[0].begin(&held, LIMIT).await.unwrap();
    branch.batch_execute("SET search_path = pg_catalog; SELECT 1").await.unwrap();
    branch.batch_execute("UPDATE public.accounts SET cents = 1 WHERE id = 1").await.unwrap();
    let error = txn.commit(Ack::Applied).await.unwrap_err();
    assert!(error.to_string().contains("still held"), "{error}");
    let late = branch.batch_execute("UPDATE public.accounts SET cents = 1 WHERE id = 1").await;
    assert!(late.is_err(), "it would be committed outside of the transaction");
    drop(branch);
    let mut txn = coordinator.begin().unwrap();
    let dropped = txn.enlist("left").unwrap();
    let branch = participants[0].begin(&dropped, LIMIT).await.unwrap();
    branch.batch_execute("SET search_path = pg_catalog").await.unwrap();
    drop(txn);
    until("the branch is ended", async || {
        branch.batch_execute("UPDATE public.accounts SET cents = 1 WHERE id = 1").await.is_err()
    })
    .await;
    drop(branch);
    assert_eq!(pair.total().await, 2 * ACCOUNTS * 1000);
    until("nothing is prepared", async || pair.prepared().await == 0).await;
    drop(coordinator);
    pair.drop().await;
}

/// greenplum PR #10654, narayana #114: an id that the server does not know is committed if its row
/// is there, and lost if not.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn an_unknown_id_is_told_by_its_row() {
    let pair = Pair::create("rows").await;
    let [left, _] = pair.participants().await;
    let gid: Gid = "vs1:rows:1:0:0".parse().unwrap();
    let lost = Applied::Heuristic(Heuristic::RolledBack);
    assert_eq!(left.finish(&gid, Decision::Commit).await.unwrap(), lost);
    assert_eq!(left.finish(&gid, Decision::Abort).await.unwrap(), Applied::Done);
    let branch = left.begin(&gid, LIMIT).await.unwrap();
    branch.batch_execute("UPDATE accounts SET cents = cents").await.unwrap();
    drop(branch);
    assert_eq!(left.prepare(&gid).await.unwrap(), Vote::Prepared);
    let listed = left.in_doubt("rows", 10).await.unwrap();
    assert_eq!(listed.iter().map(|one| &one.gid).collect::<Vec<_>>(), [&gid]);
    assert_eq!(left.in_doubt("row_", 10).await.unwrap(), []);
    for _ in 0..2 {
        assert_eq!(left.finish(&gid, Decision::Commit).await.unwrap(), Applied::Done);
    }
    let against = Applied::Heuristic(Heuristic::Committed);
    assert_eq!(left.finish(&gid, Decision::Abort).await.unwrap(), against);
    left.forget(std::slice::from_ref(&gid)).await;
    assert_eq!(pair.marked().await, 0);
    let mut many = PostgresConfig::default();
    many.max_branches = 65;
    let many = PostgresParticipant::open(config(Some(&pair.names[0])), many).await.unwrap_err();
    assert!(matches!(many, PostgresError::Slots { needed: 65, found: 64 }), "{many}");
    drop(left);
    pair.drop().await;
}

/// Two transactions that wait for each other in two databases, which neither server can see: each
/// wait for a lock ends with the time of its transaction.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_deadlock_over_two_databases_ends_with_its_transactions() {
    let pair = Pair::create("deadlock").await;
    let participants = pair.participants().await;
    let [left, right] = &participants;
    let mut config = CoordinatorConfig::default();
    config.active_timeout = Duration::from_secs(1);
    let coordinator = Coordinator::builder(&pair.names[0])
        .config(config)
        .participant("left", Arc::new(left.clone()))
        .participant("right", Arc::new(right.clone()))
        .open(StoreLog::new(MemoryStore::new()))
        .await
        .unwrap();
    let lock = "UPDATE accounts SET cents = cents + 1 WHERE id = 1";
    let (mut one, mut two) = (coordinator.begin().unwrap(), coordinator.begin().unwrap());
    let one_left = left.begin(&one.enlist("left").unwrap(), one.time_left()).await.unwrap();
    let two_right = right.begin(&two.enlist("right").unwrap(), two.time_left()).await.unwrap();
    one_left.batch_execute(lock).await.unwrap();
    two_right.batch_execute(lock).await.unwrap();
    let one_right = right.begin(&one.enlist("right").unwrap(), one.time_left()).await.unwrap();
    let two_left = left.begin(&two.enlist("left").unwrap(), two.time_left()).await.unwrap();
    let begun = Instant::now();
    let waits = async { tokio::join!(one_right.batch_execute(lock), two_left.batch_execute(lock)) };
    let (first, second) =
        tokio::time::timeout(Duration::from_secs(15), waits).await.expect("the waits end");
    // A wait fails, or succeeds because the server has ended the idle session of the holder.
    println!("both waits ended within {:?}", begun.elapsed());
    drop((one_left, two_right, one_right, two_left));
    let mut committed = 0;
    for (txn, waited) in [(one, first), (two, second)] {
        match txn.commit(Ack::Applied).await {
            Ok(()) => {
                waited.expect("whose wait failed does not commit");
                committed += 1;
            }
            Err(error) => assert_eq!(error.outcome(), TxnOutcome::NotApplied),
        }
    }
    assert!(committed <= 1, "both held what the other waited for");
    until("all end", async || coordinator.active() == 0).await;
    // A transaction adds a cent in each database, or none in both.
    assert_eq!(pair.total().await, 2 * (ACCOUNTS * 1000 + committed));
    drop(coordinator);
    pair.drop().await;
}

/// The branches that a participant holds open or prepared are bounded, also when the coordinator
/// that should finish them does not.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn prepared_branches_are_bounded() {
    let pair = Pair::create("bound").await;
    let mut own = PostgresConfig::default();
    own.max_branches = 2;
    let left = PostgresParticipant::open(config(Some(&pair.names[0])), own).await.unwrap();
    let gids: Vec<Gid> = (0..3)
        .map(|number| format!("vs1:{}:1:{number}:0", pair.names[0]).parse().unwrap())
        .collect();
    for (gid, id) in gids[..2].iter().zip(0_i64..) {
        let branch = left.begin(gid, LIMIT).await.unwrap();
        branch.execute("UPDATE accounts SET cents = 1 WHERE id = $1", &[&id]).await.unwrap();
        drop(branch);
        assert_eq!(left.prepare(gid).await.unwrap(), Vote::Prepared);
    }
    let limit = Duration::from_millis(200);
    let begun = Instant::now();
    let third = left.begin(&gids[2], limit).await;
    assert!(matches!(third, Err(BranchError::TimedOut(_))), "{third:?}");
    assert!(begun.elapsed() >= limit);
    // Finished, its place is free; so is that of a branch that was read only or was refused.
    assert_eq!(left.finish(&gids[0], Decision::Abort).await.unwrap(), Applied::Done);
    for _ in 0..3 {
        drop(left.begin(&gids[2], LIMIT).await.unwrap());
        assert_eq!(left.prepare(&gids[2]).await.unwrap(), Vote::ReadOnly);
        let held = left.begin(&gids[2], LIMIT).await.unwrap();
        assert!(left.prepare(&gids[2]).await.is_err(), "it is held");
        drop(held);
    }
    assert_eq!(left.finish(&gids[1], Decision::Abort).await.unwrap(), Applied::Done);
    drop(left);
    pair.drop().await;
}

/// The coordinator of this process does not know what became of a commit; its successor elsewhere
/// finishes the branch.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_branch_that_another_process_finishes_gives_its_place_back() {
    let pair = Pair::create("elsewhere").await;
    let mut own = PostgresConfig::default();
    own.max_branches = 2;
    let left = PostgresParticipant::open(config(Some(&pair.names[0])), own).await.unwrap();
    let name = &pair.names[0];
    let gids: Vec<Gid> =
        (0..4).map(|number| format!("vs1:{name}:1:{number}:0").parse().unwrap()).collect();
    for (gid, id) in gids[..2].iter().zip(0_i64..) {
        let branch = left.begin(gid, LIMIT).await.unwrap();
        branch.execute("UPDATE accounts SET cents = 1 WHERE id = $1", &[&id]).await.unwrap();
        drop(branch);
        assert_eq!(left.prepare(gid).await.unwrap(), Vote::Prepared);
    }
    let elsewhere = connect(Some(name)).await;
    elsewhere.batch_execute(&format!("COMMIT PREPARED '{}'", gids[0])).await.unwrap();
    let limit = Duration::from_millis(200);
    assert!(left.begin(&gids[2], limit).await.is_err(), "nobody has looked yet");
    // A list that is cut off, or of another coordinator, proves nothing.
    assert_eq!(left.in_doubt(name, 1).await.unwrap().len(), 1);
    assert!(left.in_doubt("another", 10).await.unwrap().is_empty());
    assert!(left.begin(&gids[2], limit).await.is_err(), "nothing was proven");
    assert_eq!(left.in_doubt(name, 10).await.unwrap().len(), 1);
    let third = left.begin(&gids[2], LIMIT).await.expect("its place is free");
    // The place of a branch that is prepared or open is not.
    assert_eq!(left.in_doubt(name, 10).await.unwrap().len(), 1);
    assert!(left.begin(&gids[3], limit).await.is_err(), "both places are taken");
    drop(third);
    for gid in &gids[1..3] {
        assert_eq!(left.finish(gid, Decision::Abort).await.unwrap(), Applied::Done);
    }
    drop(left);
    pair.drop().await;
}

/// After an outage hundreds of aborted branches are told at once. They share the few connections
/// that the configuration speaks of, and leave the server's others to everybody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs postgresql"]
async fn connections_are_bounded_however_many_branches_are_told() {
    let pair = Pair::create("connections").await;
    let mut own = PostgresConfig::default();
    own.max_branches = 2;
    let left = PostgresParticipant::open(config(Some(&pair.names[0])), own).await.unwrap();
    let mut told = tokio::task::JoinSet::new();
    for number in 0..200 {
        let gid: Gid = format!("vs1:{}:1:{number}:0", pair.names[0]).parse().unwrap();
        let left = left.clone();
        told.spawn(async move {
            let branch = left.begin(&gid, LIMIT).await.unwrap();
            branch.batch_execute("UPDATE accounts SET cents = cents").await.unwrap();
            drop(branch);
            // As its coordinator does for a branch that never voted.
            assert_eq!(left.finish(&gid, Decision::Abort).await.unwrap(), Applied::Done);
            assert_eq!(left.finish(&gid, Decision::Abort).await.unwrap(), Applied::Done);
            left.forget(&[gid]).await;
        });
    }
    let client = connect(None).await;
    // The server's own workers, which clean up behind aborted branches, are no connections.
    let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND \
                 backend_type = 'client backend'";
    let mut most = 0;
    while !told.is_empty() {
        while let Some(ended) = told.try_join_next() {
            ended.unwrap();
        }
        let open: i64 = client.query_one(count, &[&pair.names[0]]).await.unwrap().get(0);
        most = most.max(open);
    }
    assert!((2..=4).contains(&most), "{most} connections for 2 branches");
    drop(left);
    pair.drop().await;
}

/// What a branch leaves in its session is gone with it, whoever has the session next.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_session_is_cleaned_behind_its_branch() {
    let pair = Pair::create("session").await;
    let mut own = PostgresConfig::default();
    own.max_branches = 1;
    let left = PostgresParticipant::open(config(Some(&pair.names[0])), own).await.unwrap();
    let client = connect(Some(&pair.names[0])).await;
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = \
                 (SELECT oid FROM pg_database WHERE datname = current_database())";
    let ends = ["UPDATE accounts SET cents = cents", "SELECT 1", "BEGIN"];
    for (number, work) in ends.into_iter().enumerate() {
        let gid: Gid = format!("vs1:{}:1:{number}:0", pair.names[0]).parse().unwrap();
        let branch = left.begin(&gid, LIMIT).await.unwrap();
        let seen = branch.query_one("SHOW DateStyle", &[]).await.unwrap();
        assert_eq!(seen.get::<_, &str>(0), "ISO, MDY", "as it was before {work:?}");
        branch.batch_execute("SET DateStyle = 'German'; SELECT pg_advisory_lock(7)").await.unwrap();
        branch.batch_execute(work).await.unwrap();
        drop(branch);
        match work {
            "BEGIN" => {}
            "SELECT 1" => assert_eq!(left.prepare(&gid).await.unwrap(), Vote::ReadOnly),
            _ => assert_eq!(left.prepare(&gid).await.unwrap(), Vote::Prepared),
        }
        assert_eq!(left.finish(&gid, Decision::Abort).await.unwrap(), Applied::Done);
        until("its lock is released", async || {
            client.query_one(locks, &[]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
    }
    drop(left);
    pair.drop().await;
}

/// A second branch under one id would replace the first, whose work were lost with its session.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_branch_is_begun_once() {
    let pair = Pair::create("twice").await;
    let mut own = PostgresConfig::default();
    own.max_branches = 4;
    let left = PostgresParticipant::open(config(Some(&pair.names[0])), own).await.unwrap();
    let gid: Gid = format!("vs1:{}:1:0:0", pair.names[0]).parse().unwrap();
    let (one, two) = tokio::join!(left.begin(&gid, LIMIT), left.begin(&gid, LIMIT));
    let (branch, refused) = if one.is_ok() { (one, two) } else { (two, one) };
    let branch = branch.unwrap();
    assert!(refused.unwrap_err().to_string().contains("was begun"));
    branch.batch_execute("UPDATE accounts SET cents = 7 WHERE id = 1").await.unwrap();
    assert!(left.begin(&gid, LIMIT).await.is_err(), "it is open");
    drop(branch);
    assert_eq!(left.prepare(&gid).await.unwrap(), Vote::Prepared);
    assert!(left.begin(&gid, LIMIT).await.is_err(), "it is prepared");
    assert_eq!(left.finish(&gid, Decision::Commit).await.unwrap(), Applied::Done);
    let cents = "SELECT cents FROM accounts WHERE id = 1";
    let client = connect(Some(&pair.names[0])).await;
    assert_eq!(client.query_one(cents, &[]).await.unwrap().get::<_, i64>(0), 7);
    drop(left);
    pair.drop().await;
}

/// A branch whose session the server has ended, and which nobody finishes, gives its place back.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_branch_whose_session_ended_gives_its_place_back() {
    let pair = Pair::create("ended").await;
    let mut own = PostgresConfig::default();
    own.max_branches = 1;
    let left = PostgresParticipant::open(config(Some(&pair.names[0])), own).await.unwrap();
    let gids: Vec<Gid> = (0..2)
        .map(|number| format!("vs1:{}:1:{number}:0", pair.names[0]).parse().unwrap())
        .collect();
    let idle = left.begin(&gids[0], Duration::from_millis(200)).await.unwrap();
    until("the server ends the idle session", async || idle.is_closed()).await;
    let next = left.begin(&gids[1], Duration::from_secs(5)).await.unwrap();
    next.batch_execute("UPDATE accounts SET cents = cents").await.unwrap();
    assert!(matches!(left.prepare(&gids[0]).await, Err(PrepareError::Refused(_))));
    drop((idle, next));
    assert_eq!(left.finish(&gids[1], Decision::Abort).await.unwrap(), Applied::Done);
    drop(left);
    pair.drop().await;
}

/// The row that tells what an unknown id did lies in the configured schema, whatever search path a
/// caller or the user's role has.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn the_search_path_does_not_hide_the_row_of_a_branch() {
    let pair = Pair::create("path").await;
    let client = connect(Some(&pair.names[0])).await;
    let decoy = "CREATE SCHEMA decoy; CREATE TABLE decoy.voussoir_txn_branches (gid TEXT)";
    client.batch_execute(decoy).await.unwrap();
    let mut own = PostgresConfig::default();
    own.schema = "odd \"name\"; --".to_owned();
    let left = PostgresParticipant::open(config(Some(&pair.names[0])), own).await.unwrap();
    let gid: Gid = format!("vs1:{}:1:0:0", pair.names[0]).parse().unwrap();
    let branch = left.begin(&gid, LIMIT).await.unwrap();
    branch.batch_execute("SET search_path = decoy").await.unwrap();
    branch.batch_execute("UPDATE public.accounts SET cents = cents").await.unwrap();
    drop(branch);
    assert_eq!(left.prepare(&gid).await.unwrap(), Vote::Prepared);
    for _ in 0..2 {
        assert_eq!(left.finish(&gid, Decision::Commit).await.unwrap(), Applied::Done);
    }
    let decoys = "SELECT count(*) FROM decoy.voussoir_txn_branches";
    assert_eq!(client.query_one(decoys, &[]).await.unwrap().get::<_, i64>(0), 0);
    drop(left);
    pair.drop().await;
}

/// The child of the test below; alone it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs postgresql"]
async fn a_process_that_is_killed() {
    let (Ok(folder), Ok(names)) = (std::env::var(CHILD), std::env::var(DATABASES)) else { return };
    let (left, right) = names.split_once(' ').unwrap();
    let pair = Pair { names: [left.to_owned(), right.to_owned()] };
    let participants = pair.participants().await;
    let journal = Journal::open(&folder, voussoir_journal::Config::default()).unwrap();
    let store = JournalStore::new(&journal, "decisions").unwrap();
    let coordinator = coordinator(&pair.names[0], &participants, StoreLog::new(store)).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TRANSFERS_AT_ONCE {
        let (coordinator, participants) = (coordinator.clone(), participants.clone());
        tasks.spawn(async move {
            let mut rng = Rng::new(u64::from(std::process::id()) ^ (task << 32));
            // Ends with the process.
            loop {
                let (from, to) =
                    (rng.below(ACCOUNTS.cast_unsigned()), rng.below(ACCOUNTS.cast_unsigned()));
                // Both ways, so that no side runs out.
                let cents = rng.between(1, 20).cast_signed();
                let cents = if rng.below(2) == 0 { cents } else { -cents };
                let moved = (from.cast_signed(), to.cast_signed(), cents);
                match transfer(&coordinator, &participants, moved).await {
                    Ok(()) => println!("moved"),
                    Err(error) => println!("failed {error}"),
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// narayana, citus #2095: whatever the point at which the coordinator dies, the money stays, and
/// the next one leaves no branch prepared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs postgresql"]
async fn killed_coordinators_make_and_lose_no_money() {
    static SITUATIONS: [&str; 2] = ["killed with a branch prepared", "moved money"];
    let kills: u64 = std::env::var("VOUSSOIR_KILLS").map_or(4, |kills| kills.parse().unwrap());
    let situations = Situations::new(&SITUATIONS);
    let pair = Pair::create("kills").await;
    let folder = std::env::temp_dir().join(format!("voussoir-txn-{}", std::process::id()));
    let mut rng = Rng::new(11);
    let (mut moved, mut longest) = (0_u64, Duration::ZERO);
    for _ in 0..kills {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let child = command
            .args(["--include-ignored", "--exact", "--nocapture", "a_process_that_is_killed"])
            .env(CHILD, &folder)
            .env(DATABASES, pair.names.join(" "))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut running = Killed(child);
        let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        let mut own = 0;
        let enough = rng.between(1, 60);
        while own < enough {
            let line = lines.next().expect("the child runs until it is killed").unwrap();
            own += u64::from(line.ends_with("moved"));
            assert!(!line.contains("panicked"), "{line}");
        }
        std::thread::sleep(Duration::from_micros(rng.below(5_000)));
        running.0.kill().unwrap();
        running.0.wait().unwrap();
        situations.add("moved money", own);
        moved += own;
        let left = pair.prepared().await;
        situations.add("killed with a branch prepared", u64::try_from(left).unwrap());
        // The next coordinator, in this process.
        let participants = pair.participants().await;
        let journal = Journal::open(&folder, voussoir_journal::Config::default()).unwrap();
        let store = JournalStore::new(&journal, "decisions").unwrap();
        let start = Instant::now();
        let coordinator = coordinator(&pair.names[0], &participants, StoreLog::new(store)).await;
        until("nothing is prepared", async || pair.prepared().await == 0).await;
        longest = longest.max(start.elapsed());
        until("all end", async || coordinator.active() == 0).await;
        assert_eq!(coordinator.heuristics(), []);
        assert_eq!(pair.total().await, 2 * ACCOUNTS * 1000, "money was made or lost");
        drop(coordinator);
        // The next child opens the journal when this process has closed it.
        journal.close().unwrap();
    }
    println!("{kills} kills, {moved} transfers acknowledged, all settled within {longest:?}");
    println!("{situations}");
    if kills >= 4 {
        situations.assert_all_reached();
    }
    let _ = std::fs::remove_dir_all(&folder);
    pair.drop().await;
}

/// A server that ends the session may have prepared the transaction: while it waits for a standby
/// it has. Only an error says that nothing is prepared.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn what_ends_the_session_leaves_open_whether_it_is_prepared() {
    let pair = Pair::create("ended").await;
    let [left, _] = pair.participants().await;
    let admin = connect(Some(&pair.names[0])).await;
    // A deferred constraint is checked by `PREPARE TRANSACTION`.
    admin
        .batch_execute(
            "CREATE FUNCTION waits() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.id = 1 THEN PERFORM pg_sleep(60); END IF; \
             RAISE EXCEPTION 'not this one'; END $$; \
             CREATE CONSTRAINT TRIGGER waits AFTER UPDATE ON accounts \
             DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION waits()",
        )
        .await
        .unwrap();
    for id in [0, 1] {
        let gid: Gid = format!("vs1:ended:1:{id}:0").parse().unwrap();
        let branch = left.begin(&gid, LIMIT).await.unwrap();
        let update = format!("UPDATE accounts SET cents = cents WHERE id = {id}");
        branch.batch_execute(&update).await.unwrap();
        drop(branch);
        let participant = left.clone();
        let prepared = tokio::spawn(async move { participant.prepare(&gid).await });
        if id == 0 {
            let refused = prepared.await.unwrap().unwrap_err();
            assert!(matches!(&refused, PrepareError::Refused(why) if why == "not this one"));
            continue;
        }
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE wait_event = 'PgSleep' AND datname = current_database()";
        let is_ended = async || admin.query_one(end, &[]).await.unwrap().get::<_, i64>(0) > 0;
        until("the session is ended", is_ended).await;
        let unknown = prepared.await.unwrap().unwrap_err();
        assert!(matches!(unknown, PrepareError::Unknown(_)), "{unknown}");
    }
    drop(left);
    pair.drop().await;
}
