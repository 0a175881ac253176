//! The lock service in a real PostgreSQL.

#[path = "support/relay.rs"]
mod relay;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_postgres::{AsyncMessage, Client, NoTls};
use voussoir_lock::postgres::{
    Connect, FenceError, Notified, PostgresConfig, PostgresFence, PostgresLocks,
};
use voussoir_lock::testing::{
    Capabilities, FencedError, FencedResource, conformance, fence_conformance,
};
use voussoir_lock::*;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn database() -> tokio_postgres::Config {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL is set by `cargo xtask test`");
    url.parse().expect("an address")
}

async fn admin() -> Client {
    let (client, connection) = database().connect(NoTls).await.expect("it runs");
    tokio::spawn(connection);
    client
}

/// A schema of a test's own, whose name has what a name may have.
struct Schema(String);

impl Schema {
    async fn new(test: &str) -> Self {
        let schema = Self(format!("Lock's \"{test}\" {}", std::process::id()));
        schema.drop_it().await;
        schema
    }

    fn quoted(&self) -> String {
        format!("\"{}\"", self.0.replace('"', "\"\""))
    }

    async fn drop_it(&self) {
        let (admin, schema) = (admin().await, self.quoted());
        let count = "SELECT count(*) FROM pg_tables WHERE schemaname = $1 AND tablename IN \
                     ('locks', 'sessions', 'requests')";
        let tables = admin.query_one(count, &[&self.0]).await.expect("an answer");
        let mut drop_it = format!("DROP SCHEMA IF EXISTS {schema} CASCADE;");
        if tables.get::<_, i64>(0) == 3 {
            // In the order in which the calls take them: some are still under way.
            let lock = |table| format!("LOCK TABLE {schema}.{table} IN ACCESS EXCLUSIVE MODE;");
            drop_it.insert_str(0, &["locks", "sessions", "requests"].map(lock).concat());
        }
        admin.batch_execute(&drop_it).await.expect("it is dropped");
    }

    fn locks(&self) -> Arc<PostgresLocks> {
        self.locks_of(database(), SECOND)
    }

    fn locks_of(&self, database: tokio_postgres::Config, poll: Duration) -> Arc<PostgresLocks> {
        let mut config = PostgresConfig::default();
        (config.schema, config.poll_interval) = (self.0.clone(), poll);
        PostgresLocks::start(Arc::new(database), config).expect("a valid configuration")
    }

    async fn count(&self, table: &str) -> i64 {
        let count = format!("SELECT count(*) FROM {}.{table}", self.quoted());
        admin().await.query_one(&count, &[]).await.expect("a table").get(0)
    }
}

async fn open(service: Arc<PostgresLocks>, ttl: Duration) -> Session {
    let mut config = LeaseConfig::default();
    config.ttl = ttl;
    Session::open(service, config, 10 * SECOND).await.expect("the service works")
}

/// Two clients that install the schema at once, also if notifications are lost.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn postgresql_conforms() {
    let schema = Schema::new("conforms").await;
    let connect = async || schema.locks();
    let begun = tokio::join!(open(schema.locks(), SECOND), open(schema.locks(), SECOND));
    let mut capabilities = Capabilities::default();
    (capabilities.ttl, capabilities.slack) = (2 * SECOND, 2 * SECOND);
    conformance(connect, &capabilities).await.assert_passed();
    drop(begun);
    schema.drop_it().await;
}

/// Regression corpus 48 and the rule of tokens: a sequence outlives the locks and the server's
/// memory of them; every client is as good as new.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn tokens_grow_over_reconnects_and_emptied_tables() {
    let schema = Schema::new("tokens").await;
    let mut latest = FencingToken::new(0);
    for _ in 0..3 {
        let session = open(schema.locks(), SECOND).await;
        let guard = session.lock("a").within(5 * SECOND).await.expect("it is free");
        assert!(guard.token() > latest, "{:?} after {latest:?}", guard.token());
        latest = guard.token();
        drop((guard, session));
        // In the order in which the calls lock rows: some are still under way.
        let tables = ["locks", "sessions", "requests"];
        let empty = tables.map(|table| format!("DELETE FROM {}.{table};", schema.quoted()));
        admin().await.batch_execute(&empty.concat()).await.expect("they are emptied");
    }
    schema.drop_it().await;
}

