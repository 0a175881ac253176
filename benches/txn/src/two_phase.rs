//! Two-phase commit over two PostgreSQL databases: ours, acknowledged once it is decided, beside
//! the naive form, and beside commits of the two databases that are not atomic. All do the same
//! work: one row is updated in each database, by statements sent to both at once, and everything is
//! synced. A round ends when every branch has been told.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_postgres::{Client, Config};
use voussoir_journal::Journal;
use voussoir_txn::store::JournalStore;
use voussoir_txn::two_phase::postgres::{PostgresConfig, PostgresParticipant};
use voussoir_txn::two_phase::{Ack, Coordinator, Gid, StoreLog};

use crate::bars::{Bars, Side};
use crate::databases::{Two, connect, first};
use crate::report::{Figure, Report};
use crate::{block_on, median};

const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_secs(2);
const CLIENTS: u64 = 32;
/// So many that a transaction rarely waits for the row of another.
const ROWS: u64 = 20_000;

/// The row that the next transaction updates, by whomever.
static NEXT: AtomicU64 = AtomicU64::new(0);

fn update() -> String {
    let row = NEXT.fetch_add(1, Ordering::Relaxed) % ROWS;
    format!("UPDATE bench_rows SET n = n + 1 WHERE id = {row}")
}

/// A client that makes one transaction after the other.
trait Way: Send + Sync + 'static {
    type Client: Send + 'static;

    fn client(&self) -> impl Future<Output = Self::Client> + Send;
    fn transaction(&self, client: &mut Self::Client) -> impl Future<Output = ()> + Send;
    /// Waits until nothing of the transactions is left to do.
    fn settled(&self) -> impl Future<Output = ()> + Send;
}

/// What a round has shown.
struct Round {
    p50_ms: f64,
    per_second: f64,
}

async fn round<W: Way>(way: &Arc<W>, clients: u64) -> Round {
    let mut ready = Vec::new();
    for _ in 0..clients {
        ready.push(way.client().await);
    }
    let (mut tasks, start) = (JoinSet::new(), Instant::now());
    for mut client in ready {
        let way = Arc::clone(way);
        tasks.spawn(async move {
            let mut times = Vec::new();
            // Ends: after `TIME`.
            while start.elapsed() < TIME {
                let begin = Instant::now();
                way.transaction(&mut client).await;
                times.push(begin.elapsed().as_secs_f64() * 1e3);
            }
            times
        });
    }
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        times.extend(ended.expect("a client"));
    }
    way.settled().await;
    let per_second = times.len() as f64 / start.elapsed().as_secs_f64();
    Round { p50_ms: median(times), per_second }
}

/// A connection to each of the two databases.
async fn both(databases: &[Config; 2]) -> [Client; 2] {
    [connect(&databases[0]).await, connect(&databases[1]).await]
}

async fn on_both(clients: &[Client; 2], statements: [&str; 2]) {
    let [a, b] = clients;
    let sent = tokio::join!(a.batch_execute(statements[0]), b.batch_execute(statements[1]));
    sent.0.expect("the first database does it");
    sent.1.expect("the second database does it");
}

/// Commits of both databases at once. Not atomic: the floor.
struct Plain {
    databases: [Config; 2],
}

impl Way for Plain {
    type Client = [Client; 2];

    async fn client(&self) -> [Client; 2] {
        both(&self.databases).await
    }

    async fn transaction(&self, clients: &mut [Client; 2]) {
        on_both(clients, ["BEGIN"; 2]).await;
        on_both(clients, [&update(), &update()]).await;
        on_both(clients, ["COMMIT"; 2]).await;
    }

    async fn settled(&self) {}
}

/// Prepares on both, writes and syncs its decision to a file, commits on both.
struct Naive {
    databases: [Config; 2],
    decisions: Arc<Mutex<File>>,
    /// Whether decisions are written at all. Without them it is not atomic past a crash.
    has_log: bool,
}

impl Way for Naive {
    type Client = [Client; 2];

    async fn client(&self) -> [Client; 2] {
        both(&self.databases).await
    }

    async fn transaction(&self, clients: &mut [Client; 2]) {
        on_both(clients, ["BEGIN"; 2]).await;
        on_both(clients, [&update(), &update()]).await;
        let id = uuid::Uuid::new_v4();
        let prepare = format!("PREPARE TRANSACTION '{id}'");
        on_both(clients, [&prepare, &prepare.replace("N '", "N 'b")]).await;
        if self.has_log {
            let decisions = Arc::clone(&self.decisions);
            let written = tokio::task::spawn_blocking(move || {
                let mut file = decisions.lock().expect("no panic");
                file.write_all(id.to_string().as_bytes())?;
                file.sync_data()
            });
            written.await.expect("no panic").expect("the decision is written");
        }
        let commit = format!("COMMIT PREPARED '{id}'");
        on_both(clients, [&commit, &commit.replace("D '", "D 'b")]).await;
    }

    async fn settled(&self) {}
}

struct Ours {
    coordinator: Coordinator,
    participants: [PostgresParticipant; 2],
}

