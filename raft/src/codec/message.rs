//! Messages as bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::{DecodeError, Reader, VERSION};
use crate::message::{
    AppendAck, AppendHead, AppendReject, GroupBeat, Heartbeat, HeartbeatReply, LogLost, Message,
    NodeBeat, Quiesce, ReadReply, ReadRequest, VoteReply, VoteRequest,
};
use crate::types::{Entry, EntryKind};

const HEADER: usize = 16;
pub(super) const APPEND_HEAD: usize = HEADER + 48;
const ENTRY_HEAD: usize = 16;
/// A `Node` without what it lists.
pub(crate) const NODE_BEAT_HEAD: usize = HEADER + 48;
pub(crate) const RESIGNATION: usize = 16;
pub(crate) const BEAT: usize = 40;

/// Payloads up to this length are copied into the head: one more piece in a vectored write costs
/// more than that.
const INLINE_BYTES: usize = 256;

/// Payloads of one message that are shorter than this together are copied when they are decoded.
/// They may stay in memory for days, in a group that is seldom written to, and each of them would
/// keep the whole buffer that it was received in, with what others sent: 64 KiB and more.
const COPIED_BYTES: usize = 8 << 10;

/// An encoded message in pieces: first `head`, then those of `body`, in order. Long payloads are
/// pieces of their own and are not copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Header, fields, entry heads and the short payloads before the first long one.
    pub head: Bytes,
    /// The rest of the payloads.
    pub body: Vec<Bytes>,
}

impl Frame {
    /// The length of all pieces, in bytes.
    pub fn len(&self) -> usize {
        self.head.len() + self.body.iter().map(Bytes::len).sum::<usize>()
    }

    /// Whether there is nothing in it. No encoded message is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All pieces in one, copied if there is more than one.
    pub fn into_bytes(self) -> Bytes {
        if self.body.is_empty() {
            return self.head;
        }
        let mut whole = BytesMut::with_capacity(self.len());
        whole.put(self.head);
        self.body.into_iter().for_each(|piece| whole.put(piece));
        whole.freeze()
    }
}

/// Encodes a message of a group.
pub fn encode(group: u64, message: &Message) -> Frame {
    let is_append = matches!(message, Message::Append { .. });
    let mut pieces = Pieces::with_capacity(if is_append { 0 } else { APPEND_HEAD });
    pieces.put(group, message);
    pieces.finish()
}

/// Encodes [`Message::Append`] from entries that stay where they are.
pub fn encode_append<'a, I>(group: u64, head: &AppendHead, entries: I) -> Frame
where
    I: IntoIterator<Item = &'a Entry>,
    I::IntoIter: ExactSizeIterator + Clone,
{
    let mut pieces = Pieces::with_capacity(0);
    pieces.put_append(group, head, entries.into_iter());
    pieces.finish()
}

/// The length of [`Message::Append`] with these entries.
pub(super) fn append_len(entries: &[Entry]) -> usize {
    let payloads: usize = entries.iter().map(|entry| entry.data.len()).sum();
    APPEND_HEAD + entries.len() * ENTRY_HEAD + payloads
}

/// A frame in the making.
pub(super) struct Pieces {
    /// What follows `done`.
    pub(super) out: BytesMut,
    done: Vec<Bytes>,
}

