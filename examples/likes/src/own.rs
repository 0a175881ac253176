//! What this node has written under its own name, in a log of its own in the node's journal.
//!
//! A value remembers each actor that ever changed it, and a decoder refuses one of too many. So the
//! actor is the node, and not each start of its process: what it writes goes on where the process
//! before has ended, since it was made durable here before another node could see it.

use std::sync::Arc;

use voussoir_quorum::crdt::codec::{Encoded, Limits};
use voussoir_quorum::store::{Change, StoreError};
use voussoir_quorum::version::{Actor, Dot};
use voussoir_quorum::{Bytes, ReplicaStore};

use crate::Error;

/// The key of the actor's incarnation. Those of the values begin with another byte.
const ACTOR: Bytes = Bytes::from_static(b"actor");
const VALUE: u8 = b'=';

/// The values of one actor.
pub(crate) struct Own {
    pub(crate) actor: Actor,
    store: Arc<dyn ReplicaStore>,
}

impl Own {
    /// The actor of node `id`, which is drawn once for each store.
    ///
    /// # Errors
    /// The store failed, or holds something else.
    pub(crate) async fn open(id: u64, store: Arc<dyn ReplicaStore>) -> Result<Self, Error> {
        let incarnation = match store.get(&[ACTOR]).await?.into_iter().next().flatten() {
            Some(bytes) => u64::from_le_bytes(bytes[..].try_into()?),
            None => {
                let drawn = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
                let drawn = (drawn.as_nanos() as u64).clamp(1, Dot::MAX_COUNTER);
                let record = Some(Bytes::copy_from_slice(&drawn.to_le_bytes()));
                store.apply(vec![Change { key: ACTOR, record }]).await?;
                drawn
            }
        };
        Ok(Self { actor: Actor::new(id, incarnation), store })
    }

    /// What the actor has written of a key.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn get<C: Encoded>(&self, key: &Bytes) -> Result<C, Error> {
        match self.store.get(&[value_key(key)]).await?.into_iter().next().flatten() {
            Some(bytes) => Ok(C::decode(bytes, &Limits::default())?),
            None => Ok(C::default()),
        }
    }

    /// Makes a value of the actor durable. It goes on where the future is dropped.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn put(&self, key: &Bytes, value: Bytes) -> Result<(), Error> {
        let change = Change { key: value_key(key), record: Some(value) };
        let store = Arc::clone(&self.store);
        // A store's batch is not to be dropped half-way.
        let written = tokio::spawn(async move { store.apply(vec![change]).await });
        written.await.unwrap_or_else(|ended| Err(StoreError::Unknown(ended.to_string())))?;
        Ok(())
    }
}

fn value_key(key: &[u8]) -> Bytes {
    [&[VALUE], key].concat().into()
}

/// The bytes of a value, unless no reader would accept them.
///
/// # Errors
/// It has more parts than [`Limits`] allow. Once it was stored, nobody could read or change it.
pub(crate) fn encode<C: Encoded>(value: &C) -> Result<Bytes, Error> {
    let bytes = value.encode();
    C::decode(bytes.clone(), &Limits::default())?;
    Ok(bytes)
}
