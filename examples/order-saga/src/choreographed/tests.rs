//! The participants over a bus in memory, with services that fail in every way.

use std::sync::atomic::{AtomicU64, Ordering};

use voussoir_txn::StepError;
use voussoir_txn::choreography::{MemoryBus, Observed};

use super::*;
use crate::saga::{Answer, STEPS};
use crate::services::{Failure, Tables};

const WAIT: Duration = Duration::from_secs(60);
/// So many that no call is one of those that fail each time.
const ATTEMPTS: u32 = 30;

/// The services, called directly. Each `trouble`th call fails, every other one after its effect.
struct Troubled {
    tables: Tables,
    trouble: u64,
    calls: AtomicU64,
}

impl Troubled {
    fn new(trouble: u64) -> Arc<Self> {
        Arc::new(Self { tables: Tables::default(), trouble, calls: AtomicU64::new(0) })
    }

    fn call<T>(&self, act: impl FnOnce() -> Result<T, Failure>) -> Answer<T> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let fails = self.trouble > 0 && number.is_multiple_of(self.trouble);
        if fails && (number / self.trouble).is_multiple_of(2) {
            return Err(StepError::unknown("it never came"));
        }
        let answer = act();
        if fails {
            return Err(StepError::unknown("the answer was lost"));
        }
        answer.map_err(|failure| match failure {
            Failure::Refused(why) => StepError::domain(why),
            Failure::Away => StepError::unknown("away"),
        })
    }
}

#[async_trait]
impl Peers for Troubled {
    async fn act(&self, step: &'static str, saga: &str, order: &Order) -> Answer<String> {
        self.call(|| self.tables.act(step, saga, order))
    }

    async fn undo(&self, step: &'static str, saga: &str) -> Answer<()> {
        self.call(|| self.tables.undo(step, saga))
    }
}

fn order() -> Order {
    let text = |text: &str| text.to_owned();
    let (customer, article, card) = (text("ann"), text("lamp"), text("c-1"));
    Order { customer, article, quantity: 2, card, cents: 4_200, address: text("Lane 1") }
}

fn refused_at(step: &str) -> Order {
    let order = order();
    match step {
        "order" => Order { customer: "blocked".to_owned(), ..order },
        "stock" => Order { article: "sold-out".to_owned(), ..order },
        "payment" => Order { card: "declined".to_owned(), ..order },
        _ => Order { address: "nowhere".to_owned(), ..order },
    }
}

async fn start(bus: &Arc<dyn Bus>, peers: &Arc<Troubled>, attempts: u32) -> Choreographed {
    let peers: Arc<dyn Peers> = Arc::<Troubled>::clone(peers);
    let retry = Retry::exponential(Duration::from_millis(1), attempts);
    Choreographed::start(Arc::clone(bus), &peers, &retry, WAIT).await.expect("it starts")
}

fn bus() -> Arc<dyn Bus> {
    Arc::new(MemoryBus::new(100_000))
}

