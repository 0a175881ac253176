//! The dependency: so many workers, a queue before them, and a bad day.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep};

const WORKERS: usize = 16;
/// Requests waiting beyond which further ones are refused.
const MAX_QUEUE: usize = 2_000;
/// Mean time of a request on a good day: the server can do 320 a second.
const SERVICE: Duration = Duration::from_millis(50);

/// What the client sees of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Refused,
    Lost,
}

/// A small seeded generator.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Uniform in `0.0..1.0`.
    pub(crate) fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// So many times the usual service time.
    Serves(u32),
    /// Takes connections and never answers.
    Dead,
}

fn phase(second: u64) -> Phase {
    match second {
        0..20 => Phase::Serves(1),
        20..40 => Phase::Serves(4),
        40..70 => Phase::Dead,
        // Back with cold caches.
        70..75 => Phase::Serves(2),
        _ => Phase::Serves(1),
    }
}

pub(crate) struct Server {
    workers: Semaphore,
    waiting: AtomicUsize,
    start: Instant,
    rng: Mutex<Rng>,
    served: AtomicU64,
    wasted: AtomicU64,
}

impl Server {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            workers: Semaphore::new(WORKERS),
            waiting: AtomicUsize::new(0),
            start: Instant::now(),
            rng: Mutex::new(Rng::new(seed)),
            served: AtomicU64::new(0),
            wasted: AtomicU64::new(0),
        })
    }

    fn phase(&self) -> Phase {
        phase(self.start.elapsed().as_secs())
    }

    /// Requests served, and those of them whose client had gone.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.served.load(Relaxed), self.wasted.load(Relaxed))
    }

    /// One request. It is worked on to its end whether or not the client waits: a server does not
    /// see that a client has gone.
    pub(crate) async fn call(self: Arc<Self>) -> Result<(), Failure> {
        if self.phase() == Phase::Dead {
            return std::future::pending().await;
        }
        if self.waiting.load(Relaxed) >= MAX_QUEUE {
            return Err(Failure::Refused);
        }
        let (answer, answered) = oneshot::channel();
        tokio::spawn(self.serve(answer));
        answered.await.map_err(|_| Failure::Lost)
    }

    async fn serve(self: Arc<Self>, answer: oneshot::Sender<()>) {
        self.waiting.fetch_add(1, Relaxed);
        let worker = self.workers.acquire().await;
        self.waiting.fetch_sub(1, Relaxed);
        let _worker = worker.expect("the workers are never closed");
        // A crash takes the queue with it.
        let Phase::Serves(slowness) = self.phase() else { return };
        let draw = self.rng.lock().expect("nobody panics holding it").unit();
        let time = SERVICE.mul_f64(0.5 + draw) * slowness;
        sleep(time).await;
        self.served.fetch_add(1, Relaxed);
        if answer.send(()).is_err() {
            self.wasted.fetch_add(1, Relaxed);
        }
    }
}