impl Pieces {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { out: BytesMut::with_capacity(capacity), done: Vec::new() }
    }

    pub(super) fn finish(mut self) -> Frame {
        if self.done.is_empty() {
            return Frame { head: self.out.freeze(), body: Vec::new() };
        }
        if !self.out.is_empty() {
            self.done.push(self.out.freeze());
        }
        let head = self.done.remove(0);
        Frame { head, body: self.done }
    }

    /// Adds a message.
    pub(super) fn put(&mut self, group: u64, message: &Message) {
        let out = &mut self.out;
        match message {
            Message::PreVote(m) => put_vote_request(out, 1, group, m),
            Message::PreVoteReply(m) => put_vote_reply(out, 2, group, m),
            Message::Vote(m) => put_vote_request(out, 3, group, m),
            Message::VoteReply(m) => put_vote_reply(out, 4, group, m),
            Message::Append { head, entries } => self.put_append(group, head, entries.iter()),
            Message::AppendAck(m) => {
                put(out, 6, group, &[m.term, m.session, m.matched, m.received], 0);
            }
            Message::AppendReject(m) => {
                let fields = [m.term, m.session, m.prev_index, m.hint_index, m.hint_term];
                put(out, 7, group, &fields, usize::from(m.is_recovering));
                if m.is_recovering {
                    out.put_u8(1);
                }
            }
            Message::Heartbeat(m) => put(out, 8, group, &[m.term, m.round, m.commit], 0),
            Message::HeartbeatReply(m) => put(out, 9, group, &[m.term, m.round, m.received], 0),
            Message::Stale { term } => put(out, 10, group, &[*term], 0),
            Message::TimeoutNow { term } => put(out, 14, group, &[*term], 0),
            Message::Quiesce(m) => put(out, 16, group, &[m.term, m.round, m.commit, m.life], 0),
            Message::Node(beat) => put_node_beat(out, group, beat),
            Message::Removed { term, index } => put(out, 15, group, &[*term, *index], 0),
            Message::ReadRequest(m) => put(out, 11, group, &[m.term, m.nonce, m.context], 0),
            Message::LogLost(m) => put(out, 13, group, &[m.term, m.matched, m.matched_term], 0),
            Message::ReadReply(m) => {
                let fields = [m.term, m.nonce, m.context, m.index.unwrap_or(0)];
                put(out, 12, group, &fields, 1);
                out.put_u8(u8::from(m.index.is_some()));
            }
        }
    }

    fn put_append<'a, I>(&mut self, group: u64, head: &AppendHead, entries: I)
    where
        I: ExactSizeIterator<Item = &'a Entry> + Clone,
    {
        let out = &mut self.out;
        let inline = |entry: &&Entry| entry.data.len() <= INLINE_BYTES;
        let copied: usize = entries.clone().filter(inline).map(|entry| entry.data.len()).sum();
        out.reserve(APPEND_HEAD + entries.len() * ENTRY_HEAD + copied);
        let AppendHead { term, session, prev_index, prev_term, commit, probe } = *head;
        put(out, 5, group, &[term, session, prev_index, prev_term, commit], 8);
        out.put_u8(u8::from(probe));
        out.put_u8(0);
        out.put_u16_le(ENTRY_HEAD as u16);
        out.put_u32_le(entries.len() as u32);
        for entry in entries.clone() {
            out.put_u64_le(entry.term);
            out.put_u32_le(entry.data.len() as u32);
            out.put_u8(entry.kind.code());
            out.put_bytes(0, 3);
        }
        for entry in entries {
            if inline(&entry) {
                out.put_slice(&entry.data);
            } else {
                let before = out.split().freeze();
                if !before.is_empty() {
                    self.done.push(before);
                }
                self.done.push(entry.data.clone());
            }
        }
    }
}

fn put_vote_request(out: &mut BytesMut, kind: u8, group: u64, request: &VoteRequest) {
    put(out, kind, group, &[request.term, request.last_index, request.last_term], 1);
    out.put_u8(u8::from(request.transfer));
}

fn put_vote_reply(out: &mut BytesMut, kind: u8, group: u64, reply: &VoteReply) {
    put(out, kind, group, &[reply.term], 1);
    out.put_u8(u8::from(reply.granted));
}

/// The length of [`Message::Node`].
pub(super) fn node_beat_len(beat: &NodeBeat) -> usize {
    NODE_BEAT_HEAD + beat.resigned.len() * RESIGNATION + beat.beats.len() * BEAT
}

fn put_node_beat(out: &mut BytesMut, group: u64, beat: &NodeBeat) {
    let NodeBeat { life, tick, seen_life, seen_tick, resigned, beats } = beat;
    out.reserve(node_beat_len(beat));
    put(out, 17, group, &[0, *life, *tick, *seen_life, *seen_tick], 8);
    out.put_u32_le(resigned.len() as u32);
    out.put_u32_le(beats.len() as u32);
    for (group, term) in resigned {
        out.put_u64_le(*group);
        out.put_u64_le(*term);
    }
    for (group, beat) in beats {
        let (kind, fields) = match beat {
            GroupBeat::Heartbeat(m) => (8, [m.term, m.round, m.commit]),
            GroupBeat::Reply(m) => (9, [m.term, m.round, m.received]),
        };
        out.put_u8(kind);
        out.put_bytes(0, 7);
        out.put_u64_le(*group);
        for field in fields {
            out.put_u64_le(field);
        }
    }
}

