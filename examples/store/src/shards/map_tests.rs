//! Tests of the shard map.

use voussoir_ring::hash;

use super::*;

fn address(port: u16) -> Address {
    Address { peers: ([127, 0, 0, 1], port).into(), http: ([127, 0, 0, 1], port + 1).into() }
}

/// Three nodes, `hashes` shards of hashes and one of ordered keys.
fn first(hashes: u32) -> ShardMap {
    let nodes = (1..=3).map(|id| (id, address(id as u16 * 10))).collect();
    let mut map = ShardMap::default();
    map.apply(Change::Begin { nodes, hashes, replicas: 3 }).unwrap();
    map
}

/// The same, after each shard has said that it is open.
fn opened(hashes: u32) -> ShardMap {
    let mut map = first(hashes);
    for shard in 1..=map.last_shard {
        map.apply(Change::Opened { shard }).unwrap();
    }
    map
}

/// Every place has one owner: ranges lie one behind the other, without a gap.
fn assert_covers(map: &ShardMap) {
    let mut owning: Vec<&ShardInfo> =
        map.shards.values().filter(|info| info.fills_from().is_none()).collect();
    owning.sort_by(|one, other| one.start.cmp(&other.start));
    assert_eq!(owning.first().unwrap().start, "");
    for pair in owning.windows(2) {
        assert_eq!(pair[0].end.as_ref(), Some(&pair[1].start));
    }
    assert_eq!(owning.last().unwrap().end, None);
    let routes = Routes::new(map.clone());
    for (id, info) in map.shards.iter().filter(|(_, info)| info.fills_from().is_none()) {
        let found = routes.find(&info.start).unwrap();
        assert_eq!((found.0, found.1), (*id, info));
    }
}

#[test]
fn the_first_map_covers_every_place_and_is_led_evenly() {
    let map = first(16);
    assert_eq!((map.version, map.shards.len()), (1, 17));
    assert_covers(&map);
    for node in 1..=3 {
        let led = map.shards.values().filter(|info| info.nodes[0] == node).count();
        assert!((5..=6).contains(&led), "node {node} is to lead {led}");
    }
    let mut again = map.clone();
    let begin = Change::Begin { nodes: map.nodes.clone(), hashes: 4, replicas: 3 };
    assert_eq!(again.apply(begin), Err(Refused::Begun));
    assert_eq!(again, map);
    let many = Change::Begin { nodes: map.nodes.clone(), hashes: u32::MAX, replicas: 3 };
    assert_eq!(ShardMap::default().apply(many), Err(Refused::TooMany));
    assert!(Routes::new(ShardMap::default()).find("r/x").is_none());
}

#[test]
fn a_split_owns_nothing_until_it_is_opened() {
    let mut map = opened(4);
    let (shard, at) = (5, "r/ordered/m".to_owned());
    let split =
        |epoch, at: &str| Change::Split { shard, epoch, at: at.to_owned(), nodes: vec![2, 3, 1] };
    assert_eq!(map.apply(split(7, &at)), Err(Refused::OtherEpoch));
    assert_eq!(map.apply(split(1, "r/")), Err(Refused::BadPlace), "its own start");
    assert_eq!(map.apply(split(1, "h/5")), Err(Refused::BadPlace), "of another shard");
    assert_eq!(map.apply(split(1, &"r/x".repeat(1000))), Err(Refused::BadPlace), "too long");
    map.apply(split(1, &at)).unwrap();
    assert_covers(&map);
    assert_eq!(Routes::new(map.clone()).find("r/ordered/z").unwrap().0, shard);
    assert_eq!(map.apply(split(1, "r/ordered/p")), Err(Refused::InProgress));
    let filling = Change::Split { shard: 6, epoch: 2, at: "r/ordered/q".into(), nodes: vec![1] };
    assert_eq!(map.apply(filling), Err(Refused::InProgress));

    map.apply(Change::Opened { shard: 6 }).unwrap();
    assert_covers(&map);
    let routes = Routes::new(map.clone());
    assert_eq!(routes.find("r/ordered/l").map(|(id, info)| (id, info.epoch)), Some((5, 2)));
    assert_eq!(routes.find("r/ordered/m").map(|(id, info)| (id, info.epoch)), Some((6, 2)));
    let version = map.version;
    map.apply(Change::Opened { shard: 6 }).unwrap();
    assert_eq!(map.version, version, "it was opened before");
    assert_eq!(map.apply(split(1, "r/ordered/b")), Err(Refused::OtherEpoch), "a late change");
}

#[test]
fn a_replica_never_comes_back_to_a_node() {
    let mut map = opened(2);
    let exchange = |old, new| Change::Move { shard: 1, old, new };
    assert_eq!(map.apply(exchange(1, 4)), Err(Refused::NoNode));
    map.apply(Change::AddNode { id: 4, address: address(40) }).unwrap();
    assert_eq!(map.apply(exchange(4, 1)), Err(Refused::OtherNodes));
    assert_eq!(map.apply(exchange(1, 2)), Err(Refused::OtherNodes), "it holds the shard");
    map.apply(exchange(1, 4)).unwrap();
    assert_eq!(map.shards[&1].nodes, [4, 2, 3], "the new one leads where the old one did");
    let before = map.clone();
    assert_eq!((map.apply(exchange(1, 4)), &map), (Ok(()), &before), "its answer was lost");
    assert_eq!(map.apply(exchange(2, 1)), Err(Refused::CameBack));
    assert_covers(&map);
}

