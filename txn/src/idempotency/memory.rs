//! Keys of one process, in a store of sagas.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;

use super::store::{Found, KeyStore, NewKey, Settlement};
use crate::clock::{Clock, System};
use crate::config::nanos;
use crate::error::StoreError;
use crate::store::batcher::Batcher;
use crate::store::{Record, RecordKind, SagaStore};

const FORMAT: u8 = 1;
/// Keys that are no longer remembered and go with each claim.
const EXPIRED_AT_ONCE: usize = 4;

/// Keys in a store of sagas, which must have no other user: a
/// [`JournalStore`](crate::store::JournalStore) over a namespace of its own, or a
/// [`MemoryStore`](crate::store::MemoryStore).
///
/// The id of a record is the key. Its events are: version (1 byte, 1), owner (16 bytes), end of the
/// lease and end of the memory (8 bytes each, ns since the UNIX epoch), length of the fingerprint
/// (4 bytes), the fingerprint, 1 if there is a result and else 0 (1 byte), the result. Numbers are
/// little-endian.
pub struct StoreKeys<S> {
    records: Batcher<S>,
    clock: Arc<dyn Clock>,
    max_keys: usize,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    keys: HashMap<Arc<str>, Entry>,
    /// Invariant: one for each of `keys`, with its `forgotten_at`.
    by_end: BTreeSet<(u64, Arc<str>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    fingerprint: Bytes,
    owner: u128,
    lease_until: u64,
    forgotten_at: u64,
    result: Option<Bytes>,
}

impl Known {
    fn insert(&mut self, key: &Arc<str>, entry: Entry) {
        self.remove(key);
        self.by_end.insert((entry.forgotten_at, Arc::clone(key)));
        self.keys.insert(Arc::clone(key), entry);
    }

    fn remove(&mut self, key: &Arc<str>) {
        if let Some(entry) = self.keys.remove(key) {
            self.by_end.remove(&(entry.forgotten_at, Arc::clone(key)));
        }
    }

    /// Puts back what a claim that is not in the store has replaced.
    fn take_back(&mut self, key: &Arc<str>, claimed: &Entry, former: Option<Entry>) {
        if self.keys.get(key) != Some(claimed) {
            return;
        }
        match former {
            Some(former) => self.insert(key, former),
            None => self.remove(key),
        }
    }

    /// Some keys that are no longer remembered.
    fn expired(&self, now: u64) -> Vec<Arc<str>> {
        let expired = self.by_end.iter().take_while(|(end, _)| *end <= now);
        expired.take(EXPIRED_AT_ONCE).map(|(_, key)| Arc::clone(key)).collect()
    }

    /// Removes keys, and returns the records that say so: they have to be appended.
    fn forget(&mut self, keys: Vec<Arc<str>>) -> Vec<Record> {
        let forget = |key| {
            self.remove(&key);
            Record::new(key, RecordKind::Forgotten, Bytes::new())
        };
        keys.into_iter().map(forget).collect()
    }
}

impl<S: SagaStore> StoreKeys<S> {
    /// Reads the keys of earlier processes. At most `max_keys` are remembered at once; past it a
    /// claim of a new key fails.
    ///
    /// # Errors
    /// [`StoreError`].
    ///
    /// # Cancel safety
    /// Not cancel safe: an epoch of the store may be used up.
    pub async fn open(store: S, max_keys: usize) -> Result<Self, StoreError> {
        Self::open_with_clock(store, max_keys, System::new()).await
    }

    /// As [`open`](Self::open), with a clock in ns since the UNIX epoch.
    ///
    /// # Errors
    /// [`StoreError`].
    ///
    /// # Cancel safety
    /// Not cancel safe: an epoch of the store may be used up.
    pub async fn open_with_clock(
        store: S,
        max_keys: usize,
        clock: impl Clock + 'static,
    ) -> Result<Self, StoreError> {
        let records = Batcher::new(store);
        let (_, last) = records.open().await?;
        let mut known = Known::default();
        for (key, events) in last {
            let entry = decode(events);
            let entry = entry.ok_or_else(|| StoreError::new(format!("key {key} is garbled")))?;
            known.insert(&key, entry);
        }
        Ok(Self { records, clock: Arc::new(clock), max_keys, known: Arc::new(Mutex::new(known)) })
    }
}

#[async_trait]
impl<S: SagaStore> KeyStore for StoreKeys<S> {
    async fn claim(&self, new: &NewKey) -> Result<Found, StoreError> {
        let now = self.clock.now();
        let key: Arc<str> = new.key.as_str().into();
        let (found, former, entry, appended) = {
            let mut known = self.known.lock();
            let expired = known.expired(now);
            let found = match known.keys.get(&key) {
                Some(entry) if entry.forgotten_at > now => {
                    if entry.fingerprint != new.fingerprint {
                        return Ok(Found::Mismatch);
                    }
                    if let Some(result) = &entry.result {
                        return Ok(Found::Done(result.clone()));
                    }
                    if entry.lease_until > now {
                        let left = Duration::from_nanos(entry.lease_until - now);
                        return Ok(Found::InProgress(left));
                    }
                    if !new.takes_abandoned {
                        return Ok(Found::Abandoned);
                    }
                    Found::Abandoned
                }
                Some(_) => Found::Vacant,
                None if known.keys.len() - expired.len() >= self.max_keys => {
                    let why = format!("{} keys are remembered", self.max_keys);
                    return Err(StoreError::new(why));
                }
                None => Found::Vacant,
            };
            let entry = Entry {
                fingerprint: new.fingerprint.clone(),
                owner: new.owner,
                lease_until: now.saturating_add(nanos(new.lease)),
                forgotten_at: now.saturating_add(nanos(new.keep)),
                result: None,
            };
            // Only here, where records are appended: each answer above leaves all keys in place.
            let mut records = known.forget(expired);
            records.push(Record::new(Arc::clone(&key), RecordKind::Whole, encode(&entry)));
            let former = known.keys.get(&key).cloned();
            known.insert(&key, entry.clone());
            // Under the lock: records of a key are in the order of its claims.
            (found, former, entry, self.records.append(records))
        };
        let known = Arc::clone(&self.known);
        end_of(async move {
            let result = appended.await;
            // Of any other failure nobody knows whether the claim is in the store.
            if result.as_ref().is_err_and(StoreError::is_retryable) {
                known.lock().take_back(&key, &entry, former);
            }
            result.map(|()| found)
        })
        .await
    }

