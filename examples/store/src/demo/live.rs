//! The live view of the demo: rate, latencies, and the status of each node.

use std::io::IsTerminal;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::load::Stats;
use crate::http::NodeStatus;
use crate::log::print;

/// Redraws its lines in place on a terminal, and prints them one after the other elsewhere.
#[derive(Debug)]
pub struct Live {
    began: Instant,
    last: Instant,
    last_done: u64,
    in_place: bool,
    drawn: usize,
}

impl Live {
    pub fn new() -> Self {
        let now = Instant::now();
        let in_place = std::io::stdout().is_terminal();
        Self { began: now, last: now, last_done: 0, in_place, drawn: 0 }
    }

    /// Prints a line with the time since the start.
    pub fn say(&mut self, text: &str) {
        print(&format!("{:6.1} s  {text}", self.began.elapsed().as_secs_f64()));
        self.drawn = 0;
    }

    /// Prints rate and latencies since the last call, and a line for each node.
    pub fn draw(&mut self, stats: &Stats, nodes: &[(u64, Option<NodeStatus>)]) {
        let latencies = stats.take_latencies();
        let done = stats.done.load(Ordering::Relaxed);
        let seconds = self.last.elapsed().as_secs_f64().max(1e-9);
        let rate = (done - self.last_done) as f64 / seconds;
        let ms = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
        let mut lines = vec![format!(
            "{:6.1} s  {rate:7.0} op/s   p50 {:6.2} ms   p99 {:6.2} ms   max {:7.2} ms",
            self.began.elapsed().as_secs_f64(),
            ms(0.5),
            ms(0.99),
            latencies.max() as f64 / 1000.0,
        )];
        lines.extend(nodes.iter().map(|(id, status)| line(*id, status.as_ref())));
        let (up, clear) = match (self.in_place, self.drawn) {
            (true, 0) => (String::new(), "\x1b[K"),
            (true, drawn) => (format!("\x1b[{drawn}A"), "\x1b[K"),
            (false, _) => (String::new(), ""),
        };
        print(&format!("{up}{}{clear}", lines.join(&format!("{clear}\n"))));
        self.drawn = lines.len();
        (self.last, self.last_done) = (Instant::now(), done);
    }
}

fn line(id: u64, status: Option<&NodeStatus>) -> String {
    match status {
        Some(NodeStatus { role, term, commit, applied, keys, .. }) => format!(
            "          node {id}  {role:<13} term {term:<3} commit {commit:<8} \
             applied {applied:<8} keys {keys}"
        ),
        None => format!("          node {id}  does not answer"),
    }
}
