//! What was sent, acknowledged and delivered: the oracle of a queue.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::fmt;

/// Keeps account of messages through a queue, as one group of consumers sees them.
///
/// Producers name each message by a number of its own and a key; messages of one key are to be
/// delivered in the order they were sent.
///
/// # Example
/// ```
/// use voussoir_sim::{Guarantee, Ledger, LedgerError};
/// let mut ledger = Ledger::new();
/// ledger.sent(1, 7);
/// ledger.sent(1, 8);
/// ledger.acknowledged(7);
/// ledger.delivered(7);
/// assert!(ledger.check(Guarantee::ExactlyOnce).is_ok()); // nobody was promised 8
/// ledger.acknowledged(8);
/// let lost = ledger.check(Guarantee::AtLeastOnce);
/// assert_eq!(lost, Err(LedgerError::Lost { ids: vec![8] }));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Per message: its key and its place among those sent with this key.
    sent: HashMap<u64, (u64, u64)>,
    per_key: HashMap<u64, u64>,
    acknowledged: Vec<u64>,
    /// In order of delivery, each with how often.
    first_deliveries: Vec<u64>,
    deliveries: HashMap<u64, u64>,
    /// The first message that was delivered or acknowledged before it was sent.
    invented: Option<u64>,
}

/// What a queue promises its consumers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Guarantee {
    /// Nothing twice; what was acknowledged may be lost.
    AtMostOnce,
    /// Nothing acknowledged is lost; messages may come again.
    AtLeastOnce,
    /// Nothing acknowledged is lost, and nothing comes again.
    ExactlyOnce,
}

/// The sums of a [`Ledger`] that holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Balance {
    /// How many messages were handed in.
    pub sent: u64,
    /// How many of them were acknowledged.
    pub acknowledged: u64,
    /// How many different ones were delivered.
    pub delivered: u64,
    /// How many deliveries were repetitions.
    pub repeated: u64,
    /// How many acknowledged ones were not delivered; 0 but for [`Guarantee::AtMostOnce`].
    pub missing: u64,
}

/// A [`Ledger`] that does not hold: the queue under test is at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LedgerError {
    /// Acknowledged and never delivered.
    Lost {
        /// The messages, at most 16 of them.
        ids: Vec<u64>,
    },
    /// Delivered or acknowledged before it was sent, or never sent at all.
    Invented {
        /// The message.
        id: u64,
    },
    /// Delivered more than once.
    Repeated {
        /// The message.
        id: u64,
        /// How often.
        times: u64,
    },
    /// Delivered for the first time after a later one of the same key.
    OutOfOrder {
        /// The key.
        key: u64,
        /// The message delivered before.
        before: u64,
        /// The message that had been sent earlier.
        late: u64,
    },
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { ids } => write!(f, "acknowledged but never delivered: {ids:?}"),
            Self::Invented { id } => {
                write!(f, "message {id} was delivered or acknowledged before it was sent")
            }
            Self::Repeated { id, times } => write!(f, "message {id} was delivered {times} times"),
            Self::OutOfOrder { key, before, late } => {
                write!(f, "key {key}: message {late} came after {before}, which was sent later")
            }
        }
    }
}

