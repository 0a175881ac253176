//! Exactly-once proposals. Source: Raft thesis §6.3.
//!
//! `VOUSSOIR_SEEDS` sets how many seeds the last test plays, `VOUSSOIR_SEED` plays one.

mod cluster;

use std::time::Duration;

use bytes::Bytes;
use cluster::{Cluster, Text};
use proptest::prelude::*;
use tokio::time::{Instant, sleep, timeout_at};
use voussoir_raft::testing::conformance;
use voussoir_raft::{
    Chunks, Command, MachineError, Outcome, ProposeError, Session, SessionAnswer, SessionError,
    SessionLimits, Sessions, StateMachine, WholeSnapshot, async_trait,
};
use voussoir_sim::{Rng, Situations};

/// Counts what it applies, and answers with the count and the command.
#[derive(Debug, Default)]
struct Log(Vec<Bytes>);

#[async_trait]
impl StateMachine for Log {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        let apply = |command: &Command| {
            self.0.push(command.data.clone());
            format!("{}:{}", self.0.len(), String::from_utf8_lossy(&command.data)).into()
        };
        Ok(commands.iter().map(apply).collect())
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let ended: Vec<u8> = self.0.iter().flat_map(|data| [data, &b","[..]].concat()).collect();
        Ok(Box::new(WholeSnapshot::new(ended)))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let whole = WholeSnapshot::collect(chunks).await?;
        self.0 = whole.split(|byte| *byte == b',').map(Bytes::copy_from_slice).collect();
        // Behind the last comma. A command may be empty as well.
        self.0.pop();
        Ok(())
    }
}

fn now<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// A machine, and the index of the next entry.
struct Group {
    machine: Sessions<Log>,
    next: u64,
}

impl Group {
    fn new() -> Self {
        Self { machine: Sessions::new(Log::default()), next: 1 }
    }

    fn batch(&mut self, commands: &[Bytes]) -> Vec<SessionAnswer> {
        let numbered: Vec<Command> = (self.next..)
            .zip(commands)
            .map(|(index, data)| Command { index, data: data.clone() })
            .collect();
        self.next += commands.len() as u64;
        let answers = now(self.machine.apply(&numbered)).unwrap();
        answers.into_iter().map(|answer| SessionAnswer::decode(answer).unwrap()).collect()
    }

    fn apply(&mut self, command: &Bytes) -> SessionAnswer {
        self.batch(std::slice::from_ref(command)).remove(0)
    }

    fn open(&mut self, limits: SessionLimits) -> Session {
        let SessionAnswer::Opened(id) = self.apply(&Session::open(limits)) else { panic!() };
        let mut answer = vec![1, 2];
        answer.extend(id.to_le_bytes());
        Session::opened(answer.into()).unwrap()
    }

    fn applied(&self) -> usize {
        self.machine.inner().0.len()
    }

    fn snapshot(&mut self) -> Vec<Bytes> {
        now(async {
            let (mut chunks, mut all) = (self.machine.snapshot().await.unwrap(), Vec::new());
            while let Some(chunk) = chunks.next().await.unwrap() {
                all.push(chunk);
            }
            all
        })
    }

    fn restore(&mut self, chunks: Vec<Bytes>) -> Result<(), MachineError> {
        now(self.machine.restore(&mut Given(chunks.into())))
    }
}

struct Given(std::collections::VecDeque<Bytes>);

#[async_trait]
impl Chunks for Given {
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        Ok(self.0.pop_front())
    }
}

fn said(answer: &str) -> SessionAnswer {
    SessionAnswer::Applied(Bytes::copy_from_slice(answer.as_bytes()))
}

fn limits(set: impl FnOnce(&mut SessionLimits)) -> SessionLimits {
    let mut limits = SessionLimits::default();
    set(&mut limits);
    limits
}

#[test]
fn a_retry_gets_the_first_answer_and_changes_nothing() {
    let mut group = Group::new();
    let mut session = group.open(SessionLimits::default());
    let (first, a) = session.command(b"a");
    let (_, b) = session.command(b"b");
    // Also within one batch, and out of order.
    assert_eq!(
        group.batch(&[b.clone(), a.clone(), a.clone()]),
        [said("1:b"), said("2:a"), said("2:a")]
    );
    assert_eq!((group.apply(&a), group.apply(&b)), (said("2:a"), said("1:b")));
    session.answered(first);
    let (_, c) = session.command(b"c");
    assert_eq!(group.apply(&c), said("3:c"));
    assert_eq!(group.apply(&a), SessionAnswer::Forgotten, "the client waits for it no more");
    assert_eq!((group.apply(&b), group.applied()), (said("1:b"), 3));
    // A plain command is what it was: applied as often as it is proposed.
    let plain = Session::plain(b"p");
    assert_eq!(group.batch(&[plain.clone(), plain]), [said("4:p"), said("5:p")]);
}

