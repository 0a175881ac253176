//! What this node has written under its own name, in a log of its own in the node's journal.
//!
//! A cart remembers each actor that ever changed it, and a decoder refuses one of too many. So the
//! actor is the node, and not each start of its process: its changes go on where the process before
//! has ended, since each was made durable here before another node could see it.

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

#[cfg(test)]
mod tests {
    use voussoir_quorum::MemoryStore;
    use voussoir_quorum::crdt::OrSet;

    use super::*;

    #[tokio::test]
    async fn a_node_is_one_actor_however_often_it_starts() {
        let store = Arc::new(MemoryStore::new());
        let key = Bytes::from_static(b"actor");
        let first = Own::open(1, store.clone()).await.unwrap();
        let mut set: OrSet<Bytes> = first.get(&key).await.unwrap();
        set.update(first.actor, |set, dot| set.add("milk".into(), dot));
        first.put(&key, encode(&set).unwrap()).await.unwrap();
        let again = Own::open(1, store).await.unwrap();
        assert_eq!(again.actor, first.actor);
        assert_eq!(again.get::<OrSet<Bytes>>(&key).await.unwrap(), set);
    }

    /// Stored, it would be a cart that nobody can read, and that nobody can make smaller.
    #[test]
    fn a_value_of_more_actors_than_a_reader_accepts_has_no_bytes() {
        let mut set: OrSet<Bytes> = OrSet::new();
        for node in 1..=1_024 {
            set.update(Actor::new(node, 1), |set, dot| set.add("milk".into(), dot));
        }
        assert!(encode(&set).is_ok());
        set.update(Actor::new(1_025, 1), |set, dot| set.add("milk".into(), dot));
        assert!(encode(&set).unwrap_err().to_string().contains("actors"));
    }
}
