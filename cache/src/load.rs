//! What keys and values are, and what a load is.

use std::future::Future;
use std::pin::Pin;

use crate::error::LoadError;
use crate::source::Loaded;

pub(crate) type LoadResult<V> = Result<Loaded<V>, LoadError>;
pub(crate) type LoadFuture<V> = Pin<Box<dyn Future<Output = LoadResult<V>> + Send>>;

/// What keys are.
pub trait Key: std::hash::Hash + Eq + Clone + Send + Sync + 'static {}
impl<K: std::hash::Hash + Eq + Clone + Send + Sync + 'static> Key for K {}

/// What values are. Wrap what is costly to clone in an `Arc`.
pub trait Value: Clone + Send + Sync + 'static {}
impl<V: Clone + Send + Sync + 'static> Value for V {}
