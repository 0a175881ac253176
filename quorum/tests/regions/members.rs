//! Regions whose replicas change, nodes of another region or cluster, and stores of another life.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use voussoir_quorum::region::{MapError, PeerState, RegionConfig};
use voussoir_quorum::store::{Change, ReplicaStore};
use voussoir_quorum::*;

use super::scenes::{is_calm, stats};
use super::world::{Start, World, nodes_of};

const PATIENCE: Duration = Duration::from_secs(60);

/// A node joins and takes the place of another one, which is down.
pub(crate) async fn replace(world: &Arc<World>, ask: u64, old: u64, new: u64) {
    world.start(new, Start::Join).await.unwrap();
    let host = world.host(ask).unwrap();
    let change = MemberChange::Replace { old, new };
    host.node.reconfigure(&host.local, change, PATIENCE).await.unwrap();
    drop(host);
    let is_whole = || world.host(new).is_some_and(|host| host.node.is_whole());
    world.until("the new replica is whole", is_whole).await;
}

async fn assert_absent(world: &Arc<World>, key: &str, but: u64) {
    for id in world.running().into_iter().filter(|id| *id != but) {
        let states = world.states(id).await;
        assert!(!states.contains_key(key.as_bytes()), "node {id}: {states:?}");
    }
}

/// A replica that was down when it was removed, and when what it holds was deleted and collected,
/// does not know it: no other region hears or asks it, and neither does a node that is new there.
#[tokio::test(start_paused = true)]
async fn a_removed_replica_brings_nothing_back_through_another_region() {
    let world = World::begin(20, &[1, 2]).await;
    let one = world.table(1);
    let seen = one.put_blind("cart", "milk").await.unwrap();
    is_calm(&world).await;
    assert!(world.states(6).await.contains_key("cart".as_bytes()));
    world.crash(6);
    replace(&world, 4, 6, 221).await;
    one.delete("cart", seen.context()).await.unwrap();
    world.converge(PATIENCE).await;
    assert_absent(&world, "cart", 6).await;
    world.with(|state| state.alone.insert(6));
    world.start(6, Start::Again).await.unwrap();
    assert!(world.host(6).unwrap().node.is_whole(), "it knows nothing of it");
    let is_told = || stats(&world, 6, 1).state == PeerState::Over { is_own: true };
    world.until("it is told", is_told).await;
    sleep(Duration::from_secs(20)).await;
    assert_absent(&world, "cart", 6).await;
    // It is the one that a restarted node asks, by the list of its map.
    world.crash(3);
    world.with(|state| state.map.regions[1].nodes = vec![6]);
    world.start(3, Start::Again).await.unwrap();
    let is_asked = || stats(&world, 3, 2).state == PeerState::Over { is_own: false };
    world.until("it is asked", is_asked).await;
    sleep(Duration::from_secs(20)).await;
    assert_absent(&world, "cart", 6).await;
    // A replica that is new in region 1 has learned what the others were told.
    world.crash(6);
    world.crash(3);
    replace(&world, 1, 3, 211).await;
    world.with(|state| state.map.regions[0].nodes = vec![211]);
    world.start(6, Start::Again).await.unwrap();
    world.until("the new replica tells it", is_told).await;
    sleep(Duration::from_secs(20)).await;
    assert_absent(&world, "cart", 6).await;
}

/// A node that has left a region for another one, on an empty store, answers for its new one only.
#[tokio::test(start_paused = true)]
async fn a_node_of_another_region_is_not_taken_for_one_of_this() {
    let world = World::begin(21, &[1, 2, 3]).await;
    is_calm(&world).await;
    let one = world.table(1);
    for id in 4..=6 {
        world.crash(id);
    }
    // Node 4 is a replica of region 3 by now; the map still names it as one that knows region 2.
    world.wipe(4);
    let mut config = world.config_of(7);
    config.replicas = nodes_of(3);
    world.start_of(4, Start::Join, config).await.unwrap();
    let is_known = || stats(&world, 1, 2).state == PeerState::OtherRegion { region: 3 };
    world.until("node 4 says of which region it is", is_known).await;
    let seen = one.put_blind("cart", "milk").await.unwrap();
    one.delete("cart", seen.context()).await.unwrap();
    sleep(Duration::from_secs(20)).await;
    assert!(world.states(1).await["cart".as_bytes()].is_tombstone(), "region 2 was not asked");
    world.crash(4);
    for id in [5, 6] {
        world.start(id, Start::Again).await.unwrap();
    }
}

