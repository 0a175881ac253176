//! Keeps the data below its limit, however many writes come at once.
//!
//! A journal that is full stops its node, and the others at nearly the same entry. So a write
//! reserves room before it is proposed, beside what is stored, and gives it back once it is applied
//! or never will be. Deletes make room: they are never refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;
use voussoir_raft::{Doubt, Outcome, ProposeError, Raft, ReadError, StopReason};

use crate::kv::Command;

/// How long a write waits before it is proposed again to a leader that is busy.
const BUSY_WAIT: Duration = Duration::from_millis(50);

/// The room for data in a journal.
#[derive(Debug)]
pub struct Room {
    max: u64,
    /// Bytes of the writes that may still be applied.
    reserved: Mutex<u64>,
    /// The last term of this node as a leader in which `stored` shows all of earlier terms.
    settled: AtomicU64,
}

/// More data than the limit, if the write were taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{taken} bytes are stored or on their way, of at most {max}: delete some keys")]
pub struct Full {
    taken: u64,
    max: u64,
}

impl Room {
    /// Room for `max` bytes of data.
    pub fn new(max: u64) -> Arc<Self> {
        Arc::new(Self { max, reserved: Mutex::default(), settled: AtomicU64::default() })
    }

    /// How many bytes of data there may be.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Reserves room for what a command adds to the data, if it adds something. `stored` counts the
    /// bytes that are stored.
    ///
    /// # Errors
    /// [`Full`]; nothing was reserved.
    pub fn reserve(
        self: &Arc<Self>,
        command: &Command,
        stored: impl FnOnce() -> u64,
    ) -> Result<Option<Reserved>, Full> {
        let Command::Put { key, value, .. } = command else { return Ok(None) };
        let bytes = crate::kv::pair_bytes(key, value);
        let mut reserved = self.reserved.lock();
        // Counted under the lock: a write that is applied meanwhile is counted twice, never not.
        let taken = stored() + *reserved;
        if taken + bytes > self.max {
            return Err(Full { taken, max: self.max });
        }
        *reserved += bytes;
        Ok(Some(Reserved { room: Arc::clone(self), bytes }))
    }

