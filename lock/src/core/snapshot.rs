//! Snapshots of the table: a run of records, cut into chunks.
//!
//! Record: kind (1 byte) and fields in little-endian. 1 head: version, token, reign. 2 session.
//! 3 lock, followed by its holders (4) and its queue in order (5). 6 end: counts of all records.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::codec::{flag, number, put, put_bytes, put_mode, take_bytes, take_mode};
use super::command::Malformed;
use super::table::{Delay, Holder, Lock, Session, Table, Waiter};
use super::{
    MAX_LOCK_DELAY_MS, MAX_LOCKS, MAX_NAME_BYTES, MAX_REQUESTS, MAX_SESSIONS, MAX_TTL_MS,
    MAX_VALUE_BYTES, MAX_WAITERS, MIN_TTL_MS,
};

/// Version of the layout. Raise it when the layout changes.
const FORMAT: u64 = 1;
/// Chunks are closed when they have this many bytes. The longest record, a session with
/// [`MAX_REQUESTS`] ended requests, has 80 KiB.
const CHUNK_BYTES: usize = 256 << 10;

const MALFORMED: Malformed = Malformed { what: "snapshot" };

impl Table {
    /// The table's bytes, in chunks of at most 512 KiB. Time and memory grow with the table.
    pub fn snapshot(&self) -> Vec<Bytes> {
        let (mut chunks, mut out, mut records) = (Vec::new(), BytesMut::new(), 0_u64);
        let mut close = |out: &mut BytesMut, most: usize| {
            records += 1;
            if out.len() >= most {
                chunks.push(out.split().freeze());
            }
        };
        put(&mut out, 1, &[FORMAT, self.token, self.reign]);
        close(&mut out, CHUNK_BYTES);
        for (id, session) in &self.sessions {
            let Session { ttl_ms, remaining_ms, checkpoint, floor, ended, .. } = session;
            let numbers = [*id, *ttl_ms, *remaining_ms, checkpoint.0, checkpoint.1, *floor];
            put(&mut out, 2, &numbers);
            out.put_u64_le(ended.len() as u64);
            for request in ended {
                out.put_u64_le(*request);
            }
            close(&mut out, CHUNK_BYTES);
        }
        for (name, lock) in &self.locks {
            let delay = lock.delay.unwrap_or(Delay { since: 0, ms: 0 });
            put(&mut out, 3, &[lock.version, delay.since, delay.ms]);
            out.put_u8(u8::from(lock.delay.is_some()));
            put_bytes(&mut out, name);
            put_bytes(&mut out, &lock.value);
            close(&mut out, CHUNK_BYTES);
            for holder in &lock.holders {
                put(&mut out, 4, &[holder.token, holder.written]);
                put_waiter(&mut out, &holder.by);
                close(&mut out, CHUNK_BYTES);
            }
            for waiter in &lock.queue {
                put(&mut out, 5, &[]);
                put_waiter(&mut out, waiter);
                close(&mut out, CHUNK_BYTES);
            }
        }
        let mut end = BytesMut::new();
        put(&mut end, 6, &[records]);
        out.unsplit(end);
        chunks.push(out.freeze());
        chunks
    }
}

fn put_waiter(out: &mut BytesMut, waiter: &Waiter) {
    for number in [waiter.session, waiter.request, waiter.lock_delay_ms] {
        out.put_u64_le(number);
    }
    put_mode(out, waiter.mode);
}

fn take_waiter(rest: &mut &[u8]) -> Option<Waiter> {
    let (session, request, lock_delay_ms) = (number(rest)?, number(rest)?, number(rest)?);
    Some(Waiter { session, request, lock_delay_ms, mode: take_mode(rest)? })
}

/// Makes a table of the chunks of a snapshot.
#[derive(Debug, Default)]
pub struct Restore {
    table: Table,
    /// The lock whose holders and queue follow.
    lock: Option<(Bytes, Lock)>,
    records: u64,
    is_begun: bool,
    is_ended: bool,
}

impl Restore {
    /// Nothing was added yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next chunk.
    ///
    /// # Errors
    /// [`Malformed`]: give the snapshot up.
    pub fn add(&mut self, chunk: &[u8]) -> Result<(), Malformed> {
        let mut rest = chunk;
        // Ends: each record takes at least one byte.
        while !rest.is_empty() {
            self.record(&mut rest).ok_or(MALFORMED)?;
        }
        Ok(())
    }

