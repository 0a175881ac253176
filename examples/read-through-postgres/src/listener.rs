//! Changes made behind the cache's back: the table's triggers tell of them, and the listener
//! invalidates.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Error, NoTls, Socket};
use voussoir_cache::Cache;

use crate::table::{Product, channel};

/// The pause before the next attempt to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);
/// How long one attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection on which nothing was heard for this long is probed.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// Time between two such probes, and how many in a row must be lost: a server that has vanished is
/// noticed after 25 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// A task that listens until it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    task: tokio::task::JoinHandle<()>,
    listens: watch::Receiver<bool>,
}

impl Listener {
    /// Starts to listen for changes of `table`.
    ///
    /// # Errors
    /// `url` is no connection string.
    pub(crate) fn start(
        url: &str,
        table: &str,
        cache: Cache<i64, Arc<Product>>,
    ) -> Result<Self, Error> {
        let mut config: Config = url.parse()?;
        config.connect_timeout(CONNECT_TIMEOUT).keepalives_idle(KEEPALIVE_IDLE);
        config.keepalives_interval(KEEPALIVE_INTERVAL).keepalives_retries(KEEPALIVE_RETRIES);
        let (listen, state) = (format!("LISTEN {}", channel(table)), watch::Sender::new(false));
        let listens = state.subscribe();
        let task = tokio::spawn(async move {
            // Ends: with the task. Each round waits, at least for the pause.
            loop {
                if let Err(error) = listen_once(&config, &listen, &cache, &state).await {
                    let why = crate::chain(&error);
                    eprintln!("listener: {why}; until it is back, the TTL bounds what is stale");
                }
                state.send_replace(false);
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        });
        Ok(Self { task, listens })
    }

    /// Whether changes are heard now.
    pub(crate) fn is_listening(&self) -> bool {
        *self.listens.borrow()
    }

    /// Waits until changes are heard.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn ready(&self) {
        // An error says that the task has gone, which only `drop` ends.
        let _ = self.listens.clone().wait_for(|listens| *listens).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens on one connection until it is lost.
async fn listen_once(
    config: &Config,
    listen: &str,
    cache: &Cache<i64, Arc<Product>>,
    state: &watch::Sender<bool>,
) -> Result<(), Error> {
    let (client, mut connection) = config.connect(NoTls).await?;
    let mut listening = std::pin::pin!(begin(&client, listen, cache, state));
    let mut has_begun = false;
    // Ends: with the connection.
    loop {
        let message = tokio::select! {
            // The connection moves only while it is polled, also for the statement `LISTEN`.
            message = next(&mut connection) => message,
            begun = &mut listening, if !has_begun => {
                begun?;
                has_begun = true;
                continue;
            }
        };
        match message {
            Some(Ok(AsyncMessage::Notification(told))) => match told.payload().parse() {
                Ok(id) => cache.invalidate::<i64>(&id),
                // Another program uses the channel: what it means is not known.
                Err(_) => cache.clear(),
            },
            // A notice of the server.
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
            None => return Ok(()),
        }
    }
}

async fn begin(
    client: &Client,
    listen: &str,
    cache: &Cache<i64, Arc<Product>>,
    state: &watch::Sender<bool>,
) -> Result<(), Error> {
    client.batch_execute(listen).await?;
    // What was changed before `LISTEN` was told to nobody here: all that was read before it may be
    // stale. A process that has read nothing yet leaves the products in Redis alone: the other
    // processes have listened, and without them the TTL bounds what is stale there.
    if cache.stats().misses > 0 {
        cache.clear();
    }
    state.send_replace(true);
    Ok(())
}

type Wire = Connection<Socket, tokio_postgres::tls::NoTlsStream>;

async fn next(connection: &mut Wire) -> Option<Result<AsyncMessage, Error>> {
    poll_fn(|context| connection.poll_message(context)).await
}
