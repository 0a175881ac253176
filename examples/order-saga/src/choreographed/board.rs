//! Where each order is, from the events alone.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use tokio::sync::watch;
use voussoir_txn::choreography::{DeadLetter, DeadReason, Event, Observed};

use super::rules::{COMPLETED, Said, UNDONE, step_of, undone};
use crate::order::Order;
use crate::orders::{At, How, OrderError, ResolveError, State};

/// Orders that are remembered. The one that has ended first is forgotten first; one that has not
/// ended is never forgotten, for it may wait for an operator.
const MAX_ORDERS: usize = 100_000;
/// The step after which nothing is undone.
const PIVOT: &str = "shipping";

/// Whether an event of an order has been observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Never,
    Before,
}

pub(super) struct Board {
    held: Mutex<Held>,
}

impl Default for Board {
    fn default() -> Self {
        Self::new(MAX_ORDERS)
    }
}

struct Held {
    orders: HashMap<String, Entry>,
    /// Those that have ended, in this order.
    ended: VecDeque<String>,
    max_orders: usize,
}

struct Entry {
    order: Order,
    seen: Seen,
    /// Reactions that were given up and not answered.
    letters: Vec<DeadLetter>,
    /// Ids of the events: a letter may be observed after the event that answers it. Empty once the
    /// order has ended.
    ids: Vec<String>,
    state: watch::Sender<State>,
}

impl Board {
    pub(super) fn new(max_orders: usize) -> Self {
        let held = Held { orders: HashMap::new(), ended: VecDeque::new(), max_orders };
        Self { held: Mutex::new(held) }
    }

    /// Notes that an order is about to be published, unless it is there.
    pub(super) fn begin(
        &self,
        id: &str,
        order: &Order,
    ) -> Result<(Seen, watch::Receiver<State>), OrderError> {
        let mut held = self.held.lock();
        if !held.orders.contains_key(id) && held.is_full() {
            let many = held.max_orders;
            return Err(OrderError::Away(format!("{many} orders have not ended: see /stuck")));
        }
        let entry = held.entry(id, order);
        if entry.order != *order {
            return Err(OrderError::Mismatch);
        }
        Ok((entry.seen, entry.state.subscribe()))
    }

    /// Forgets an order of which no event has been observed: it was not published, or will be noted
    /// again with its first event.
    pub(super) fn withdraw(&self, id: &str) {
        let mut held = self.held.lock();
        if held.orders.get(id).is_some_and(|entry| entry.seen == Seen::Never) {
            held.orders.remove(id);
        }
    }

    /// Takes an event or a dead letter. One that comes again changes nothing.
    pub(super) fn observe(&self, observed: &Observed) {
        let event = match observed {
            Observed::Event(event) => event,
            Observed::Dead(letter) => &letter.event,
        };
        let Some(said) = Said::read(&event.body) else {
            tracing::warn!(id = event.id, "an event says nothing of an order");
            return;
        };
        let mut held = self.held.lock();
        let entry = held.entry(&event.saga, &said.order);
        if entry.seen == Seen::Never {
            // What is in the log counts, and not what a client has asked for since.
            (entry.order, entry.seen) = (said.order, Seen::Before);
        }
        if entry.has_ended() {
            return;
        }
        match observed {
            Observed::Event(event) => match &*event.kind {
                COMPLETED => entry.end(State::Completed),
                UNDONE => {
                    entry.end(State::Undone { because: said.because.unwrap_or_default() });
                }
                _ => entry.answered(&event.id),
            },
            Observed::Dead(letter) => entry.give_up(letter),
        }
        if entry.has_ended() {
            held.ended.push_back(event.saga.clone());
            let max_orders = held.max_orders;
            held.forget_ended(max_orders);
        }
    }

    pub(super) fn state(&self, id: &str) -> Option<State> {
        Some(self.held.lock().orders.get(id)?.state.borrow().clone())
    }

    pub(super) fn stuck(&self) -> Vec<(String, State)> {
        let held = self.held.lock();
        let all = held.orders.iter().map(|(id, entry)| (id.clone(), entry.state.borrow().clone()));
        all.filter(|(_, state)| matches!(state, State::Stuck(_))).collect()
    }

