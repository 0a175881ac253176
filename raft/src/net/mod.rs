//! Raft over `voussoir-net`. Feature `net`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::task::AbortHandle;
use voussoir_net::{
    CallError, Channel, Class, Event, Events, Handler, Parts, Rejected, ServeError,
};

use crate::codec;
use crate::message::Message;
use crate::transport::{AttachError, Inbox, SendError, SnapshotAnswer, SnapshotPart, Transport};

/// The most bytes of messages that go together, where the limit of their class is not lower. A
/// longer message goes alone.
const BUNDLE_BYTES: usize = 60 << 10;

/// Carries any number of groups over one service of a [`voussoir_net::Transport`].
///
/// Log entries and snapshots travel in the class `Bulk`, everything else in `Small`: a heartbeat
/// never waits behind either. So the limits of the class `Bulk` must hold
/// [`Config::max_append_bytes`](crate::Config), one [`Config::max_entry_bytes`](crate::Config) and
/// a chunk of a snapshot ([`MAX_CHUNK_BYTES`](crate::MAX_CHUNK_BYTES)), each with 1 KiB for what is
/// around it; by default they do, and a node does not start where they do not. What goes in `Small`
/// is made no longer than that class allows. The peers must take as much.
///
/// Where a node is, the [`voussoir_net::Resolver`] of the carrier alone says: this transport does
/// nothing with [`Transport::members`]. Where the membership changes, feed the resolver from
/// [`Raft::members`](crate::Raft::members), and keep the addresses of those who have left. A node
/// that joins needs the addresses of the present members beforehand.
///
/// Bytes that are no message are dropped and counted ([`malformed`](Self::malformed)).
/// When it is dropped the service is withdrawn.
#[derive(Debug)]
pub struct NetTransport {
    carrier: Carrier,
    service: u16,
    hub: Arc<Hub>,
    events: AbortHandle,
}

struct Carrier(Arc<dyn voussoir_net::Transport>);

impl std::fmt::Debug for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Carrier").field(&self.0.local()).finish()
    }
}

#[derive(Default)]
struct Hub {
    inboxes: RwLock<HashMap<u64, Arc<dyn Inbox>>>,
    malformed: AtomicU64,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("malformed", &self.malformed).finish_non_exhaustive()
    }
}

impl NetTransport {
    /// Serves the service `service` of `net`, which must be the same number on every node.
    ///
    /// # Errors
    /// [`ServeError`] when it is served already, or `net` is shut down.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(net: Arc<dyn voussoir_net::Transport>, service: u16) -> Result<Self, ServeError> {
        let hub = Arc::new(Hub::default());
        net.serve(service, Arc::new(Receiver { hub: Arc::clone(&hub) }))?;
        let events = tokio::spawn(watch(net.events(), Arc::clone(&hub))).abort_handle();
        Ok(Self { carrier: Carrier(net), service, hub, events })
    }

    /// Messages that were dropped because this version could not read them.
    pub fn malformed(&self) -> u64 {
        self.hub.malformed.load(Ordering::Relaxed)
    }

    fn channel(&self, class: Class) -> Channel {
        Channel { service: self.service, class }
    }

    /// Sends messages of one class in as few bundles as their limit allows.
    fn send_bundles(
        &self,
        to: u64,
        class: Class,
        messages: Vec<(u64, Message)>,
    ) -> Result<(), SendError> {
        let mut result = Ok(());
        let longest = self.carrier.0.max_message_bytes(class).min(BUNDLE_BYTES);
        let room = codec::bundle_room(longest);
        let mut rest = &messages[..];
        while let Some((group, first)) = rest.first() {
            let mut bytes = 0;
            let fits = |(_, message): &&(u64, Message)| {
                bytes += codec::bundled_len(message);
                bytes <= room
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let frame = match count {
                1 => codec::encode(*group, first),
                _ => codec::encode_bundle(&rest[..count]),
            };
            let sent = self.carrier.0.send(to, self.channel(class), parts_of(frame));
            result = sent.map_err(send_error).and(result);
            rest = &rest[count..];
        }
        result
    }
}

impl Drop for NetTransport {
    fn drop(&mut self) {
        self.events.abort();
        self.carrier.0.withdraw(self.service);
    }
}

/// Tells the groups of connections that broke.
async fn watch(mut events: Events, hub: Arc<Hub>) {
    while let Some(event) = events.next().await {
        if let Event::Down { peer, .. } = event {
            let inboxes: Vec<_> = hub.inboxes.read().values().cloned().collect();
            for inbox in inboxes {
                inbox.unreachable(peer);
            }
        }
    }
}

