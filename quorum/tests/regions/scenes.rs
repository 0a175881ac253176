//! Scenes: one thing each, step by step.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use voussoir_quorum::region::{
    MapError, PeerState, Reach, Region, RegionCollectError, RegionConfig, RegionError, RegionStats,
    RegionTable,
};
use voussoir_quorum::store::{Change, ReplicaStore};
use voussoir_quorum::table::{CallError, Guarantee, Level, Outcome, TableConfig};
use voussoir_quorum::version::VersionVector;
use voussoir_quorum::*;

use super::world::{Start, World, map_of, nodes_of};

const PATIENCE: Duration = Duration::from_secs(60);
/// Kinds of questions.
const SHIP: u8 = 2;
const FETCH: u8 = 4;

pub(crate) fn stats(world: &World, node: u64, other: u64) -> RegionStats {
    let host = world.host(node).unwrap();
    host.region.stats().into_iter().find(|peer| peer.region == other).unwrap()
}

/// All nodes have compared once, and nothing waits.
pub(crate) async fn is_calm(world: &World) {
    let is_calm = || {
        world.running().into_iter().all(|id| {
            let stats = world.host(id).unwrap().region.stats();
            stats.iter().all(|peer| peer.lag.is_zero() && !peer.needs_comparison)
        })
    };
    world.until("all regions are told", is_calm).await;
}

pub(crate) async fn values(table: &Table, key: &str) -> Vec<String> {
    let state = table.get(key.to_owned()).await.unwrap();
    state.values().map(|value| String::from_utf8_lossy(value).into_owned()).collect()
}

fn table_config(region: u64) -> TableConfig {
    let mut config = TableConfig::with_replicas(nodes_of(region));
    config.timeout = Duration::from_millis(300);
    config
}

fn each_quorum(world: &World, node: u64, region: u64) -> RegionTable {
    let host = world.host(node).unwrap();
    let (local, reach) = (Arc::clone(&host.local), Reach::EachQuorum);
    let elsewhere = Guarantee::Intersecting;
    RegionTable::new(table_config(region), local, &host.region, reach, elsewhere).unwrap()
}

/// A LOCAL_QUORUM write waits for no other region, and is there soon after; writes of two regions
/// that have not seen each other are siblings in both.
#[tokio::test(start_paused = true)]
async fn a_local_quorum_waits_for_no_region_and_siblings_meet() {
    let world = World::begin(1, &[1, 2]).await;
    is_calm(&world).await;
    world.cut(1, 2);
    let (one, two) = (world.table(1), world.table(2));
    let began = Instant::now();
    one.put_blind("cart", "milk").await.unwrap();
    two.put_blind("cart", "bread").await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
    sleep(Duration::from_secs(2)).await;
    assert_eq!(values(&two, "cart").await, ["bread"]);
    let waiting: Vec<RegionStats> = nodes_of(1).iter().map(|id| stats(&world, *id, 2)).collect();
    let lag = waiting.iter().map(|peer| peer.lag).max().unwrap();
    assert!(lag >= Duration::from_secs(2), "the region is behind by {lag:?}");
    assert_eq!(waiting.iter().map(|peer| peer.pending_keys).sum::<usize>(), 1);
    world.heal();
    is_calm(&world).await;
    for table in [&one, &two] {
        assert_eq!(values(table, "cart").await, ["milk", "bread"]);
    }
    // A writer that has read both replaces both, in both regions.
    let seen = two.get("cart").await.unwrap();
    two.put("cart", seen.context(), "milk, bread").await.unwrap();
    is_calm(&world).await;
    assert_eq!(values(&one, "cart").await, ["milk, bread"]);
}