/// Regression corpus 59: the end of a connection ends no session, and loses no lock.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn ended_connections_cost_no_lock() {
    let schema = Schema::new("ended").await;
    let (mut one, name) = (database(), format!("voussoir-ended-{}", std::process::id()));
    one.application_name(&name);
    let session = open(schema.locks_of(one, SECOND), 2 * SECOND).await;
    let guard = session.lock("a").within(SECOND).await.expect("it is free");
    let other = open(schema.locks(), 2 * SECOND).await;
    let waiting = {
        let session = session.clone();
        tokio::spawn(async move { session.lock("b").within(20 * SECOND).await })
    };
    let held = other.lock("b").try_within(SECOND).await.expect("an answer");
    let mut ended = 0;
    for _ in 0..6 {
        let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                         WHERE application_name = $1";
        let row = admin().await.query_one(terminate, &[&name]).await.expect("an answer");
        ended += row.get::<_, i64>(0);
        sleep(SECOND / 2).await;
        guard.permit().expect("it is renewed by another connection");
    }
    assert!(ended >= 4, "{ended} connections were ended");
    assert!(other.lock("a").try_within(SECOND).await.expect("an answer").is_none());
    drop(held);
    drop(waiting.await.expect("no panic").expect("its turn has come"));
    schema.drop_it().await;
}

/// The server lost its power, or a firewall forgot the flow: nobody says that the connection is
/// gone.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_silent_connection_costs_no_session() {
    let schema = Schema::new("silent").await;
    let (host, port) = (database().get_hosts()[0].clone(), database().get_ports()[0]);
    let tokio_postgres::config::Host::Tcp(host) = host else { panic!("{host:?}") };
    let target = tokio::net::lookup_host((host, port)).await.expect("a name").next();
    let relay = relay::Relay::start(target.expect("an address")).await;
    let session = open(schema.locks_of(by_way_of(&relay), SECOND), 6 * SECOND).await;
    let guard = session.lock("a").within(SECOND).await.expect("it is free");
    relay.forget();
    let further = session.lock("b").within(20 * SECOND).await.expect("by another connection");
    assert_eq!(further.release(SECOND).await, Released::Released);
    // The first attempt took the time to live of the session: a renewal has come through since.
    sleep(SECOND).await;
    guard.permit().expect("it is renewed by another connection");
    assert_eq!(guard.release(SECOND).await, Released::Released);
    schema.drop_it().await;
}

/// The same database by way of a relay.
fn by_way_of(relay: &relay::Relay) -> tokio_postgres::Config {
    let (database, mut config) = (database(), tokio_postgres::Config::new());
    config.host(relay.address.ip().to_string()).port(relay.address.port());
    config.user(database.get_user().unwrap_or("postgres"));
    config.dbname(database.get_dbname().unwrap_or("postgres"));
    if let Some(password) = database.get_password() {
        config.password(password);
    }
    config
}

/// A schema of a later version of this crate is not used, and is not taken for one that is missing.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_schema_of_another_format_is_refused() {
    let schema = Schema::new("format").await;
    drop(open(schema.locks(), SECOND).await);
    for (change, found) in [("SET version = 7", Some(7)), ("SET version = -1", Some(-1))] {
        let change = format!("UPDATE {}.format {change}", schema.quoted());
        admin().await.batch_execute(&change).await.expect("an update");
        let opened = schema.locks().open_session(SECOND, Instant::now() + 5 * SECOND).await;
        let error = opened.expect_err("another format");
        assert_eq!(error, ServiceError::Format { found, expected: 1 });
        assert!(!error.is_retryable() && error.outcome() == Outcome::NotApplied);
        assert!(error.to_string().contains(&format!("format {}", found.unwrap())), "{error}");
    }
    let empty = format!("DELETE FROM {}.format", schema.quoted());
    admin().await.batch_execute(&empty).await.expect("a deletion");
    let opened = schema.locks().open_session(SECOND, Instant::now() + 5 * SECOND).await;
    assert_eq!(opened, Err(ServiceError::Format { found: None, expected: 1 }));
    schema.drop_it().await;
}

