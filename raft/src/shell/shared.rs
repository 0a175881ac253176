//! What the handles, the tasks and the transport's side of a node have in common.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::error::StopReason;
use super::mailbox::Mailbox;
use super::pending::{ChangeReply, Proposal, ReadReply};
use super::progress::MembersView;
use super::transfers::Transfers;
use crate::config::Config;
use crate::core::{Patience, TransferEnd};
use crate::membership::{Change, Membership};
use crate::message::{AppendAck, Message};
use crate::store::{Completion, LogStore, LogWrite, ReadFailed, SnapshotName, StoreError};
use crate::types::{ENTRY_OVERHEAD, Entry, FollowerStatus, HaltReason, SnapshotMeta};

/// Something for the driver.
#[derive(Debug)]
pub(crate) enum Event {
    Propose {
        data: Bytes,
        proposal: Proposal,
    },
    Read {
        token: u64,
        deadline: Instant,
        reply: ReadReply,
    },
    /// The caller of a read waits no more.
    ReadWithdrawn {
        token: u64,
    },
    Message {
        from: u64,
        message: Message,
        weight: u64,
    },
    Unreachable {
        peer: u64,
    },
    /// The common tick of the node's groups.
    Beat,
    /// From the node: what is known of a member's node.
    Node {
        node: u64,
        life: Option<u64>,
    },
    /// From the node: a leadership has ended.
    Resigned,
    /// From the node: it is the group's turn to campaign, if it still wants to.
    Admitted,
    Campaign,
    Change {
        token: u64,
        change: Change,
        reply: ChangeReply,
    },
    /// The caller of a change waits no more.
    ChangeWithdrawn {
        token: u64,
    },
    TransferLeadership {
        to: Option<u64>,
    },
    Persisted {
        id: u64,
        result: Result<(), StoreError>,
        /// What the leader has been told with that.
        ack: Option<AppendAck>,
    },
    Fetched {
        id: u64,
        result: Result<Vec<Entry>, ReadFailed>,
    },
    Applied {
        index: u64,
        answered: usize,
    },
    SnapshotTaken {
        /// Boxed, as what is long and rare: each event is moved a few times.
        meta: Box<SnapshotMeta>,
    },
    SnapshotFailed,
    SnapshotSent {
        id: u64,
        ended: TransferEnd,
    },
    SnapshotReceived {
        from: u64,
        term: u64,
        meta: Box<SnapshotMeta>,
    },
    Stop(StopReason),
}

/// Counts since the start of a node. All of them only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Times that the node's loop ran. Divide other counts by it for the size of batches.
    pub turns: u64,
    /// Commands handed to the core.
    pub proposals: u64,
    /// Reads handed to the core.
    pub reads: u64,
    /// Reads, of this node and of others, that were answered by this leader's lease.
    pub lease_reads: u64,
    /// Writes handed to the log store.
    pub writes: u64,
    /// Entries in these writes.
    pub entries_written: u64,
    /// Entries handed to the state machine.
    pub entries_applied: u64,
    /// Messages that came from peers.
    pub messages_received: u64,
    /// Messages from peers that were dropped because too much was waiting.
    pub messages_dropped: u64,
    /// Messages that were refused because their sender is no other voter of the group. Those of
    /// voters that no correct node can have sent are counted in
    /// [`Status::rejected_inputs`](crate::Status).
    pub messages_rejected: u64,
    /// Messages handed to the transport.
    pub messages_sent: u64,
    /// Messages that the transport did not take.
    pub sends_failed: u64,
    /// Snapshots taken here.
    pub snapshots_taken: u64,
    /// Snapshots sent completely.
    pub snapshots_sent: u64,
    /// Snapshots received completely.
    pub snapshots_received: u64,
    /// Parts of snapshots that were refused because their sender is no other voter of the group, or
    /// because they cannot be of this group.
    pub snapshots_rejected: u64,
    /// Chunks of snapshots sent, repeated ones included.
    pub chunks_sent: u64,
}

macro_rules! counters {
    ($($name:ident),+ $(,)?) => {
        /// [`Stats`] as they are counted.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64,)+ }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters!(
    turns,
    proposals,
    reads,
    lease_reads,
    writes,
    entries_written,
    entries_applied,
    messages_received,
    messages_dropped,
    messages_rejected,
    messages_sent,
    sends_failed,
    snapshots_taken,
    snapshots_sent,
    snapshots_received,
    snapshots_rejected,
    chunks_sent,
);

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Adds to a counter that nobody else adds to: that needs no bus lock.
pub(crate) fn count_alone(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Relaxed);
}