/// Each write is sent once to each other region, and nothing that was received is sent on.
#[tokio::test(start_paused = true)]
async fn what_was_shipped_is_not_shipped_on() {
    let world = World::begin(2, &[1, 2, 3]).await;
    is_calm(&world).await;
    world.with(|state| state.passed.clear());
    let table = world.table(1);
    for key in 0..10 {
        table.put_blind(format!("cart-{key}"), "milk").await.unwrap();
        is_calm(&world).await;
    }
    sleep(Duration::from_secs(20)).await;
    let passed = world.with(|state| state.passed.clone());
    let of = |from, to, kind| passed.get(&(from, to, kind)).copied().unwrap_or(0);
    assert_eq!((of(1, 2, SHIP), of(1, 3, SHIP)), (10, 10), "{passed:?}");
    for (from, to) in [(2, 1), (2, 3), (3, 1), (3, 2)] {
        assert_eq!((of(from, to, SHIP), of(from, to, FETCH)), (0, 0), "{passed:?}");
    }
    world.converge(PATIENCE).await;
}

/// A region that was away for little is told by the outbox alone; one that was away for more keys
/// than an outbox has is told by a comparison.
#[tokio::test(start_paused = true)]
async fn a_region_that_was_away_is_told_by_outbox_or_comparison() {
    let world = World::begin(3, &[1, 2]).await;
    is_calm(&world).await;
    let (table, sum) = (world.table(1), |of: fn(&RegionStats) -> u64| {
        nodes_of(1).iter().map(|id| of(&stats(&world, *id, 2))).sum::<u64>()
    });
    world.cut(1, 2);
    for _ in 0..5 {
        for key in 0..6 {
            table.put_blind(format!("few-{key}"), "milk").await.unwrap();
        }
    }
    world.heal();
    is_calm(&world).await;
    assert_eq!(sum(|peer| peer.dropped_keys), 0);
    // Three nodes have given dots to writes of six keys.
    let shipped = sum(|peer| peer.shipped_keys);
    assert!((6..=18).contains(&shipped), "{shipped}");
    world.converge(PATIENCE).await;
    world.cut(1, 2);
    for key in 0..100 {
        table.put_blind(format!("many-{key}"), "milk").await.unwrap();
    }
    assert!(sum(|peer| peer.dropped_keys) > 0);
    let pending = sum(|peer| peer.pending_keys as u64);
    assert!(pending <= 36, "three nodes keep 12 keys each at most, {pending} are kept");
    let is_behind = nodes_of(1).iter().any(|id| stats(&world, *id, 2).needs_comparison);
    assert!(is_behind, "what was dropped is not called told");
    world.heal();
    is_calm(&world).await;
    world.converge(PATIENCE).await;
    assert!(sum(|peer| peer.repaired_keys) > 0);
    assert_eq!(world.states(4).await.len(), 106);
}

/// What a node has acknowledged and not shipped when it crashes is found after its start, and by
/// the other nodes of its region if it stays away.
#[tokio::test(start_paused = true)]
async fn what_a_crashed_node_has_not_shipped_arrives() {
    for comes_back in [true, false] {
        let world = World::begin(4, &[1, 2]).await;
        is_calm(&world).await;
        world.cut(1, 2);
        let table = world.table(1);
        for key in 0..6 {
            table.put_blind(format!("cart-{key}"), "milk").await.unwrap();
        }
        let pending = |id: &u64| stats(&world, *id, 2).pending_keys;
        let most = nodes_of(1).into_iter().max_by_key(pending).unwrap();
        assert!(pending(&most) > 0);
        world.crash(most);
        world.heal();
        if comes_back {
            world.start(most, Start::Again).await.unwrap();
        }
        let two = world.table(2);
        let ends = Instant::now() + PATIENCE;
        let mut found = 0;
        // Ends: by the deadline.
        while found < 6 {
            assert!(Instant::now() < ends, "{found} of 6 arrive, comes back: {comes_back}");
            sleep(Duration::from_millis(100)).await;
            found = 0;
            for key in 0..6 {
                found += values(&two, &format!("cart-{key}")).await.len();
            }
        }
    }
}

