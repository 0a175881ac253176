//! Who waits for what, from the events alone.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::bus::Observed;
use super::event::DeadLetter;
use super::participant::Participant;

/// Answers to an event, of one participant at most: `answered` takes so many unseen ones for each.
const MAX_ANSWERS_OF_AN_EVENT: usize = 8;

/// What a watcher remembers. Start from [`Default`] and change fields.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WatcherConfig {
    /// Wholes that are remembered; the one that began first is forgotten first. Default 10,000.
    pub max_sagas: usize,
    /// Events of one whole that rules are looked up for. Later ones are counted, duplicates of them
    /// too, and seen as answers to those before them. Default 1,000.
    pub max_events: usize,
    /// Dead letters that are kept, of all wholes together; the oldest goes first. Default 1,000.
    pub max_dead: usize,
}

impl Default for WatcherConfig {
    fn default() -> Self {
        Self { max_sagas: 10_000, max_events: 1000, max_dead: 1000 }
    }
}

/// A rule that an event has been published for, and that has not answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Awaited {
    /// The participant.
    pub participant: String,
    /// Its rule.
    pub rule: String,
    /// The key.
    pub key: String,
    /// Kinds that have come.
    pub has: Vec<String>,
    /// Kinds that it waits for. None: it is at work.
    pub missing: Vec<String>,
    /// When the first of the events was observed, by the caller's clock.
    pub since: u64,
}

/// A whole, as far as its events tell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SagaView {
    /// The key of the event that began it.
    pub saga: String,
    /// Events that were observed, duplicates left out.
    pub events: usize,
    /// The kind of the latest event.
    pub last: String,
    /// The reactions between the first event and the farthest.
    pub hops: u32,
    /// When it should have ended, in ns since the UNIX epoch.
    pub deadline: Option<u64>,
    /// Who is at work, and who waits for what.
    pub awaited: Vec<Awaited>,
    /// Events that were given up.
    pub dead: usize,
}

impl SagaView {
    /// Whether nobody is at work: what is left waits for events that may never come.
    pub fn is_quiet(&self) -> bool {
        self.awaited.iter().all(|one| !one.missing.is_empty())
    }
}

#[derive(Default)]
struct Seen {
    /// Invariant: the ids of `kept`.
    ids: HashSet<String>,
    /// Invariant: at most `max_events`.
    kept: Vec<Kept>,
    /// Events past `max_events`.
    beyond: usize,
    last: String,
    hops: u32,
    deadline: Option<u64>,
    /// Participant, rule and cause of each reaction that has been observed, as `source` and cause.
    /// Invariant: of rules of the participants. Answers to events that were not observed yet are
    /// taken only up to `MAX_ANSWERS_OF_AN_EVENT` times `max_events` of all.
    answered: HashSet<(String, String)>,
    dead: usize,
}

/// What is kept of an event.
struct Kept {
    observed_at: u64,
    id: String,
    kind: String,
    key: String,
}

/// Knows the rules of participants, and says from the events who waits for what.
pub struct Watcher {
    participants: Vec<Participant>,
    config: WatcherConfig,
    sagas: HashMap<String, Seen>,
    /// By age. Invariant: the keys of `sagas`.
    order: VecDeque<String>,
    dead: VecDeque<DeadLetter>,
    /// The rules of the participants, as events name them.
    sources: HashSet<String>,
}

