//! A history in Jepsen's form says what the history says: it is read back, call by call.

use std::collections::{HashMap, HashSet};

use voussoir_sim::{Ended, History, KvOp, KvRet, Rng, Situations, check_kv};

type Log = History<KvOp<&'static str, String>, KvRet<String>>;

/// A value of EDN, as far as histories have them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Edn {
    Nil,
    Bool(bool),
    Int(i64),
    Word(String),
    Text(String),
    List(Vec<Edn>),
    Map(Vec<(Edn, Edn)>),
}

struct Reader<'a>(std::iter::Peekable<std::str::Chars<'a>>);

impl Reader<'_> {
    fn skip(&mut self) {
        while self.0.next_if(|c| c.is_whitespace() || *c == ',').is_some() {}
    }

    fn token(&mut self) -> String {
        let mut token = String::new();
        while let Some(c) = self.0.next_if(|c| !c.is_whitespace() && !",{}[]\"".contains(*c)) {
            token.push(c);
        }
        token
    }

    fn items(&mut self, close: char) -> Vec<Edn> {
        let mut items = Vec::new();
        loop {
            self.skip();
            if self.0.next_if_eq(&close).is_some() {
                return items;
            }
            items.push(self.value());
        }
    }

    fn text(&mut self) -> Edn {
        let mut text = String::new();
        loop {
            match self.0.next().expect("a string ends") {
                '"' => return Edn::Text(text),
                '\\' => text.push(match self.0.next().expect("an escape ends") {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'u' => {
                        let hex: String = (0..4).filter_map(|_| self.0.next()).collect();
                        let code = u32::from_str_radix(&hex, 16).expect("four digits");
                        char::from_u32(code).expect("a character")
                    }
                    c @ ('"' | '\\') => c,
                    c => panic!("no escape of EDN: {c}"),
                }),
                c => text.push(c),
            }
        }
    }

    fn value(&mut self) -> Edn {
        self.skip();
        if self.0.next_if_eq(&'"').is_some() {
            return self.text();
        }
        if self.0.next_if_eq(&'[').is_some() {
            return Edn::List(self.items(']'));
        }
        if self.0.next_if_eq(&'{').is_some() {
            let items = self.items('}');
            assert!(items.len().is_multiple_of(2), "a map has pairs: {items:?}");
            let pairs = items.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone()));
            return Edn::Map(pairs.collect());
        }
        let token = self.token();
        match &*token {
            "nil" => Edn::Nil,
            "true" => Edn::Bool(true),
            "false" => Edn::Bool(false),
            word if word.starts_with(':') => Edn::Word(word[1..].to_owned()),
            number => Edn::Int(number.parse().unwrap_or_else(|_| panic!("{number} is no EDN"))),
        }
    }
}

fn read_lines(text: &str) -> Vec<HashMap<String, Edn>> {
    let lines = text.lines().map(|line| {
        let mut reader = Reader(line.chars().peekable());
        let Edn::Map(pairs) = reader.value() else { panic!("no map: {line}") };
        assert_eq!(reader.0.next(), None, "{line}");
        let named = pairs.into_iter().map(|(name, value)| match name {
            Edn::Word(name) => (name, value),
            other => panic!("no keyword: {other:?}"),
        });
        named.collect()
    });
    lines.collect()
}

fn text_of(value: &Edn) -> Option<String> {
    match value {
        Edn::Word(word) if word == "absent" => None,
        Edn::Text(text) => Some(text.clone()),
        other => panic!("no value of these histories: {other:?}"),
    }
}

