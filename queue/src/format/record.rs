//! A record, and its bytes within a batch.

use bytes::{BufMut, Bytes, BytesMut};

use super::{NO_TIMESTAMP, varint};

/// One record: a key and a value, either of which may be missing, with headers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// Its offset in the partition. Given by the log: what a producer sets here is ignored.
    pub offset: u64,
    /// Time of the event in ms since the UNIX epoch, or [`NO_TIMESTAMP`].
    pub timestamp: i64,
    /// Records of one key go to one partition, in order.
    pub key: Option<Bytes>,
    /// `None` is a tombstone: it deletes the key where a topic is compacted.
    pub value: Option<Bytes>,
    /// Further fields, in order; a key may occur more than once.
    pub headers: Vec<RecordHeader>,
}

impl Record {
    /// A record without key, timestamp and headers.
    pub fn new(value: impl Into<Bytes>) -> Self {
        let value = Some(value.into());
        Self { offset: 0, timestamp: NO_TIMESTAMP, key: None, value, headers: Vec::new() }
    }

    /// A record that deletes `key` where a topic is compacted.
    pub fn tombstone(key: impl Into<Bytes>) -> Self {
        Self { value: None, ..Self::new(Bytes::new()) }.key(key)
    }

    /// Sets the key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the time of the event, in ms since the UNIX epoch. At least 0.
    #[must_use]
    pub fn timestamp(mut self, ms: i64) -> Self {
        self.timestamp = ms;
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, key: &str, value: impl Into<Bytes>) -> Self {
        self.headers.push(RecordHeader::new(key, Some(value.into())));
        self
    }

    /// Upper bound of what it takes in a batch, in bytes.
    #[cfg(feature = "journal")]
    pub(crate) fn max_bytes(&self) -> usize {
        // Length, attributes, timestamp, offset and the lengths of the parts, as varints.
        const OVERHEAD_BYTES: usize = 48;
        let len = |part: Option<&Bytes>| part.map_or(0, Bytes::len);
        let headers = self.headers.iter();
        let headers: usize = headers.map(|h| h.key.len() + len(h.value.as_ref()) + 10).sum();
        len(self.key.as_ref()) + len(self.value.as_ref()) + headers + OVERHEAD_BYTES
    }

    /// The value of the last header of this key.
    pub fn last_header(&self, key: &str) -> Option<&Bytes> {
        self.headers.iter().rev().find(|header| header.key() == key)?.value()
    }
}

/// A header of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Invariant: UTF-8.
    key: Bytes,
    value: Option<Bytes>,
}

impl RecordHeader {
    /// A header.
    pub fn new(key: &str, value: Option<Bytes>) -> Self {
        Self { key: Bytes::copy_from_slice(key.as_bytes()), value }
    }

    /// Its key.
    pub fn key(&self) -> &str {
        std::str::from_utf8(&self.key).unwrap_or_default()
    }

    /// Its value.
    pub fn value(&self) -> Option<&Bytes> {
        self.value.as_ref()
    }
}

/// Where a record stands within its batch.
#[derive(Clone, Copy)]
pub(super) struct Deltas {
    pub(super) timestamp: i64,
    pub(super) offset: i32,
}

/// Bytes of the record without its length.
fn body_bytes(record: &Record, deltas: Deltas) -> usize {
    let block = |block: Option<&Bytes>| match block {
        Some(bytes) => varint::size_of_len(bytes.len()) + bytes.len(),
        None => 1,
    };
    let headers = record.headers.iter();
    let headers = headers.map(|header| block(Some(&header.key)) + block(header.value.as_ref()));
    1 + varint::size(deltas.timestamp)
        + varint::size(i64::from(deltas.offset))
        + block(record.key.as_ref())
        + block(record.value.as_ref())
        + varint::size_of_len(record.headers.len())
        + headers.sum::<usize>()
}

/// Bytes that [`put`] appends.
pub(super) fn bytes(record: &Record, deltas: Deltas) -> usize {
    let body = body_bytes(record, deltas);
    varint::size_of_len(body) + body
}

