//! Routing: which topics a record goes to, by key, pattern and headers, as RabbitMQ's exchanges do.
//!
//! A [`Router`] is plain data: it decides, and writes nothing. A `Transaction` sends a record to
//! all of its topics in one commit.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::error::ConfigError;
use crate::format::Record;

/// The longest routing key and pattern, in bytes, as in AMQP.
pub const MAX_KEY_BYTES: usize = 255;

/// When a record goes to a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// Always (fan-out).
    All,
    /// When the routing key is this one (direct).
    Key(String),
    /// When the routing key matches (topic): words between dots, `*` for one word, `#` for any
    /// number of words.
    Pattern(String),
    /// When the record has these headers with these values: all of them, or any (headers). No
    /// headers match always with `all`, and never without.
    Headers {
        /// Whether all have to match.
        all: bool,
        /// Header and value. Of headers with one key the last counts.
        fields: BTreeMap<String, Bytes>,
    },
}

impl Rule {
    /// Whether a record with this routing key goes to the topic.
    pub fn matches(&self, routing_key: &str, record: &Record) -> bool {
        match self {
            Self::All => true,
            Self::Key(key) => key == routing_key,
            Self::Pattern(pattern) => matches(pattern, routing_key),
            Self::Headers { all, fields } => {
                let has = |(key, value): (&String, &Bytes)| record.last_header(key) == Some(value);
                if *all { fields.iter().all(has) } else { fields.iter().any(has) }
            }
        }
    }
}

/// Whether the words of `key` match those of `pattern`. Takes time in proportion to the product of
/// their numbers of words, whatever the number of `#`.
fn matches(pattern: &str, key: &str) -> bool {
    let words: Vec<&str> = if key.is_empty() { Vec::new() } else { key.split('.').collect() };
    // Whether the pattern so far matches the first `n` words.
    let mut reach = vec![false; words.len() + 1];
    reach[0] = true;
    let parts: Vec<&str> =
        if pattern.is_empty() { Vec::new() } else { pattern.split('.').collect() };
    for part in parts {
        let mut next = vec![false; words.len() + 1];
        if part == "#" {
            let mut any = false;
            for (to, from) in next.iter_mut().zip(&reach) {
                any |= from;
                *to = any;
            }
        } else {
            for (at, word) in words.iter().enumerate() {
                next[at + 1] = reach[at] && (part == "*" || part == *word);
            }
        }
        reach = next;
    }
    reach[words.len()]
}

/// Rules of topics. A record goes once to each topic that a rule gives it to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Router {
    bindings: BTreeMap<String, Vec<Rule>>,
}

impl Router {
    /// A router that gives every record to no topic.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a rule for a topic. Adding one twice changes nothing.
    ///
    /// # Errors
    /// A key or pattern is longer than [`MAX_KEY_BYTES`].
    pub fn bind(&mut self, topic: &str, rule: Rule) -> Result<(), ConfigError> {
        if let Rule::Key(text) | Rule::Pattern(text) = &rule
            && text.len() > MAX_KEY_BYTES
        {
            return Err(ConfigError { field: "rule", rule: "must have at most 255 bytes" });
        }
        let rules = self.bindings.entry(topic.to_owned()).or_default();
        if !rules.contains(&rule) {
            rules.push(rule);
        }
        Ok(())
    }

    /// Takes a rule of a topic away. Returns whether it was there.
    pub fn unbind(&mut self, topic: &str, rule: &Rule) -> bool {
        let Some(rules) = self.bindings.get_mut(topic) else { return false };
        let before = rules.len();
        rules.retain(|other| other != rule);
        let is_removed = rules.len() < before;
        if rules.is_empty() {
            self.bindings.remove(topic);
        }
        is_removed
    }

