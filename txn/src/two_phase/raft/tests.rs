//! Random lives of coordinators whose decisions are in a replicated log. Several live at once: one
//! that another has replaced goes on until it hears so. Proposals enter the log late, in any order,
//! or never; answers are lost; participants are as in the lives of one coordinator.
//!
//! `VOUSSOIR_TXN_LIVES` sets how many there are (default 5,000); `VOUSSOIR_SEED` replays one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use voussoir_sim::{Rng, Situations};

use super::super::core::*;
use super::super::gid::{Gid, TxnId};
use super::super::log::{Committed, HeuristicOutcome};
use super::super::tests::play_lives;
use super::register::{Answer as Told, Command, Register};

const SITUATIONS: [&str; 20] = [
    "committed",
    "aborted by a refusal",
    "a coordinator took over while the one before it lived",
    "a coordinator took over from one that had crashed",
    "a commit came behind the epoch of its coordinator",
    "a commit was in no log",
    "an unknown commit had been recorded",
    "an unknown commit was closed by an abort, and came later",
    "an unknown commit was forgotten by the next coordinator, and found",
    "nobody knew what became of a commit",
    "a replaced coordinator wanted to forget a commit",
    "a replaced coordinator took a forgotten branch for lost",
    "a coordinator died with a commit recorded and not told",
    "a branch of a replaced coordinator was prepared late, and aborted",
    "a recovery aborted a branch",
    "a replica was restored from a snapshot",
    "an opening was repeated, and began one epoch",
    "a caller that waits for all branches was answered by a handed-over transaction",
    "a record was not forgotten at once",
    "a node that no longer leads found that it was replaced",
];

const TIMES: Times = Times { active: 1000, prepare: 200, pause: 20, max_pause: 300 };
const PARTICIPANTS: usize = 3;
/// After which a proposal without an answer has an unknown outcome.
const PATIENCE: u64 = 100;
/// Attempts to find out what became of a commit.
const TRIES: u32 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Working,
    Prepared,
    Committed,
    /// Committed, and the participant was told that nobody will ask any more.
    Forgotten,
    Aborted,
}

#[derive(Clone, Debug)]
enum Message {
    Prepare(TxnId, BranchNo),
    Vote(TxnId, BranchNo, bool),
    Finish(TxnId, BranchNo, bool),
    Finished(TxnId, BranchNo, Finished),
    /// A proposal enters the log; with an answer, unless that is lost.
    Enter(Command, bool),
    Answered(Command, Told),
    /// The time of a commit's proposal is over.
    Unanswered(TxnId),
    /// The n-th attempt to find out what became of it.
    Settle(TxnId, u32),
    List(u64),
    Listed(u64, Vec<(TxnId, BranchNo)>),
    Caller(TxnId, Ack),
    /// Whether its record is still to be forgotten.
    ForgetAgain(TxnId),
    Tick,
    Recover,
    /// To a participant.
    Forget(TxnId),
}

/// A coordinator on one node.
#[derive(Default)]
struct Coordinator {
    /// 0 until its epoch has begun.
    epoch: u64,
    is_alive: bool,
    /// Its log failed, or it knows of its successor: it begins nothing more, and its recovery
    /// rests.
    is_closed: bool,
    next: u64,
    txns: BTreeMap<TxnId, Transaction>,
    ended: BTreeMap<TxnId, u64>,
    /// Commits that were proposed and not answered.
    deciding: BTreeSet<TxnId>,
    /// Transactions whose caller asked to commit.
    asked: BTreeSet<TxnId>,
}

struct World<'a> {
    rng: Rng,
    now: u64,
    count: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    /// By the second number in `queue`, with the coordinator that it is from or to.
    messages: BTreeMap<u64, (usize, Message)>,
    register: Register,
    coordinators: Vec<Coordinator>,
    /// Transactions whose commit was ever recorded.
    committed: BTreeSet<TxnId>,
    /// Those that were closed by an abort because nobody answered.
    closed: BTreeSet<TxnId>,
    proposed: BTreeSet<TxnId>,
    shapes: BTreeMap<TxnId, Vec<usize>>,
    branches: BTreeMap<(TxnId, BranchNo), Held>,
    answers: BTreeMap<TxnId, Answer>,
    /// Those of them whose caller waits for all branches.
    waits: BTreeSet<TxnId>,
    faults: bool,
    /// Once set, only this coordinator's node leads, and takes proposals.
    leads: Option<usize>,
    situations: &'a Situations,
}

