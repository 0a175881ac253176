//! What a node's groups have in common: the transport, the tick, and what is known of the peers.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::config::NodeConfig;
use super::elections::Elections;
use super::peers::Peers;
use super::{NODE_GROUP, NodeStats, PeerStatus};
use crate::config::nanos;
use crate::core::Core;
use crate::membership::Membership;
use crate::message::{AppendAck, GroupBeat, Message, NodeBeat};
use crate::shell::StopReason;
use crate::shell::shared::{Event, Shared, weight};
use crate::transport::{AttachError, Inbox, SendError, SnapshotAnswer, SnapshotPart, Transport};
use crate::types::Role;

/// Messages that a place for them has room for from the beginning.
const POST_ROOM: usize = 64;

/// The most that waits to go to one peer together; more goes at once.
const MAX_POST_BYTES: u64 = 256 << 10;

/// A node whose messages waited for so long to be sent, while it leads so many groups at work, is
/// short of processor: they wait for nothing else.
const PRESSED_AFTER: Duration = Duration::from_millis(1);
const PRESSED_GROUPS: usize = 16;

/// How many late ticks, one after the other, put elections off.
const MAX_LATE_TICKS: u32 = 10;

/// Shared by a node, its groups and its tasks.
pub(crate) struct Hub {
    transport: Arc<dyn Transport>,
    /// Never held while the transport or an inbox is called. Events are left in the groups'
    /// mailboxes under it, so that a group hears what became of a node in the order in which it
    /// happened; a mailbox calls nobody back.
    state: Mutex<State>,
    /// What the groups have for the peers. Each of a thousand groups at work has a message for each
    /// peer in every turn; together they cost little more than one. Beside `state`, which is held
    /// while a thousand groups are told something: held for moments, and never while the transport
    /// is called.
    posts: Mutex<Posts>,
    /// Many groups are at work, and what is to be done waits for the processor.
    is_pressed: AtomicBool,
    /// Something has to be sent.
    due: Notify,
    epoch: Instant,
    interval: Duration,
    counters: Counters,
}

struct State {
    peers: Peers,
    groups: HashMap<u64, Group>,
    /// Groups that this node leads and that have not quiesced.
    beating: HashMap<u64, Arc<Shared>>,
    elections: Elections,
    /// When the latest tick was, and how many before it came late, one after the other.
    ticked_at: u64,
    late_ticks: u32,
    /// The latest tick was late.
    was_late: bool,
    /// Nobody ticks any more: no group may come.
    is_closed: bool,
}

#[derive(Default)]
struct Posts {
    /// Entries and their acknowledgements.
    by_peer: BTreeMap<u64, Post>,
    /// When the first of them came.
    since: Option<Instant>,
    /// Heartbeats and answers to them, each with its peer and its group.
    beats: Vec<(u64, u64, GroupBeat)>,
}

/// Messages that go to one peer together.
#[derive(Default)]
struct Post {
    messages: Vec<(u64, Message)>,
    /// What they take of the memory.
    weight: u64,
}

/// One group of this node.
struct Group {
    inbox: Arc<dyn Inbox>,
    shared: Arc<Shared>,
    /// The other members.
    members: Vec<u64>,
    /// The term that this node leads, if it has quiesced in it.
    reign: Option<u64>,
}

#[derive(Debug, Default)]
struct Counters {
    messages_sent: AtomicU64,
    messages_received: AtomicU64,
    sends_failed: AtomicU64,
    beats_sent: AtomicU64,
    beats_received: AtomicU64,
    nodes_suspected: AtomicU64,
    nodes_restarted: AtomicU64,
}

fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

