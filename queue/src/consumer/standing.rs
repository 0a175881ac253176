//! Which generation of its group a consumer's partitions belong to.

use std::time::Duration;

use tokio::time::Instant;

use super::{Consumer, Membership};
use crate::config::Start;
use crate::core::group::Standing;
use crate::error::{CommitError, ConsumeError};
use crate::transaction::GroupOffsets;

impl Membership {
    /// What it reads is of this generation from now on, 0 for none.
    pub(super) fn enter(&mut self, generation: u32) {
        self.generation = generation;
        self.is_former &= generation == 0;
    }
}

impl Consumer {
    /// Whether no generation says if it may commit: it is a reader without membership, or a member
    /// that has not been given anything yet. One that has lost its place is neither.
    pub(super) fn has_no_generation(&self) -> bool {
        let membership = self.membership.as_ref();
        membership.is_none_or(|membership| membership.generation == 0 && !membership.is_former)
    }

    /// Stores where the group begins in partitions that it begins to read at their end: else who is
    /// given one next would begin at its end of that time, and what came in between would be
    /// nobody's. Returns whether records may be returned: not when another generation has begun.
    pub(super) async fn store_beginnings(&mut self) -> Result<bool, CommitError> {
        if self.config.start != Start::Latest || self.membership.is_none() {
            return Ok(true);
        }
        let begun = self.cursors.values().filter(|cursor| !cursor.has_begun);
        let offsets: Vec<_> = begun.map(|cursor| (cursor.number, cursor.began)).collect();
        if offsets.is_empty() {
            return Ok(true);
        }
        let all = self.group_offsets()?;
        match self.commit_offsets(Ok(GroupOffsets { offsets, ..all })).await {
            Ok(()) => {
                self.cursors.values_mut().for_each(|cursor| cursor.has_begun = true);
                Ok(true)
            }
            Err(CommitError::StaleGeneration { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Two of one name would take the place from each other for ever.
    pub(super) fn check_replaced(&self) -> Result<(), ConsumeError> {
        match (&self.membership, &self.config.instance) {
            (Some(Membership { is_replaced: true, .. }), Some(instance)) => {
                Err(ConsumeError::Replaced { instance: instance.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Whether the partitions that it reads are still its own, after a rebalance that it has joined
    /// has ended, for which it waits at most `max_wait`. If so, its commits name the new generation
    /// from now on, and one that failed with
    /// [`StaleGeneration`](crate::CommitError::StaleGeneration) may be made again, if nothing in it
    /// was made from records of partitions that a poll has told as
    /// [`revoking`](crate::Polled::revoking).
    ///
    /// # Cancel safety
    /// It has waited, or has done all of it.
    pub async fn still_holds(&mut self, max_wait: Duration) -> bool {
        let deadline = Instant::now().checked_add(max_wait);
        // Ends: at the deadline, or when the group has settled.
        loop {
            let Some(membership) = &mut self.membership else { return true };
            membership.changes.mark_unchanged();
            let member = membership.member;
            let standing = member.and_then(|member| membership.group.standing(member).ok());
            if !matches!(standing, Some(Standing::Waiting)) {
                break;
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now())
                || self.wait(deadline, false).await.is_err()
            {
                return false;
            }
        }
        let held_in = self.membership.as_ref().and_then(|membership| self.held_in(membership));
        match (&mut self.membership, held_in) {
            (Some(membership), Some(generation)) => {
                membership.generation = generation;
                true
            }
            _ => false,
        }
    }

    /// The generation in which it may commit what it reads. Nobody else was given a partition of
    /// that in between: each rebalance waits for a member to join, with what it goes on reading,
    /// and what it has to give up in the next one is still its own. One that has lost its place has
    /// no generation.
    fn held_in(&self, membership: &Membership) -> Option<u32> {
        let standing = membership.group.standing(membership.member?).ok()?;
        if membership.generation == 0 {
            return None;
        }
        match standing {
            Standing::MustJoin { generation, .. } => Some(generation),
            Standing::Stable { generation, places } => {
                let is_own = |place| places.contains(place);
                self.cursors.keys().all(is_own).then_some(generation)
            }
            Standing::Waiting => None,
        }
    }
}