    async fn settle(
        &self,
        key: &str,
        owner: u128,
        end: Settlement,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let key: Arc<str> = key.into();
        let (settled, appended) = {
            let known = self.known.lock();
            let Some(entry) = known.keys.get(&key) else { return Ok(false) };
            if entry.owner != owner || entry.result.is_some() {
                return Ok(false);
            }
            let forgotten_at = now.saturating_add(nanos(keep));
            let settled = match end {
                Settlement::Done(result) => {
                    Some(Entry { result: Some(result), forgotten_at, ..entry.clone() })
                }
                Settlement::Free => None,
                Settlement::Abandoned => {
                    Some(Entry { lease_until: 0, forgotten_at, ..entry.clone() })
                }
            };
            let record = match &settled {
                Some(entry) => Record::new(Arc::clone(&key), RecordKind::Whole, encode(entry)),
                None => Record::new(Arc::clone(&key), RecordKind::Forgotten, Bytes::new()),
            };
            (settled, self.records.append(vec![record]))
        };
        let known = Arc::clone(&self.known);
        end_of(async move {
            appended.await?;
            // Shown only when it is durable. Another may have taken the key meanwhile, behind this
            // record.
            let mut known = known.lock();
            if known.keys.get(&key).is_none_or(|entry| entry.owner != owner) {
                return Ok(false);
            }
            match settled {
                Some(entry) => known.insert(&key, entry),
                None => known.remove(&key),
            }
            Ok(true)
        })
        .await
    }
}

impl<S: SagaStore> fmt::Debug for StoreKeys<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.known.lock().keys.len();
        f.debug_struct("StoreKeys").field("keys", &keys).finish_non_exhaustive()
    }
}

/// Ends the call beside its caller: what is known of a key follows what is in the store, also if
/// the caller is dropped.
async fn end_of<T: Send + 'static>(
    call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    let ended = tokio::spawn(call).await;
    ended.unwrap_or_else(|_| Err(StoreError::new("the runtime stops")))
}

fn encode(entry: &Entry) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(FORMAT);
    out.put_u128_le(entry.owner);
    out.put_u64_le(entry.lease_until);
    out.put_u64_le(entry.forgotten_at);
    out.put_u32_le(entry.fingerprint.len() as u32);
    out.put_slice(&entry.fingerprint);
    out.put_u8(u8::from(entry.result.is_some()));
    out.put_slice(entry.result.as_deref().unwrap_or_default());
    out.freeze()
}

fn decode(mut events: Bytes) -> Option<Entry> {
    if events.try_get_u8().ok()? != FORMAT {
        return None;
    }
    let owner = events.try_get_u128_le().ok()?;
    let lease_until = events.try_get_u64_le().ok()?;
    let forgotten_at = events.try_get_u64_le().ok()?;
    let length = events.try_get_u32_le().ok()? as usize;
    if length > events.len() {
        return None;
    }
    let fingerprint = events.split_to(length);
    let result = match events.try_get_u8().ok()? {
        0 if events.is_empty() => None,
        1 => Some(events),
        _ => return None,
    };
    Some(Entry { fingerprint, owner, lease_until, forgotten_at, result })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_a_garbled_one_is_none() {
        let entry = Entry {
            fingerprint: Bytes::from("ab"),
            owner: 3,
            lease_until: 4,
            forgotten_at: 5,
            result: Some(Bytes::from("c")),
        };
        let golden = [
            &[1, 3][..],
            &[0; 15],
            &[4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0],
            b"ab\x01c",
        ]
        .concat();
        assert_eq!(encode(&entry), golden);
        assert_eq!(decode(Bytes::from(golden.clone())), Some(entry.clone()));
        for end in 0..golden.len() - 1 {
            assert_eq!(decode(Bytes::copy_from_slice(&golden[..end])), None, "{end}");
        }
        let open = Entry { result: None, ..entry };
        assert_eq!(decode(encode(&open)), Some(open.clone()));
        let (mut long, mut other) = (encode(&open).to_vec(), golden);
        long.push(0);
        other[0] = 2;
        assert_eq!((decode(long.into()), decode(other.into())), (None, None));
    }
}
