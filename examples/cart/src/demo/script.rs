//! When the partition comes and goes: as somebody types it, or by itself.

use std::io::BufRead;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

/// The longest that a demonstration takes that somebody plays with.
const MAX_PLAYED: Duration = Duration::from_secs(90);

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Partition,
    Heal,
    End,
}

pub(crate) struct Script {
    began: Instant,
    length: Duration,
    typed: mpsc::UnboundedReceiver<Event>,
    /// Somebody has typed: nothing happens by itself but the end.
    is_played: bool,
    /// How many events of the script have happened.
    next: usize,
}

impl Script {
    pub(crate) fn new(length: Duration) -> Self {
        let (events, typed) = mpsc::unbounded_channel();
        // A thread, since a read of a terminal cannot be taken back. It ends with the process.
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                let event = match line.as_deref().map(str::trim) {
                    Ok("p") => Event::Partition,
                    Ok("h") => Event::Heal,
                    Ok("q") => Event::End,
                    Ok(_) => continue,
                    Err(_) => return,
                };
                if events.send(event).is_err() {
                    return;
                }
            }
        });
        Self { began: Instant::now(), length, typed, is_played: false, next: 0 }
    }

    /// The next event whose time has come.
    pub(crate) fn poll(&mut self) -> Option<Event> {
        if let Ok(event) = self.typed.try_recv() {
            self.is_played = true;
            return Some(event);
        }
        let elapsed = self.began.elapsed();
        if self.is_played {
            return (elapsed >= MAX_PLAYED).then_some(Event::End);
        }
        let script = [(0.25, Event::Partition), (0.65, Event::Heal), (1.0, Event::End)];
        let (at, event) = script.get(self.next).copied()?;
        let is_due = elapsed >= self.length.mul_f64(at);
        self.next += usize::from(is_due);
        is_due.then_some(event)
    }
}
