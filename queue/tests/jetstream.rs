//! JetStream as a back end, on a real server, by the suite that every back end has to pass; and
//! what the suite cannot ask.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use voussoir_queue::backend::jetstream::async_nats;
use voussoir_queue::backend::jetstream::async_nats::jetstream::{self, stream};
use voussoir_queue::backend::jetstream::{JetStream, JetStreamConfig};
use voussoir_queue::backend::*;
use voussoir_queue::testing::conformance;
use voussoir_queue::{Outcome, Record};

const MS: Duration = Duration::from_millis(1);

async fn client() -> async_nats::Client {
    let url = std::env::var("NATS_URL").expect("NATS_URL is set by `cargo xtask test`");
    async_nats::connect(url).await.expect("the server answers")
}

async fn backend(test: &str, change: impl FnOnce(&mut JetStreamConfig)) -> Arc<dyn Backend> {
    let mut config = JetStreamConfig::default();
    config.prefix = format!("{test}-{}", std::process::id());
    change(&mut config);
    Arc::new(JetStream::new(client().await, config).expect("a valid configuration"))
}

/// Between the back end and the server.
struct Proxy {
    port: u16,
    /// What the server says is dropped, and the connection is cut when this ends.
    swallows: watch::Sender<bool>,
    /// Nobody is connected, and nobody can connect.
    is_down: watch::Sender<bool>,
}

impl Proxy {
    async fn new() -> Self {
        let url = std::env::var("NATS_URL").expect("NATS_URL is set by `cargo xtask test`");
        let server = url.rsplit('/').next().expect("an address").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let (swallows, is_down) = (watch::Sender::new(false), watch::Sender::new(false));
        let (swallowed, down) = (swallows.subscribe(), is_down.subscribe());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *down.borrow() {
                    continue;
                }
                let server = TcpStream::connect(&server).await.expect("the server answers");
                tokio::spawn(carry(client, server, swallowed.clone(), down.clone()));
            }
        });
        Self { port, swallows, is_down }
    }

    async fn backend(
        &self,
        test: &str,
        change: impl FnOnce(&mut JetStreamConfig),
    ) -> Arc<dyn Backend> {
        let client = async_nats::connect(format!("127.0.0.1:{}", self.port)).await;
        let mut config = JetStreamConfig::default();
        config.prefix = format!("{test}-{}", std::process::id());
        change(&mut config);
        Arc::new(JetStream::new(client.expect("it is there"), config).expect("a valid one"))
    }
}

async fn carry(
    client: TcpStream,
    server: TcpStream,
    mut swallows: watch::Receiver<bool>,
    mut is_down: watch::Receiver<bool>,
) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let up = async move { tokio::io::copy(&mut from_client, &mut to_server).await.map(|_| ()) };
    let told = swallows.clone();
    let down = async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = from_server.read(&mut buffer).await?;
            if read == 0 {
                return Ok::<(), std::io::Error>(());
            }
            if !*told.borrow() {
                to_client.write_all(&buffer[..read]).await?;
            }
        }
    };
    let swallowed = async {
        let _ = swallows.wait_for(|swallows| *swallows).await;
        let _ = swallows.wait_for(|swallows| !*swallows).await;
    };
    tokio::select! {
        _ = up => {}
        _ = down => {}
        () = swallowed => {}
        _ = is_down.wait_for(|is_down| *is_down) => {}
    }
}

/// The answers to a call are lost, and then the connection. The records are sent again when the
/// time of one request is over, and not when those of all are, one after the other.
#[tokio::test]
#[ignore = "needs nats"]
async fn lost_answers_are_asked_for_again_together() {
    let proxy = Proxy::new().await;
    let backend = proxy.backend("lost", |config| config.request_timeout = Duration::from_secs(1));
    let backend = backend.await;
    backend.create_topic("t", 1).await.expect("a topic");
    let producer = backend.producer().await.expect("a producer");
    producer.send_one("t", Record::new("first")).await.expect("it is stored");
    proxy.swallows.send_replace(true);
    let began = Instant::now();
    let records: Vec<Record> = (0..50).map(|at: u32| Record::new(at.to_string())).collect();
    let sender = Arc::clone(&producer);
    let sending = tokio::spawn(async move { sender.send("t", records).await });
    sleep(500 * MS).await;
    proxy.swallows.send_replace(false);
    let answers = sending.await.expect("it ends");
    // One after the other they would take 50 s.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let offsets: Vec<u64> =
        answers.into_iter().map(|answer| answer.expect("sent").offset).collect();
    assert_eq!(offsets, (2..52).collect::<Vec<u64>>(), "each is stored once, in order");
}

