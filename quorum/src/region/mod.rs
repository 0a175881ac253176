//! Regions: replica sets far from each other that take writes independently and tell each other.
//!
//! Each region is a replica set with its own nodes, membership and quorums, so that an operation at
//! LOCAL_QUORUM waits for no other region. What a region has written is shipped to the others
//! after it was acknowledged, and merged there: values keep the dots of their writes, so that
//! writes of two regions that have not seen each other are siblings, for a CRDT or a resolver to
//! merge, and what one has replaced or deleted is replaced or deleted in all.
//!
//! - **Shipping.** The replica that has given a write its dot puts the key into an [`Outbox`] for
//!   each other region. What is shipped is the state that the key has by then: the order does not
//!   matter, a repetition changes nothing, and ten writes of a key while a region is away are one
//!   state. The receiver merges it into a write quorum of its region before it answers.
//! - **No loops.** Only writes enter an outbox. What was merged, from a region, a repair or a hint,
//!   never does: each region sends its own writes to each other one.
//! - **Catching up.** An outbox keeps keys, bounded by [`RegionConfig::max_pending_keys`]. Beyond
//!   that, after a restart, and once in [`RegionConfig::compare_every`], a node compares its Merkle
//!   tree with one of the other region, and repairs what differs in both.
//! - **Tombstones** are dropped only when every replica of every region holds them: see
//!   [`Region::collect_tombstones`]. While a region is away they stay, and their number grows with
//!   the deletes. A region that is to stay away is taken out by a map with the next
//!   [`RegionConfig::epoch`]; it is heard no more, and comes back empty or not at all.
//!
//! A node whose configuration has regions keeps that in its store, collects no tombstone by its own
//! region alone, and is refused without them.

mod collect;
mod compare;
mod config;
mod floors;
mod handle;
mod informed;
mod outbox;
pub(crate) mod record;
mod ship;
mod stats;
mod table;
mod wire;

pub(crate) use self::handle::Feed;

pub use self::collect::RegionCollectError;
pub use self::config::{RegionConfig, RegionMember};
pub use self::handle::Region;
pub use self::outbox::{Fate, Outbox};
pub use self::record::MapError;
pub use self::stats::{PeerState, RegionStats};
pub use self::table::{Reach, RegionError, RegionTable};