/// The header and the fields of 64 bits; `rest` bytes of other fields are to follow.
fn put(out: &mut BytesMut, kind: u8, group: u64, fields: &[u64], rest: usize) {
    out.put_u8(VERSION);
    out.put_u8(kind);
    out.put_u16_le((HEADER + fields.len() * 8 + rest) as u16);
    out.put_u32_le(0);
    out.put_u64_le(group);
    for field in fields {
        out.put_u64_le(*field);
    }
}

/// Decodes a message and the group that it is for. Payloads share the memory of `bytes`, unless the
/// message is short.
///
/// # Errors
/// [`DecodeError`] when the bytes are not exactly one message of a known version and kind.
pub fn decode(bytes: Bytes) -> Result<(u64, Message), DecodeError> {
    let mut all = Reader { bytes };
    all.version()?;
    let kind = all.u8()?;
    let head_len = usize::from(all.u16()?);
    let left = head_len.checked_sub(4).ok_or(DecodeError::Field("header length"))?;
    let mut fields = Reader { bytes: all.take(left)? };
    fields.u32()?;
    let group = fields.u64()?;
    let term = fields.u64()?;
    let message = match kind {
        1 => Message::PreVote(vote_request(&mut fields, term)?),
        2 => Message::PreVoteReply(vote_reply(&mut fields, term)?),
        3 => Message::Vote(vote_request(&mut fields, term)?),
        4 => Message::VoteReply(vote_reply(&mut fields, term)?),
        5 => return Ok((group, append(&mut fields, all, term)?)),
        6 => Message::AppendAck(append_ack(&mut fields, term)?),
        7 => Message::AppendReject(append_reject(&mut fields, term)?),
        8 => {
            let (round, commit) = (fields.u64()?, fields.u64()?);
            Message::Heartbeat(Heartbeat { term, round, commit })
        }
        9 => {
            let (round, received) = (fields.u64()?, fields.u64()?);
            Message::HeartbeatReply(HeartbeatReply { term, round, received })
        }
        10 => Message::Stale { term },
        11 => {
            let (nonce, context) = (fields.u64()?, fields.u64()?);
            Message::ReadRequest(ReadRequest { term, nonce, context })
        }
        12 => {
            let (nonce, context, index) = (fields.u64()?, fields.u64()?, fields.u64()?);
            let index = fields.flag("has_index")?.then_some(index);
            Message::ReadReply(ReadReply { term, nonce, context, index })
        }
        13 => {
            let (matched, matched_term) = (fields.u64()?, fields.u64()?);
            Message::LogLost(LogLost { term, matched, matched_term })
        }
        14 => Message::TimeoutNow { term },
        16 => {
            let (round, commit, life) = (fields.u64()?, fields.u64()?, fields.u64()?);
            Message::Quiesce(Quiesce { term, round, commit, life })
        }
        17 => return Ok((group, Message::Node(Box::new(node_beat(&mut fields, all, term)?)))),
        15 => Message::Removed { term, index: fields.u64()? },
        other => return Err(DecodeError::Kind(other)),
    };
    if all.bytes.is_empty() { Ok((group, message)) } else { Err(DecodeError::Trailing) }
}

fn vote_request(fields: &mut Reader, term: u64) -> Result<VoteRequest, DecodeError> {
    let (last_index, last_term) = (fields.u64()?, fields.u64()?);
    Ok(VoteRequest { term, last_index, last_term, transfer: fields.flag("transfer")? })
}

fn vote_reply(fields: &mut Reader, term: u64) -> Result<VoteReply, DecodeError> {
    Ok(VoteReply { term, granted: fields.flag("granted")? })
}

fn append_ack(fields: &mut Reader, term: u64) -> Result<AppendAck, DecodeError> {
    let (session, matched, received) = (fields.u64()?, fields.u64()?, fields.u64()?);
    if matched > received {
        return Err(DecodeError::Field("matched"));
    }
    Ok(AppendAck { term, session, matched, received })
}