/// EACH_QUORUM is acknowledged when each region has the write; if one is away, that is said, and
/// the write goes there all the same.
#[tokio::test(start_paused = true)]
async fn each_quorum_waits_for_every_region_and_says_who_is_away() {
    let world = World::begin(5, &[1, 2, 3]).await;
    is_calm(&world).await;
    let table = each_quorum(&world, 1, 1);
    table.put_blind("cart", "milk").await.unwrap();
    for region in [1, 2, 3] {
        assert_eq!(values(&world.table(region), "cart").await, ["milk"]);
    }
    world.cut(1, 3);
    let seen = table.get("cart").await.unwrap();
    let error = table.put("cart", seen.context(), "bread").await.unwrap_err();
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::Unknown, false));
    let RegionError::Elsewhere { regions, .. } = error else { panic!("{error}") };
    assert_eq!(regions, [3]);
    assert_eq!(values(&world.table(2), "cart").await, ["bread"]);
    assert_eq!(values(&world.table(3), "cart").await, ["milk"]);
    world.heal();
    is_calm(&world).await;
    assert_eq!(values(&world.table(3), "cart").await, ["bread"]);
    let seen = table.get("cart").await.unwrap();
    table.delete("cart", seen.context()).await.unwrap();
    assert!(values(&world.table(3), "cart").await.is_empty());
    // One replica of a region is no quorum of it.
    assert!(world.crash(5) && world.crash(6));
    let error = table.put_blind("cart", "tea").await.unwrap_err();
    let RegionError::Elsewhere { regions, .. } = error else { panic!("{error}") };
    assert_eq!(regions, [2]);
}

/// A guarantee to readers elsewhere is computed, and refused where it cannot be given.
#[tokio::test(start_paused = true)]
async fn a_guarantee_elsewhere_that_cannot_be_given_is_refused() {
    let world = World::begin(6, &[1, 2]).await;
    let host = world.host(1).unwrap();
    let build = |config: TableConfig, reach, elsewhere| {
        RegionTable::new(config, Arc::clone(&host.local), &host.region, reach, elsewhere)
    };
    let (local, each) = (Reach::LocalQuorum, Reach::EachQuorum);
    assert!(build(table_config(1), local, Guarantee::Eventual).is_ok());
    assert!(build(table_config(1), each, Guarantee::Intersecting).is_ok());
    let mut one = table_config(1);
    (one.read, one.write, one.require) = (Level::One, Level::All, Guarantee::Intersecting);
    for (config, reach, elsewhere) in [
        (table_config(1), local, Guarantee::Intersecting),
        (table_config(1), each, Guarantee::Monotonic),
        // What is shipped is merged at the level of the nodes, which is a quorum.
        (one, each, Guarantee::Intersecting),
    ] {
        let error = build(config, reach, elsewhere).unwrap_err();
        assert_eq!(error.field, "elsewhere", "{error}");
    }
}

/// While a region is away that lacks it, a tombstone stays in all regions, and nothing that was
/// deleted comes back; then it goes in all of them.
#[tokio::test(start_paused = true)]
async fn tombstones_wait_for_every_region() {
    let world = World::begin(7, &[1, 2, 3]).await;
    let table = world.table(1);
    table.put_blind("cart", "milk").await.unwrap();
    is_calm(&world).await;
    world.cut_off(3);
    let seen = table.get("cart").await.unwrap();
    table.delete("cart", seen.context()).await.unwrap();
    // Ten times as long as collections are made.
    sleep(Duration::from_secs(20)).await;
    for id in 1..=6 {
        let states = world.states(id).await;
        assert!(states["cart".as_bytes()].is_tombstone(), "node {id}: {states:?}");
    }
    let region = world.host(1).unwrap().region.clone();
    let error = region.collect_tombstones().await.unwrap_err();
    assert!(matches!(error, RegionCollectError::Unacknowledged { region: 3, .. }), "{error}");
    assert_eq!(values(&world.table(3), "cart").await, ["milk"]);
    world.heal();
    world.converge(PATIENCE).await;
    for id in 1..=9 {
        assert!(world.states(id).await.is_empty(), "node {id}");
    }
}

