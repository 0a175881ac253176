//! Transcripts of a table's coordinator: what goes in, and everything that comes out, in text files
//! under `tests/golden`.
//!
//! A line that starts with `> ` is a command; what follows it is what the coordinator wants done.
//! After a change that is meant, `UPDATE=1 cargo test -p voussoir-quorum --test golden` rewrites
//! the files; read the difference before you commit it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use voussoir_quorum::table::*;
use voussoir_quorum::version::{Actor, Dot, Siblings, VersionVector};

const US: u64 = 1_000;

#[test]
fn transcripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    test_support::transcripts::check(&folder, 4, play);
}

struct Player {
    coordinator: Coordinator,
    now: u64,
    /// The calls that were made, by their ids: whom they ask what.
    calls: BTreeMap<u64, (u64, Request)>,
    out: String,
}

fn table(replicas: u64) -> Coordinator {
    let mut config = TableConfig::with_replicas(1..=replicas);
    config.seed = Some(1);
    Coordinator::new(config).unwrap()
}

/// Runs the commands of a transcript and returns what it should look like.
fn play(transcript: &str) -> String {
    let (coordinator, calls) = (table(3), BTreeMap::new());
    let mut player = Player { coordinator, now: 0, calls, out: String::new() };
    for line in transcript.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            writeln!(player.out, "> {command}").unwrap();
            player.command(command);
            player.report();
        } else if line.starts_with('#') || line.is_empty() {
            writeln!(player.out, "{line}").unwrap();
        }
    }
    player.out
}

fn number(word: Option<&&str>) -> u64 {
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("a number, not {word:?}"))
}

/// The state after the `count`-th write of a replica.
fn state(replica: u64, count: u64) -> Siblings<Bytes> {
    let mut state = Siblings::new();
    state.put_blind(Dot::new(Actor::new(replica, 1), count), Bytes::from_static(b"v")).unwrap();
    state
}

fn text(state: &Value) -> String {
    let dots = state.iter().map(|(dot, _)| format!("{dot}"));
    format!("[{}]", dots.collect::<Vec<_>>().join(" "))
}

fn asked(request: &Request) -> String {
    match request {
        Request::Get { .. } => "get".to_owned(),
        Request::Digest { .. } => "digest".to_owned(),
        Request::Write { .. } => "write".to_owned(),
        Request::Merge { state, .. } => format!("merge {}", text(state)),
        other => panic!("{other:?}"),
    }
}

impl Player {
    fn command(&mut self, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let (first, now) = (words.get(1), self.now);
        let key = Bytes::from_static(b"k");
        match words[0] {
            "table" => {
                (self.coordinator, self.now) = (table(number(first)), 0);
                self.calls.clear();
            }
            "get" => drop(self.coordinator.get(now, key, VersionVector::new()).unwrap()),
            "put" => drop(self.coordinator.put_blind(now, key, Bytes::new()).unwrap()),
            "cancel" => self.coordinator.cancel(number(first)),
            // Answers what it was asked, with the state of a write of the replica that is named.
            "answer" => {
                let (to, request) = self.calls[&number(first)].clone();
                let state = state(words.get(2).map_or(to, |_| number(words.get(2))), 1);
                self.reply(
                    match request {
                        Request::Merge { .. } => Reply::Merged,
                        Request::Write { .. } => Reply::Written { state },
                        _ => Reply::Value { state },
                    },
                    number(first),
                );
            }
            "refuse" => self.reply(Reply::Refused, number(first)),
            "not-whole" => self.reply(Reply::NotWhole, number(first)),
            "stale" => self.reply(Reply::Stale { epoch: number(words.get(2)) }, number(first)),
            "fail" => {
                let error = match words[2] {
                    "not-sent" => CallError::NotSent,
                    _ => CallError::Unknown,
                };
                let input = CoordinatorInput::Failed { call: number(first), error };
                self.coordinator.step(now, input);
            }
            "pass" => {
                let ends = now + number(first) * 1_000 * US;
                // Ends: each turn moves the timer.
                while let Some(due) = self.coordinator.next_deadline().filter(|due| *due <= ends) {
                    self.now = self.now.max(due);
                    self.coordinator.step(self.now, CoordinatorInput::Time);
                    self.report();
                }
                self.now = ends;
            }
            other => panic!("unknown command {other}"),
        }
    }

    fn reply(&mut self, reply: Reply, call: u64) {
        self.coordinator.step(self.now, CoordinatorInput::Reply { call, reply });
    }

    fn report(&mut self) {
        let ms = self.now as f64 / 1e6;
        // Ends: a coordinator has a bounded number of outputs between two inputs.
        while let Some(output) = self.coordinator.poll_output() {
            let what = match output {
                CoordinatorOutput::Call { id, to, request } => {
                    let what = format!("call {id} to {to}: {}", asked(&request));
                    self.calls.insert(id, (to, request));
                    what
                }
                CoordinatorOutput::Cancel { id } => format!("cancel {id}"),
                CoordinatorOutput::Missed { replica, .. } => format!("{replica} has missed it"),
                CoordinatorOutput::Done { operation, result: Ok(state) } => {
                    format!("operation {operation} is done: {}", text(&state))
                }
                CoordinatorOutput::Done { operation, result: Err(error) } => {
                    format!("operation {operation} has failed: {error:?}")
                }
                other => panic!("{other:?}"),
            };
            writeln!(self.out, "  {ms:.3} ms {what}").unwrap();
        }
    }
}
