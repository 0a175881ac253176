//! The choreographed form: nobody knows the whole. Each service reacts to events of the others,
//! over a queue in the journal; a board follows the events, and says where each order is.
//!
//! Here the four participants share one process, so that both forms do the same work with one
//! journal. Put each into the process of its service, and the bus where all of them reach it.

mod board;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use voussoir_journal::Journal;
use voussoir_queue::{Queue, QueueConfig};
use voussoir_txn::Retry;
use voussoir_txn::choreography::{
    Bus, BusError, ChoreographyConfig, Event, QueueBus, QueueBusConfig, Running, Tail,
};

use crate::Error;
use crate::order::Order;
use crate::orders::{How, OrderError, Orders, ResolveError, State};
use crate::peers::Peers;
use board::{Board, Seen};
use rules::{Said, participants};

/// Partitions of the events.
const PARTITIONS: u32 = 4;
/// How long events are kept: longer than any order may take.
const KEEP: Duration = Duration::from_secs(31 * 86_400);
/// Time between two looks for events that are too old.
const CLEAN_EVERY: Duration = Duration::from_secs(60);
/// When nothing comes for as long, everything that there was has been read.
const CATCH_UP: Duration = Duration::from_millis(50);
/// How long one look for new events waits.
const FOLLOW_WAIT: Duration = Duration::from_secs(10);
/// The pause before the events are read anew, after the bus has failed.
const FOLLOW_PAUSE: Duration = Duration::from_millis(100);

pub(crate) struct Choreographed {
    bus: Arc<dyn Bus>,
    board: Arc<Board>,
    /// After it an order that has not been charged is undone.
    limit: Duration,
    /// `None` once it is drained.
    running: Mutex<Option<Vec<Running>>>,
    /// Follow the events and remove old ones. Dropped, they end.
    tasks: JoinSet<()>,
}

impl Choreographed {
    /// Goes on with the events of the journal.
    ///
    /// # Errors
    /// The journal cannot be used.
    pub(crate) async fn open(
        journal: &Journal,
        peers: &Arc<dyn Peers>,
        retry: &Retry,
        limit: Duration,
    ) -> Result<Self, Error> {
        let queue = Queue::open(journal, "orders", QueueConfig::default())?;
        let mut config = QueueBusConfig::default();
        config.partitions = PARTITIONS;
        config.retention.max_age = Some(KEEP);
        let bus = QueueBus::open(&queue, "orders", config).await?;
        let mut opened = Self::start(Arc::new(bus), peers, retry, limit).await?;
        opened.tasks.spawn(clean(queue));
        Ok(opened)
    }

    /// Starts all participants on a bus.
    async fn start(
        bus: Arc<dyn Bus>,
        peers: &Arc<dyn Peers>,
        retry: &Retry,
        limit: Duration,
    ) -> Result<Self, Error> {
        let board = Arc::new(Board::default());
        let mut tail = bus.tail().await?;
        // Before the participants start: this ends where they go on.
        loop {
            let observed = tail.next(CATCH_UP).await?;
            if observed.is_empty() {
                break;
            }
            for one in &observed {
                board.observe(one);
            }
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(Arc::clone(&bus), tail, Arc::clone(&board)));
        let mut running = Vec::new();
        for participant in participants(peers, retry)? {
            let config = ChoreographyConfig::default();
            running.push(Running::start(Arc::clone(&bus), &participant, config)?);
        }
        Ok(Self { bus, board, limit, running: Mutex::new(Some(running)), tasks })
    }

    async fn publish(&self, event: Event) -> Result<(), BusError> {
        self.bus.publish(std::slice::from_ref(&event)).await
    }
}

/// An order that a client has asked for. If it was not published when the client has its answer, or
/// has gone, the board forgets it.
struct Begun<'a> {
    board: &'a Board,
    id: &'a str,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.board.withdraw(self.id);
    }
}

/// Shows the board every event.
async fn follow(bus: Arc<dyn Bus>, mut tail: Box<dyn Tail>, board: Arc<Board>) {
    // Ends: with its process.
    loop {
        match tail.next(FOLLOW_WAIT).await {
            Ok(observed) => observed.iter().for_each(|one| board.observe(one)),
            Err(error) => {
                tracing::warn!(%error, "the events cannot be followed");
                sleep(FOLLOW_PAUSE).await;
                // From the first one on: what the board has seen changes nothing.
                if let Ok(again) = bus.tail().await {
                    tail = again;
                }
            }
        }
    }
}

async fn clean(queue: Queue) {
    // Ends: with its process.
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for (partition, error) in queue.apply_retention(now.as_millis() as i64).await {
            tracing::warn!(?partition, %error, "old events are kept");
        }
        sleep(CLEAN_EVERY).await;
    }
}

#[async_trait]
impl Orders for Choreographed {
    async fn order(&self, id: &str, order: &Order, wait: Duration) -> Result<State, OrderError> {
        let _begun = Begun { board: &self.board, id };
        let (seen, mut state) = self.board.begin(id, order)?;
        if seen == Seen::Never {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let deadline = u64::try_from((now + self.limit).as_nanos()).unwrap_or(u64::MAX);
            let body = Said { order: order.clone(), because: None }.body();
            // The same id each time: one that is published again has no second effect.
            let event = Event::first(&format!("{id}/requested"), rules::REQUESTED, id, body);
            let published = self.publish(event.deadline(deadline)).await;
            published.map_err(|error| OrderError::Away(error.to_string()))?;
        }
        // Whatever it says: what is answered is the state.
        let _ = timeout(wait, state.wait_for(|state| *state != State::Open)).await;
        let ended = state.borrow().clone();
        // Again: an earlier process may have taken another order under this id.
        self.board.begin(id, order)?;
        Ok(ended)
    }

    fn state(&self, id: &str) -> Option<State> {
        self.board.state(id)
    }

    fn stuck(&self) -> Vec<(String, State)> {
        self.board.stuck()
    }

    fn open(&self) -> usize {
        self.board.open()
    }

    async fn resolve(&self, id: &str, step: &str, how: How) -> Result<(), ResolveError> {
        let event = self.board.answer(id, step, how)?;
        let published = self.publish(event.clone()).await;
        published.map_err(|error| ResolveError::Rejected(error.to_string()))?;
        // Without waiting for the event: whoever asks next is told that the order goes on.
        self.board.answered(id, &event.id);
        Ok(())
    }

    async fn drain(&self) {
        let running = self.running.lock().take();
        for one in running.into_iter().flatten() {
            one.stop().await;
        }
    }
}