/// The server has stored the record and forgotten its id when the connection is back: what the
/// client had parked meanwhile would be stored once more, and nobody had asked for it.
#[tokio::test]
#[ignore = "needs nats"]
async fn nothing_is_parked_until_its_id_is_forgotten() {
    let proxy = Proxy::new().await;
    let backend = proxy.backend("parked", |config| {
        config.duplicate_window = Duration::from_secs(3);
        config.delivery_timeout = Duration::from_secs(2);
        config.request_timeout = 500 * MS;
    });
    let backend = backend.await;
    backend.create_topic("t", 1).await.expect("a topic");
    let producer = backend.producer().await.expect("a producer");
    producer.send_one("t", Record::new("first")).await.expect("it is stored");
    proxy.swallows.send_replace(true);
    let sender = Arc::clone(&producer);
    let sending = tokio::spawn(async move { sender.send_one("t", Record::new("lost")).await });
    sleep(200 * MS).await;
    proxy.is_down.send_replace(true);
    proxy.swallows.send_replace(false);
    let error = sending.await.expect("it ends").expect_err("nobody answers");
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    sleep(Duration::from_secs(4)).await;
    proxy.is_down.send_replace(false);
    let mut offset = Err(error);
    for _ in 0..10 {
        if offset.is_err() {
            offset = producer.send_one("t", Record::new("last")).await.map(|sent| sent.offset);
        }
    }
    assert_eq!(offset, Ok(3), "one record was lost from sight, and is stored once");
}

/// No call takes longer than `delivery_timeout`, also when the answers never come.
#[tokio::test]
#[ignore = "needs nats"]
async fn a_full_producer_says_so_in_time() {
    let proxy = Proxy::new().await;
    let backend = proxy.backend("full", |config| {
        config.delivery_timeout = Duration::from_secs(2);
        config.request_timeout = Duration::from_secs(2);
    });
    let backend = backend.await;
    backend.create_topic("t", 1).await.expect("a topic");
    let producer = backend.producer().await.expect("a producer");
    producer.send_one("t", Record::new("first")).await.expect("it is stored");
    proxy.swallows.send_replace(true);
    let mut sending = JoinSet::new();
    // More than the producer has on its way at once.
    for _ in 0..12 {
        let producer = Arc::clone(&producer);
        sending.spawn(async move {
            let began = Instant::now();
            let records = (0..512).map(|at: u32| Record::new(at.to_string())).collect();
            (producer.send("t", records).await, began.elapsed())
        });
    }
    for (answers, took) in sending.join_all().await {
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert!(answers.iter().all(Result::is_err));
    }
}

#[tokio::test]
#[ignore = "needs nats"]
async fn jetstream_conforms() {
    let report = conformance(backend("suite", |_| ()).await, "t").await;
    report.assert_passed();
    assert_eq!(report.refused, ["deleted_groups", "exactly_once", "fenced_commits", "key_order"]);
}

/// With one record at a time, keys are in order, too.
#[tokio::test]
#[ignore = "needs nats"]
async fn one_record_at_a_time_is_in_order() {
    let backend = backend("ordered", |config| config.max_unacknowledged = 1).await;
    assert_eq!(backend.provides(Need::KeyOrder), Ok(()));
    backend.create_topic("t", 3).await.expect("a topic");
    let producer = backend.producer().await.expect("a producer");
    let records = (0..20).map(|number: u32| Record::new(number.to_string()).key("k")).collect();
    assert!(producer.send("t", records).await.iter().all(Result::is_ok));
    let subscription = Subscription::new("g", ["t"]);
    let mut members = [
        backend.consumer(subscription.clone()).await.expect("a member"),
        backend.consumer(subscription).await.expect("a member"),
    ];
    let (mut next, mut rounds, mut came_again) = (0, 0, 0);
    while next < 20 {
        rounds += 1;
        assert!(rounds < 200, "{next} of 20 came");
        let member = &mut members[rounds % 2];
        let came = member.poll(200 * MS).await.expect("it works");
        assert!(came.len() <= 1, "one at a time");
        let Some(read) = came.first() else { continue };
        let value = String::from_utf8_lossy(read.record.value.as_deref().unwrap_or_default());
        assert_eq!(value, next.to_string(), "what comes again comes first");
        if rounds % 3 == 0 {
            member.rewind().await.expect("it goes back");
            came_again += 1;
        } else {
            member.commit().await.expect("it is committed");
            next += 1;
        }
    }
    assert!(came_again > 0, "something came again");
}

