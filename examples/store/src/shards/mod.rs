//! The store in shards: `store serve --shards 16`. Each shard is a raft group; a node hosts its
//! part of all of them on one [`Node`](voussoir_raft::Node), one journal and one transport.
//!
//! | file | what it is |
//! |---|---|
//! | `place.rs` | where a key stands: by its hash, or in order |
//! | `map.rs` | the shard map: which ranges there are, who holds them, and the changes of it |
//! | `shard.rs`, `command.rs`, `clients.rs` | the state of one shard, its commands, and the last request of each client |
//! | `machine.rs` | the state machines of raft: the map in group 0, a shard in each other group |
//! | `host.rs`, `node.rs` | the groups of a node, and what they share |
//! | `reconcile.rs`, `map_group.rs`, `state.rs` | makes it as the map says, and asks shards what is so |
//! | `hand_over.rs` | when a shard goes to its preferred leader |
//! | `fill.rs` | the copy of a split |
//! | `http.rs` | the routes |
//! | `router.rs` | a client that caches the map |
//! | `load.rs`, `plan.rs`, `admin.rs` | what is hot, which replicas move to a new node, and the commands of the operator |
//!
//! # The map
//! Group 0 replicates the map; all nodes have a copy, the first ones as voters and those that are
//! added as learners. Changes are commands of that group. The map says what is to be: a shard's
//! leader reads from it who is to hold the shard, and makes it so. No other message starts a move
//! or a split, and none can be lost.
//!
//! # Who answers
//! What the map says is a hint to clients. Whether a shard has a key is decided in the shard's own
//! log, when the command is applied: by the range that the shard owns at that index, and by the
//! epoch that the request names, which changes with the range. A read asks its group for the
//! read index first, and then the same state.
//!
//! # A move
//! The map names another node; that node creates an empty replica, and the shard's leader calls
//! [`Raft::replace`](voussoir_raft::Raft::replace): the new node learns, gets its vote when it has
//! caught up, and the old one leaves, which deletes its replica. Members that the newest map does
//! not name, left over from a change that was withdrawn or came late, are taken out too. A replica
//! never comes back to a node that had it, because an empty one could vote twice in a term; the map
//! refuses that.
//!
//! # A split
//! Freeze, copy, switch, each a command in a log:
//! 1. The map names the place, a new group and its nodes (`Change::Split`). The nodes start it.
//! 2. Its leader asks the old shard, whose log takes a `Seal`: from that index on the old shard
//!    owns nothing behind the place. What it held there is set aside and never changes again.
//! 3. The new group takes the pairs through its own log, and then `Open` with their number.
//! 4. The map says so (`Change::Opened`), and the old shard forgets what it set aside. Both
//!    ask the new shard first: group 0's leader before it proposes, the old shard's before it
//!    forgets.
//!
//! Until the seal a split is taken back by `Change::Abort`: the old log takes a `Bar`, after
//! which it refuses the seal, and the map forgets the new shard (`Change::Aborted`).
//!
//! At each index exactly one group owns a place, or none between the seal and `Open`: a write that
//! was acknowledged before the seal is among the pairs, and none is acknowledged again before all
//! of them have come. Requests of that time get 421 or 503, and routers wait. The rejected
//! alternative forks the state in the old group's log and starts the new one on the same nodes from
//! it, without a copy. It needs a group that begins with a snapshot, which [`LogStore`] does not
//! offer, and its halves stay on the same nodes until replicas have moved; the copy puts the new
//! shard where it is to be. The price is the pause, which grows with the part that moves.
//!
//! [`LogStore`]: voussoir_raft::LogStore
//!
//! # Requests that are sent again
//! A client numbers its requests. Each shard remembers the last one of each client, and a split
//! copies that with the pairs: a write that was applied before the seal is answered, and not
//! applied again, by the shard that has the key now.
//!
//! # What it does not do
//! Shards are not merged. A listing over shards would not be one moment, so there is none. Group 0
//! takes 16 learners, so there are at most 19 nodes.

pub mod admin;
pub mod cli;
pub mod clients;
pub mod command;
mod fill;
mod hand_over;
pub mod host;
pub mod http;
pub mod load;
pub mod machine;
pub mod map;
mod map_group;
pub mod node;
pub mod place;
pub mod plan;
mod reconcile;
pub mod router;
pub mod shard;
mod state;
