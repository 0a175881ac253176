//! A handler that records, and waits that end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::{Class, Event, Events, Handler, Parts, Rejected};

/// Longer than anything here takes; reached only when something never comes.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for what must come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain for {what}"))
}

/// A message that a [`Probe`] got.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seen {
    /// Who sent it.
    pub from: u64,
    /// By which connection.
    pub class: Class,
    /// Payload of the message.
    pub body: Bytes,
}

/// A handler for tests: it records messages, and answers a request by its first word.
///
/// `echo` is answered with the whole request, `reject` with `Rejected`, `busy` with `Busy`,
/// `panic` with a panic, `large N` with N bytes, `wait` when [`Probe::release`] is called, and
/// counted in [`Probe::dropped`] if it is dropped before. The answer to all else is empty.
#[derive(Debug)]
pub struct Probe {
    seen: mpsc::UnboundedSender<Seen>,
    gate: Semaphore,
    started: mpsc::UnboundedSender<()>,
    dropped: Arc<AtomicUsize>,
    drops: mpsc::UnboundedSender<()>,
}

/// Receiving ends for the reports of a [`Probe`].
#[derive(Debug)]
pub(crate) struct Reports {
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
    pub(crate) started: mpsc::UnboundedReceiver<()>,
    pub(crate) drops: mpsc::UnboundedReceiver<()>,
}

impl Reports {
    pub(crate) async fn next(&mut self) -> Seen {
        soon("a message", self.seen.recv()).await.expect("the probe lives")
    }
}

impl Probe {
    pub(crate) fn new() -> (Arc<Self>, Reports) {
        let (seen, seen_receiver) = mpsc::unbounded_channel();
        let (started, started_receiver) = mpsc::unbounded_channel();
        let (drops, drops_receiver) = mpsc::unbounded_channel();
        let (gate, dropped) = (Semaphore::new(0), Arc::default());
        let probe = Self { seen, gate, started, dropped, drops };
        let reports =
            Reports { seen: seen_receiver, started: started_receiver, drops: drops_receiver };
        (Arc::new(probe), reports)
    }

    /// Lets this many calls of `wait` be answered.
    pub fn release(&self, count: usize) {
        self.gate.add_permits(count);
    }

    /// How many calls of `wait` were dropped before they were answered.
    pub fn dropped(&self) -> usize {
        self.dropped.load(Ordering::SeqCst)
    }

    async fn wait(&self) {
        let guard = DropGuard { probe: self, is_done: false };
        // The receiver may be gone at the end of a check.
        let _ = self.started.send(());
        if let Ok(permit) = self.gate.acquire().await {
            permit.forget();
        }
        guard.done();
    }
}

struct DropGuard<'a> {
    probe: &'a Probe,
    is_done: bool,
}

impl DropGuard<'_> {
    fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for DropGuard<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.probe.dropped.fetch_add(1, Ordering::SeqCst);
            let _ = self.probe.drops.send(());
        }
    }
}

#[async_trait]
impl Handler for Probe {
    fn message(&self, from: u64, class: Class, body: Bytes) {
        assert!(&*body != b"panic", "asked to");
        let _ = self.seen.send(Seen { from, class, body });
    }

    async fn call(&self, _from: u64, body: Bytes) -> Result<Parts, Rejected> {
        let text = String::from_utf8_lossy(&body);
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        match word {
            "echo" => Ok(Parts::new(body.clone())),
            "reject" => Err(Rejected::ByHandler(Bytes::copy_from_slice(rest.as_bytes()))),
            "busy" => Err(Rejected::Busy),
            "panic" => panic!("asked to"),
            "large" => Ok(Parts::new(vec![7; rest.parse().unwrap_or(0)])),
            "wait" => {
                self.wait().await;
                Ok(Parts::new("waited"))
            }
            _ => Ok(Parts::default()),
        }
    }
}

/// Reads events until one fits.
pub(crate) async fn until(events: &mut Events, what: &str, fits: impl Fn(&Event) -> bool) -> Event {
    soon(what, async {
        loop {
            match events.next().await {
                Some(event) if fits(&event) => return event,
                Some(_) => {}
                None => panic!("the transport ended before {what}"),
            }
        }
    })
    .await
}
