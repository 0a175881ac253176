//! What a participant keeps of a branch, and what a decision makes of it.

use std::collections::BTreeMap;

use voussoir_txn::two_phase::{Applied, Decision, Gid, Heuristic};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Prepared,
    Committed,
    Aborted,
}

/// Applies a decision to a branch, and tells what a branch that was ended before answers.
pub(crate) fn finish(held: &mut BTreeMap<Gid, Held>, gid: &Gid, decision: Decision) -> Applied {
    match (held.get(gid).copied(), decision) {
        (Some(Held::Prepared), Decision::Commit) => {
            held.insert(gid.clone(), Held::Committed);
            Applied::Done
        }
        (Some(Held::Prepared) | None, Decision::Abort) => {
            held.insert(gid.clone(), Held::Aborted);
            Applied::Done
        }
        (Some(Held::Committed), Decision::Commit) | (Some(Held::Aborted), Decision::Abort) => {
            Applied::Done
        }
        (Some(Held::Aborted) | None, Decision::Commit) => Applied::Heuristic(Heuristic::RolledBack),
        (Some(Held::Committed), Decision::Abort) => Applied::Heuristic(Heuristic::Committed),
    }
}
