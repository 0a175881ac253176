//! The parts of a world that know nothing of the nodes in it.

pub(crate) mod clock;
pub(crate) mod links;
pub(crate) mod queue;
pub(crate) mod trace;
