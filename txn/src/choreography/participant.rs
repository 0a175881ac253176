//! Participants and their rules: what they react to, and how.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::config::is_duration;
use super::event::{DONE, Event, MAX_NAME_BYTES, NewEvent};
use crate::config::Retry;
use crate::definition::BoxFuture;
use crate::error::ConfigError;

type Run = dyn Fn(EventCx) -> BoxFuture<Result<Vec<NewEvent>, ReactError>> + Send + Sync;

/// The most kinds of one rule.
const MAX_KINDS: usize = 16;
/// The most rules of one participant.
const MAX_RULES: usize = 100;
/// The most rules that one event is given to: each keeps a copy.
const MAX_RULES_OF_A_KIND: usize = 8;

/// A reaction failed. It is tried again with the same key, up to the attempts of
/// [`Rule::retry`]; then its events become dead letters, and the next of the key go on. What is
/// refused for good is no error: publish an event that says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReactError(pub String);

impl ReactError {
    /// From anything that can be shown.
    pub fn new(why: impl ToString) -> Self {
        Self(why.to_string())
    }
}

/// What a reaction is called with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EventCx {
    /// The same on every attempt in every process: note it in the transaction of the effect (an
    /// [`Inbox`](https://docs.rs/voussoir-txn)), so that a reaction that runs twice has its effect
    /// once.
    pub key: String,
    /// The events, in the order of the rule's kinds. At least one.
    pub events: Vec<Event>,
    /// The attempt, from 1 on. After a restart it counts on from what was recorded.
    pub attempt: u32,
}

impl EventCx {
    /// The event of the rule's first kind.
    pub fn event(&self) -> &Event {
        &self.events[0]
    }

    /// The body of the rule's first event.
    pub fn body(&self) -> &Bytes {
        &self.events[0].body
    }
}

/// What a participant reacts to: an event of one kind, or events of several kinds with one key.
#[derive(Clone)]
pub struct Rule {
    pub(super) name: String,
    pub(super) kinds: Vec<String>,
    pub(super) within: Duration,
    pub(super) on_timeout: Option<String>,
    pub(super) late: Option<String>,
    pub(super) retry: Retry,
    pub(super) timeout: Duration,
    pub(super) run: Arc<Run>,
}

impl Rule {
    /// A reaction to events of `kind`. `name` is unique among the participant's rules and part of
    /// the idempotency key: keep it.
    pub fn on<F, Fut>(kind: &str, name: &str, run: F) -> Self
    where
        F: Fn(EventCx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<NewEvent>, ReactError>> + Send + 'static,
    {
        Self {
            name: name.to_owned(),
            kinds: vec![kind.to_owned()],
            within: Duration::from_secs(3600),
            on_timeout: None,
            late: None,
            retry: Retry::default(),
            timeout: Duration::from_secs(30),
            run: Arc::new(move |cx| Box::pin(run(cx))),
        }
    }

    /// Waits for an event of `kind` with the same key too. It may come before the first one: it is
    /// parked then.
    #[must_use]
    pub fn and(mut self, kind: &str) -> Self {
        self.kinds.push(kind.to_owned());
        self
    }

    /// How long events wait for each other: from the first kind on, and an event that is parked
    /// from its own coming on. Default 1 hour.
    #[must_use]
    pub fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// The kind of the event that is published, with the body of the first one, when that has come
    /// and the others have not in time. Default: none, and the join just ends. The events that had
    /// come for it end with it; later ones of the key wait for the next join, for their own time.
    #[must_use]
    pub fn on_timeout(mut self, kind: &str) -> Self {
        self.on_timeout = Some(kind.to_owned());
        self
    }

    /// The kind of the event that is published, with the body of the first one, instead of the
    /// reaction when the deadline of an event is over. Default: none, and the reaction runs all the
    /// same, as one that compensates must.
    #[must_use]
    pub fn late(mut self, kind: &str) -> Self {
        self.late = Some(kind.to_owned());
        self
    }

    /// Attempts and the delays between them. Default [`Retry::default`].
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// How long an attempt may take. Default 30 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, kinds, .. } = self;
        f.debug_struct("Rule").field("name", name).field("kinds", kinds).finish_non_exhaustive()
    }
}

