//! Clients: they write, read, give up and drop what they wait for at random points.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use voussoir_raft::{Outcome, ProposeError, ReadError};
use voussoir_sim::{KvOp, KvRet, MILLISECOND, Rng};

use super::disk::Life;
use super::machine::{answer, command};
use super::world::{Fate, Running, World};

/// How much later than its deadline a read may end: timers are a millisecond coarse, and a node
/// handles what came before.
const LATE: Duration = Duration::from_millis(20);

/// Longer than anything that is expected to end.
const LONG: Duration = Duration::from_secs(60);

/// How a caller treats the future of its call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Manner {
    /// It waits for the end, whenever that is.
    Patient,
    /// It drops the future after this time.
    Until(Duration),
    /// It drops the future after so many polls.
    Polls(u64),
}

impl Manner {
    fn draw(rng: &mut Rng) -> Self {
        match rng.below(10) {
            0..7 => Self::Patient,
            7..9 => Self::Until(Duration::from_millis(rng.scaled(1, 1000))),
            _ => Self::Polls(rng.between(1, 4)),
        }
    }

    /// Polls the future as long as this manner allows. `None`: it was dropped.
    pub(crate) async fn endure<F: Future>(self, future: F) -> Option<F::Output> {
        match self {
            Self::Patient => Some(future.await),
            Self::Until(limit) => timeout(limit, future).await.ok(),
            Self::Polls(polls) => {
                let mut future = pin!(future);
                let mut left = polls;
                poll_fn(|cx| {
                    left -= 1;
                    match future.as_mut().poll(cx) {
                        Poll::Ready(output) => Poll::Ready(Some(output)),
                        Poll::Pending if left == 0 => Poll::Ready(None),
                        Poll::Pending => Poll::Pending,
                    }
                })
                .await
            }
        }
    }
}

/// A call whose future is alive.
struct Open<'a> {
    world: &'a World,
    /// For a read: of which life.
    reads: Option<&'a Life>,
    ended: bool,
}

impl<'a> Open<'a> {
    fn new(world: &'a World, reads: Option<&'a Life>) -> Self {
        world.open_calls.fetch_add(1, Ordering::Relaxed);
        if let Some(life) = reads {
            life.reading.fetch_add(1, Ordering::Relaxed);
        }
        Self { world, reads, ended: false }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.world.open_calls.fetch_sub(1, Ordering::Relaxed);
        let notes = &self.world.notes;
        match self.reads {
            Some(life) => {
                life.reading.fetch_sub(1, Ordering::Relaxed);
                if !self.ended {
                    notes.reached("read dropped while it waits");
                    let applied = life.status.get().map_or(0, |status| status.borrow().applied);
                    if life.confirmed.load(Ordering::Relaxed) > applied {
                        notes.reached("read dropped between confirmation and answer");
                    }
                }
            }
            None if !self.ended => notes.reached("proposal dropped while it waits"),
            None => {}
        }
    }
}

/// Reads a key at a node, and checks what the node promises about its answer.
pub(crate) async fn read(
    world: &World,
    node: &Running,
    key: u64,
    within: Duration,
) -> Result<Option<u64>, ReadError> {
    let mut open = Open::new(world, Some(&node.life));
    let (begun, jumped) = (Instant::now(), world.notes.jumped());
    let led = |life: &Life| life.status.get().is_some_and(|s| s.borrow().leader.is_some());
    let was_led = led(&node.life);
    let confirmed = node.raft.read(begun + within).await;
    open.ended = true;
    let jumps = Duration::from_nanos(world.notes.jumped() - jumped);
    let took = begun.elapsed().saturating_sub(jumps);
    if took > within + LATE {
        let text = format!("node {}: a read for {within:?} took {took:?}", node.id);
        world.notes.object(text);
    }
    if matches!(confirmed, Err(ReadError::NoLeader)) && begun.elapsed() < within {
        let text = format!("node {}: a read for {within:?} ends after {took:?}", node.id);
        world.notes.object(text);
    }
    if confirmed.is_ok() && !was_led {
        world.notes.reached("read waits for a leader and is answered");
    }
    let index = confirmed?;
    let state = node.state.lock();
    let wanted = world.truth.last_command(index);
    if state.applied < wanted {
        let (id, applied) = (node.id, state.applied);
        world.notes.object(format!(
            "stale read: node {id} answers {index}, command {wanted} is missing, it is at {applied}"
        ));
    }
    Ok(state.values.get(key))
}

/// Proposes a write at a node.
pub(crate) async fn write(
    world: &World,
    node: &Running,
    op: &KvOp<u64, u64>,
    bytes: u64,
) -> Result<KvRet<u64>, ProposeError> {
    let mut open = Open::new(world, None);
    let data = node.held.count(command(op, bytes as usize));
    let answered = node.raft.propose(data).await;
    open.ended = true;
    let text = || "an answer that the machine did not give";
    answered.map(|data| answer(data).unwrap_or_else(|| panic!("{}", text())))
}