/// A node of a region drops no tombstone by its own region alone, whoever asks it.
#[tokio::test(start_paused = true)]
async fn a_region_alone_collects_nothing() {
    let world = World::begin(8, &[1, 2]).await;
    world.cut(1, 2);
    let table = world.table(1);
    let seen = table.put_blind("cart", "milk").await.unwrap();
    table.delete("cart", seen.context()).await.unwrap();
    let host = world.host(1).unwrap();
    let error = host.node.collect_tombstones(&host.local).await.unwrap_err();
    assert_eq!(error, CollectError::Regional);
    drop(host);
    // A node that was begun without the regions by mistake holds the tombstone, and collects.
    let mut config = world.config_of(2);
    config.regions = None;
    world.crash(2);
    let stray = Node::create(2, Arc::new(MemoryStore::new()), config).await.unwrap();
    let link: Arc<dyn Link> = Arc::new(Mixed { world: Arc::clone(&world), stray: stray.clone() });
    assert!(stray.repair(&link).await.unwrap().repaired > 0, "it has the tombstone");
    assert_eq!(stray.collect_tombstones(&link).await, Ok(1), "it has dropped its own");
    for id in [1, 3] {
        assert!(world.states(id).await["cart".as_bytes()].is_tombstone(), "node {id}");
    }
}

/// Reaches the nodes of a world, and one that is none of it.
struct Mixed {
    world: Arc<World>,
    stray: Node,
}

#[async_trait]
impl Link for Mixed {
    async fn call(
        &self,
        to: u64,
        _class: Class,
        request: Bytes,
        _deadline: Instant,
    ) -> Result<Bytes, CallError> {
        let node = if to == self.stray.id() {
            self.stray.clone()
        } else {
            self.world.host(to).ok_or(CallError::NotSent)?.node.clone()
        };
        node.answer(request).await.ok_or(CallError::Unknown)
    }
}

/// A state that was read before a tombstone was collected everywhere, and arrives after, is merged
/// nowhere.
#[tokio::test(start_paused = true)]
async fn a_state_that_was_long_on_its_way_is_refused() {
    let world = World::begin(9, &[1, 2]).await;
    is_calm(&world).await;
    let table = world.table(1);
    world.with(|state| state.keeps = Some(SHIP));
    let seen = table.put_blind("cart", "milk").await.unwrap();
    world.until("the write is on its way", || world.with(|state| !state.kept.is_empty())).await;
    world.with(|state| state.keeps = None);
    // Its sender has given it up, and sent another one.
    is_calm(&world).await;
    assert_eq!(values(&world.table(2), "cart").await, ["milk"]);
    table.delete("cart", seen.context()).await.unwrap();
    world.converge(PATIENCE).await;
    assert!(world.states(4).await.is_empty(), "it was collected");
    let kept = world.with(|state| std::mem::take(&mut state.kept));
    for (to, question) in kept {
        let region = world.host(to).unwrap().region.clone();
        region.answer(question).await.unwrap();
    }
    sleep(Duration::from_secs(10)).await;
    for id in 1..=6 {
        assert!(world.states(id).await.is_empty(), "node {id}: {:?}", world.states(id).await);
    }
}

