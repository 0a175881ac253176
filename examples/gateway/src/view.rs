//! The live table: requests, and a line for each backend.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use voussoir_lb::EndpointStats;

use crate::gateway::Overview;

/// Redraws its lines in place on a terminal, and prints them one after the other elsewhere.
#[derive(Debug)]
pub struct View {
    began: Instant,
    last: Instant,
    last_requests: u64,
    /// Picks of each backend at the last frame, in the order of the table.
    last_picks: Vec<u64>,
    in_place: bool,
    drawn: usize,
}

impl Default for View {
    fn default() -> Self {
        let now = Instant::now();
        let in_place = std::io::stdout().is_terminal();
        Self { began: now, last: now, last_requests: 0, last_picks: Vec::new(), in_place, drawn: 0 }
    }
}

impl View {
    /// Prints a line with the time since the start. A reader that has gone does not stop the run.
    pub fn say(&mut self, text: &str) {
        let seconds = self.began.elapsed().as_secs_f64();
        let _ = writeln!(std::io::stdout(), "{seconds:6.1} s  {text}");
        self.drawn = 0;
    }

    /// Prints rates since the last call, `note`, and a line for each backend.
    pub fn draw(&mut self, overview: &Overview, note: &str) {
        let stats = overview.http();
        let seconds = self.last.elapsed().as_secs_f64().max(1e-9);
        let rate = stats.requests.saturating_sub(self.last_requests) as f64 / seconds;
        let mut lines = vec![format!(
            "{:6.1} s  {rate:7.0} requests/s   {} connections   {} failed   {note}",
            self.began.elapsed().as_secs_f64(),
            stats.open,
            stats.failed,
        )];
        let mut picks = Vec::new();
        for pool in overview.pools() {
            let breaker = pool.breaker.map_or(String::new(), |state| format!("breaker {state:?}"));
            for found in &pool.balancer.endpoints {
                let before = self.last_picks.get(picks.len()).copied().unwrap_or(found.picks);
                let rate = found.picks.saturating_sub(before) as f64 / seconds;
                picks.push(found.picks);
                lines.push(line(&pool.name, found, rate, &breaker));
            }
        }
        self.print(&lines);
        (self.last, self.last_requests, self.last_picks) = (Instant::now(), stats.requests, picks);
    }

    fn print(&mut self, lines: &[String]) {
        let clear = if self.in_place { "\x1b[K" } else { "" };
        let up = match (self.in_place, self.drawn) {
            (true, 1..) => format!("\x1b[{}A", self.drawn),
            _ => String::new(),
        };
        let text = lines.join(&format!("{clear}\n"));
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{up}{text}{clear}");
        // Lines that an earlier, longer table has left below are cleared.
        if self.in_place {
            let _ = write!(out, "\x1b[J");
            let _ = out.flush();
        }
        self.drawn = lines.len();
    }
}

fn line(pool: &str, endpoint: &EndpointStats, rate: f64, note: &str) -> String {
    let state = match (endpoint.draining, endpoint.healthy, endpoint.ejected_for) {
        (true, ..) => "draining",
        (_, _, Some(_)) => "ejected",
        (_, true, None) => "healthy",
        (_, false, None) => "down",
    };
    let (failed, busy) = (endpoint.failures, endpoint.in_flight);
    let ms = endpoint.latency.as_secs_f64() * 1e3;
    let text = format!(
        "          {pool:<8} {:<21} {state:<8} {rate:7.0}/s {failed:>6} failed {busy:>4} under way \
         {ms:8.2} ms  {note}",
        endpoint.name,
    );
    text.trim_end().to_owned()
}
