//! What every state machine keeps.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::machine::{Chunks, Command, MachineError, StateMachine};
use crate::store::MAX_CHUNK_BYTES;

/// Holds a state machine against [`StateMachine`]'s promises.
///
/// `create` makes a new, empty machine; `commands` are some of its commands, at least two, which
/// should change the state and answer it.
///
/// # Panics
/// Where a promise is broken, saying which.
///
/// # Cancel safety
/// A test that is dropped has tested nothing.
pub async fn state_machine(mut create: impl FnMut() -> Box<dyn StateMachine>, commands: &[Bytes]) {
    assert!(commands.len() >= 2, "at least two commands are needed");
    let commands: Vec<Command> =
        (1..).zip(commands).map(|(index, data)| Command { index, data: data.clone() }).collect();
    let (early, late) = commands.split_at(commands.len() / 2);

    let mut one = create();
    let answers = applied(&mut *one, &commands).await;
    let mut other = create();
    let mut singly = Vec::new();
    for command in &commands {
        singly.extend(applied(&mut *other, std::slice::from_ref(command)).await);
    }
    assert_eq!(answers, singly, "the size of batches must not matter");
    assert_eq!(all(&mut *one).await, all(&mut *other).await, "equal states, equal snapshots");

    let mut first = create();
    applied(&mut *first, early).await;
    let cut = first.snapshot().await.expect("it takes a snapshot");
    let after = applied(&mut *first, late).await;
    let chunks = drained(cut).await;
    let mut second = create();
    applied(&mut *second, &commands).await;
    restored(&mut *second, &chunks).await;
    let again = applied(&mut *second, late).await;
    assert_eq!(after, again, "a snapshot is a cut: what is applied after it is not in it");
    assert_eq!(all(&mut *first).await, all(&mut *second).await, "and nothing before is lost");
}

async fn applied(machine: &mut dyn StateMachine, commands: &[Command]) -> Vec<Bytes> {
    if commands.is_empty() {
        return Vec::new();
    }
    let answers = machine.apply(commands).await.expect("it applies");
    assert_eq!(answers.len(), commands.len(), "one answer for each command");
    answers
}

async fn drained(mut chunks: Box<dyn Chunks>) -> Vec<Bytes> {
    let mut all = Vec::new();
    while let Some(chunk) = chunks.next().await.expect("a chunk") {
        assert!(!chunk.is_empty() && chunk.len() <= MAX_CHUNK_BYTES, "a legal size");
        all.push(chunk);
    }
    all
}

async fn all(machine: &mut dyn StateMachine) -> Vec<u8> {
    let chunks = machine.snapshot().await.expect("it takes a snapshot");
    drained(chunks).await.concat()
}

async fn restored(machine: &mut dyn StateMachine, chunks: &[Bytes]) {
    let mut given = Given { chunks: chunks.iter().cloned().collect() };
    machine.restore(&mut given).await.expect("it restores");
}

struct Given {
    chunks: VecDeque<Bytes>,
}

#[async_trait::async_trait]
impl Chunks for Given {
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        Ok(self.chunks.pop_front())
    }
}
