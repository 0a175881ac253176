//! Schedules that chance finds too seldom. Each says what would be wrong.

use voussoir_raft::Message;
use voussoir_raft::core::{Input, Output};

use super::{Lab, Letter};

type Verdict = Result<(), String>;

/// Figure 8: an entry of an earlier term on a majority may still be overwritten, so it must not
/// count as committed. Source: Raft §5.4.2.
pub(crate) fn figure_8() -> Verdict {
    let mut lab = Lab::with(5, |config| config.max_append_entries = 1);
    // (a) S1 leads, and replicates an entry to S2 only.
    lab.elect(1);
    lab.run(100 * super::MS);
    for other in 3..=5 {
        lab.isolate(other);
    }
    lab.propose(1, 1, "two");
    lab.settle();
    let index = lab.status(1).last;
    // (b) S5 leads a later term with votes of S3 and S4, and keeps its entry to itself.
    lab.crash(1);
    lab.crash(2);
    lab.heal();
    lab.time_out(5);
    lab.settle_without(|letter| matches!(letter.message, Message::Append { .. }));
    lab.crash(5);
    lab.take(|_| true);
    // (c) S1 leads again and replicates its old entry to S3, but nothing of its own term.
    lab.restart(1);
    lab.restart(2);
    lab.elect_without(1, |letter| matches!(letter.message, Message::Append { .. }));
    let own = lab.status(1).last;
    for _ in 0..6 {
        lab.now += 210 * super::MS;
        lab.step(1, Input::Tick);
        for _ in 0..6 {
            for Letter { from, to, mut message } in lab.take(|letter| letter.to != 4) {
                if let Message::Append { entries, .. } = &mut message {
                    entries.retain(|entry| entry.index < own);
                }
                lab.send(from, to, message);
            }
        }
        lab.take(|_| true);
    }
    if lab.status(3).last != index {
        return Err(format!("the schedule is broken: S3 ends at {}", lab.status(3).last));
    }
    if lab.status(1).commit >= index {
        return Err("an entry of an earlier term was committed by counting".to_owned());
    }
    Ok(())
}

/// A leader's entries are acknowledged, then overwritten by another leader; it leads again. The
/// acknowledgement from its first reign must not count in its second. With `restarts` the leader
/// restarts in between, and its second reign uses the session ids of the first one again.
pub(crate) fn stale_ack(restarts: bool) -> Verdict {
    let mut lab = Lab::new(5);
    lab.elect(1);
    lab.run(100 * super::MS);
    (3..=5).for_each(|id| lab.isolate(id));
    (0..9).for_each(|token| lab.propose(1, token, "first reign"));
    // Node 2 acknowledges, but the letters are long on their way.
    lab.deliver(|letter| letter.to == 2);
    let late = lab.take(|letter| letter.to == 1);
    let is_ack = |message: &Message| matches!(message, Message::AppendAck(ack) if ack.matched > 5);
    if !late.iter().any(|letter| is_ack(&letter.message)) {
        return Err(format!("the schedule is broken: {late:?}"));
    }
    // Node 3 leads the others, and overwrites what they do not have.
    lab.heal();
    lab.isolate(1);
    lab.isolate(2);
    lab.elect(3);
    lab.heal();
    lab.run(500 * super::MS);
    if lab.terms(2) != [1, 2] {
        return Err(format!("the schedule is broken: node 2 has {:?}", lab.terms(2)));
    }
    if restarts {
        lab.restart(1);
        lab.run(100 * super::MS);
    }
    // Node 1 leads again. Only node 4 hears of its new entries.
    lab.isolate(3);
    lab.elect(1);
    lab.isolate(2);
    lab.isolate(5);
    let before = lab.status(1).commit;
    (10..30).for_each(|token| lab.propose(1, token, "second reign"));
    lab.settle();
    for letter in late {
        lab.send(letter.from, letter.to, letter.message);
    }
    if lab.status(1).commit > before {
        return Err("an acknowledgement of an earlier term was counted".to_owned());
    }
    Ok(())
}

/// A follower asks for a read index, restarts, and asks again: the answer to its first question
/// must not answer the second.
pub(crate) fn read_nonce() -> Verdict {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.run(100 * super::MS);
    lab.step(2, Input::Read { token: 1 });
    lab.deliver(|letter| matches!(letter.message, Message::ReadRequest(_)));
    lab.settle_without(|letter| matches!(letter.message, Message::ReadReply(_)));
    let late = lab.take(|letter| matches!(letter.message, Message::ReadReply(_)));
    if late.len() != 1 {
        return Err(format!("the schedule is broken: {late:?}"));
    }
    lab.restart(2);
    lab.node_mut(2).seen.clear();
    lab.run(100 * super::MS);
    lab.propose(1, 2, "news");
    lab.settle();
    lab.step(2, Input::Read { token: 2 });
    lab.take(|letter| matches!(letter.message, Message::ReadRequest(_)));
    for letter in late {
        lab.send(letter.from, letter.to, letter.message);
    }
    if !lab.seen(2, |output| matches!(output, Output::ReadReady { .. })).is_empty() {
        return Err("the answer to another life's question was taken".to_owned());
    }
    Ok(())
}