/// Regression corpus 59: nothing of a client that was dropped in the middle of a call is left.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn calls_that_are_dropped_at_any_moment_leave_nothing() {
    let schema = Schema::new("dropped").await;
    let (one, two) = (open(schema.locks(), SECOND).await, open(schema.locks(), SECOND).await);
    for micros in (0..3_000).step_by(100) {
        let asked = one.lock("a").within(5 * SECOND);
        let _ = timeout(Duration::from_micros(micros), asked).await;
        let guard = two.lock("a").within(5 * SECOND).await.expect("it is given back");
        assert_eq!(guard.release(SECOND).await, Released::Released);
    }
    one.check().expect("it was not lost for it");
    one.close(SECOND).await.expect("the service works");
    two.close(SECOND).await.expect("the service works");
    // Rows of sessions that have ended are swept up later.
    for table in ["locks", "requests WHERE name IS NOT NULL", "sessions WHERE NOT is_ended"] {
        assert_eq!(schema.count(table).await, 0, "{table}");
    }
    schema.drop_it().await;
}

/// One wake per release: the others ask the database no more often than they poll.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_release_wakes_one_of_many() {
    let schema = Schema::new("wakes").await;
    // They would wait for a minute, were it not for the notifications.
    let waiters = schema.locks_of(database(), 60 * SECOND);
    let session = open(waiters, 10 * SECOND).await;
    let holder = open(schema.locks(), 10 * SECOND).await;
    let first = holder.lock("a").within(SECOND).await.expect("it is free");
    let mut tasks = Vec::new();
    for _ in 0..50 {
        let session = session.clone();
        tasks.push(tokio::spawn(async move {
            let guard = session.lock("a").within(30 * SECOND).await.expect("its turn comes");
            assert_eq!(guard.release(SECOND).await, Released::Released);
        }));
    }
    let service: Arc<dyn LockService<Grants = Fenced>> = schema.locks();
    // Ends: all have come.
    while service.view(&"a".into(), None, Instant::now() + SECOND).await.expect("a view").waiters
        < 50
    {
        sleep(10 * MS).await;
    }
    let mut config = database();
    let (client, mut connection) =
        config.application_name("l").connect(NoTls).await.expect("it runs");
    let (told, mut wakes) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        // Ends: with the client.
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(notification) = message {
                let _ = told.send(notification.payload().to_owned());
            }
        }
    });
    client.batch_execute(&format!("LISTEN {}", schema.quoted())).await.expect("it listens");
    let begun = Instant::now();
    assert_eq!(first.release(SECOND).await, Released::Released);
    for task in tasks {
        task.await.expect("it is served");
    }
    assert!(begun.elapsed() < 20 * SECOND, "{:?} for 50 turns", begun.elapsed());
    let mut woken = Vec::new();
    while woken.len() < 50 {
        woken.push(timeout(5 * SECOND, wakes.recv()).await.expect("50 wakes").expect("a wake"));
    }
    assert!(timeout(100 * MS, wakes.recv()).await.is_err(), "more wakes than releases");
    woken.sort_unstable();
    woken.dedup();
    assert_eq!(woken.len(), 50, "each is woken once");
    schema.drop_it().await;
}

/// An acquisition whose session is renewed by nobody.
fn waiting(session: u64) -> Acquisition {
    Acquisition {
        session,
        request: 1,
        floor: 1,
        name: "a".into(),
        mode: Mode::Exclusive,
        wait: true,
        lock_delay: Duration::ZERO,
    }
}

