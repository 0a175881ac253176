//! Requests from node to node and their answers, version 2. All integers are little-endian.
//!
//! A request: version (1 byte), how long the caller waits in ms (4), kind (1), fields. An answer:
//! version (1), kind (1), fields. A text is its length (2) and its UTF-8 bytes, a list its length
//! (4) and its items, what may be missing a byte and, after 1, the value.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::core::group::MemberId;

/// 2 since a member that joins says in which generation.
const VERSION: u8 = 2;

/// A member of a group, unlike any that there ever was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// The term of the leader that has taken it in.
    pub(super) term: u64,
    /// Of that leader's coordinators.
    pub(super) coordinator: u64,
    pub(super) id: MemberId,
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Beat {
    pub(super) group: String,
    /// A name that no other consumer has: a request that is sent again is the same member's.
    pub(super) instance: String,
    /// `None` to join as a new member.
    pub(super) member: Option<Member>,
    pub(super) topics: Vec<String>,
    pub(super) session_ms: u64,
    /// To take part in a rebalance.
    pub(super) join: Option<Join>,
}

/// How a member takes part in the rebalance that it was told of: the request may be sent again, and
/// come in a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Join {
    /// The generation that it was told with [`Place::must_join`].
    pub(super) generation: u32,
    /// Numbers of the partitions that it goes on reading.
    pub(super) owned: Vec<u32>,
}

/// What a node asks another one, which leads what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Append a batch to the partition of this number.
    Append {
        number: u32,
        batch: Bytes,
    },
    CreateTopic {
        name: String,
        partitions: u32,
    },
    /// Delete the topic whose first partition has this number. Done when there is none any more.
    DeleteTopic {
        name: String,
        first_number: u32,
    },
    /// Give that topic this retention, as [`TopicEntry`](crate::core::entry::TopicEntry) has it.
    SetRetention {
        name: String,
        first_number: u32,
        max_bytes: u64,
        max_age_ms: u64,
    },
    /// An id that no producer has had.
    NewProducer,
    Beat(Beat),
    Leave {
        group: String,
        member: Member,
    },
    /// Store the offset of the next record of each of these partitions.
    Commit {
        group: String,
        generation: u32,
        offsets: Vec<(u32, u64)>,
    },
    /// Delete the group, which must have no members. Done when there is none.
    DeleteGroup {
        group: String,
    },
    /// Delete the groups without members that nobody has used for so many ms.
    ExpireGroups {
        unused_ms: u64,
    },
}

