//! What a node does for its region, if it is part of one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::driver::Job;
use super::{Node, NodeConfig, StartError, Status};
use crate::caller::{Scope, until_not_busy};
use crate::membership::Membership;
use crate::merkle::{Answer as MerkleAnswer, Exchange, ExchangeError, HashKey, Question};
use crate::region::record::{self, RegionRecord};
use crate::region::{Feed, RegionConfig};
use crate::store::{ReplicaStore, StoreError};
use crate::table::{Level, Reply, Request, Value};
use crate::wire::{Answer, Ask};

/// Checks the regions of a store that has run before, and keeps a later map of them.
pub(super) async fn check(
    store: &dyn ReplicaStore,
    config: &NodeConfig,
) -> Result<Option<RegionRecord>, StartError> {
    let found = read(store).await?;
    let wanted = record::check(found.as_ref(), config.regions.as_ref())?;
    if let Some(wanted) = wanted.as_ref().filter(|wanted| found.as_ref() != Some(wanted)) {
        store.apply(vec![wanted.change()]).await?;
    }
    Ok(wanted)
}

/// Checks the regions of a store that is to be cleared, as far as it can be read.
pub(super) async fn check_lost(
    store: &dyn ReplicaStore,
    config: &NodeConfig,
) -> Result<Option<RegionRecord>, StartError> {
    let is_damaged = |error: &StartError| {
        matches!(error, StartError::Store(StoreError::Damaged(_)) | StartError::Unreadable(_))
    };
    let found = match read(store).await {
        Err(error) if is_damaged(&error) => None,
        found => found?,
    };
    let is_empty = match store.scan(&[], &[], 1).await {
        Err(StoreError::Damaged(_)) => false,
        page => page?.is_empty(),
    };
    Ok(record::check_lost(found.as_ref(), is_empty, config.regions.as_ref())?)
}

async fn read(store: &dyn ReplicaStore) -> Result<Option<RegionRecord>, StartError> {
    let records = store.get(&[Bytes::from_static(record::KEY)]).await?;
    Ok(records.into_iter().next().flatten().map(RegionRecord::decode).transpose()?)
}

impl Node {
    /// The regions, and what the other ones have not been told.
    pub(crate) fn regional(&self) -> Option<(&RegionConfig, &Arc<Feed>)> {
        self.shared.config.regions.as_ref().zip(self.shared.feed.as_ref())
    }

    /// Makes a record of the node's region durable. False: it is not known to be.
    pub(crate) async fn keep(&self, record: &RegionRecord) -> bool {
        let change = record.change();
        self.order(|done| Job::Keep { change, done }).await
    }

    pub(crate) fn digest_key(&self) -> HashKey {
        self.shared.config.digest_key
    }

    /// The level at which what other regions have written is merged.
    pub(crate) fn write_level(&self) -> Level {
        self.shared.config.write
    }

    pub(crate) fn collect_every(&self) -> Option<Duration> {
        self.shared.config.collect_every
    }

    /// Whether it answers nothing any more.
    pub(crate) fn has_ended(&self) -> bool {
        let status = self.shared.status.borrow();
        matches!(*status, Status::Halted(_) | Status::Stopped | Status::Removed { .. })
    }

    /// The membership that it serves.
    pub(crate) fn current(&self) -> Arc<Membership> {
        Arc::clone(&self.shared.membership.borrow())
    }

    /// Asks the node's own replica. None: it has ended, is busy, or serves another membership.
    pub(crate) async fn own_request(&self, scope: &Scope, request: Request) -> Option<Reply> {
        match self.ask_own(scope, Ask::Table(request)).await? {
            Answer::Table(reply) => Some(reply),
            _ => None,
        }
    }

    /// As [`Node::own_request`], and again while the node is busy, until the deadline.
    pub(crate) async fn own_request_again(
        &self,
        scope: &Scope,
        request: Request,
        deadline: Instant,
    ) -> Option<Reply> {
        let ask = Ask::Table(request);
        match until_not_busy(deadline, || self.ask_own(scope, ask.clone())).await? {
            Answer::Table(reply) => Some(reply),
            _ => None,
        }
    }

    /// Requests that the node takes at once from one who leaves clients their room.
    pub(crate) fn max_own_requests(&self) -> usize {
        self.shared.config.max_requests / 2
    }

    /// The durable state of a key at this node.
    pub(crate) async fn own_state(&self, scope: &Scope, key: Bytes) -> Option<Value> {
        match self.own_request(scope, Request::Get { key }).await? {
            Reply::Value { state } => Some(state),
            _ => None,
        }
    }

    /// Answers a question of another region about the keys of the table. None: the node is not
    /// whole, or its store is still being read.
    pub(crate) fn table_answer(&self, question: &Question) -> Option<MerkleAnswer> {
        self.is_whole().then(|| self.shared.tree.answer_table(question)).flatten()
    }

    /// Begins a comparison with another region. None: as [`Node::table_answer`].
    pub(crate) fn table_exchange(&self) -> Option<Exchange> {
        self.is_whole().then(|| self.shared.tree.compare_table()).flatten()
    }

    pub(crate) fn table_go_on(
        &self,
        exchange: &mut Exchange,
        answer: MerkleAnswer,
    ) -> Result<(), ExchangeError> {
        self.shared.tree.go_on_table(exchange, answer)
    }
}
