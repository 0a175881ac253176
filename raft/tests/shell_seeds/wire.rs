//! The network: links that drop, delay, repeat, reorder, throttle and cut, also in one direction.
//!
//! Messages travel as the bytes of the real codec. All of it is one task that delivers in the
//! order of arrival times, so the seed decides everything.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use voussoir_raft::{
    AppendHead, AttachError, Entry, EntryKind, Inbox, Message, SendError, SnapshotAnswer,
    SnapshotMeta, SnapshotName, SnapshotPart, Transport, codec,
};
use voussoir_sim::Rng;

use super::disk::Life;
use super::draw::Setup;
use super::held::Held;
use super::machine::Truth;
use super::notes::Notes;
use super::world::Running;

/// How far behind a throttled link may be before it drops what is sent.
const BACKLOG: Duration = Duration::from_secs(1);
/// Deliveries within one instant of virtual time that only a loop without an end makes.
const MAX_DELIVERIES_AT_ONCE: u64 = 50_000;

/// How one direction of a link works.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    pub(crate) cut: bool,
    /// Chances in a million.
    pub(crate) drop_ppm: u32,
    pub(crate) repeat_ppm: u32,
    pub(crate) reorder_ppm: u32,
    /// The longest extra delay, in ms.
    pub(crate) extra_ms: u64,
    /// Bytes that it carries in a ms; `None`: any number.
    pub(crate) bytes_per_ms: Option<u64>,
}

#[derive(Default)]
struct Way {
    link: Link,
    busy_until: Option<Instant>,
    last_arrival: Option<Instant>,
}

/// The network of one run.
pub(crate) struct Wire {
    inner: Mutex<Inner>,
    wake: Notify,
    notes: Arc<Notes>,
    truth: Arc<Truth>,
    voters: Vec<u64>,
}

struct Inner {
    rng: Rng,
    link_ms: (u64, u64),
    ways: BTreeMap<(u64, u64), Way>,
    due: BinaryHeap<Reverse<Packet>>,
    sent: u64,
    homes: BTreeMap<u64, Home>,
    /// Chunks of snapshots that were sent before: receiver, identity, number.
    chunks: BTreeSet<(u64, u64, u64)>,
}

/// Where a node is reached.
#[derive(Clone)]
struct Home {
    inbox: Arc<dyn Inbox>,
    held: Arc<Held>,
    life: Arc<Life>,
}

struct Packet {
    at: Instant,
    number: u64,
    from: u64,
    to: u64,
    body: Body,
}

enum Body {
    Message(Bytes),
    Part(SnapshotPart, oneshot::Sender<SnapshotAnswer>),
    Answer(SnapshotAnswer, oneshot::Sender<SnapshotAnswer>),
}

impl PartialEq for Packet {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Packet {}

impl PartialOrd for Packet {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Packet {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl Body {
    fn len(&self) -> u64 {
        match self {
            Self::Message(bytes) => bytes.len() as u64,
            Self::Part(SnapshotPart::Chunk { data, .. }, _) => 40 + data.len() as u64,
            Self::Part(..) | Self::Answer(..) => 40,
        }
    }
}

impl Wire {
    pub(crate) fn new(setup: &Setup, notes: &Arc<Notes>, truth: &Arc<Truth>) -> Arc<Self> {
        let mut ways = BTreeMap::new();
        for from in &setup.voters {
            for to in setup.voters.iter().filter(|to| *to != from) {
                ways.insert((*from, *to), Way::default());
            }
        }
        let inner = Inner {
            rng: Rng::stream(setup.seed, u64::from_le_bytes(*b"the wire")),
            link_ms: setup.link_ms,
            ways,
            due: BinaryHeap::new(),
            sent: 0,
            homes: BTreeMap::new(),
            chunks: BTreeSet::new(),
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            wake: Notify::new(),
            notes: Arc::clone(notes),
            truth: Arc::clone(truth),
            voters: setup.voters.clone(),
        })
    }

    /// Changes one direction of a link.
    pub(crate) fn change(&self, from: u64, to: u64, change: impl FnOnce(&mut Link)) {
        if let Some(way) = self.inner.lock().ways.get_mut(&(from, to)) {
            change(&mut way.link);
        }
    }

    /// The link works well again, in both directions.
    pub(crate) fn mend(&self, a: u64, b: u64) {
        let mut inner = self.inner.lock();
        for pair in [(a, b), (b, a)] {
            if let Some(way) = inner.ways.get_mut(&pair) {
                *way = Way::default();
            }
        }
    }

    pub(crate) fn mend_all(&self) {
        self.inner.lock().ways.values_mut().for_each(|way| *way = Way::default());
    }

    /// The transports of two nodes notice that they have lost their connection.
    pub(crate) fn lose_connection(&self, a: u64, b: u64) {
        for (node, peer) in [(a, b), (b, a)] {
            let home = self.inner.lock().homes.get(&node).cloned();
            if let Some(home) = home {
                home.inbox.unreachable(peer);
            }
        }
    }