/// One client, until the world rests.
pub(crate) async fn client(world: Arc<World>, id: u64, mut rng: Rng) {
    let voters = world.setup.voters.len() as u64;
    let mut target = 1 + rng.below(voters);
    let mut seen = None;
    let mut turn = 0;
    loop {
        sleep(Duration::from_millis(rng.below(world.setup.think_ms + 1))).await;
        if world.resting.load(Ordering::Relaxed) {
            return;
        }
        // Now and then not the leader: whoever believes to lead, or forwards reads, is asked too.
        let asked = if rng.chance(250_000) { 1 + rng.below(voters) } else { target };
        let Some(node) = world.running(asked) else {
            target = 1 + rng.below(voters);
            continue;
        };
        turn += 1;
        let key = rng.below(world.setup.keys);
        // Values occur once, which makes violations easy to see.
        let value = (id << 32) | turn;
        let op = match rng.below(100) {
            0..50 => KvOp::Get { key },
            50..75 => KvOp::Put { key, value },
            75..95 => KvOp::Cas { key, expect: seen, value },
            _ => KvOp::Delete { key },
        };
        let call = world.history.lock().invoke((id << 32) | turn, op.clone(), world.notes.now());
        let manner = Manner::draw(&mut rng);
        let ended = if let KvOp::Get { key } = op {
            let within = Duration::from_millis(rng.scaled(20, 2000));
            let read = manner.endure(read(&world, &node, key, within)).await;
            match read {
                Some(Ok(value)) => {
                    seen = value;
                    Some(Ok(KvRet::Value(value)))
                }
                Some(Err(_)) => {
                    target = 1 + rng.below(voters);
                    Some(Err(Outcome::NotApplied))
                }
                None => Some(Err(Outcome::NotApplied)),
            }
        } else {
            let bytes = rng.scaled(32, world.setup.payload_bytes);
            let written = manner.endure(write(&world, &node, &op, bytes)).await;
            written.map(|written| {
                written.map_err(|error| {
                    target = error.leader().unwrap_or(1 + rng.below(voters));
                    error.outcome()
                })
            })
        };
        let now = world.notes.now();
        let mut history = world.history.lock();
        match ended {
            Some(Ok(ret)) => history.ok(call, ret, now),
            Some(Err(Outcome::NotApplied)) => history.fail(call, now),
            Some(Err(Outcome::Unknown)) | None => history.unknown(call, now),
        };
    }
}

/// Proposes a write to a key of its own, and notes what became of it.
pub(crate) async fn single(world: Arc<World>, node: Running, bytes: u64, manner: Manner) {
    let key = {
        let mut singles = world.singles.lock();
        let key = 1000 + singles.len() as u64;
        singles.insert(key, Fate::Open);
        key
    };
    let op = KvOp::Put { key, value: key };
    let fate = match manner.endure(write(&world, &node, &op, bytes)).await {
        Some(Ok(_)) => Fate::Done,
        Some(Err(error)) if error.outcome() == Outcome::NotApplied => Fate::NotApplied,
        Some(Err(_)) | None => Fate::Unknown,
    };
    world.singles.lock().insert(key, fate);
}

/// Many proposals at one node at once.
pub(crate) fn burst(world: &Arc<World>, node: &Running, count: u64, bytes: u64) {
    let text = format!("{count} proposals of {bytes} bytes at node {}", node.id);
    world.notes.line(text);
    for _ in 0..count {
        let manner = Manner::draw(&mut world.rng.lock());
        tokio::spawn(single(Arc::clone(world), node.clone(), bytes, manner));
    }
}

/// Starts reads at a node until all its room is taken, drops them somewhere on their way, and
/// sees that the next one gets in.
pub(crate) async fn drop_reads(world: &World, node: &Running) {
    let others = node.life.reading.load(Ordering::Relaxed);
    let max = world.setup.config.max_reads;
    let rest = Duration::from_millis(world.rng.lock().scaled(1, 40));
    {
        let mut reads: Vec<_> = (0..max).map(|_| Box::pin(read(world, node, 0, LONG))).collect();
        let all = poll_fn(|cx| {
            reads.retain_mut(|read| read.as_mut().poll(cx).is_pending());
            if reads.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        let _ = timeout(rest, all).await;
    }
    if others >= max || node.life.reading.load(Ordering::Relaxed) >= max {
        return;
    }
    let before = node.raft.stats().reads;
    let (mut next, mut ended) = (pin!(node.raft.read(Instant::now() + LONG)), false);
    for _ in 0..20 {
        ended |= poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx).is_ready())).await;
        if ended || node.raft.stats().reads > before || node.raft.stopped().is_some() {
            world.notes.reached("reads dropped at the limit, and the next one gets in");
            return;
        }
        tokio::task::yield_now().await;
    }
    let text = format!("node {}: after {max} dropped reads the next one has no room", node.id);
    world.notes.object(text);
}

/// Virtual milliseconds as nanoseconds.
pub(crate) const fn ms(ms: u64) -> u64 {
    ms * MILLISECOND
}
