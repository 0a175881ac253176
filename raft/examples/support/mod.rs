//! What the examples that measure have in common.

use std::error::Error;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use voussoir_journal::Journal;
use voussoir_raft::journal::{Identity, JournalStore};
use voussoir_raft::{Chunks, Command, MachineError, StateMachine, WholeSnapshot};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Counts.
pub(crate) struct Counter(pub(crate) u64);

#[async_trait]
impl StateMachine for Counter {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        self.0 += commands.len() as u64;
        Ok(vec![Bytes::new(); commands.len()])
    }

    fn is_quick(&self) -> bool {
        true
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        Ok(Box::new(WholeSnapshot::new(self.0.to_le_bytes().to_vec())))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let state = WholeSnapshot::collect(chunks).await?;
        self.0 = u64::from_le_bytes(state.as_ref().try_into()?);
        Ok(())
    }
}

/// The store of a node, which is made if there is none.
pub(crate) fn open_or_create(journal: &Journal, node: u64) -> Result<JournalStore, Failure> {
    let identity = Identity { cluster: 1, node, group: 0 };
    match JournalStore::open(journal, identity) {
        Ok(store) => Ok(store),
        Err(_) => Ok(JournalStore::create(journal, identity)?),
    }
}

/// A thread with a runtime; both end when this is dropped.
pub(crate) struct Lane {
    pub(crate) handle: Handle,
    end: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Lane {
    pub(crate) fn new() -> Result<Self, Failure> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let ((end, told), (gone, ended)) = (oneshot::channel::<()>(), oneshot::channel());
        std::thread::spawn(move || {
            // An error is the end of the sender, which is what is waited for.
            let _ = runtime.block_on(told);
            drop(runtime);
            drop(gone);
        });
        Ok(Self { handle, end, ended })
    }

    /// Ends it between two polls of what runs there, and waits for that.
    pub(crate) async fn end(self) {
        drop(self.end);
        // An error says that its thread has ended.
        let _ = self.ended.await;
    }
}

/// A folder for journals, which goes with this.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("voussoir-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left is in the system's folder for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
