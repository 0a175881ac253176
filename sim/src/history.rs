//! What clients asked and were told, as it happened.

mod edn;

use serde::Serialize;

use crate::json::json_line;

/// A record of calls: when each began, when and how it ended.
///
/// The order of recording counts, not the times: a call that ended before another began must
/// have been recorded so. Where several threads share a history, they lock it, record a beginning
/// before they send, and an end after they received.
///
/// # Example
/// ```
/// use voussoir_sim::{History, KvOp, KvRet, Kv, check};
/// let mut history = History::new();
/// let put = history.invoke(1, KvOp::Put { key: "x", value: 5 }, 100);
/// history.ok(put, KvRet::Done, 180);
/// let get = history.invoke(2, KvOp::Get { key: "x" }, 200);
/// history.ok(get, KvRet::Value(None), 230); // lost!
/// assert!(check(&Kv::new(), &history, 1_000).is_err());
/// ```
#[derive(Clone, Debug)]
pub struct History<O, R> {
    calls: Vec<Call<O, R>>,
    /// Which call each event belongs to, in order.
    events: Vec<Event>,
}

#[derive(Clone, Copy, Debug)]
struct Event {
    call: u32,
    begins: bool,
    at_ns: u64,
}

/// One call of a [`History`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call<O, R> {
    /// Who called.
    pub process: u64,
    /// What was asked.
    pub op: O,
    /// How it ended.
    pub ended: Ended<R>,
    /// Its place among all beginnings and ends.
    pub begin: u64,
    /// The place of its end, if it has one.
    pub end: Option<u64>,
    /// When it began, in ns, as given to [`History::invoke`].
    pub begin_ns: u64,
    /// When it ended, in ns, if it did.
    pub end_ns: Option<u64>,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended<R> {
    /// It took effect, and this was the answer.
    Ok(R),
    /// It did not take effect and never will.
    Failed,
    /// It may have taken effect, may do so at any later time, or never: a timeout, a lost
    /// connection, or a call that was still under way at the end of the history.
    Unknown,
}

/// Names a call of a [`History`]: its place in [`History::calls`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(u32);

