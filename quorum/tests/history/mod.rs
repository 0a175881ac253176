//! Registers as a history: calls of [`KvOp`], and how they ended.

use std::collections::BTreeMap;

use bytes::Bytes;
use voussoir_quorum::paxos::Outcome;
use voussoir_quorum::*;
use voussoir_sim::{CallId, History, KvOp, KvRet};

/// The version and the value of each key that a client last saw.
pub(crate) type Known = BTreeMap<u8, (u64, Option<u64>)>;

fn number(value: Option<Bytes>) -> Option<u64> {
    value.map(|value| u64::from_le_bytes(value[..].try_into().unwrap()))
}

/// Makes a call of a history at a register. `expected` is the version that a change is made from.
pub(crate) async fn ask(
    client: &Registers,
    op: &KvOp<u8, u64>,
    expected: u64,
) -> Result<Outcome, RegisterError> {
    match op {
        KvOp::Put { key, value } => {
            let written = client.put(vec![*key], value.to_le_bytes().to_vec()).await;
            written.map(|version| Outcome::Applied { version })
        }
        KvOp::Cas { key, value, .. } => {
            let value = Some(value.to_le_bytes().to_vec().into());
            client.compare_and_set(vec![*key], expected, value).await
        }
        KvOp::Get { key } => {
            let read = client.get(vec![*key]).await;
            read.map(|(version, value)| Outcome::Read { version, value })
        }
        other => panic!("{other:?}"),
    }
}

/// Adds the end of a call to the history. None: it has had no effect.
pub(crate) fn record(
    history: &mut History<KvOp<u8, u64>, KvRet<u64>>,
    now: u64,
    call: CallId,
    op: &KvOp<u8, u64>,
    outcome: Option<Outcome>,
    known: &mut Known,
) {
    let (key, value) = match op {
        KvOp::Put { key, value } | KvOp::Cas { key, value, .. } => (*key, Some(*value)),
        KvOp::Get { key } => (*key, None),
        other => panic!("{other:?}"),
    };
    match outcome {
        None => history.fail(call, now),
        Some(Outcome::Read { version, value }) => {
            known.insert(key, (version, number(value.clone())));
            history.ok(call, KvRet::Value(number(value)), now)
        }
        Some(Outcome::Applied { version }) => {
            known.insert(key, (version, value));
            let is_cas = matches!(op, KvOp::Cas { .. });
            let ret = if is_cas { KvRet::Applied(true) } else { KvRet::Done };
            history.ok(call, ret, now)
        }
        Some(Outcome::NotApplied { version, value }) => {
            known.insert(key, (version, number(value)));
            history.ok(call, KvRet::Applied(false), now)
        }
        Some(other) => panic!("{other:?}"),
    };
}