impl World<'_> {
    fn at(&mut self, time: u64, to: usize, message: Message) {
        self.count += 1;
        self.queue.push(Reverse((time, self.count)));
        self.messages.insert(self.count, (to, message));
    }

    /// By a network that loses, delays and repeats.
    fn send(&mut self, to: usize, message: Message) {
        let copies =
            if self.faults { [1, 1, 1, 1, 1, 0, 2][self.rng.below(7) as usize] } else { 1 };
        for _ in 0..copies {
            let late = self.faults && self.rng.below(20) == 0;
            let delay = if late { self.rng.between(100, 2000) } else { self.rng.between(1, 20) };
            self.at(self.now + delay, to, message.clone());
        }
    }

    /// False if the proposal is surely in no log.
    fn propose(&mut self, by: usize, command: Command) -> bool {
        let draw = if self.faults { self.rng.below(20) } else { 19 };
        if draw == 0 || self.leads.is_some_and(|leads| leads != by) {
            return false;
        }
        if draw > 1 {
            let delay =
                if draw == 2 { self.rng.between(50, 3000) } else { self.rng.between(1, 30) };
            let is_answered = !self.faults || self.rng.below(8) > 0;
            self.at(self.now + delay, by, Message::Enter(command, is_answered));
        }
        true
    }

    fn enter(&mut self, by: usize, command: Command, is_answered: bool) {
        // As every replica does it.
        let command = Command::decode(&command.encode().expect("it fits")).expect("it is whole");
        let (before, epoch) = (self.register.decision_of(&command), self.register.epoch());
        let told = self.register.apply(command.clone());
        match &command {
            Command::Commit(commit) => {
                if told == Told::Decided(Decision::Commit) && before.is_none() {
                    self.committed.insert(commit.txn);
                } else if self.closed.contains(&commit.txn) {
                    self.situations
                        .reached("an unknown commit was closed by an abort, and came later");
                } else if commit.txn.epoch < epoch {
                    self.situations.reached("a commit came behind the epoch of its coordinator");
                }
            }
            Command::Abort(txn) if told == Told::Decided(Decision::Abort) && txn.epoch == epoch => {
                self.closed.insert(*txn);
            }
            Command::Report { outcome, .. } if told == Told::Superseded => {
                self.situations.reached("a replaced coordinator took a forgotten branch for lost");
                assert!(self.committed.contains(&outcome.gid.txn()));
            }
            Command::Report { outcome, .. } => panic!("a false report of {}", outcome.gid),
            Command::Forget { .. } if told == Told::Superseded => {
                self.situations.reached("a replaced coordinator wanted to forget a commit");
            }
            _ => {}
        }
        if self.rng.below(50) == 0 {
            self.situations.reached("a replica was restored from a snapshot");
            self.register = Register::decode(&self.register.encode()).expect("it is whole");
        }
        if let (Command::Open { .. }, Told::Opened { epoch: begun }) = (&command, told)
            && begun == epoch
        {
            self.situations.reached("an opening was repeated, and began one epoch");
        }
        if let (Command::Open { .. }, Told::Opened { epoch }) = (&command, told)
            && is_answered
        {
            // What this node shows is what the log holds up to here.
            self.opened(by, epoch);
        } else if is_answered {
            let after = self.rng.between(1, 10);
            self.at(self.now + after, by, Message::Answered(command, told));
        }
    }

    /// A coordinator's epoch has begun.
    fn opened(&mut self, by: usize, epoch: u64) {
        if !self.coordinators[by].is_alive || self.coordinators[by].epoch > 0 {
            return;
        }
        let before = self.coordinators.iter().filter(|one| one.epoch > 0);
        let is_alone = before.clone().all(|one| !one.is_alive);
        if before.count() > 0 {
            self.situations.reached(if is_alone {
                "a coordinator took over from one that had crashed"
            } else {
                "a coordinator took over while the one before it lived"
            });
        }
        self.coordinators[by].epoch = epoch;
        for Committed { txn, branches } in self.register.committed() {
            let numbers: Vec<BranchNo> = branches.iter().map(|(number, _)| *number).collect();
            let core = Transaction::committed(TIMES, &numbers);
            self.coordinators[by].txns.insert(txn, core);
            self.step(by, txn, Input::Tick);
        }
        self.at(self.now + 1, by, Message::Tick);
        self.at(self.now + 5, by, Message::Recover);
    }

    fn take_over(&mut self) {
        self.coordinators.push(Coordinator { is_alive: true, ..Coordinator::default() });
        let by = self.coordinators.len() - 1;
        let open = Command::Open { coordinator: "c".into(), after: 0, nonce: by as u64 + 1 };
        // Repeated, as after an answer that was lost.
        for _ in 0..self.rng.between(1, 2) {
            self.propose(by, open.clone());
        }
    }

    fn crash(&mut self) {
        let by = self.rng.below(self.coordinators.len() as u64) as usize;
        let one = &mut self.coordinators[by];
        if one.txns.keys().any(|txn| self.committed.contains(txn)) {
            self.situations.reached("a coordinator died with a commit recorded and not told");
        }
        *one = Coordinator { epoch: one.epoch, ..Coordinator::default() };
    }

    fn begin(&mut self) {
        let by = self.rng.below(self.coordinators.len() as u64) as usize;
        let one = &mut self.coordinators[by];
        if !one.is_alive || one.epoch == 0 || one.is_closed {
            return;
        }
        let txn = TxnId { epoch: one.epoch, number: one.next };
        one.next += 1;
        let mut core = Transaction::new(self.now, TIMES);
        let count = self.rng.between(1, 3) as usize;
        let shape = (0..count).map(|_| self.rng.below(PARTICIPANTS as u64) as usize).collect();
        for branch in 0..count as BranchNo {
            core.step(self.now, Input::Enlist);
            self.branches.insert((txn, branch), Held::Working);
        }
        self.shapes.insert(txn, shape);
        self.coordinators[by].txns.insert(txn, core);
        let after = self.rng.between(1, 30);
        let ack = if self.rng.below(2) == 0 { Ack::Decided } else { Ack::Applied };
        self.at(self.now + after, by, Message::Caller(txn, ack));
    }

    fn step(&mut self, by: usize, txn: TxnId, input: Input) {
        let now = self.now;
        let Some(core) = self.coordinators[by].txns.get_mut(&txn) else { return };
        core.step(now, input);
        while let Some(core) = self.coordinators[by].txns.get_mut(&txn)
            && let Some(output) = core.poll_output()
        {
            match output {
                Output::Prepare(branch) => self.send(by, Message::Prepare(txn, branch)),
                Output::Decide(prepared) => self.decide(by, txn, &prepared),
                Output::Finish(branch, decision) => {
                    let commit = decision == Decision::Commit;
                    let is_recorded = self.committed.contains(&txn);
                    assert!(!commit || is_recorded, "A2: {txn:?} is told before it was recorded");
                    self.send(by, Message::Finish(txn, branch, commit));
                    self.at(now + 60, by, Message::Finished(txn, branch, Finished::Failed));
                }
                Output::Answer(answer) => self.answered(txn, answer),
                Output::Ended { forget: false } => self.end(by, txn),
                Output::Ended { forget: true } => self.forget(by, txn),
                // The participants remember what they did.
                Output::HandedOver => self.end(by, txn),
            }
        }
    }

    /// Recorded as a commit, once; see `RaftLog::commit`.
    fn decide(&mut self, by: usize, txn: TxnId, prepared: &[BranchNo]) {
        assert!(self.proposed.insert(txn), "{txn:?} is proposed twice");
        let name = |branch: &BranchNo| (*branch, Arc::from("p"));
        let commit = Committed::new(txn, prepared.iter().map(name).collect());
        if self.propose(by, Command::Commit(commit)) {
            self.coordinators[by].deciding.insert(txn);
            self.at(self.now + PATIENCE, by, Message::Unanswered(txn));
        } else {
            self.situations.reached("a commit was in no log");
            self.step(by, txn, Input::Decided(Some(Decision::Abort)));
        }
    }

    /// Asked until it is answered; see `forget_record`.
    fn forget(&mut self, by: usize, txn: TxnId) {
        let epoch = self.coordinators[by].epoch;
        if !self.propose(by, Command::Forget { txn, by: epoch }) && self.has_successor(by) {
            return self.end(by, txn);
        }
        self.at(self.now + PATIENCE, by, Message::ForgetAgain(txn));
    }

    /// Whether a coordinator sees in the state of its node that it was replaced.
    fn has_successor(&mut self, by: usize) -> bool {
        let is_replaced = self.register.epoch() > self.coordinators[by].epoch;
        if is_replaced {
            self.situations.reached("a node that no longer leads found that it was replaced");
        }
        self.coordinators[by].is_closed |= is_replaced;
        is_replaced
    }

    /// A later coordinator tells the branches; see `report` and `Finished::Superseded`.
    fn superseded(&mut self, by: usize, txn: TxnId, branch: BranchNo) {
        self.coordinators[by].is_closed = true;
        let was_told = self.answers.contains_key(&txn);
        self.step(by, txn, Input::Finished(branch, Finished::Superseded));
        if !was_told && self.answers.contains_key(&txn) && self.waits.contains(&txn) {
            let name =
                "a caller that waits for all branches was answered by a handed-over transaction";
            self.situations.reached(name);
        }
    }

    fn end(&mut self, by: usize, txn: TxnId) {
        self.coordinators[by].txns.remove(&txn);
        self.coordinators[by].ended.insert(txn, self.now);
    }

    fn answered(&mut self, txn: TxnId, answer: Answer) {
        match &answer {
            Answer::Committed => {
                self.situations.reached("committed");
                assert!(self.committed.contains(&txn), "{txn:?}: acknowledged, and not recorded");
            }
            Answer::Aborted(why) => {
                assert!(!self.committed.contains(&txn), "{txn:?}: told aborted, and recorded");
                if why == "refused" {
                    self.situations.reached("aborted by a refusal");
                }
            }
            Answer::NotHere(_) => panic!("the model takes each abort for one of the register"),
            Answer::Unknown => self.situations.reached("nobody knew what became of a commit"),
        }
        let before = self.answers.insert(txn, answer);
        assert_eq!(before, None, "a caller is answered once");
    }

    /// The log says what stands, or nobody can say.
    fn decided(&mut self, by: usize, txn: TxnId, won: Option<Decision>) {
        if self.coordinators[by].deciding.remove(&txn) {
            self.coordinators[by].is_closed |= won.is_none();
            self.step(by, txn, Input::Decided(won));
        }
    }

    /// See `RaftLog::settle`.
    fn settle(&mut self, by: usize, txn: TxnId, tries: u32) {
        if !self.coordinators[by].deciding.contains(&txn) {
            return;
        }
        if tries == TRIES {
            return self.decided(by, txn, None);
        }
        self.propose(by, Command::Abort(txn));
        if self.rng.below(2) == 0
            && let Some(decision) = self.register.decision(txn)
        {
            if decision == Decision::Commit {
                let is_forgotten = self.register.committed().iter().all(|one| one.txn != txn);
                self.situations.reached(if is_forgotten {
                    "an unknown commit was forgotten by the next coordinator, and found"
                } else {
                    "an unknown commit had been recorded"
                });
            }
            return self.decided(by, txn, Some(decision));
        }
        self.at(self.now + PATIENCE, by, Message::Settle(txn, tries + 1));
    }

    /// A participant that follows the contract.
    fn participant(&mut self, by: usize, message: Message) {
        match message {
            Message::Prepare(txn, branch) => {
                let draw = self.rng.below(20);
                let epoch = self.register.epoch();
                let held = self.branches.get_mut(&(txn, branch)).expect("a branch");
                match *held {
                    Held::Working if draw == 0 => *held = Held::Aborted,
                    Held::Working => {
                        *held = Held::Prepared;
                        if txn.epoch < epoch {
                            let name =
                                "a branch of a replaced coordinator was prepared late, and aborted";
                            self.situations.reached(name);
                        }
                    }
                    _ => {}
                }
                let yes = *held == Held::Prepared;
                if matches!(held, Held::Prepared | Held::Aborted) {
                    self.send(by, Message::Vote(txn, branch, yes));
                }
            }
            Message::Finish(txn, branch, commit) => {
                let held = self.branches.get_mut(&(txn, branch)).expect("a branch");
                let how = match (*held, commit) {
                    (Held::Prepared, true) => {
                        *held = Held::Committed;
                        Finished::Done
                    }
                    (Held::Prepared | Held::Working, false) => {
                        let is_prepared = *held == Held::Prepared;
                        *held = if is_prepared { Held::Aborted } else { Held::Working };
                        let is_committed = self.committed.contains(&txn);
                        assert!(!is_committed, "A1: {txn:?} commits and {branch} aborts");
                        Finished::Done
                    }
                    (Held::Committed, true) | (Held::Aborted, false) => Finished::Done,
                    // It has neither the branch nor the row that says that it was committed.
                    (Held::Forgotten, true) => Finished::Heuristic(Heuristic::RolledBack),
                    (held, _) => panic!("A1: {txn:?}/{branch} is {held:?}, told commit = {commit}"),
                };
                self.send(by, Message::Finished(txn, branch, how));
            }
            Message::List(asked) => {
                let prepared = self.branches.iter().filter(|(_, held)| **held == Held::Prepared);
                let list = prepared.map(|(key, _)| *key).collect();
                self.send(by, Message::Listed(asked, list));
            }
            Message::Forget(txn) => {
                for (_, held) in self.branches.range_mut((txn, 0)..=(txn, BranchNo::MAX)) {
                    if *held == Held::Committed {
                        *held = Held::Forgotten;
                    }
                }
            }
            _ => {}
        }
    }

    /// The group has answered a proposal.
    fn told(&mut self, by: usize, command: Command, told: Told) {
        match (command, told) {
            (Command::Commit(Committed { txn, .. }) | Command::Abort(txn), told) => {
                if let Told::Decided(decision) = told {
                    self.decided(by, txn, Some(decision));
                }
            }
            (Command::Forget { txn, .. }, told) => {
                if !self.coordinators[by].txns.contains_key(&txn) {
                    return;
                }
                self.coordinators[by].is_closed |= told == Told::Superseded;
                self.end(by, txn);
                if told == Told::Done {
                    self.send(by, Message::Forget(txn));
                }
            }
            (Command::Report { outcome, .. }, Told::Superseded) => {
                self.superseded(by, outcome.gid.txn(), outcome.gid.branch());
            }
            _ => {}
        }
    }

    fn handle(&mut self, by: usize, message: Message) {
        match message {
            Message::Enter(command, is_answered) => return self.enter(by, command, is_answered),
            Message::Prepare(..) | Message::Finish(..) | Message::List(_) | Message::Forget(_) => {
                return self.participant(by, message);
            }
            _ if !self.coordinators[by].is_alive => return,
            _ => {}
        }
        match message {
            Message::Vote(txn, branch, yes) => {
                let vote = if yes { Voted::Prepared } else { Voted::Refused("refused".into()) };
                self.step(by, txn, Input::Voted(branch, vote));
            }
            Message::Finished(txn, branch, how) => {
                let Finished::Heuristic(how) = how else {
                    return self.step(by, txn, Input::Finished(branch, how));
                };
                // It does not count before it is recorded.
                self.step(by, txn, Input::Finished(branch, Finished::Failed));
                let gid = Gid::new(&Arc::from("c"), txn, branch);
                let outcome = HeuristicOutcome::new(gid, "p".into(), how);
                let epoch = self.coordinators[by].epoch;
                if self.coordinators[by].txns.contains_key(&txn)
                    && !self.propose(by, Command::Report { outcome, by: epoch })
                    && self.has_successor(by)
                {
                    self.superseded(by, txn, branch);
                }
            }
            Message::Answered(command, told) => self.told(by, command, told),
            Message::Unanswered(txn) => self.settle(by, txn, 0),
            Message::Settle(txn, tries) => self.settle(by, txn, tries),
            Message::Listed(asked, list) => self.listed(by, asked, list),
            Message::Caller(txn, ack) => {
                if ack == Ack::Applied {
                    self.waits.insert(txn);
                }
                self.coordinators[by].asked.insert(txn);
                self.step(by, txn, Input::Commit(ack));
            }
            Message::ForgetAgain(txn) if self.coordinators[by].txns.contains_key(&txn) => {
                self.situations.reached("a record was not forgotten at once");
                self.forget(by, txn);
            }
            Message::Tick => {
                for txn in self.coordinators[by].txns.keys().copied().collect::<Vec<_>>() {
                    self.step(by, txn, Input::Tick);
                }
                self.at(self.now + 10, by, Message::Tick);
            }
            Message::Recover => {
                self.send(by, Message::List(self.now));
                self.at(self.now + 150, by, Message::Recover);
            }
            _ => {}
        }
    }

    fn listed(&mut self, by: usize, asked: u64, list: Vec<(TxnId, BranchNo)>) {
        let one = &self.coordinators[by];
        if self.now > asked + 200 || one.is_closed {
            return;
        }
        let is_active =
            |txn| one.txns.contains_key(&txn) || one.ended.get(&txn).is_some_and(|at| *at >= asked);
        let gid = |txn, branch| Gid::new(&Arc::from("c"), txn, branch);
        let is_orphan = |(txn, branch): &(TxnId, BranchNo)| {
            is_orphan(&gid(*txn, *branch), "c", one.epoch, is_active)
        };
        let orphans: Vec<_> = list.into_iter().filter(is_orphan).collect();
        for (txn, branch) in orphans {
            self.situations.reached("a recovery aborted a branch");
            self.send(by, Message::Finish(txn, branch, false));
        }
    }

    fn run(&mut self, until: u64) {
        while let Some(Reverse((time, _))) = self.queue.peek()
            && *time <= until
        {
            let Some(Reverse((time, count))) = self.queue.pop() else { return };
            let (by, message) = self.messages.remove(&count).expect("one for each in the queue");
            self.now = time;
            self.handle(by, message);
        }
        self.now = until;
    }
}

