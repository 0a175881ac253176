//! The topics of the table as a node shows them, and its parts of their partitions.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use voussoir_raft::journal::JournalStore;

use super::{Cluster, ReplicatedError};
use crate::backend::BackendError;
use crate::config::Retention;
use crate::core::entry::{Change, Key, TopicEntry, Value};
use crate::core::group::Place;
use crate::core::table::{StagedChanges, Table, View};
use crate::error::FetchError;
use crate::format::MAX_UNPACKED_BYTES;
use crate::partition::Partition;
use crate::queue::{TopicPartition, counters};
use crate::raft::ReplicatedPartition;

/// Before a partition is started, or deleted, again after that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Partitions that are deleted beside each other: their deletions share syncs, and nothing else is
/// started or deleted before the last one.
const DELETED_AT_ONCE: usize = 100;

/// A topic, as this node knows it.
#[derive(Clone, Debug)]
pub(super) struct Topic {
    pub(super) entry: TopicEntry,
    /// Those of its partitions that have started here.
    pub(super) parts: Vec<Option<ReplicatedPartition>>,
}

impl Topic {
    pub(super) fn number(&self, partition: u32) -> u32 {
        self.entry.first_number + partition
    }

    fn is_whole(&self) -> bool {
        self.parts.iter().all(Option::is_some)
    }
}

/// Keeps up with the table: starts this node's parts of new topics, and deletes those of topics
/// that are gone.
pub(super) async fn follow(cluster: Weak<Cluster>, reader: Partition) {
    let (mut table, mut at) = (Table::new(0), 0);
    // Whether something may have to be started or deleted.
    let mut is_behind = true;
    loop {
        let Some(here) = cluster.upgrade() else { return };
        if let Err(error) = here.read_table(&mut table, &mut at, &mut is_behind) {
            drop(here);
            tracing::error!(target: "voussoir::queue", %error, "the table cannot be read");
            sleep_until(Instant::now() + RETRY).await;
            continue;
        }
        if is_behind {
            here.show(&table);
            let is_whole = here.start_parts().await;
            is_behind = !here.delete_rest(&table).await || !is_whole;
        }
        let wait = reader.wait_for(at);
        here.followed.send_replace(at);
        drop(here);
        let woken = if is_behind { timeout(RETRY, wait).await } else { Ok(wait.await) };
        match woken {
            Ok(Ok(())) | Err(_) => {}
            // The node has stopped.
            Ok(Err(FetchError::Closed)) => return,
            Ok(Err(_)) => sleep_until(Instant::now() + RETRY).await,
        }
    }
}

impl Cluster {
    /// Reads the table on from `at` to its end. Sets `has_changed` where topics may have changed,
    /// also when it fails behind that.
    fn read_table(
        &self,
        table: &mut Table,
        at: &mut u64,
        has_changed: &mut bool,
    ) -> Result<(), String> {
        let reader = self.table.reader();
        // Ends: each round reads a batch, or leaves.
        while *at < reader.offsets().end {
            let fetched = match reader.fetch(*at, 1 << 20) {
                // What is live was written again behind it, and what is not there is gone.
                Err(FetchError::OutOfRange { start, .. }) if start > *at => {
                    (*table, *at, *has_changed) = (Table::new(start), start, true);
                    continue;
                }
                fetched => fetched.map_err(|error| error.to_string())?,
            };
            for record in fetched.records(MAX_UNPACKED_BYTES) {
                let record = record.map_err(|error| error.to_string())?;
                let change = Change::decode(record.value.unwrap_or_default())?;
                *has_changed |= matches!(change.key, Key::Topic(_));
                table.apply(change);
            }
            *at = fetched.next_offset;
        }
        Ok(())
    }

    /// Shows the topics of the table, and no others.
    fn show(&self, table: &Table) {
        let mut topics = self.topics.write();
        topics.retain(|name, topic| {
            let entry = table.get(&Key::Topic(name.to_string()));
            let entry = entry.and_then(|value| TopicEntry::read(value));
            // One that was created again has other numbers.
            entry.is_some_and(|entry| entry.first_number == topic.entry.first_number)
        });
        for (key, entry) in table.topics() {
            let Key::Topic(name) = key else { continue };
            let new = || Topic { entry, parts: vec![None; entry.partitions as usize] };
            topics.entry(name.as_str().into()).or_insert_with(new).entry = entry;
        }
    }