/// `acquire` takes the row of the lock and reads all that wait: who polls it while others are
/// before it costs a release its turn.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn only_the_first_of_those_that_wait_asks_for_the_lock() {
    let schema = Schema::new("polls").await;
    let poll = 50 * MS;
    let service = schema.locks_of(database(), poll);
    let by = || Instant::now() + 30 * SECOND;
    let mut sessions = Vec::new();
    for _ in 0..31 {
        sessions.push(service.open_session(60 * SECOND, by()).await.expect("it opens"));
    }
    service.acquire(&waiting(sessions[0]), by()).await.expect("it is free");
    // Each call of `acquire` takes a number of this sequence.
    let count = format!(
        "CREATE SEQUENCE {0}.calls;
         ALTER FUNCTION {0}.take_row RENAME TO take_row_uncounted;
         CREATE FUNCTION {0}.take_row(n bytea) RETURNS void LANGUAGE plpgsql AS
         $$ BEGIN PERFORM nextval('{1}.calls'), {0}.take_row_uncounted(n); END $$",
        schema.quoted(),
        schema.quoted().replace('\'', "''"),
    );
    admin().await.batch_execute(&count).await.expect("it counts");
    let calls = async || {
        let calls = format!("SELECT last_value FROM {}.calls", schema.quoted());
        admin().await.query_one(&calls, &[]).await.expect("a count").get::<_, i64>(0)
    };
    let mut tasks = Vec::new();
    for session in sessions[1..].iter().copied() {
        let service = Arc::clone(&service);
        tasks.push(tokio::spawn(async move { service.acquire(&waiting(session), by()).await }));
    }
    // Ends: all have come.
    while service.view(&"a".into(), None, by()).await.expect("a view").waiters < 30 {
        sleep(10 * MS).await;
    }
    // Those that came when nobody was before them in the queue have asked a second time by then.
    sleep(2 * poll).await;
    let before = calls().await;
    sleep(20 * poll).await;
    let polls = calls().await - before;
    assert!((1..=22).contains(&polls), "{polls} calls in 20 intervals, of 30 that wait");
    // Each has its turn all the same.
    let mut latest = sessions[0];
    for _ in 1..sessions.len() {
        service.release(latest, 1, by()).await.expect("it is released");
        let view = service.view(&"a".into(), None, by()).await.expect("a view");
        latest = view.holders[0].session;
    }
    for task in tasks {
        let granted = task.await.expect("no panic").expect("its turn comes");
        assert!(matches!(granted, Acquired::Granted { .. }), "{granted:?}");
    }
    schema.drop_it().await;
}

/// A client that died while it was the first to wait looks no more after the holder.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn who_waits_behind_dead_sessions_looks_after_the_holder() {
    let schema = Schema::new("behind").await;
    let service = schema.locks_of(database(), 100 * MS);
    let by = |within: Duration| Instant::now() + within;
    let live = service.open_session(60 * SECOND, by(5 * SECOND)).await.expect("it opens");
    for waiters in 0..3 {
        let dead = service.open_session(2 * SECOND, by(5 * SECOND)).await.expect("it opens");
        let asked = service.acquire(&waiting(dead), by(300 * MS)).await.expect("an answer");
        assert_eq!(asked == Acquired::Queued, waiters > 0, "{asked:?}");
    }
    let begun = Instant::now();
    let granted = service.acquire(&waiting(live), by(20 * SECOND)).await;
    assert!(matches!(granted, Ok(Acquired::Granted { .. })), "{granted:?}");
    assert!(begun.elapsed() < 4 * SECOND, "{:?} after sessions of 2 s", begun.elapsed());
    schema.drop_it().await;
}

/// What nobody waits for is swept up: a dead session and its locks leave no row.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn dead_sessions_leave_no_rows() {
    let schema = Schema::new("swept").await;
    let service = schema.locks();
    let by = || Instant::now() + 5 * SECOND;
    for name in ["a", "b", "c"] {
        let dead = service.open_session(2 * SECOND, by()).await.expect("it opens");
        for request in 1..=3 {
            let acquisition = Acquisition {
                session: dead,
                request,
                floor: 1,
                name: format!("{name}{request}").into(),
                mode: Mode::Exclusive,
                wait: false,
                lock_delay: 100 * MS,
            };
            let granted = service.acquire(&acquisition, by()).await;
            assert!(matches!(granted, Ok(Acquired::Granted { .. })), "{granted:?}");
        }
        service.release(dead, 3, by()).await.expect("it is released");
    }
    // Longer than the time to live and the lock-delay.
    sleep(2 * SECOND + 500 * MS).await;
    let mut sweeps = 0;
    let sweep = format!("SELECT {}.sweep()", schema.quoted());
    // Ends: each turn settles a lock.
    while admin().await.query_one(&sweep, &[]).await.expect("a sweep").get::<_, bool>(0) {
        sweeps += 1;
        assert!(sweeps <= 6, "six locks were held");
    }
    sleep(200 * MS).await;
    admin().await.batch_execute(&sweep).await.expect("a sweep");
    for table in ["locks", "requests", "sessions"] {
        assert_eq!(schema.count(table).await, 0, "{table}");
    }
    schema.drop_it().await;
}

