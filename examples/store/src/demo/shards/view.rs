//! What the demo prints once a second: throughput, and the load of each node.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::load::Stats;
use crate::log::print;
use crate::shards::http::NodeStatus;

/// Counts at the last line.
#[derive(Debug)]
pub struct View {
    began: Instant,
    last: Instant,
    done: u64,
    /// Requests that each replica of each node has answered.
    answered: BTreeMap<(u64, u64), u64>,
}

impl Default for View {
    fn default() -> Self {
        let now = Instant::now();
        Self { began: now, last: now, done: 0, answered: BTreeMap::new() }
    }
}

impl View {
    /// Prints a line: operations per second, the slowest, and for each node its requests per
    /// second, replicas, led shards and keys.
    pub fn draw(&mut self, stats: &Stats, nodes: &BTreeMap<u64, NodeStatus>) {
        let seconds = self.last.elapsed().as_secs_f64().max(1e-9);
        let done = stats.done.load(Ordering::Relaxed);
        let rate = (done - self.done) as f64 / seconds;
        let mut line = format!(
            "{:5.1} s {rate:6.0} op/s, slowest {:4} ms",
            self.began.elapsed().as_secs_f64(),
            stats.take_slowest_ms()
        );
        for (id, node) in nodes {
            let mut answered = 0;
            for shard in &node.shards {
                let now = shard.reads + shard.writes;
                let before = self.answered.insert((*id, shard.id), now).unwrap_or(0);
                // A node that was started again counts anew.
                answered += if now >= before { now - before } else { now };
            }
            let led = node.shards.iter().filter(|shard| shard.leads).count();
            let keys: usize = node.shards.iter().map(|shard| shard.keys).sum();
            line.push_str(&format!(
                " | node {id}: {:5.0}/s, leads {led} of {}, {keys} keys",
                answered as f64 / seconds,
                node.shards.len()
            ));
        }
        print(&line);
        (self.last, self.done) = (Instant::now(), done);
    }
}
