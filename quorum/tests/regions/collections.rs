//! Collections of tombstones that cannot go, and by nodes that take few requests.

use std::time::Duration;

use tokio::time::sleep;
use voussoir_quorum::version::{Actor, Dot, Siblings, VersionVector, codec};
use voussoir_quorum::*;

use super::scenes::is_calm;
use super::world::{Start, World, map_of, nodes_of};

const MERGED: u8 = 3;

/// A request that merges a tombstone into a node.
fn bury(key: &str, seen: VersionVector) -> Bytes {
    let state = codec::encode_siblings(&Siblings::<Bytes>::from_parts(seen, [].into()));
    // Version 1, a merge, with an epoch that no replica refuses.
    let mut out = vec![1, 3, 0, 0];
    out.extend_from_slice(&u32::MAX.to_le_bytes());
    out.extend_from_slice(&(1_u64 << 60).to_le_bytes());
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(&(state.len() as u32).to_le_bytes());
    out.extend_from_slice(&state);
    out.into()
}

async fn holders(world: &World, key: &str) -> usize {
    let mut holders = 0;
    for id in world.running() {
        holders += usize::from(world.states(id).await.contains_key(key.as_bytes()));
    }
    holders
}

/// One key whose context is too long in another region stays, and is counted.
#[tokio::test(start_paused = true)]
async fn a_tombstone_that_one_region_refuses_holds_up_no_other() {
    let world = World::begin(31, &[1, 2]).await;
    let seen_by = |id: u64| -> VersionVector {
        (1_000 * id..1_000 * id + 600).map(|node| Dot::new(Actor::new(node, 1), 1)).collect()
    };
    for id in [1, 5] {
        let host = world.host(id).unwrap();
        let answer = host.node.answer(bury("a long one", seen_by(id))).await.unwrap();
        assert_eq!(answer[1], MERGED);
    }
    let table = world.table(1);
    let state = table.put_blind("cart", "milk").await.unwrap();
    table.delete("cart", state.context()).await.unwrap();
    assert!(holders(&world, "cart").await >= 2);
    let ends = Instant::now() + Duration::from_secs(60);
    // Ends: by the deadline.
    while holders(&world, "cart").await > 0 {
        assert!(Instant::now() < ends, "it is held up");
        sleep(Duration::from_millis(200)).await;
    }
    let hosts = world.running().into_iter().map(|id| world.host(id).unwrap());
    assert!(hosts.map(|host| host.node.tombstone_stats().refused).sum::<u64>() > 0);
    for id in [1, 5] {
        let state = &world.states(id).await["a long one".as_bytes()];
        assert!(state.is_tombstone() && state.context().covers(&seen_by(id)), "node {id}");
    }
}

/// A message has more tombstones than a node takes requests at once.
#[tokio::test(start_paused = true)]
async fn a_collection_of_regions_goes_through_nodes_that_take_few_requests() {
    let world = World::new(32, map_of(&[1, 2]));
    for id in [1, 2].into_iter().flat_map(nodes_of) {
        let mut config = world.config_of(id);
        (config.max_requests, config.collect_every) = (64, None);
        world.start_of(id, Start::Create, config).await.unwrap();
    }
    let table = world.table(1);
    for key in 0..150 {
        let state = table.put_blind(format!("k{key}"), "v").await.unwrap();
        table.delete(format!("k{key}"), state.context()).await.unwrap();
    }
    is_calm(&world).await;
    let host = world.host(1).unwrap();
    assert_eq!(host.region.collect_tombstones().await, Ok(150));
    for id in world.running() {
        assert!(world.states(id).await.is_empty(), "node {id}");
    }
}