impl Error for LedgerError {}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// A producer hands in message `id` with `key`. Sending the same message again, as after a
    /// timeout, changes nothing.
    pub fn sent(&mut self, key: u64, id: u64) {
        let place = self.per_key.entry(key).or_default();
        self.sent.entry(id).or_insert_with(|| {
            *place += 1;
            (key, *place)
        });
    }

    /// The queue has taken on message `id`.
    pub fn acknowledged(&mut self, id: u64) {
        self.must_be_sent(id);
        self.acknowledged.push(id);
    }

    /// A ledger is kept in the order in which things happen: what comes before its `sent` was
    /// made up, also if it is sent later.
    fn must_be_sent(&mut self, id: u64) {
        if !self.sent.contains_key(&id) {
            self.invented.get_or_insert(id);
        }
    }

    /// A consumer of the group is given message `id`.
    pub fn delivered(&mut self, id: u64) {
        self.must_be_sent(id);
        let times = self.deliveries.entry(id).or_default();
        *times += 1;
        if *times == 1 {
            self.first_deliveries.push(id);
        }
    }

    /// Holds the ledger against what was promised.
    ///
    /// # Errors
    /// [`LedgerError`] for the first promise that was broken: order and inventions are checked
    /// for every guarantee.
    pub fn check(&self, guarantee: Guarantee) -> Result<Balance, LedgerError> {
        if let Some(id) = self.invented {
            return Err(LedgerError::Invented { id });
        }
        let mut latest: HashMap<u64, (u64, u64)> = HashMap::new();
        for &id in &self.first_deliveries {
            let &(key, place) = self.sent.get(&id).ok_or(LedgerError::Invented { id })?;
            let top = latest.entry(key).or_insert((place, id));
            if place < top.0 {
                return Err(LedgerError::OutOfOrder { key, before: top.1, late: id });
            }
            *top = (place, id);
        }
        let times = |id: &u64| self.deliveries.get(id).copied().unwrap_or(0);
        let repeated = self.first_deliveries.iter().find(|&id| times(id) > 1);
        if let Some(&id) = repeated.filter(|_| guarantee != Guarantee::AtLeastOnce) {
            return Err(LedgerError::Repeated { id, times: times(&id) });
        }
        let acknowledged: HashSet<u64> = self.acknowledged.iter().copied().collect();
        let mut missing: Vec<u64> =
            acknowledged.iter().copied().filter(|id| times(id) == 0).collect();
        let balance = Balance {
            sent: self.sent.len() as u64,
            acknowledged: acknowledged.len() as u64,
            delivered: self.first_deliveries.len() as u64,
            repeated: self.deliveries.values().map(|times| times - 1).sum(),
            missing: missing.len() as u64,
        };
        if guarantee != Guarantee::AtMostOnce && !missing.is_empty() {
            missing.sort_unstable();
            missing.truncate(16);
            return Err(LedgerError::Lost { ids: missing });
        }
        Ok(balance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(deliveries: &[u64]) -> Ledger {
        let mut ledger = Ledger::new();
        for id in 1..=4 {
            ledger.sent(id % 2, id);
            ledger.acknowledged(id);
        }
        ledger.sent(1, 5);
        ledger.sent(1, 5);
        for &id in deliveries {
            ledger.delivered(id);
        }
        ledger
    }

    const ALL: [Guarantee; 3] =
        [Guarantee::AtMostOnce, Guarantee::AtLeastOnce, Guarantee::ExactlyOnce];

    fn verdicts(deliveries: &[u64]) -> [Option<LedgerError>; 3] {
        ALL.map(|guarantee| ledger(deliveries).check(guarantee).err())
    }

    #[test]
    fn each_once_in_the_order_of_its_key_holds() {
        assert_eq!(verdicts(&[2, 1, 3, 4]), [None, None, None]);
        assert_eq!(verdicts(&[1, 3, 5, 2, 4]), [None, None, None], "unacknowledged may come");
        let balance = ledger(&[1, 1, 2, 3, 4, 2]).check(Guarantee::AtLeastOnce).unwrap();
        let expected = Balance { sent: 5, acknowledged: 4, delivered: 4, repeated: 2, missing: 0 };
        assert_eq!(balance, expected);
    }

    #[test]
    fn each_broken_promise_is_told() {
        let lost = || Some(LedgerError::Lost { ids: vec![2, 4] });
        assert_eq!(verdicts(&[1, 3]), [None, lost(), lost()]);
        let twice = || Some(LedgerError::Repeated { id: 1, times: 2 });
        assert_eq!(verdicts(&[1, 2, 1, 3, 4]), [twice(), None, twice()]);
        let invented = || Some(LedgerError::Invented { id: 9 });
        assert_eq!(verdicts(&[1, 9]), [invented(), invented(), invented()]);
        for early in [Ledger::delivered, Ledger::acknowledged] {
            let mut ledger = ledger(&[]);
            early(&mut ledger, 9);
            ledger.sent(1, 9);
            ledger.delivered(9);
            for guarantee in ALL {
                assert_eq!(ledger.check(guarantee).err(), invented(), "sent too late");
            }
        }
        let order = || Some(LedgerError::OutOfOrder { key: 1, before: 3, late: 1 });
        assert_eq!(verdicts(&[2, 3, 1, 4]), [order(), order(), order()]);
    }
}