impl Ours {
    async fn open(two: &Two, journal: &Journal) -> Self {
        let mut config = PostgresConfig::default();
        // With one server, both share its 64.
        config.max_branches = if two.are_apart { 64 } else { 32 };
        let open = |at: &Config| PostgresParticipant::open(at.clone(), config.clone());
        let a = open(&two.at[0]).await.expect("the first database takes part");
        let b = open(&two.at[1]).await.expect("the second database takes part");
        let log = StoreLog::new(JournalStore::new(journal, "decisions").expect("a namespace"));
        let coordinator = Coordinator::builder("bench")
            .participant("a", Arc::new(a.clone()))
            .participant("b", Arc::new(b.clone()))
            .open(log)
            .await
            .expect("the coordinator opens");
        Self { coordinator, participants: [a, b] }
    }

    async fn work(&self, number: usize, gid: &Gid, limit: Duration) {
        let branch = self.participants[number].begin(gid, limit).await.expect("a branch");
        branch.batch_execute(&update()).await.expect("the update");
    }
}

impl Way for Ours {
    type Client = ();

    async fn client(&self) {}

    async fn transaction(&self, (): &mut ()) {
        let mut txn = self.coordinator.begin().expect("it begins");
        let a = txn.enlist("a").expect("the first takes part");
        let b = txn.enlist("b").expect("the second takes part");
        let limit = txn.time_left();
        tokio::join!(self.work(0, &a, limit), self.work(1, &b, limit));
        txn.commit(Ack::Decided).await.expect("it is committed");
    }

    async fn settled(&self) {
        while self.coordinator.active() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// The rounds of one way.
#[derive(Default)]
struct Rounds {
    p50_ms: Vec<f64>,
    per_second: Vec<f64>,
}

impl Rounds {
    fn push(&mut self, round: &Round) {
        self.p50_ms.push(round.p50_ms);
        self.per_second.push(round.per_second);
    }
}

pub fn commit(report: &mut Report, bars: &mut Bars) {
    let Some(server) = first("commit") else { return };
    let dir = tempfile::tempdir_in("target").expect("a folder");
    let journal = Journal::open(&dir.path().join("journal"), voussoir_journal::Config::default());
    let journal = journal.expect("the journal opens");
    block_on(async {
        let two = Two::create(server).await;
        println!("two databases in {}", if two.are_apart { "two servers" } else { "one server" });
        let tables = format!(
            "CREATE TABLE bench_rows (id BIGINT PRIMARY KEY, n BIGINT); \
             INSERT INTO bench_rows SELECT id, 0 FROM generate_series(0, {ROWS}) id; CHECKPOINT"
        );
        on_both(&both(&two.at).await, [&tables, &tables]).await;
        let decisions = File::create(dir.path().join("decisions")).expect("a file");
        let decisions = Arc::new(Mutex::new(decisions));
        let naive = |has_log| {
            let (databases, decisions) = (two.at.clone(), Arc::clone(&decisions));
            Arc::new(Naive { databases, decisions, has_log })
        };
        let (plain, logged, unlogged) =
            (Arc::new(Plain { databases: two.at.clone() }), naive(true), naive(false));
        let ours = Arc::new(Ours::open(&two, &journal).await);
        compare(report, bars, 1, &ours, &plain, &logged, &unlogged).await;
        compare(report, bars, CLIENTS, &ours, &plain, &logged, &unlogged).await;
        drop(ours);
        two.remove().await;
    });
}

async fn compare(
    report: &mut Report,
    bars: &mut Bars,
    clients: u64,
    ours: &Arc<Ours>,
    plain: &Arc<Plain>,
    logged: &Arc<Naive>,
    unlogged: &Arc<Naive>,
) {
    let mut rounds: [Rounds; 4] = Default::default();
    for count in 0..=ROUNDS {
        let shown = [
            round(ours, clients).await,
            round(plain, clients).await,
            round(logged, clients).await,
            round(unlogged, clients).await,
        ];
        // The first does not count: connections, caches.
        if count > 0 {
            rounds.iter_mut().zip(&shown).for_each(|(rounds, shown)| rounds.push(shown));
        }
    }
    let [ours, plain, logged, unlogged] = rounds;
    let rivals = [
        ("two commits, not atomic", &plain),
        ("naive, decision in a file", &logged),
        ("naive, no decision log", &unlogged),
    ];
    for (rival, theirs) in rivals {
        let name = format!("2PC, two databases, {clients} clients, p50");
        let their = Figure::from(theirs.p50_ms.clone());
        report.beside(&name, Figure::from(ours.p50_ms.clone()), rival, their, "ms");
        let name = format!("2PC, two databases, {clients} clients");
        let their = Figure::from(theirs.per_second.clone());
        report.beside(&name, Figure::from(ours.per_second.clone()), rival, their, "1/s");
    }
    if clients == 1 {
        let name = "2PC, one client, p50 to the naive form's";
        bars.add_ratio(name, &ours.p50_ms, &logged.p50_ms, Side::AtMost, 0.6);
    } else {
        let name = "2PC/s, 32 clients, to parallel plain commits";
        bars.add_ratio(name, &ours.per_second, &plain.per_second, Side::AtLeast, 0.65);
    }
}
