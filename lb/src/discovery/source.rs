//! Sources that need no file and no resolver.

use std::fmt;
use std::pin::Pin;

use async_trait::async_trait;
use futures_core::Stream;
use tokio::sync::Mutex;

use super::{DiscoveryError, Resolved, Source};
use crate::config::EndpointConfig;

/// A set that never changes.
#[derive(Clone, Debug)]
pub struct StaticSource {
    endpoints: Vec<EndpointConfig>,
}

impl StaticSource {
    /// The given endpoints.
    pub fn new(endpoints: impl IntoIterator<Item = EndpointConfig>) -> Self {
        Self { endpoints: endpoints.into_iter().collect() }
    }
}

#[async_trait]
impl Source for StaticSource {
    async fn resolve(&self) -> Result<Resolved, DiscoveryError> {
        Ok(Resolved::new(self.endpoints.iter().cloned()))
    }
}

type Sets = Pin<Box<dyn Stream<Item = Result<Resolved, DiscoveryError>> + Send>>;

/// Sets from a stream, such as a watch of a registry. Each is the whole set.
///
/// A stream that ends, fails or falls silent while all endpoints fail is opened again.
pub struct StreamSource {
    open: Box<dyn Fn() -> Sets + Send + Sync>,
    /// Locked by the discovery's task only, one call at a time.
    current: Mutex<Option<Sets>>,
}

impl StreamSource {
    /// `open` begins a stream, whose first item is the present set.
    pub fn new<S>(open: impl Fn() -> S + Send + Sync + 'static) -> Self
    where
        S: Stream<Item = Result<Resolved, DiscoveryError>> + Send + 'static,
    {
        Self { open: Box::new(move || Box::pin(open())), current: Mutex::new(None) }
    }
}

impl fmt::Debug for StreamSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamSource")
    }
}

/// The next item. Cancel safe: an item is taken off the stream by the poll that returns it.
async fn next(sets: &mut Sets) -> Result<Resolved, DiscoveryError> {
    let item = std::future::poll_fn(|context| sets.as_mut().poll_next(context)).await;
    item.unwrap_or(Err(DiscoveryError::Ended))
}

#[async_trait]
impl Source for StreamSource {
    async fn resolve(&self) -> Result<Resolved, DiscoveryError> {
        let mut current = self.current.lock().await;
        // The old stream ends before the new one begins.
        *current = None;
        let mut sets = (self.open)();
        let first = next(&mut sets).await?;
        *current = Some(sets);
        Ok(first)
    }

    async fn changed(&self) -> Result<Resolved, DiscoveryError> {
        let mut current = self.current.lock().await;
        // Without a stream the last `resolve` failed; the discovery calls it again.
        let Some(sets) = current.as_mut() else { return std::future::pending().await };
        let item = next(sets).await;
        if item.is_err() {
            *current = None;
        }
        item
    }
}
