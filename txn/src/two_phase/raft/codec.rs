//! Bytes of commands, answers and snapshots: `vtd`, a version, a kind, and fields in little-endian.
//!
//! A command is: `vtd`, version (1 byte, 1), kind (1 byte) and its fields. 1 open: name of the
//! coordinator, the epoch to be above (8 bytes), nonce (8). 2 commit: transaction, number of
//! branches (4 bytes), and for each its number (4) and the name of its participant. 3 abort:
//! transaction. 4 forget: transaction, epoch of the coordinator (8 bytes). 5 report: done (1 byte:
//! 0 committed, 1 rolled back), id of the branch, name of its participant, epoch of the coordinator
//! (8). 6 resolve: id of the branch. A transaction is its epoch and its number (8 bytes each); a
//! text is its length (2 bytes) and UTF-8.
//!
//! A snapshot is: `vtd`, version, kind 7, epoch, name of the coordinator (empty before the first
//! epoch), nonce of the epoch, and four lists, each a count (8 bytes) and its records: commits (as
//! in 2), aborted and told transactions, heuristic outcomes (as in 5, without the epoch).
//!
//! Bytes that do not begin with `vtd`, or that are no command of a version up to this one, are
//! answered as malformed by every replica alike. A command of a later version stops the replica:
//! others carry it out.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use super::super::core::{Decision, Heuristic};
use super::super::gid::{Gid, TxnId, is_name};
use super::super::log::{Committed, HeuristicOutcome, MAX_BRANCHES};
use super::register::{Answer, Branch, Command, MAX_ABORTED, MAX_STATE_BYTES, Register};

/// What all bytes begin with, so that those of others in the same log are told from them.
const MAGIC: &[u8; 3] = b"vtd";
/// Version of every layout. Raise it when one changes.
const FORMAT: u8 = 1;
const SNAPSHOT: u8 = 7;
/// The longest text: an id of a branch.
const MAX_TEXT_BYTES: usize = 199;

/// A command of a later version, or bytes that are no answer or snapshot of this one. Nothing was
/// changed. A replica that goes on without a command that the others have carried out is none any
/// more: stop it, and start it with the later version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("these bytes are no {what} of decisions of this version")]
#[non_exhaustive]
pub struct Malformed {
    /// `"command"`, `"answer"` or `"snapshot"`.
    pub what: &'static str,
}

/// Bytes that are no command of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// Nor of any other: all replicas see so.
    Foreign,
    /// A later version may carry it out.
    Later,
}

fn put_head(out: &mut BytesMut, kind: u8) {
    out.put_slice(MAGIC);
    out.put_slice(&[FORMAT, kind]);
}

/// Takes the head of bytes of this version, and returns their kind.
fn take_head(rest: &mut &[u8]) -> Option<u8> {
    *rest = rest.strip_prefix(MAGIC)?;
    (rest.try_get_u8().ok()? == FORMAT).then(|| rest.try_get_u8().ok())?
}

