//! Random lives of the core: coordinators that crash and come back in a new epoch, participants
//! that crash and lose what they have not prepared, messages that are late, lost or repeated.
//!
//! `VOUSSOIR_TXN_LIVES` sets how many there are (default 10,000); `VOUSSOIR_SEED` replays one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use voussoir_sim::{Rng, Situations};

use super::core::*;
use super::gid::{Gid, TxnId};

const SITUATIONS: [&str; 13] = [
    "committed",
    "aborted by a refusal",
    "aborted by a vote that did not come",
    "aborted by the caller",
    "nothing was written",
    "coordinator crashed before the decision, with a branch prepared",
    "coordinator crashed after the decision, with a branch not told",
    "the decision's fate was unknown at the crash, and it was recorded",
    "the decision's fate was unknown at the crash, and it was lost",
    "a branch was prepared after its transaction had aborted",
    "a recovery aborted a branch",
    "a participant crashed and refused",
    "an old coordinator's message arrived in a later epoch",
];

const TIMES: Times = Times { active: 1000, prepare: 200, pause: 20, max_pause: 300 };
const PARTICIPANTS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// The work is done and not prepared: lost when the participant crashes.
    Working,
    Prepared,
    Committed,
    Aborted,
    /// It voted so, and knows nothing of the transaction any more.
    ReadOnly,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Message {
    Prepare(TxnId, BranchNo),
    Vote(TxnId, BranchNo, u8),
    Finish(TxnId, BranchNo, bool),
    Finished(TxnId, BranchNo),
    /// The register's disk: a commit that was asked for becomes durable.
    Recorded(TxnId),
    /// Asks a participant at this time for its prepared branches.
    List(usize, u64),
    Listed(u64, Vec<(TxnId, BranchNo)>),
    Caller(TxnId),
    Tick,
    Recover,
}

struct World<'a> {
    rng: Rng,
    now: u64,
    count: u64,
    queue: BinaryHeap<Reverse<(u64, u64, u64, Message)>>,
    /// The epoch of the living coordinator; its messages carry it.
    epoch: u64,
    next: u64,
    txns: BTreeMap<TxnId, Transaction>,
    /// Commits on the coordinator's disk, with the branches that were prepared.
    register: BTreeMap<TxnId, Vec<BranchNo>>,
    /// Commits that were asked for and may be on the disk after a crash.
    writing: BTreeMap<TxnId, Vec<BranchNo>>,
    /// When transactions ended.
    ended: BTreeMap<TxnId, u64>,
    /// The participant of each branch, also of transactions long ended.
    shapes: BTreeMap<TxnId, Vec<usize>>,
    branches: BTreeMap<(TxnId, BranchNo), Held>,
    /// What callers were told.
    told: BTreeMap<TxnId, Answer>,
    /// Commits that were ever durable.
    committed: BTreeSet<TxnId>,
    faults: bool,
    situations: &'a Situations,
}

fn gid(txn: TxnId, branch: BranchNo) -> Gid {
    Gid::new(&Arc::from("c"), txn, branch)
}