#[test]
fn a_command_that_was_given_up_is_never_applied_late() {
    let mut group = Group::new();
    let mut session = group.open(SessionLimits::default());
    let (number, late) = session.command(b"late");
    session.answered(number);
    let (_, next) = session.command(b"next");
    assert_eq!(group.apply(&next), said("1:next"));
    assert_eq!((group.apply(&late), group.applied()), (SessionAnswer::Forgotten, 1));
}

#[test]
fn sessions_expire_by_use_and_what_they_sent_is_never_applied() {
    let mut group = Group::new();
    let two = limits(|limits| limits.max_sessions = 2);
    let (mut old, mut kept) = (group.open(two), group.open(two));
    let (_, lost) = old.command(b"lost");
    let (_, used) = kept.command(b"used");
    assert_eq!(group.apply(&lost), said("1:lost"));
    assert_eq!(group.apply(&used), said("2:used"));
    let third = group.open(two);
    assert_eq!(group.machine.sessions(), 2);
    assert_eq!((group.apply(&lost), group.applied()), (SessionAnswer::Expired, 2));
    assert_eq!(group.apply(&used), said("2:used"), "the one that was used later stays");
    assert_eq!(group.apply(&third.close()), SessionAnswer::Closed);
    assert_eq!(group.apply(&third.close()), SessionAnswer::Expired);
    assert_eq!(group.machine.sessions(), 1);
}

#[test]
fn what_a_session_holds_is_bounded() {
    let mut group = Group::new();
    let mut session = group.open(limits(|limits| {
        (limits.max_pending, limits.max_answer_bytes) = (3, 7);
    }));
    let commands: Vec<(u64, Bytes)> = (0..4).map(|_| session.command(b"x")).collect();
    assert_eq!(group.apply(&commands[3].1), SessionAnswer::TooFar);
    for (at, (_, command)) in commands[..3].iter().enumerate() {
        assert_eq!(group.apply(command), said(&format!("{}:x", at + 1)));
    }
    // Two answers of three bytes fit in seven: the lowest is gone, and is not applied again.
    assert_eq!(group.apply(&commands[0].1), SessionAnswer::Forgotten);
    assert_eq!(group.apply(&commands[1].1), said("2:x"));
    session.answered(commands[0].0);
    assert_eq!(session.pending(), 3);
    let (_, next) = session.command(b"y");
    // Numbers 2 to 4 are in the window, and 5 is not: the client waits for 2 still.
    assert_eq!(group.apply(&next), SessionAnswer::TooFar);
    assert_eq!(group.applied(), 3);
}

