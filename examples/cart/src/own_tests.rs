//! What a cart of a node that starts again looks like, and one of too many actors.

use std::sync::Arc;

use voussoir_quorum::crdt::OrSet;
use voussoir_quorum::version::Actor;
use voussoir_quorum::{Bytes, MemoryStore};

use crate::own::{Own, encode};

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
