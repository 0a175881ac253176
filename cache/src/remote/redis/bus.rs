//! Invalidations over publish and subscribe.

use async_trait::async_trait;
use futures_util::StreamExt;
use redis::aio::PubSubStream;
use redis::{Client, RedisError};

use super::Link;
use crate::remote::bus::{Bus, BusError, Subscription};

/// A bus over a channel of Redis, on one server or a replicated one. A connection that is lost ends
/// the subscription, and the cache drops what it holds; one that is silent is noticed by the
/// cache's heartbeats.
///
/// Not client-side caching (`CLIENT TRACKING`): that tells of keys which a client has read from
/// Redis, and a cache also holds what it has read from its source while Redis had nothing; it knows
/// no tags; and it ties invalidations to the connection that carries the data.
#[derive(Debug)]
pub struct RedisBus {
    client: Client,
    link: Link,
    channel: String,
}

impl RedisBus {
    /// A bus over this channel. All caches of one purpose use the same one, and no others do.
    ///
    /// # Errors
    /// The client's configuration cannot be used. Nothing is connected yet.
    pub fn new(client: Client, channel: impl Into<String>) -> Result<Self, RedisError> {
        Ok(Self { link: Link::new(client.clone())?, client, channel: channel.into() })
    }
}

fn failed(error: &RedisError) -> BusError {
    BusError(error.to_string())
}

#[async_trait]
impl Bus for RedisBus {
    async fn publish(&self, messages: &[Vec<u8>]) -> Result<(), BusError> {
        let mut pipe = redis::pipe();
        for message in messages {
            pipe.cmd("PUBLISH").arg(&self.channel).arg(message.as_slice()).ignore();
        }
        let sent = self.link.call(async |manager| pipe.exec_async(manager).await).await;
        sent.map_err(|error| failed(&error))
    }

    async fn subscribe(&self) -> Result<Box<dyn Subscription>, BusError> {
        let mut listening = self.client.get_async_pubsub().await.map_err(|error| failed(&error))?;
        listening.subscribe(&self.channel).await.map_err(|error| failed(&error))?;
        Ok(Box::new(RedisSubscription(listening.into_on_message())))
    }
}

struct RedisSubscription(PubSubStream);

#[async_trait]
impl Subscription for RedisSubscription {
    async fn next(&mut self) -> Option<Vec<u8>> {
        Some(self.0.next().await?.get_payload_bytes().to_vec())
    }
}
