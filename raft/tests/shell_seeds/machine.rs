//! The state machine: keys and values, slow or stuck on demand, with snapshots that betray a
//! chunk that does not belong.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::time::sleep;
use voussoir_raft::testing::sim::Machine;
use voussoir_raft::{Chunks, Command, Entry, MachineError, StateMachine};
use voussoir_sim::{KvOp, KvRet};

use super::gate::Gate;
use super::notes::Notes;

/// Bytes before the piece of state in each chunk.
const HEAD_BYTES: usize = 24;

/// What all machines of one run have to agree on.
#[derive(Default)]
pub(crate) struct Truth {
    /// The digest of each command that some machine has applied.
    commands: Mutex<BTreeMap<u64, u64>>,
    /// The weight of the entry that was last written at each index.
    weights: Mutex<BTreeMap<u64, u64>>,
    /// Node and next index of each message that asked a follower behind for its log's end.
    probes: Mutex<BTreeSet<(u64, u64)>>,
}

impl Truth {
    /// The last command at or before `index` that some machine has applied; 0 without one.
    pub(crate) fn last_command(&self, index: u64) -> u64 {
        self.commands.lock().range(..=index).next_back().map_or(0, |(index, _)| *index)
    }

    pub(crate) fn weigh(&self, entries: &[Entry]) {
        let mut weights = self.weights.lock();
        weights.extend(entries.iter().map(|entry| (entry.index, entry.weight())));
    }

    /// The weight of the entries after `from` and up to `upto`, in bytes.
    pub(crate) fn weight(&self, from: u64, upto: u64) -> u64 {
        if from >= upto {
            return 0;
        }
        self.weights.lock().range(from + 1..=upto).map(|(_, weight)| weight).sum()
    }

    /// `leader` has sent a probe without entries whose next index is `next`.
    pub(crate) fn probed(&self, leader: u64, next: u64) {
        self.probes.lock().insert((leader, next));
    }

    pub(crate) fn was_probed(&self, leader: u64, next: u64) -> bool {
        self.probes.lock().contains(&(leader, next))
    }
}

/// How fast a machine works.
#[derive(Default)]
pub(crate) struct Pace {
    /// Shut while the machine is stuck.
    pub(crate) gate: Gate,
    /// Time for each batch, in ms.
    pub(crate) slow_ms: AtomicU64,
}

impl Pace {
    async fn wait(&self) {
        let ms = self.slow_ms.load(Ordering::Relaxed);
        if ms > 0 {
            sleep(Duration::from_millis(ms)).await;
        }
        self.gate.pass().await;
    }
}

/// What a machine holds.
#[derive(Clone, Default)]
pub(crate) struct State {
    pub(crate) values: Machine,
    /// The last command that it includes.
    pub(crate) applied: u64,
}

pub(crate) struct Replica {
    pub(crate) node: u64,
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) pace: Arc<Pace>,
    pub(crate) truth: Arc<Truth>,
    pub(crate) notes: Arc<Notes>,
    pub(crate) quick: bool,
    pub(crate) chunk_bytes: usize,
    pub(crate) filler_bytes: usize,
}

/// The command for a write, filled up to `bytes`.
pub(crate) fn command(op: &KvOp<u64, u64>, bytes: usize) -> Vec<u8> {
    let mut data = Machine::encode(op).expect("an operation that writes").to_vec();
    data.resize(bytes.max(data.len()), 0xab);
    data
}

/// The answer that a machine gave.
pub(crate) fn answer(mut data: Bytes) -> Option<KvRet<u64>> {
    match data.try_get_u8().ok()? {
        0 => Some(KvRet::Done),
        1 => Some(KvRet::Applied(false)),
        2 => Some(KvRet::Applied(true)),
        _ => None,
    }
}

fn digest(command: &Command) -> u64 {
    let mut hasher = DefaultHasher::new();
    command.data.hash(&mut hasher);
    hasher.finish()
}

impl Replica {
    fn object(&self, text: &str) {
        self.notes.object(format!("the machine of node {}: {text}", self.node));
    }

