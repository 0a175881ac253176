//! Transcripts: what goes in, and everything that comes out, in text files under `tests/golden`.
//!
//! A line that starts with `> ` is a command; what follows it is what the cores did. After a
//! change that is meant, `UPDATE=1 cargo test -p voussoir-raft --test golden` rewrites the files;
//! read the difference before you commit it.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use common::{Lab, Letter, MS};
use voussoir_raft::codec::decode_members;
use voussoir_raft::core::{Input, Output, TransferEnd};
use voussoir_raft::{Change, Entry, EntryKind, Message, SnapshotMeta};

#[test]
fn transcripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    test_support::transcripts::check(&folder, 6, play);
}

struct Player {
    lab: Lab,
    states: BTreeMap<u64, String>,
    out: String,
}

/// Runs the commands of a transcript and returns what it should look like.
fn play(transcript: &str) -> String {
    let mut player = Player { lab: Lab::new(1), states: BTreeMap::new(), out: String::new() };
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

impl Player {
    fn command(&mut self, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let first = words.get(1);
        let lab = &mut self.lab;
        match words[0] {
            "nodes" => {
                let keep = words.get(2).map(|_| number(words.get(2)));
                self.lab = Lab::with(number(first), move |config| {
                    config.keep_entries = keep.unwrap_or(config.keep_entries);
                });
                self.states.clear();
            }
            "growing" => {
                self.lab = Lab::growing(number(first), number(words.get(2)));
                self.states.clear();
            }
            "change" => {
                let change = words[3..].iter().fold(Change::new(), |change, word| {
                    let (how, id) = word.split_at(1);
                    let id = number(Some(&id));
                    match how {
                        "+" => change.voter(id),
                        "~" => change.learner(id),
                        _ => change.remove(id),
                    }
                });
                let token = number(words.get(2));
                lab.step(number(first), Input::Change { token, change });
            }
            "hand-over" => {
                let to = Some(number(words.get(2)));
                lab.step(number(first), Input::TransferLeadership { to });
            }
            "time-out" => lab.time_out(number(first)),
            "pass" => {
                lab.now += number(first) * MS;
                lab.ids().into_iter().for_each(|id| lab.step(id, Input::Tick));
            }
            "run" => lab.run(number(first) * MS),
            "deliver" => drop(match first {
                None => lab.deliver(|_| true),
                Some(_) => lab.deliver(link(&words)),
            }),
            "lose-entry" => lab.lose(number(first), number(words.get(2))),
            "lose" => drop(lab.take(link(&words))),
            "settle" => lab.settle(),
            "slow-disk" => lab.node_mut(number(first)).fast_disk = false,
            "sync" => lab.sync(number(first)),
            "propose" => lab.propose(number(first), number(words.get(2)), words[3]),
            "read" => lab.step(number(first), Input::Read { token: number(words.get(2)) }),
            "isolate" => lab.isolate(number(first)),
            "heal" => lab.heal(),
            "crash" => lab.crash(number(first)),
            "restart" => lab.restart(number(first)),
            "snapshot-taken" => {
                let index = number(words.get(2));
                let term = lab.core(number(first)).term_at(index).unwrap();
                let meta = SnapshotMeta { index, term, members: lab.ids().into() };
                lab.step(number(first), Input::SnapshotTaken { meta });
            }
            "transfer" => {
                let (from, to, id) = (number(first), number(words.get(2)), number(words.get(3)));
                let meta = lab.core(from).snapshot().cloned().unwrap();
                let term = lab.status(from).term;
                lab.step(to, Input::SnapshotReceived { from, term, meta });
                lab.step(from, Input::SnapshotSent { id, ended: TransferEnd::Complete });
            }
            other => panic!("unknown command {other}"),
        }
    }

    /// What has changed, what is on the wire, and what came out.
    fn report(&mut self) {
        for id in self.lab.ids() {
            let node = self.lab.node_mut(id);
            let seen = std::mem::take(&mut node.seen);
            let writes = node.writes.len();
            let state = match &node.core {
                None => "down".to_owned(),
                Some(core) => {
                    let s = core.status();
                    let leader = s.leader.map_or("-".to_owned(), |id| id.to_string());
                    let log = format!("log {}..={}", s.first, s.last);
                    format!(
                        "{} term {} leader {leader} {log} durable {} commit {} applied {}{}{}",
                        s.role,
                        s.term,
                        s.durable,
                        s.commit,
                        s.applied,
                        if writes > 0 { " writing" } else { "" },
                        s.recovering
                            .map_or(String::new(), |until| format!(" recovering to {until}")),
                    )
                }
            };
            if self.states.get(&id) != Some(&state) {
                writeln!(self.out, "  {id}: {state}").unwrap();
                self.states.insert(id, state);
            }
            for output in seen {
                writeln!(self.out, "  {id}: {}", told(&output)).unwrap();
            }
        }
        for letter in &self.lab.wire {
            writeln!(self.out, "  {}", on_the_wire(letter)).unwrap();
        }
    }
}

fn link(words: &[&str]) -> impl Fn(&Letter) -> bool + use<> {
    let (from, to) = words[1].split_once("->").expect("a link like 1->2");
    let pick = |text: &str| text.parse::<u64>().ok();
    let (from, to) = (pick(from), pick(to));
    move |letter| from.is_none_or(|from| from == letter.from) && to.is_none_or(|to| to == letter.to)
}

fn told(output: &Output) -> String {
    format!("{output:?}")
}

fn on_the_wire(letter: &Letter) -> String {
    let text = match &letter.message {
        Message::Append { head, entries } => {
            let list: Vec<String> = entries.iter().map(entry).collect();
            format!(
                "Append term {} session {} after {}@{} [{}] commit {}{}",
                head.term,
                head.session,
                head.prev_index,
                head.prev_term,
                list.join(" "),
                head.commit,
                if head.probe { " probe" } else { "" },
            )
        }
        other => format!("{other:?}"),
    };
    format!("{}->{} {text}", letter.from, letter.to)
}

fn entry(entry: &Entry) -> String {
    let text = match entry.kind {
        EntryKind::Noop => "no-op".to_owned(),
        EntryKind::Config => {
            let members = decode_members(entry.data.clone()).unwrap();
            let (voters, outgoing) = (members.voters(), members.outgoing());
            format!("voters {voters:?} outgoing {outgoing:?} learners {:?}", members.learners())
        }
        _ => String::from_utf8_lossy(&entry.data).into_owned(),
    };
    format!("{}@{} {text}", entry.index, entry.term)
}