    /// Stops the groups of partitions that no topic has, and deletes their logs. Returns whether
    /// all are gone then. No partition ever has the number of another one, so a table that is
    /// behind takes none for gone that is there.
    async fn delete_rest(&self, table: &Table) -> bool {
        let staged = StagedChanges::default();
        let numbers = 1..counters(View { table, staged: &staged }).next_number;
        let is_gone = |group: &u64| {
            let number = group.checked_sub(self.config.group.group);
            let number = number.and_then(|number| u32::try_from(number).ok());
            number.is_some_and(|number| numbers.contains(&number) && !table.has_partition(number))
        };
        let groups = self.node.groups().into_iter().chain(JournalStore::groups(&self.journal));
        let groups: BTreeSet<u64> = groups.filter(is_gone).collect();
        let mut groups = groups.into_iter();
        let (mut deleting, mut is_done) = (JoinSet::new(), true);
        // Ends: each round takes a group, or sees one off.
        loop {
            while deleting.len() < DELETED_AT_ONCE
                && let Some(group) = groups.next()
            {
                let (node, journal) = (self.node.clone(), self.journal.clone());
                deleting.spawn(async move {
                    node.stop_group(group).await;
                    let deleted = JournalStore::delete(&journal, group).await;
                    deleted.map_err(|error| (group, error.to_string()))
                });
            }
            match deleting.join_next().await {
                None => return is_done,
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err((group, error)))) => {
                    is_done = false;
                    tracing::error!(target: "voussoir::queue", group, %error, "not deleted");
                }
                // The runtime stops.
                Some(Err(_)) => is_done = false,
            }
        }
    }

    /// Starts the parts that have not started. Returns whether all have then.
    async fn start_parts(&self) -> bool {
        let mut missing = Vec::new();
        for (name, topic) in &*self.topics.read() {
            for (at, part) in topic.parts.iter().enumerate() {
                if part.is_none() {
                    missing.push((Arc::clone(name), at, topic.number(at as u32)));
                }
            }
        }
        let mut is_whole = true;
        for (name, at, number) in missing {
            match self.start_part(number).await {
                Ok(part) => {
                    let mut topics = self.topics.write();
                    let place = topics.get_mut(&name).and_then(|topic| topic.parts.get_mut(at));
                    if let Some(place) = place {
                        *place = Some(part);
                    }
                }
                Err(error) => {
                    is_whole = false;
                    let topic = &name;
                    tracing::error!(target: "voussoir::queue", %topic, at, %error, "not started");
                }
            }
        }
        is_whole
    }

    async fn start_part(&self, number: u32) -> Result<ReplicatedPartition, ReplicatedError> {
        use voussoir_raft::journal::OpenError::Absent;
        let identity = self.config.identity(number);
        let journal = self.journal.clone();
        // The table is in the same journal, so this is not the node's disk without its data.
        let open = move || match JournalStore::open(&journal, identity) {
            Err(Absent { .. }) => JournalStore::create(&journal, identity),
            opened => opened,
        };
        // It waits for the disk.
        let log = match tokio::task::spawn_blocking(open).await {
            Ok(opened) => opened?,
            Err(_) => return Err(ReplicatedError::Stopped),
        };
        Ok(self.config.start(&self.node, number, log).await?)
    }

    /// Waits until this node shows all that the table said when this was called.
    pub(super) async fn keep_up(&self, deadline: Instant) -> Result<(), BackendError> {
        let mut followed = self.followed.subscribe();
        let synced = self.table.sync(deadline).await;
        synced.map_err(|error| BackendError::Unavailable { why: error.to_string() })?;
        let end = self.table.reader().offsets().end;
        match timeout_at(deadline, followed.wait_for(|at| *at >= end)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                let why = "this node has not started or deleted all partitions".to_owned();
                Err(BackendError::Unavailable { why })
            }
        }
    }

    /// The topic of this name, once this node has started all its partitions.
    pub(super) async fn topic(&self, name: &str, deadline: Instant) -> Result<Topic, BackendError> {
        let known = || self.topics.read().get(name).cloned();
        if let Some(topic) = known().filter(Topic::is_whole) {
            return Ok(topic);
        }
        let kept_up = self.keep_up(deadline).await;
        match (known(), kept_up) {
            (Some(topic), _) if topic.is_whole() => Ok(topic),
            (_, Err(error)) => Err(error),
            (None, Ok(())) => Err(BackendError::UnknownTopic { topic: name.to_owned() }),
            (Some(_), Ok(())) => {
                let why = format!("this node has not started all partitions of {name:?}");
                Err(BackendError::Unavailable { why })
            }
        }
    }

    /// What tells the topic of this name from an earlier or later one.
    pub(super) async fn first_number(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<u32, BackendError> {
        self.keep_up(deadline).await?;
        let number = self.topics.read().get(name).map(|topic| topic.entry.first_number);
        number.ok_or_else(|| BackendError::UnknownTopic { topic: name.to_owned() })
    }

    /// The numbers of the partitions of a topic that this node shows.
    pub(super) fn numbers(&self, name: &str) -> Range<u32> {
        let topics = self.topics.read();
        let entry = topics.get(name).map(|topic| topic.entry);
        entry.map_or(0..0, |entry| entry.first_number..entry.first_number + entry.partitions)
    }

    /// Which partition has a number, and this node's part of it, once that has started.
    pub(super) fn part(&self, number: u32) -> Option<(Place, ReplicatedPartition)> {
        let topics = self.topics.read();
        topics.iter().find_map(|(name, topic)| {
            let at = number.checked_sub(topic.entry.first_number)?;
            let part = topic.parts.get(at as usize)?.clone()?;
            Some(((Arc::clone(name), at), part))
        })
    }

    /// The parts of topics that have a retention.
    pub(super) fn retained(&self) -> Vec<(TopicPartition, Retention, ReplicatedPartition)> {
        let topics = self.topics.read();
        let mut retained = Vec::new();
        for (name, topic) in &*topics {
            let retention = topic.entry.retention();
            if retention == Retention::default() {
                continue;
            }
            for (at, part) in (0..).zip(&topic.parts) {
                if let Some(part) = part {
                    retained.push((TopicPartition::new(name, at), retention, part.clone()));
                }
            }
        }
        retained
    }
}