/// The server's window of ids begins with the first message and does not slide.
#[tokio::test]
#[ignore = "needs nats"]
async fn ids_are_forgotten_after_the_window() {
    let window = Duration::from_secs(2);
    let backend = backend("window", |config| {
        config.duplicate_window = window;
        config.delivery_timeout = Duration::from_secs(1);
        config.request_timeout = Duration::from_secs(1);
    });
    let backend = backend.await;
    assert_eq!(backend.provides(Need::MessageIds(window)), Ok(()));
    assert!(backend.provides(Need::MessageIds(window + MS)).is_err());
    backend.create_topic("t", 1).await.expect("a topic");
    let producer = backend.producer().await.expect("a producer");
    let record = Record::new("1").header(MESSAGE_ID, "a");
    let began = Instant::now();
    let first = producer.send_one("t", record.clone()).await.expect("it is stored");
    sleep(window / 2).await;
    let again = producer.send_one("t", record.clone()).await.expect("it is known");
    assert!(began.elapsed() < window, "the test was held up: it says nothing");
    assert_eq!(first, again);
    // Behind the window of the first one, and within a window of the second one.
    tokio::time::sleep_until(began + window * 5 / 4).await;
    let mut late = first;
    // The server forgets when it looks, which it does in steps.
    while late == first {
        assert!(began.elapsed() < window * 4, "the id is never forgotten");
        sleep(50 * MS).await;
        late = producer.send_one("t", record.clone()).await.expect("it is stored");
    }
    assert!(late > first, "it is stored as another record");
}

/// What is on the server already is not taken for something else.
#[tokio::test]
#[ignore = "needs nats"]
async fn other_settings_on_the_server_are_a_mismatch() {
    let ours = backend("mismatch", |_| ()).await;
    ours.create_topic("t", 2).await.expect("a topic");
    let forgets = backend("mismatch", |config| {
        config.duplicate_window = Duration::from_secs(600);
    });
    let forgets = forgets.await;
    let producer = forgets.producer().await.expect("a producer");
    let error = producer.send_one("t", Record::new("1")).await.expect_err("its ids are forgotten");
    let is_window = matches!(error, BackendError::Mismatch { field: "duplicate_window", .. });
    assert!(is_window, "{error}");

    let subscription = Subscription::new("g", ["t"]);
    drop(ours.consumer(subscription.clone()).await.expect("a member"));
    let mut other = subscription.clone();
    other.processing_timeout = Duration::from_secs(7);
    let error = ours.consumer(other).await.expect_err("members have the same time");
    let is_time = matches!(error, BackendError::Mismatch { field: "processing_timeout", .. });
    assert!(is_time, "{error}");
    let one = backend("mismatch", |config| config.max_unacknowledged = 1).await;
    let error = one.consumer(subscription).await.expect_err("it would not be in order");
    let is_limit = matches!(error, BackendError::Mismatch { field: "max_unacknowledged", .. });
    assert!(is_limit, "{error}");

    let context = jetstream::new(client().await);
    let prefix = format!("mismatch-{}", std::process::id());
    let config = stream::Config {
        name: format!("{prefix}-foreign"),
        subjects: vec![format!("{prefix}.foreign.>")],
        duplicate_window: Duration::from_secs(120),
        ..stream::Config::default()
    };
    context.create_stream(config).await.expect("a stream of another program");
    let error = ours.create_topic("foreign", 1).await.expect_err("it is not ours");
    let is_subjects = matches!(error, BackendError::Mismatch { field: "subjects", .. });
    assert!(is_subjects, "{error}");
}