impl Hub {
    pub(super) fn new(config: &NodeConfig, transport: Arc<dyn Transport>, life: u64) -> Self {
        let peers = Peers::new(life, config.interval_ns(), config.suspect_after_ns(), 0)
            .with_messages_of(transport.max_small_message_bytes());
        // As long as a peer may be silent: an election that takes longer has failed.
        let elections = Elections::new(config.max_elections, config.suspect_after_ns());
        let (groups, beating) = (HashMap::new(), HashMap::new());
        let state = State {
            peers,
            groups,
            beating,
            elections,
            ticked_at: 0,
            late_ticks: 0,
            was_late: false,
            is_closed: false,
        };
        Self {
            transport,
            state: Mutex::new(state),
            posts: Mutex::default(),
            is_pressed: AtomicBool::new(false),
            due: Notify::new(),
            epoch: Instant::now(),
            interval: config.heartbeat_interval,
            counters: Counters::default(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Ticks for ever.
    pub(super) async fn tick_loop(self: Arc<Self>) {
        let _closing = Closing(Arc::clone(&self));
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.tick();
        }
    }

    /// Sends what is due, for ever. What becomes due at about the same time goes together: those
    /// who were woken together have had their turn when this task has yielded.
    pub(super) async fn send_loop(self: Arc<Self>) {
        let _closing = Closing(Arc::clone(&self));
        loop {
            self.due.notified().await;
            tokio::task::yield_now().await;
            self.flush();
        }
    }

    /// Stops every group, and takes in no other: without the tick and its messages none of them
    /// would be heard.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        for group in state.groups.values() {
            group.shared.tell(Event::Stop(StopReason::ShutDown));
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    fn tick(&self) {
        {
            let mut state = self.state.lock();
            state.note_tick(self.now(), nanos(self.interval));
            for suspect in state.peers.tick(self.now()) {
                count(&self.counters.nodes_suspected, 1);
                state.tell_of(suspect, None);
            }
            state.beating.values().for_each(|shared| shared.beat());
            let admitted = state.elections.expire(self.now());
            state.admit(&admitted);
        }
        self.due.notify_one();
    }

    pub(super) fn flush(&self) {
        let posts = std::mem::take(&mut *self.posts.lock());
        let (full, due, at_work) = {
            let mut state = self.state.lock();
            let peers = &mut state.peers;
            let push = |(to, group, beat)| Some((to, peers.push(to, group, beat)?));
            let full: Vec<_> = posts.beats.into_iter().filter_map(push).collect();
            (full, state.peers.flush(), state.beating.len())
        };
        for (to, beat) in full.into_iter().chain(due) {
            self.send(to, beat);
        }
        if let Some(since) = posts.since {
            let is_pressed = at_work >= PRESSED_GROUPS && since.elapsed() > PRESSED_AFTER;
            self.is_pressed.store(is_pressed, Ordering::Relaxed);
        }
        for (to, post) in posts.by_peer {
            self.deliver(to, post);
        }
    }

    /// Puts a message on its way, with those of other groups that come at about the same time.
    fn post(&self, to: u64, group: u64, message: Message) {
        let full = {
            let mut posts = self.posts.lock();
            posts.since.get_or_insert_with(Instant::now);
            let post = posts.by_peer.entry(to).or_default();
            if post.messages.is_empty() {
                post.messages.reserve(POST_ROOM);
            }
            post.weight += weight(&message);
            post.messages.push((group, message));
            if post.weight >= MAX_POST_BYTES { posts.by_peer.remove(&to) } else { None }
        };
        match full {
            Some(full) => self.deliver(to, full),
            None => self.due.notify_one(),
        }
    }

    fn deliver(&self, to: u64, post: Post) {
        // Lost like any other message: the leaders ask again.
        if self.transport.send_all(to, post.messages).is_err() {
            count(&self.counters.sends_failed, 1);
        }
    }

    fn send(&self, to: u64, beat: NodeBeat) {
        count(&self.counters.messages_sent, 1);
        count(&self.counters.beats_sent, beat.beats.len());
        // Lost like any other message; the next tick comes.
        if self.transport.send(to, NODE_GROUP, Message::Node(Box::new(beat))).is_err() {
            count(&self.counters.sends_failed, 1);
        }
    }

    fn receive(&self, from: u64, beat: NodeBeat) {
        count(&self.counters.messages_received, 1);
        count(&self.counters.beats_received, beat.beats.len());
        let mut messages = Vec::new();
        {
            let mut state = self.state.lock();
            let was_known = state.peers.lives().any(|(id, life)| id == from && life.is_some());
            let news = state.peers.receive(self.now(), from, &beat);
            if let Some(life) = news {
                count(&self.counters.nodes_restarted, usize::from(was_known));
                state.tell_of(from, Some(life));
            }
            for (group, term) in &beat.resigned {
                // The group has room for one word of this kind, and none for that of a stranger.
                let group = state.groups.get(group).filter(|group| group.members.contains(&from));
                if let Some(group) = group {
                    group.shared.tell_of_resignation(from, *term);
                }
            }
            for (group, beat) in beat.beats {
                if let Some(group) = state.groups.get(&group) {
                    messages.push((Arc::clone(&group.inbox), beat));
                }
            }
        }
        for (inbox, beat) in messages {
            inbox.message(from, beat.into());
        }
    }

    fn push(&self, to: u64, group: u64, beat: GroupBeat) {
        {
            let mut posts = self.posts.lock();
            if posts.beats.is_empty() {
                posts.beats.reserve(POST_ROOM);
            }
            posts.beats.push((to, group, beat));
        }
        self.due.notify_one();
    }

    fn members(&self, id: u64, members: &Membership) {
        let own = self.transport.local();
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(group) = state.groups.get_mut(&id) else { return };
        let now: Vec<u64> = members.members().filter(|id| *id != own).collect();
        let before = std::mem::replace(&mut group.members, now);
        for peer in group.members.iter().filter(|id| !before.contains(id)) {
            let life = state.peers.link(*peer);
            group.shared.tell(Event::Node { node: *peer, life });
        }
        for peer in before.iter().filter(|id| !group.members.contains(id)) {
            // It may rest under this node, and not have heard that it was removed.
            if let Some(term) = group.reign {
                state.peers.resign(id, term, &[*peer]);
            }
            state.peers.unlink(*peer);
            group.shared.tell(Event::Node { node: *peer, life: None });
        }
    }

    fn leave(&self, id: u64) {
        let group = {
            let mut state = self.state.lock();
            state.beating.remove(&id);
            state.end_campaign(id, self.now());
            let group = state.groups.remove(&id);
            if let Some(group) = &group {
                if let Some(term) = group.reign {
                    state.peers.resign(id, term, &group.members);
                }
                group.members.iter().for_each(|peer| state.peers.unlink(*peer));
            }
            group
        };
        // Without the lock: an inbox may own what uses this hub.
        drop(group);
        self.due.notify_one();
    }

    fn set_reign(&self, id: u64, reign: Option<u64>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(group) = state.groups.get_mut(&id) else { return };
        let before = std::mem::replace(&mut group.reign, reign);
        if let Some(term) = before.filter(|_| before != reign) {
            state.peers.resign(id, term, &group.members);
        }
    }

    fn set_beating(&self, id: u64, beats: bool) {
        let mut state = self.state.lock();
        let state = &mut *state;
        match state.groups.get(&id).filter(|_| beats) {
            Some(group) => drop(state.beating.insert(id, Arc::clone(&group.shared))),
            None => drop(state.beating.remove(&id)),
        }
    }

    /// The election of `group` is due. Returns whether it may campaign; else it is told
    /// [`Event::Admitted`] when its turn comes.
    fn ask_to_campaign(&self, group: u64) -> bool {
        let (mut state, now) = (self.state.lock(), self.now());
        let is_late = state.is_late(now, nanos(self.interval));
        state.elections.pause(is_late);
        let can_win = state.has_live_majority(group);
        let may = state.elections.ask(group, can_win, now);
        let admitted = state.elections.admit(now);
        state.admit(&admitted);
        may
    }

    fn end_campaign(&self, group: u64) {
        self.state.lock().end_campaign(group, self.now());
    }

    pub(super) fn peers(&self) -> Vec<PeerStatus> {
        let state = self.state.lock();
        state.peers.lives().map(|(id, life)| PeerStatus { id, is_alive: life.is_some() }).collect()
    }

    pub(super) fn stats(&self) -> NodeStats {
        let (groups, beating, (campaigning, waiting)) = {
            let state = self.state.lock();
            (state.groups.len(), state.beating.len(), state.elections.counts())
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        NodeStats {
            groups,
            beating,
            campaigning,
            waiting_to_campaign: waiting,
            messages_sent: read(&counters.messages_sent),
            messages_received: read(&counters.messages_received),
            sends_failed: read(&counters.sends_failed),
            beats_sent: read(&counters.beats_sent),
            beats_received: read(&counters.beats_received),
            nodes_suspected: read(&counters.nodes_suspected),
            nodes_restarted: read(&counters.nodes_restarted),
        }
    }
}

impl State {
    /// Whether the tick is so late that this node must have stood still, or was kept from the
    /// processor.
    fn is_tick_missing(&self, now: u64, interval: u64) -> bool {
        self.is_overdue(now, interval) && self.late_ticks < MAX_LATE_TICKS
    }

    fn is_overdue(&self, now: u64, interval: u64) -> bool {
        now.saturating_sub(self.ticked_at) > interval.saturating_mul(2)
    }

    /// The tick has come. Where it is late, so is everything else: the silence of a peer says
    /// nothing then, since what it has said has not been heard. No election begins before a tick
    /// that is in time, and no leader gives up for want of answers; but not for long, because a
    /// node that is always late has to go on as well.
    fn note_tick(&mut self, now: u64, interval: u64) {
        self.was_late = self.is_tick_missing(now, interval);
        let is_late = self.is_overdue(now, interval);
        self.late_ticks = if is_late { self.late_ticks.saturating_add(1) } else { 0 };
        self.ticked_at = now;
        self.elections.pause(self.was_late);
    }

    /// Whether silence says nothing now.
    fn is_late(&self, now: u64, interval: u64) -> bool {
        self.was_late || self.is_tick_missing(now, interval)
    }

    /// Tells the groups of which `node` is a member what has become of it.
    fn tell_of(&self, node: u64, life: Option<u64>) {
        for group in self.groups.values().filter(|group| group.members.contains(&node)) {
            group.shared.tell(Event::Node { node, life });
        }
    }

    /// Whether the nodes of a majority of the group's members are alive, learners counted as well:
    /// it decides who goes first, no more.
    fn has_live_majority(&self, group: u64) -> bool {
        let Some(group) = self.groups.get(&group) else { return true };
        let alive = group.members.iter().filter(|id| self.peers.is_alive(**id)).count();
        2 * (alive + 1) > group.members.len() + 1
    }

    /// Tells groups that it is their turn to campaign.
    fn admit(&self, admitted: &[u64]) {
        for group in admitted.iter().filter_map(|id| self.groups.get(id)) {
            group.shared.tell(Event::Admitted);
        }
    }

    fn end_campaign(&mut self, group: u64, now: u64) {
        let admitted = self.elections.end(group, now);
        self.admit(&admitted);
    }
}

/// Closes the hub when one of its loops ends, by a panic of the transport too.
struct Closing(Arc<Hub>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What the transport hands the messages between nodes to.
pub(super) struct NodeInbox(pub(super) Weak<Hub>);

#[async_trait]
impl Inbox for NodeInbox {
    fn message(&self, from: u64, message: Message) {
        if let (Some(hub), Message::Node(beat)) = (self.0.upgrade(), message) {
            hub.receive(from, *beat);
        }
    }

    fn unreachable(&self, _: u64) {
        // Silence says it, once it has lasted: a connection that is made again at once is none.
    }

    async fn snapshot(&self, _: u64, _: SnapshotPart) -> SnapshotAnswer {
        SnapshotAnswer::Rejected
    }
}

/// The transport of one group: the node's, with the heartbeats of all groups together.
pub(crate) struct Seat {
    hub: Arc<Hub>,
    group: u64,
}

impl Seat {
    pub(super) fn new(hub: Arc<Hub>, group: u64) -> Self {
        Self { hub, group }
    }

    /// Takes the group in, under the name that the transport knows.
    ///
    /// # Errors
    /// As [`Transport::attach`]; nothing changed.
    pub(crate) fn enter(
        &self,
        inbox: Arc<dyn Inbox>,
        shared: &Arc<Shared>,
    ) -> Result<(), AttachError> {
        let node = self.hub.transport.local();
        self.hub.transport.attach(self.group, Arc::clone(&inbox))?;
        let mut state = self.hub.state.lock();
        if state.is_closed {
            drop(state);
            self.hub.transport.detach(self.group);
            return Err(AttachError::Closed);
        }
        let life = Some(state.peers.life());
        shared.tell(Event::Node { node, life });
        let (shared, members) = (Arc::clone(shared), Vec::new());
        state.groups.insert(self.group, Group { inbox, shared, members, reign: None });
        Ok(())
    }
}

/// What the hub last heard of a group from its driver.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    reign: Option<u64>,
    beats: bool,
    /// It has one of the places for groups that campaign.
    campaigns: bool,
}

impl Seat {
    /// Asks for a place among the groups that campaign. Without one the group is told
    /// [`Event::Admitted`] when its turn comes.
    pub(crate) fn ask_to_campaign(&self, shown: &mut Shown) -> bool {
        shown.campaigns = self.hub.ask_to_campaign(self.group);
        shown.campaigns
    }

    /// Whether this is one of many groups at work that wait for the processor.
    pub(crate) fn is_pressed(&self) -> bool {
        self.hub.is_pressed.load(Ordering::Relaxed)
    }

    /// Whether the node stood still for a while, and silence says nothing.
    pub(crate) fn is_late(&self) -> bool {
        self.hub.state.lock().is_late(self.hub.now(), nanos(self.hub.interval))
    }

    /// Puts an acknowledgement on its way, from any thread.
    pub(crate) fn acknowledge(&self, to: u64, ack: AppendAck) {
        self.hub.post(to, self.group, Message::AppendAck(ack));
    }

    /// The hub has given it a place.
    pub(crate) fn admitted(shown: &mut Shown) {
        shown.campaigns = true;
    }

    /// Tells the hub what of the core concerns it, when that has changed. To be called after each
    /// turn.
    pub(crate) fn show(&self, shown: &mut Shown, core: &Core) {
        let reign = core.quiesced_reign();
        if std::mem::replace(&mut shown.reign, reign) != reign {
            self.hub.set_reign(self.group, reign);
        }
        let beats = core.role() == Role::Leader && !core.is_quiesced();
        if std::mem::replace(&mut shown.beats, beats) != beats {
            self.hub.set_beating(self.group, beats);
        }
        if shown.campaigns && !core.is_campaigning() {
            shown.campaigns = false;
            self.hub.end_campaign(self.group);
        }
    }
}

#[async_trait]
impl Transport for Seat {
    fn local(&self) -> u64 {
        self.hub.transport.local()
    }

    fn max_message_bytes(&self) -> usize {
        self.hub.transport.max_message_bytes()
    }

    fn max_small_message_bytes(&self) -> usize {
        self.hub.transport.max_small_message_bytes()
    }

    fn attach(&self, group: u64, _: Arc<dyn Inbox>) -> Result<(), AttachError> {
        // A seat is taken with `enter`.
        Err(AttachError::Attached { group })
    }

    fn detach(&self, group: u64) {
        self.hub.leave(group);
        self.hub.transport.detach(group);
    }

    fn members(&self, group: u64, members: &Membership) {
        self.hub.members(group, members);
        self.hub.transport.members(group, members);
    }

    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        match message {
            Message::Heartbeat(beat) => self.hub.push(to, group, GroupBeat::Heartbeat(beat)),
            Message::HeartbeatReply(reply) => self.hub.push(to, group, GroupBeat::Reply(reply)),
            Message::Append { .. } | Message::AppendAck(_) => self.hub.post(to, group, message),
            message => return self.hub.transport.send(to, group, message),
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
        group: u64,
        part: SnapshotPart,
        timeout: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        self.hub.transport.snapshot(to, group, part, timeout).await
    }
}