/// A participant that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParticipantError {
    /// A name or kind is empty, longer than 100 bytes, or has a slash or a zero byte, or is
    /// `voussoir.done`, which this crate publishes.
    #[error("`{0}` is no name: from 1 to 100 bytes, without slash and zero byte, not `{DONE}`")]
    Name(String),
    /// Two rules have one name, or a rule has one kind twice.
    #[error("`{0}` stands there twice")]
    Duplicate(String),
    /// A rule has more than 16 kinds, or a participant none or more than 100 rules, or
    /// more than 8 rules have one kind.
    #[error("`{name}` has {count}, from 1 to {max}")]
    Count {
        /// The rule, participant or kind.
        name: String,
        /// How many it has.
        count: usize,
        /// The most.
        max: usize,
    },
    /// A time of a rule, or its retry, is out of range.
    #[error("the rule `{rule}`: {error}")]
    Rule {
        /// The rule.
        rule: String,
        /// What is wrong.
        error: ConfigError,
    },
}

/// One that reacts to events. Clones are the same.
#[derive(Clone, Debug)]
pub struct Participant {
    pub(super) name: Arc<str>,
    pub(super) rules: Arc<[Rule]>,
}

impl Participant {
    /// A participant with these rules. An event is given to each rule that has its kind, in this
    /// order.
    ///
    /// # Errors
    /// [`ParticipantError`].
    pub fn new(
        name: &str,
        rules: impl IntoIterator<Item = Rule>,
    ) -> Result<Self, ParticipantError> {
        let rules: Arc<[Rule]> = rules.into_iter().collect();
        check_name(name)?;
        check_count(name, rules.len(), MAX_RULES)?;
        let mut names = std::collections::HashSet::new();
        for rule in &*rules {
            if !names.insert(&rule.name) {
                return Err(ParticipantError::Duplicate(rule.name.clone()));
            }
            rule.check()?;
            for kind in &rule.kinds {
                let count = rules.iter().filter(|other| other.kinds.contains(kind)).count();
                check_count(kind, count, MAX_RULES_OF_A_KIND)?;
            }
        }
        Ok(Self { name: name.into(), rules })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Rule {
    fn check(&self) -> Result<(), ParticipantError> {
        check_name(&self.name)?;
        check_count(&self.name, self.kinds.len(), MAX_KINDS)?;
        let published = [&self.on_timeout, &self.late];
        for kind in self.kinds.iter().chain(published.into_iter().flatten()) {
            check_name(kind)?;
        }
        for (at, kind) in self.kinds.iter().enumerate() {
            if self.kinds[..at].contains(kind) {
                return Err(ParticipantError::Duplicate(kind.clone()));
            }
        }
        let rule = "must be from 1 ms to 100 years";
        let times = [("within", self.within), ("timeout", self.timeout)];
        let bad = times.into_iter().find(|(_, time)| !is_duration(*time));
        let bad = bad.map(|(field, _)| ConfigError { field, rule });
        match bad.or(self.retry.validate().err()) {
            Some(error) => Err(ParticipantError::Rule { rule: self.name.clone(), error }),
            None => Ok(()),
        }
    }
}

fn check_name(name: &str) -> Result<(), ParticipantError> {
    let fits = (1..=MAX_NAME_BYTES / 2).contains(&name.len())
        && !name.contains(['/', '\0'])
        && name != DONE;
    if fits { Ok(()) } else { Err(ParticipantError::Name(name.to_owned())) }
}

fn check_count(name: &str, count: usize, max: usize) -> Result<(), ParticipantError> {
    if (1..=max).contains(&count) {
        return Ok(());
    }
    Err(ParticipantError::Count { name: name.to_owned(), count, max })
}