    pub(super) fn open(&self) -> usize {
        self.held.lock().orders.values().filter(|entry| !entry.has_ended()).count()
    }

    /// The event by which an operator answers a dead letter.
    pub(super) fn answer(&self, id: &str, step: &str, how: How) -> Result<Event, ResolveError> {
        let held = self.held.lock();
        let entry = held.orders.get(id).ok_or(ResolveError::NotFound)?;
        let letter = entry.letters.iter().find(|letter| at(letter).step == step);
        let letter = letter.ok_or(ResolveError::NotFound)?;
        let fits = match how {
            How::Retry => true,
            How::Skip => at(letter).is_undo,
            How::NotRun => step == PIVOT,
        };
        if !fits {
            let why = format!("{how:?} does not fit the step {step}");
            return Err(ResolveError::Rejected(why));
        }
        Ok(if how == How::Retry { letter.revived() } else { instead(letter) })
    }

    /// The event with this id is published.
    pub(super) fn answered(&self, id: &str, event: &str) {
        if let Some(entry) = self.held.lock().orders.get_mut(id)
            && !entry.has_ended()
        {
            entry.answered(event);
        }
    }
}

impl Held {
    /// Whether no order can be forgotten for another one.
    fn is_full(&self) -> bool {
        self.orders.len() >= self.max_orders && self.ended.is_empty()
    }

    /// Forgets orders that have ended until so many are left.
    fn forget_ended(&mut self, left: usize) {
        while self.orders.len() > left
            && let Some(first) = self.ended.pop_front()
        {
            self.orders.remove(&first);
        }
    }

    fn entry(&mut self, id: &str, order: &Order) -> &mut Entry {
        if !self.orders.contains_key(id) {
            // Room for this one. What the log says of an order is taken, whatever the limit.
            self.forget_ended(self.max_orders.saturating_sub(1));
        }
        self.orders.entry(id.to_owned()).or_insert_with(|| Entry {
            order: order.clone(),
            seen: Seen::Never,
            letters: Vec::new(),
            ids: Vec::new(),
            state: watch::Sender::new(State::Open),
        })
    }
}

impl Entry {
    fn has_ended(&self) -> bool {
        !matches!(&*self.state.borrow(), State::Open | State::Stuck(_))
    }

    fn end(&mut self, state: State) {
        (self.letters, self.ids) = (Vec::new(), Vec::new());
        self.state.send_replace(state);
    }

    fn give_up(&mut self, letter: &DeadLetter) {
        let is_answered = self.ids.iter().any(|id| answers(letter, id));
        if !is_answered && !self.letters.contains(letter) {
            self.letters.push(letter.clone());
            self.tell();
        }
    }

    fn answered(&mut self, id: &str) {
        if !self.ids.iter().any(|known| known == id) {
            self.ids.push(id.to_owned());
        }
        let before = self.letters.len();
        self.letters.retain(|letter| !answers(letter, id));
        if self.letters.len() != before {
            self.tell();
        }
    }

    fn tell(&self) {
        self.state.send_replace(if self.letters.is_empty() {
            State::Open
        } else {
            State::Stuck(self.letters.iter().map(at).collect())
        });
    }
}

/// Whether the event with this id was published for the letter.
fn answers(letter: &DeadLetter, id: &str) -> bool {
    letter.revived().id == id || instead(letter).id == id
}

/// Says that nothing stands of the step that was given up.
fn instead(letter: &DeadLetter) -> Event {
    let event = &letter.event;
    let because = "an operator says so".to_owned();
    let body = Said::read(&event.body)
        .map(|said| Said { because: said.because.or(Some(because)), ..said }.body());
    let body = body.unwrap_or_else(|| event.body.to_vec());
    let id = format!("instead/{}", letter.revived().id);
    Event::first(&id, &undone(&at(letter).step), &event.saga, body)
}

fn at(letter: &DeadLetter) -> At {
    let (step, is_undo) = match &letter.why {
        DeadReason::Failed { rule, .. } => step_of(rule),
        _ => (&*letter.participant, false),
    };
    At { step: step.to_owned(), is_undo, why: letter.why.to_string() }
}
