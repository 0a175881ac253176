//! The live view, and the table at the end.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::server::{Mood, Server};

/// Time between two samples of the figures.
pub(crate) const PERIOD: Duration = Duration::from_millis(250);
/// Without a terminal, one line is printed for this many samples.
const LOOKS_A_LINE: u32 = 4;

/// Counts of the answers that users got.
#[derive(Default)]
pub(crate) struct Users {
    pub(crate) fresh: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Total waiting time of all answers, in microseconds.
    pub(crate) waited_us: AtomicU64,
}

/// Figures of the whole run so far, or of a part of it.
#[derive(Clone, Copy, Default)]
struct Figures {
    seconds: f64,
    fresh: u64,
    stale: u64,
    failed: u64,
    waited_us: u64,
    /// Number of requests that reached the server.
    requests: u64,
}

impl Figures {
    fn so_far(start: Instant, users: &Users, server: &Server) -> Self {
        Self {
            seconds: start.elapsed().as_secs_f64(),
            fresh: users.fresh.load(Relaxed),
            stale: users.stale.load(Relaxed),
            failed: users.failed.load(Relaxed),
            waited_us: users.waited_us.load(Relaxed),
            requests: server.requests(),
        }
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            seconds: self.seconds - earlier.seconds,
            fresh: self.fresh - earlier.fresh,
            stale: self.stale - earlier.stale,
            failed: self.failed - earlier.failed,
            waited_us: self.waited_us - earlier.waited_us,
            requests: self.requests - earlier.requests,
        }
    }

    fn add(&mut self, part: Self) {
        self.seconds += part.seconds;
        self.fresh += part.fresh;
        self.stale += part.stale;
        self.failed += part.failed;
        self.waited_us += part.waited_us;
        self.requests += part.requests;
    }

    fn a_second(self, count: u64) -> f64 {
        count as f64 / self.seconds.max(1e-3)
    }

    fn mean_ms(self) -> f64 {
        let answers = self.fresh + self.stale + self.failed;
        self.waited_us as f64 / 1e3 / answers.max(1) as f64
    }
}

pub(crate) struct View {
    start: Instant,
    run: Duration,
    looks: u32,
    looked: Figures,
    drawn: Figures,
    by_mood: Vec<(Mood, Figures)>,
    is_terminal: bool,
}

impl View {
    pub(crate) fn new(run: Duration) -> Self {
        Self {
            start: Instant::now(),
            run,
            looks: 0,
            looked: Figures::default(),
            drawn: Figures::default(),
            by_mood: Vec::new(),
            is_terminal: std::io::stdout().is_terminal(),
        }
    }

    /// Samples the figures, and prints them when a line is due.
    pub(crate) fn look(&mut self, users: &Users, client: &Client, server: &Server) {
        let (now, mood) = (Figures::so_far(self.start, users, server), server.mood());
        let part = now.since(self.looked);
        match self.by_mood.last_mut() {
            Some((last, figures)) if *last == mood => figures.add(part),
            _ => self.by_mood.push((mood, part)),
        }
        self.looked = now;
        self.looks += 1;
        if self.is_terminal || self.looks.is_multiple_of(LOOKS_A_LINE) {
            self.draw(now.since(self.drawn), mood, client);
            self.drawn = now;
        }
    }

    fn draw(&self, lately: Figures, mood: Mood, client: &Client) {
        let (breaker, limit) = (client.breaker.stats(), client.limit.stats());
        let (budget, hedge) = (client.budget.stats(), client.hedge.stats());
        let rejected = budget.rejected_spent + budget.rejected_active;
        let (seconds, run) = (self.looked.seconds, self.run.as_secs());
        let [fresh, stale, failed, requests] =
            [lately.fresh, lately.stale, lately.failed, lately.requests]
                .map(|count| lately.a_second(count));
        let mean = lately.mean_ms();
        let lines = [
            format!("time      {seconds:.1} of {run} s, the server {mood}"),
            format!("users     fresh {fresh:.0}/s, stale {stale:.0}/s, failed {failed:.0}/s"),
            format!("waited    {mean:.0} ms on average"),
            format!("server    {requests:.0} requests/s"),
            format!("breaker   {}, {} rejected so far", breaker.state, breaker.rejected),
            format!("limit     {} at once, {} running", limit.limit, limit.running),
            format!("budget    {} extra attempts so far, {rejected} rejected", budget.granted),
            format!(
                "hedges    {} so far, {} won, after {:.0?}",
                hedge.hedges, hedge.won, hedge.delay
            ),
        ];
        if self.is_terminal {
            // Escape codes: cursor home, clear each line to its end, clear the rest of the screen.
            let policy = client.describe();
            let screen = format!("{policy}\n\n{}", lines.join("\n")).replace('\n', "\x1b[K\n");
            show(&format!("\x1b[H{screen}\x1b[K\n\x1b[J"));
        } else {
            let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            show(&format!("{}\n", words.join(" | ")));
        }
    }

    /// Prints the table of the whole run: one row for each mood of the server.
    pub(crate) fn sum_up(&self, client: &Client) {
        let mut text = String::from(
            "\nwhile the server     seconds   fresh/s   stale/s  failed/s  waited ms  requests/s\n",
        );
        for (mood, part) in &self.by_mood {
            let [fresh, stale, failed, requests] =
                [part.fresh, part.stale, part.failed, part.requests]
                    .map(|count| part.a_second(count));
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{:19} {:8.1} {fresh:9.0} {stale:9.0} {failed:9.0} {:10.0} {requests:11.0}",
                mood.to_string(),
                part.seconds,
                part.mean_ms(),
            );
        }
        let (breaker, budget) = (client.breaker.stats(), client.budget.stats());
        let rejected = budget.rejected_spent + budget.rejected_active;
        let _ = writeln!(
            text,
            "\nThe breaker opened {} times, rejected {} calls and is {}.\n\
             Of all retries and hedges, the budget paid for {} and rejected {rejected}.",
            breaker.openings, breaker.rejected, breaker.state, budget.granted,
        );
        show(&text);
    }
}

/// Prints text. A closed terminal does not stop the run.
fn show(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
