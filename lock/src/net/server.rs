//! Answers the requests of clients.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use voussoir_net::{Bytes, Class, Handler, Parts, Rejected, ServeError, Transport, async_trait};

use super::wire::{Request, Response};
use crate::core::{Answer, Command, Rejection};
use crate::service::{Acquired, Acquisition, Fenced, LockService, NewValue, ServiceError};

/// The longest that one request waits for a lock or a change; clients ask again.
const MAX_WITHIN: Duration = Duration::from_secs(60);

/// Serves a lock service to clients over the network. Dropped, it goes on: `withdraw` the service
/// from the transport.
///
/// Whoever reaches the transport can use the locks, and also end or use the sessions of others,
/// whose ids can be guessed: serve it to processes that you trust.
pub struct LockServer {
    service: Arc<dyn LockService<Grants = Fenced>>,
}

impl LockServer {
    /// Serves `service` under this number of the transport.
    ///
    /// # Errors
    /// [`ServeError`]: the number is taken, or the transport is closed.
    pub fn serve(
        transport: &dyn Transport,
        number: u16,
        service: Arc<dyn LockService<Grants = Fenced>>,
    ) -> Result<(), ServeError> {
        transport.serve(number, Arc::new(Self { service }))
    }

    pub(super) fn of(service: Arc<dyn LockService<Grants = Fenced>>) -> Self {
        Self { service }
    }

    async fn answer(&self, request: Request, by: Instant) -> Result<Response, ServiceError> {
        let service = &self.service;
        let done = Response::Answer(Answer::Done);
        let command = match request {
            Request::Renew { session } => {
                service.renew_session(session, by).await?;
                return Ok(done);
            }
            Request::View { name, known } => {
                return Ok(Response::View(service.view(&name, known, by).await?));
            }
            Request::Leader { but } => {
                let leader = service.wait_for_leader(but, by).await;
                return Err(ServiceError::NotLeader { leader });
            }
            Request::Command(command) => command,
        };
        match command {
            Command::OpenSession { ttl_ms } => {
                let ttl = Duration::from_millis(ttl_ms);
                let session = service.open_session(ttl, by).await?;
                return Ok(Response::Answer(Answer::Opened { session }));
            }
            Command::CloseSession { session } => service.close_session(session, by).await?,
            Command::Release { session, request } => service.release(session, request, by).await?,
            Command::SetValue { session, token, number, name, value } => {
                let value = NewValue { session, token, number, name, value };
                service.set_value(&value, by).await?;
            }
            Command::Acquire { session, request, floor, name, mode, wait, lock_delay_ms } => {
                let lock_delay = Duration::from_millis(lock_delay_ms);
                let acquisition =
                    Acquisition { session, request, floor, name, mode, wait, lock_delay };
                return Ok(Response::Answer(match service.acquire(&acquisition, by).await? {
                    Acquired::Granted { token } => Answer::Granted { token },
                    Acquired::Queued => Answer::Queued,
                    Acquired::Busy => Answer::Busy,
                }));
            }
            // Requests with these are not decoded.
            Command::BeginReign
            | Command::Expire { .. }
            | Command::Checkpoint { .. }
            | Command::CheckpointDelay { .. }
            | Command::EndDelay { .. } => {
                return Err(ServiceError::unavailable("not a command of clients"));
            }
        }
        Ok(done)
    }
}

#[async_trait]
impl Handler for LockServer {
    fn message(&self, _from: u64, _class: Class, _body: Bytes) {}

    async fn call(&self, from: u64, body: Bytes) -> Result<Parts, Rejected> {
        let response = match Request::decode(&body) {
            Ok((request, within)) => {
                let by = Instant::now() + within.min(MAX_WITHIN);
                self.answer(request, by).await.unwrap_or_else(Response::Failed)
            }
            Err(error) => {
                tracing::debug!(target: "voussoir::lock", from, %error, "a request was refused");
                // Repeated, it is refused again.
                Response::Failed(Rejection::OutOfRange.into())
            }
        };
        Ok(Parts::new(response.encode()))
    }
}

impl fmt::Debug for LockServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockServer").finish_non_exhaustive()
    }
}