/// A region that was taken out is heard by nobody, and its tombstones hold up nobody. It comes back
/// empty or not at all: what was deleted meanwhile stays deleted.
#[tokio::test(start_paused = true)]
async fn a_region_that_was_taken_out_comes_back_empty() {
    let world = World::begin(10, &[1, 2, 3]).await;
    let (one, three) = (world.table(1), world.table(3));
    let seen = one.put_blind("cart", "milk").await.unwrap();
    one.put_blind("kept", "bread").await.unwrap();
    is_calm(&world).await;
    for id in nodes_of(3) {
        assert!(world.crash(id));
    }
    let old = world.with(|state| state.map.clone());
    let new = old.clone().without(3);
    world.with(|state| state.map = new.clone());
    for id in 1..=6 {
        world.crash(id);
        world.start(id, Start::Again).await.unwrap();
    }
    one.delete("cart", seen.context()).await.unwrap();
    world.converge(PATIENCE).await;
    assert!(!world.states(1).await.contains_key("cart".as_bytes()), "collected without region 3");
    // It comes back as it was: it is told so, and nothing of it is heard.
    world.with(|state| state.map = old);
    for id in nodes_of(3) {
        world.start(id, Start::Again).await.unwrap();
    }
    three.put_blind("lost", "beer").await.unwrap();
    let is_out = PeerState::OtherMap { epoch: 2, is_member: false };
    let knows = || nodes_of(3).iter().all(|id| stats(&world, *id, 1).state == is_out);
    world.until("region 3 hears that it was taken out", knows).await;
    sleep(Duration::from_secs(10)).await;
    for key in ["cart", "lost"] {
        assert!(values(&one, key).await.is_empty(), "{key}");
    }
    // With the map that adds it again, its old stores are refused.
    let again = new.with(3, nodes_of(3));
    world.with(|state| state.map = again);
    for id in nodes_of(3) {
        world.crash(id);
        let error = world.start(id, Start::Again).await.unwrap_err();
        let evicted = MapError::Evicted { region: 3, since: 3, found: 1 };
        assert!(matches!(&error, StartError::Regions(found) if *found == evicted), "{error}");
        world.wipe(id);
        world.start(id, Start::Create).await.unwrap();
    }
    for id in 1..=6 {
        world.crash(id);
        world.start(id, Start::Again).await.unwrap();
    }
    world.converge(PATIENCE).await;
    is_calm(&world).await;
    assert_eq!(values(&three, "kept").await, ["bread"]);
    for region in 1..=3 {
        assert!(values(&world.table(region), "cart").await.is_empty());
    }
}

/// A store keeps that it is of a region, and of which map.
#[tokio::test(start_paused = true)]
async fn a_store_is_of_one_region_and_of_no_earlier_map() {
    let world = World::new(11, map_of(&[1, 2]));
    let (store, with) = (Arc::new(MemoryStore::new()), |f: &dyn Fn(&mut NodeConfig)| {
        let mut config = world.config_of(1);
        f(&mut config);
        config
    });
    let map = |config: &NodeConfig| config.regions.clone().unwrap();
    let start = |config| Node::start(1, Arc::clone(&store) as Arc<dyn ReplicaStore>, config);
    let created = Node::create(1, Arc::clone(&store) as _, with(&|_| {})).await.unwrap();
    created.shutdown().await;
    let refused = |error: StartError| match error {
        StartError::Regions(error) => error,
        error => panic!("{error}"),
    };
    let error = start(with(&|config| config.regions = None)).await.unwrap_err();
    assert_eq!(refused(error), MapError::Missing { region: 1 });
    let other = with(&|config| config.regions = Some(map(config).at(2)));
    let error = start(other).await.unwrap_err();
    assert_eq!(refused(error), MapError::OtherRegion { found: 1, configured: 2 });
    let later = with(&|config| config.regions = Some(map(config).with(3, [7])));
    start(later).await.unwrap().shutdown().await;
    let error = start(with(&|_| {})).await.unwrap_err();
    assert_eq!(refused(error), MapError::Earlier { found: 2, configured: 1 });
    // A store of before there were regions becomes part of the first map, and of no later one.
    let plain = Arc::new(MemoryStore::new());
    let without = with(&|config| config.regions = None);
    Node::create(1, plain.clone(), without).await.unwrap().shutdown().await;
    let joined = with(&|config| {
        let map = map(config).without(1).with(1, nodes_of(1));
        config.regions = Some(map);
    });
    let error = Node::start(1, plain.clone(), joined).await.unwrap_err();
    assert_eq!(refused(error), MapError::Evicted { region: 1, since: 3, found: 0 });
    Node::start(1, plain.clone(), with(&|_| {})).await.unwrap().shutdown().await;
    // A record that cannot be read is no record that is not there.
    let damaged = Change { key: Bytes::from_static(b"r"), record: Some(Bytes::from_static(b"x")) };
    plain.apply(vec![damaged]).await.unwrap();
    let error = Node::start(1, plain, with(&|_| {})).await.unwrap_err();
    assert!(matches!(error, StartError::Unreadable(_)), "{error}");
}

