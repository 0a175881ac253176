//! A node: a journal on disk, raft over it, and the state that it replicates.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use voussoir_journal::{Config as JournalConfig, Journal};
use voussoir_raft::journal::{Identity, JournalStore};
use voussoir_raft::{Config, LogStore, Raft, ReadError, Transport};

use crate::counters::{Machine, State};

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The ids of all nodes.
pub const NODES: [u64; 3] = [1, 2, 3];

/// Names the owner of a folder, so that a node never starts from another one's data. Draw a
/// cluster number of your own.
fn identity(id: u64) -> Identity {
    Identity { cluster: 0x0c0a_57e1_2f63_4d0b, node: id, group: 0 }
}

/// Creates the data of a node that has never run: once for each node, when the cluster is set up.
pub fn create(id: u64, folder: &Path) -> Result<(), Error> {
    let journal = Journal::open(folder, JournalConfig::default())?;
    JournalStore::create(&journal, identity(id))?;
    journal.close()?;
    Ok(())
}

/// Opens the data of a node that was created before. An empty folder is refused: its disk was
/// lost, and what it has voted for and acknowledged with it.
pub fn open(id: u64, folder: &Path) -> Result<(Journal, JournalStore), Error> {
    let journal = Journal::open(folder, JournalConfig::default())?;
    let log = JournalStore::open(&journal, identity(id))?;
    Ok((journal, log))
}

/// A running node. Clones are the same node.
#[derive(Clone)]
pub struct Node {
    pub raft: Raft,
    pub state: Arc<Mutex<State>>,
}

impl Node {
    pub async fn start(
        config: Config,
        log: Arc<dyn LogStore>,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, Error> {
        let state = Arc::new(Mutex::new(State::default()));
        let machine = Box::new(Machine { state: Arc::clone(&state) });
        let raft = Raft::start(config, log, machine, transport).await?;
        Ok(Self { raft, state })
    }

    /// The value of a counter. Linearizable, on every node: it shows each addition that was
    /// acknowledged anywhere before this call.
    pub async fn value(&self, name: &str) -> Result<i64, ReadError> {
        self.raft.read(Instant::now() + Duration::from_secs(2)).await?;
        Ok(self.state.lock().counters.get(name).copied().unwrap_or(0))
    }
}

/// The configuration of node `id`.
pub fn config(id: u64) -> Config {
    let mut config = Config::new(id, NODES);
    // Small, to see snapshots soon. The defaults are 100,000 and 10,000.
    config.snapshot_after_entries = 500;
    config.keep_entries = 100;
    config
}