impl World<'_> {
    fn send(&mut self, message: Message) {
        let copies =
            if self.faults { [1, 1, 1, 1, 1, 1, 0, 2][self.rng.below(8) as usize] } else { 1 };
        for _ in 0..copies {
            let late = self.faults && self.rng.below(20) == 0;
            let delay = if late { self.rng.between(100, 2000) } else { self.rng.between(1, 20) };
            self.at(self.now + delay, message.clone());
        }
    }

    /// What happens at the coordinator itself: neither lost nor repeated.
    fn at(&mut self, time: u64, message: Message) {
        self.count += 1;
        self.queue.push(Reverse((time, self.count, self.epoch, message)));
    }

    fn begin(&mut self) {
        let txn = TxnId { epoch: self.epoch, number: self.next };
        self.next += 1;
        let mut core = Transaction::new(self.now, TIMES);
        let count = self.rng.below(4) as usize;
        let participants: Vec<usize> =
            (0..count).map(|_| self.rng.below(PARTICIPANTS as u64) as usize).collect();
        for branch in 0..count as BranchNo {
            core.step(self.now, Input::Enlist);
            self.branches.insert((txn, branch), Held::Working);
        }
        self.shapes.insert(txn, participants);
        self.txns.insert(txn, core);
        let longest = if self.rng.below(30) == 0 { 1500 } else { 30 };
        let after = self.rng.between(1, longest);
        self.at(self.now + after, Message::Caller(txn));
    }

    fn step(&mut self, txn: TxnId, input: Input) {
        let Some(core) = self.txns.get_mut(&txn) else { return };
        core.step(self.now, input);
        while let Some(output) = self.txns.get_mut(&txn).and_then(Transaction::poll_output) {
            match output {
                Output::Prepare(branch) => self.send(Message::Prepare(txn, branch)),
                Output::Decide(prepared) => {
                    self.writing.insert(txn, prepared);
                    let after = self.rng.between(1, 30);
                    self.at(self.now + after, Message::Recorded(txn));
                }
                Output::Finish(branch, decision) => {
                    let commit = decision == Decision::Commit;
                    assert!(
                        !commit || self.register.contains_key(&txn),
                        "A2: told before it was recorded"
                    );
                    self.send(Message::Finish(txn, branch, commit));
                    // An answer that does not come is one that failed.
                    let after = self.now + 60;
                    self.at(after, Message::Finished(txn, branch));
                }
                Output::Answer(answer) => self.answered(txn, answer),
                Output::Ended { forget } => {
                    if forget {
                        self.register.remove(&txn);
                    }
                    self.txns.remove(&txn);
                    self.ended.insert(txn, self.now);
                    return;
                }
                Output::HandedOver => panic!("this log has no other coordinator"),
            }
        }
    }

    fn answered(&mut self, txn: TxnId, answer: Answer) {
        let wrote = (0..self.shapes[&txn].len() as BranchNo).any(|branch| {
            matches!(self.branches[&(txn, branch)], Held::Prepared | Held::Committed)
        });
        match &answer {
            Answer::Committed if !wrote => self.situations.reached("nothing was written"),
            Answer::Committed => {
                self.situations.reached("committed");
                assert!(self.committed.contains(&txn), "acknowledged before it was durable");
            }
            Answer::Aborted(why) => self.situations.reached(match why.as_str() {
                "refused" => "aborted by a refusal",
                "caller" => "aborted by the caller",
                _ => "aborted by a vote that did not come",
            }),
            Answer::Unknown => {}
            Answer::NotHere(_) => panic!("this log has no other coordinator"),
        }
        let before = self.told.insert(txn, answer);
        assert_eq!(before, None, "a caller is answered once");
    }

    fn crash_coordinator(&mut self) {
        for (txn, prepared) in std::mem::take(&mut self.writing) {
            let kept = self.rng.below(2) == 0;
            if kept {
                self.register.insert(txn, prepared);
                self.committed.insert(txn);
                self.situations
                    .reached("the decision's fate was unknown at the crash, and it was recorded");
            } else {
                self.situations
                    .reached("the decision's fate was unknown at the crash, and it was lost");
            }
        }
        for ((txn, _), held) in &self.branches {
            if *held == Held::Prepared && self.txns.contains_key(txn) {
                self.situations.reached(if self.register.contains_key(txn) {
                    "coordinator crashed after the decision, with a branch not told"
                } else {
                    "coordinator crashed before the decision, with a branch prepared"
                });
            }
        }
        self.txns.clear();
        self.ended.clear();
        self.epoch += 1;
        self.next = 0;
        for (txn, prepared) in self.register.clone() {
            let core = Transaction::committed(TIMES, &prepared);
            self.txns.insert(txn, core);
            self.step(txn, Input::Tick);
        }
        self.at(self.now + 1, Message::Tick);
        self.at(self.now + 5, Message::Recover);
    }

    fn crash_participant(&mut self) {
        let participant = self.rng.below(PARTICIPANTS as u64) as usize;
        for ((txn, branch), held) in &mut self.branches {
            if self.shapes[txn][*branch as usize] == participant && *held == Held::Working {
                *held = Held::Aborted;
            }
        }
    }

    /// A participant that follows the contract: the model of a database.
    fn prepared(&mut self, txn: TxnId, branch: BranchNo) {
        let ended = !self.txns.contains_key(&txn);
        let draw = self.rng.below(20);
        let Some(held) = self.branches.get_mut(&(txn, branch)) else { return };
        let vote = match *held {
            Held::Working if draw == 0 => {
                *held = Held::Aborted;
                2
            }
            Held::Working if draw == 1 => {
                *held = Held::ReadOnly;
                1
            }
            Held::Working => {
                *held = Held::Prepared;
                if ended || self.told.contains_key(&txn) {
                    self.situations
                        .reached("a branch was prepared after its transaction had aborted");
                }
                0
            }
            Held::Prepared => 0,
            Held::ReadOnly => 1,
            Held::Aborted => {
                self.situations.reached("a participant crashed and refused");
                2
            }
            Held::Committed => return,
        };
        self.send(Message::Vote(txn, branch, vote));
    }

    fn finish(&mut self, txn: TxnId, branch: BranchNo, commit: bool) {
        let held = self.branches.get_mut(&(txn, branch)).expect("a branch of its transaction");
        match (*held, commit) {
            (Held::Prepared, true) => *held = Held::Committed,
            (Held::Prepared, false) => {
                *held = Held::Aborted;
                assert!(!self.committed.contains(&txn), "A1: {txn:?} commits and {branch} aborts");
            }
            // Work that was never prepared is dropped; a late vote for it is prepared all the same:
            // the connection that carries it is another one.
            (Held::Working | Held::Aborted | Held::ReadOnly, false) | (Held::Committed, true) => {}
            (held, _) => panic!("A1: {txn:?}/{branch} is {held:?} and is told commit = {commit}"),
        }
        self.send(Message::Finished(txn, branch));
    }

    fn listed(&mut self, asked: u64, list: Vec<(TxnId, BranchNo)>) {
        // A list that takes too long is no list.
        if self.now > asked + 200 {
            return;
        }
        for (txn, branch) in list {
            let is_active = |txn| {
                let ended = self.ended.get(&txn);
                self.txns.contains_key(&txn) || ended.is_some_and(|at| *at >= asked)
            };
            if is_orphan(&gid(txn, branch), "c", self.epoch, is_active) {
                self.situations.reached("a recovery aborted a branch");
                self.send(Message::Finish(txn, branch, false));
            }
        }
    }

    fn handle(&mut self, epoch: u64, message: Message) {
        let old = epoch != self.epoch;
        match message {
            // Participants hear old coordinators, too.
            Message::Prepare(txn, branch) => {
                if old {
                    self.situations
                        .reached("an old coordinator's message arrived in a later epoch");
                }
                self.prepared(txn, branch);
            }
            Message::Finish(txn, branch, commit) => self.finish(txn, branch, commit),
            Message::List(participant, asked) => {
                let own = |(txn, branch): &(TxnId, BranchNo)| {
                    self.shapes[txn][*branch as usize] == participant
                };
                let prepared = self.branches.iter().filter(|(_, held)| **held == Held::Prepared);
                let list = prepared.map(|(key, _)| *key).filter(own).collect();
                self.send(Message::Listed(asked, list));
            }
            _ if old => {}
            Message::Vote(txn, branch, vote) => {
                let vote = match vote {
                    0 => Voted::Prepared,
                    1 => Voted::ReadOnly,
                    _ => Voted::Refused("refused".into()),
                };
                self.step(txn, Input::Voted(branch, vote));
            }
            Message::Finished(txn, branch) => {
                let held = self.branches[&(txn, branch)];
                let settled = !matches!(held, Held::Working | Held::Prepared);
                let how = if settled { Finished::Done } else { self.unsettled(txn) };
                self.step(txn, Input::Finished(branch, how));
            }
            Message::Recorded(txn) => {
                if let Some(prepared) = self.writing.remove(&txn) {
                    self.register.insert(txn, prepared);
                    self.committed.insert(txn);
                    self.step(txn, Input::Decided(Some(Decision::Commit)));
                }
            }
            Message::Listed(asked, list) => self.listed(asked, list),
            Message::Caller(txn) => {
                let abort = self.rng.below(10) == 0;
                self.step(txn, Input::Tick);
                let ack = if self.rng.below(2) == 0 { Ack::Decided } else { Ack::Applied };
                self.step(
                    txn,
                    if abort { Input::Abort("caller".into()) } else { Input::Commit(ack) },
                );
            }
            Message::Tick => {
                for txn in self.txns.keys().copied().collect::<Vec<_>>() {
                    self.step(txn, Input::Tick);
                }
                self.at(self.now + 10, Message::Tick);
            }
            Message::Recover => {
                for participant in 0..PARTICIPANTS {
                    self.send(Message::List(participant, self.now));
                }
                self.at(self.now + 150, Message::Recover);
            }
        }
    }

    /// A participant answers that it knows nothing of the branch: an abort is done with that.
    fn unsettled(&self, txn: TxnId) -> Finished {
        if self.register.contains_key(&txn) { Finished::Failed } else { Finished::Done }
    }

    fn run(&mut self, until: u64) {
        while let Some(Reverse((time, ..))) = self.queue.peek()
            && *time <= until
        {
            let Some(Reverse((time, _, epoch, message))) = self.queue.pop() else { return };
            self.now = time;
            self.handle(epoch, message);
        }
        self.now = until;
    }
}