impl Watcher {
    /// A watcher of these participants.
    pub fn new<'a>(
        participants: impl IntoIterator<Item = &'a Participant>,
        config: WatcherConfig,
    ) -> Self {
        let participants: Vec<Participant> = participants.into_iter().cloned().collect();
        let sources = participants
            .iter()
            .flat_map(|one| one.rules.iter().map(|rule| format!("{}/{}", one.name, rule.name)));
        let sources = sources.collect();
        let (sagas, order, dead) = (HashMap::new(), VecDeque::new(), VecDeque::new());
        Self { participants, config, sagas, order, dead, sources }
    }

    /// Takes what was observed at `now`.
    pub fn observe(&mut self, now: u64, observed: &Observed) {
        let max_events = self.config.max_events;
        match observed {
            Observed::Event(event) => {
                let seen = self.seen(&event.saga);
                if seen.ids.contains(&event.id) {
                    return;
                }
                seen.last.clone_from(&event.kind);
                seen.hops = seen.hops.max(event.hops);
                seen.deadline = seen.deadline.or(event.deadline);
                if seen.kept.len() < max_events {
                    seen.ids.insert(event.id.clone());
                    let (id, kind, key) = (event.id.clone(), event.kind.clone(), event.key.clone());
                    seen.kept.push(Kept { observed_at: now, id, kind, key });
                } else {
                    seen.beyond += 1;
                }
                self.answer(&event.saga, event.source.clone(), &event.cause);
            }
            Observed::Dead(letter) => {
                let event = &letter.event;
                self.seen(&event.saga).dead += 1;
                // A reaction that could not be published has ended too.
                self.answer(&event.saga, event.source.clone(), &event.cause);
                if let super::DeadReason::Failed { rule, .. } = &letter.why {
                    let source = format!("{}/{rule}", letter.participant);
                    self.answer(&event.saga, source, &event.id);
                }
                self.dead.push_back(letter.clone());
                if self.dead.len() > self.config.max_dead {
                    self.dead.pop_front();
                }
            }
        }
    }

    /// A whole, if it is remembered.
    pub fn saga(&self, saga: &str) -> Option<SagaView> {
        self.sagas.get(saga).map(|seen| self.view(saga, seen))
    }

    /// All wholes in which somebody is at work or waits, the oldest first.
    pub fn open(&self) -> Vec<SagaView> {
        let views = self.order.iter().filter_map(|saga| self.saga(saga));
        views.filter(|view| !view.awaited.is_empty()).collect()
    }

    /// Dead letters, the oldest first.
    pub fn dead(&self) -> impl ExactSizeIterator<Item = &DeadLetter> {
        self.dead.iter()
    }

    /// Notes that a rule has answered an event.
    fn answer(&mut self, saga: &str, source: String, cause: &str) {
        let max = self.config.max_events.saturating_mul(MAX_ANSWERS_OF_AN_EVENT);
        let Some(seen) = self.sagas.get_mut(saga) else { return };
        let is_kept = seen.ids.contains(cause) || seen.answered.len() < max;
        if is_kept && self.sources.contains(&source) {
            seen.answered.insert((source, cause.to_owned()));
        }
    }

    fn seen(&mut self, saga: &str) -> &mut Seen {
        if !self.sagas.contains_key(saga) {
            self.order.push_back(saga.to_owned());
            // Ends: each round forgets one.
            while self.order.len() > self.config.max_sagas.max(1) {
                let oldest = self.order.pop_front();
                oldest.map(|oldest| self.sagas.remove(&oldest));
            }
        }
        self.sagas.entry(saga.to_owned()).or_default()
    }

    fn view(&self, saga: &str, seen: &Seen) -> SagaView {
        let mut awaited = Vec::new();
        for participant in &self.participants {
            for rule in &*participant.rules {
                // The events of each kind, by key, in the order in which they were observed.
                let mut keys: BTreeMap<&str, Vec<Vec<&Kept>>> = BTreeMap::new();
                for observed in &seen.kept {
                    let at = rule.kinds.iter().position(|kind| *kind == observed.kind);
                    let Some(at) = at else { continue };
                    let slots = keys.entry(&observed.key);
                    let slots = slots.or_insert_with(|| vec![Vec::new(); rule.kinds.len()]);
                    slots[at].push(observed);
                }
                let source = format!("{}/{}", participant.name, rule.name);
                for (key, slots) in keys {
                    let of = |nth: usize| slots.iter().map(move |slot| slot.get(nth).copied());
                    let joins = slots.iter().map(Vec::len).max().unwrap_or(0);
                    for nth in 0..joins {
                        let first = slots[0].get(nth).map(|event| &event.id);
                        let is_answered = first.is_some_and(|id| {
                            seen.answered.contains(&(source.clone(), id.clone()))
                        });
                        if is_answered {
                            continue;
                        }
                        let come: Vec<_> = of(nth).flatten().collect();
                        let kinds = rule.kinds.iter().zip(of(nth));
                        let missing = kinds.filter(|(_, event)| event.is_none());
                        awaited.push(Awaited {
                            participant: participant.name.to_string(),
                            rule: rule.name.clone(),
                            key: key.to_owned(),
                            has: come.iter().map(|event| event.kind.clone()).collect(),
                            missing: missing.map(|(kind, _)| kind.clone()).collect(),
                            since: come.iter().map(|event| event.observed_at).min().unwrap_or(0),
                        });
                    }
                }
            }
        }
        SagaView {
            saga: saga.to_owned(),
            events: seen.kept.len() + seen.beyond,
            last: seen.last.clone(),
            hops: seen.hops,
            deadline: seen.deadline,
            awaited,
            dead: seen.dead,
        }
    }
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("sagas", &self.sagas.len()).finish_non_exhaustive()
    }
}