    /// Waits, once in each term that this node leads, until it has applied what earlier leaders
    /// left in its log: before that, what is stored does not count their writes.
    ///
    /// # Errors
    /// No majority confirmed that this node leads; nothing was changed.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is changed.
    pub async fn settle(&self, raft: &Raft, within: Duration) -> Result<(), ReadError> {
        let term = {
            let status = raft.status();
            let status = status.borrow();
            (status.leader == Some(status.id)).then_some(status.term)
        };
        if let Some(term) = term.filter(|term| self.settled.load(Ordering::Relaxed) != *term) {
            raft.read(Instant::now() + within).await?;
            self.settled.store(term, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Room that a write has; given back when it is dropped.
#[derive(Debug)]
pub struct Reserved {
    room: Arc<Room>,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        *self.room.reserved.lock() -= self.bytes;
    }
}

/// Proposes a command, again while the leader takes none: its journal has little room until a
/// snapshot has been taken, for example. The command is in no log then.
///
/// What was reserved for it is given back when it is known what has become of it: a client that
/// goes away, or an answer that does not come in time, does not take it out of the log.
pub(crate) async fn propose(
    raft: &Raft,
    command: Bytes,
    within: Duration,
    reserved: Option<Reserved>,
) -> Result<Bytes, ProposeError> {
    let Some(reserved) = reserved else { return propose_until(raft, command, within).await };
    let (proposer, (tell, told)) = (raft.clone(), oneshot::channel());
    tokio::spawn(async move {
        let answer = propose_until(&proposer, command, within).await;
        match &answer {
            // It may be applied later.
            Err(error) if error.outcome() == Outcome::Unknown => {
                let _ = tell.send(answer);
                decided(&proposer).await;
                drop(reserved);
            }
            // Before the answer: the next write of this client finds the room.
            _ => {
                drop(reserved);
                let _ = tell.send(answer);
            }
        }
    });
    let gone = |_| {
        let reason = raft.stopped().unwrap_or(StopReason::Panicked);
        Err(ProposeError::Unknown(Doubt::Stopped(reason)))
    };
    told.await.unwrap_or_else(gone)
}

async fn propose_until(
    raft: &Raft,
    command: Bytes,
    within: Duration,
) -> Result<Bytes, ProposeError> {
    let until = Instant::now() + within;
    loop {
        match raft.propose(command.clone()).await {
            Err(ProposeError::Busy) if Instant::now() < until => {
                tokio::time::sleep(BUSY_WAIT).await;
            }
            answer => return answer,
        }
    }
}

/// Waits until everything that is in the log of this node now is applied here, or is in its log no
/// longer, or until raft has stopped.
async fn decided(raft: &Raft) {
    let mut status = raft.status();
    let last = status.borrow().last;
    // An error says that raft has stopped.
    let _ = status.wait_for(|status| status.applied >= last.min(status.last)).await;
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use parking_lot::RwLock;
    use tokio::sync::Semaphore;
    use tokio::time::{sleep, timeout};
    use voussoir_raft::memory::{MemoryStore, Network};
    use voussoir_raft::{
        Chunks, Command as Committed, Config, MachineError, Role, StateMachine, Status,
    };

    use super::*;
    use crate::kv::{Condition, Kv};
    use crate::machine::Machine;

    fn put(key: u64, len: usize) -> Command {
        let (key, value) = (Bytes::from(format!("{key:04}")), Bytes::from(vec![7; len]));
        Command::Put { key, value, condition: Condition::Always }
    }

    #[test]
    fn what_is_on_its_way_counts_until_it_is_given_back() {
        // A pair adds 16 bytes to its key and value.
        let room = Room::new(100);
        let reserve = |stored| room.reserve(&put(1, 20), move || stored);
        let (first, second) = (reserve(20).unwrap(), reserve(20).unwrap());
        assert_eq!(reserve(20).unwrap_err(), Full { taken: 100, max: 100 });
        let delete = Command::Delete { key: "1".into(), condition: Condition::Always };
        assert!(room.reserve(&delete, || 200).unwrap().is_none());
        drop(first);
        assert_eq!(reserve(21).unwrap_err(), Full { taken: 61, max: 100 });
        drop((reserve(20).unwrap(), second));
        assert_eq!(*room.reserved.lock(), 0);
    }

    /// A machine that applies nothing while the gate is held.
    struct Gated {
        machine: Machine,
        gate: Arc<Semaphore>,
    }

    #[async_trait]
    impl StateMachine for Gated {
        async fn apply(&mut self, commands: &[Committed]) -> Result<Vec<Bytes>, MachineError> {
            let _permit = self.gate.acquire().await?;
            self.machine.apply(commands).await
        }

        async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
            self.machine.snapshot().await
        }

        async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
            self.machine.restore(chunks).await
        }
    }

    struct Group {
        gate: Arc<Semaphore>,
        network: Network,
        nodes: Vec<(Raft, Arc<RwLock<Kv>>)>,
    }

    impl Group {
        async fn start(ids: &[u64]) -> Self {
            let (network, mut nodes) = (Network::new(), Vec::new());
            let gate = Arc::new(Semaphore::new(1));
            for id in ids.iter().copied() {
                let kv = Arc::<RwLock<Kv>>::default();
                let log = Arc::new(MemoryStore::new());
                let machine = Gated { machine: Machine::new(kv.clone()), gate: gate.clone() };
                let config = Config::new(id, ids.to_vec());
                let raft = Raft::start(config, log, Box::new(machine), network.node(id)).await;
                nodes.push((raft.unwrap(), kv));
            }
            Self { gate, network, nodes }
        }

        async fn leader(&self) -> &(Raft, Arc<RwLock<Kv>>) {
            loop {
                let leads = |raft: &Raft| raft.status().borrow().role == Role::Leader;
                match self.nodes.iter().find(|(raft, _)| leads(raft)) {
                    Some(node) => return node,
                    None => sleep(Duration::from_millis(10)).await,
                }
            }
        }

        /// No node hears another.
        fn cut(&self) {
            for id in 1..=3 {
                self.network.isolate(id, 1..=3);
            }
        }
    }

    const WITHIN: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_write_keeps_its_room_when_its_client_is_gone_or_its_outcome_unknown() {
        let group = Group::start(&[1, 2, 3]).await;
        let (raft, kv) = group.leader().await;
        let room = Room::new(1000);
        let reserve = |key| room.reserve(&put(key, 100), || kv.read().stored_bytes()).unwrap();
        let propose = |key| propose(raft, put(key, 100).encode(), WITHIN, reserve(key));
        propose(1).await.unwrap();
        assert_eq!((kv.read().stored_bytes(), *room.reserved.lock()), (120, 0));
        group.cut();
        let client = timeout(Duration::from_millis(20), propose(2));
        assert!(client.await.is_err(), "nobody has taken it");
        assert_eq!(*room.reserved.lock(), 120, "it is in the log");
        let unknown = propose(3).await.unwrap_err();
        assert_eq!(unknown.outcome(), Outcome::Unknown, "{unknown}");
        assert_eq!((kv.read().stored_bytes(), *room.reserved.lock()), (120, 240));
        group.network.heal();
        // Whoever leads now: both are applied, or never will be.
        while *room.reserved.lock() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Its predecessors have left it entries that are stored once they are committed.
    #[tokio::test(start_paused = true)]
    async fn a_new_leader_counts_what_it_was_left_before_it_takes_writes() {
        let group = Group::start(&[1, 2]).await;
        let (raft, kv) = group.leader().await;
        let room = Room::new(1000);
        room.settle(raft, WITHIN).await.unwrap();
        group.cut();
        // In this term nothing is left: no majority is asked again.
        room.settle(raft, WITHIN).await.unwrap();
        let proposed = raft.propose(put(1, 100).encode());
        assert!(timeout(Duration::from_millis(1), proposed).await.is_err());
        let before = raft.status().borrow().clone();
        assert!(before.commit < before.last && kv.read().stored_bytes() == 0);
        let mut status = raft.status();
        status.wait_for(|status| status.leader.is_none()).await.unwrap();
        let gate = group.gate.acquire().await.unwrap();
        group.network.heal();
        // Only this node can lead: the other one has less in its log.
        let leads = |it: &Status| it.leader == Some(before.id) && it.term > before.term;
        status.wait_for(leads).await.unwrap();
        let early = timeout(Duration::from_secs(1), room.settle(raft, WITHIN)).await;
        assert!(early.is_err() && kv.read().stored_bytes() == 0, "{early:?}");
        drop(gate);
        room.settle(raft, WITHIN).await.unwrap();
        assert_eq!(kv.read().stored_bytes(), 120);
    }
}
