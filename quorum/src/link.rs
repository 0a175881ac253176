//! The seam to the other nodes.

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::table::CallError;

/// Which connection a call takes, where a link has several: what is long does not hold up what is
/// short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Requests and answers of at most [`Class::MAX_SMALL_BYTES`].
    Small,
    /// Longer ones, and everything that repairs and rebuilds. At most [`Class::MAX_BULK_BYTES`].
    Bulk,
}

impl Class {
    /// Length of the longest request and answer of [`Class::Small`], in bytes.
    pub const MAX_SMALL_BYTES: usize = 256 << 10;
    /// Length of the longest request and answer of [`Class::Bulk`], in bytes.
    pub const MAX_BULK_BYTES: usize = 15 << 20;

    /// Length of the longest request and answer, in bytes.
    pub const fn max_bytes(self) -> usize {
        match self {
            Self::Small => Self::MAX_SMALL_BYTES,
            Self::Bulk => Self::MAX_BULK_BYTES,
        }
    }
}

/// Carries requests to nodes, and their answers back. Who receives a request hands it to
/// [`Node::answer`](crate::Node::answer) and returns what that returns.
///
/// Requests may be lost, delayed and reordered, and may arrive long after their call has failed.
/// Two things are asked of a link: [`CallError::NotSent`] is honest, and a request is delivered at
/// most once, for a repeated write of a table is a second write.
#[async_trait]
pub trait Link: Send + Sync + 'static {
    /// Calls a node, this one included, and waits for its answer until the deadline.
    ///
    /// # Errors
    /// [`CallError::NotSent`] only if the request certainly did not and will not reach the node,
    /// [`CallError::Busy`] only if the node has turned it away; otherwise [`CallError::Unknown`].
    ///
    /// # Cancel safety
    /// The future is dropped when nobody waits for the answer any more: an implementation must
    /// bear it at every `.await`. The request may arrive all the same.
    async fn call(
        &self,
        to: u64,
        class: Class,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError>;
}
