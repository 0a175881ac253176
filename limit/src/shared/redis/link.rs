//! The connection: made in the background, shared, and replaced when it is broken or silent.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};
use tokio::sync::watch;

use crate::shared::counter::StoreError;

/// How long a connection may take to come about.
const MAX_CONNECT: Duration = Duration::from_secs(2);

/// How long an answer may take if the limiter waits longer than this.
const MAX_ANSWER: Duration = Duration::from_secs(5);

/// A connection that has owed an answer for this long when a caller gives up on it is replaced: the
/// other end may be gone without a word.
const MAX_SILENCE: Duration = Duration::from_millis(200);

/// A connection and since when it owes an answer.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) connection: MultiplexedConnection,
    /// Which of the connections made one after the other it is.
    number: u64,
    /// Nanoseconds since `Inner::epoch` at which the first request was sent that followed the last
    /// answer. 0: no answer is owed.
    silent_since: Arc<AtomicU64>,
}

pub(super) struct Links(Arc<Inner>);

struct Inner {
    client: Client,
    state: Mutex<State>,
    epoch: Instant,
}

struct State {
    /// Connections begun so far.
    number: u64,
    link: Option<Link>,
    /// Result of the connection task. Closed without a result if the runtime of the task ended.
    connecting: Option<watch::Receiver<Option<Result<Link, StoreError>>>>,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").field("number", &self.0.state.lock().number).finish()
    }
}

impl Links {
    pub(super) fn new(client: Client) -> Self {
        let state = Mutex::new(State { number: 0, link: None, connecting: None });
        // The epoch is before the first reading, so that no reading is 0.
        let epoch = Instant::now().checked_sub(Duration::from_secs(1)).unwrap_or_else(Instant::now);
        Self(Arc::new(Inner { client, state, epoch }))
    }

    /// The connection; makes one if there is none.
    ///
    /// The connecting goes on in a task of its own if this future is dropped: a limiter's time
    /// limit may be shorter than a connection takes.
    pub(super) async fn get(&self) -> Result<Link, StoreError> {
        let mut connecting = match self.link_or_connecting() {
            Ok(link) => return Ok(link),
            Err(connecting) => connecting,
        };
        match connecting.wait_for(Option::is_some).await {
            Ok(said) => said.clone().expect("it was waited for"),
            Err(_) => Err(StoreError::Unreachable("the runtime that connected has ended".into())),
        }
    }

    fn link_or_connecting(
        &self,
    ) -> Result<Link, watch::Receiver<Option<Result<Link, StoreError>>>> {
        let mut state = self.0.state.lock();
        if let Some(link) = &state.link {
            return Ok(link.clone());
        }
        if let Some(connecting) = &state.connecting
            && connecting.has_changed().is_ok()
        {
            return Err(connecting.clone());
        }
        let (sender, receiver) = watch::channel(None);
        state.connecting = Some(receiver.clone());
        state.number += 1;
        let number = state.number;
        drop(state);
        tokio::spawn(Arc::clone(&self.0).run_connect(number, sender));
        Err(receiver)
    }

    /// To be called when a request is sent; dropped without an answer, the result may close the
    /// link.
    pub(super) fn sent<'a>(&'a self, link: &'a Link) -> Sent<'a> {
        let now = self.0.now();
        let _ = link.silent_since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        Sent { links: self, link }
    }

    /// Makes the next caller connect anew.
    pub(super) fn close(&self, link: &Link) {
        let mut state = self.0.state.lock();
        if state.link.as_ref().is_some_and(|open| open.number == link.number) {
            state.link = None;
        }
    }
}

impl Inner {
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    async fn run_connect(
        self: Arc<Self>,
        number: u64,
        sender: watch::Sender<Option<Result<Link, StoreError>>>,
    ) {
        let connected = match tokio::time::timeout(MAX_CONNECT, self.connect()).await {
            Ok(connected) => connected.map_err(|e| StoreError::Unreachable(e.to_string())),
            Err(_) => Err(StoreError::Unreachable(format!("no connection in {MAX_CONNECT:?}"))),
        };
        let silent_since = Arc::default();
        let connected = connected.map(|connection| Link { connection, number, silent_since });
        {
            let mut state = self.state.lock();
            state.connecting = None;
            state.link = connected.as_ref().ok().cloned();
        }
        // Callers that wait are told after the state has changed: the next caller finds the link.
        let _ = sender.send(Some(connected));
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(MAX_CONNECT))
            .set_response_timeout(Some(MAX_ANSWER));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }
}

/// A request without an answer yet.
pub(super) struct Sent<'a> {
    links: &'a Links,
    link: &'a Link,
}

impl Sent<'_> {
    /// The server has said something.
    pub(super) fn answered(self) {
        self.link.silent_since.store(0, Ordering::Relaxed);
    }
}

impl Drop for Sent<'_> {
    /// Without an answer: the caller has given up. Also runs after [`Sent::answered`], and then
    /// finds no silence.
    fn drop(&mut self) {
        let since = self.link.silent_since.load(Ordering::Relaxed);
        let silence = self.links.0.now().saturating_sub(since);
        if since != 0 && Duration::from_nanos(silence) >= MAX_SILENCE {
            self.links.close(self.link);
        }
    }
}
