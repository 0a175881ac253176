//! The parts of the run that need no disk: hits, loads and hit ratios.

use std::hint::black_box;
use std::sync::Arc;

use quick_cache::sync::Cache as Quick;
use voussoir_cache::Loaded;

use crate::measure::{HITS, LOADS, Subject, figures, zipf};
use crate::report::Report;
use crate::subjects::{hits, in_one_future, in_runtime, moka_future, ours};

/// What a hit costs beside the bare table, the rivals, and without what it decides.
pub fn hit(report: &mut Report) {
    for (count, threads, keys) in [
        (1_000, 1, "1,000 keys"),
        (50_000, 1, "50,000 keys"),
        (1_000, 2, "1,000 keys, 2 threads"),
        (50_000, 2, "50,000 keys, 2 threads"),
    ] {
        let subjects = hits(count);
        let all = figures(threads, HITS, &subjects);
        for (subject, figure) in subjects.iter().zip(&all).skip(2) {
            let row = format!("hit, {keys}");
            report.beside(&row, all[1], subject.name, *figure, "ns");
        }
        report.beside(&format!("hit, {keys}"), all[1], subjects[0].name, all[0], "ns");
    }
}

const KEYS: u64 = 1_000_000;
const CAPACITY: u64 = 100_000;

/// Reads that load what is not there, under Zipf's law.
pub fn load(report: &mut Report) {
    let draws: Arc<[u64]> = zipf(KEYS, 1 << 21).into();
    let at = |draws: &[u64], turn: u64| draws[turn as usize & ((1 << 21) - 1)];
    let cache = ours(CAPACITY, |_| {});
    let of = Arc::clone(&draws);
    let read = in_one_future("ours", move |from, calls| {
        let (cache, of) = (cache.clone(), Arc::clone(&of));
        async move {
            for turn in from..from + calls {
                black_box(cache.get_or_load(&at(&of, turn)).await.expect("a value"));
            }
        }
    });
    let (cache, of) = (ours(CAPACITY, |_| {}), Arc::clone(&draws));
    let aside = in_one_future("ours, cache-aside", move |from, calls| {
        let (cache, of) = (cache.clone(), Arc::clone(&of));
        let load = |key: u64| async move { Ok(Loaded::value(Arc::new(key))) };
        async move {
            for turn in from..from + calls {
                let key = at(&of, turn);
                black_box(cache.get_or_load_with(&key, load).await.expect("a value"));
            }
        }
    });
    let (moka, of) = (moka_future(CAPACITY), Arc::clone(&draws));
    let theirs = in_one_future("moka, future", move |from, calls| {
        let (moka, of) = (moka.clone(), Arc::clone(&of));
        async move {
            for turn in from..from + calls {
                let key = at(&of, turn);
                black_box(moka.get_with(key, async { Arc::new(key) }).await);
            }
        }
    });
    let (quick, of) = (Arc::new(Quick::new(CAPACITY as usize)), draws);
    let bare = in_one_future("quick_cache", move |from, calls| {
        let (quick, of) = (Arc::clone(&quick), Arc::clone(&of));
        async move {
            for turn in from..from + calls {
                let key = at(&of, turn);
                let load = async { Ok::<_, ()>(Arc::new(key)) };
                black_box(quick.get_or_insert_async(&key, load).await.expect("a value"));
            }
        }
    });
    let subjects = [read, aside, theirs, bare];
    // Until all of them are full.
    for Subject { run, .. } in &subjects {
        run(0, 1 << 20);
    }
    let rows = ["get_or_load, Zipf, 1 thread", "get_or_load, Zipf, 2 threads"];
    for (threads, row) in (1..).zip(rows) {
        let all = figures(threads, LOADS, &subjects);
        for (subject, figure) in subjects.iter().zip(&all).skip(1) {
            report.beside(row, all[0], subject.name, *figure, "ns");
        }
    }
}

/// Zipf's law alone, and with a scan of keys that are read once after every tenth of the reads.
fn traces() -> [(&'static str, Vec<u64>); 3] {
    let alone = zipf(KEYS, 4 << 20);
    let mut scans = Vec::with_capacity(alone.len() * 3 / 2);
    for (round, part) in alone.chunks(alone.len() / 10).enumerate() {
        scans.extend_from_slice(part);
        let first = KEYS + round as u64 * 2 * CAPACITY;
        scans.extend(first..first + 2 * CAPACITY);
    }
    // A loop that is a little too large for the capacity, which LRU never hits.
    let loops = (0..3 * KEYS).map(|turn| turn % (CAPACITY * 6 / 5)).collect();
    [("Zipf", alone), ("Zipf with scans", scans), ("a loop of 1.2 capacities", loops)]
}

/// The share of reads that hit, after the first quarter of the trace, in percent.
fn share(trace: &[u64], mut hits: impl FnMut(u64) -> bool) -> f64 {
    let (warm_up, rest) = trace.split_at(trace.len() / 4);
    for key in warm_up {
        hits(*key);
    }
    100.0 * rest.iter().filter(|key| hits(**key)).count() as f64 / rest.len() as f64
}

/// Hit ratios, in percent: the ratio of a row is the rival's share by ours.
pub fn ratio(report: &mut Report) {
    for (name, trace) in traces() {
        let row = format!("hit ratio, {name}");
        let cache = ours(CAPACITY, |_| {});
        let own = share(&trace, |key| {
            let hit = cache.get(&key).is_some();
            if !hit {
                cache.insert(key, Arc::new(key));
            }
            hit
        });
        let quick = Quick::new(CAPACITY as usize);
        let bare = share(&trace, |key| {
            let hit = quick.get(&key).is_some();
            if !hit {
                quick.insert(key, Arc::new(key));
            }
            hit
        });
        report.beside(&row, own, "quick_cache", bare, "%");
        let moka = moka_future(CAPACITY);
        let theirs = in_runtime(async {
            let (warm_up, rest) = trace.split_at(trace.len() / 4);
            let mut hits = 0;
            for (at, key) in warm_up.iter().chain(rest).enumerate() {
                let hit = moka.get(key).await.is_some();
                if !hit {
                    moka.insert(*key, Arc::new(*key)).await;
                }
                hits += usize::from(hit && at >= warm_up.len());
            }
            100.0 * hits as f64 / rest.len() as f64
        });
        report.beside(&row, own, "moka, future", theirs, "%");
    }
}
