//! A `voussoir-queue` as the sink of an outbox.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use voussoir_queue::{
    BatchBuilder, Durability, Murmur2, Partition, Partitioner, Queue, Record, Topic,
};

use super::sink::{Message, Sink, SinkError};

/// The header of a record that has the message's id.
pub const MESSAGE_ID_HEADER: &str = "outbox-message-id";
/// Bytes of records that are read at once when a partition is used for the first time.
const FETCH_BYTES: usize = 1 << 20;
/// Bytes after which a batch is full.
const BATCH_BYTES: usize = 256 << 10;

/// Appends messages to the topics of a queue that they name, by key, and returns when they are on
/// stable storage. Clones are the same sink: relays of one process share it.
///
/// The key of a message is the key of its record, and its id the header [`MESSAGE_ID_HEADER`]. The
/// id is also what a message that comes again is told by: the sink remembers the ids of the last
/// `max_remembered` records of each partition, and reads them back from the log after a restart, so
/// that a message whose relay was killed between delivery and deletion is not appended again. (The
/// id of an idempotent producer would not do: it ends with its process.) A message that comes again
/// behind more than `max_remembered` others is appended twice, and told by an
/// [`Inbox`](super::Inbox): let it be more than all relays have under way, `max_rows` of each.
#[derive(Clone)]
pub struct QueueSink {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Queue,
    max_remembered: usize,
    windows: Mutex<HashMap<(String, u32), Arc<Window>>>,
}

/// The ids of a partition's last records.
#[derive(Default)]
struct Window {
    ids: Mutex<Ids>,
    ended: Notify,
}

#[derive(Default)]
struct Ids {
    /// Invariant: at most `max_remembered`, the same as `order`.
    done: HashSet<String>,
    order: VecDeque<String>,
    /// On their way. A delivery that was given up may still arrive.
    under_way: HashSet<String>,
}

impl Ids {
    fn remember(&mut self, id: String, max: usize) {
        if self.done.insert(id.clone()) {
            self.order.push_back(id);
        }
        // Ends: each round forgets one.
        while self.order.len() > max {
            let oldest = self.order.pop_front();
            oldest.map(|oldest| self.done.remove(&oldest));
        }
    }
}

impl QueueSink {
    /// A sink to the topics of `queue`, which must exist: a message of another topic is not taken.
    /// Remembers the ids of at least one record of each partition, and of `max_remembered`; 10,000
    /// is plenty.
    pub fn new(queue: &Queue, max_remembered: usize) -> Self {
        let windows = Mutex::default();
        let max_remembered = max_remembered.max(1);
        Self { shared: Arc::new(Shared { queue: queue.clone(), max_remembered, windows }) }
    }
}

impl Shared {
    fn window(&self, topic: &Topic, number: u32) -> Result<Arc<Window>, String> {
        let id = (topic.name().to_owned(), number);
        if let Some(window) = self.windows.lock().get(&id) {
            return Ok(Arc::clone(window));
        }
        let partition = topic.partition(number).map_err(|error| error.to_string())?;
        let window = Arc::new(Window::default());
        let offsets = partition.offsets();
        let back = offsets.end.saturating_sub(self.max_remembered as u64);
        let mut offset = back.max(offsets.start);
        // Ends: each round reads on, up to the end.
        while offset < partition.offsets().end {
            let fetched =
                partition.fetch(offset, FETCH_BYTES).map_err(|error| error.to_string())?;
            for record in fetched.records(usize::MAX) {
                let record = record.map_err(|error| error.to_string())?;
                let id = record.last_header(MESSAGE_ID_HEADER);
                let id = id.and_then(|id| std::str::from_utf8(id).ok());
                if let Some(id) = id {
                    window.ids.lock().remember(id.to_owned(), self.max_remembered);
                }
            }
            if fetched.next_offset <= offset {
                break;
            }
            offset = fetched.next_offset;
        }
        // Another delivery may have read it meanwhile: its window counts.
        Ok(Arc::clone(self.windows.lock().entry(id).or_insert(window)))
    }
}

