//! An outbox whose sink is a queue, with a real PostgreSQL and a journal on files: the process that
//! relays is killed in between, and nothing is lost, doubled or out of order.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};
use voussoir_journal::Journal;
use voussoir_queue::{Queue, QueueConfig, TopicConfig};
use voussoir_sim::{Rng, Situations};
use voussoir_txn::outbox::*;

static SITUATIONS: [&str; 4] = ["killed", "delivered before a kill", "another topic", "told again"];
const CHILD: &str = "VOUSSOIR_TXN_QUEUE_RELAY";
const TOPICS: [&str; 2] = ["orders", "bills"];
/// A deletion from the outbox waits while the test holds the lock of this number.
const GATE: i64 = 0x766f_7573;
/// Longest wait for a relay to come to where it is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

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

async fn open(dir: &str) -> (Journal, Queue) {
    let journal = Journal::open(dir, voussoir_journal::Config::default()).unwrap();
    let queue = Queue::open(&journal, "q", QueueConfig::default()).unwrap();
    for topic in TOPICS {
        if queue.topic(topic).is_err() {
            queue.create_topic(topic, TopicConfig::partitions(3)).await.unwrap();
        }
    }
    (journal, queue)
}

/// The child of the test below; alone it does nothing.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_process_that_relays_into_a_queue() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let (database, dir) = arguments.split_once(' ').unwrap();
    let (_journal, queue) = open(dir).await;
    let outbox = Outbox::open(config(Some(database)), OutboxConfig::default()).await.unwrap();
    let mut relay = RelayConfig::default();
    relay.lease = Duration::from_millis(300);
    relay.deliver_timeout = Duration::from_millis(150);
    relay.poll = Duration::from_millis(20);
    relay.max_rows = 8;
    let sink = Arc::new(QueueSink::new(&queue, 1000));
    let _relay = Relay::start(&outbox, sink, relay).unwrap();
    // Ends: it is killed.
    std::future::pending::<()>().await;
}

async fn make_gate(client: &Client) {
    let gate = format!(
        "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN NULL; END $$; \
         CREATE TRIGGER gate BEFORE DELETE ON voussoir_outbox EXECUTE FUNCTION gate()"
    );
    client.batch_execute(&gate).await.unwrap();
}

/// Waits until a relay has delivered messages and waits at the gate to delete them.
async fn until_one_waits_at_the_gate(client: &Client) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND \
                   wait_event = 'advisory'";
    let start = Instant::now();
    while client.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(start.elapsed() < PATIENCE, "no relay deletes anything");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The statement that a dead relay has sent dies with it: the server would still carry it out.
async fn end_who_waits_at_the_gate(client: &Client) {
    let end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE \
               datname = current_database() AND wait_event = 'advisory'";
    client.query(end, &[]).await.unwrap();
}