    fn apply_one(&self, command: &Command) -> Bytes {
        let mut state = self.state.lock();
        if command.index <= state.applied {
            self.object(&format!("{} is applied after {}", command.index, state.applied));
        }
        let missed = self.truth.last_command(command.index - 1);
        if missed > state.applied {
            self.object(&format!("{} is applied without {missed}", command.index));
        }
        let digest = digest(command);
        if *self.truth.commands.lock().entry(command.index).or_insert(digest) != digest {
            self.object(&format!("another command {} was applied elsewhere", command.index));
        }
        state.applied = command.index;
        let code = match state.values.apply(command.data.clone()) {
            Some(KvRet::Done) => 0,
            Some(KvRet::Applied(done)) => 1 + u8::from(done),
            _ => {
                self.object("it was given what is no command");
                0
            }
        };
        Bytes::from(vec![code])
    }

    /// The bytes of a snapshot: the state, and what follows from its index.
    fn encode(&self, state: &State) -> Bytes {
        let values = state.values.snapshot();
        let mut out = BytesMut::new();
        out.put_u32_le(values.len() as u32);
        out.put(values);
        out.put_bytes(state.applied as u8, self.filler_bytes);
        out.freeze()
    }
}

#[async_trait]
impl StateMachine for Replica {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        self.pace.wait().await;
        Ok(commands.iter().map(|command| self.apply_one(command)).collect())
    }

    fn is_quick(&self) -> bool {
        self.quick
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let state = self.state.lock().clone();
        let whole = self.encode(&state);
        let pieces: Vec<&[u8]> = whole.chunks(self.chunk_bytes).collect();
        let total = pieces.len() as u32;
        let chunk = |(number, piece): (usize, &&[u8])| {
            let mut chunk = BytesMut::with_capacity(HEAD_BYTES + piece.len());
            chunk.put_u64_le(self.node);
            chunk.put_u64_le(state.applied);
            chunk.put_u32_le(number as u32);
            chunk.put_u32_le(total);
            chunk.put_slice(piece);
            chunk.freeze()
        };
        let mut pieces: Vec<Bytes> = pieces.iter().enumerate().map(chunk).collect();
        pieces.reverse();
        Ok(Box::new(Pieces(pieces)))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let mut all = Vec::new();
        while let Some(chunk) = chunks.next().await? {
            all.push(chunk);
        }
        self.pace.wait().await;
        match joined(all) {
            Ok(state) => {
                let mut held = self.state.lock();
                if state.applied < held.applied {
                    self.object(&format!("{} replaces {}", state.applied, held.applied));
                }
                *held = state;
            }
            Err(error) => self.object(&error),
        }
        Ok(())
    }
}

struct Pieces(Vec<Bytes>);

#[async_trait]
impl Chunks for Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        Ok(self.0.pop())
    }
}

/// The state that the chunks of one snapshot, all of them and in order, stand for.
fn joined(chunks: Vec<Bytes>) -> Result<State, String> {
    let (mut first, mut whole) = (None, BytesMut::new());
    let count = chunks.len();
    for (at, mut chunk) in chunks.into_iter().enumerate() {
        if chunk.len() < HEAD_BYTES {
            return Err(format!("chunk {at} is cut"));
        }
        let whose = (chunk.get_u64_le(), chunk.get_u64_le());
        let (number, total) = (chunk.get_u32_le() as usize, chunk.get_u32_le() as usize);
        let first = *first.get_or_insert(whose);
        if first != whose || number != at || total != count {
            return Err(format!(
                "chunk {number} of {total} of {whose:?} stands at {at} of {count} of {first:?}"
            ));
        }
        whole.put(chunk);
    }
    let (_, applied) = first.ok_or("a snapshot without chunks")?;
    let mut whole = whole.freeze();
    let len = whole.get_u32_le() as usize;
    if len > whole.len() {
        return Err("a snapshot is cut".to_owned());
    }
    let values = Machine::restore(whole.split_to(len));
    if whole.iter().any(|byte| *byte != applied as u8) {
        return Err("a snapshot ends with another one's bytes".to_owned());
    }
    Ok(State { values, applied })
}