/// Where a member stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) member: Member,
    /// It has to join with no more than the partitions below.
    pub(super) must_join: bool,
    pub(super) generation: u32,
    /// Its partitions, and the offset that the group has stored for each.
    pub(super) partitions: Vec<(u32, Option<u64>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Response {
    /// It is done.
    Done,
    /// The batch is there, its first record at this offset.
    Appended {
        base_offset: u64,
    },
    Producer {
        id: i64,
    },
    Place(Place),
    /// The member waits for others. `None`: it has not been taken in yet.
    Waiting {
        member: Option<Member>,
    },
    /// There is no such topic any more.
    NoTopic,
    /// A part is done: ask again.
    More,
    /// The member is none, or no longer.
    NoMember,
    /// The group's generation is another one.
    Stale {
        current: u32,
    },
    /// There is a topic with so many partitions, or a group with another time-out in ms.
    Mismatch {
        found: u64,
    },
    /// The partition does not know the producer.
    Forgotten,
    /// Nothing was done. Ask whoever leads.
    NotLeader {
        leader: Option<u64>,
    },
    /// Nothing was done. Ask again later.
    NotNow {
        why: String,
    },
    /// Nothing was done, and the caller decides how long it waits: there is no room, say.
    Unable {
        why: String,
    },
    /// Nothing was done, nor will it be.
    Rejected {
        why: String,
    },
    /// It may have been done.
    Unknown {
        why: String,
    },
}

impl Request {
    pub(super) fn encode(&self, within: Duration) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u32_le(u32::try_from(within.as_millis()).unwrap_or(u32::MAX));
        match self {
            Self::Append { number, batch } => {
                out.put_u8(1);
                out.put_u32_le(*number);
                out.put_slice(batch);
            }
            Self::CreateTopic { name, partitions } => {
                out.put_u8(2);
                put_text(&mut out, name);
                out.put_u32_le(*partitions);
            }
            Self::NewProducer => out.put_u8(3),
            Self::Beat(beat) => {
                out.put_u8(4);
                put_text(&mut out, &beat.group);
                put_text(&mut out, &beat.instance);
                put_member(&mut out, beat.member);
                put_list(&mut out, &beat.topics, |out, topic| put_text(out, topic));
                out.put_u64_le(beat.session_ms);
                out.put_u8(u8::from(beat.join.is_some()));
                if let Some(Join { generation, owned }) = &beat.join {
                    out.put_u32_le(*generation);
                    put_list(&mut out, owned, |out, number| out.put_u32_le(*number));
                }
            }
            Self::Leave { group, member } => {
                out.put_u8(5);
                put_text(&mut out, group);
                put_member(&mut out, Some(*member));
            }
            Self::Commit { group, generation, offsets } => {
                out.put_u8(6);
                put_text(&mut out, group);
                out.put_u32_le(*generation);
                put_list(&mut out, offsets, |out, (number, offset)| {
                    out.put_u32_le(*number);
                    out.put_u64_le(*offset);
                });
            }
            Self::DeleteTopic { name, first_number } => {
                out.put_u8(7);
                put_text(&mut out, name);
                out.put_u32_le(*first_number);
            }
            Self::SetRetention { name, first_number, max_bytes, max_age_ms } => {
                out.put_u8(8);
                put_text(&mut out, name);
                out.put_u32_le(*first_number);
                out.put_u64_le(*max_bytes);
                out.put_u64_le(*max_age_ms);
            }
            Self::DeleteGroup { group } => {
                out.put_u8(9);
                put_text(&mut out, group);
            }
            Self::ExpireGroups { unused_ms } => {
                out.put_u8(10);
                out.put_u64_le(*unused_ms);
            }
        }
        out.freeze()
    }

    /// A request, and how long its caller waits. `None` for what no version 2 wrote.
    pub(super) fn decode(mut input: Bytes) -> Option<(Self, Duration)> {
        let input = &mut input;
        if input.try_get_u8().ok()? != VERSION {
            return None;
        }
        let within = Duration::from_millis(input.try_get_u32_le().ok()?.into());
        let request = match input.try_get_u8().ok()? {
            1 => {
                let number = input.try_get_u32_le().ok()?;
                Self::Append { number, batch: std::mem::take(input) }
            }
            2 => {
                let name = text(input)?;
                Self::CreateTopic { name, partitions: input.try_get_u32_le().ok()? }
            }
            3 => Self::NewProducer,
            4 => Self::Beat(Beat {
                group: text(input)?,
                instance: text(input)?,
                member: member(input)?,
                topics: list(input, text)?,
                session_ms: input.try_get_u64_le().ok()?,
                join: option(input, |input| {
                    let generation = input.try_get_u32_le().ok()?;
                    let owned = list(input, |input| input.try_get_u32_le().ok())?;
                    Some(Join { generation, owned })
                })?,
            }),
            5 => Self::Leave { group: text(input)?, member: member(input)?? },
            6 => Self::Commit {
                group: text(input)?,
                generation: input.try_get_u32_le().ok()?,
                offsets: list(input, |input| {
                    Some((input.try_get_u32_le().ok()?, input.try_get_u64_le().ok()?))
                })?,
            },
            7 => {
                let name = text(input)?;
                Self::DeleteTopic { name, first_number: input.try_get_u32_le().ok()? }
            }
            8 => Self::SetRetention {
                name: text(input)?,
                first_number: input.try_get_u32_le().ok()?,
                max_bytes: input.try_get_u64_le().ok()?,
                max_age_ms: input.try_get_u64_le().ok()?,
            },
            9 => Self::DeleteGroup { group: text(input)? },
            10 => Self::ExpireGroups { unused_ms: input.try_get_u64_le().ok()? },
            _ => return None,
        };
        input.is_empty().then_some((request, within))
    }
}

