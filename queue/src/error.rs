//! What can go wrong, and what it did.

use crate::format::FormatError;

/// Whether a write happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It did not, and will not.
    NotApplied,
    /// It may have happened, or not: a restart finds out. An idempotent producer sends the batch
    /// again with the same sequence and learns which.
    Unknown,
}

/// A field of a configuration breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {rule}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What must hold.
    pub rule: &'static str,
}

/// What a [`PartitionStore`](crate::store::PartitionStore) answers when it cannot read or write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no room now. Nothing was written. Retry when space has been released.
    #[error("the store is full: {why}")]
    Full {
        /// What the store says.
        why: String,
    },
    /// Too much is waiting to be written. Nothing was written. Retry.
    #[error("the store is busy: {why}")]
    Busy {
        /// What the store says.
        why: String,
    },
    /// The write was rejected for good. Nothing was written. The same write will be rejected again.
    #[error("the store rejects the write: {why}")]
    Rejected {
        /// What the store says.
        why: String,
    },
    /// The store takes no more writes after an earlier failure, or is closed. Nothing of this write
    /// happened. Open it again.
    #[error("the store has stopped: {why}")]
    Stopped {
        /// What the store says.
        why: String,
    },
    /// The write failed on its way to the disk: it may be found after a restart. The store takes
    /// no more writes.
    #[error("the write may or may not be durable: {why}")]
    Failed {
        /// What the store says.
        why: String,
    },
    /// What was asked for has been released; the store begins at `first`.
    #[error("released: the store now begins at position {first}")]
    Released {
        /// First position of the store.
        first: u64,
    },
    /// What is stored cannot be read: it is damaged, or the device fails.
    #[error("the store cannot be read: {why}")]
    Unreadable {
        /// What the store says.
        why: String,
    },
}

impl StoreError {
    /// Whether a write that got this error may have happened.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Failed { .. } => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// What later writes are answered, after this has ended them.
    pub(crate) fn as_stopped(&self) -> Self {
        match self {
            Self::Stopped { .. } => self.clone(),
            other => Self::Stopped { why: other.to_string() },
        }
    }

    /// Whether the same call may succeed later on the same store.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Busy { .. })
    }
}

/// Why a partition does not open. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The caller: there is no such topic, or it has fewer partitions.
    #[error(transparent)]
    Topic(Box<TopicError>),
    /// The caller: the name of a work queue's group is empty or too long.
    #[error("{group:?} is no group of a work queue: this queue takes 1 to {limit} bytes here")]
    InvalidGroup {
        /// The group.
        group: String,
        /// Most bytes of its name.
        limit: usize,
    },
    /// The store cannot be read, or another queue uses it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store holds something that no partition wrote: acknowledged records may be lost.
    #[error("position {position} of the store: {why}")]
    Damaged {
        /// Position of the batch, or of the end for the snapshot.
        position: u64,
        /// What is wrong.
        why: String,
    },
}

