//! What the clients saw, and whether a lock service may show it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// An acquisition, and what followed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Operation {
    pub(crate) lock: u64,
    /// When it was sent.
    pub(crate) sent: u64,
    /// Whether it was granted, or certainly was not.
    pub(crate) is_answered: bool,
    /// Token, and the time after the answer.
    pub(crate) granted: Option<(u64, u64)>,
    /// It waited so shortly that no answer could come: its outcome is not known.
    pub(crate) is_short: bool,
    /// The latest time at which the holder's own lease said that it holds the lock.
    pub(crate) believed: u64,
    /// The release was sent.
    pub(crate) released: Option<u64>,
    /// Whether the release was confirmed, or the session had ended before.
    pub(crate) is_release_answered: bool,
}

#[derive(Default)]
pub(crate) struct History {
    /// By client and number.
    pub(crate) operations: BTreeMap<(u64, u64), Operation>,
    counts: HashMap<&'static str, u64>,
    /// A holder whose write was refused believed that it holds the lock.
    beliefs: Vec<(u64, u64)>,
}

impl History {
    /// Reads what the clients have written, each with its number.
    pub(crate) fn read(texts: &[(u64, String)]) -> Self {
        let mut history = Self::default();
        for (client, text) in texts {
            // A kill may have cut the last line.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            whole.lines().for_each(|line| history.add(*client, line));
        }
        history
    }

    fn add(&mut self, client: u64, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse().unwrap_or_else(|_| panic!("`{line}`"));
        let now = number(words.len() - 1);
        if words[0] == "lost" {
            *self.counts.entry("session lost").or_default() += 1;
            return;
        }
        let key = (client, number(1));
        let operation = self.operations.entry(key).or_default();
        let counted = match words[0] {
            "acquire" => {
                (operation.lock, operation.sent) = (number(2), now);
                "operations"
            }
            "granted" => {
                operation.granted = Some((number(2), now));
                operation.is_answered = true;
                "grants"
            }
            "not" => {
                operation.is_answered = true;
                "lock not free in time"
            }
            "permit" => {
                operation.believed = operation.believed.max(number(2));
                "permits"
            }
            "refused" => {
                if words[2] == "true" {
                    self.beliefs.push(key);
                }
                "refused"
            }
            "release" => {
                operation.released = Some(now);
                "operations"
            }
            "released" => {
                operation.is_release_answered = true;
                "releases"
            }
            "unknown" => "operation unknown",
            "short" => {
                operation.is_short = true;
                "wait shorter than a round trip"
            }
            other => panic!("`{other}`"),
        };
        *self.counts.entry(counted).or_default() += 1;
    }

    fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// Acquisitions and releases.
    pub(crate) fn operations(&self) -> u64 {
        self.count("operations")
    }

    /// Acquisitions and releases whose outcome their client does not know though it has waited,
    /// those among them that a kill has cut off.
    pub(crate) fn unknown(&self) -> u64 {
        let unknown = |one: &Operation| {
            let is_unreleased = one.released.is_some() && !one.is_release_answered;
            u64::from(!one.is_answered && !one.is_short) + u64::from(is_unreleased)
        };
        self.operations.values().map(unknown).sum()
    }

    pub(crate) fn situations(&self) -> impl Iterator<Item = (&'static str, u64)> {
        ["operation unknown", "session lost", "lock not free in time"]
            .map(|name| (name, self.count(name)))
            .into_iter()
    }

    /// Checks the history; returns the greatest token.
    pub(crate) fn check(&self) -> Result<u64, String> {
        if let Some((client, number)) = self.beliefs.first() {
            return Err(format!(
                "operation {number} of client {client} believed to hold its lock when a later one \
                 had written"
            ));
        }
        let granted = self.operations.iter().filter_map(|(key, one)| {
            let (token, at) = one.granted?;
            Some(Grant { token, at, key: *key, operation: one })
        });
        let mut granted: Vec<Grant<'_>> = granted.collect();
        granted.sort_by_key(|grant| grant.token);
        tokens_are_in_order(&granted)?;
        holders_exclude_each_other(&granted)?;
        Ok(granted.last().map_or(0, |grant| grant.token))
    }
}

/// No token twice, and a grant that was asked for after another had been answered has a greater
/// one, whatever the lock.
fn tokens_are_in_order(by_token: &[Grant<'_>]) -> Result<(), String> {
    for pair in by_token.windows(2) {
        if pair[0].token == pair[1].token {
            return Err(format!("one token twice: {:?} and {:?}", pair[0], pair[1]));
        }
    }
    // The earliest answer among all greater tokens must not precede the sending of a smaller.
    let mut earliest: Option<&Grant<'_>> = None;
    for grant in by_token.iter().rev() {
        if let Some(later) = earliest
            && later.at < grant.operation.sent
        {
            return Err(format!("a token fell: {later:?}, then {grant:?}"));
        }
        if earliest.is_none_or(|later| grant.at < later.at) {
            earliest = Some(grant);
        }
    }
    Ok(())
}

/// A holder neither believes to hold a lock, nor releases it for the first time, after one with a
/// greater token was told that it holds it.
fn holders_exclude_each_other(by_token: &[Grant<'_>]) -> Result<(), String> {
    let mut earliest: HashMap<u64, &Grant<'_>> = HashMap::new();
    for grant in by_token.iter().rev() {
        let lock = grant.operation.lock;
        if let Some(later) = earliest.get(&lock)
            && later.at < grant.operation.believed
        {
            return Err(format!("two holders: {grant:?} and {later:?}"));
        }
        if earliest.get(&lock).is_none_or(|later| grant.at < later.at) {
            earliest.insert(lock, grant);
        }
    }
    Ok(())
}

#[derive(Debug)]
struct Grant<'a> {
    token: u64,
    at: u64,
    /// Client and number of the operation.
    #[expect(dead_code, reason = "shown by Debug")]
    key: (u64, u64),
    operation: &'a Operation,
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (operations, grants, permits) =
            (self.operations(), self.count("grants"), self.count("permits"));
        let (unknown, lost) = (self.unknown(), self.count("session lost"));
        write!(f, "{operations} operations, {grants} grants, {permits} permits, ")?;
        let short = self.count("wait shorter than a round trip");
        write!(f, "{unknown} unknown, {short} waits shorter than a round trip, {lost} lost")
    }
}

/// The checker sees what it is for.
#[test]
fn the_checker_refuses_wrong_histories() {
    let check = |text: &str| History::read(&[(1, text.replace('|', "\n") + "\n")]).check();
    let good = "acquire 1 7 10|granted 1 5 20|permit 1 30 31|release 1 32|released 1 Released 40|\
                acquire 2 7 11|granted 2 6 35|permit 2 36 37";
    assert_eq!(check(good), Ok(6));
    let overlap = good.replace("permit 1 30 31", "permit 1 36 37");
    assert!(check(&overlap).unwrap_err().contains("two holders"));
    let other_lock = overlap.replace("acquire 2 7", "acquire 2 8");
    assert_eq!(check(&other_lock), Ok(6));
    let twice = good.replace("granted 2 6", "granted 2 5");
    assert!(check(&twice).unwrap_err().contains("one token twice"));
    let fell = good.replace("granted 2 6 35", "granted 2 4 35");
    let fell = fell.replace("acquire 2 7 11", "acquire 2 7 34");
    assert!(check(&fell).unwrap_err().contains("a token fell"));
    let refused = format!("{good}|refused 1 true 50");
    assert!(check(&refused).unwrap_err().contains("believed"));
}
