//! What a deposed leader still holds is bounded.

mod common;

use common::{Lab, Letter};
use voussoir_raft::core::Output;
use voussoir_raft::{Message, ProposeRejected};

fn appends(letter: &Letter) -> bool {
    matches!(letter.message, Message::Append { .. })
}

#[test]
fn runs_of_undecided_proposals_are_bounded_across_leaderships() {
    let mut lab = Lab::with(3, |config| config.max_undecided = 3);
    lab.elect_without(1, appends);
    // Tokens that do not follow each other: each is a run.
    lab.propose(1, 10, "a");
    lab.propose(1, 20, "b");
    lab.elect_without(2, appends);
    lab.elect_without(1, appends);
    lab.propose(1, 30, "c");
    lab.propose(1, 40, "d");
    let refused = |output: &Output| matches!(output, Output::Rejected { .. });
    let busy = Output::Rejected { token: 40, reason: ProposeRejected::Busy };
    assert_eq!(lab.seen(1, refused), [busy], "two runs of its first leadership, one of this");

    lab.run(1_000_000_000);
    assert_eq!(lab.commands(3), ["a", "b", "c"], "what was held has been decided");
    lab.propose(1, 50, "e");
    lab.run(1_000_000_000);
    assert_eq!(lab.commands(3), ["a", "b", "c", "e"]);
    assert_eq!(lab.seen(1, refused).len(), 1);
}