impl Register {
    fn decision_of(&self, command: &Command) -> Option<Decision> {
        match command {
            Command::Commit(commit) => self.decision(commit.txn),
            _ => None,
        }
    }
}

fn life(seed: u64, situations: &Situations) {
    let mut world = World {
        rng: Rng::new(seed),
        now: 0,
        count: 0,
        queue: BinaryHeap::new(),
        messages: BTreeMap::new(),
        register: Register::default(),
        coordinators: Vec::new(),
        committed: BTreeSet::new(),
        closed: BTreeSet::new(),
        proposed: BTreeSet::new(),
        shapes: BTreeMap::new(),
        branches: BTreeMap::new(),
        answers: BTreeMap::new(),
        waits: BTreeSet::new(),
        faults: true,
        leads: None,
        situations,
    };
    world.take_over();
    for _ in 0..world.rng.between(5, 40) {
        match world.rng.below(12) {
            0 => world.crash(),
            1 => world.take_over(),
            _ => world.begin(),
        }
        let until = world.now + world.rng.between(1, 80);
        world.run(until);
    }
    // A4: with a majority and the participants up, and a coordinator that leads, all of it ends.
    world.faults = false;
    world.run(world.now + 3100);
    world.take_over();
    let last = world.coordinators.len() - 1;
    world.leads = Some(last);
    world.run(world.now + 6000);
    for one in &world.coordinators {
        // A coordinator that crashed has none.
        for txn in &one.asked {
            assert!(world.answers.contains_key(txn), "the caller of {txn:?} is never answered");
        }
        // One whose decision nobody knew stays with its coordinator.
        let is_halted = |txn: &TxnId| matches!(world.answers.get(txn), Some(Answer::Unknown));
        let left = one.txns.keys().find(|txn| one.is_alive && !is_halted(txn));
        assert!(left.is_none(), "the task of {left:?} never ends");
    }
    for ((txn, branch), held) in &world.branches {
        assert_ne!(*held, Held::Prepared, "A4: {txn:?}/{branch} is still prepared");
        let is_committed = matches!(held, Held::Committed | Held::Forgotten);
        assert_eq!(is_committed, world.committed.contains(txn), "A1: {txn:?}/{branch}: {held:?}");
        if let Some(Answer::Aborted(_)) = world.answers.get(txn) {
            assert!(!is_committed, "{txn:?} was told aborted and is committed");
        }
    }
    let unended = &world.coordinators[last].txns;
    assert!(unended.is_empty(), "A4: transactions that never end: {unended:?}");
    assert!(world.register.committed().is_empty(), "A4: records that are never forgotten");
}

/// A1 to A5 with replicated decisions.
#[test]
fn replicated_decisions_end_all_branches_alike() {
    play_lives(5_000, "replicated_decisions", &Situations::new(&SITUATIONS), life);
}