    /// The topics of a record, each once, in the order of their names.
    pub fn topics(&self, routing_key: &str, record: &Record) -> BTreeSet<&str> {
        let bound = self.bindings.iter();
        let bound =
            bound.filter(|(_, rules)| rules.iter().any(|rule| rule.matches(routing_key, record)));
        bound.map(|(topic, _)| topic.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What AMQP says, word by word.
    fn model(pattern: &[&str], words: &[&str]) -> bool {
        match (pattern.first(), words.first()) {
            (None, None) => true,
            (Some(&"#"), _) => {
                (0..=words.len()).any(|skipped| model(&pattern[1..], &words[skipped..]))
            }
            (Some(&part), Some(&word)) => {
                (part == "*" || part == word) && model(&pattern[1..], &words[1..])
            }
            _ => false,
        }
    }

    #[test]
    fn patterns_match_as_rabbitmq_documents_them() {
        let cases = [
            ("*.orange.*", "quick.orange.rabbit", true),
            ("*.orange.*", "lazy.orange.elephant", true),
            ("*.*.rabbit", "lazy.brown.fox", false),
            ("lazy.#", "lazy.brown.fox", true),
            ("lazy.#", "lazy", true),
            ("*.orange.*", "orange", false),
            ("*.orange.*", "quick.orange.new.rabbit", false),
            ("lazy.#", "lazy.orange.new.rabbit", true),
            ("#", "", true),
            ("", "", true),
            ("*", "", false),
            ("#.#", "a", true),
            ("a.*", "a.", true),
        ];
        for (pattern, key, expected) in cases {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn patterns_match_as_the_model_says() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut matched = 0;
        for _ in 0..20_000 {
            let mut draw = |words: &[&'static str]| -> Vec<&'static str> {
                (0..random.usize(1..6)).map(|_| words[random.usize(..words.len())]).collect()
            };
            let (pattern, words) = (draw(&["a", "b", "*", "#"]), draw(&["a", "b"]));
            let expected = model(&pattern, &words);
            matched += u32::from(expected);
            assert_eq!(
                matches(&pattern.join("."), &words.join(".")),
                expected,
                "{pattern:?} {words:?}"
            );
        }
        assert!((2_000..18_000).contains(&matched), "{matched}");
    }

    #[test]
    fn a_pattern_of_many_hashes_takes_no_longer_than_its_length() {
        let (pattern, key) = (["#"; 100].join("."), ["a"; 127].join("."));
        assert!(!matches(&format!("{pattern}.b"), &key));
    }

    #[test]
    fn a_record_goes_once_to_each_topic_that_a_rule_names() {
        let mut router = Router::new();
        let fields = |all| {
            let fields = [("tier", "gold"), ("region", "eu")];
            let fields = fields.map(|(key, value)| (key.to_owned(), Bytes::from(value)));
            Rule::Headers { all, fields: fields.into() }
        };
        for (topic, rule) in [
            ("audit", Rule::All),
            ("eu", Rule::Pattern("orders.eu.*".into())),
            ("eu", Rule::Pattern("orders.#".into())),
            ("paid", Rule::Key("orders.eu.paid".into())),
            ("gold", fields(true)),
            ("some", fields(false)),
        ] {
            router.bind(topic, rule).expect("a rule");
        }
        let record = Record::new("x").header("tier", "gold").header("region", "us");
        let topics = |key: &str, record: &Record| -> Vec<String> {
            router.topics(key, record).into_iter().map(str::to_owned).collect()
        };
        assert_eq!(topics("orders.eu.paid", &record), ["audit", "eu", "paid", "some"]);
        let record = record.header("region", "eu");
        assert_eq!(topics("", &record), ["audit", "gold", "some"]);
        let long = Rule::Key("x".repeat(MAX_KEY_BYTES + 1));
        router.bind("audit", long).expect_err("it is too long");
        assert!(router.unbind("audit", &Rule::All) && !router.unbind("audit", &Rule::All));
        assert_eq!(router.topics("", &Record::new("x")), BTreeSet::new());
    }
}
