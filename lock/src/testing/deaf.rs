//! A service that is not reached for renewals, as by a client that is cut off or paused.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::core::LockView;
use crate::service::{Acquired, Acquisition, GrantKind, LockService, NewValue, ServiceError};

pub(super) struct Deaf<K: GrantKind>(pub(super) Arc<dyn LockService<Grants = K>>);

#[async_trait]
impl<K: GrantKind> LockService for Deaf<K> {
    type Grants = K;

    async fn open_session(&self, ttl: Duration, deadline: Instant) -> Result<u64, ServiceError> {
        self.0.open_session(ttl, deadline).await
    }

    async fn renew_session(&self, _session: u64, _deadline: Instant) -> Result<(), ServiceError> {
        Err(ServiceError::unavailable("this client is cut off"))
    }

    async fn close_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError> {
        self.0.close_session(session, deadline).await
    }

    async fn acquire(
        &self,
        acquisition: &Acquisition,
        deadline: Instant,
    ) -> Result<Acquired, ServiceError> {
        self.0.acquire(acquisition, deadline).await
    }

    async fn release(
        &self,
        session: u64,
        request: u64,
        deadline: Instant,
    ) -> Result<(), ServiceError> {
        self.0.release(session, request, deadline).await
    }

    async fn set_value(&self, value: &NewValue, deadline: Instant) -> Result<(), ServiceError> {
        self.0.set_value(value, deadline).await
    }

    async fn view(
        &self,
        name: &Bytes,
        known: Option<u64>,
        deadline: Instant,
    ) -> Result<LockView, ServiceError> {
        self.0.view(name, known, deadline).await
    }
}
