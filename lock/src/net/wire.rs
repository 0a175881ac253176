//! Requests and answers, version 1, little-endian.
//!
//! Request: version (1 byte), kind (1), time to the deadline in ms (4), body. Kind 1: the bytes of
//! a command of a client; 2 renewal: session (8); 3 view: whether a version is known (1), it (8),
//! name; 4 wait for a leader, answered as not the leader: whether another than it is asked for (1),
//! it (8). Answer: version (1), kind (1), body. Kind 1: the bytes of an answer; 2 view; 3 not the
//! leader: whether it is known (1), it (8); 4 unavailable: reason; 5 unknown: reason. Names,
//! values and reasons have their length (2) before them.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::core::codec::{flag, number, put_bytes, put_mode, take_bytes, take_mode};
use crate::core::{Answer, Command, Hold, LockView, MAX_NAME_BYTES, MAX_VALUE_BYTES, Malformed};
use crate::service::ServiceError;

const VERSION: u8 = 1;
/// The longest reason, in bytes.
const MAX_REASON_BYTES: usize = 512;
/// Of a lock that more hold, a view over the network shows the first of them only.
pub const MAX_HOLDERS_TOLD: usize = 1_000;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A command that clients may give.
    Command(Command),
    Renew {
        session: u64,
    },
    View {
        name: Bytes,
        known: Option<u64>,
    },
    /// Wait for a leader other than this one.
    Leader {
        but: Option<u64>,
    },
}

impl Request {
    /// The bytes; the server answers `within` this time.
    pub(super) fn encode(&self, within: Duration) -> Bytes {
        let mut out = BytesMut::with_capacity(96);
        out.put_u8(VERSION);
        out.put_u8(match self {
            Self::Command(_) => 1,
            Self::Renew { .. } => 2,
            Self::View { .. } => 3,
            Self::Leader { .. } => 4,
        });
        out.put_u32_le(within.as_millis().try_into().unwrap_or(u32::MAX));
        match self {
            Self::Command(command) => out.put_slice(&command.encode()),
            Self::Renew { session } => out.put_u64_le(*session),
            Self::View { name, known } => {
                put_option(&mut out, *known);
                put_bytes(&mut out, name);
            }
            Self::Leader { but } => put_option(&mut out, *but),
        }
        out.freeze()
    }

    /// Whether its answer may take the whole time that it is given.
    pub(super) fn waits(&self) -> bool {
        matches!(
            self,
            Self::Command(Command::Acquire { wait: true, .. })
                | Self::View { known: Some(_), .. }
                | Self::Leader { .. }
        )
    }

    /// Whether a server decodes it: its fields are within their limits.
    pub(super) fn is_in_range(&self) -> bool {
        Self::decode(&self.encode(Duration::ZERO)).is_ok_and(|(decoded, _)| decoded == *self)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, Duration), Malformed> {
        let mut rest = bytes;
        let request = Self::take(&mut rest).filter(|_| rest.is_empty());
        request.ok_or(Malformed { what: "request" })
    }

    fn take(rest: &mut &[u8]) -> Option<(Self, Duration)> {
        if rest.try_get_u8().ok()? != VERSION {
            return None;
        }
        let kind = rest.try_get_u8().ok()?;
        let within = Duration::from_millis(rest.try_get_u32_le().ok()?.into());
        let request = match kind {
            1 => {
                let command = Command::decode(rest).ok().filter(is_of_a_client)?;
                *rest = &[];
                Self::Command(command)
            }
            2 => Self::Renew { session: number(rest)? },
            3 => {
                let known = take_option(rest).ok()?;
                Self::View { known, name: take_bytes(rest, MAX_NAME_BYTES)? }
            }
            4 => Self::Leader { but: take_option(rest).ok()? },
            _ => return None,
        };
        Some((request, within))
    }
}

