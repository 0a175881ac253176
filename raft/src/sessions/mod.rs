//! Exactly-once proposals: a state machine around the user's, which remembers answers.
//!
//! Source: Raft thesis §6.3. It stands around the machine and not in the core: the rule depends on
//! nothing but the commands and their order, and who does not need it pays nothing.

mod client;
mod table;
mod wire;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use client::{Session, SessionError};
pub use wire::{SessionAnswer, SessionLimits};

use self::table::{Found, Table};
use self::wire::Request;
use crate::machine::{Chunks, Command, MachineError, StateMachine};
use crate::store::MAX_CHUNK_BYTES;

/// Version of the first chunk of a snapshot.
const VERSION: u8 = 1;
/// Bytes before the table in the first chunk of a snapshot.
const HEAD: usize = 9;

/// Applies each command of a [`Session`] once, however often it is proposed, and answers every
/// repetition with the first answer.
///
/// Sessions and answers are replicated state: they follow from the log alone, are part of each
/// snapshot, and are bounded by the [`SessionLimits`] that stand in the log. At the limit of
/// sessions the least recently used one expires. Its commands are never applied afterwards: a
/// retry is told [`SessionAnswer::Expired`].
///
/// Every command of the group must come from a [`Session`] or from [`Session::plain`]; any other
/// one is answered [`SessionAnswer::Malformed`]. A group that has applied commands without this
/// wrapper cannot be given it later.
///
/// # Example
/// ```
/// # use voussoir_raft::{
/// #     Bytes, Chunks, Command, MachineError, SessionAnswer, Session, SessionLimits, Sessions,
/// #     StateMachine, WholeSnapshot, async_trait,
/// # };
/// # struct Count(u64);
/// # #[async_trait]
/// # impl StateMachine for Count {
/// #     async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
/// #         let count = |_| { self.0 += 1; Bytes::from(self.0.to_string()) };
/// #         Ok(commands.iter().map(count).collect())
/// #     }
/// #     async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
/// #         Ok(Box::new(WholeSnapshot::new(self.0.to_string())))
/// #     }
/// #     async fn restore(&mut self, _: &mut dyn Chunks) -> Result<(), MachineError> { Ok(()) }
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// # use voussoir_raft::{Config, Raft, memory::{MemoryStore, Network}};
/// # let (config, log) = (Config::new(1, [1]), std::sync::Arc::new(MemoryStore::new()));
/// let machine = Box::new(Sessions::new(Count(0)));
/// let raft = Raft::start(config, log, machine, Network::new().node(1)).await?;
/// raft.status().wait_for(|status| status.leader.is_some()).await?;
/// let opened = raft.propose(Session::open(SessionLimits::default())).await?;
/// let mut session = Session::opened(opened)?;
/// let (number, command) = session.command(b"up");
/// let first = raft.propose(command.clone()).await?;
/// // Suppose that this answer was lost: the same bytes again, at whichever node leads.
/// let again = raft.propose(command).await?;
/// assert_eq!(SessionAnswer::decode(first)?, SessionAnswer::Applied("1".into()));
/// assert_eq!(SessionAnswer::decode(again)?, SessionAnswer::Applied("1".into()));
/// session.answered(number);
/// # raft.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
#[derive(Debug)]
pub struct Sessions<M> {
    inner: M,
    table: Table,
}

/// Who waits for the answer of a command that is handed to the inner machine next.
#[derive(Debug)]
struct Fresh {
    /// Place among the answers of the whole batch.
    at: usize,
    /// The session and the number; `None` for a plain command.
    of: Option<(u64, u64)>,
}

/// The commands of a batch that are handed to the inner machine together.
#[derive(Debug, Default)]
struct Run {
    commands: Vec<Command>,
    fresh: Vec<Fresh>,
}

impl<M: StateMachine> Sessions<M> {
    /// Wraps a machine that has applied nothing yet.
    pub fn new(inner: M) -> Self {
        Self { inner, table: Table::default() }
    }

    /// The wrapped machine.
    pub fn inner(&self) -> &M {
        &self.inner
    }

    /// How many sessions there are. At most [`SessionLimits::max_sessions`] as the latest session
    /// was opened with.
    pub fn sessions(&self) -> usize {
        self.table.len()
    }

