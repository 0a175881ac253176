//! The kits for participants and sinks of one's own: what is in order passes, and each deliberate
//! defect is found by the check that is about it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_postgres::{Client, NoTls};
use voussoir_journal::Journal;
use voussoir_queue::{Queue, QueueConfig, TopicConfig};
use voussoir_txn::async_trait;
use voussoir_txn::outbox::*;
use voussoir_txn::testing::*;
use voussoir_txn::two_phase::postgres::{PostgresConfig, PostgresParticipant};
use voussoir_txn::two_phase::*;

/// A defect of the participant below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    AppliesBeforeTheDecision,
    KeepsThePreparedInMemory,
    KeepsTheUnprepared,
    FailsARepeatedCommit,
    AppliesARepeatedCommit,
    FailsAnUnknownAbort,
    VotesForTheUnknown,
    VotesReadOnlyTheSecondTime,
    HidesAVoteAfterTheAbort,
    SaysThatItCommitted,
    EndsAllBranches,
    ListsThoseOfOthers,
    ListsAll,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Branch {
    Active,
    Prepared,
    Hidden,
}

#[derive(Default)]
struct State {
    branches: BTreeMap<Gid, Branch>,
    applied: HashMap<Gid, u32>,
}

struct Database(Defect, Mutex<State>);

#[async_trait]
impl Participant for Database {
    async fn prepare(&self, gid: &Gid) -> Result<Vote, PrepareError> {
        let mut state = self.1.lock();
        let State { branches, applied } = &mut *state;
        match (branches.get(gid), self.0) {
            (Some(Branch::Prepared), Defect::VotesReadOnlyTheSecondTime) => {
                return Ok(Vote::ReadOnly);
            }
            (Some(_), Defect::AppliesBeforeTheDecision) => drop(applied.insert(gid.clone(), 1)),
            (Some(_), _) => {}
            (None, Defect::VotesForTheUnknown) => return Ok(Vote::Prepared),
            (None, Defect::HidesAVoteAfterTheAbort) => {
                branches.insert(gid.clone(), Branch::Hidden);
                return Ok(Vote::Prepared);
            }
            (None, _) => return Err(PrepareError::Refused("no such branch".into())),
        }
        branches.insert(gid.clone(), Branch::Prepared);
        Ok(Vote::Prepared)
    }

    async fn finish(&self, gid: &Gid, decision: Decision) -> Result<Applied, ParticipantError> {
        let mut state = self.1.lock();
        let State { branches, applied } = &mut *state;
        let known = branches.remove(gid);
        if self.0 == Defect::EndsAllBranches {
            branches.clear();
        }
        match (known, decision) {
            (Some(_), Decision::Commit) => drop(applied.insert(gid.clone(), 1)),
            (None, Decision::Commit) => match applied.get_mut(gid) {
                None if self.0 == Defect::SaysThatItCommitted => {}
                None => return Err(ParticipantError("it is gone".into())),
                Some(_) if self.0 == Defect::FailsARepeatedCommit => {
                    return Err(ParticipantError("no such branch".into()));
                }
                Some(times) => *times += u32::from(self.0 == Defect::AppliesARepeatedCommit),
            },
            (None, Decision::Abort) if self.0 == Defect::FailsAnUnknownAbort => {
                return Err(ParticipantError("no such branch".into()));
            }
            (_, Decision::Abort) => {}
        }
        Ok(Applied::Done)
    }

    async fn in_doubt(
        &self,
        coordinator: &str,
        max: usize,
    ) -> Result<Vec<InDoubt>, ParticipantError> {
        let max = if self.0 == Defect::ListsAll { usize::MAX } else { max };
        let state = self.1.lock();
        let prepared = state.branches.iter().filter(|(gid, branch)| {
            let own = gid.coordinator() == coordinator || self.0 == Defect::ListsThoseOfOthers;
            **branch == Branch::Prepared && own
        });
        Ok(prepared.take(max).map(|(gid, _)| InDoubt::new(gid.clone(), Duration::ZERO)).collect())
    }
}

struct Own(Arc<Database>);

#[async_trait]
impl ParticipantWorld for Own {
    fn participant(&self) -> Arc<dyn Participant> {
        self.0.clone()
    }

    async fn begin(&mut self, gid: &Gid) {
        self.0.1.lock().branches.insert(gid.clone(), Branch::Active);
    }

    async fn restart(&mut self) {
        let defect = self.0.0;
        self.0.1.lock().branches.retain(|_, branch| match branch {
            Branch::Active => defect == Defect::KeepsTheUnprepared,
            _ => defect != Defect::KeepsThePreparedInMemory,
        });
    }

    async fn effects(&self, gid: &Gid) -> u32 {
        self.0.1.lock().applied.get(gid).copied().unwrap_or(0)
    }
}