    /// A node is no longer reached: its process is dead.
    pub(crate) fn cut_power(&self, node: u64) {
        self.inner.lock().homes.remove(&node);
    }

    /// Node `from`, which may not speak, sends messages (how many, of how many bytes) and a
    /// snapshot. Returns false where the node is not reached.
    pub(crate) fn intrude(
        self: &Arc<Self>,
        from: u64,
        node: &Running,
        term: u64,
        (count, bytes): (u64, u64),
    ) -> bool {
        let Some(home) = self.inner.lock().homes.get(&node.id).cloned() else { return false };
        let status = node.status();
        let (prev_index, prev_term) = (status.commit, status.term);
        for at in 0..count {
            let data = home.held.count(vec![7; bytes as usize]);
            let kind = EntryKind::Command;
            let entry = Entry { term: term.max(1), index: prev_index + 1, kind, data };
            let (session, commit) = (at + 1, prev_index);
            let probe = false;
            let head =
                AppendHead { term: term.max(1), session, prev_index, prev_term, commit, probe };
            home.inbox.message(from, Message::Append { head, entries: vec![entry] });
        }
        let voters = self.voters.clone();
        let members = voters.into();
        let meta = SnapshotMeta { index: status.commit + 10, term: term.max(1), members };
        let name = SnapshotName { meta, identity: 1 };
        let wire = Arc::clone(self);
        let (inbox, id) = (home.inbox, node.id);
        tokio::spawn(async move {
            let open = SnapshotPart::Open { term: term.max(1), name, chunks: 1 };
            if inbox.snapshot(from, open).await != SnapshotAnswer::Rejected {
                wire.notes.object(format!("node {id}: takes a snapshot of node {from}"));
            }
        });
        true
    }