/// Appends messages in batches, one after the other. Returns how many are durable.
async fn append(partition: &Partition, messages: &[Message]) -> (usize, Option<String>) {
    let mut appended = 0;
    // Ends: each round appends at least one, or leaves.
    while appended < messages.len() {
        let mut batch = BatchBuilder::new();
        let mut count = 0;
        for message in &messages[appended..] {
            let record = Record::new(message.body.clone())
                .key(message.key.clone())
                .header(MESSAGE_ID_HEADER, message.id.clone());
            if count > 0 && (batch.len_bytes() >= BATCH_BYTES || !batch.has_room(&record)) {
                break;
            }
            if let Err(error) = batch.push(&record) {
                if count > 0 {
                    break;
                }
                return (appended, Some(error.to_string()));
            }
            count += 1;
        }
        let batch = match batch.finish() {
            Ok(batch) => batch,
            Err(error) => return (appended, Some(error.to_string())),
        };
        if let Err(error) = partition.append(batch, Durability::Synced).await {
            return (appended, Some(error.to_string()));
        }
        appended += count;
    }
    (appended, None)
}

#[async_trait]
impl Sink for QueueSink {
    async fn deliver(&self, messages: &[Message]) -> Result<(), SinkError> {
        let mut delivered = 0;
        // Messages of one key may have several topics. Ends: each run has one message at least.
        for run in messages.chunk_by(|one, next| one.topic == next.topic) {
            let appended = self.append_run(run).await;
            appended.map_err(|(count, why)| SinkError::new(delivered + count, why))?;
            delivered += run.len();
        }
        Ok(())
    }
}

impl QueueSink {
    /// Appends messages of one key and one topic. An error says how many are there.
    async fn append_run(&self, messages: &[Message]) -> Result<(), (usize, String)> {
        let Some(first) = messages.first() else { return Ok(()) };
        let none = |error: &dyn fmt::Display| (0, error.to_string());
        let topic = self.shared.queue.topic(&first.topic).map_err(|error| none(&error))?;
        let key = Record::new("").key(first.key.clone());
        let number = Murmur2.partition(topic.name(), &key, topic.partitions()).unwrap_or(0);
        let partition = topic.partition(number).map_err(|error| none(&error))?;
        let window = self.shared.window(&topic, number).map_err(|why| none(&why))?;
        let max = self.shared.max_remembered;
        let under_way = window.claim(messages, max).await;
        let known = messages.len() - under_way.messages.len();
        // In a task: a delivery that takes too long is dropped here, and goes on all the same.
        let task = tokio::spawn(async move {
            // All of it: a task captures fields.
            let mut under_way = under_way;
            let (done, why) = append(&partition, &under_way.messages).await;
            under_way.done = done;
            (done, why)
        });
        match task.await {
            Ok((_, None)) => Ok(()),
            Ok((done, Some(why))) => Err((known + done, why)),
            Err(error) => Err((known, error.to_string())),
        }
    }
}

impl Window {
    /// Waits until none of the messages is on its way, and puts those on it that are not there yet.
    /// They are a suffix: messages of one key are appended in order.
    async fn claim(self: &Arc<Self>, messages: &[Message], max: usize) -> UnderWay {
        // Ends: what is on its way ends with its append, however that ends.
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            {
                let mut ids = self.ids.lock();
                if !messages.iter().any(|message| ids.under_way.contains(&message.id)) {
                    let known = messages.iter().take_while(|one| ids.done.contains(&one.id));
                    let fresh = messages[known.count()..].to_vec();
                    ids.under_way.extend(fresh.iter().map(|message| message.id.clone()));
                    drop(ids);
                    return UnderWay { window: Arc::clone(self), messages: fresh, done: 0, max };
                }
            }
            ended.await;
        }
    }
}

/// Messages that are on their way, until it is dropped.
struct UnderWay {
    window: Arc<Window>,
    messages: Vec<Message>,
    done: usize,
    max: usize,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut ids = self.window.ids.lock();
        for (at, message) in self.messages.iter().enumerate() {
            ids.under_way.remove(&message.id);
            if at < self.done {
                ids.remember(message.id.clone(), self.max);
            }
        }
        drop(ids);
        self.window.ended.notify_waiters();
    }
}

impl fmt::Debug for QueueSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let max_remembered = self.shared.max_remembered;
        f.debug_struct("QueueSink").field("max_remembered", &max_remembered).finish_non_exhaustive()
    }
}