fn life(seed: u64, situations: &Situations) {
    let mut world = World {
        rng: Rng::new(seed),
        now: 0,
        count: 0,
        queue: BinaryHeap::new(),
        epoch: 1,
        next: 0,
        txns: BTreeMap::new(),
        register: BTreeMap::new(),
        writing: BTreeMap::new(),
        ended: BTreeMap::new(),
        shapes: BTreeMap::new(),
        branches: BTreeMap::new(),
        told: BTreeMap::new(),
        committed: BTreeSet::new(),
        faults: true,
        situations,
    };
    world.at(1, Message::Tick);
    world.at(5, Message::Recover);
    for _ in 0..world.rng.between(5, 40) {
        match world.rng.below(12) {
            0 => world.crash_coordinator(),
            1 => world.crash_participant(),
            _ => world.begin(),
        }
        let until = world.now + world.rng.between(1, 60);
        world.run(until);
    }
    // A4: once messages arrive again every branch ends within a bound.
    world.faults = false;
    let until = world.now + 6000;
    world.run(until);
    for ((txn, branch), held) in &world.branches {
        let end = if world.committed.contains(txn) { Held::Committed } else { Held::Aborted };
        let is_idle = matches!(held, Held::Working | Held::ReadOnly);
        assert_ne!(*held, Held::Prepared, "A4: {txn:?}/{branch} is still prepared");
        assert!(*held == end || is_idle, "A1: {txn:?}/{branch}: {held:?}");
        if let Some(Answer::Aborted(_)) = world.told.get(txn) {
            assert!(!world.committed.contains(txn), "{txn:?} was told aborted and is committed");
        }
    }
    assert!(world.txns.is_empty(), "A4: transactions that never end: {:?}", world.txns);
    assert!(world.register.is_empty(), "A4: records that are never forgotten");
}

