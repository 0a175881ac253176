//! A holder's own deadline comes before the server's, whatever leaders and clocks do.

use voussoir_lock::core::{Answer, Command, Event, Leases, Renewal, Table};
use voussoir_lock::*;
use voussoir_sim::{Rng, Situations};

const MS: u64 = 1_000_000;
const TTL_MS: u64 = 1000;

static SITUATIONS: [&str; 10] = [
    "session expired",
    "renewed",
    "renewed after a checkpoint",
    "checkpoint superseded by a renewal",
    "renewal refused",
    "leader changed",
    "old leader in vain",
    "lost by its own deadline",
    "answer too late",
    "command lost",
];

/// A clock that runs up to half a percent wrong, so that two differ by less than the 1 % that
/// leases allow for.
#[derive(Clone, Copy)]
struct WrongClock {
    offset: u64,
    rate_ppm: i64,
}

impl WrongClock {
    fn draw(rng: &mut Rng) -> Self {
        let rate_ppm = rng.below(10_000).cast_signed() - 5_000;
        Self { offset: rng.below(1 << 40), rate_ppm }
    }

    fn at(self, t: u64) -> u64 {
        let wrong = i128::from(t) * i128::from(self.rate_ppm) / 1_000_000;
        self.offset + (i128::from(t) + wrong) as u64
    }
}

struct Client {
    clock: WrongClock,
    session: u64,
    lease: Lease,
    next_renewal: u64,
    /// A renewal under way: when it was sent by the client's clock, when it arrives or its answer
    /// does, and whether it is the answer.
    renewal: Option<(u64, u64, bool)>,
    is_paused_until: u64,
}

struct Life<'a> {
    rng: Rng,
    t: u64,
    index: u64,
    table: Table,
    leader: (WrongClock, Leases),
    deposed: Option<(WrongClock, Leases)>,
    clients: Vec<Client>,
    situations: &'a Situations,
}

fn config() -> LeaseConfig {
    let mut config = LeaseConfig::default();
    config.ttl = std::time::Duration::from_millis(TTL_MS);
    config.margin = std::time::Duration::ZERO;
    config
}

impl<'a> Life<'a> {
    fn new(seed: u64, situations: &'a Situations) -> Self {
        let (mut rng, table) = (Rng::new(seed), Table::new());
        let clock = WrongClock::draw(&mut rng);
        let leader = (clock, Leases::new(clock.at(0), 0, &table));
        let (t, index, deposed, clients) = (0, 0, None, Vec::new());
        let mut life = Self { rng, t, index, table, leader, deposed, clients, situations };
        life.begin_reign();
        for _ in 0..3 {
            let client = life.client();
            life.clients.push(client);
        }
        life
    }

    /// Applies a command, and checks what ends by it.
    fn apply(&mut self, command: &Command) -> Answer {
        self.index += 1;
        let mut events = Vec::new();
        let answer = self.table.apply(self.index, command, &mut events);
        for event in &events {
            let Event::SessionEnded { session } = event else { continue };
            self.situations.reached("session expired");
            let holder = self.clients.iter().find(|client| client.session == *session);
            let is_held = |c: &Client| c.lease.check(c.clock.at(self.t)).is_ok();
            assert!(!holder.is_some_and(is_held), "the holder believes to hold at {}", self.t);
        }
        let (clock, leases) = &mut self.leader;
        leases.applied(clock.at(self.t), command, answer, &events);
        answer
    }

    fn begin_reign(&mut self) {
        self.index += 1;
        self.table.apply(self.index, &Command::BeginReign, &mut Vec::new());
        let clock = WrongClock::draw(&mut self.rng);
        let leases = Leases::new(clock.at(self.t), self.index, &self.table);
        self.deposed = Some(std::mem::replace(&mut self.leader, (clock, leases)));
    }

