//! What a counter of a node that starts again looks like, and one of too many actors.

use std::sync::Arc;

use voussoir_quorum::crdt::PnCounter;
use voussoir_quorum::version::Actor;
use voussoir_quorum::{Bytes, MemoryStore};

use crate::own::{Own, encode};

#[tokio::test]
async fn a_node_is_one_actor_however_often_it_starts() {
    let store = Arc::new(MemoryStore::new());
    let key = Bytes::from_static(b"actor");
    let first = Own::open(1, store.clone()).await.unwrap();
    let mut counter: PnCounter = first.get(&key).await.unwrap();
    counter.add(first.actor, 3).unwrap();
    first.put(&key, encode(&counter).unwrap()).await.unwrap();
    let again = Own::open(1, store).await.unwrap();
    assert_eq!(again.actor, first.actor);
    assert_eq!(again.get::<PnCounter>(&key).await.unwrap(), counter);
}

/// Stored, it would be a counter that nobody can read, and that nobody can make smaller.
#[test]
fn a_counter_of_more_actors_than_a_reader_accepts_has_no_bytes() {
    let mut counter = PnCounter::new();
    for node in 1..=1_024 {
        counter.add(Actor::new(node, 1), 1).unwrap();
    }
    assert!(encode(&counter).is_ok());
    counter.add(Actor::new(1_025, 1), 1).unwrap();
    assert!(encode(&counter).unwrap_err().to_string().contains("actors"));
}