impl Response {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        match self {
            Self::Done => out.put_u8(0),
            Self::Appended { base_offset } => {
                out.put_u8(1);
                out.put_u64_le(*base_offset);
            }
            Self::Producer { id } => {
                out.put_u8(2);
                out.put_i64_le(*id);
            }
            Self::Place(place) => {
                out.put_u8(3);
                put_member(&mut out, Some(place.member));
                out.put_u8(u8::from(place.must_join));
                out.put_u32_le(place.generation);
                put_list(&mut out, &place.partitions, |out, (number, offset)| {
                    out.put_u32_le(*number);
                    put_u64(out, *offset);
                });
            }
            Self::Waiting { member } => {
                out.put_u8(4);
                put_member(&mut out, *member);
            }
            Self::NoMember => out.put_u8(5),
            Self::Stale { current } => {
                out.put_u8(6);
                out.put_u32_le(*current);
            }
            Self::Mismatch { found } => {
                out.put_u8(7);
                out.put_u64_le(*found);
            }
            Self::Forgotten => out.put_u8(8),
            Self::NotLeader { leader } => {
                out.put_u8(9);
                put_u64(&mut out, *leader);
            }
            Self::NotNow { why } => put_reason(&mut out, 10, why),
            Self::Unable { why } => put_reason(&mut out, 11, why),
            Self::Rejected { why } => put_reason(&mut out, 12, why),
            Self::Unknown { why } => put_reason(&mut out, 13, why),
            Self::NoTopic => out.put_u8(14),
            Self::More => out.put_u8(15),
        }
        out.freeze()
    }

    /// `None` for what no version 2 wrote.
    pub(super) fn decode(mut input: Bytes) -> Option<Self> {
        let input = &mut input;
        if input.try_get_u8().ok()? != VERSION {
            return None;
        }
        let response = match input.try_get_u8().ok()? {
            0 => Self::Done,
            1 => Self::Appended { base_offset: input.try_get_u64_le().ok()? },
            2 => Self::Producer { id: input.try_get_i64_le().ok()? },
            3 => Self::Place(Place {
                member: member(input)??,
                must_join: flag(input)?,
                generation: input.try_get_u32_le().ok()?,
                partitions: list(input, |input| {
                    let number = input.try_get_u32_le().ok()?;
                    Some((number, option(input, |input| input.try_get_u64_le().ok())?))
                })?,
            }),
            4 => Self::Waiting { member: member(input)? },
            5 => Self::NoMember,
            6 => Self::Stale { current: input.try_get_u32_le().ok()? },
            7 => Self::Mismatch { found: input.try_get_u64_le().ok()? },
            8 => Self::Forgotten,
            9 => Self::NotLeader { leader: option(input, |input| input.try_get_u64_le().ok())? },
            10 => Self::NotNow { why: text(input)? },
            11 => Self::Unable { why: text(input)? },
            12 => Self::Rejected { why: text(input)? },
            13 => Self::Unknown { why: text(input)? },
            14 => Self::NoTopic,
            15 => Self::More,
            _ => return None,
        };
        input.is_empty().then_some(response)
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    let most = text.len().min(usize::from(u16::MAX));
    let length = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    out.put_u16_le(length as u16);
    out.put_slice(&text.as_bytes()[..length]);
}

fn put_reason(out: &mut BytesMut, kind: u8, why: &str) {
    out.put_u8(kind);
    put_text(out, why);
}

fn put_member(out: &mut BytesMut, member: Option<Member>) {
    out.put_u8(u8::from(member.is_some()));
    if let Some(Member { term, coordinator, id }) = member {
        out.put_u64_le(term);
        out.put_u64_le(coordinator);
        out.put_u64_le(id);
    }
}

fn put_u64(out: &mut BytesMut, value: Option<u64>) {
    out.put_u8(u8::from(value.is_some()));
    if let Some(value) = value {
        out.put_u64_le(value);
    }
}

fn put_list<T>(out: &mut BytesMut, items: &[T], put: impl Fn(&mut BytesMut, &T)) {
    out.put_u32_le(items.len() as u32);
    for item in items {
        put(out, item);
    }
}