impl CallId {
    pub(crate) const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The place in [`History::calls`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl<O, R> Default for History<O, R> {
    fn default() -> Self {
        Self { calls: Vec::new(), events: Vec::new() }
    }
}

impl<O, R> History<O, R> {
    /// An empty history.
    pub fn new() -> Self {
        Self::default()
    }

    /// `process` asks for `op`.
    ///
    /// # Panics
    /// If the history has 4 billion calls already.
    pub fn invoke(&mut self, process: u64, op: O, at_ns: u64) -> CallId {
        let call = u32::try_from(self.calls.len()).expect("fewer than 2^32 calls");
        let begin = self.events.len() as u64;
        self.calls.push(Call {
            process,
            op,
            ended: Ended::Unknown,
            begin,
            end: None,
            begin_ns: at_ns,
            end_ns: None,
        });
        self.events.push(Event { call, begins: true, at_ns });
        CallId(call)
    }

    /// The call took effect and was answered. False, and nothing recorded, if it had ended
    /// already: an answer that comes after the client gave up.
    pub fn ok(&mut self, call: CallId, ret: R, at_ns: u64) -> bool {
        self.end(call, Ended::Ok(ret), at_ns)
    }

    /// The call certainly did not and will not take effect. False if it had ended already.
    pub fn fail(&mut self, call: CallId, at_ns: u64) -> bool {
        self.end(call, Ended::Failed, at_ns)
    }

    /// The caller gave up: nobody knows. False if it had ended already.
    pub fn unknown(&mut self, call: CallId, at_ns: u64) -> bool {
        self.end(call, Ended::Unknown, at_ns)
    }

    fn end(&mut self, id: CallId, ended: Ended<R>, at_ns: u64) -> bool {
        let Some(call) = self.calls.get_mut(id.index()).filter(|call| call.end.is_none()) else {
            return false;
        };
        call.ended = ended;
        call.end = Some(self.events.len() as u64);
        call.end_ns = Some(at_ns);
        self.events.push(Event { call: id.0, begins: false, at_ns });
        true
    }

    /// All calls in the order they began.
    pub fn calls(&self) -> &[Call<O, R>] {
        &self.calls
    }

    /// How many calls ended `Ok`, `Failed` and `Unknown`.
    pub fn outcomes(&self) -> (u64, u64, u64) {
        self.calls.iter().fold((0, 0, 0), |(ok, failed, unknown), call| match call.ended {
            Ended::Ok(_) => (ok + 1, failed, unknown),
            Ended::Failed => (ok, failed + 1, unknown),
            Ended::Unknown => (ok, failed, unknown + 1),
        })
    }
}

/// One event of a history, as it is written.
#[derive(Serialize)]
struct Line<'a, O, R> {
    index: usize,
    time: u64,
    process: u64,
    call: u32,
    #[serde(rename = "type")]
    kind: &'static str,
    op: &'a O,
    #[serde(skip_serializing_if = "Option::is_none")]
    ret: Option<&'a R>,
}

impl<O: Serialize, R: Serialize> History<O, R> {
    /// The history as JSON lines, one event each, in order:
    ///
    /// ```text
    /// {"index":0,"time":100,"process":1,"call":0,"type":"invoke","op":{…}}
    /// {"index":1,"time":180,"process":1,"call":0,"type":"ok","op":{…},"ret":…}
    /// ```
    ///
    /// `type` is `invoke`, `ok`, `fail` (took no effect) or `info` (nobody knows), as Jepsen and
    /// Knossos have it; `time` is in ns. `call` pairs the two events of a call, for checkers that
    /// want intervals (porcupine's `Operation`). A call without an end is to be read as `info`.
    /// Bytes are written as a string where they are text, else as `{"hex":"…"}`.
    ///
    /// # Panics
    /// If an operation or a result cannot be written as JSON.
    pub fn to_json_lines(&self) -> String {
        let mut out = String::new();
        for (index, event) in self.events.iter().enumerate() {
            let Event { call: id, begins, at_ns } = *event;
            let call = &self.calls[id as usize];
            let kind = match (begins, &call.ended) {
                (true, _) => "invoke",
                (false, Ended::Ok(_)) => "ok",
                (false, Ended::Failed) => "fail",
                (false, Ended::Unknown) => "info",
            };
            let ret = match &call.ended {
                Ended::Ok(ret) if !begins => Some(ret),
                _ => None,
            };
            let (time, process, op) = (at_ns, call.process, &call.op);
            out += &json_line(&Line { index, time, process, call: id, kind, op, ret });
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvOp, KvRet};

    #[test]
    fn a_history_as_json_lines() {
        let mut history = History::<_, KvRet<u64>>::new();
        let put = history.invoke(1, KvOp::Put { key: "k", value: 1_u64 }, 10);
        let cas = history.invoke(2, KvOp::Cas { key: "k", expect: None, value: 2 }, 20);
        let lost = history.invoke(3, KvOp::Delete { key: "k" }, 25);
        assert!(history.ok(put, KvRet::Done, 30));
        assert!(history.fail(cas, 40));
        assert!(history.unknown(lost, 50));
        assert!(!history.ok(lost, KvRet::Done, 60), "an answer after giving up");
        assert_eq!(history.outcomes(), (1, 1, 1));
        let op = "\"op\":{\"f\":\"cas\",\"key\":\"k\",\"expect\":null,\"value\":2}";
        let lines = history.to_json_lines();
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines.len(), 6);
        assert_eq!(
            lines[1],
            format!(
                "{{\"index\":1,\"time\":20,\"process\":2,\"call\":1,\"type\":\"invoke\",{op}}}"
            )
        );
        assert_eq!(
            lines[3],
            "{\"index\":3,\"time\":30,\"process\":1,\"call\":0,\"type\":\"ok\",\
             \"op\":{\"f\":\"put\",\"key\":\"k\",\"value\":1},\"ret\":null}"
        );
        assert!(lines[4].contains("\"type\":\"fail\"") && lines[5].contains("\"type\":\"info\""));
    }
}
