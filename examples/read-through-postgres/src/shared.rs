//! What the processes of one catalogue share, in Redis: products as the cache's second level, and
//! its bus of invalidations.

use std::sync::Arc;

use redis::{Client, RedisError};
use voussoir_cache::{Builder, BusConfig, Codec, CodecError, LevelConfig, RedisBus, RedisLevel};

use crate::table::Product;

/// The form in which products are in Redis. A release that changes it takes the next number: two
/// forms never share a key.
const FORM: u32 = 1;

/// A Redis that the processes of one table share. It may evict, restart empty or be away: the
/// catalogue then asks the database.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    client: Client,
    name: String,
}

impl Shared {
    /// Connects when the first call is made.
    ///
    /// # Errors
    /// `url` is no address of a Redis.
    pub(crate) fn new(url: &str, table: &str) -> Result<Self, RedisError> {
        Ok(Self { client: Client::open(url)?, name: format!("{table}:{FORM}") })
    }

    /// Adds second level and bus to a cache. A product lives in Redis for as long as `level` says.
    ///
    /// # Errors
    /// The client's configuration cannot be used.
    pub(crate) fn add_to(
        &self,
        builder: Builder<i64, Arc<Product>>,
        level: LevelConfig,
    ) -> Result<Builder<i64, Arc<Product>>, RedisError> {
        let bus = RedisBus::new(self.client.clone(), format!("{}:changed", self.name))?;
        let products = RedisLevel::new(self.client.clone(), format!("{}:", self.name))?;
        Ok(builder.codec(Json).bus(bus, BusConfig::default()).second_level(products, level))
    }
}

/// Ids as text, products as JSON.
#[derive(Debug)]
struct Json;

impl Codec<i64, Arc<Product>> for Json {
    fn encode_key(&self, id: &i64, out: &mut Vec<u8>) {
        out.extend_from_slice(id.to_string().as_bytes());
    }

    fn encode_value(&self, product: &Arc<Product>, out: &mut Vec<u8>) {
        // Writing to memory does not fail, and a product has no key that is not text.
        let _ = serde_json::to_writer(out, &**product);
    }

    fn decode_key(&self, bytes: &[u8]) -> Result<i64, CodecError> {
        let id = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
        id.ok_or_else(|| CodecError::key("expected a number"))
    }

    fn decode_value(&self, bytes: &[u8]) -> Result<Arc<Product>, CodecError> {
        let product = serde_json::from_slice(bytes);
        product.map(Arc::new).map_err(|error| CodecError::value(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_to_redis_is_read_back_and_nothing_else_is() {
        let product = Arc::new(Product {
            id: -7,
            name: "lamp \"x\"".to_owned(),
            category: String::new(),
            cents: i64::MAX,
            version: 3,
        });
        let (mut key, mut value) = (Vec::new(), Vec::new());
        Json.encode_key(&product.id, &mut key);
        Json.encode_value(&product, &mut value);
        assert_eq!(Json.decode_key(&key), Ok(-7));
        assert_eq!(Json.decode_value(&value), Ok(product));
        assert!(Json.decode_key(b"7x").is_err() && Json.decode_key(b"\xff").is_err());
        for end in 0..value.len() {
            assert!(Json.decode_value(&value[..end]).is_err());
        }
    }
}