/// A full stream rejects, and a deleted one is unknown; both did nothing.
#[tokio::test]
#[ignore = "needs nats"]
async fn what_the_server_rejects_is_not_applied() {
    let backend = backend("reject", |_| ()).await;
    let prefix = format!("reject-{}", std::process::id());
    let context = jetstream::new(client().await);
    let config = stream::Config {
        name: format!("{prefix}-full"),
        subjects: vec![format!("{prefix}.full.0")],
        duplicate_window: Duration::from_secs(120),
        max_messages: 1,
        discard: stream::DiscardPolicy::New,
        ..stream::Config::default()
    };
    context.create_stream(config).await.expect("a stream");
    let producer = backend.producer().await.expect("a producer");
    producer.send_one("full", Record::new("1")).await.expect("it is stored");
    let error = producer.send_one("full", Record::new("2")).await.expect_err("it is full");
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, true), "{error}");

    context.delete_stream(format!("{prefix}-full")).await.expect("it is deleted");
    let began = Instant::now();
    let error = producer.send_one("full", Record::new("3")).await.expect_err("it is gone");
    assert_eq!(error, BackendError::UnknownTopic { topic: "full".to_owned() });
    assert!(began.elapsed() < Duration::from_secs(5), "that is known at once");
}

/// A message of another program is a record.
#[tokio::test]
#[ignore = "needs nats"]
async fn messages_of_other_programs_are_records() {
    let backend = backend("foreign", |_| ()).await;
    backend.create_topic("t", 2).await.expect("a topic");
    let client = client().await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Trace", "7");
    let subject = format!("foreign-{}.t.1", std::process::id());
    jetstream::new(client)
        .publish_with_headers(subject, headers, "hello".into())
        .await
        .expect("it is sent")
        .await
        .expect("it is stored");
    let mut consumer = backend.consumer(Subscription::new("g", ["t"])).await.expect("a member");
    let came = consumer.poll(Duration::from_secs(5)).await.expect("it works");
    let [read] = &came[..] else { panic!("one record: {came:?}") };
    assert_eq!(read.record.value.as_deref(), Some(&b"hello"[..]));
    assert_eq!(read.position.partition, 1);
    assert_eq!(read.record.last_header("Trace").map(|value| &value[..]), Some(&b"7"[..]));
    assert!(read.record.timestamp > 1_700_000_000_000, "the time at which it was stored");
}

/// A message that the server had delivered while the member was at work, and that lay in its client
/// since, is not younger because it is looked at now.
#[tokio::test]
#[ignore = "needs nats"]
async fn the_time_of_a_message_does_not_begin_when_it_is_looked_at() {
    let backend = backend("buffer", |config| config.max_unacknowledged = 1).await;
    backend.create_topic("t", 1).await.expect("a topic");
    let producer = backend.producer().await.expect("a producer");
    let records = vec![Record::new("1"), Record::new("2")];
    assert!(producer.send("t", records).await.iter().all(Result::is_ok));
    let mut subscription = Subscription::new("g", ["t"]);
    // So that the first member leaves no request behind, which the second record might answer.
    subscription.max_poll_records = 1;
    subscription.processing_timeout = Duration::from_secs(2);
    let mut first = backend.consumer(subscription.clone()).await.expect("a member");
    assert_eq!(first.poll(Duration::from_secs(5)).await.expect("it works").len(), 1);
    let mut slow = backend.consumer(subscription).await.expect("a member");
    assert!(slow.poll(300 * MS).await.expect("it works").is_empty(), "the group has its record");
    first.commit().await.expect("it is committed");
    // The server gives the second record to the request that the slow member has left there.
    sleep(1_400 * MS).await;
    assert_eq!(slow.poll(Duration::from_secs(5)).await.expect("it works").len(), 1);
    sleep(1_000 * MS).await;
    let error = slow.commit().await.expect_err("the server has taken it back by now");
    assert!(matches!(error, BackendError::Lost { .. }), "{error}");
}

/// A member that took too long says so, rather than to settle what another one has.
#[tokio::test]
#[ignore = "needs nats"]
async fn a_late_commit_is_lost() {
    let backend = backend("late", |_| ()).await;
    backend.create_topic("t", 1).await.expect("a topic");
    let producer = backend.producer().await.expect("a producer");
    producer.send_one("t", Record::new("1")).await.expect("it is stored");
    let mut subscription = Subscription::new("g", ["t"]);
    subscription.processing_timeout = 500 * MS;
    let mut slow = backend.consumer(subscription.clone()).await.expect("a member");
    assert_eq!(slow.poll(Duration::from_secs(5)).await.expect("it works").len(), 1);
    sleep(600 * MS).await;
    let error = slow.commit().await.expect_err("its time is over");
    assert!(matches!(error, BackendError::Lost { .. }), "{error}");
    let mut other = backend.consumer(subscription).await.expect("a member");
    let came = other.poll(Duration::from_secs(5)).await.expect("it works");
    assert!(came[0].deliveries >= Some(2), "it came again: {came:?}");
    other.commit().await.expect("it is committed");
}
