//! What the caller of a poll is told of partitions that come and go.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Consumer, ConsumerRecord, name_of};
use crate::core::group::Place;
use crate::error::ConsumeError;
use crate::queue::TopicPartition;

#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) assigned: Vec<TopicPartition>,
    pub(super) revoking: Vec<TopicPartition>,
    pub(super) lost: Vec<TopicPartition>,
}

impl News {
    /// Whether there are any.
    pub(super) fn is_some(&self) -> bool {
        let Self { assigned, revoking, lost } = self;
        !(assigned.is_empty() && revoking.is_empty() && lost.is_empty())
    }
}

impl Consumer {
    /// The records, or why there are none. What is to be told goes first: a partition that fails
    /// for ever fails again with the next poll.
    pub(super) fn or_failure(
        &mut self,
        taken: Result<Vec<ConsumerRecord>, ConsumeError>,
    ) -> Result<Vec<ConsumerRecord>, ConsumeError> {
        if self.news.is_some() {
            return Ok(taken.unwrap_or_default());
        }
        match self.failure.take() {
            Some(failure) if taken.as_ref().is_ok_and(Vec::is_empty) => Err(failure),
            failure => {
                self.failure = failure;
                taken
            }
        }
    }

    /// Gives up what `keep` lacks and no poll has told of yet: nothing was done with it. Told of
    /// both at once, a caller could not know that what it was given had gone again.
    pub(super) fn give_up_untold(&mut self, keep: &BTreeSet<Place>) {
        let Self { news, cursors, .. } = self;
        news.assigned.retain(|at| {
            let place = (Arc::clone(&at.topic), at.partition);
            let stays = keep.contains(&place);
            if !stays {
                cursors.remove(&place);
            }
            stays
        });
    }

    /// Loses what `keep` lacks.
    pub(super) fn lose_all_but(&mut self, keep: &BTreeSet<Place>) {
        self.give_up_untold(keep);
        let gone = self.cursors.keys().filter(|place| !keep.contains(*place));
        self.news.lost.extend(gone.map(name_of));
        self.cursors.retain(|place, _| keep.contains(place));
    }

    /// A topic that was deleted and created again is another one.
    pub(super) fn follow_topics(&mut self) {
        if self.queue.shared.partitions_since(&mut self.topics_version).is_none() {
            return;
        }
        let (mut keep, mut created) = (BTreeSet::new(), Vec::new());
        for (place, cursor) in &self.cursors {
            let slot = self.queue.topic(&place.0).and_then(|topic| topic.slot(place.1));
            match slot.map(|slot| slot.number) {
                Ok(number) if number == cursor.number => drop(keep.insert(place.clone())),
                Ok(_) => created.push(place.clone()),
                Err(_) => {}
            }
        }
        self.lose_all_but(&keep);
        for place in created {
            match self.cursor(&place) {
                Ok(cursor) => {
                    self.news.assigned.push(name_of(&place));
                    self.cursors.insert(place, cursor);
                }
                Err(error) => drop(self.failure.get_or_insert(error)),
            }
        }
    }
}