/// Plays as many lives as are asked for, `default` without `VOUSSOIR_TXN_LIVES`, or the one of
/// `VOUSSOIR_SEED`, and demands every situation of a whole run. `test` is what replays a failure.
pub(super) fn play_lives(
    default: u64,
    test: &str,
    situations: &Situations,
    life: impl Fn(u64, &Situations),
) {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    let seeds = match number("VOUSSOIR_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("VOUSSOIR_TXN_LIVES").unwrap_or(default),
    };
    let whole = seeds.end - seeds.start > 1;
    for seed in seeds {
        let one = std::panic::AssertUnwindSafe(|| life(seed, situations));
        if let Err(panic) = std::panic::catch_unwind(one) {
            eprintln!("VOUSSOIR_SEED={seed} cargo test -p voussoir-txn --lib {test}");
            std::panic::resume_unwind(panic);
        }
    }
    println!("{situations}");
    if whole {
        situations.assert_all_reached();
    }
}

#[test]
fn all_branches_of_a_transaction_end_alike() {
    play_lives(10_000, "all_branches", &Situations::new(&SITUATIONS), life);
}

/// atomikos #239: once the decision is asked for, neither the caller nor a timer takes it back.
#[test]
fn an_abort_that_comes_late_changes_nothing() {
    let mut txn = Transaction::new(0, TIMES);
    txn.step(0, Input::Enlist);
    txn.step(0, Input::Commit(Ack::Decided));
    txn.step(1, Input::Voted(0, Voted::Prepared));
    let outputs =
        |txn: &mut Transaction| std::iter::from_fn(|| txn.poll_output()).collect::<Vec<_>>();
    assert_eq!(outputs(&mut txn), [Output::Prepare(0), Output::Decide(vec![0])]);
    txn.step(TIMES.active * 2, Input::Tick);
    txn.step(TIMES.active * 2, Input::Abort("caller".into()));
    assert_eq!(outputs(&mut txn), []);
    txn.step(TIMES.active * 2, Input::Decided(Some(Decision::Commit)));
    txn.step(TIMES.active * 2, Input::Abort("caller".into()));
    let decided = [Output::Answer(Answer::Committed), Output::Finish(0, Decision::Commit)];
    assert_eq!(outputs(&mut txn), decided);
    txn.step(TIMES.active * 2, Input::Finished(0, Finished::Done));
    assert_eq!(outputs(&mut txn), [Output::Ended { forget: true }]);
    assert_eq!(txn.next_deadline(), None);
}
