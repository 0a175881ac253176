//! The decisions of a coordinator in a group of three or more processes: whichever leads the group
//! runs the coordinator, and another takes over when it is killed, paused or cut off.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use voussoir_journal::Journal;
use voussoir_net::{Peers, Tcp};
use voussoir_raft::journal::{Identity, JournalStore, OpenError};
use voussoir_raft::net::NetTransport;
use voussoir_raft::{Config, Raft, Role};
use voussoir_txn::two_phase::OpenCoordinatorError;
use voussoir_txn::two_phase::raft::{DecisionMachine, Decisions, RaftLog};

use crate::Error;
use crate::args::{CreateNode, Member};
use crate::transfers::Transfers;

/// Keeps the processes of one group from talking to those of another. **Choose your own.**
const CLUSTER: u128 = 0x766f_7573_736f_6972_2074_7261_6e73_0001;
/// The number under which messages of raft travel, the same in every process.
const RAFT_SERVICE: u16 = 1;
/// Bytes of one file of the journal.
const SEGMENT_BYTES: u64 = 4 << 20;
/// Time between two attempts to open the coordinator on a node that leads.
const OPEN_PAUSE: Duration = Duration::from_millis(100);
/// How long the process waits at its end for its peers to take queued messages.
const GOODBYE: Duration = Duration::from_secs(1);

/// The limit for the next coordinator, counted from the moment when the one before was killed: the
/// longest silence of a leader, twice for a vote that is split, and one attempt to open.
#[cfg(feature = "demo")]
pub(crate) fn takeover_bound() -> Duration {
    2 * Config::new(1, [1]).max_election_timeout + OPEN_PAUSE + Duration::from_secs(1)
}

/// The member of a group that this process is.
pub(crate) struct Group {
    raft: Raft,
    decisions: Decisions,
    tcp: Tcp,
    journal: Journal,
}

fn identity(node: u64) -> Identity {
    Identity { cluster: CLUSTER, node, group: 0 }
}

fn open_journal(data: &Path) -> Result<Journal, Error> {
    let mut config = voussoir_journal::Config::default();
    config.segment_bytes = SEGMENT_BYTES;
    let opened = Journal::open(data, config);
    Ok(opened.map_err(|error| format!("{}: {error}", data.display()))?)
}

/// Creates the data of a member that has never run. [`Group::join`] never does: it cannot tell a
/// new member from one whose disk was lost, and which may have voted.
///
/// # Errors
/// The folder cannot be used, or a member was created in it before.
pub(crate) fn create(create: &CreateNode) -> Result<(), Error> {
    let shown = create.data.display();
    let journal = open_journal(&create.data)?;
    JournalStore::create(&journal, identity(create.node)).map_err(|error| match error {
        OpenError::Exists { .. } => {
            format!("{shown}: a node was created here before; run it with serve")
        }
        error => format!("{shown}: {error}"),
    })?;
    journal.close()?;
    Ok(())
}

impl Group {
    /// Takes part in the group from now on.
    ///
    /// # Errors
    /// The data were never created, or the address cannot be used.
    pub(crate) async fn join(member: &Member, data: &Path) -> Result<Self, Error> {
        let (Some(node), Some(listen)) = (member.node, member.node_listen) else {
            return Err("a node needs --node and --node-listen".into());
        };
        if !data.is_dir() {
            let shown = data.display();
            return Err(format!("{shown}: no data; create it by create-node first").into());
        }
        let journal = open_journal(data)?;
        let log = JournalStore::open(&journal, identity(node));
        let log = log.map_err(|error| format!("{}: {error}", data.display()))?;
        let addresses = Peers::new();
        for (id, address) in &member.peers {
            addresses.insert(*id, *address);
        }
        let config = voussoir_net::Config::new(CLUSTER);
        let tcp = Tcp::prepare(node, listen, Arc::new(addresses), config).await?;
        let transport = NetTransport::new(Arc::new(tcp.clone()), RAFT_SERVICE)?;
        let nodes: Vec<u64> = member.peers.iter().map(|(id, _)| *id).chain([node]).collect();
        let decisions = Decisions::new();
        let machine = Box::new(DecisionMachine::new(decisions.clone()));
        let config = Config::new(node, nodes);
        let raft = Raft::start(config, Arc::new(log), machine, Arc::new(transport)).await?;
        // Raft takes messages: peers may connect.
        tcp.open();
        Ok(Self { raft, decisions, tcp, journal })
    }

    /// Keeps a coordinator open in `current` while this node leads. `open` opens it over a log.
    ///
    /// # Errors
    /// Raft has stopped for good, or the group belongs to a coordinator of another name.
    pub(crate) async fn coordinate<F: Future<Output = Result<Transfers, OpenCoordinatorError>>>(
        &self,
        current: &watch::Sender<Option<Transfers>>,
        open: impl Fn(RaftLog) -> F,
    ) -> Result<(), Error> {
        let mut status = self.raft.status();
        // Ends: raft stops.
        while status.wait_for(|status| status.role == Role::Leader).await.is_ok() {
            let log = RaftLog::new(self.raft.clone(), self.decisions.clone());
            let transfers = match open(log).await {
                Ok(transfers) => transfers,
                // The group did not answer, or another node leads by now.
                Err(OpenCoordinatorError::Store(error)) => {
                    tracing::warn!(%error, "the coordinator is not open yet");
                    sleep(OPEN_PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let coordinator = transfers.coordinator().clone();
            println!("leads: epoch {}", coordinator.epoch());
            current.send_replace(Some(transfers));
            tokio::select! {
                // An error says that raft has stopped; the loop ends by it.
                _ = status.wait_for(|status| status.role != Role::Leader) => {}
                why = coordinator.closed() => tracing::warn!(%why, "the coordinator has ended"),
            }
            current.send_replace(None);
        }
        let reason = self.raft.stopped();
        Err(reason.map_or("raft has stopped".into(), |why| format!("raft: {why}").into()))
    }

    /// Ends the node: what it has accepted is durable.
    ///
    /// # Errors
    /// The journal cannot be closed.
    pub(crate) async fn leave(self) -> Result<(), Error> {
        self.raft.shutdown().await;
        self.tcp.shutdown(Instant::now() + GOODBYE).await;
        Ok(self.journal.close()?)
    }
}