async fn until_fewer_wait(outbox: &Outbox, client: &Client, than: usize) {
    let start = Instant::now();
    while outbox.waiting(client).await.unwrap() as usize >= than {
        assert!(start.elapsed() < PATIENCE, "nothing is delivered");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What is in the queue: key, body and id of each record, in the order of its partition.
async fn records(dir: &str) -> Vec<(String, u64, String)> {
    let (_journal, queue) = open(dir).await;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut all = Vec::new();
    for (topic, number) in TOPICS.iter().flat_map(|topic| (0..3).map(move |number| (topic, number)))
    {
        let partition = queue.topic(topic).unwrap().partition(number).unwrap();
        let mut offset = partition.offsets().start;
        while offset < partition.offsets().end {
            let fetched = partition.fetch(offset, 1 << 20).unwrap();
            for record in fetched.records(usize::MAX) {
                let record = record.unwrap();
                let id = record.last_header(MESSAGE_ID_HEADER).unwrap();
                let key = format!("{topic} {}", text(record.key.as_ref().unwrap()));
                let body = text(record.value.as_ref().unwrap()).parse().unwrap();
                all.push((key, body, text(id)));
            }
            offset = fetched.next_offset;
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs postgresql"]
async fn a_killed_relay_neither_loses_nor_doubles_nor_reorders_what_a_queue_gets() {
    let kills: u64 = std::env::var("VOUSSOIR_KILLS").map_or(6, |kills| kills.parse().unwrap());
    let situations = Situations::new(&SITUATIONS);
    let name = format!("voussoir_outbox_queue_{}", std::process::id());
    connect(None).await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let dir = std::env::temp_dir().join(&name).display().to_string();
    let outbox = Outbox::open(config(Some(&name)), OutboxConfig::default()).await.unwrap();
    let client = connect(Some(&name)).await;
    make_gate(&client).await;
    let mut rng = Rng::new(3);
    let mut body = 0;
    let (mut put, mut deleted) = (0, 0);
    for _ in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["a_process_that_relays_into_a_queue", "--exact", "--include-ignored"])
            .env(CHILD, format!("{name} {dir}"))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_millis(600 + rng.below(400));
        while Instant::now() < until {
            let topic = TOPICS[usize::from(rng.below(8) == 0)];
            situations.add("another topic", u64::from(topic == TOPICS[1]));
            let messages = new_messages(topic, 5, &mut rng, &mut body);
            outbox.put(&client, &messages).await.unwrap();
            put += messages.len();
            outbox.wake();
            // As many as the relay can take: what is left at the end has to be delivered too.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        until_fewer_wait(&outbox, &client, put - deleted).await;
        // It is killed when it has delivered messages and has not deleted them.
        client.execute("SELECT pg_advisory_lock($1)", &[&GATE]).await.unwrap();
        let messages = new_messages(TOPICS[0], 200, &mut rng, &mut body);
        outbox.put(&client, &messages).await.unwrap();
        put += messages.len();
        until_one_waits_at_the_gate(&client).await;
        child.kill().unwrap();
        child.wait().unwrap();
        end_who_waits_at_the_gate(&client).await;
        client.execute("SELECT pg_advisory_unlock($1)", &[&GATE]).await.unwrap();
        let gone = put - outbox.waiting(&client).await.unwrap() as usize;
        situations.add("delivered before a kill", u64::from(gone > deleted));
        deleted = gone;
        situations.reached("killed");
    }
    // What the dead ones had appended and not deleted comes again.
    let (journal, queue) = open(&dir).await;
    let known: std::collections::HashSet<String> = {
        drop(queue);
        journal.close().unwrap();
        records(&dir).await.into_iter().map(|(_, _, id)| id).collect()
    };
    let rows = client.query("SELECT message_id FROM voussoir_outbox", &[]).await.unwrap();
    let again = rows.iter().filter(|row| known.contains(row.get::<_, &str>(0))).count();
    situations.add("told again", again as u64);
    let (journal, queue) = open(&dir).await;
    let mut relay = RelayConfig::default();
    relay.poll = Duration::from_millis(20);
    let relay = Relay::start(&outbox, Arc::new(QueueSink::new(&queue, 1000)), relay).unwrap();
    let start = Instant::now();
    while outbox.waiting(&client).await.unwrap() > 0 {
        assert!(start.elapsed() < Duration::from_secs(30), "{relay:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    relay.stop().await;
    drop(queue);
    journal.close().unwrap();

    check_records(&dir, body).await;
    let drop_it = format!("DROP DATABASE {name} WITH (FORCE)");
    drop((client, outbox));
    connect(None).await.batch_execute(&drop_it).await.unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    situations.assert_all_reached();
}

/// Messages of five keys, whose bodies count on from `body`.
fn new_messages(topic: &str, count: usize, rng: &mut Rng, body: &mut u64) -> Vec<NewMessage> {
    let mut message = |_| {
        *body += 1;
        NewMessage::new(topic, &format!("k{}", rng.below(5)), body.to_string())
    };
    (0..count).map(&mut message).collect()
}

/// Each message up to `last_body` is there once, and those of a key are in order.
async fn check_records(dir: &str, last_body: u64) {
    let records = records(dir).await;
    let mut bodies: Vec<u64> = records.iter().map(|(_, body, _)| *body).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, (1..=last_body).collect::<Vec<u64>>(), "each is there, once");
    let mut last = std::collections::HashMap::new();
    for (key, body, _) in records {
        let before = last.insert(key.clone(), body);
        assert!(before.is_none_or(|before| before < body), "{key}: {body} after {before:?}");
    }
}

/// A delivery that is dropped goes on: the same messages are waited for, and appended once.
#[tokio::test]
async fn a_delivery_that_is_given_up_is_not_appended_twice() {
    let dir = std::env::temp_dir().join(format!("voussoir-txn-sink-{}", std::process::id()));
    let dir = dir.display().to_string();
    let (journal, queue) = open(&dir).await;
    let sink = QueueSink::new(&queue, 100);
    let message = |number: u64, topic: &str| {
        Message::new(&format!("id {number}"), number, topic, "k", number.to_string())
    };
    let all: Vec<Message> = (1..=3).map(|number| message(number, "orders")).collect();
    // Dropped while the append is on its way.
    for _ in 0..5 {
        let given_up = tokio::time::timeout(Duration::ZERO, sink.deliver(&all[..2])).await;
        drop(given_up);
        tokio::task::yield_now().await;
    }
    sink.deliver(&all).await.unwrap();
    sink.deliver(&all).await.unwrap();
    let mixed = [message(3, "orders"), message(4, "bills")];
    sink.deliver(&mixed).await.unwrap();
    assert_eq!(sink.deliver(&[message(5, "none")]).await.unwrap_err().delivered, 0);
    // Another sink reads the ids back.
    QueueSink::new(&queue, 100).deliver(&all).await.unwrap();
    drop((sink, queue));
    journal.close().unwrap();
    let bodies: Vec<u64> = records(&dir).await.into_iter().map(|(_, body, _)| body).collect();
    assert_eq!(bodies, [1, 2, 3, 4]);
    std::fs::remove_dir_all(&dir).unwrap();
}