/// A time that never comes, and an index that is never reached.
pub(crate) const NEVER: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) events: Mailbox<Event, Patience>,
    /// Weight of the peers' messages among the events.
    queued: AtomicU64,
    max_queued: u64,
    /// Room for proposals, in bytes.
    pub(crate) proposal_room: Semaphore,
    /// Room for reads.
    pub(crate) read_room: Semaphore,
    /// [`Event::Campaign`] is among the events.
    campaigns: AtomicBool,
    /// [`Event::Beat`] is among the events.
    beats: AtomicBool,
    /// An empty write is under way that says whether the store has failed.
    is_doubted: AtomicBool,
    /// The latest leadership that is said to have ended, by its term, until the driver takes it.
    resigned: Mutex<Option<(u64, u64)>>,
    /// The token of the next read or change.
    next_token: AtomicU64,
    pub(crate) max_entry_bytes: usize,
    pub(crate) proposal_timeout: Duration,
    /// Set once, before the last caller is answered.
    stopped: OnceLock<StopReason>,
    /// What the driver last published, for the receiver of snapshots.
    pub(crate) term: AtomicU64,
    pub(crate) commit: AtomicU64,
    /// For [`Raft::freshness`](crate::Raft::freshness): the last applied index, and when (ns) the
    /// machine last showed everything that was committed, or [`NEVER`].
    pub(crate) applied: AtomicU64,
    pub(crate) fresh_at: AtomicU64,
    /// For [`Raft::followers`](crate::Raft::followers).
    pub(crate) followers: Mutex<Vec<FollowerStatus>>,
    members: Mutex<MembersView>,
    /// Snapshots that are being sent.
    pub(crate) transfers: Transfers,
    /// The leader may answer reads by its lease.
    pub(crate) reads_by_lease: bool,
    /// What the snapshot covers that is coming in, or [`NEVER`]. Set by who holds it.
    pub(crate) staged: AtomicU64,
    /// A received snapshot that the core has not decided about. Boxed, as all that few groups
    /// have at a time.
    pub(crate) handed_over: Mutex<Option<Box<SnapshotName>>>,
    pub(crate) counters: Counters,
}

impl Shared {
    pub(crate) fn new(config: &Config, members: &Arc<Membership>) -> Self {
        let largest = config.max_entry_bytes as u64 + ENTRY_OVERHEAD;
        let room = config.max_uncommitted_bytes.max(largest).min(u64::from(u32::MAX));
        Self {
            events: Mailbox::new(),
            queued: AtomicU64::new(0),
            max_queued: config.max_inbox_bytes,
            proposal_room: Semaphore::new(room as usize),
            read_room: Semaphore::new(config.max_reads.min(Semaphore::MAX_PERMITS)),
            campaigns: AtomicBool::new(false),
            beats: AtomicBool::new(false),
            is_doubted: AtomicBool::new(false),
            resigned: Mutex::new(None),
            next_token: AtomicU64::new(1),
            max_entry_bytes: config.max_entry_bytes,
            proposal_timeout: config.proposal_timeout,
            stopped: OnceLock::new(),
            term: AtomicU64::new(0),
            commit: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            fresh_at: AtomicU64::new(NEVER),
            followers: Mutex::new(Vec::new()),
            members: Mutex::new(MembersView::new(members)),
            transfers: Transfers::new(config.snapshot_bytes_per_second),
            reads_by_lease: config.max_clock_drift_ppm.is_some(),
            staged: AtomicU64::new(NEVER),
            handed_over: Mutex::new(None),
            counters: Counters::default(),
        }
    }

    /// A token that no other read and no other change of this node has.
    pub(crate) fn token(&self) -> u64 {
        self.next_token.fetch_add(1, Ordering::Relaxed)
    }

    /// Asks the driver for an election. Requests that it has not seen yet are one.
    pub(crate) fn campaign(&self) -> Result<(), StopReason> {
        if !self.campaigns.swap(true, Ordering::AcqRel)
            && self.events.push(Event::Campaign).is_err()
        {
            return Err(self.why_stopped());
        }
        self.stopped().map_or(Ok(()), |reason| Err(reason.clone()))
    }

    /// The driver has taken the request for an election.
    pub(crate) fn campaign_taken(&self) {
        self.campaigns.store(false, Ordering::Release);
    }

    /// The node's common tick. Ticks that the driver has not seen yet are one.
    pub(crate) fn beat(&self) {
        if !self.beats.swap(true, Ordering::AcqRel) {
            self.tell_patiently(Event::Beat, |patience| patience.beats);
        }
    }

    /// The driver has taken the tick.
    pub(crate) fn beat_taken(&self) {
        self.beats.store(false, Ordering::Release);
    }

    /// Leaves word that the leadership of `from` in `term` has ended. Of several the latest counts:
    /// whoever rests does so in the latest term that it knows.
    pub(crate) fn tell_of_resignation(&self, from: u64, term: u64) {
        let is_first = {
            let mut resigned = self.resigned.lock();
            let is_first = resigned.is_none();
            if resigned.is_none_or(|(_, known)| known <= term) {
                *resigned = Some((from, term));
            }
            is_first
        };
        if is_first {
            self.tell(Event::Resigned);
        }
    }

    /// The driver takes that word.
    pub(crate) fn take_resignation(&self) -> Option<(u64, u64)> {
        self.resigned.lock().take()
    }