/// A copy of a region's disks with a name of its own ships nothing into the original.
#[tokio::test(start_paused = true)]
async fn a_copy_with_another_name_is_not_heard() {
    let (one, two, copy) = (Lineage::new(1), Lineage::new(2), Lineage::new(3));
    // By its name alone, and once tombstones were collected: then also where the map has no names.
    for (is_in_map, is_collected) in [(true, false), (true, true), (false, true)] {
        let world = World::new(22, super::world::map_of(&[1, 2]));
        let name = |map: RegionConfig| map.with_lineage(1, one).with_lineage(2, two);
        if is_in_map {
            world.with(|state| state.map = name(state.map.clone()));
        }
        let config_of = |id: u64| {
            let mut config = world.config_of(id);
            config.lineage = if id <= 3 { one } else { two };
            config.collect_every = config.collect_every.filter(|_| is_collected);
            config
        };
        for id in 1..=6 {
            world.start_of(id, Start::Create, config_of(id)).await.unwrap();
        }
        if is_collected {
            let table = world.table(1);
            let seen = table.put_blind("gone", "milk").await.unwrap();
            is_calm(&world).await;
            table.delete("gone", seen.context()).await.unwrap();
            world.converge(PATIENCE).await;
        }
        for id in 4..=6 {
            world.crash(id);
            let mut config = config_of(id);
            config.lineage = copy;
            if is_in_map {
                let map = config.regions.take().unwrap().with_lineage(2, copy);
                config.regions = Some(map);
            }
            world.rename(id, &config).await.unwrap();
            world.start_of(id, Start::Again, config).await.unwrap();
        }
        world.table(2).put_blind("cart", "of the copy").await.unwrap();
        let is_told = || stats(&world, 4, 1).state == PeerState::Over { is_own: true };
        world.until("the copy is told", is_told).await;
        sleep(Duration::from_secs(10)).await;
        let told = format!("named in the map: {is_in_map}, collected: {is_collected}");
        assert!(world.states(1).await.is_empty(), "{told}");
    }
}

/// Two maps of one epoch exchange nothing, and a store keeps which one it has seen.
#[tokio::test(start_paused = true)]
async fn two_maps_of_one_epoch_exchange_nothing() {
    let world = World::begin(23, &[1, 2]).await;
    is_calm(&world).await;
    let map = world.with(|state| state.map.clone());
    let one_more = map.clone().with(3, nodes_of(3));
    let another = map.clone().with(9, [91, 92, 93]);
    for (ids, map) in [(1..=3, one_more.clone()), (4..=6, another.clone())] {
        world.with(|state| state.map = map);
        for id in ids {
            world.crash(id);
            world.start(id, Start::Again).await.unwrap();
        }
    }
    world.table(1).put_blind("cart", "milk").await.unwrap();
    let is_other = PeerState::OtherMap { epoch: 2, is_member: true };
    world.until("the maps differ", || stats(&world, 1, 2).state == is_other).await;
    sleep(Duration::from_secs(10)).await;
    assert!(world.states(4).await.is_empty());
    world.crash(4);
    world.with(|state| state.map = one_more);
    let error = world.start(4, Start::Again).await.unwrap_err();
    let different = MapError::Different { epoch: 2 };
    assert!(matches!(&error, StartError::Regions(found) if *found == different), "{error}");
    // So do nodes with different keys of digests, which would find every key to differ.
    world.with(|state| state.map = another);
    world.start(4, Start::Again).await.unwrap();
}

/// A store that has to be cleared is checked as one that need not: it does not become part of a
/// region that was taken out, nor of none.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_cleared_keeps_its_region() {
    let world = World::new(24, super::world::map_of(&[1, 2]));
    let first = world.config_of(1);
    let (mut again, mut without) = (first.clone(), first.clone());
    again.regions = first.regions.clone().map(|map| map.without(1).with(1, nodes_of(1)));
    without.regions = None;
    let store = Arc::new(MemoryStore::new());
    let open = || Arc::clone(&store) as Arc<dyn ReplicaStore>;
    Node::create(1, open(), first.clone()).await.unwrap().shutdown().await;
    // Condemned: it has met writes of its own that it does not have.
    let meta = store.get(&[Bytes::from_static(b"m")]).await.unwrap().remove(0).unwrap();
    let mut condemned = meta.to_vec();
    condemned[1] = 2;
    let change = Change { key: Bytes::from_static(b"m"), record: Some(condemned.into()) };
    store.apply(vec![change]).await.unwrap();
    let regions = |error| match error {
        StartError::Regions(error) => error,
        error => panic!("{error}"),
    };
    for is_lost in [false, true] {
        let start = async |config: NodeConfig| {
            if is_lost {
                Node::start_lost(1, open(), config).await
            } else {
                Node::start(1, open(), config).await
            }
        };
        let error = regions(start(without.clone()).await.unwrap_err());
        assert_eq!(error, MapError::Missing { region: 1 });
        let error = regions(start(again.clone()).await.unwrap_err());
        assert_eq!(error, MapError::Evicted { region: 1, since: 3, found: 1 });
    }
    // Without a record that can be read, a store that is not empty may be of any life.
    let damaged = Change { key: Bytes::from_static(b"r"), record: Some(Bytes::from_static(b"x")) };
    store.apply(vec![damaged]).await.unwrap();
    let error = regions(Node::start_lost(1, open(), again.clone()).await.unwrap_err());
    assert_eq!(error, MapError::Evicted { region: 1, since: 3, found: 0 });
    Node::start_lost(1, open(), first).await.unwrap().shutdown().await;
    let empty = Arc::new(MemoryStore::new());
    Node::start_lost(1, empty, again).await.unwrap().shutdown().await;
}
