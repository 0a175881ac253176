//! Hot keys and hot ranges.
//!
//! `VOUSSOIR_STREAM` sets the length of the zipf stream (default 5,000,000; the figure in the
//! README is for 100,000,000).

use std::collections::HashMap;

use voussoir_ring::hash;
use voussoir_ring::load::{Advice, HotKeys, RangeLoad};
use voussoir_ring::range::RangeMap;
use voussoir_ring::{HotKeysConfig, LoadConfig, SketchesDiffer};

const KEYS: usize = 1_000_000;

/// Zipf over a million keys by inverting the cumulative weights, with a guide for the search.
struct Zipf {
    sums: Vec<f64>,
    guide: Vec<u32>,
}

impl Zipf {
    fn new(exponent: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=KEYS).map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        });
        let mut sums: Vec<f64> = sums.collect();
        for one in &mut sums {
            *one /= sum;
        }
        let below = |part: usize| sums.partition_point(|&s| s < part as f64 / 4096.0) as u32;
        let guide = (0..=4096).map(below).collect();
        Self { sums, guide }
    }

    fn rank(&self, random: u64) -> usize {
        let (part, at) = ((random >> 52) as usize, (random >> 11) as f64 / (1_u64 << 53) as f64);
        let (low, high) = (self.guide[part] as usize, self.guide[part + 1] as usize);
        low + self.sums[low..high.min(KEYS)].partition_point(|&sum| sum < at)
    }
}

fn stream() -> u64 {
    std::env::var("VOUSSOIR_STREAM").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000_000)
}

#[test]
fn the_sketch_finds_every_key_above_a_thousandth() {
    let (zipf, length) = (Zipf::new(0.99), stream());
    let mut sketch = HotKeys::default();
    let memory = sketch.memory_bytes();
    assert!(memory <= 512 * 1024, "{memory}");
    let mut counts = vec![0_u64; KEYS];
    for nth in 0..length {
        let rank = zipf.rank(hash::mix(nth));
        counts[rank] += 1;
        // Keys of different lengths, some longer than what is kept.
        let mut key = [b'-'; 80];
        key[..8].copy_from_slice(&hash::mix(rank as u64).to_le_bytes());
        sketch.record(&key[..8 + rank % 72]);
    }
    assert_eq!(sketch.memory_bytes(), memory, "recording takes no memory");
    assert_eq!(sketch.total(), length);
    let found: HashMap<Vec<u8>, _> =
        sketch.above(0.001).into_iter().map(|hot| (hot.key[..8].to_vec(), hot)).collect();
    let mut above = 0;
    for (rank, &count) in counts.iter().enumerate() {
        let hot = found.get(hash::mix(rank as u64).to_le_bytes().as_slice());
        if count as f64 > 0.001 * length as f64 {
            above += 1;
            let hot = hot.unwrap_or_else(|| panic!("rank {rank} with {count} is missing"));
            assert!(hot.count >= count && hot.count - hot.error <= count, "{hot:?} for {count}");
        }
    }
    println!("{above} keys above 0.1 %, {} reported, {memory} bytes", found.len());
    assert!(above > 50 && found.len() <= above + above / 10, "{above} {}", found.len());
}

#[test]
fn merged_sketches_find_what_each_alone_would_miss() {
    let mut config = HotKeysConfig::default();
    config.counters = 100;
    let mut parts: Vec<HotKeys> = (0..4).map(|_| HotKeys::new(&config).unwrap()).collect();
    let mut real: HashMap<u64, u64> = HashMap::new();
    for nth in 0..200_000_u64 {
        let key = if nth.is_multiple_of(50) { 7 } else { 1000 + hash::mix(nth) % 5000 };
        *real.entry(key).or_default() += 1;
        parts[(hash::mix(nth ^ 0x63) % 4) as usize].record(&key.to_le_bytes());
    }
    let mut all = parts.pop().unwrap();
    for part in &parts {
        all.merge(part).unwrap();
    }
    assert_eq!(all.total(), 200_000);
    for hot in all.top() {
        let count = real[&u64::from_le_bytes(hot.key[..].try_into().unwrap())];
        assert!(hot.count >= count && hot.count - hot.error <= count, "{hot:?} {count}");
    }
    assert_eq!(all.top()[0].key, 7_u64.to_le_bytes());
    let other = HotKeys::default();
    assert_eq!(all.merge(&other), Err(SketchesDiffer));
}

