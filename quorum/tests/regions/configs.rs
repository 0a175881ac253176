//! Whatever validates works, at its extremes too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use voussoir_quorum::region::{Region, RegionConfig};
use voussoir_quorum::table::{CallError, TableConfig};
use voussoir_quorum::*;

/// Links to the only node of each region.
#[derive(Default)]
struct Direct {
    nodes: Mutex<BTreeMap<u64, Node>>,
    /// If it is the link between regions.
    regions: Mutex<BTreeMap<u64, Region>>,
}

#[async_trait]
impl Link for Direct {
    async fn call(
        &self,
        to: u64,
        _class: Class,
        request: Bytes,
        _deadline: Instant,
    ) -> Result<Bytes, CallError> {
        let (region, node) = {
            let (regions, nodes) = (self.regions.lock().unwrap(), self.nodes.lock().unwrap());
            (regions.get(&to).cloned(), nodes.get(&to).cloned())
        };
        let answer = match (region, node) {
            (Some(region), _) => region.answer(request).await,
            (None, Some(node)) => node.answer(request).await,
            (None, None) => return Err(CallError::NotSent),
        };
        answer.ok_or(CallError::Unknown)
    }
}

/// What one region writes and deletes is so in the other one, and the nodes end with their handles.
async fn use_regions(map: RegionConfig) {
    let wide = Arc::new(Direct::default());
    let between: Arc<dyn Link> = wide.clone();
    let (mut tables, mut ends) = (Vec::new(), Vec::new());
    for id in [1, 2] {
        let mut config = NodeConfig::with_replicas([id]);
        config.timeout = config.timeout.min(map.timeout);
        config.collect_every = Some(Duration::from_secs(5));
        config.regions = Some(map.clone().at(id));
        let node = Node::create(id, Arc::new(MemoryStore::new()), config).await.unwrap();
        let direct = Arc::new(Direct::default());
        direct.nodes.lock().unwrap().insert(id, node.clone());
        let local: Arc<dyn Link> = direct;
        node.maintain(&local);
        let region = Region::new(&node).unwrap();
        wide.regions.lock().unwrap().insert(id, region.clone());
        region.maintain(&local, &between);
        let table = TableConfig::with_replicas([id]);
        tables.push(Table::with_hints(table, Arc::clone(&local), &node).unwrap());
        ends.push(node.status());
    }
    let until = async |wanted: &str| {
        let is_so = async || {
            let state = tables[1].get("cart").await.unwrap();
            state.values().map(|value| String::from_utf8_lossy(value).into_owned()).eq([wanted])
        };
        // Ends: with the timeout around it.
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    for value in ["milk", "bread"] {
        let seen = tables[0].get("cart").await.unwrap();
        tables[0].put("cart", seen.context(), value).await.unwrap();
        for other in 0..3 {
            tables[0].put_blind(format!("other-{other}"), value).await.unwrap();
        }
        tokio::time::timeout(Duration::from_secs(60), until(value)).await.expect("it is told");
    }
    drop((tables, wide, between));
    let ended = async {
        // Ends: with the timeout around it.
        while ends.iter().any(|status| status.has_changed().is_ok()) {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("the nodes have ended");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn every_valid_map_of_regions_works(
        epoch in prop_oneof![Just(1), Just(RegionConfig::MAX_EPOCH)],
        pending in prop_oneof![Just(1), Just(10_000_000), 1..10_usize],
        batch in prop_oneof![Just(1), Just(1_024), 1..10_usize],
        rate in prop_oneof![Just(64_u64 << 10), Just(u64::MAX)],
        compare_ms in prop_oneof![Just(1), Just(2_592_000_000), 1..1_000_u64],
        timeout_ms in prop_oneof![Just(1), Just(3_600_000), 1..1_000_u64],
    ) {
        let mut map = RegionConfig::first(1, [(1, vec![1]), (2, vec![2])]);
        map.epoch = epoch;
        (map.max_pending_keys, map.max_batch_keys, map.bytes_per_second) = (pending, batch, rate);
        map.compare_every = Duration::from_millis(compare_ms);
        map.timeout = Duration::from_millis(timeout_ms);
        map.validate().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(use_regions(map));
    }
}

#[test]
fn a_map_that_cannot_work_is_refused_by_name() {
    let field = |change: &dyn Fn(&mut RegionConfig)| {
        let mut map = RegionConfig::first(1, [(1, vec![1, 2, 3]), (2, vec![4, 5, 6])]);
        change(&mut map);
        let error = map.validate().unwrap_err();
        let mut config = NodeConfig::with_replicas([1, 2, 3]);
        config.regions = Some(map);
        assert_eq!(config.validate(), Err(error.clone()), "a node says the same");
        error.field
    };
    assert_eq!(field(&|map| map.own = 3), "own");
    assert_eq!(field(&|map| map.epoch = 0), "epoch");
    assert_eq!(field(&|map| map.epoch = RegionConfig::MAX_EPOCH + 1), "epoch");
    assert_eq!(field(&|map| map.regions[1].id = 1), "regions");
    assert_eq!(field(&|map| map.regions[1].id = 0), "regions");
    assert_eq!(field(&|map| map.regions[1].since = 2), "regions");
    assert_eq!(field(&|map| map.regions[1].since = 0), "regions");
    assert_eq!(field(&|map| map.regions[1].nodes = Vec::new()), "regions");
    assert_eq!(field(&|map| map.regions[1].nodes = vec![4, 4]), "regions");
    assert_eq!(field(&|map| map.regions[1].nodes = vec![3, 4]), "regions");
    let many = |count: u64| RegionConfig::first(1, (1..=count).map(|id| (id, vec![id])));
    many(16).validate().unwrap();
    assert_eq!(field(&|map| *map = many(17)), "regions");
    assert_eq!(field(&|map| map.max_pending_keys = 0), "max_pending_keys");
    assert_eq!(field(&|map| map.max_batch_keys = 1_025), "max_batch_keys");
    assert_eq!(field(&|map| map.bytes_per_second = (64 << 10) - 1), "bytes_per_second");
    assert_eq!(field(&|map| map.compare_every = Duration::ZERO), "compare_every");
    assert_eq!(field(&|map| map.timeout = Duration::from_secs(3_601)), "timeout");
    // The receiver of a message needs its own timeout to reach its quorum.
    let mut map = RegionConfig::first(1, [(1, vec![1]), (2, vec![2])]);
    map.timeout = Duration::from_millis(999);
    let mut config = NodeConfig::with_replicas([1]);
    config.regions = Some(map);
    assert_eq!(config.validate().unwrap_err().field, "regions");
    config.timeout = Duration::from_millis(999);
    assert_eq!(config.validate(), Ok(()));
}