    /// The table.
    ///
    /// # Errors
    /// [`Malformed`] if the end of the snapshot was not among the chunks.
    pub fn finish(self) -> Result<Table, Malformed> {
        if self.is_ended { Ok(self.table) } else { Err(MALFORMED) }
    }

    fn record(&mut self, rest: &mut &[u8]) -> Option<()> {
        let kind = rest.try_get_u8().ok()?;
        if self.is_ended || self.is_begun == (kind == 1) {
            return None;
        }
        match kind {
            1 => {
                if number(rest)? != FORMAT {
                    return None;
                }
                (self.table.token, self.table.reign) = (number(rest)?, number(rest)?);
                // The top is reserved: the next tokens are above it and do not wrap around.
                if self.table.token > u64::MAX >> 1 {
                    return None;
                }
                self.is_begun = true;
            }
            2 => self.session(rest)?,
            3 => {
                self.close_lock()?;
                let version = number(rest)?;
                let delay = Delay { since: number(rest)?, ms: number(rest)? };
                let delay = flag(rest)?.then_some(delay);
                if delay.is_some_and(|delay| delay.ms > MAX_LOCK_DELAY_MS) {
                    return None;
                }
                let name = take_bytes(rest, MAX_NAME_BYTES)?;
                let value = take_bytes(rest, MAX_VALUE_BYTES)?;
                self.lock = Some((name, Lock { delay, value, version, ..Lock::default() }));
            }
            4 => {
                let (token, written) = (number(rest)?, number(rest)?);
                let by = self.waiter(rest)?;
                let lock = &mut self.lock.as_mut()?.1;
                if token > self.table.token || !lock.has_room(by.mode) {
                    return None;
                }
                lock.holders.push(Holder { by, token, written });
            }
            5 => {
                let waiter = self.waiter(rest)?;
                let queue = &mut self.lock.as_mut()?.1.queue;
                queue.push_back(waiter);
                if queue.len() > MAX_WAITERS {
                    return None;
                }
            }
            6 => {
                self.close_lock()?;
                if number(rest)? != self.records {
                    return None;
                }
                self.is_ended = true;
            }
            _ => return None,
        }
        self.records += 1;
        Some(())
    }

    fn session(&mut self, rest: &mut &[u8]) -> Option<()> {
        let (id, ttl_ms, remaining_ms) = (number(rest)?, number(rest)?, number(rest)?);
        let (checkpoint, floor) = ((number(rest)?, number(rest)?), number(rest)?);
        let count = usize::try_from(number(rest)?).ok().filter(|count| *count <= MAX_REQUESTS)?;
        let mut ended = std::collections::BTreeSet::new();
        for _ in 0..count {
            ended.insert(number(rest)?);
        }
        let is_valid = (MIN_TTL_MS..=MAX_TTL_MS).contains(&ttl_ms)
            && (1..=ttl_ms).contains(&remaining_ms)
            && ended.first().is_none_or(|first| *first >= floor)
            && ended.len() == count
            && self.table.sessions.len() < MAX_SESSIONS;
        let requests = std::collections::BTreeMap::new();
        let session = Session { ttl_ms, remaining_ms, checkpoint, floor, ended, requests };
        let is_new = is_valid && self.table.sessions.insert(id, session).is_none();
        is_new.then_some(())
    }

    /// One who holds or waits for the current lock.
    fn waiter(&mut self, rest: &mut &[u8]) -> Option<Waiter> {
        let waiter = take_waiter(rest)?;
        let (name, _) = self.lock.as_ref()?;
        let session = self.table.sessions.get_mut(&waiter.session)?;
        let is_new = session.requests.insert(waiter.request, name.clone()).is_none();
        (is_new && session.requests.len() <= MAX_REQUESTS).then_some(waiter)
    }

    fn close_lock(&mut self) -> Option<()> {
        let Some((name, lock)) = self.lock.take() else { return Some(()) };
        let is_valid = !lock.is_unused()
            && lock.queue.front().is_none_or(|first| !lock.admits(first.mode))
            && self.table.locks.len() < MAX_LOCKS;
        let is_new = is_valid && self.table.locks.insert(name, lock).is_none();
        is_new.then_some(())
    }
}