    fn client(&mut self) -> Client {
        let clock = WrongClock::draw(&mut self.rng);
        let sent = clock.at(self.t);
        let Answer::Opened { session } = self.apply(&Command::OpenSession { ttl_ms: TTL_MS })
        else {
            panic!("there is room");
        };
        let lease = Lease::granted(&config(), sent, sent).expect("a new lease");
        let next_renewal = self.t + TTL_MS * MS / 3;
        Client { clock, session, lease, next_renewal, renewal: None, is_paused_until: 0 }
    }

    fn run_timers(&mut self) {
        // Ends: each turn takes one that is due, and what is lost is due again later.
        while let Some(command) = self.leader.1.poll(self.leader.0.at(self.t)) {
            if self.rng.below(4) == 0 {
                let now = self.leader.0.at(self.t);
                self.leader.1.retry(now, &command, 20 * MS);
                self.situations.reached("command lost");
            } else {
                self.apply(&command);
            }
        }
        let Some((clock, leases)) = &mut self.deposed else { return };
        if let Some(command) = leases.poll(clock.at(self.t)) {
            self.index += 1;
            let (before, mut events) = (self.table.clone(), Vec::new());
            self.table.apply(self.index, &command, &mut events);
            assert_eq!(self.table, before, "a deposed leader's timer changes nothing");
            self.situations.reached("old leader in vain");
        }
    }

    /// A checkpoint that a leader's timer proposed is applied after the one of a later renewal.
    fn supersede_checkpoint(&mut self) {
        let now = self.leader.0.at(self.t);
        if self.rng.below(10) > 0 {
            return;
        }
        let Some(early) = self.leader.1.poll(now) else { return };
        if let Command::Checkpoint { session, .. } = early
            && let Renewal::AfterCommand(full) = self.leader.1.renew(now, session)
        {
            self.apply(&full);
            self.apply(&early);
            assert_eq!(self.leader.1.renew(now, session), Renewal::Renewed, "nothing to undo");
            self.situations.reached("checkpoint superseded by a renewal");
        } else {
            self.apply(&early);
        }
    }

    /// The leader has a renewal, and has confirmed since that it leads. Whether it answers.
    fn serve(&mut self, session: u64) -> bool {
        match self.leader.1.renew(self.leader.0.at(self.t), session) {
            Renewal::Renewed => {
                self.situations.reached("renewed");
                true
            }
            Renewal::AfterCommand(command) => {
                let is_applied = self.rng.below(3) > 0;
                if is_applied {
                    let answer = self.apply(&command);
                    self.situations.reached("renewed after a checkpoint");
                    assert_eq!(answer, Answer::Done);
                }
                is_applied
            }
            _ => {
                self.situations.reached("renewal refused");
                false
            }
        }
    }

    fn run_client(&mut self, at: usize) {
        let (t, delay) = (self.t, self.rng.scaled(1, 700) * MS);
        let client = &mut self.clients[at];
        if t < client.is_paused_until {
            return;
        }
        if self.rng.below(60) == 0 {
            client.is_paused_until = t + self.rng.between(1, 2 * TTL_MS) * MS;
        }
        let now = client.clock.at(t);
        let session = client.session;
        match client.renewal {
            Some((sent, at_t, is_answer)) if t >= at_t => {
                client.renewal = None;
                if is_answer {
                    if client.lease.renewed(sent, now).is_err() {
                        self.situations.reached("answer too late");
                    }
                } else if self.serve(session) {
                    self.clients[at].renewal = Some((sent, t + delay, true));
                }
            }
            None if t >= client.next_renewal => {
                client.renewal = Some((now, t + delay / 4, false));
                client.next_renewal = t + TTL_MS * MS / 3;
            }
            _ => {}
        }
        if self.clients[at].lease.check(now).is_err() {
            self.situations.reached("lost by its own deadline");
            let client = self.client();
            self.clients[at] = client;
        }
    }
}

