//! Entry points for fuzzers: messages of peers and records of a log, as bytes. The targets under
//! `fuzz/` and `tests/corpus.rs` call them.

use bytes::Bytes;

use crate::codec;
use crate::config::Config;
use crate::core::{Core, Input, Output, Restored};

/// Decodes `bytes` as a message, or as a bundle of several.
///
/// # Panics
/// When a decoded message does not survive being encoded again.
pub fn message(bytes: &[u8]) {
    if codec::is_bundle(bytes) {
        let bundle = codec::decode_bundle(Bytes::copy_from_slice(bytes));
        let messages: Vec<_> = bundle.into_iter().flatten().flatten().collect();
        let again = codec::decode_bundle(codec::encode_bundle(&messages).into_bytes());
        let again: Result<Vec<_>, _> = again.and_then(Iterator::collect);
        assert_eq!(again, Ok(messages), "a bundle changed");
    }
    if let Ok((group, message)) = codec::decode(Bytes::copy_from_slice(bytes)) {
        let again = codec::encode(group, &message).into_bytes();
        assert_eq!(codec::decode(again), Ok((group, message)), "a message changed");
    }
}

/// Decodes `bytes` as each kind of record.
///
/// # Panics
/// When a decoded record does not survive being encoded again.
pub fn record(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(entry) = codec::decode_entry(bytes.clone()) {
        let again = codec::decode_entry(codec::encode_entry(&entry));
        assert_eq!(again, Ok(entry), "an entry changed");
    }
    if let Ok(state) = codec::decode_hard_state(bytes.clone()) {
        let again = codec::decode_hard_state(codec::encode_hard_state(state));
        assert_eq!(again, Ok(state), "a hard state changed");
    }
    if let Ok(meta) = codec::decode_snapshot(bytes) {
        let again = codec::decode_snapshot(codec::encode_snapshot(&meta));
        assert_eq!(again, Ok(meta), "the name of a snapshot changed");
    }
}

/// Decodes `bytes` as a part of a snapshot's transfer, and as an answer to one.
///
/// # Panics
/// When a decoded part or answer does not survive being encoded again.
pub fn snapshot_part(bytes: &[u8]) {
    use crate::codec::{decode_answer, decode_part, encode_answer, encode_part};
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok((group, part)) = decode_part(bytes.clone()) {
        let again = decode_part(encode_part(group, part.clone()).into_bytes());
        assert_eq!(again, Ok((group, part)), "a part of a snapshot changed");
    }
    if let Ok(answer) = decode_answer(bytes) {
        let again = decode_answer(encode_answer(answer));
        assert_eq!(again, Ok(answer), "an answer changed");
    }
}

/// Hands a follower of three whatever its peers may send, one message after the other, with its
/// own writes completed in between and its timer rung now and then. Each message is a length of
/// two bytes, little-endian, and as many bytes of an encoded message; the lowest bit of its first
/// byte chooses the sender, the next one whether the timer rings before it.
///
/// # Panics
/// When the core panics: nothing that a peer sends may do that.
pub fn peer(mut bytes: &[u8]) {
    let mut config = Config::new(1, [1, 2, 3]);
    config.seed = Some(0);
    let Ok(mut core) = Core::new(config, Restored::empty(), 0) else { return };
    let mut now = 0;
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (one, rest) = rest.split_at(length);
        bytes = rest;
        now += 10_000_000;
        let choice = one.first().copied().unwrap_or(0);
        if choice & 2 != 0
            && let Some(deadline) = core.next_deadline()
        {
            now = now.max(deadline);
            core.step(now, Input::Tick);
            settle(&mut core, now);
        }
        let from = 2 + u64::from(choice & 1);
        // Version and group are put right, so that more than the first check is reached.
        let mut one = one.to_vec();
        if let Some(head) = one.get_mut(..16) {
            head[0] = codec::VERSION;
            head[8..16].fill(0);
        }
        if let Ok((_, message)) = codec::decode(one.into()) {
            core.step(now, Input::Message { from, message });
        }
        settle(&mut core, now);
    }
}

/// Completes what the core asks for: writes are durable and entries applied at once.
fn settle(core: &mut Core, now: u64) {
    // Ends: a write or an apply is completed once, and without new input none follows for long.
    loop {
        let mut completed = Vec::new();
        while let Some(output) = core.poll_output() {
            let lent = match &output {
                Output::Persist(persist) => {
                    completed.push(Input::Persisted { id: persist.id });
                    persist.range.clone()
                }
                Output::Replicate { range, .. } => range.clone(),
                Output::Apply { range } => {
                    let index = range.end.saturating_sub(1);
                    completed.push(Input::Applied { index });
                    continue;
                }
                _ => continue,
            };
            assert!(core.entries(lent.clone()).is_ok(), "the core does not lend {lent:?}");
        }
        if completed.is_empty() {
            return;
        }
        for input in completed {
            core.step(now, input);
        }
    }
}