/// Two regions that have a node id in common would give different writes one name.
#[tokio::test(start_paused = true)]
async fn regions_that_share_a_node_exchange_nothing() {
    let map = RegionConfig::first(1, [(1, vec![1, 2, 3]), (2, vec![3, 4, 5])]);
    assert_eq!(map.validate().unwrap_err().field, "regions");
    // The map does not show it: a node of region 2 says that 1 is a replica of it.
    let world = World::begin(12, &[1, 2]).await;
    for id in 4..=6 {
        world.crash(id);
        world.wipe(id);
        let mut config = world.config_of(id);
        config.replicas = vec![1, 4, 5, 6];
        world.start_of(id, Start::Create, config).await.unwrap();
    }
    let knows =
        || nodes_of(1).iter().all(|id| stats(&world, *id, 2).state == PeerState::SharedNodes);
    world.until("the shared id is noticed", knows).await;
    world.table(1).put_blind("cart", "milk").await.unwrap();
    sleep(Duration::from_secs(10)).await;
    assert!(world.states(4).await.is_empty());
}

/// Registers are each region's own: they differ, and comparisons do not see them.
#[tokio::test(start_paused = true)]
async fn registers_are_each_region_s_own() {
    let world = World::begin(13, &[1, 2]).await;
    for region in [1, 2] {
        let host = world.host(3 * region).unwrap();
        let config = RegisterConfig::with_acceptors(nodes_of(region));
        let registers = Registers::new(3 * region, config, Arc::clone(&host.local)).unwrap();
        let value = Bytes::from(region.to_string());
        registers.compare_and_set("owner", 0, Some(value)).await.unwrap();
    }
    is_calm(&world).await;
    world.with(|state| state.passed.clear());
    sleep(Duration::from_secs(20)).await;
    let passed = world.with(|state| state.passed.clone());
    let compared: u64 = passed.iter().filter(|(key, _)| key.2 == 3).map(|(_, count)| count).sum();
    assert!(compared > 0);
    assert!(passed.keys().all(|(_, _, kind)| *kind != FETCH && *kind != SHIP), "{passed:?}");
}

/// A lost node comes back with another name for its writes: no region takes them for old ones.
#[tokio::test(start_paused = true)]
async fn writes_after_a_lost_disk_are_new_in_every_region() {
    let world = World::begin(14, &[1, 2]).await;
    let table = each_quorum(&world, 1, 1);
    for count in 0..20 {
        table.put_blind(format!("cart-{}", count % 4), "milk").await.unwrap();
    }
    drop(table);
    for id in nodes_of(1) {
        world.crash(id);
        world.start(id, Start::Lost).await.unwrap();
        let is_whole = || world.host(id).is_some_and(|host| host.node.is_whole());
        world.until("the node is rebuilt", is_whole).await;
        let local = world.table(1);
        for key in 0..4 {
            let state = local.get(format!("cart-{key}")).await.unwrap();
            local.put(format!("cart-{key}"), state.context(), format!("{id}")).await.unwrap();
        }
        is_calm(&world).await;
        for key in 0..4 {
            assert_eq!(values(&world.table(2), &format!("cart-{key}")).await, [id.to_string()]);
        }
    }
    world.converge(PATIENCE).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_without_regions_has_no_part_in_one() {
    let config = NodeConfig::with_replicas([1]);
    let node = Node::create(1, Arc::new(MemoryStore::new()), config).await.unwrap();
    assert_eq!(Region::new(&node).unwrap_err().field, "regions");
    assert!(VersionVector::new().is_empty());
}