/// L3. `VOUSSOIR_SEEDS` runs more lives.
#[test]
fn a_holder_stops_before_the_server_gives_its_locks_away() {
    let situations = Situations::new(&SITUATIONS);
    let seeds = std::env::var("VOUSSOIR_SEEDS").map_or(300, |text| text.parse().expect("a number"));
    for seed in 0..seeds {
        let mut life = Life::new(seed, &situations);
        for _ in 0..1000 {
            life.t += life.rng.between(1, 40) * MS;
            life.supersede_checkpoint();
            life.run_timers();
            for at in 0..life.clients.len() {
                life.run_client(at);
            }
            if life.rng.below(25) == 0 {
                life.begin_reign();
                situations.reached("leader changed");
            }
        }
        assert!(life.table.session_count() < 40, "sessions without a client end");
    }
    situations.assert_all_reached();
}

/// Regression corpus 51: leader changes do not give a dead session its whole time back each time.
#[test]
fn checkpoints_bound_what_leader_changes_extend() {
    let (mut table, mut index) = (Table::new(), 2);
    table.apply(1, &Command::BeginReign, &mut Vec::new());
    table.apply(2, &Command::OpenSession { ttl_ms: TTL_MS }, &mut Vec::new());
    let mut leases = Leases::new(0, 1, &table);
    let mut ended_at = None;
    for t in (0..10 * TTL_MS).step_by(10) {
        if t % 600 == 0 {
            index += 1;
            table.apply(index, &Command::BeginReign, &mut Vec::new());
            leases = Leases::new(t * MS, index, &table);
        }
        while let Some(command) = leases.poll(t * MS) {
            index += 1;
            let mut events = Vec::new();
            let answer = table.apply(index, &command, &mut events);
            leases.applied(t * MS, &command, answer, &events);
        }
        if ended_at.is_none() && !table.has_session(2) {
            ended_at = Some(t);
        }
    }
    assert_eq!(ended_at, Some(1100), "500 ms were left at the change of leaders at 600 ms");
}

/// A lock whose holder has expired, with a delay of `delay_ms`, while leaders change each
/// `reign_ms`: when it is granted to who waits, in ms after the end of its holder, and how many
/// entries that took.
fn delayed(delay_ms: u64, reign_ms: u64) -> (u64, u64) {
    let (mut table, mut events) = (Table::new(), Vec::new());
    table.apply(1, &Command::BeginReign, &mut events);
    let ttl_ms = 3_600_000;
    for index in [2, 3] {
        table.apply(index, &Command::OpenSession { ttl_ms }, &mut events);
    }
    for (session, index) in [(2, 4), (3, 5)] {
        let acquire = Command::Acquire {
            session,
            request: 1,
            floor: 1,
            name: "a".into(),
            mode: Mode::Exclusive,
            wait: true,
            lock_delay_ms: delay_ms,
        };
        table.apply(index, &acquire, &mut events);
    }
    table.apply(6, &Command::Expire { reign: 1, session: 2 }, &mut events);
    let (mut index, mut entries) = (6, 0);
    let mut leases = Leases::new(0, 1, &table);
    for t in (0..100 * delay_ms).step_by(10) {
        if t % reign_ms == 0 && t > 0 {
            index += 1;
            table.apply(index, &Command::BeginReign, &mut Vec::new());
            leases = Leases::new(t * MS, index, &table);
        }
        assert!(leases.next_deadline().is_some(), "at {t} ms");
        while let Some(command) = leases.poll(t * MS) {
            (index, entries) = (index + 1, entries + 1);
            let mut events = Vec::new();
            let answer = table.apply(index, &command, &mut events);
            leases.applied(t * MS, &command, answer, &events);
            if events.iter().any(|event| matches!(event, Event::Granted { session: 3, .. })) {
                return (t, entries);
            }
        }
    }
    panic!("never granted");
}

/// Rolling restarts of the servers do not keep a lock from its next holder.
#[test]
fn a_change_of_leaders_gives_a_lock_delay_back_at_most_half_of_what_was_left() {
    assert_eq!(delayed(1000, u64::MAX), (1000, 2), "a checkpoint and the end");
    // A new leader begins with what was left at the checkpoint: half.
    assert_eq!(delayed(1000, 900), (900 + 500, 3));
    assert_eq!(delayed(1000, 600), (600 + 500, 3));
    assert_eq!(delayed(60_000, 50_000), (50_000 + 30_000, 3));
}