fn flag(input: &mut Bytes) -> Option<bool> {
    match input.try_get_u8().ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

#[expect(clippy::option_option, reason = "the outer one: whether it can be understood")]
fn option<T>(input: &mut Bytes, read: impl Fn(&mut Bytes) -> Option<T>) -> Option<Option<T>> {
    if flag(input)? { read(input).map(Some) } else { Some(None) }
}

fn text(input: &mut Bytes) -> Option<String> {
    let length = usize::from(input.try_get_u16_le().ok()?);
    let bytes = (length <= input.len()).then(|| input.split_to(length))?;
    String::from_utf8(bytes.into()).ok()
}

#[expect(clippy::option_option, reason = "the outer one: whether it can be understood")]
fn member(input: &mut Bytes) -> Option<Option<Member>> {
    option(input, |input| {
        Some(Member {
            term: input.try_get_u64_le().ok()?,
            coordinator: input.try_get_u64_le().ok()?,
            id: input.try_get_u64_le().ok()?,
        })
    })
}

fn list<T>(input: &mut Bytes, read: impl Fn(&mut Bytes) -> Option<T>) -> Option<Vec<T>> {
    let count = input.try_get_u32_le().ok()?;
    // Not reserved for: the number comes from outside, and each item takes some bytes.
    (0..count).map(|_| read(input)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBER: Member = Member { term: 7, coordinator: 2, id: 5 };

    fn requests() -> Vec<Request> {
        let beat = Beat {
            group: "g".to_owned(),
            instance: "1-2".to_owned(),
            member: Some(MEMBER),
            topics: vec!["a".to_owned(), "b".to_owned()],
            session_ms: 1_000,
            join: Some(Join { generation: 3, owned: vec![1, 2] }),
        };
        vec![
            Request::Append { number: 3, batch: Bytes::from_static(b"batch") },
            Request::CreateTopic { name: "orders".to_owned(), partitions: 4 },
            Request::DeleteTopic { name: "orders".to_owned(), first_number: 3 },
            Request::SetRetention {
                name: "orders".to_owned(),
                first_number: 3,
                max_bytes: 1 << 40,
                max_age_ms: u64::MAX,
            },
            Request::NewProducer,
            Request::Beat(Beat { member: None, join: None, ..beat.clone() }),
            Request::Beat(beat),
            Request::Leave { group: "g".to_owned(), member: MEMBER },
            Request::Commit { group: "g".to_owned(), generation: 9, offsets: vec![(1, 2), (3, 4)] },
            Request::DeleteGroup { group: "g".to_owned() },
            Request::ExpireGroups { unused_ms: 1 << 40 },
        ]
    }

    fn responses() -> Vec<Response> {
        let why = || "it is so".to_owned();
        vec![
            Response::Done,
            Response::Appended { base_offset: 9 },
            Response::Producer { id: 4 },
            Response::Place(Place {
                member: MEMBER,
                must_join: true,
                generation: 3,
                partitions: vec![(1, Some(2)), (4, None)],
            }),
            Response::Waiting { member: Some(MEMBER) },
            Response::NoTopic,
            Response::More,
            Response::NoMember,
            Response::Stale { current: 8 },
            Response::Mismatch { found: 3 },
            Response::Forgotten,
            Response::NotLeader { leader: Some(2) },
            Response::NotNow { why: why() },
            Response::Unable { why: why() },
            Response::Rejected { why: why() },
            Response::Unknown { why: why() },
        ]
    }

    #[test]
    fn what_is_said_comes_back_and_nothing_that_is_cut_or_longer_does() {
        let within = Duration::from_millis(250);
        for request in requests() {
            let bytes = request.encode(within);
            assert_eq!(Request::decode(bytes.clone()), Some((request.clone(), within)));
            let is_append = matches!(request, Request::Append { .. });
            for end in 0..bytes.len() {
                let cut = Request::decode(bytes.slice(..end));
                // The bytes of a batch have a length and a checksum of their own.
                assert!(cut.is_none() || (is_append && end >= 10), "{cut:?} cut at {end}");
            }
            let longer = Request::decode([&bytes[..], &[0]].concat().into());
            assert!(longer.is_none() || is_append, "{longer:?}");
        }
        for response in responses() {
            let bytes = response.encode();
            assert_eq!(Response::decode(bytes.clone()), Some(response));
            for end in 0..bytes.len() {
                assert_eq!(Response::decode(bytes.slice(..end)), None, "cut at {end}");
            }
            assert_eq!(Response::decode([&bytes[..], &[0]].concat().into()), None);
        }
        let long = Response::NotNow { why: "é".repeat(40_000) }.encode();
        assert!(Response::decode(long).is_some(), "a long reason is cut between characters");
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_or_reserve() {
        let requests = requests().into_iter().map(|request| request.encode(Duration::ZERO));
        for bytes in requests.chain(responses().iter().map(Response::encode)) {
            for at in 0..bytes.len() {
                for value in [0, 1, 0x7f, 0xff] {
                    let mut damaged = bytes.to_vec();
                    damaged[at] = value;
                    let _ = Request::decode(damaged.clone().into());
                    let _ = Response::decode(damaged.into());
                }
            }
        }
    }
}
