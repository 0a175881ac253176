//! A machine whose snapshots betray a chunk that does not belong.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use voussoir_raft::{Chunks, Command, MachineError, StateMachine};

/// Bytes before the piece of state in each chunk.
const HEAD_BYTES: usize = 24;

/// Lists the numbers that were applied, in order.
#[derive(Clone)]
pub(crate) struct Lister {
    pub(crate) node: u64,
    /// How much of the state goes into one chunk; differs between nodes.
    pub(crate) piece_bytes: usize,
    pub(crate) list: Arc<Mutex<Vec<u64>>>,
    pub(crate) restored: Arc<Mutex<u64>>,
    /// What was given to `restore` and is no snapshot.
    pub(crate) objections: Arc<Mutex<Vec<String>>>,
}

struct Pieces(Vec<Bytes>);

#[async_trait]
impl Chunks for Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        Ok(self.0.pop())
    }
}

/// A command: a number, and ballast that makes snapshots long.
pub(crate) fn command(number: u64) -> Bytes {
    let mut data = BytesMut::with_capacity(64);
    data.put_u64_le(number);
    data.put_bytes(0, 56);
    data.freeze()
}

#[async_trait]
impl StateMachine for Lister {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        let mut list = self.list.lock();
        for command in commands {
            list.push(command.data.clone().try_get_u64_le()?);
        }
        Ok(vec![Bytes::new(); commands.len()])
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let mut pieces = pieces(self.node, self.piece_bytes, &self.list.lock());
        pieces.reverse();
        Ok(Box::new(Pieces(pieces)))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let mut all = Vec::new();
        while let Some(chunk) = chunks.next().await? {
            all.push(chunk);
        }
        match joined(all) {
            Ok(list) => {
                *self.list.lock() = list;
                *self.restored.lock() += 1;
                Ok(())
            }
            Err(error) => {
                self.objections.lock().push(error.clone());
                Err(error.into())
            }
        }
    }
}

/// The chunks of a node's snapshot of a list.
pub(crate) fn pieces(node: u64, piece_bytes: usize, list: &[u64]) -> Vec<Bytes> {
    let mut state = BytesMut::new();
    for number in list {
        state.put(command(*number));
    }
    let pieces: Vec<&[u8]> = state.chunks(piece_bytes).collect();
    let total = pieces.len() as u32;
    let chunk = |(number, piece): (usize, &&[u8])| {
        let mut chunk = BytesMut::with_capacity(HEAD_BYTES + piece.len());
        chunk.put_u64_le(node);
        chunk.put_u64_le(list.len() as u64);
        chunk.put_u32_le(number as u32);
        chunk.put_u32_le(total);
        chunk.put_slice(piece);
        chunk.freeze()
    };
    pieces.iter().enumerate().map(chunk).collect()
}

/// The list that the chunks of one snapshot, all of them and in order, stand for.
pub(crate) fn joined(chunks: Vec<Bytes>) -> Result<Vec<u64>, String> {
    let (mut first, mut state) = (None, BytesMut::new());
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
        state.put(chunk);
    }
    let mut list = Vec::new();
    while state.len() >= command(0).len() {
        list.push(state.get_u64_le());
        state.advance(command(0).len() - 8);
    }
    if list.len() as u64 == first.map_or(0, |(_, len)| len) {
        Ok(list)
    } else {
        Err(format!("{} entries of {first:?}", list.len()))
    }
}