/// A session that was ended for being late does not come back when the database's clock does.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_clock_that_steps_back_revives_no_session() {
    let schema = Schema::new("clock").await;
    let service = schema.locks();
    let by = || Instant::now() + 5 * SECOND;
    let dead = service.open_session(2 * SECOND, by()).await.expect("it opens");
    let acquisition = |session| Acquisition {
        session,
        request: 1,
        floor: 1,
        name: "a".into(),
        mode: Mode::Exclusive,
        wait: true,
        lock_delay: Duration::ZERO,
    };
    service.acquire(&acquisition(dead), by()).await.expect("it is free");
    let other = service.open_session(60 * SECOND, by()).await.expect("it opens");
    let granted = service.acquire(&acquisition(other), by()).await;
    assert!(matches!(granted, Ok(Acquired::Granted { .. })), "{granted:?}");
    // As if the clock had been set back by an hour.
    let later =
        format!("UPDATE {}.sessions SET expires_at = expires_at + interval '1 h'", schema.quoted());
    admin().await.batch_execute(&later).await.expect("an update");
    let renewed = service.renew_session(dead, by()).await;
    assert_eq!(renewed, Err(Rejection::NoSession.into()));
    let again = service.acquire(&acquisition(dead), by()).await;
    assert_eq!(again, Err(Rejection::NoSession.into()));
    schema.drop_it().await;
}

/// Also where the database or a pooler has chosen otherwise for its connections.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn grants_and_renewals_are_durable_whatever_the_connection_says() {
    let schema = Schema::new("durable").await;
    drop(open(schema.locks(), SECOND).await);
    // Looks at the moment of the commit.
    let watch = format!(
        "CREATE TABLE {0}.seen (source text, setting text);
         CREATE FUNCTION {0}.look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO {0}.seen VALUES (TG_TABLE_NAME, current_setting('synchronous_commit'));
             RETURN NULL;
         END $$;
         CREATE CONSTRAINT TRIGGER look AFTER INSERT OR UPDATE ON {0}.requests
             DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {0}.look();
         CREATE CONSTRAINT TRIGGER look AFTER INSERT OR UPDATE ON {0}.sessions
             DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {0}.look()",
        schema.quoted()
    );
    admin().await.batch_execute(&watch).await.expect("it is created");
    let mut hasty = database();
    hasty.options("-c synchronous_commit=off");
    let session = open(schema.locks_of(hasty, SECOND), SECOND).await;
    let guard = session.lock("a").within(SECOND).await.expect("it is free");
    sleep(SECOND).await;
    assert_eq!(guard.release(SECOND).await, Released::Released);
    for source in ["requests", "sessions"] {
        let count = format!(
            "SELECT count(*), count(*) FILTER (WHERE setting = 'on') FROM {}.seen \
             WHERE source = $1",
            schema.quoted()
        );
        let row = admin().await.query_one(&count, &[&source]).await.expect("an answer");
        let (all, durable) = (row.get::<_, i64>(0), row.get::<_, i64>(1));
        assert!(all >= 2 && all == durable, "{durable} of {all} commits of {source}");
    }
    schema.drop_it().await;
}

/// Connects, after a while.
struct Slowly(tokio_postgres::Config, Duration);

#[async_trait]
impl Connect for Slowly {
    async fn connect(&self, notified: Notified) -> Result<Client, tokio_postgres::Error> {
        sleep(self.1).await;
        Connect::connect(&self.0, notified).await
    }
}