#[test]
fn a_session_that_is_renewed_costs_no_command() {
    let mut table = Table::new();
    table.apply(1, &Command::BeginReign, &mut Vec::new());
    for index in 2..102 {
        table.apply(index, &Command::OpenSession { ttl_ms: TTL_MS }, &mut Vec::new());
    }
    let mut leases = Leases::new(0, 1, &table);
    for t in (0..100 * TTL_MS).step_by(100) {
        for session in (2..102).filter(|session| (t / 100 + session) % 3 == 0) {
            assert_eq!(leases.renew(t * MS, session), Renewal::Renewed);
        }
        assert_eq!(leases.poll(t * MS), None, "at {t} ms");
    }
}

/// Regression corpus 57: validity counts from sending, and an answer that took too long grants
/// nothing. 54 and 58: what is lost is not revived.
#[test]
fn a_lease_counts_from_sending_and_is_lost_for_good() {
    let second = 1000 * MS;
    let mut config = LeaseConfig::default();
    config.max_drift_ppm = 0;
    config.margin = std::time::Duration::from_secs(1);
    let late = Lease::granted(&config, 5 * second, 14 * second);
    assert_eq!(late.expect_err("9 s are over"), BeginError::TooLate);
    let lease = Lease::granted(&config, 5 * second, 13 * second).expect("1 s is left");
    assert_eq!(lease.deadline(), Some(14 * second));
    assert_eq!(lease.renewed(13 * second, 14 * second - 1), Ok(()));
    assert_eq!(lease.renewed(6 * second, 15 * second), Ok(()), "an older one takes nothing away");
    assert_eq!((lease.check(22 * second - 1), lease.check(22 * second)), (Ok(()), Err(LeaseEnded)));
    assert_eq!(lease.check(15 * second), Err(LeaseEnded), "also on an earlier look at the clock");
    assert_eq!(lease.renewed(21 * second, 15 * second), Err(LeaseEnded));
    assert_eq!(lease.deadline(), None);
    let lease = Lease::granted(&config, 5 * second, 6 * second).expect("in time");
    lease.end();
    assert_eq!(lease.renewed(6 * second, 6 * second), Err(LeaseEnded));
}

/// Regression corpus 48: the resource refuses a holder that was paused past its lease.
#[test]
fn a_late_write_is_refused_by_the_token() {
    let mut fence = Fence::new(0);
    let (old, new) = (FencingToken::new(7), FencingToken::new(8));
    *fence.enter(old).expect("the first") += 1;
    *fence.enter(old).expect("the same again") += 1;
    *fence.enter(new).expect("the next") += 10;
    let refused = fence.enter(old).expect_err("it is older");
    assert_eq!((refused.token, refused.latest, fence.latest()), (7, 8, 8));
    assert_eq!(*fence.enter(new).expect("the latest"), 12);
    let mut again = Fence::restored(12, fence.latest());
    assert!(again.enter(old).is_err(), "also after a restart");
}

/// Regression corpus 52: once the end of a session was proposed its renewal is refused, though the
/// command was not applied yet.
#[test]
fn a_session_whose_end_was_proposed_is_not_renewed() {
    let mut table = Table::new();
    table.apply(1, &Command::BeginReign, &mut Vec::new());
    table.apply(2, &Command::OpenSession { ttl_ms: TTL_MS }, &mut Vec::new());
    let mut leases = Leases::new(0, 1, &table);
    let end = TTL_MS * MS;
    while let Some(command) = leases.poll(end / 2) {
        assert!(matches!(command, Command::Checkpoint { .. }), "{command:?}");
    }
    assert_eq!(leases.poll(end), Some(Command::Expire { reign: 1, session: 2 }));
    assert_eq!(leases.renew(end, 2), Renewal::Ended);
    assert_eq!(leases.renew(end + 5 * MS, 2), Renewal::Ended);
    assert!(table.has_session(2), "not applied yet");
}
