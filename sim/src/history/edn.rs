//! Histories of key-value stores in the form of Jepsen, for checkers that nobody here wrote.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::Hash;

use serde::Serialize;

use super::{Ended, Event, History};
use crate::json::edn;
use crate::{KvOp, KvRet};

/// The history of one key, as it is written.
#[derive(Default)]
struct Out {
    text: String,
    events: usize,
    /// By the process of the caller: Jepsen processes of it that have no call under way.
    idle: HashMap<u64, Vec<u64>>,
    /// By the call under way: its Jepsen process.
    busy: HashMap<u32, u64>,
    processes: u64,
}

impl<K, V> History<KvOp<K, V>, KvRet<V>>
where
    K: Clone + Eq + Hash,
    V: Serialize,
{
    /// The history of each key in Jepsen's form (EDN, a map per line), in the order in which the
    /// keys first occur. Knossos reads each as a history of its model `(cas-register :absent)`,
    /// porcupine after a translation of the lines:
    ///
    /// ```text
    /// {:index 0, :time 100, :process 0, :type :invoke, :f :write, :value 5}
    /// {:index 1, :time 180, :process 0, :type :ok, :f :write, :value 5}
    /// {:index 2, :time 200, :process 1, :type :invoke, :f :read, :value nil}
    /// {:index 3, :time 230, :process 1, :type :ok, :f :read, :value 5}
    /// ```
    ///
    /// - `:f` is `:read`, `:write`, `:cas` (the value is `[expected new]`) or `:delete`, which
    ///   registers of Knossos do not have. A key without a value reads as `:absent`, and a
    ///   compare-and-set expects `:absent` there: `nil` is a value that nobody knows, and Knossos
    ///   takes a read of it for right whatever is there.
    /// - `:type` is `:invoke`, `:ok`, `:fail` (took no effect) or `:info` (nobody knows). A
    ///   compare-and-set that was answered with false is a `:fail`, as Jepsen has it, so an outside
    ///   checker does not hold the refusal against the store. A `:delete` that tells whether there
    ///   was a value has `true` or `false` for its value.
    /// - `:process` is a number of its own for each key. A Jepsen process makes one call at a time,
    ///   and none after an `:info`: where a process of the history does, it becomes several.
    /// - Values are written as JSON would have them, maps and strings as EDN has them; a value that
    ///   JSON has as `null` is `:null`, and an integer beyond 64 bits ends in `N`.
    ///
    /// # Panics
    /// If a value cannot be written as JSON.
    pub fn to_edn(&self) -> Vec<(K, String)> {
        let mut places: HashMap<&K, usize> = HashMap::new();
        let mut outs: Vec<(K, Out)> = Vec::new();
        for event in &self.events {
            let key = self.calls[event.call as usize].op.key();
            let place = *places.entry(key).or_insert_with(|| {
                outs.push((key.clone(), Out::default()));
                outs.len() - 1
            });
            self.write_event(event, &mut outs[place].1);
        }
        outs.into_iter().map(|(key, out)| (key, out.text)).collect()
    }

    fn write_event(&self, event: &Event, out: &mut Out) {
        let call = &self.calls[event.call as usize];
        let ret = match &call.ended {
            Ended::Ok(ret) if !event.begins => Some(ret),
            _ => None,
        };
        let kind = match (event.begins, &call.ended) {
            (true, _) => "invoke",
            (false, Ended::Ok(KvRet::Applied(false))) if matches!(call.op, KvOp::Cas { .. }) => {
                "fail"
            }
            (false, Ended::Ok(_)) => "ok",
            (false, Ended::Failed) => "fail",
            (false, Ended::Unknown) => "info",
        };
        let process = if event.begins {
            out.begin(call.process, event.call)
        } else {
            out.end(call.process, event.call, kind != "info")
        };
        let (f, value) = match (&call.op, ret) {
            (KvOp::Get { .. }, Some(KvRet::Value(seen))) => ("read", state(seen.as_ref())),
            (KvOp::Get { .. }, _) => ("read", "nil".to_owned()),
            (KvOp::Put { value, .. }, _) => ("write", state(Some(value))),
            (KvOp::Cas { expect, value, .. }, _) => {
                ("cas", format!("[{} {}]", state(expect.as_ref()), state(Some(value))))
            }
            (KvOp::Delete { .. }, Some(KvRet::Applied(applied))) => ("delete", applied.to_string()),
            (KvOp::Delete { .. }, _) => ("delete", "nil".to_owned()),
        };
        let (index, time) = (out.events, event.at_ns);
        let _infallible = writeln!(
            out.text,
            "{{:index {index}, :time {time}, :process {process}, :type :{kind}, :f :{f}, \
             :value {value}}}"
        );
        out.events += 1;
    }
}

impl Out {
    fn begin(&mut self, process: u64, call: u32) -> u64 {
        let idle = self.idle.entry(process).or_default().pop();
        let number = idle.unwrap_or_else(|| {
            self.processes += 1;
            self.processes - 1
        });
        self.busy.insert(call, number);
        number
    }

    fn end(&mut self, process: u64, call: u32, goes_on: bool) -> u64 {
        let number = self.busy.remove(&call).expect("a call ends once, after its beginning");
        if goes_on {
            self.idle.entry(process).or_default().push(number);
        }
        number
    }
}

/// What a key has. Never `nil`, which Knossos takes for a value that nobody knows.
fn state(value: Option<&impl Serialize>) -> String {
    let Some(value) = value else { return ":absent".to_owned() };
    let text = edn(value);
    if text == "nil" { ":null".to_owned() } else { text }
}