fn calls(peers: &Troubled, id: &str) -> Vec<String> {
    let prefix = format!("{id}: ");
    let history = peers.tables.totals().history;
    history.iter().filter_map(|call| call.strip_prefix(&prefix)).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_refusal_at_each_step_is_undone_in_reverse() {
    let (bus, peers) = (bus(), Troubled::new(0));
    let orders = start(&bus, &peers, 3).await;
    assert_eq!(orders.order("well", &order(), WAIT).await, Ok(State::Completed));
    assert_eq!(calls(&peers, "well"), STEPS);
    for (at, step) in STEPS[..4].iter().enumerate() {
        let ended = orders.order(step, &refused_at(step), WAIT).await;
        assert!(matches!(ended, Ok(State::Undone { .. })), "{step}: {ended:?}");
        let mut expected: Vec<String> = STEPS[..at].iter().map(|&one| one.to_owned()).collect();
        expected.push(format!("{step} refused"));
        expected.extend(STEPS[..at].iter().rev().map(|one| format!("undo {one}")));
        assert_eq!(calls(&peers, step), expected);
    }
    assert_eq!(orders.order("well", &refused_at("stock"), WAIT).await, Err(OrderError::Mismatch));
    assert_eq!(orders.open(), 0);
}

/// Calls that fail before and after their effect, with participants that are replaced meanwhile.
#[tokio::test]
async fn every_order_is_done_at_all_services_or_at_none() {
    let (bus, peers) = (bus(), Troubled::new(3));
    let mut told = Vec::new();
    for life in 0..10 {
        let orders = Arc::new(start(&bus, &peers, ATTEMPTS).await);
        let mut clients = JoinSet::new();
        for number in 0..20 {
            let id = format!("{life}-{number}");
            let asked = if number % 5 == 4 { order() } else { refused_at(STEPS[number % 5]) };
            let orders = Arc::clone(&orders);
            clients.spawn(async move {
                // Half of the clients go at once: their orders end in a later life.
                let wait = if number % 2 == 0 { Duration::ZERO } else { WAIT };
                drop(orders.order(&id, &asked, wait).await);
                (id, asked)
            });
        }
        told.extend(clients.join_all().await);
        // Dropped: what is under way is called again, by the next.
    }
    let orders = start(&bus, &peers, ATTEMPTS).await;
    let (mut completed, mut undone) = (0, 0);
    for (id, asked) in told {
        let ended = orders.order(&id, &asked, WAIT).await;
        let held = peers.tables.totals().done.remove(&id).unwrap_or_default().len();
        match ended {
            Ok(State::Completed) => {
                assert_eq!(held, STEPS.len(), "{id}");
                completed += 1;
            }
            Ok(State::Undone { .. }) => {
                assert_eq!(held, 0, "{id}");
                undone += 1;
            }
            other => panic!("{id}: {other:?}"),
        }
    }
    assert_eq!((completed, undone), (40, 160));
}

/// A step whose answers never come, and one whose order is late, are taken back.
#[tokio::test]
async fn what_may_have_run_is_taken_back() {
    let (bus, peers) = (bus(), Troubled::new(1));
    let orders = start(&bus, &peers, 2).await;
    // Each call fails, so the undo of what may have run is given up as well.
    let stuck = orders.order("lost", &order(), WAIT).await;
    let Ok(State::Stuck(at)) = stuck else { panic!("{stuck:?}") };
    assert_eq!((at.len(), &*at[0].step, at[0].is_undo), (1, "order", true));
    drop(orders);
    let calm = Troubled::new(0);
    let mut late = start(&bus, &calm, 2).await;
    assert_eq!(late.state("lost"), Some(State::Stuck(at)), "also after a restart");
    late.resolve("lost", "order", How::Retry).await.expect("it is tried again");
    let ended = late.order("lost", &order(), WAIT).await;
    assert!(matches!(ended, Ok(State::Undone { .. })), "{ended:?}");
    late.limit = Duration::ZERO;
    let ended = late.order("late", &order(), WAIT).await;
    let because = "its time was over".to_owned();
    assert_eq!(ended, Ok(State::Undone { because }));
    assert_eq!(calls(&calm, "late"), ["undo order"]);
}

#[tokio::test]
async fn a_broken_undo_is_stuck_until_an_operator_answers() {
    let (bus, peers) = (bus(), Troubled::new(0));
    let orders = start(&bus, &peers, 2).await;
    peers.tables.set_broken("stock", true);
    for (id, how) in [("retried", How::Retry), ("skipped", How::Skip)] {
        let stuck = orders.order(id, &refused_at("shipping"), WAIT).await;
        let Ok(State::Stuck(at)) = stuck else { panic!("{stuck:?}") };
        assert_eq!((at.len(), &*at[0].step, at[0].is_undo), (1, "stock", true));
        assert_eq!(orders.stuck().len(), 1);
        assert_eq!(orders.resolve(id, "payment", how).await, Err(ResolveError::NotFound));
        let wrong = orders.resolve(id, "stock", How::NotRun).await;
        assert!(matches!(wrong, Err(ResolveError::Rejected(_))), "{wrong:?}");
        peers.tables.set_broken("stock", how == How::Skip);
        assert_eq!(orders.resolve(id, "stock", how).await, Ok(()));
        let ended = orders.order(id, &refused_at("shipping"), WAIT).await;
        assert!(matches!(ended, Ok(State::Undone { .. })), "{ended:?}");
        peers.tables.set_broken("stock", true);
    }
    drop(orders);
    let again = start(&bus, &peers, 2).await;
    assert_eq!((again.open(), again.stuck()), (0, vec![]), "answered letters stay answered");
    letters_and_events_may_come_in_any_order(&bus).await;
}

/// They are in topics apart, and are read side by side.
async fn letters_and_events_may_come_in_any_order(bus: &Arc<dyn Bus>) {
    let (mut events, mut letters) = (Vec::new(), Vec::new());
    let mut tail = bus.tail().await.expect("the bus has a tail");
    loop {
        let next = tail.next(CATCH_UP).await.expect("it is read");
        if next.is_empty() {
            break;
        }
        for one in next {
            if matches!(one, Observed::Event(_)) { events.push(one) } else { letters.push(one) }
        }
    }
    assert_eq!(letters.len(), 2);
    let is_end = |one: &Observed| matches!(one, Observed::Event(one) if one.kind == rules::UNDONE);
    let unended: Vec<Observed> = events.iter().filter(|one| !is_end(one)).cloned().collect();
    for (events, open) in [(events, 0), (unended, 2)] {
        let orders = [[&letters, &events], [&events, &letters]];
        for observed in orders {
            let board = Board::default();
            observed.into_iter().flatten().for_each(|one| board.observe(one));
            assert_eq!((board.open(), board.stuck()), (open, vec![]));
        }
    }
}

/// The one that waits for an operator is the oldest of all, and still there.
#[test]
fn what_has_ended_is_forgotten_and_what_is_open_never() {
    let event = |kind: &str, id: &str| {
        let body = Said { order: order(), because: None }.body();
        Observed::Event(Event::first(&format!("{id}/{kind}"), kind, id, body))
    };
    let board = Board::new(2);
    for id in ["a", "b"] {
        board.begin(id, &order()).unwrap();
        board.observe(&event(rules::REQUESTED, id));
    }
    assert!(matches!(board.begin("c", &order()), Err(OrderError::Away(_))), "both are open");
    board.observe(&event(rules::COMPLETED, "b"));
    board.begin("c", &order()).unwrap();
    assert_eq!((board.state("a"), board.state("b")), (Some(State::Open), None));
    // It was never published: whoever asked for it has gone.
    board.withdraw("c");
    assert_eq!((board.state("a"), board.state("c")), (Some(State::Open), None));
    board.begin("d", &order()).unwrap();
}