pub(super) fn put(out: &mut BytesMut, record: &Record, deltas: Deltas) {
    varint::put_len(out, body_bytes(record, deltas));
    out.put_u8(0);
    varint::put(out, deltas.timestamp);
    varint::put(out, i64::from(deltas.offset));
    put_block(out, record.key.as_ref());
    put_block(out, record.value.as_ref());
    varint::put_len(out, record.headers.len());
    for header in &record.headers {
        put_block(out, Some(&header.key));
        put_block(out, header.value.as_ref());
    }
}

fn put_block(out: &mut BytesMut, block: Option<&Bytes>) {
    match block {
        Some(bytes) => {
            varint::put_len(out, bytes.len());
            out.put_slice(bytes);
        }
        None => varint::put(out, -1),
    }
}

/// What `take` makes of the record's parts: with slices for a reader, nothing for a check.
pub(super) struct Taken<'a> {
    pub(super) deltas: Deltas,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    /// The bytes of the headers.
    headers: &'a [u8],
    header_count: usize,
}

/// Headers that a record may have: each takes two bytes on the wire and 64 in memory.
pub(super) const MAX_HEADERS: usize = 1 << 16;

/// Takes a record off `input` and checks all of it. Allocates nothing.
pub(super) fn take<'a>(input: &mut &'a [u8]) -> Result<Taken<'a>, &'static str> {
    let length = varint::take(input).ok_or("its length is cut off")?;
    let length = usize::try_from(length).map_err(|_| "its length is negative")?;
    let (mut body, rest) = input.split_at_checked(length).ok_or("it is cut off")?;
    *input = rest;
    // The record's attributes are not used by version 2.
    body = body.get(1..).ok_or("it is empty")?;
    let timestamp = varint::take_long(&mut body).ok_or("its timestamp is cut off")?;
    let offset = varint::take(&mut body).ok_or("its offset is cut off")?;
    let key = take_block(&mut body)?;
    let value = take_block(&mut body)?;
    let count = varint::take(&mut body).ok_or("its number of headers is cut off")?;
    let header_count = usize::try_from(count).map_err(|_| "its number of headers is negative")?;
    if header_count > MAX_HEADERS {
        return Err("it has more than 65,536 headers");
    }
    // A header has at least two bytes.
    if header_count > body.len() / 2 {
        return Err("it has fewer headers than it says");
    }
    let headers = body;
    for _ in 0..header_count {
        take_header(&mut body)?;
    }
    if !body.is_empty() {
        return Err("it has bytes behind its headers");
    }
    let deltas = Deltas { timestamp, offset };
    Ok(Taken { deltas, key, value, headers, header_count })
}

impl Taken<'_> {
    /// The headers as slices of `whole`, of which this record is a part.
    pub(super) fn headers(&self, whole: &Bytes) -> Vec<RecordHeader> {
        let mut rest = self.headers;
        let mut headers = Vec::with_capacity(self.header_count);
        // Ends: `take` has checked that there are this many.
        while headers.len() < self.header_count {
            let Ok((key, value)) = take_header(&mut rest) else { break };
            let value = value.map(|value| whole.slice_ref(value));
            headers.push(RecordHeader { key: whole.slice_ref(key), value });
        }
        headers
    }
}

fn take_header<'a>(body: &mut &'a [u8]) -> Result<(&'a [u8], Option<&'a [u8]>), &'static str> {
    let key = take_block(body)?.ok_or("a header has no key")?;
    std::str::from_utf8(key).map_err(|_| "the key of a header is not UTF-8")?;
    Ok((key, take_block(body)?))
}

fn take_block<'a>(body: &mut &'a [u8]) -> Result<Option<&'a [u8]>, &'static str> {
    let length = varint::take(body).ok_or("the length of a field is cut off")?;
    if length == -1 {
        return Ok(None);
    }
    let length = usize::try_from(length).map_err(|_| "the length of a field is negative")?;
    let (block, rest) = body.split_at_checked(length).ok_or("a field is cut off")?;
    *body = rest;
    Ok(Some(block))
}