fn append_reject(fields: &mut Reader, term: u64) -> Result<AppendReject, DecodeError> {
    Ok(AppendReject {
        term,
        session: fields.u64()?,
        prev_index: fields.u64()?,
        hint_index: fields.u64()?,
        hint_term: fields.u64()?,
        // Earlier versions end here.
        is_recovering: fields.u8().is_ok_and(|flag| flag == 1),
    })
}

fn node_beat(fields: &mut Reader, mut rest: Reader, term: u64) -> Result<NodeBeat, DecodeError> {
    let (life, tick) = (fields.u64()?, fields.u64()?);
    let (seen_life, seen_tick) = (fields.u64()?, fields.u64()?);
    let (resigned, beats) = (fields.u32()? as usize, fields.u32()? as usize);
    if term != 0 {
        return Err(DecodeError::Field("term"));
    }
    // Nothing is allocated before all of it is known to be there.
    let bytes = resigned.checked_mul(RESIGNATION).ok_or(DecodeError::Truncated)?;
    let mut ended = Reader { bytes: rest.take(bytes)? };
    let bytes = beats.checked_mul(BEAT).ok_or(DecodeError::Truncated)?;
    let mut beating = Reader { bytes: rest.take(bytes)? };
    if !rest.bytes.is_empty() {
        return Err(DecodeError::Trailing);
    }
    let resigned = (0..resigned).map(|_| Ok((ended.u64()?, ended.u64()?)));
    let resigned = resigned.collect::<Result<_, DecodeError>>()?;
    let beats = (0..beats).map(|_| group_beat(&mut beating)).collect::<Result<_, _>>()?;
    Ok(NodeBeat { life, tick, seen_life, seen_tick, resigned, beats })
}

fn group_beat(reader: &mut Reader) -> Result<(u64, GroupBeat), DecodeError> {
    let kind = reader.u8()?;
    reader.take(7)?;
    let (group, term, round, index) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
    Ok((
        group,
        match kind {
            8 => GroupBeat::Heartbeat(Heartbeat { term, round, commit: index }),
            9 => GroupBeat::Reply(HeartbeatReply { term, round, received: index }),
            other => return Err(DecodeError::Kind(other)),
        },
    ))
}

fn append(fields: &mut Reader, mut rest: Reader, term: u64) -> Result<Message, DecodeError> {
    let (session, prev_index) = (fields.u64()?, fields.u64()?);
    let (prev_term, commit) = (fields.u64()?, fields.u64()?);
    let probe = fields.flag("probe")?;
    fields.u8()?;
    let entry_head = usize::from(fields.u16()?);
    let count = fields.u32()?;
    if entry_head < ENTRY_HEAD {
        return Err(DecodeError::Field("entry head length"));
    }
    if prev_term > term {
        return Err(DecodeError::Field("prev_term"));
    }
    if prev_index.checked_add(u64::from(count)).is_none_or(|last| last == u64::MAX) {
        return Err(DecodeError::Field("count"));
    }
    // Nothing is allocated before the heads are known to be there.
    let heads = (count as usize).checked_mul(entry_head).ok_or(DecodeError::Truncated)?;
    let mut heads = Reader { bytes: rest.take(heads)? };
    if rest.bytes.len() < COPIED_BYTES {
        rest.bytes = Bytes::copy_from_slice(&rest.bytes);
    }
    let mut entries = Vec::with_capacity(count as usize);
    let mut least = prev_term;
    for index in (1..=u64::from(count)).map(|at| prev_index + at) {
        let mut head = Reader { bytes: heads.take(entry_head)? };
        let (entry_term, len) = (head.u64()?, head.u32()?);
        let kind = EntryKind::from_code(head.u8()?)?;
        if entry_term == 0 || entry_term < least || entry_term > term {
            return Err(DecodeError::Field("entry term"));
        }
        least = entry_term;
        let data = rest.take(len as usize)?;
        entries.push(Entry { term: entry_term, index, kind, data });
    }
    if !rest.bytes.is_empty() {
        return Err(DecodeError::Trailing);
    }
    let head = AppendHead { term, session, prev_index, prev_term, commit, probe };
    Ok(Message::Append { head, entries })
}
