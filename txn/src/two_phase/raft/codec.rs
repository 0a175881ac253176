//! Bytes of commands, answers and snapshots: a version, a kind, and fields in little-endian.
//!
//! A command is: version (1 byte, 1), kind (1 byte) and its fields. 1 open. 2 commit: transaction,
//! number of branches (4 bytes), and for each its number (4) and the name of its participant. 3
//! abort: transaction. 4 forget: transaction, epoch of the coordinator (8 bytes). 5 report: done (1
//! byte: 0 committed, 1 rolled back), id of the branch, name of its participant, epoch of the
//! coordinator (8). 6 resolve: id of the branch. A transaction is its epoch and its number (8 bytes
//! each); a text is its length (2 bytes) and UTF-8.
//!
//! A snapshot is: version, kind 7, epoch, and four lists, each a count (8 bytes) and its records:
//! commits (as in 2), aborted and told transactions, heuristic outcomes (as in 5, without the
//! epoch).

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use super::super::core::{Decision, Heuristic};
use super::super::gid::{Gid, TxnId};
use super::super::log::{Committed, HeuristicOutcome, MAX_BRANCHES};
use super::register::{Answer, Branch, Command, MAX_ABORTED, MAX_STATE_BYTES, Register};

/// Version of every layout. Raise it when one changes.
const FORMAT: u8 = 1;
const SNAPSHOT: u8 = 7;
/// The longest text: an id of a branch.
const MAX_TEXT_BYTES: usize = 199;

/// Bytes that are no command, answer or snapshot of this version. Nothing was changed. A replica
/// that goes on without a command that the others have carried out is none any more: stop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("these bytes are no {what} of decisions of this version")]
#[non_exhaustive]
pub struct Malformed {
    /// `"command"`, `"answer"` or `"snapshot"`.
    pub what: &'static str,
}

impl Command {
    /// The command's bytes, if [`decode`](Self::decode) takes them: a command that no replica
    /// decodes would stop them all.
    pub(crate) fn encode(&self) -> Result<Bytes, Malformed> {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(FORMAT);
        match self {
            Self::Open => out.put_u8(1),
            Self::Commit(Committed { txn, branches }) => {
                out.put_u8(2);
                put_commit(&mut out, *txn, branches);
            }
            Self::Abort(txn) => {
                out.put_u8(3);
                put_txn(&mut out, *txn);
            }
            Self::Forget { txn, by } => {
                out.put_u8(4);
                put_txn(&mut out, *txn);
                out.put_u64_le(*by);
            }
            Self::Report { outcome: HeuristicOutcome { gid, participant, heuristic }, by } => {
                out.put_u8(5);
                put_heuristic(&mut out, gid, participant, *heuristic);
                out.put_u64_le(*by);
            }
            Self::Resolve(gid) => {
                out.put_u8(6);
                put_text(&mut out, &gid.to_string());
            }
        }
        match Self::decode(&out) {
            Ok(read) if read == *self => Ok(out.freeze()),
            _ => Err(Malformed { what: "command" }),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut rest = bytes;
        let command = take_command(&mut rest).filter(|_| rest.is_empty());
        command.ok_or(Malformed { what: "command" })
    }
}

fn take_command(rest: &mut &[u8]) -> Option<Command> {
    if rest.try_get_u8().ok()? != FORMAT {
        return None;
    }
    Some(match rest.try_get_u8().ok()? {
        1 => Command::Open,
        2 => {
            let (txn, branches) = take_commit(rest)?;
            Command::Commit(Committed::new(txn, branches))
        }
        3 => Command::Abort(take_txn(rest)?),
        4 => Command::Forget { txn: take_txn(rest)?, by: rest.try_get_u64_le().ok()? },
        5 => {
            let (gid, participant, heuristic) = take_heuristic(rest)?;
            let outcome = HeuristicOutcome::new(gid, participant, heuristic);
            Command::Report { outcome, by: rest.try_get_u64_le().ok()? }
        }
        6 => Command::Resolve(take_gid(rest)?),
        _ => return None,
    })
}

impl Answer {
    pub(crate) fn encode(self) -> Bytes {
        let (kind, number) = match self {
            Self::Opened { epoch } => (1, epoch),
            Self::Decided(Decision::Commit) => (2, 0),
            Self::Decided(Decision::Abort) => (3, 0),
            Self::Done => (4, 0),
            Self::Full => (5, 0),
            Self::Forgotten => (6, 0),
            Self::Superseded => (7, 0),
        };
        let mut out = BytesMut::with_capacity(10);
        out.put_slice(&[FORMAT, kind]);
        out.put_u64_le(number);
        out.freeze()
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let mut take = || {
            let (format, kind) = (bytes.try_get_u8().ok()?, bytes.try_get_u8().ok()?);
            let number = bytes.try_get_u64_le().ok()?;
            let answer = match kind {
                1 => Self::Opened { epoch: number },
                2 => Self::Decided(Decision::Commit),
                3 => Self::Decided(Decision::Abort),
                4 => Self::Done,
                5 => Self::Full,
                6 => Self::Forgotten,
                7 => Self::Superseded,
                _ => return None,
            };
            (format == FORMAT && bytes.is_empty()).then_some(answer)
        };
        take().ok_or(Malformed { what: "answer" })
    }
}

impl Register {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(256 + self.bytes);
        out.put_slice(&[FORMAT, SNAPSHOT]);
        out.put_u64_le(self.epoch);
        out.put_u64_le(self.committed.len() as u64);
        for (txn, branches) in &self.committed {
            put_commit(&mut out, *txn, branches);
        }
        for set in [&self.aborted, &self.told] {
            out.put_u64_le(set.len() as u64);
            for txn in set {
                put_txn(&mut out, *txn);
            }
        }
        out.put_u64_le(self.heuristics.len() as u64);
        for (gid, (participant, how)) in &self.heuristics {
            put_heuristic(&mut out, gid, participant, *how);
        }
        out.freeze()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut rest = bytes;
        let register = take_register(&mut rest).filter(|_| rest.is_empty());
        register.ok_or(Malformed { what: "snapshot" })
    }
}