/// Connecting takes longer than any call: by TLS over a long way, or to a server that has just
/// begun and whom all want at once.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn connecting_goes_on_when_the_time_of_a_call_is_over() {
    let schema = Schema::new("slow").await;
    let mut config = PostgresConfig::default();
    config.schema.clone_from(&schema.0);
    let slowly = Slowly(database(), 600 * MS);
    let locks = PostgresLocks::start(Arc::new(slowly), config).expect("a valid configuration");
    let (begun, mut failed) = (Instant::now(), 0);
    // Ends: a call is answered, or 8 s have passed.
    let session = loop {
        match locks.open_session(60 * SECOND, Instant::now() + 200 * MS).await {
            Ok(session) => break session,
            Err(error) => {
                assert_eq!(error.outcome(), Outcome::NotApplied, "{error}");
                failed += 1;
            }
        }
        // The service itself sweeps after 10 s, with a call that has the time.
        assert!(begun.elapsed() < 8 * SECOND, "{failed} calls of 200 ms each began anew");
    };
    assert!(failed > 0, "the first call had not the time");
    locks.close_session(session, Instant::now() + SECOND).await.expect("it is connected");
    schema.drop_it().await;
}

/// Entries in a table, each in a transaction of its own.
struct Table {
    schema: String,
    fence: PostgresFence,
}

#[async_trait]
impl FencedResource for Table {
    async fn write(&self, token: FencingToken, entry: &str) -> Result<(), FencedError> {
        let (mut client, insert) = (admin().await, format!("INSERT INTO {}.entries", self.schema));
        let write = async {
            let transaction = client.transaction().await?;
            self.fence.enter(&transaction, "entries", token).await?;
            transaction.execute(&format!("{insert} (entry) VALUES ($1)"), &[&entry]).await?;
            transaction.commit().await?;
            Ok::<_, FenceError>(())
        };
        write.await.map_err(|error| match error {
            FenceError::Stale(_) => FencedError::Stale,
            error => FencedError::Failed(error.to_string()),
        })
    }

    async fn entries(&self) -> Result<Vec<String>, String> {
        let select = format!("SELECT entry FROM {}.entries ORDER BY id", self.schema);
        let rows = admin().await.query(&select, &[]).await.map_err(|error| error.to_string())?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

#[tokio::test]
#[ignore = "needs postgresql"]
async fn the_fence_of_postgresql_conforms() {
    let schema = Schema::new("fences").await;
    let create = format!(
        "CREATE SCHEMA {0}; CREATE TABLE {0}.entries (id bigserial PRIMARY KEY, entry text)",
        schema.quoted()
    );
    admin().await.batch_execute(&create).await.expect("it is created");
    let open = async || {
        let fence = PostgresFence::new(format!("{}.fences", schema.quoted()));
        fence.install(&admin().await).await.expect("it is created, or there");
        Table { schema: schema.quoted(), fence }
    };
    fence_conformance(open).await.assert_passed();
    schema.drop_it().await;
}

/// The late write of a holder that was paused past its lease, in the resource's own transaction.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn the_late_transaction_of_a_paused_holder_is_refused() {
    let schema = Schema::new("fence").await;
    let (one, two) = (open(schema.locks(), SECOND).await, open(schema.locks(), SECOND).await);
    let fence = PostgresFence::new(format!("{}.fences", schema.quoted()));
    let mut client = admin().await;
    fence.install(&client).await.expect("it is created");
    fence.install(&client).await.expect("it is there");
    let old = one.lock("ledger").within(SECOND).await.expect("it is free");
    let mut write = async |token| {
        let transaction = client.transaction().await.expect("a transaction");
        fence.enter(&transaction, "ledger", token).await?;
        transaction.commit().await?;
        Ok::<_, FenceError>(())
    };
    write(old.token()).await.expect("the holder");
    write(old.token()).await.expect("the holder, again");
    let token = old.token();
    assert_eq!(old.release(SECOND).await, Released::Released);
    let new = two.lock("ledger").within(SECOND).await.expect("it is free");
    write(new.token()).await.expect("the next holder");
    let late = write(token).await.expect_err("it was paused");
    let FenceError::Stale(stale) = late else { panic!("{late}") };
    assert_eq!((stale.token, stale.latest), (token.get(), new.token().get()));
    let never = write(FencingToken::new(u64::MAX)).await.expect_err("no such token");
    assert!(matches!(never, FenceError::OutOfRange));
    schema.drop_it().await;
}
