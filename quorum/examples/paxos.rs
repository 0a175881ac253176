//! Paxos message by message: the two phases, a duel of proposers, and a change of unknown outcome
//! that is resolved. `cargo run -p voussoir-quorum --example paxos`

use voussoir_quorum::paxos::*;
use voussoir_quorum::version::{Actor, Dot};

const MS: u64 = 1_000_000;

/// Proposers A and B, acceptors 1 to 3, and the messages between them in order of sending.
struct Stage {
    now: u64,
    proposers: Vec<Proposer>,
    acceptors: Vec<Acceptor>,
    counter: u64,
    /// Acceptors that hear nothing, and whether replies are lost.
    cut: Vec<u64>,
    replies_lost: bool,
    /// Whether the latest round trip had no messages.
    is_idle: bool,
}

fn name(proposer: u64) -> char {
    char::from(b'A' + proposer as u8)
}

fn ballot(ballot: Ballot) -> String {
    match ballot {
        Ballot::ZERO => "none".into(),
        Ballot { round, session } => format!("{round}{}", name(session.actor.node)),
    }
}

fn value(state: &State) -> String {
    let text = state.value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned());
    format!("{} at version {}", text.unwrap_or_else(|| "nothing".into()), state.version)
}

fn request_text(request: &Request) -> String {
    match request {
        Request::Prepare { ballot: b } => format!("1a prepare  {}", ballot(*b)),
        Request::Accept { ballot: b, state, next } => {
            format!("2a accept   {}: {} (and promise {})", ballot(*b), value(state), ballot(*next))
        }
    }
}

fn reply_text(reply: &Reply) -> String {
    match reply {
        Reply::Promise { ballot: b, accepted: None } => {
            format!("1b promise  {}, nothing accepted", ballot(*b))
        }
        Reply::Promise { ballot: b, accepted: Some((before, state)) } => {
            format!("1b promise  {}, accepted {}: {}", ballot(*b), ballot(*before), value(state))
        }
        Reply::Accepted { ballot: b } => format!("2b accepted {}", ballot(*b)),
        Reply::Rejected { ballot: b, promised } => {
            format!("   rejected {}: promised {}", ballot(*b), ballot(*promised))
        }
        Reply::NotWhole { ballot: b } => format!("   not whole, to {}", ballot(*b)),
    }
}

impl Stage {
    fn new() -> Self {
        let proposer = |node| {
            let mut config = ProposerConfig::with_acceptors([1, 2, 3]);
            config.seed = Some(node);
            Proposer::new(Dot::new(Actor::new(node, 1), 1), config).expect("it is valid")
        };
        Self {
            now: 0,
            proposers: (0..2).map(proposer).collect(),
            acceptors: (0..3).map(|_| Acceptor::new(Record::EMPTY)).collect(),
            counter: 1,
            cut: Vec::new(),
            replies_lost: false,
            is_idle: false,
        }
    }

    fn propose(&mut self, who: u64, what: &str, change: Change) {
        println!("\n{} begins: {what}", name(who));
        self.counter += 1;
        let dot = Dot::new(Actor::new(who, 1), self.counter);
        let deadline = self.now + 1_000 * MS;
        let proposer = &mut self.proposers[who as usize];
        proposer.propose(self.now, dot, change, deadline).expect("it is idle");
    }

    /// Delivers the messages of one round trip of a proposer. Returns the outcome if there is one.
    fn round_trip(&mut self, who: u64) -> Option<Outcome> {
        let mut sent = Vec::new();
        while let Some(output) = self.proposers[who as usize].poll_output() {
            match output {
                ProposerOutput::Done { outcome } => return Some(self.done(who, outcome)),
                ProposerOutput::Send { to, request } => sent.push((to, request)),
                _ => {}
            }
        }
        self.is_idle = sent.is_empty();
        for (to, request) in sent.into_iter().filter(|(to, _)| !self.cut.contains(to)) {
            println!("  {} -> {to}  {}", name(who), request_text(&request));
            self.acceptors[to as usize - 1].step(AcceptorInput::Request { from: who, request });
            while let Some(output) = self.acceptors[to as usize - 1].poll_output() {
                match output {
                    // A server writes and syncs the record here.
                    AcceptorOutput::Persist { id, .. } => {
                        self.acceptors[to as usize - 1].step(AcceptorInput::Persisted { id });
                    }
                    AcceptorOutput::Reply { reply, .. } if self.replies_lost => {
                        println!("  {to} -x {}  {} (lost)", name(who), reply_text(&reply));
                    }
                    AcceptorOutput::Reply { reply, .. } => {
                        println!("  {to} -> {}  {}", name(who), reply_text(&reply));
                        let input = ProposerInput::Reply { from: to, reply };
                        self.proposers[who as usize].step(self.now, input);
                    }
                }
            }
        }
        None
    }

    /// Runs a proposer until its change ends.
    fn finish(&mut self, who: u64) -> Outcome {
        // Ends: the change has a deadline, and each turn without messages moves time to the next.
        loop {
            if let Some(outcome) = self.round_trip(who) {
                return outcome;
            }
            let proposer = &mut self.proposers[who as usize];
            if let Some(due) = proposer.next_deadline().filter(|_| self.is_idle) {
                self.now = self.now.max(due);
                proposer.step(self.now, ProposerInput::Time);
            }
        }
    }

    fn done(&self, who: u64, outcome: Outcome) -> Outcome {
        println!("  {} ends at {} ms: {outcome:?}", name(who), self.now / MS);
        outcome
    }
}

fn main() {
    let mut stage = Stage::new();
    println!("== The two phases ==");
    stage.propose(0, "write red", Change::Write(Some("red".into())));
    stage.round_trip(0);
    stage.round_trip(0);
    stage.round_trip(0);

    println!("\n== One round trip: the acceptors have promised A's next ballot ==");
    stage.propose(0, "write green", Change::Write(Some("green".into())));
    stage.round_trip(0);
    stage.round_trip(0);

    println!("\n== A duel: each prepare takes away the promise of the other's ballot ==");
    stage.propose(1, "write blue", Change::Write(Some("blue".into())));
    stage.propose(0, "write white", Change::Write(Some("white".into())));
    stage.round_trip(1); // B's first ballot is too low.
    let due = stage.proposers[1].next_deadline().expect("B waits for its next attempt");
    stage.now = due;
    stage.proposers[1].step(due, ProposerInput::Time);
    stage.round_trip(1); // B prepares above A's promise ...
    stage.round_trip(0); // ... so A's accept is rejected, and A backs off.
    println!("  A waits for a random time; B goes on:");
    stage.finish(1);
    stage.finish(0);

    println!("\n== An unknown outcome, resolved ==");
    stage.cut = vec![2, 3];
    stage.propose(0, "write black; only 1 hears it, and replies are lost", {
        Change::Write(Some("black".into()))
    });
    stage.replies_lost = true;
    let Outcome::Unknown(token) = stage.finish(0) else { panic!("a quorum was missing") };
    (stage.cut, stage.replies_lost) = (Vec::new(), false);
    stage.propose(1, "resolve A's change", Change::Resolve(token));
    stage.finish(1);
}