    fn put(&self, from: u64, to: u64, body: Body) {
        let mut inner = self.inner.lock();
        let Inner { rng, ways, link_ms, due, sent, .. } = &mut *inner;
        let Some(way) = ways.get_mut(&(from, to)) else { return };
        if way.link.cut || rng.chance(way.link.drop_ppm) {
            return;
        }
        let again = match &body {
            Body::Message(bytes) if rng.chance(way.link.repeat_ppm) => Some(bytes.clone()),
            _ => None,
        };
        for body in [Some(body), again.map(Body::Message)].into_iter().flatten() {
            if let Some(at) = way.arrival(rng, *link_ms, body.len()) {
                *sent += 1;
                due.push(Reverse(Packet { at, number: *sent, from, to, body }));
            }
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// Delivers until the run ends.
    pub(crate) async fn run(self: Arc<Self>) {
        let (mut instant, mut count) = (Instant::now(), 0);
        loop {
            let next = self.inner.lock().due.peek().map(|Reverse(packet)| packet.at);
            match next {
                None => self.wake.notified().await,
                Some(at) if at > Instant::now() => {
                    // Woken, or due: both lead to another look.
                    let _ = timeout_at(at, self.wake.notified()).await;
                }
                Some(_) => {
                    let packet = self.inner.lock().due.pop();
                    let Some(Reverse(packet)) = packet else { continue };
                    count = if instant == Instant::now() { count + 1 } else { 0 };
                    instant = Instant::now();
                    if count > MAX_DELIVERIES_AT_ONCE {
                        self.notes.object("nodes talk in a loop without an end".to_owned());
                        return;
                    }
                    self.deliver(packet);
                    // A socket often has several frames at once, and hands over all of them
                    // before the node takes its next turn.
                    let is_followed = self.inner.lock().rng.chance(200_000);
                    if !is_followed {
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
    }

    fn deliver(self: &Arc<Self>, packet: Packet) {
        let Packet { from, to, body, .. } = packet;
        let home = {
            let inner = self.inner.lock();
            if inner.ways.get(&(from, to)).is_none_or(|way| way.link.cut) {
                return;
            }
            inner.homes.get(&to).cloned()
        };
        match (body, home) {
            (Body::Message(bytes), Some(home)) => self.message(from, to, bytes, &home),
            (Body::Part(part, reply), Some(home)) => {
                self.notes.message(from, to, &[], || describe(&part));
                let wire = Arc::clone(self);
                tokio::spawn(async move {
                    let answer = home.inbox.snapshot(from, part).await;
                    wire.put(to, from, Body::Answer(answer, reply));
                });
            }
            (Body::Answer(answer, reply), _) => {
                self.notes.message(from, to, &[], || format!("{answer:?}"));
                // An error here only says that the sender has given up.
                let _ = reply.send(answer);
            }
            (_, None) => {}
        }
    }

    fn message(&self, from: u64, to: u64, bytes: Bytes, home: &Home) {
        let frame = home.held.count(bytes.to_vec());
        match codec::decode(frame) {
            Ok((_, message)) => {
                self.notes.message(from, to, &bytes, || shorten(&message));
                if let Message::ReadReply(reply) = &message
                    && let Some(index) = reply.index
                {
                    home.life.confirmed.fetch_max(index, Ordering::Relaxed);
                }
                home.inbox.message(from, message);
            }
            Err(error) => self.notes.object(format!("a message of node {from}: {error}")),
        }
    }
}

impl Way {
    /// When a packet of `bytes` that is sent now arrives; `None` when the link is too far behind.
    fn arrival(&mut self, rng: &mut Rng, link_ms: (u64, u64), bytes: u64) -> Option<Instant> {
        let now = Instant::now();
        let mut leaves = now;
        if let Some(rate) = self.link.bytes_per_ms {
            let free = self.busy_until.map_or(now, |at| at.max(now));
            if free - now > BACKLOG {
                return None;
            }
            leaves = free + Duration::from_millis(bytes / rate.max(1));
            self.busy_until = Some(leaves);
        }
        let extra = if self.link.extra_ms > 0 { rng.below(self.link.extra_ms + 1) } else { 0 };
        let delay = rng.between(link_ms.0, link_ms.1) + extra;
        let mut at = leaves + Duration::from_millis(delay);
        if !rng.chance(self.link.reorder_ppm) {
            at = at.max(self.last_arrival.unwrap_or(at));
            self.last_arrival = Some(at);
        }
        Some(at)
    }
}

fn describe(part: &SnapshotPart) -> String {
    match part {
        SnapshotPart::Chunk { identity, number, data } => {
            format!("chunk {number} of {identity:x}, {} bytes", data.len())
        }
        part => format!("{part:?}"),
    }
}

fn shorten(message: &Message) -> String {
    match message {
        Message::Append { head, entries } => {
            let range = entries.first().map(|e| e.index)..entries.last().map(|e| e.index);
            format!("{head:?} with {range:?}")
        }
        message => format!("{message:?}"),
    }
}

/// A node's end of the network, for one life.
pub(crate) struct Port {
    pub(crate) node: u64,
    pub(crate) wire: Arc<Wire>,
    pub(crate) held: Arc<Held>,
    pub(crate) life: Arc<Life>,
}

impl Port {
    fn observe(&self, message: &Message) {
        let notes = &self.wire.notes;
        match message {
            Message::Append { head, entries } if head.probe && entries.is_empty() => {
                self.wire.truth.probed(self.node, head.prev_index + 1);
            }
            Message::Vote(_) if self.life.pending.load(Ordering::Relaxed) > 0 => {
                notes.reached("vote asked for while an own write is under way");
            }
            Message::ReadReply(reply) if reply.index.is_some() => {
                notes.reached("read of a follower confirmed");
            }
            _ => {}
        }
    }

    fn observe_part(&self, to: u64, part: &SnapshotPart) {
        if let SnapshotPart::Chunk { identity, number, .. } = part {
            let first = self.wire.inner.lock().chunks.insert((to, *identity, *number));
            if !first {
                self.wire.notes.reached("chunk of a snapshot sent again");
            }
        }
    }
}

#[async_trait]
impl Transport for Port {
    fn local(&self) -> u64 {
        self.node
    }

    fn attach(&self, _: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        let (held, life) = (Arc::clone(&self.held), Arc::clone(&self.life));
        self.wire.inner.lock().homes.insert(self.node, Home { inbox, held, life });
        Ok(())
    }

    fn detach(&self, _: u64) {
        let mut inner = self.wire.inner.lock();
        // A later life may be attached already.
        let home = inner.homes.get(&self.node);
        if home.is_some_and(|home| Arc::ptr_eq(&home.life, &self.life)) {
            inner.homes.remove(&self.node);
        }
    }

    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        self.observe(&message);
        let bytes = codec::encode(group, &message).into_bytes();
        if self.life.is_alive() {
            self.wire.put(self.node, to, Body::Message(bytes));
        }
        Ok(())
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        let send = |(group, message)| self.send(to, group, message);
        messages.into_iter().map(send).fold(Ok(()), Result::and)
    }

    async fn snapshot(
        &self,
        to: u64,
        _: u64,
        part: SnapshotPart,
        limit: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        let end = Instant::now() + limit;
        self.observe_part(to, &part);
        let opens = matches!(part, SnapshotPart::Open { .. });
        let (reply, answer) = oneshot::channel();
        if self.life.is_alive() {
            self.wire.put(self.node, to, Body::Part(part, reply));
        }
        match timeout(limit, answer).await {
            Ok(Ok(answer)) => {
                if opens && matches!(answer, SnapshotAnswer::Next { number } if number > 0) {
                    self.wire.notes.reached("transfer of a snapshot resumed");
                }
                Ok(answer)
            }
            // Lost on the way: the sender learns it by the silence.
            Ok(Err(_)) => {
                sleep_until(end).await;
                Err(SendError::NoAnswer)
            }
            Err(_) => Err(SendError::NoAnswer),
        }
    }
}