/// Nothing is allocated for a count that the bytes do not hold: records are taken one by one.
fn take_register(rest: &mut &[u8]) -> Option<Register> {
    if rest.try_get_u8().ok()? != FORMAT || rest.try_get_u8().ok()? != SNAPSHOT {
        return None;
    }
    let epoch = rest.try_get_u64_le().ok()?;
    let mut register = Register::default();
    // Records are put back as they came, so the same limits hold for them.
    for _ in 0..rest.try_get_u64_le().ok()? {
        let (txn, branches) = take_commit(rest)?;
        if txn.epoch > epoch || register.committed.contains_key(&txn) {
            return None;
        }
        let cost = super::register::cost(branches.iter().map(|(_, name)| name.len()));
        register.bytes += cost;
        register.committed.insert(txn, branches.into());
    }
    for _ in 0..rest.try_get_u64_le().ok()? {
        let txn = take_txn(rest)?;
        let is_new = txn.epoch == epoch && register.aborted.insert(txn);
        if !is_new || register.aborted.len() > MAX_ABORTED {
            return None;
        }
    }
    for _ in 0..rest.try_get_u64_le().ok()? {
        let txn = take_txn(rest)?;
        if txn.epoch.checked_add(1) != Some(epoch) || !register.told.insert(txn) {
            return None;
        }
    }
    let is_twice = |txn| register.aborted.contains(txn) || register.told.contains(txn);
    if register.committed.keys().any(is_twice) {
        return None;
    }
    for _ in 0..rest.try_get_u64_le().ok()? {
        let (gid, participant, how) = take_heuristic(rest)?;
        register.bytes += super::register::cost([gid.to_string().len(), participant.len()]);
        if register.heuristics.insert(gid, (participant, how)).is_some() {
            return None;
        }
    }
    register.epoch = epoch;
    (register.bytes <= MAX_STATE_BYTES && epoch < u64::MAX).then_some(register)
}

fn put_txn(out: &mut BytesMut, txn: TxnId) {
    out.put_u64_le(txn.epoch);
    out.put_u64_le(txn.number);
}

fn take_txn(rest: &mut &[u8]) -> Option<TxnId> {
    Some(TxnId { epoch: rest.try_get_u64_le().ok()?, number: rest.try_get_u64_le().ok()? })
}

