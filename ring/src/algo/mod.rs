//! The algorithms, one file each.

mod bounded;
mod jump;
mod maglev;
mod memento;
mod modulo;
mod probe;
mod rendezvous;
mod ring;
mod ring_table;

pub use bounded::{Assignment, Bounded, BoundedStats};
pub use jump::{Jump, jump};
pub use maglev::{MAX_MAGLEV_TABLE, Maglev};
pub use memento::Memento;
pub use modulo::Modulo;
pub use rendezvous::Rendezvous;
pub use ring::HashRing;
pub use ring_table::MAX_POINTS;

use crate::error::BuildError;
use crate::topology::Topology;

pub(crate) fn not_empty(topology: &Topology) -> Result<(), BuildError> {
    if topology.is_empty() { Err(BuildError::NoNodes) } else { Ok(()) }
}

fn equal_weights(topology: &Topology, algorithm: &'static str) -> Result<(), BuildError> {
    if topology.members().weights_equal {
        Ok(())
    } else {
        Err(BuildError::UnequalWeights { algorithm })
    }
}