#[test]
fn a_node_keeps_its_address() {
    let mut map = first(2);
    map.apply(Change::AddNode { id: 1, address: address(10) }).unwrap();
    assert_eq!(map.version, 1, "nothing changed");
    let moved = Change::AddNode { id: 1, address: address(90) };
    assert_eq!(map.apply(moved), Err(Refused::OtherAddress));
    for id in 4..=MAX_NODES as u64 {
        map.apply(Change::AddNode { id, address: address(1000) }).unwrap();
    }
    let corrected = Change::AddNode { id: 4, address: address(50) };
    map.apply(corrected).unwrap();
    assert_eq!(map.nodes[&4], address(50), "no shard names the node yet");
    let more = Change::AddNode { id: 1000, address: address(1000) };
    assert_eq!(map.apply(more), Err(Refused::TooMany));
}

#[test]
fn random_changes_keep_every_place_owned_once() {
    // Situations: a split refused, a split opened, a move, a move refused, a split taken back.
    let mut reached = [0_u32; 5];
    for seed in 0..50_u64 {
        let mut drawn = seed << 32;
        let mut random = |below: u64| {
            drawn += 1;
            hash::mix(drawn) % below
        };
        let mut map = opened(1 + random(19) as u32);
        for id in 4..=6 {
            map.apply(Change::AddNode { id, address: address(id as u16 * 10) }).unwrap();
        }
        for _ in 0..60 {
            let ids: Vec<u64> = map.shards.keys().copied().collect();
            let shard = ids[random(ids.len() as u64) as usize];
            let (change, at) = match random(5) {
                0 => {
                    let place = place::place(&format!("ordered/{}", random(1000)));
                    let epoch = map.shards[&shard].epoch;
                    (Change::Split { shard, epoch, at: place, nodes: vec![1, 2, 4] }, 0)
                }
                1 => (Change::Opened { shard }, 1),
                2 => (Change::Abort { shard }, 0),
                3 => (Change::Aborted { shard }, 4),
                _ => {
                    let (old, new) = (1 + random(6), 1 + random(6));
                    (Change::Move { shard, old, new }, 2)
                }
            };
            let before = map.clone();
            match map.apply(change) {
                Ok(()) if at == 1 => reached[1] += u32::from(map.version > before.version),
                Ok(()) if at == 2 || at == 4 => {
                    reached[at] += u32::from(map.version > before.version)
                }
                Ok(()) => {}
                Err(_) => {
                    assert_eq!(map, before, "a refused change changed something");
                    reached[if at == 2 { 3 } else { 0 }] += 1;
                }
            }
            assert_covers(&map);
        }
    }
    assert!(reached.iter().all(|count| *count > 0), "{reached:?}");
}

#[test]
fn a_shard_keeps_its_nodes_until_it_is_open() {
    let mut map = first(1);
    map.apply(Change::AddNode { id: 4, address: address(40) }).unwrap();
    let exchange = |shard| Change::Move { shard, old: 1, new: 4 };
    assert_eq!(map.apply(exchange(1)), Err(Refused::InProgress), "not every founder has begun");
    map.apply(Change::Opened { shard: 1 }).unwrap();
    map.apply(exchange(1)).unwrap();
    let split = Change::Split { shard: 2, epoch: 1, at: "r/m".into(), nodes: vec![1, 2, 3] };
    assert_eq!(map.apply(split.clone()), Err(Refused::InProgress));
    map.apply(Change::Opened { shard: 2 }).unwrap();
    map.apply(split).unwrap();
    assert_eq!(map.apply(exchange(3)), Err(Refused::InProgress), "it is being filled");
    map.apply(Change::Opened { shard: 3 }).unwrap();
    map.apply(exchange(3)).unwrap();
    assert_eq!(map.shards[&3].origin, Some(2), "it remembers where it has come from");
}

#[test]
fn a_split_is_taken_back_until_its_shard_is_open() {
    let mut map = opened(1);
    let split =
        |at: &str| Change::Split { shard: 2, epoch: 1, at: at.to_owned(), nodes: vec![1, 2, 3] };
    map.apply(split("r/m")).unwrap();
    assert_eq!(map.apply(Change::Abort { shard: 2 }), Err(Refused::IsOpen), "it is no split's");
    assert_eq!(map.apply(Change::Aborted { shard: 3 }), Err(Refused::InProgress), "nobody asked");
    map.apply(Change::Abort { shard: 3 }).unwrap();
    assert!(map.shards[&2].split.as_ref().unwrap().is_aborted);
    map.apply(Change::Aborted { shard: 3 }).unwrap();
    assert_eq!((map.shards.len(), &map.shards[&2].split), (2, &None));
    let before = map.clone();
    assert_eq!((map.apply(Change::Aborted { shard: 3 }), &map), (Ok(()), &before), "sent again");
    // A number is given once: the group of the shard that was taken back may linger somewhere.
    map.apply(split("r/n")).unwrap();
    assert_eq!(map.shards.keys().copied().collect::<Vec<_>>(), [1, 2, 4]);
    // Sealed before anybody heard of it: the split goes on.
    map.apply(Change::Abort { shard: 4 }).unwrap();
    map.apply(Change::Opened { shard: 4 }).unwrap();
    assert_eq!(map.apply(Change::Abort { shard: 4 }), Err(Refused::IsOpen));
    assert_eq!(map.apply(Change::Aborted { shard: 4 }), Err(Refused::IsOpen));
    assert_covers(&map);
}

#[test]
fn operators_neither_begin_a_map_nor_say_that_a_shard_is_open() {
    let begin = Change::Begin { nodes: BTreeMap::new(), hashes: 1, replicas: 1 };
    for change in [begin, Change::Opened { shard: 1 }, Change::Aborted { shard: 1 }] {
        assert!(!change.is_for_operators(), "{change:?}");
    }
    for change in [Change::Abort { shard: 1 }, Change::Move { shard: 1, old: 1, new: 2 }] {
        assert!(change.is_for_operators() && !change.is_report(), "{change:?}");
    }
}