    /// Applies what is collected, so that the table knows the answers.
    async fn flush(&mut self, run: &mut Run, answers: &mut [Bytes]) -> Result<(), MachineError> {
        let Run { commands, fresh } = std::mem::take(run);
        if commands.is_empty() {
            return Ok(());
        }
        let got = self.inner.apply(&commands).await?;
        if got.len() != commands.len() {
            return Err(format!("{} answers to {} commands", got.len(), commands.len()).into());
        }
        for (Fresh { at, of }, answer) in fresh.into_iter().zip(got) {
            if let Some((session, number)) = of {
                self.table.store(session, number, answer.clone());
            }
            answers[at] = SessionAnswer::Applied(answer).encode();
        }
        Ok(())
    }

    /// Takes one command: answers it, or adds it to `run`.
    async fn take(
        &mut self,
        command: &Command,
        at: usize,
        run: &mut Run,
        answers: &mut [Bytes],
    ) -> Result<(), MachineError> {
        let Command { index, data } = command;
        match Request::decode(data.clone()) {
            Some(Request::Plain(data)) => {
                run.commands.push(Command { index: *index, data });
                run.fresh.push(Fresh { at, of: None });
            }
            Some(Request::Open(limits)) => {
                // A session that expires loses answers that are being made.
                self.flush(run, answers).await?;
                self.table.open(*index, limits);
                answers[at] = SessionAnswer::Opened(*index).encode();
            }
            Some(Request::Close(session)) => {
                self.flush(run, answers).await?;
                let closed = self.table.close(session);
                answers[at] =
                    if closed { SessionAnswer::Closed } else { SessionAnswer::Expired }.encode();
            }
            Some(Request::Command { session, number, first_pending, data }) => {
                // The table must know each answer before one is looked up or forgotten: then what
                // it holds does not depend on how the commands were cut into batches.
                if self.table.needs_answers(session, number, first_pending) {
                    self.flush(run, answers).await?;
                }
                match self.table.look_up(session, number, first_pending, *index) {
                    Found::Fresh => {
                        run.commands.push(Command { index: *index, data });
                        run.fresh.push(Fresh { at, of: Some((session, number)) });
                    }
                    Found::Answer(answer) => answers[at] = answer.encode(),
                }
            }
            None => answers[at] = SessionAnswer::Malformed.encode(),
        }
        Ok(())
    }
}

#[async_trait]
impl<M: StateMachine> StateMachine for Sessions<M> {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        let mut answers = vec![Bytes::new(); commands.len()];
        let mut run = Run::default();
        for (at, command) in commands.iter().enumerate() {
            self.take(command, at, &mut run, &mut answers).await?;
        }
        self.flush(&mut run, &mut answers).await?;
        Ok(answers)
    }

    fn is_quick(&self) -> bool {
        self.inner.is_quick()
    }

    /// Copies the table, which takes time in proportion to the answers that it holds.
    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let table = self.table.encode();
        let mut bytes = BytesMut::with_capacity(HEAD + table.len());
        bytes.put_u8(VERSION);
        bytes.put_u64_le(table.len() as u64);
        bytes.put_slice(&table);
        let inner = self.inner.snapshot().await?;
        Ok(Box::new(Both { table: bytes.freeze(), inner }))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let mut bytes = chunks.next().await?.ok_or("a snapshot of sessions is empty")?;
        if bytes.len() < HEAD || bytes.get_u8() != VERSION {
            return Err("the snapshot is none of `Sessions`, or of a later version".into());
        }
        let whole = bytes.get_u64_le();
        let mut table = BytesMut::from(&bytes[..]);
        // Ends: each chunk has at least one byte, and the snapshot has an end.
        while (table.len() as u64) < whole {
            let chunk = chunks.next().await?.ok_or("a snapshot of sessions is cut short")?;
            table.extend_from_slice(&chunk);
        }
        if table.len() as u64 > whole {
            return Err("a snapshot of sessions has other chunks than it was taken with".into());
        }
        let table = Table::decode(table.freeze()).ok_or("a snapshot of sessions is damaged")?;
        self.inner.restore(chunks).await?;
        self.table = table;
        Ok(())
    }
}

/// The chunks of the table, and then those of the inner machine.
struct Both {
    table: Bytes,
    inner: Box<dyn Chunks>,
}

#[async_trait]
impl Chunks for Both {
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        if self.table.is_empty() {
            return self.inner.next().await;
        }
        let len = self.table.len().min(MAX_CHUNK_BYTES);
        Ok(Some(self.table.split_to(len)))
    }
}