impl Command {
    /// The command's bytes, if [`decode`](Self::decode) takes them: a command that no replica
    /// decodes would stop them all.
    pub(crate) fn encode(&self) -> Result<Bytes, Malformed> {
        let mut out = BytesMut::with_capacity(64);
        match self {
            Self::Open { coordinator, after, nonce } => {
                put_head(&mut out, 1);
                put_text(&mut out, coordinator);
                out.put_u64_le(*after);
                out.put_u64_le(*nonce);
            }
            Self::Commit(Committed { txn, branches }) => {
                put_head(&mut out, 2);
                put_commit(&mut out, *txn, branches);
            }
            Self::Abort(txn) => {
                put_head(&mut out, 3);
                put_txn(&mut out, *txn);
            }
            Self::Forget { txn, by } => {
                put_head(&mut out, 4);
                put_txn(&mut out, *txn);
                out.put_u64_le(*by);
            }
            Self::Report { outcome: HeuristicOutcome { gid, participant, heuristic }, by } => {
                put_head(&mut out, 5);
                put_heuristic(&mut out, gid, participant, *heuristic);
                out.put_u64_le(*by);
            }
            Self::Resolve(gid) => {
                put_head(&mut out, 6);
                put_text(&mut out, &gid.to_string());
            }
        }
        match Self::decode(&out) {
            Ok(read) if read == *self => Ok(out.freeze()),
            _ => Err(Malformed { what: "command" }),
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Unread> {
        let version = bytes.strip_prefix(MAGIC).and_then(<[u8]>::first);
        if version.is_some_and(|version| *version > FORMAT) {
            return Err(Unread::Later);
        }
        let mut rest = bytes;
        let command = take_command(&mut rest).filter(|_| rest.is_empty());
        command.ok_or(Unread::Foreign)
    }
}

fn take_command(rest: &mut &[u8]) -> Option<Command> {
    Some(match take_head(rest)? {
        1 => Command::Open {
            coordinator: Arc::from(take_text(rest).filter(|name| is_name(name))?),
            after: rest.try_get_u64_le().ok()?,
            nonce: rest.try_get_u64_le().ok()?,
        },
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
            Self::OtherCoordinator => (8, 0),
            Self::Malformed => (9, 0),
        };
        let mut out = BytesMut::with_capacity(13);
        put_head(&mut out, kind);
        out.put_u64_le(number);
        out.freeze()
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let mut take = || {
            let kind = take_head(&mut bytes)?;
            let number = bytes.try_get_u64_le().ok()?;
            let answer = match kind {
                1 => Self::Opened { epoch: number },
                2 => Self::Decided(Decision::Commit),
                3 => Self::Decided(Decision::Abort),
                4 => Self::Done,
                5 => Self::Full,
                6 => Self::Forgotten,
                7 => Self::Superseded,
                8 => Self::OtherCoordinator,
                9 => Self::Malformed,
                _ => return None,
            };
            bytes.is_empty().then_some(answer)
        };
        take().ok_or(Malformed { what: "answer" })
    }
}

impl Register {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(256 + self.bytes);
        put_head(&mut out, SNAPSHOT);
        out.put_u64_le(self.epoch);
        put_text(&mut out, self.coordinator.as_deref().unwrap_or_default());
        out.put_u64_le(self.nonce);
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
    if take_head(rest)? != SNAPSHOT {
        return None;
    }
    let epoch = rest.try_get_u64_le().ok()?;
    let mut register = Register::default();
    let name = take_text(rest)?;
    if name.is_empty() != (epoch == 0) || !(name.is_empty() || is_name(name)) {
        return None;
    }
    register.coordinator = (!name.is_empty()).then(|| Arc::from(name));
    register.nonce = rest.try_get_u64_le().ok()?;
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

    fn open(nonce: u64) -> Command {
        Command::Open { coordinator: "c".into(), after: 0, nonce }
    }

    fn commands() -> Vec<Command> {
        let branches = vec![(0, "left".into()), (999, "right".into())];
        vec![
            Command::Open { coordinator: "c".into(), after: 4, nonce: 5 },
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
        let hex = |bytes: &[u8]| {
            let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap();
            bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect::<String>()
        };
        let written: Vec<String> =
            commands().iter().map(|command| hex(&command.encode().unwrap())).collect();
        assert_eq!(
            written,
            [
                "767464010101006304000000000000000500000000000000",
                "767464010201000000000000000200000000000000020000000000000004006c656674e703000005\
                 007269676874",
                "767464010301000000000000000300000000000000",
                "7674640104010000000000000002000000000000000100000000000000",
                "7674640105010b007673313a633a313a323a3004006c6566740200000000000000",
                "76746401060b007673313a633a313a323a30",
            ]
        );
    }

    /// Bytes of others are answered alike by all replicas, and stop none; what a later version may
    /// carry out is neither answered nor carried out.
    #[test]
    fn bytes_of_others_are_told_from_those_of_later_versions() {
        let whole = open(1).encode().unwrap();
        let decisions = super::super::Decisions::new();
        let malformed = Answer::Malformed.encode();
        let long = [&whole[..], b"x"].concat();
        for foreign in [b"", &b"x"[..], b"vtd", b"\x01\x01", b"vtd\x01\x08", b"vtd\0\x01", &long] {
            assert_eq!(Command::decode(foreign), Err(Unread::Foreign), "{foreign:?}");
            assert_eq!(decisions.apply(foreign), Ok(malformed.clone()), "{foreign:?}");
        }
        let mut later = whole.to_vec();
        later[3] = FORMAT + 1;
        assert_eq!(decisions.apply(&later), Err(Malformed { what: "command" }));
        assert_eq!(decisions.epoch(), 0);
        assert!(decisions.apply(&whole).is_ok());
        assert_eq!(decisions.epoch(), 1);
    }

    #[test]
    fn garbled_commands_answers_and_snapshots_are_errors() {
        let mut register = Register::default();
        register.apply(open(1));
        register.apply(open(2));
        for command in commands() {
            let bytes = command.encode().unwrap();
            assert_eq!(Command::decode(&bytes), Ok(command.clone()));
            for end in 0..bytes.len() {
                assert!(Command::decode(&bytes[..end]).is_err(), "{command:?} of {end} bytes");
            }
            assert!(Command::decode(&[&bytes[..], b"x"].concat()).is_err());
            if matches!(command, Command::Commit(_) | Command::Abort(_) | Command::Report { .. }) {
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
            Answer::OtherCoordinator,
            Answer::Malformed,
        ] {
            let bytes = answer.encode();
            assert_eq!(Answer::decode(&bytes), Ok(answer));
            assert!(Answer::decode(&bytes[..12]).is_err());
        }
        register.apply(Command::Commit(Committed::new(txn(2, 9), vec![(1, "a".into())])));
        register.apply(Command::Abort(txn(2, 10)));
        register.apply(open(3));
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