/// A text that is too long is cut here, and found by [`Command::encode`], which reads it back.
fn put_text(out: &mut BytesMut, text: &str) {
    let length = text.len().min(usize::from(u16::MAX));
    out.put_u16_le(length as u16);
    out.put_slice(&text.as_bytes()[..length]);
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::from(rest.try_get_u16_le().ok()?);
    if length > MAX_TEXT_BYTES {
        return None;
    }
    let (text, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    std::str::from_utf8(text).ok()
}

fn take_gid(rest: &mut &[u8]) -> Option<Gid> {
    take_text(rest)?.parse().ok()
}

fn put_commit(out: &mut BytesMut, txn: TxnId, branches: &[Branch]) {
    put_txn(out, txn);
    out.put_u32_le(branches.len() as u32);
    for (number, participant) in branches {
        out.put_u32_le(*number);
        put_text(out, participant);
    }
}

fn take_commit(rest: &mut &[u8]) -> Option<(TxnId, Vec<Branch>)> {
    let (txn, count) = (take_txn(rest)?, rest.try_get_u32_le().ok()?);
    if count > MAX_BRANCHES {
        return None;
    }
    let mut branches = Vec::new();
    for _ in 0..count {
        let number = rest.try_get_u32_le().ok()?;
        if number >= MAX_BRANCHES {
            return None;
        }
        branches.push((number, Arc::from(take_text(rest)?)));
    }
    Some((txn, branches))
}

fn put_heuristic(out: &mut BytesMut, gid: &Gid, participant: &str, how: Heuristic) {
    out.put_u8(match how {
        Heuristic::Committed => 0,
        Heuristic::RolledBack => 1,
    });
    put_text(out, &gid.to_string());
    put_text(out, participant);
}

fn take_heuristic(rest: &mut &[u8]) -> Option<(Gid, Arc<str>, Heuristic)> {
    let how = match rest.try_get_u8().ok()? {
        0 => Heuristic::Committed,
        1 => Heuristic::RolledBack,
        _ => return None,
    };
    Some((take_gid(rest)?, Arc::from(take_text(rest)?), how))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txn(epoch: u64, number: u64) -> TxnId {
        TxnId { epoch, number }
    }

    fn gid(text: &str) -> Gid {
        text.parse().unwrap()
    }

    fn commands() -> Vec<Command> {
        let branches = vec![(0, "left".into()), (999, "right".into())];
        vec![
            Command::Open,
            Command::Commit(Committed::new(txn(1, 2), branches)),
            Command::Abort(txn(1, 3)),
            Command::Forget { txn: txn(1, 2), by: 1 },
            Command::Report {
                outcome: HeuristicOutcome::new(
                    gid("vs1:c:1:2:0"),
                    "left".into(),
                    Heuristic::RolledBack,
                ),
                by: 2,
            },
            Command::Resolve(gid("vs1:c:1:2:0")),
        ]
    }

    /// Replicas of other versions read these bytes: a change of them is a change of the format.
    #[test]
    fn the_bytes_of_commands_stay_the_same() {
        let digit = |half: u8| char::from_digit(half.into(), 16).unwrap();
        let hex = |bytes: &[u8]| -> String {
            bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
        };
        let written: Vec<String> =
            commands().iter().map(|command| hex(&command.encode().unwrap())).collect();
        assert_eq!(
            written,
            [
                "0101",
                "010201000000000000000200000000000000020000000000000004006c656674e703000005007269\
                 676874",
                "010301000000000000000300000000000000",
                "0104010000000000000002000000000000000100000000000000",
                "0105010b007673313a633a313a323a3004006c6566740200000000000000",
                "01060b007673313a633a313a323a30",
            ]
        );
    }

    #[test]
    fn garbled_commands_answers_and_snapshots_are_errors() {
        let mut register = Register::default();
        register.apply(Command::Open);
        for command in commands() {
            let bytes = command.encode().unwrap();
            assert_eq!(Command::decode(&bytes), Ok(command.clone()));
            for end in 0..bytes.len() {
                assert!(Command::decode(&bytes[..end]).is_err(), "{command:?} of {end} bytes");
            }
            assert!(Command::decode(&[&bytes[..], b"x"].concat()).is_err());
            if !matches!(command, Command::Forget { .. } | Command::Resolve(_)) {
                register.apply(command);
            }
        }
        for answer in [
            Answer::Opened { epoch: 7 },
            Answer::Decided(Decision::Commit),
            Answer::Decided(Decision::Abort),
            Answer::Done,
            Answer::Full,
            Answer::Forgotten,
            Answer::Superseded,
        ] {
            let bytes = answer.encode();
            assert_eq!(Answer::decode(&bytes), Ok(answer));
            assert!(Answer::decode(&bytes[..9]).is_err());
        }
        register.apply(Command::Commit(Committed::new(txn(2, 9), vec![(1, "a".into())])));
        register.apply(Command::Abort(txn(2, 10)));
        register.apply(Command::Open);
        register.apply(Command::Forget { txn: txn(2, 9), by: 3 });
        register.apply(Command::Abort(txn(3, 1)));
        register.apply(Command::Commit(Committed::new(txn(3, 2), vec![(7, "b".into())])));
        let whole = register.encode();
        assert_eq!(Register::decode(&whole), Ok(register));
        for end in 0..whole.len() {
            assert!(Register::decode(&whole[..end]).is_err(), "{end}");
        }
        for byte in 0..whole.len() {
            let mut garbled = whole.to_vec();
            garbled[byte] ^= 0xff;
            // Whatever it is, reading it neither panics nor allocates what is not there.
            if let Ok(read) = Register::decode(&garbled) {
                assert_eq!(read.encode(), garbled, "byte {byte}");
            }
        }
        let long = Committed::new(txn(1, 1), vec![(0, "x".repeat(200).into())]);
        assert!(Command::Commit(long).encode().is_err(), "no replica would decode it");
        let many = Committed::new(txn(1, 1), vec![(0, "x".into()); 1001]);
        assert!(Command::Commit(many).encode().is_err(), "no replica would decode it");
    }
}