    /// Leaves an event for the driver, if there still is one.
    pub(crate) fn tell(&self, event: Event) {
        // After the driver's end nobody waits for what it could have done.
        drop(self.events.push(event));
    }

    /// Leaves an event that does not wake a driver whose patience `may_wait` accepts.
    pub(crate) fn tell_patiently(&self, event: Event, may_wait: impl FnOnce(&Patience) -> bool) {
        // As above.
        drop(self.events.push_unless(event, may_wait));
    }

    /// A snapshot could not be stored. If the disk has failed for good, an empty write fails too,
    /// and the node says so and stops. It may have nothing else to write, and would stay a
    /// follower that never gets anywhere.
    pub(crate) fn doubt(self: &Arc<Self>, log: &dyn LogStore) {
        // One at a time: it may have to wait for room, for which snapshots are tried for all along.
        if !self.is_doubted.swap(true, Ordering::AcqRel) {
            self.write_or_stop(log, LogWrite::default());
        }
    }

    /// Writes what the core does not wait for. The node stops when that fails: every later write
    /// would fail too.
    pub(crate) fn write_or_stop(self: &Arc<Self>, log: &dyn LogStore, write: LogWrite) {
        let shared = Arc::clone(self);
        let is_doubt = write.is_empty();
        let tell = move |result: Result<(), StoreError>| {
            if is_doubt {
                shared.is_doubted.store(false, Ordering::Release);
            }
            if let Err(error) = result {
                let (reason, cause) = (HaltReason::PersistFailed, Some(error.to_string()));
                shared.tell(Event::Stop(StopReason::Halted { reason, cause }));
            }
        };
        log.write(write, Completion::new(tell));
    }

    /// Leaves a message of a peer, unless too much is waiting: Raft bears the loss.
    pub(crate) fn deliver(&self, from: u64, message: Message) {
        let weight = weight(&message);
        count(&self.counters.messages_received, 1);
        let queued = self.queued.fetch_add(weight, Ordering::Relaxed);
        if queued + weight > self.max_queued && queued > 0 {
            self.queued.fetch_sub(weight, Ordering::Relaxed);
            count(&self.counters.messages_dropped, 1);
            return;
        }
        let acked = match &message {
            Message::AppendAck(ack) => Some(ack.matched),
            _ => None,
        };
        self.tell_patiently(Event::Message { from, message, weight }, |patience| {
            acked.is_some_and(|matched| matched < patience.acks_below)
        });
    }

    /// The driver has taken a message.
    pub(crate) fn taken(&self, weight: u64) {
        self.queued.fetch_sub(weight, Ordering::Relaxed);
    }

    /// Shows other members than before.
    pub(crate) fn show_members(&self, members: &Arc<Membership>) {
        let watched = self.members.lock().show(members);
        // Wakes the watchers, so not under the lock.
        if let Some(watched) = watched {
            watched.send_replace(Arc::clone(members));
        }
    }

    /// The members now and at every change.
    pub(crate) fn watch_members(&self) -> watch::Receiver<Arc<Membership>> {
        self.members.lock().watch()
    }

    /// Why the node runs no more.
    pub(crate) fn stopped(&self) -> Option<&StopReason> {
        self.stopped.get()
    }

    /// The reason for refusing somebody after the end.
    pub(crate) fn why_stopped(&self) -> StopReason {
        self.stopped.get().cloned().unwrap_or_else(StopReason::of_dropped_task)
    }

    /// Closes every entrance and returns what had come in and not been looked at. The first
    /// reason stays.
    pub(crate) fn stop(&self, reason: StopReason) -> Vec<Event> {
        // A second reason is a consequence of the first.
        let _ = self.stopped.set(reason);
        self.proposal_room.close();
        self.read_room.close();
        let watched = self.members.lock().end();
        drop(watched);
        self.events.close()
    }
}

/// Answers a question of the node's loop exactly once. When the task that was to answer panics, the
/// answer is the one that it was made with: the loop never waits for a task that is gone.
pub(crate) struct Answer {
    shared: Arc<Shared>,
    otherwise: Option<Event>,
}

impl Answer {
    /// `otherwise` is said when the answer is dropped before it was given.
    pub(crate) fn new(shared: &Arc<Shared>, otherwise: Event) -> Self {
        Self { shared: Arc::clone(shared), otherwise: Some(otherwise) }
    }

    /// Gives the answer.
    pub(crate) fn give(mut self, event: Event) {
        self.otherwise = None;
        self.shared.tell(event);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(otherwise) = self.otherwise.take() {
            self.shared.tell(otherwise);
        }
    }
}

/// What a message takes of the memory for waiting messages, in bytes.
pub(crate) fn weight(message: &Message) -> u64 {
    match message {
        Message::Append { entries, .. } => {
            ENTRY_OVERHEAD + entries.iter().map(Entry::weight).sum::<u64>()
        }
        _ => ENTRY_OVERHEAD,
    }
}