#[test]
fn old_traffic_fades() {
    let mut sketch = HotKeys::default();
    sketch.record_many(b"yesterday", 1000);
    for _ in 0..5 {
        sketch.decay();
    }
    sketch.record_many(b"today", 100);
    let top = sketch.top();
    assert_eq!((top[0].key.as_slice(), top[1].count), (&b"today"[..], 31));
}

fn seeded() -> LoadConfig {
    let mut config = LoadConfig::default();
    config.seed = Some(1);
    config
}

fn load(map: &RangeMap, keys: impl Iterator<Item = String>) -> (RangeLoad, Vec<Advice>) {
    let mut load = RangeLoad::new(&seeded()).unwrap();
    for key in keys {
        load.record(map, key.as_bytes());
    }
    let advice = load.advise(map);
    (load, advice)
}

/// Splitting as advised divides the load, again and again.
#[test]
fn advised_splits_even_out_a_skewed_keyspace() {
    let mut map = RangeMap::new(1, &[1]).unwrap();
    let key = |n: u64| {
        let random = hash::mix(n);
        // Nine in ten in a tenth of the keys.
        let bound = if random.is_multiple_of(10) { 10_000 } else { 1000 };
        format!("user:{:05}", (random >> 8) % bound)
    };
    for _ in 0..40 {
        let (_, advice) = load(&map, (0..40_000).map(key));
        let Some(Advice::Split { at, .. }) = advice.first() else { break };
        map = map.split(at).unwrap();
    }
    let (load, advice) = load(&map, (0..40_000).map(key));
    assert_eq!(advice, []);
    assert!((10..=30).contains(&map.ranges().len()), "{}", map.ranges().len());
    let most = load.accesses().map(|(_, count)| count).max().unwrap();
    assert!(most <= 4000, "no range has more than a tenth: {most}");
}

#[test]
fn a_single_hot_key_is_replicated_and_not_split() {
    let map = RangeMap::new(1, &[1]).unwrap();
    let celebrity = (0..30_000_u64).map(|n| match n % 3 {
        0 => format!("user:{}", hash::mix(n) % 5000),
        _ => "user:celebrity".to_owned(),
    });
    let (_, advice) = load(&map, celebrity);
    let [Advice::Replicate { key, share, copies, .. }] = &advice[..] else { panic!("{advice:?}") };
    assert_eq!(key, b"user:celebrity");
    assert!((0.6..0.7).contains(share) && *copies == 7, "{share} {copies}");
}

#[test]
fn cold_neighbours_are_merged() {
    let map = RangeMap::new(1, &[1]).unwrap().split(b"b").unwrap().split(b"c").unwrap();
    let mut config = seeded();
    config.cold_share = 0.05;
    config.hot_share = 1.0;
    let mut load = RangeLoad::new(&config).unwrap();
    for n in 0..20_000 {
        let key = if n % 100 == 0 { "a" } else { "x" };
        load.record(&map, key.as_bytes());
    }
    let ids: Vec<u64> = map.ranges().iter().map(|range| range.id).collect();
    let advice = load.advise(&map);
    let [Advice::Merge { left, right, .. }] = &advice[..] else { panic!("{advice:?}") };
    assert_eq!((*left, *right), (ids[0], ids[1]));
    let map = map.merge(*left).unwrap();
    assert_eq!(load.advise(&map).len(), 0, "a merged range starts its count anew");
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    for (counters, key_bytes) in [(0, 1), (1, 0), (1 << 21, 1), (1, 2000)] {
        let mut config = HotKeysConfig::default();
        (config.counters, config.key_bytes) = (counters, key_bytes);
        assert!(HotKeys::new(&config).is_err());
    }
    for share in [0.0, -1.0, 1.1, f64::NAN] {
        let mut config = LoadConfig::default();
        config.hot_share = share;
        assert!(RangeLoad::new(&config).is_err(), "{share}");
    }
    let mut config = LoadConfig::default();
    config.samples = 1;
    assert!(RangeLoad::new(&config).is_err());
}