#[test]
fn nothing_malformed_is_applied() {
    let mut group = Group::new();
    let no_room = [limits(|limits| limits.max_sessions = 0), limits(|l| l.max_pending = 0)];
    for limits in no_room {
        assert_eq!(group.apply(&Session::open(limits)), SessionAnswer::Malformed);
    }
    let mut session = group.open(SessionLimits::default());
    let whole = session.command(b"").1;
    for len in 0..whole.len() {
        assert_eq!(group.apply(&whole.slice(..len)), SessionAnswer::Malformed, "{len} bytes");
    }
    for unknown in
        [&[2, 1][..], &[1, 9], b"what was proposed before", &[1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
    {
        assert_eq!(group.apply(&Bytes::copy_from_slice(unknown)), SessionAnswer::Malformed);
    }
    assert_eq!(group.applied(), 0);
    for answer in [&b""[..], &[1], &[1, 0], &[1, 8], &[2, 1], &[1, 2, 0]] {
        let answer = Bytes::copy_from_slice(answer);
        assert_eq!(SessionAnswer::decode(answer.clone()), Err(SessionError::Malformed));
        assert_eq!(Session::opened(answer), Err(SessionError::Malformed));
    }
    assert_eq!(Session::opened(vec![1, 7].into()), Err(SessionError::NotOpened));
}

/// Commands and answers of version 1. Replicas of different builds apply the same log.
#[test]
fn the_bytes_of_commands_and_answers_stay() {
    let mut session = Session::opened(vec![1, 2, 5, 0, 0, 0, 0, 0, 0, 0].into()).unwrap();
    let open: [u8; 18] = [1, 2, 16, 39, 0, 0, 0, 4, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0];
    assert_eq!(Session::open(SessionLimits::default()), &open[..]);
    let command: [u8; 27] =
        [1, 3, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 97];
    assert_eq!(session.command(b"a").1, &command[..]);
    assert_eq!(Session::plain(b"a"), &[1, 1, 97][..]);
    assert_eq!(session.close(), &[1, 4, 5, 0, 0, 0, 0, 0, 0, 0][..]);
    assert_eq!(SessionAnswer::decode(vec![1, 1, 97].into()), Ok(said("a")));
}

#[test]
fn damaged_snapshots_are_refused() {
    let mut group = Group::new();
    let mut session = group.open(SessionLimits::default());
    let command = session.command(b"a").1;
    group.apply(&command);
    let chunks = group.snapshot();
    for len in 0..chunks[0].len() {
        let cut = vec![chunks[0].slice(..len)];
        assert!(Group::new().restore(cut).is_err(), "{len} bytes");
    }
    assert!(Group::new().restore(Vec::new()).is_err());
    let mut far = Vec::from(&chunks[0][..]);
    far[1..9].fill(0xff);
    assert!(Group::new().restore(vec![far.into()]).is_err(), "a length that nothing has");
    let mut restored = Group::new();
    restored.restore(chunks).unwrap();
    assert_eq!((restored.apply(&command), restored.applied()), (said("1:a"), 1));
}

#[tokio::test]
async fn a_machine_with_sessions_keeps_the_promises_of_one() {
    let mut session = Session::opened(vec![1, 2, 1, 0, 0, 0, 0, 0, 0, 0].into()).unwrap();
    let (_, a) = session.command(b"a");
    let (_, b) = session.command(b"b");
    let open = Session::open(SessionLimits::default());
    let commands = [open, a.clone(), Session::plain(b"p"), b.clone(), a, b];
    let create = || Box::new(Sessions::new(Text::default())) as Box<dyn StateMachine>;
    conformance::state_machine(create, &commands).await;
}

#[derive(Clone, Debug)]
enum Act {
    Open(u32, u32, u64),
    /// The next command of one of the sessions, with text of so many bytes.
    Command(usize, usize),
    /// One of the commands before, again.
    Retry(usize),
    Answered(usize, usize),
    Close(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => (1..4_u32, 1..6_u32, 0..40_u64).prop_map(|(s, p, b)| Act::Open(s, p, b)),
        6 => (any::<usize>(), 0..12_usize).prop_map(|(s, n)| Act::Command(s, n)),
        6 => any::<usize>().prop_map(Act::Retry),
        3 => (any::<usize>(), any::<usize>()).prop_map(|(s, n)| Act::Answered(s, n)),
        1 => any::<usize>().prop_map(Act::Close),
    ]
}

/// The commands of some clients, in the order of a log.
fn log_of(acts: &[Act]) -> Vec<Bytes> {
    let (mut sessions, mut given, mut log) = (Vec::new(), Vec::new(), Vec::new());
    for act in acts {
        match act {
            Act::Open(max_sessions, max_pending, max_answer_bytes) => {
                let index = log.len() as u64 + 1;
                let mut answer = vec![1, 2];
                answer.extend(index.to_le_bytes());
                sessions.push((Session::opened(answer.into()).unwrap(), Vec::new()));
                log.push(Session::open(limits(|limits| {
                    limits.max_sessions = *max_sessions;
                    limits.max_pending = *max_pending;
                    limits.max_answer_bytes = *max_answer_bytes;
                })));
            }
            Act::Command(at, len) if !sessions.is_empty() => {
                let at = at % sessions.len();
                let (session, numbers) = &mut sessions[at];
                let (number, command) = session.command("z".repeat(*len).as_bytes());
                numbers.push(number);
                given.push(command.clone());
                log.push(command);
            }
            Act::Retry(at) if !given.is_empty() => log.push(given[at % given.len()].clone()),
            Act::Answered(at, number) if !sessions.is_empty() => {
                let at = at % sessions.len();
                let (session, numbers) = &mut sessions[at];
                if !numbers.is_empty() {
                    session.answered(numbers[number % numbers.len()]);
                }
            }
            Act::Close(at) if !sessions.is_empty() => {
                let at = at % sessions.len();
                log.push(sessions[at].0.close());
            }
            _ => {}
        }
    }
    log
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever the batches, and wherever a snapshot is taken and restored: the same answers and
    /// the same state; and no command of a session is applied twice.
    #[test]
    fn batches_and_snapshots_change_nothing(
        acts in prop::collection::vec(act(), 1..120),
        cuts in prop::collection::vec(1..9_usize, 120),
        restart_at in 0..120_usize,
    ) {
        let log = log_of(&acts);
        let mut one = Group::new();
        let mut answers = Vec::new();
        let mut applied = std::collections::BTreeSet::new();
        for command in &log {
            let before = one.applied();
            answers.push(one.apply(command));
            if one.applied() > before {
                prop_assert!(applied.insert(command.clone()), "{command:?} is applied twice");
            }
        }
        let (mut other, mut rest, mut got) = (Group::new(), &log[..], Vec::new());
        for cut in cuts {
            let (batch, after) = rest.split_at(cut.min(rest.len()));
            got.extend(other.batch(batch));
            rest = after;
            if got.len() >= restart_at && got.len() < restart_at + cut {
                let (chunks, next) = (other.snapshot(), other.next);
                other = Group { next, ..Group::new() };
                other.restore(chunks).unwrap();
            }
        }
        prop_assert!(rest.is_empty());
        prop_assert_eq!(answers, got);
        prop_assert_eq!(one.snapshot(), other.snapshot());
    }
}

static SITUATIONS: [&str; 4] = [
    "outcome unknown",
    "a retry is answered from the session",
    "a retry is applied",
    "leader changed between attempts",
];

/// Clients that retry through cut-off leaders and restarts, at other nodes: each command is applied
/// once, and each answer is the one of that time.
#[test]
fn retries_through_failovers_apply_each_command_once() {
    let one = std::env::var("VOUSSOIR_SEED").ok().map(|seed| seed.parse().unwrap());
    let count = std::env::var("VOUSSOIR_SEEDS").map_or(60, |count| count.parse().unwrap());
    let situations = Situations::new(&SITUATIONS);
    for seed in one.map_or(0..count, |seed: u64| seed..seed + 1) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        println!("VOUSSOIR_SEED={seed}");
        runtime.block_on(play(seed, &situations));
    }
    if one.is_none() {
        situations.assert_all_reached();
    }
}

async fn play(seed: u64, situations: &Situations) {
    let mut rng = Rng::stream(seed, 1);
    let tune = |config: &mut voussoir_raft::Config| {
        config.proposal_timeout = Duration::from_millis(700);
        config.snapshot_after_entries = 8;
        config.keep_entries = 2;
    };
    let mut cluster = Cluster::with_sessions(3, tune).await;
    let mut leader = cluster.leader().await;
    let opened = cluster.raft(leader).propose(Session::open(SessionLimits::default())).await;
    let mut session = Session::opened(opened.unwrap()).unwrap();
    let mut expected = String::new();
    for turn in 0..12 {
        let text = format!("[{turn}]");
        let (number, command) = session.command(text.as_bytes());
        expected.push_str(&text);
        let mut trouble = rng.below(4);
        let (mut asked, mut was_unknown) = (leader, false);
        let answer = loop {
            let under_way = (trouble > 0).then(|| Duration::from_millis(rng.below(3)));
            let tried = attempt(&cluster, asked, &command, under_way, trouble == 1).await;
            match tried {
                Some(Ok(answer)) => break answer,
                Some(Err(error)) if error.outcome() == Outcome::NotApplied => {}
                Some(Err(_)) | None => {
                    situations.reached("outcome unknown");
                    was_unknown = true;
                }
            }
            sleep(Duration::from_millis(rng.between(100, 900))).await;
            if trouble == 2 {
                cluster.restart(asked).await;
            }
            cluster.network.heal();
            trouble = 0;
            let next = cluster.led_by(2).await;
            if next != asked {
                situations.reached("leader changed between attempts");
            }
            asked = next;
            if was_unknown {
                sleep(Duration::from_millis(100)).await;
                let known = cluster.text(asked).contains(&text);
                situations.reached(if known {
                    "a retry is answered from the session"
                } else {
                    "a retry is applied"
                });
            }
        };
        let answer = SessionAnswer::decode(answer).unwrap();
        assert_eq!(answer, said(&expected), "seed {seed}, turn {turn}");
        session.answered(number);
        cluster.network.heal();
        leader = cluster.led_by(2).await;
    }
    let leader = cluster.leader().await;
    // The status may be behind: a read waits for all that was acknowledged.
    for id in 1..=3 {
        cluster.raft(id).read(cluster::soon()).await.unwrap();
    }
    assert_eq!(cluster.converge(leader).await, expected, "seed {seed}");
}

/// Proposes `command` at `node`. With `under_way` the node is cut off when the proposal has been
/// under way for that long; `lost` gives it up then.
async fn attempt(
    cluster: &Cluster,
    node: u64,
    command: &Bytes,
    under_way: Option<Duration>,
    lost: bool,
) -> Option<Result<Bytes, ProposeError>> {
    let mut proposed = Box::pin(cluster.raft(node).propose(command.clone()));
    let Some(under_way) = under_way else { return Some(proposed.await) };
    let early = timeout_at(Instant::now() + under_way, &mut proposed).await;
    if early.is_err() || lost {
        cluster.network.isolate(node, (1..=3).filter(|id| *id != node));
    }
    match early {
        _ if lost => None,
        Ok(ended) => Some(ended),
        Err(_) => Some(proposed.await),
    }
}