type Call = (KvOp<&'static str, String>, Ended<KvRet<String>>, u64, Option<u64>);

/// The calls of one key, with the places of their beginnings and ends among the lines.
fn read_back(key: &'static str, text: &str) -> Vec<Call> {
    let (mut calls, mut busy, mut gone) = (Vec::<Call>::new(), HashMap::new(), HashSet::new());
    for (index, line) in (0_u64..).zip(read_lines(text)) {
        let (process, value) = (&line["process"], &line["value"]);
        assert_eq!(line["index"], Edn::Int(i64::try_from(index).unwrap()));
        let word = |name: &str| match &line[name] {
            Edn::Word(word) => word.clone(),
            other => panic!("{name} is {other:?}"),
        };
        if word("type") == "invoke" {
            let op = match (&*word("f"), value) {
                ("read", Edn::Nil) => KvOp::Get { key },
                ("write", Edn::Text(value)) => KvOp::Put { key, value: value.clone() },
                ("cas", Edn::List(pair)) => {
                    let [expect, Edn::Text(value)] = &pair[..] else { panic!("{pair:?}") };
                    KvOp::Cas { key, expect: text_of(expect), value: value.clone() }
                }
                ("delete", Edn::Nil) => KvOp::Delete { key },
                other => panic!("{other:?}"),
            };
            assert!(!gone.contains(process), "process {process:?} goes on after :info");
            let before = busy.insert(process.clone(), calls.len());
            assert_eq!(before, None, "process {process:?} has two calls at a time");
            calls.push((op, Ended::Unknown, index, None));
            continue;
        }
        let at = busy.remove(process).expect("a call under way");
        let call = &mut calls[at];
        call.3 = Some(index);
        call.1 = match (&*word("type"), &call.0, value) {
            ("fail", ..) => Ended::Failed,
            ("info", ..) => {
                gone.insert(process.clone());
                Ended::Unknown
            }
            ("ok", KvOp::Get { .. }, value) => Ended::Ok(KvRet::Value(text_of(value))),
            ("ok", KvOp::Put { .. }, _) => Ended::Ok(KvRet::Done),
            ("ok", KvOp::Cas { .. }, _) => Ended::Ok(KvRet::Applied(true)),
            ("ok", KvOp::Delete { .. }, Edn::Bool(was)) => Ended::Ok(KvRet::Applied(*was)),
            ("ok", KvOp::Delete { .. }, _) => Ended::Ok(KvRet::Done),
            other => panic!("{other:?}"),
        };
    }
    calls
}

/// What is to be read back. Places are those among the events of the key.
fn expected(history: &Log, key: &str) -> Vec<Call> {
    let of_key = || history.calls().iter().filter(|call| *call.op.key() == key);
    let mut places: Vec<u64> =
        of_key().flat_map(|call| [Some(call.begin), call.end]).flatten().collect();
    places.sort_unstable();
    let place = |event: u64| places.binary_search(&event).expect("an event of the key") as u64;
    let calls = of_key().map(|call| {
        let ended = match (&call.op, &call.ended) {
            (KvOp::Cas { .. }, Ended::Ok(KvRet::Applied(false))) => Ended::Failed,
            (_, ended) => ended.clone(),
        };
        (call.op.clone(), ended, place(call.begin), call.end.map(place))
    });
    calls.collect()
}

static SITUATIONS: [&str; 5] = [
    "two calls of a process at a time",
    "a process that goes on after an unknown outcome",
    "a refused compare-and-set",
    "a call that never ended",
    "a value with characters that EDN escapes",
];

fn random(rng: &mut Rng, situations: &Situations) -> Log {
    let texts = ["a", "two words", "quote \" and \\", "line\nand\ttab", "\u{1}é", "{:nil nil}"];
    let mut history = Log::new();
    let mut open = Vec::new();
    let mut unsure = HashSet::new();
    for now in 0..rng.between(1, 40) {
        if rng.chance(600_000) || open.is_empty() {
            let key = ["x", "y"][rng.below(2) as usize];
            let text = texts[rng.below(texts.len() as u64) as usize];
            situations.add(SITUATIONS[4], u64::from(text.contains(['"', '\n', '\u{1}'])));
            let value = text.to_owned();
            let expect = rng.chance(500_000).then(|| texts[0].to_owned());
            let op = match rng.below(4) {
                0 => KvOp::Get { key },
                1 => KvOp::Put { key, value },
                2 => KvOp::Cas { key, expect, value },
                _ => KvOp::Delete { key },
            };
            let process = rng.below(4);
            let busy = open.iter().any(|(_, other, _)| *other == process);
            situations.add(SITUATIONS[0], u64::from(busy));
            situations.add(SITUATIONS[1], u64::from(unsure.contains(&process)));
            open.push((history.invoke(process, op.clone(), now), process, op));
            continue;
        }
        let at = rng.below(open.len() as u64) as usize;
        let (id, process, op) = open.swap_remove(at);
        let applied = rng.chance(500_000);
        match (rng.below(6), &op) {
            (0, _) => assert!(history.fail(id, now)),
            (1, _) => {
                unsure.insert(process);
                assert!(history.unknown(id, now));
            }
            (_, KvOp::Get { .. }) => {
                let seen = applied.then(|| texts[0].to_owned());
                assert!(history.ok(id, KvRet::Value(seen), now));
            }
            (_, KvOp::Cas { .. }) => {
                situations.add(SITUATIONS[2], u64::from(!applied));
                assert!(history.ok(id, KvRet::Applied(applied), now));
            }
            (2, KvOp::Delete { .. }) => assert!(history.ok(id, KvRet::Applied(applied), now)),
            _ => assert!(history.ok(id, KvRet::Done, now)),
        }
    }
    situations.add(SITUATIONS[3], open.len() as u64);
    history
}

#[test]
fn random_histories_are_read_back_call_by_call() {
    let situations = Situations::new(&SITUATIONS);
    let mut rng = Rng::new(31);
    for _ in 0..2_000 {
        let history = random(&mut rng, &situations);
        let keys: HashSet<&str> = history.calls().iter().map(|call| *call.op.key()).collect();
        let written = history.to_edn();
        assert_eq!(written.len(), keys.len());
        for (key, text) in written {
            assert_eq!(read_back(key, &text), expected(&history, key), "{text}");
        }
    }
    situations.assert_all_reached();
}

#[test]
fn the_lines_are_those_of_jepsen() {
    let mut history = History::new();
    let put = history.invoke(7, KvOp::Put { key: 'k', value: 5 }, 100);
    let get = history.invoke(8, KvOp::Get { key: 'k' }, 110);
    history.ok(put, KvRet::Done, 180);
    history.ok(get, KvRet::Value(None), 190);
    let cas = history.invoke(7, KvOp::Cas { key: 'k', expect: Some(5), value: 6 }, 200);
    history.unknown(cas, 230);
    let get = history.invoke(7, KvOp::Get { key: 'k' }, 240);
    history.ok(get, KvRet::Value(Some(6)), 250);
    assert!(check_kv(&history, 1_000).is_ok());
    let [(key, text)] = &history.to_edn()[..] else { panic!("one key") };
    assert_eq!(*key, 'k');
    let expected = "\
{:index 0, :time 100, :process 0, :type :invoke, :f :write, :value 5}
{:index 1, :time 110, :process 1, :type :invoke, :f :read, :value nil}
{:index 2, :time 180, :process 0, :type :ok, :f :write, :value 5}
{:index 3, :time 190, :process 1, :type :ok, :f :read, :value :absent}
{:index 4, :time 200, :process 0, :type :invoke, :f :cas, :value [5 6]}
{:index 5, :time 230, :process 0, :type :info, :f :cas, :value [5 6]}
{:index 6, :time 240, :process 2, :type :invoke, :f :read, :value nil}
{:index 7, :time 250, :process 2, :type :ok, :f :read, :value 6}
";
    assert_eq!(text, expected);
}

/// The rule of Knossos for a compare-and-set register, whose `nil` fits everything: the state after
/// a call, none where the call is inconsistent.
fn knossos_step(state: &Edn, f: &str, value: &Edn) -> Option<Edn> {
    match (f, value) {
        ("write", value) => Some(value.clone()),
        ("read", value) => (*value == Edn::Nil || value == state).then(|| state.clone()),
        ("cas", Edn::List(pair)) => (pair[0] == *state).then(|| pair[1].clone()),
        other => panic!("no call of a register: {other:?}"),
    }
}

/// Whether Knossos takes a history in which each call ends before the next begins.
fn knossos_takes(text: &str) -> bool {
    let mut state = Edn::Word("absent".to_owned());
    read_lines(text).iter().filter(|line| line["type"] == Edn::Word("ok".to_owned())).all(|line| {
        let Edn::Word(f) = &line["f"] else { panic!("{line:?}") };
        knossos_step(&state, f, &line["value"]).map(|after| state = after).is_some()
    })
}

static VERDICTS: [&str; 4] = [
    "right",
    "a value that was lost",
    "a value that was never written",
    "a compare-and-set of a key without a value",
];

#[test]
fn what_is_wrong_here_is_wrong_for_knossos() {
    let situations = Situations::new(&VERDICTS);
    let mut rng = Rng::new(32);
    for _ in 0..2_000 {
        let mut history = History::<KvOp<char, Option<u64>>, KvRet<Option<u64>>>::new();
        let (mut state, mut is_lost, mut is_invented) = (None, false, false);
        for now in 0..rng.between(1, 12) {
            // One of the values is one that JSON has as null.
            let value = rng.chance(800_000).then(|| rng.below(3));
            let (op, ret) = match rng.below(3) {
                0 => (KvOp::Put { key: 'k', value }, KvRet::Done),
                1 => {
                    let expect = state;
                    situations.add(VERDICTS[3], u64::from(expect.is_none()));
                    (KvOp::Cas { key: 'k', expect, value }, KvRet::Applied(true))
                }
                _ => {
                    let seen = match rng.below(12) {
                        0 => None,
                        1 => Some(value),
                        _ => state,
                    };
                    is_lost |= seen.is_none() && state.is_some();
                    is_invented |= seen.is_some() && state.is_none();
                    (KvOp::Get { key: 'k' }, KvRet::Value(seen))
                }
            };
            if !matches!(op, KvOp::Get { .. }) {
                state = Some(value);
            }
            let call = history.invoke(1, op, now);
            history.ok(call, ret, now);
        }
        let is_right = check_kv(&history, 10_000).is_ok();
        let [(_, text)] = &history.to_edn()[..] else { panic!("one key") };
        assert_eq!(knossos_takes(text), is_right, "{text}");
        situations.add(VERDICTS[0], u64::from(is_right));
        situations.add(VERDICTS[1], u64::from(is_lost));
        situations.add(VERDICTS[2], u64::from(is_invented));
    }
    situations.assert_all_reached();
}