/// The others are for the timers of a leader: nobody gives them from outside.
fn is_of_a_client(command: &Command) -> bool {
    matches!(
        command,
        Command::OpenSession { .. }
            | Command::CloseSession { .. }
            | Command::Acquire { .. }
            | Command::Release { .. }
            | Command::SetValue { .. }
    )
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Response {
    Answer(Answer),
    View(LockView),
    Failed(ServiceError),
}

impl Response {
    /// What the server says of a call that failed, as its error.
    pub(super) fn into_result(self) -> Result<Self, ServiceError> {
        match self {
            Self::Failed(error) => Err(error),
            response => Ok(response),
        }
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(32);
        out.put_u8(VERSION);
        match self {
            Self::Answer(answer) => put_answer(&mut out, *answer),
            Self::Failed(ServiceError::Rejected(rejection)) => {
                put_answer(&mut out, Answer::Rejected(*rejection));
            }
            Self::View(view) => put_view(&mut out, view),
            Self::Failed(ServiceError::NotLeader { leader }) => {
                out.put_u8(3);
                put_option(&mut out, *leader);
            }
            Self::Failed(ServiceError::Unavailable { reason }) => {
                out.put_u8(4);
                put_reason(&mut out, reason);
            }
            // For a client of the server it is the server that cannot work.
            Self::Failed(error @ ServiceError::Format { .. }) => {
                out.put_u8(4);
                put_reason(&mut out, &error.to_string());
            }
            Self::Failed(ServiceError::Unknown { reason }) => {
                out.put_u8(5);
                put_reason(&mut out, reason);
            }
        }
        out.freeze()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut rest = bytes;
        let response = Self::take(&mut rest).filter(|_| rest.is_empty());
        response.ok_or(Malformed { what: "response" })
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        if rest.try_get_u8().ok()? != VERSION {
            return None;
        }
        Some(match rest.try_get_u8().ok()? {
            1 => match Answer::decode(std::mem::take(rest)).ok()? {
                Answer::Rejected(rejection) => Self::Failed(rejection.into()),
                answer => Self::Answer(answer),
            },
            2 => Self::View(take_view(rest)?),
            3 => Self::Failed(ServiceError::NotLeader { leader: take_option(rest).ok()? }),
            4 => Self::Failed(ServiceError::Unavailable { reason: take_reason(rest)? }),
            5 => Self::Failed(ServiceError::Unknown { reason: take_reason(rest)? }),
            _ => return None,
        })
    }
}

fn put_answer(out: &mut BytesMut, answer: Answer) {
    out.put_u8(1);
    out.put_slice(&answer.encode());
}

fn put_view(out: &mut BytesMut, view: &LockView) {
    out.put_u8(2);
    out.put_u64_le(view.version);
    out.put_u64_le(view.waiters as u64);
    out.put_u8(u8::from(view.is_delayed));
    put_bytes(out, &view.value);
    let holders = &view.holders[..view.holders.len().min(MAX_HOLDERS_TOLD)];
    out.put_u16_le(holders.len() as u16);
    for hold in holders {
        for number in [hold.session, hold.request, hold.token] {
            out.put_u64_le(number);
        }
        put_mode(out, hold.mode);
    }
}

fn take_view(rest: &mut &[u8]) -> Option<LockView> {
    let (version, waiters) = (number(rest)?, usize::try_from(number(rest)?).ok()?);
    let (is_delayed, value) = (flag(rest)?, take_bytes(rest, MAX_VALUE_BYTES)?);
    let count = usize::from(rest.try_get_u16_le().ok()?);
    if count > MAX_HOLDERS_TOLD {
        return None;
    }
    let mut holders = Vec::new();
    for _ in 0..count {
        let (session, request, token) = (number(rest)?, number(rest)?, number(rest)?);
        holders.push(Hold { session, request, token, mode: take_mode(rest)? });
    }
    Some(LockView { holders, waiters, is_delayed, value, version })
}

fn put_option(out: &mut BytesMut, number: Option<u64>) {
    out.put_u8(u8::from(number.is_some()));
    out.put_u64_le(number.unwrap_or(0));
}

fn take_option(rest: &mut &[u8]) -> Result<Option<u64>, Malformed> {
    let is_some = flag(rest).ok_or(Malformed { what: "flag" })?;
    let number = number(rest).ok_or(Malformed { what: "number" })?;
    Ok(is_some.then_some(number))
}

fn put_reason(out: &mut BytesMut, reason: &str) {
    let mut end = reason.len().min(MAX_REASON_BYTES);
    // Ends: the start of a text is a boundary of its characters.
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    put_bytes(out, &reason.as_bytes()[..end]);
}

fn take_reason(rest: &mut &[u8]) -> Option<String> {
    let bytes = take_bytes(rest, MAX_REASON_BYTES)?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::{Mode, Rejection};

    #[test]
    fn what_is_sent_arrives() {
        let acquire = Command::Acquire {
            session: 1,
            request: 2,
            floor: 1,
            name: "a".into(),
            mode: Mode::Slot { of: 3 },
            wait: true,
            lock_delay_ms: 9,
        };
        for request in [
            Request::Command(acquire),
            Request::Command(Command::CloseSession { session: 1 }),
            Request::Renew { session: u64::MAX },
            Request::View { name: "b".into(), known: Some(7) },
            Request::View { name: Bytes::new(), known: None },
            Request::Leader { but: Some(3) },
            Request::Leader { but: None },
        ] {
            let within = Duration::from_millis(77);
            assert_eq!(Request::decode(&request.encode(within)), Ok((request, within)));
        }
        let hold = Hold { session: 1, request: 2, token: 3, mode: Mode::Shared };
        let view = LockView {
            holders: vec![hold; 2],
            waiters: 4,
            is_delayed: true,
            value: "v".into(),
            version: 5,
        };
        for response in [
            Response::Answer(Answer::Granted { token: 9 }),
            Response::Failed(Rejection::NoSession.into()),
            Response::Failed(ServiceError::NotLeader { leader: Some(3) }),
            Response::Failed(ServiceError::NotLeader { leader: None }),
            Response::Failed(ServiceError::unavailable("busy")),
            Response::Failed(ServiceError::unknown("\u{e9}")),
            Response::View(view.clone()),
        ] {
            assert_eq!(Response::decode(&response.encode()), Ok(response));
        }
        let many = LockView { holders: vec![hold; MAX_HOLDERS_TOLD + 5], ..view };
        let Ok(Response::View(told)) = Response::decode(&Response::View(many).encode()) else {
            panic!("a view");
        };
        assert_eq!(told.holders.len(), MAX_HOLDERS_TOLD);
        let long = Response::Failed(ServiceError::unknown("\u{e9}".repeat(400)));
        assert!(Response::decode(&long.encode()).is_ok());
    }

    /// A client that could end sessions of others would be a leader of its own making.
    #[test]
    fn commands_of_a_leader_are_refused_from_outside() {
        for command in [
            Command::BeginReign,
            Command::Expire { reign: 1, session: 2 },
            Command::Checkpoint { reign: 1, session: 2, number: 1, remaining_ms: 1 },
            Command::CheckpointDelay { reign: 1, name: "a".into(), since: 3, remaining_ms: 1 },
            Command::EndDelay { reign: 1, name: "a".into(), since: 3 },
        ] {
            let bytes = Request::Command(command).encode(Duration::ZERO);
            assert!(Request::decode(&bytes).is_err());
        }
    }

    proptest! {
        #[test]
        fn garbled_bytes_are_errors_or_what_they_say(
            mut bytes in prop::collection::vec(any::<u8>(), 0..80),
            kind in 0..6_u8,
        ) {
            if let [version, second, ..] = &mut bytes[..] {
                (*version, *second) = (VERSION, kind);
            }
            if let Ok((request, within)) = Request::decode(&bytes) {
                prop_assert_eq!(&request.encode(within)[..], &bytes[..]);
            }
            if let Ok(response) = Response::decode(&bytes) {
                prop_assert_eq!(Response::decode(&response.encode()), Ok(response));
            }
        }
    }
}
