//! A load of equally long values, counted in bytes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use store::client::{Answered, Client, Lost};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Length of each value: as the issue of a full window behind a lagging follower needs.
pub const VALUE: usize = 8 * 1024;
/// Clients that write at the same time.
const CLIENTS: u64 = 16;
/// Keys of each client, overwritten in turn.
const KEYS: u64 = 256;

/// What was written, by key: the last number that was acknowledged, and the last that was sent.
#[derive(Debug, Default)]
pub struct Bulk {
    pub written: BTreeMap<String, (u64, u64)>,
    pub acknowledged: u64,
    pub unknown: u64,
}

/// Writes until `bytes` are acknowledged. Panics when nothing is acknowledged for `patience`.
pub async fn write(client: &Client, bytes: u64, patience: Duration) -> Bulk {
    let left = Arc::new(AtomicU64::new(bytes / VALUE as u64));
    let mut writers = JoinSet::new();
    for id in 0..CLIENTS {
        let (client, left) = (client.clone(), left.clone());
        writers.spawn(async move {
            let mut bulk = Bulk::default();
            let mut last = Instant::now();
            for number in 1.. {
                if left.load(Ordering::Relaxed) == 0 {
                    break;
                }
                let key = format!("bulk/{id}/{}", number % KEYS);
                let mut body = format!("{number}.").into_bytes();
                body.resize(VALUE, b'.');
                let entry = bulk.written.entry(key.clone()).or_default();
                entry.1 = number;
                let path = format!("/kv/{key}");
                match client.send(Method::PUT, &path, None, body.into()).await {
                    Ok(reply) if reply.status == StatusCode::NO_CONTENT => {
                        entry.0 = number;
                        bulk.acknowledged += 1;
                        last = Instant::now();
                        let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                            left.checked_sub(1)
                        });
                    }
                    Ok(reply) => panic!("{path}: {reply:?}"),
                    Err(Lost::Unknown) => bulk.unknown += 1,
                    Err(Lost::NotApplied) => {}
                }
                assert!(last.elapsed() < patience, "nothing acknowledged for {patience:?}");
            }
            bulk
        });
    }
    let mut all = Bulk::default();
    for bulk in writers.join_all().await {
        all.written.extend(bulk.written);
        all.acknowledged += bulk.acknowledged;
        all.unknown += bulk.unknown;
    }
    all
}

/// Reads every key at one node: each holds what was acknowledged last, or was sent after.
pub async fn check(client: &Client, node: SocketAddr, bulk: &Bulk) {
    for (key, (acknowledged, sent)) in &bulk.written {
        let deadline = Instant::now() + Duration::from_secs(10);
        let path = format!("/kv/{key}");
        let sent_to = client.send_to(node, &Method::GET, &path, None, Bytes::new(), deadline).await;
        let Ok(Answered::Reply(reply)) = sent_to else { panic!("{node}{path}: {sent_to:?}") };
        if *acknowledged == 0 {
            continue;
        }
        assert_eq!(reply.status, StatusCode::OK, "{node}{path} is lost");
        assert_eq!(reply.body.len(), VALUE, "{node}{path}");
        let number = reply.body.split(|byte| *byte == b'.').next().unwrap();
        let number: u64 = std::str::from_utf8(number).unwrap().parse().unwrap();
        let expected = *acknowledged..=*sent;
        assert!(expected.contains(&number), "{node}{path}: {number}, not in {expected:?}");
    }
}