#[async_trait]
impl Transport for NetTransport {
    fn local(&self) -> u64 {
        self.carrier.0.local()
    }

    fn max_message_bytes(&self) -> usize {
        self.carrier.0.max_message_bytes(Class::Bulk)
    }

    fn max_small_message_bytes(&self) -> usize {
        self.carrier.0.max_message_bytes(Class::Small)
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        let mut inboxes = self.hub.inboxes.write();
        if inboxes.contains_key(&group) {
            return Err(AttachError::Attached { group });
        }
        inboxes.insert(group, inbox);
        Ok(())
    }

    fn detach(&self, group: u64) {
        // Dropped without the lock: an inbox may own what uses this transport.
        let inbox = self.hub.inboxes.write().remove(&group);
        drop(inbox);
    }

    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        let parts = parts_of(codec::encode(group, &message));
        self.carrier.0.send(to, self.channel(class_of(&message)), parts).map_err(send_error)
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        let (bulk, small): (Vec<_>, Vec<_>) =
            messages.into_iter().partition(|(_, message)| class_of(message) == Class::Bulk);
        let bulk = self.send_bundles(to, Class::Bulk, bulk);
        self.send_bundles(to, Class::Small, small).and(bulk)
    }

    async fn snapshot(
        &self,
        to: u64,
        group: u64,
        part: SnapshotPart,
        timeout: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let parts = parts_of(codec::encode_part(group, part));
        let answer = self.carrier.0.call(to, self.channel(Class::Bulk), parts, deadline).await;
        let answer = answer.map_err(|error| match error {
            CallError::NotSent(error) => send_error(error),
            CallError::Rejected(Rejected::UnknownService) => SendError::UnknownPeer,
            _ => SendError::NoAnswer,
        })?;
        codec::decode_answer(answer).map_err(|_| SendError::NoAnswer)
    }
}

fn class_of(message: &Message) -> Class {
    match message {
        Message::Append { .. } => Class::Bulk,
        _ => Class::Small,
    }
}

fn parts_of(frame: codec::Frame) -> Parts {
    Parts::new(frame.head).with(frame.body)
}

fn send_error(error: voussoir_net::SendError) -> SendError {
    match error {
        voussoir_net::SendError::Full => SendError::Full,
        voussoir_net::SendError::TooLarge { .. } => SendError::TooLarge,
        voussoir_net::SendError::UnknownPeer | voussoir_net::SendError::ToSelf => {
            SendError::UnknownPeer
        }
        voussoir_net::SendError::Expired => SendError::NoAnswer,
        voussoir_net::SendError::Closed => SendError::Closed,
        _ => SendError::Down,
    }
}

/// What the carrier hands messages to.
struct Receiver {
    hub: Arc<Hub>,
}

impl Receiver {
    fn inbox(&self, group: u64) -> Option<Arc<dyn Inbox>> {
        self.hub.inboxes.read().get(&group).cloned()
    }

    fn deliver(&self, from: u64, decoded: Result<(u64, Message), codec::DecodeError>) {
        match decoded {
            Ok((group, message)) => {
                if let Some(inbox) = self.inbox(group) {
                    inbox.message(from, message);
                }
            }
            Err(error) => self.malformed(from, error),
        }
    }

    fn malformed(&self, from: u64, error: codec::DecodeError) {
        self.hub.malformed.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(target: "voussoir::raft", from, %error, "dropped what is no message");
    }
}

#[async_trait]
impl Handler for Receiver {
    fn message(&self, from: u64, _class: Class, body: Bytes) {
        if !codec::is_bundle(&body) {
            return self.deliver(from, codec::decode(body));
        }
        match codec::decode_bundle(body) {
            Ok(messages) => messages.for_each(|message| self.deliver(from, message)),
            Err(error) => self.malformed(from, error),
        }
    }

    async fn call(&self, from: u64, body: Bytes) -> Result<Parts, Rejected> {
        let (group, part) = codec::decode_part(body).map_err(|error| {
            self.malformed(from, error);
            Rejected::ByHandler(Bytes::from_static(b"not a part of a snapshot"))
        })?;
        let inbox = self.inbox(group).ok_or(Rejected::UnknownService)?;
        Ok(Parts::new(codec::encode_answer(inbox.snapshot(from, part).await)))
    }
}
