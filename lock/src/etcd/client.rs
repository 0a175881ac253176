//! Calls of etcd.

use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, timeout_at};
use tokio_stream::{Stream, StreamExt as _};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, IntoStreamingRequest as _, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::api::*;
use crate::core::Rejection;
use crate::service::ServiceError;

/// A watch does not wait for longer, should it have been lost on the way.
pub(super) const MAX_WATCH: Duration = Duration::from_secs(2);

const TXN: &str = "/etcdserverpb.KV/Txn";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const WATCH: &str = "/etcdserverpb.Watch/Watch";

pub(super) struct Etcd {
    channel: Channel,
}

impl Etcd {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel }
    }

    async fn ready(&self) -> Result<Grpc<Channel>, ServiceError> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(ServiceError::unavailable)?;
        Ok(grpc)
    }

    async fn unary<Q, A>(
        &self,
        path: &'static str,
        ask: Q,
        deadline: Instant,
    ) -> Result<A, ServiceError>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let call = async {
            let mut grpc = self.ready().await?;
            let codec = ProstCodec::<Q, A>::default();
            let answer = grpc.unary(Request::new(ask), PathAndQuery::from_static(path), codec);
            Ok(answer.await.map_err(|status| failed(&status))?.into_inner())
        };
        timeout_at(deadline, call).await.unwrap_or_else(|_| Err(silent()))
    }

    async fn stream<Q, A>(
        &self,
        path: &'static str,
        asks: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, ServiceError>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.ready().await?;
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(path);
        let answers = grpc.streaming(asks.into_streaming_request(), path, codec).await;
        Ok(answers.map_err(|status| failed(&status))?.into_inner())
    }

    pub(super) async fn txn(&self, txn: Txn, deadline: Instant) -> Result<TxnAnswer, ServiceError> {
        self.unary(TXN, txn, deadline).await
    }

    pub(super) async fn grant(
        &self,
        id: i64,
        ttl_s: i64,
        deadline: Instant,
    ) -> Result<(), ServiceError> {
        self.unary::<_, LeaseAnswer>(GRANT, LeaseGrant { ttl_s, id }, deadline).await.map(drop)
    }

    /// Ends a lease; one that has ended is ended too.
    pub(super) async fn revoke(&self, id: i64, deadline: Instant) -> Result<(), ServiceError> {
        match self.unary::<_, Nothing>(REVOKE, LeaseId { id }, deadline).await {
            Err(error) if error.is_end_of_session() => Ok(()),
            answer => answer.map(drop),
        }
    }

    pub(super) async fn keep_alive(&self, id: i64, deadline: Instant) -> Result<(), ServiceError> {
        let call = async {
            let asks = tokio_stream::once(LeaseId { id });
            let mut answers = self.stream::<_, LeaseAnswer>(KEEP_ALIVE, asks).await?;
            match answers.message().await.map_err(|status| failed(&status))? {
                Some(answer) if answer.ttl_s > 0 => Ok(()),
                Some(_) => Err(Rejection::NoSession.into()),
                None => Err(ServiceError::unknown("etcd has not answered the renewal")),
            }
        };
        timeout_at(deadline, call).await.unwrap_or_else(|_| Err(silent()))
    }

    /// Returns true when one of the ranges has changed, at `start_revision` or since; false when
    /// the watch is lost, after `MAX_WATCH`, and at the deadline, for the caller to look.
    pub(super) async fn watch(
        &self,
        ranges: Vec<(Vec<u8>, Vec<u8>)>,
        start_revision: i64,
        deadline: Instant,
    ) -> bool {
        let asks = ranges.into_iter().map(move |(key, range_end)| WatchRequest {
            create: Some(WatchCreate { key, range_end, start_revision }),
        });
        // A stream of requests that ends would end the watch.
        let asks = tokio_stream::iter(asks.collect::<Vec<_>>()).chain(tokio_stream::pending());
        let call = async {
            let mut answers = self.stream::<_, WatchAnswer>(WATCH, asks).await?;
            // Ends: a change comes, or the stream ends.
            while let Some(answer) = answers.message().await.map_err(|status| failed(&status))? {
                if !answer.events.is_empty() {
                    return Ok(());
                }
                if answer.canceled {
                    return Err(ServiceError::unavailable("etcd has cancelled the watch"));
                }
            }
            Err(ServiceError::unavailable("etcd has ended the watch"))
        };
        let until = deadline.min(Instant::now() + MAX_WATCH);
        match timeout_at(until, call).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!(target: "voussoir::lock", %error, "no watch");
                // The next look says whether etcd is reached.
                tokio::time::sleep_until(until.min(Instant::now() + MAX_WATCH / 10)).await;
                false
            }
            Err(_) => false,
        }
    }
}

fn silent() -> ServiceError {
    ServiceError::unknown("etcd has not answered by the deadline")
}

/// What a status says of the call.
fn failed(status: &Status) -> ServiceError {
    let reason = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        // Of what is asked here only leases can be missing.
        Code::NotFound => Rejection::NoSession.into(),
        // `ResourceExhausted` is not among them: an etcd whose space is full carries out what has
        // reached its log, and then answers so.
        Code::PermissionDenied
        | Code::Unauthenticated
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::Unimplemented => ServiceError::unavailable(reason),
        _ => ServiceError::unknown(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Outcome;

    /// An etcd whose space is full has carried out what it says it has no space for.
    #[test]
    fn only_what_is_checked_before_the_log_is_told_as_not_done() {
        let outcome = |code| failed(&Status::new(code, "")).outcome();
        for code in [Code::ResourceExhausted, Code::Unavailable, Code::DeadlineExceeded] {
            assert_eq!(outcome(code), Outcome::Unknown, "{code:?}");
        }
        for code in [Code::PermissionDenied, Code::Unauthenticated, Code::Unimplemented] {
            assert_eq!(outcome(code), Outcome::NotApplied, "{code:?}");
        }
        assert!(failed(&Status::not_found("")).is_end_of_session());
    }
}
