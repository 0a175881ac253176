//! Reading while another thread swaps topologies every millisecond.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use voussoir_ring::{HashRing, Partitioner, Published, Reader};

use crate::measure::{key, ring};
use crate::report::Report;

const ROUNDS: usize = 9;
const ROUND: u64 = 3_000_000;

fn read(reader: &mut Reader<HashRing>, from: u64) -> f64 {
    let start = Instant::now();
    let mut sum = 0_u64;
    for number in from..from + ROUND {
        sum = sum.wrapping_add(reader.get().owner(&key(number)));
    }
    black_box(sum);
    start.elapsed().as_nanos() as f64 / ROUND as f64
}

fn median(mut rounds: Vec<f64>) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

pub fn swap(report: &mut Report) {
    for nodes in [10, 100, 1000] {
        let (one, other) = (ring(nodes, 1), ring(nodes + 1, 1));
        let published = Published::new(0, one.clone());
        let mut reader = published.reader();
        let mut quiet = Vec::new();
        let mut swapped = Vec::new();
        let mut swaps = 0;
        // Quiet and swapped rounds in turn, so that a drift of the machine hits both.
        for nth in 0..ROUNDS as u64 {
            quiet.push(read(&mut reader, nth << 32));
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let swapper = scope.spawn(|| {
                    let mut done = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        let next = if done.is_multiple_of(2) { other.clone() } else { one.clone() };
                        published.publish(published.epoch() + 1, next).expect("the only writer");
                        done += 1;
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    done
                });
                swapped.push(read(&mut reader, nth << 32));
                stop.store(true, Ordering::Relaxed);
                swaps += swapper.join().expect("no panic");
            });
        }
        let (quiet, swapped) = (median(quiet), median(swapped));
        let name = |what: &str| format!("reader, {what}, {nodes} nodes");
        report.alone(&name("no swap"), quiet, "ns");
        report.beside(&name("swap every ms"), swapped, "no swap", quiet, "ns");
        eprintln!(
            "{nodes} nodes: {swaps} swaps while reading, {:+.1} %",
            (swapped / quiet - 1.0) * 100.0
        );
    }
}
