//! What a node does for its region, if it is part of one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Node, NodeConfig, StartError, Status};
use crate::caller::Scope;
use crate::membership::Membership;
use crate::merkle::{Answer as MerkleAnswer, Exchange, ExchangeError, Question};
use crate::region::record::{self, RegionRecord};
use crate::region::{Feed, RegionConfig};
use crate::store::{Change, ReplicaStore};
use crate::table::{Level, Reply, Request, Value};
use crate::version::VersionVector;
use crate::wire::{Answer, Ask};

/// The record of an empty store.
pub(super) fn first_change(config: &NodeConfig) -> Option<Change> {
    config.regions.as_ref().map(|regions| RegionRecord::of(regions).change())
}

/// Checks the regions of a store that has run before, and keeps a later map of them.
pub(super) async fn check(store: &dyn ReplicaStore, config: &NodeConfig) -> Result<(), StartError> {
    let records = store.get(&[Bytes::from_static(record::KEY)]).await?;
    let found = records.into_iter().next().flatten().map(RegionRecord::decode).transpose()?;
    if let Some(changed) = record::check(found, config.regions.as_ref())? {
        store.apply(vec![changed.change()]).await?;
    }
    Ok(())
}

impl Node {
    /// The regions, and what the other ones have not been told.
    pub(crate) fn regional(&self) -> Option<(&RegionConfig, &Arc<Feed>)> {
        self.shared.config.regions.as_ref().zip(self.shared.feed.as_ref())
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

    /// Tombstones of this replica, up to 1,000.
    pub(crate) async fn tombstones(&self) -> Option<Vec<(Bytes, VersionVector)>> {
        self.own_tombstones().await
    }
}