/// Why a batch was not appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProduceError {
    /// The caller: the batch is none, or too large for the store.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The caller: transactional and control batches are not taken yet.
    #[error("{what} batches are not supported")]
    Unsupported {
        /// Which kind.
        what: &'static str,
    },
    /// Too many bytes wait to be written to this partition. Nothing happened. Retry after some
    /// appends have been answered.
    #[error("{pending_bytes} bytes wait to be written, the limit is {limit} (max_pending_bytes)")]
    Busy {
        /// Bytes that wait.
        pending_bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A producer of the same id and a later epoch has taken over: this one must stop. Nothing
    /// happened.
    #[error("producer {id} is fenced: epoch {current} has taken over")]
    Fenced {
        /// The producer's id.
        id: i64,
        /// The epoch that has taken over.
        current: i16,
    },
    /// The producer's sequence does not follow the last one, so a batch between is missing. Nothing
    /// happened. If an earlier batch of this producer has just failed with an error that
    /// [`is_retryable`](Self::is_retryable), send that one and all behind it again, in order.
    /// Otherwise retrying is wrong: records would be lost or out of order. The producer must stop,
    /// decide about the missing batches, and begin with a new epoch or id.
    #[error("producer {id}: sequence {found} does not follow, {expected} is expected")]
    OutOfOrder {
        /// The producer's id.
        id: i64,
        /// The sequence that would follow.
        expected: i32,
        /// The sequence of the batch.
        found: i32,
    },
    /// The batch was appended long ago, and its offset is no longer known: more than five batches
    /// of the producer came after it. It is in the log once.
    #[error("producer {id}: sequence {found} was appended before, its offset is forgotten")]
    DuplicateForgotten {
        /// The producer's id.
        id: i64,
        /// The sequence of the batch.
        found: i32,
    },
    /// The partition has forgotten the producer, which was silent while `max_producers` others were
    /// not, or a producer with a higher id. Nothing happened now; whether the batch was appended
    /// long ago is unknown. Begin with a producer id that is higher than all that were given
    /// before.
    #[error("producer {id} is no longer known (max_producers)")]
    UnknownProducer {
        /// The producer's id.
        id: i64,
    },
    /// The store rejected or failed the write; see [`StoreError::outcome`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ProduceError {
    /// Whether the batch may be in the log all the same.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Store(error) => error.outcome(),
            Self::DuplicateForgotten { .. } | Self::UnknownProducer { .. } => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same batch may be appended later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Busy { .. } => true,
            Self::Store(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// Why records could not be read. Reading changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The offset has been released, or is beyond the end. Go on from `start` or `end`.
    #[error("offset {offset} is outside of {start}..={end}")]
    OutOfRange {
        /// The offset asked for.
        offset: u64,
        /// First offset that can be read.
        start: u64,
        /// Offset after the last record.
        end: u64,
    },
    /// As many readers wait for records as may (`max_waiters`). Retry.
    #[error("{limit} readers wait already (max_waiters)")]
    TooManyWaiters {
        /// The limit.
        limit: usize,
    },
    /// The partition was closed while the reader waited: no more records will come.
    #[error("the partition is closed")]
    Closed,
    /// What is stored there is no batch: the records from `offset` on cannot be read.
    #[error("the batch at position {position}: {error}")]
    Damaged {
        /// Position of the batch in the store.
        position: u64,
        /// What is wrong with it.
        error: FormatError,
    },
    /// The batch is compressed with a codec that this build does not have. Build with its feature;
    /// the records behind the batch begin at `next_offset`.
    #[error("the batch at offset {offset}: {error}; the records behind it begin at {next_offset}")]
    Undecodable {
        /// Offset of its first record.
        offset: u64,
        /// Offset of the first record behind it.
        next_offset: u64,
        /// The missing codec.
        error: FormatError,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl FetchError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::TooManyWaiters { .. } => true,
            Self::Store(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// Why a topic was not created, deleted or found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// The caller: the configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The caller: topics have names of 1 to 249 letters, digits, dots, underscores and dashes, but
    /// not `.` and `..`, as in Kafka. Nothing happened.
    #[error("{name:?} is no name: 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'")]
    InvalidName {
        /// The name.
        name: String,
    },
    /// There is a topic of this name. Nothing happened.
    #[error("the topic {name:?} exists already")]
    Exists {
        /// The name.
        name: String,
    },
    /// There is no topic of this name. Nothing happened.
    #[error("there is no topic {name:?}")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The caller: the handle is of a topic of another queue, or of one that was opened before.
    /// Nothing happened. Get the topic from the queue that it is used with.
    #[error("the topic {name:?} is of another queue: get its handle from the queue that is used")]
    Foreign {
        /// The topic.
        name: String,
    },
    /// The topic has fewer partitions.
    #[error("the topic {name:?} has {partitions} partitions, and none with number {partition}")]
    UnknownPartition {
        /// The topic.
        name: String,
        /// The partition that was asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// The queue has as many topics or partitions as it may. Nothing happened.
    #[error("the queue would have more than {limit} ({field})")]
    TooMany {
        /// The field of the configuration.
        field: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The partition did not open: it is damaged, say. Others do their work.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store rejected or failed the write; see [`StoreError::outcome`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl TopicError {
    /// Whether the change may have happened.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Store(error) => error.outcome(),
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_retryable())
    }
}

#[cfg(feature = "journal")]
impl crate::writer::ItemError for TopicError {}

#[cfg(feature = "journal")]
impl crate::writer::ItemError for StoreError {}

/// Why a record was not delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The caller: the configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no such partition, or it did not open. Nothing happened.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The producer has as many bytes on their way as it may. Nothing happened. Wait for answers,
    /// or use [`Producer::enqueue`](crate::Producer::enqueue), which waits.
    #[error("{limit} bytes are on their way (max_in_flight_bytes)")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// It took longer than `delivery_timeout`. With [`Outcome::NotApplied`] the record was taken
    /// back; with [`Outcome::Unknown`] it is being written.
    #[error("not delivered within delivery_timeout: {outcome:?}")]
    TimedOut {
        /// Whether the record may be in the log.
        outcome: Outcome,
    },
    /// The partition rejects the record's batch.
    #[error(transparent)]
    Produce(#[from] ProduceError),
}

impl SendError {
    /// Whether the record may be in the log all the same.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::TimedOut { outcome } => *outcome,
            Self::Produce(error) => error.outcome(),
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same record may be sent later. With [`Outcome::Unknown`] it may be in the log
    /// twice then. Records of the same key that were queued behind it may be in the log before it
    /// then.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Full { .. } | Self::TimedOut { .. } => true,
            Self::Produce(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// Why offsets or a transaction were not committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The caller: a name is not 1 to 249 bytes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A newer producer of the same transactional id has taken over: this one must stop. Nothing
    /// happened.
    #[error("producer {transactional_id:?} is fenced: epoch {current} has taken over")]
    Fenced {
        /// The transactional id.
        transactional_id: String,
        /// The epoch that has taken over.
        current: i16,
    },
    /// The group has been rebalanced: the partitions may belong to another member. Nothing
    /// happened. Poll the consumer, and work from where it stands then.
    #[error("group {group:?}: generation {generation} is over, {current} has begun")]
    StaleGeneration {
        /// The group.
        group: String,
        /// The generation of the commit.
        generation: u32,
        /// The group's generation.
        current: u32,
    },
    /// The group has members: they alone commit its offsets, and it is not deleted before they have
    /// left. Nothing happened.
    #[error("group {group:?} has members: they alone commit its offsets, and it is not deleted")]
    GroupActive {
        /// The group.
        group: String,
    },
    /// One commit of the journal cannot hold it. Nothing happened. Make it smaller, or the
    /// journal's `segment_bytes` larger.
    #[error("{bytes} bytes are more than one commit of the journal takes here, {limit}")]
    TooLarge {
        /// What it would take.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The consumer's guarantee does not allow it: see
    /// `Guarantee`. Nothing happened.
    #[error("a consumer with the guarantee {guarantee} commits {how}")]
    Guarantee {
        /// The guarantee.
        guarantee: &'static str,
        /// How such a consumer commits.
        how: &'static str,
    },
    /// The caller: the consumer is of another queue than the transaction. Nothing happened.
    #[error("the consumer is of another queue than the transaction")]
    ForeignConsumer,
    /// The consumer has no group, and so no offsets. Nothing happened.
    #[error("a consumer without a group stores no offsets")]
    NoGroup,
    /// The consumer does not read the partition. Nothing happened.
    #[error("the consumer does not read {topic}/{partition}")]
    NotAssigned {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
    },
    /// The caller: the offset is beyond the end of the partition. Nothing happened. (Kafka takes
    /// it, and says later that the group has caught up.)
    #[error("offset {offset} is beyond the end of {topic}/{partition}, {end}")]
    BeyondEnd {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The offset.
        offset: u64,
        /// Offset after the last record.
        end: u64,
    },
    /// There is no such partition, or it did not open. Nothing happened.
    #[error(transparent)]
    Topic(Box<TopicError>),
    /// A partition does not take a batch of the transaction. Nothing happened.
    #[error(transparent)]
    NotTaken(#[from] ProduceError),
    /// The store rejected or failed the write; see [`StoreError::outcome`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CommitError {
    /// Whether it may have been committed all the same.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Store(error) => error.outcome(),
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same commit may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotTaken(error) => error.is_retryable(),
            Self::Store(error) => error.is_retryable(),
            _ => false,
        }
    }
}

#[cfg(feature = "journal")]
impl crate::writer::ItemError for CommitError {
    fn not_taken(error: ProduceError) -> Self {
        Self::NotTaken(error)
    }
}

/// Why a poll returned no records. The consumer can be polled again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumeError {
    /// The caller: the configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The caller: a consumer that subscribes to topics is given its partitions by the group.
    #[error("the consumer subscribes to topics: its group assigns its partitions")]
    Subscribed,
    /// The caller: the consumer does not read the partition.
    #[error("the consumer does not read {partition}")]
    NotAssigned {
        /// The partition.
        partition: String,
    },
    /// The group has stored no offset for the partition ([`Start::Stored`](crate::Start::Stored)).
    #[error("the group has stored no offset for {partition}")]
    NothingStored {
        /// The partition.
        partition: String,
    },
    /// There are as many groups with members as may be. Retry when one has ended.
    #[error("there are {limit} groups already (max_groups)")]
    TooManyGroups {
        /// The limit.
        limit: usize,
    },
    /// The group has as many members as it may. Retry when one has left.
    #[error("the group has {limit} members already (max_members)")]
    TooManyMembers {
        /// The limit.
        limit: usize,
    },
    /// Another static member of the same name has taken its place. Drop this one: it is a member no
    /// more, and polls go on to say so.
    #[error("another static member {instance:?} has taken its place")]
    Replaced {
        /// The name.
        instance: String,
    },
    /// A batch cannot be unpacked. To go on behind it, seek to `next_offset`.
    #[error("{partition}: the batch at offset {offset} cannot be read: {error}")]
    Undecodable {
        /// The partition.
        partition: String,
        /// Where the consumer stands.
        offset: u64,
        /// The offset behind the batch.
        next_offset: u64,
        /// What is wrong with it.
        error: FormatError,
    },
    /// There is no such partition, or it did not open.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// A partition cannot be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Offsets could not be stored before records were returned.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The group's next generation could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}