#[tokio::test]
async fn each_lie_of_a_participant_is_found_and_a_true_one_passes() {
    use Defect::*;
    let expected = [
        (AppliesBeforeTheDecision, "a_commit_takes_effect_once_and_not_before"),
        (KeepsThePreparedInMemory, "a_prepared_branch_survives_a_crash_and_commits"),
        (KeepsTheUnprepared, "a_branch_that_is_not_prepared_does_not_survive_a_crash"),
        (FailsARepeatedCommit, "a_repeated_commit_is_done"),
        (AppliesARepeatedCommit, "a_repeated_commit_is_done"),
        (FailsAnUnknownAbort, "an_unknown_branch_is_aborted_and_never_prepared"),
        (VotesForTheUnknown, "an_unknown_branch_is_aborted_and_never_prepared"),
        (VotesReadOnlyTheSecondTime, "a_repeated_vote_changes_nothing"),
        (HidesAVoteAfterTheAbort, "a_vote_after_the_abort_is_not_hidden"),
        (SaysThatItCommitted, "a_commit_after_the_abort_is_no_success"),
        (EndsAllBranches, "branches_are_independent"),
        (ListsThoseOfOthers, "lists_are_of_one_coordinator_and_bounded"),
        (ListsAll, "lists_are_of_one_coordinator_and_bounded"),
    ];
    let make = |defect| move || async move { Own(Arc::new(Database(defect, Mutex::default()))) };
    assert_eq!(participant_conformance(make(None)).await, Ok(13));
    for (defect, check) in expected {
        let found = participant_conformance(make(defect)).await.expect_err("a defect is found");
        let checks: Vec<&str> = found.broken.iter().map(|broken| broken.check).collect();
        assert!(checks.contains(&check), "{defect:?}: {found}");
    }
}

fn config() -> tokio_postgres::Config {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL is set by `cargo xtask test`");
    url.parse().unwrap()
}

/// A schema of the server, for each check.
struct Server {
    client: Client,
    schema: String,
    participant: Arc<PostgresParticipant>,
}

impl Server {
    async fn open(number: u32) -> Self {
        let (client, connection) = config().connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        let schema = format!("voussoir_kit_{}_{number}", std::process::id());
        let create = format!("CREATE SCHEMA {schema}; CREATE TABLE {schema}.t (gid TEXT)");
        client.batch_execute(&create).await.unwrap();
        let participant = Self::participant(&schema).await;
        Self { client, schema, participant }
    }

    async fn participant(schema: &str) -> Arc<PostgresParticipant> {
        let mut own = PostgresConfig::default();
        own.max_branches = 4;
        own.schema = schema.to_owned();
        Arc::new(PostgresParticipant::open(config(), own).await.unwrap())
    }
}

#[async_trait]
impl ParticipantWorld for Server {
    fn participant(&self) -> Arc<dyn Participant> {
        self.participant.clone()
    }

    async fn begin(&mut self, gid: &Gid) {
        let branch = self.participant.begin(gid, Duration::from_secs(10)).await.unwrap();
        let insert = format!("INSERT INTO {}.t VALUES ($1)", self.schema);
        branch.execute(&insert, &[&gid.to_string()]).await.unwrap();
    }

    async fn restart(&mut self) {
        self.participant = Self::participant(&self.schema).await;
    }

    async fn effects(&self, gid: &Gid) -> u32 {
        let count = format!("SELECT count(*) FROM {}.t WHERE gid = $1", self.schema);
        let count = self.client.query_one(&count, &[&gid.to_string()]).await.unwrap();
        u32::try_from(count.get::<_, i64>(0)).unwrap()
    }
}

#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_postgresql_database_conforms() {
    let mut number = 0;
    let make = || {
        number += 1;
        Server::open(number)
    };
    let conforms = participant_conformance(make).await;
    let (client, connection) = config().connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    for number in 1..=number {
        let schema = format!("voussoir_kit_{}_{number}", std::process::id());
        client.batch_execute(&format!("DROP SCHEMA {schema} CASCADE")).await.unwrap();
    }
    conforms.unwrap_or_else(|found| panic!("{found}"));
}

/// A defect of the sink below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SinkDefect {
    None,
    AnswersBeforeItIsDurable,
    TakesTheLastFirst,
    AppendsWhatItHas,
    LosesTheIdsInACrash,
    CountsWhatItHasNotTaken,
    LandsLate,
    ForgetsOtherKeys,
}

#[derive(Default)]
struct Log {
    durable: Vec<Message>,
    buffered: Vec<Message>,
    ids: Vec<String>,
}

struct Memory(SinkDefect, Arc<Mutex<Log>>);

#[async_trait]
impl Sink for Memory {
    async fn deliver(&self, messages: &[Message]) -> Result<(), SinkError> {
        let Self(defect, log) = self;
        if *defect == SinkDefect::LandsLate {
            let (log, all) = (Arc::clone(log), messages.to_vec());
            let late = tokio::spawn(async move {
                for message in all {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    log.lock().durable.push(message);
                }
            });
            return late.await.map_err(|error| SinkError::new(0, error));
        }
        for (at, message) in messages.iter().enumerate() {
            tokio::task::yield_now().await;
            let mut log = log.lock();
            if message.topic != "topic" {
                let more = usize::from(*defect == SinkDefect::CountsWhatItHasNotTaken);
                return Err(SinkError::new(at + more, "no such topic"));
            }
            if log.ids.contains(&message.id) && *defect != SinkDefect::AppendsWhatItHas {
                continue;
            }
            log.ids.push(message.id.clone());
            match defect {
                SinkDefect::AnswersBeforeItIsDurable => log.buffered.push(message.clone()),
                SinkDefect::TakesTheLastFirst => log.durable.insert(0, message.clone()),
                SinkDefect::ForgetsOtherKeys => {
                    log.durable.retain(|other| other.key == message.key);
                    log.durable.push(message.clone());
                }
                SinkDefect::CountsWhatItHasNotTaken if at == 2 => {
                    log.buffered.push(message.clone());
                }
                _ => log.durable.push(message.clone()),
            }
        }
        Ok(())
    }
}

