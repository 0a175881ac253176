//! The second level in Redis.

use std::time::Duration;

use async_trait::async_trait;
use redis::{Client, RedisError, Script};

use super::Link;
use crate::core::peers::Invalidation;
use crate::remote::level::{Fetched, LevelError, Put, SecondLevel};

/// How long the floor of a tag stays that no value has: longer than any lease, under which a value
/// with the tag may be on its way.
const FLOOR_MS: u64 = 2 * 3600 * 1000;

/// Values in Redis, on one server or a replicated one; not on a cluster, whose scripts may not
/// touch keys of several slots.
///
/// # Keys
/// After the prefix: `v:` and the key (the value), `l:` and the key (the lease), `t:` and the tag
/// (its floor), `s` (the last version), `g` (the floor of everything). Versions come from the
/// server's clock in microseconds, and never go back while `s` is kept.
///
/// # What the server must keep
/// A floor that the server evicts makes the values with its tag invalid, which costs loads. `s` and
/// `g` have no expiry: with an `allkeys` policy that evicts `g`, what was there before the last
/// invalidation of everything and has not expired yet is valid again; use a `volatile` policy.
#[derive(Debug)]
pub struct RedisLevel {
    link: Link,
    prefix: Vec<u8>,
    lease: Script,
    store: Script,
    release: Script,
    invalidate: Script,
}

impl RedisLevel {
    /// A second level whose keys begin with this prefix. No other purpose, and no other form of
    /// values, shares it.
    ///
    /// # Errors
    /// The client's configuration cannot be used. Nothing is connected yet.
    pub fn new(client: Client, prefix: impl Into<String>) -> Result<Self, RedisError> {
        Ok(Self {
            link: Link::new(client)?,
            prefix: prefix.into().into_bytes(),
            lease: Script::new(include_str!("lease.lua")),
            store: Script::new(include_str!("store.lua")),
            release: Script::new(include_str!("release.lua")),
            invalidate: Script::new(include_str!("invalidate.lua")),
        })
    }

    fn key(&self, kind: &str, name: &[u8]) -> Vec<u8> {
        [&*self.prefix, kind.as_bytes(), name].concat()
    }
}

fn failed(error: &RedisError) -> LevelError {
    LevelError(error.to_string())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[async_trait]
impl SecondLevel for RedisLevel {
    async fn fetch(&self, key: &[u8]) -> Result<Option<Fetched>, LevelError> {
        let value = self.key("v:", key);
        // The floor is read after the value: one that was raised between them counts.
        let mut pipe = redis::pipe();
        pipe.cmd("GET").arg(&value).cmd("PTTL").arg(&value).cmd("GET").arg(self.key("g", b""));
        let answer = self.link.call(async |manager| pipe.query_async(manager).await).await;
        let (bytes, remaining, floor): (Option<Vec<u8>>, i64, Option<u64>) =
            answer.map_err(|error| failed(&error))?;
        // Not above zero: it has just expired, or is not of this crate's making.
        let remaining = u64::try_from(remaining).ok().filter(|remaining| *remaining > 0);
        Ok(bytes.zip(remaining).map(|(bytes, remaining)| {
            Fetched::new(bytes, Duration::from_millis(remaining), floor.unwrap_or(0))
        }))
    }

    async fn floors(&self, tags: &[&str]) -> Result<Vec<Option<u64>>, LevelError> {
        let mut command = redis::cmd("MGET");
        for tag in tags {
            command.arg(self.key("t:", tag.as_bytes()));
        }
        let answer = self.link.call(async |manager| command.query_async(manager).await).await;
        answer.map_err(|error| failed(&error))
    }

    async fn lease(
        &self,
        key: &[u8],
        lease: u64,
        lease_for: Duration,
    ) -> Result<Option<u64>, LevelError> {
        let mut call = self.lease.key(self.key("l:", key));
        call.key(self.key("s", b"")).arg(lease.to_string()).arg(millis(lease_for));
        let answer = self.link.call(async |manager| call.invoke_async(manager).await).await;
        answer.map_err(|error| failed(&error))
    }

    async fn store(&self, put: Put<'_>) -> Result<bool, LevelError> {
        let mut call = self.store.key(self.key("v:", put.key));
        call.key(self.key("l:", put.key));
        for tag in put.tags {
            call.key(self.key("t:", tag.as_bytes()));
        }
        let ttl = millis(put.ttl);
        call.arg(put.lease.to_string()).arg(put.bytes).arg(ttl);
        call.arg(ttl.saturating_add(FLOOR_MS));
        let answer = self.link.call(async |manager| call.invoke_async(manager).await).await;
        answer.map_err(|error| failed(&error))
    }

    async fn release(&self, key: &[u8], lease: u64) -> Result<(), LevelError> {
        let mut call = self.release.key(self.key("l:", key));
        call.arg(lease.to_string());
        let answer = self.link.call(async |manager| call.invoke_async(manager).await).await;
        answer.map_err(|error| failed(&error))
    }

    async fn invalidate(&self, invalidations: &[Invalidation]) -> Result<(), LevelError> {
        let mut call = self.invalidate.key(self.key("s", b""));
        call.key(self.key("g", b""));
        let mut dropped = 0;
        for invalidation in invalidations {
            if let Invalidation::Key(key) = invalidation {
                call.key(self.key("v:", key)).key(self.key("l:", key));
                dropped += 2;
            }
        }
        for invalidation in invalidations {
            if let Invalidation::Tag(tag) = invalidation {
                call.key(self.key("t:", tag.as_bytes()));
            }
        }
        let all = invalidations.contains(&Invalidation::All);
        call.arg(dropped).arg(u8::from(all)).arg(FLOOR_MS);
        let answer = self.link.call(async |manager| call.invoke_async(manager).await).await;
        answer.map_err(|error| failed(&error))
    }
}