#[async_trait]
impl SinkWorld for Memory {
    fn sink(&self) -> Arc<dyn Sink> {
        Arc::new(Self(self.0, Arc::clone(&self.1)))
    }

    async fn restart(&mut self) {
        let mut log = self.1.lock();
        log.buffered.clear();
        if self.0 == SinkDefect::LosesTheIdsInACrash {
            log.ids.clear();
        }
    }

    async fn arrived(&self, key: &str) -> Vec<String> {
        let log = self.1.lock();
        let of = log.durable.iter().filter(|message| message.key == key);
        of.map(|message| message.id.clone()).collect()
    }
}

#[tokio::test]
async fn each_lie_of_a_sink_is_found_and_a_true_one_passes() {
    use SinkDefect::*;
    let expected = [
        (AnswersBeforeItIsDurable, "what_was_taken_is_durable_and_in_order"),
        (TakesTheLastFirst, "what_was_taken_is_durable_and_in_order"),
        (AppendsWhatItHas, "a_repeated_delivery_has_one_effect"),
        (LosesTheIdsInACrash, "a_delivery_after_a_crash_goes_on_where_it_was"),
        (CountsWhatItHasNotTaken, "an_error_counts_what_was_taken"),
        (LandsLate, "a_dropped_delivery_is_made_up_for"),
        (ForgetsOtherKeys, "keys_side_by_side_keep_their_order"),
    ];
    let make = |defect| move || async move { Memory(defect, Arc::default()) };
    assert_eq!(sink_conformance(make(None)).await, Ok(6));
    for (defect, check) in expected {
        let found = sink_conformance(make(defect)).await.expect_err("a defect is found");
        let checks: Vec<&str> = found.broken.iter().map(|broken| broken.check).collect();
        assert!(checks.contains(&check), "{defect:?}: {found}");
    }
}

/// A journal in a folder, and a queue in it.
struct Files {
    dir: std::path::PathBuf,
    open: Option<(Journal, Queue)>,
    sink: Arc<QueueSink>,
}

impl Files {
    async fn open(number: u32) -> Self {
        let name = format!("voussoir-txn-kit-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let (journal, queue) = Self::queue(&dir);
        queue.create_topic("topic", TopicConfig::partitions(2)).await.unwrap();
        let sink = Arc::new(QueueSink::new(&queue, 1000));
        Self { dir, open: Some((journal, queue)), sink }
    }

    fn queue(dir: &std::path::Path) -> (Journal, Queue) {
        let journal = Journal::open(dir, voussoir_journal::Config::default()).unwrap();
        let queue = Queue::open(&journal, "q", QueueConfig::default()).unwrap();
        (journal, queue)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.open = None;
        // An error: the next test run has another name.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[async_trait]
impl SinkWorld for Files {
    fn sink(&self) -> Arc<dyn Sink> {
        self.sink.clone()
    }

    async fn restart(&mut self) {
        let Some((journal, queue)) = self.open.take() else { return };
        let other = Journal::open(self.dir.join("none"), voussoir_journal::Config::default());
        let other = other.unwrap();
        let nowhere = Queue::open(&other, "q", QueueConfig::default()).unwrap();
        self.sink = Arc::new(QueueSink::new(&nowhere, 1));
        drop((queue, journal, nowhere, other));
        let (journal, queue) = Self::queue(&self.dir);
        self.sink = Arc::new(QueueSink::new(&queue, 1000));
        self.open = Some((journal, queue));
    }

    async fn arrived(&self, key: &str) -> Vec<String> {
        let Some((_, queue)) = &self.open else { return Vec::new() };
        let topic = queue.topic("topic").unwrap();
        let mut ids = Vec::new();
        for number in 0..topic.partitions() {
            let partition = topic.partition(number).unwrap();
            let mut offset = partition.offsets().start;
            while offset < partition.offsets().end {
                let fetched = partition.fetch(offset, 1 << 20).unwrap();
                for record in fetched.records(usize::MAX) {
                    let record = record.unwrap();
                    if record.key.as_deref() == Some(key.as_bytes()) {
                        let id = record.last_header(MESSAGE_ID_HEADER).unwrap();
                        ids.push(String::from_utf8(id.to_vec()).unwrap());
                    }
                }
                offset = fetched.next_offset;
            }
        }
        ids
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_conforms_as_a_sink() {
    let mut number = 0;
    let make = || {
        number += 1;
        Files::open(number)
    };
    sink_conformance(make).await.unwrap_or_else(|found| panic!("{found}"));
}
