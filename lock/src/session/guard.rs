//! A lock that is held.

use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;

use super::{Handle, SessionLost, Shared, retry};
use crate::clock::after;
use crate::fence::FencingToken;
use crate::service::{Fenced, GrantKind, NewValue, ServiceError};

/// A number of the session that may hold, wait or be under way at the service. Dropped, it is
/// released in the background.
pub(super) struct Place<K: GrantKind> {
    handle: Arc<Handle<K>>,
    request: u64,
    /// Whether the service has said that the request has ended.
    has_ended: bool,
}

impl<K: GrantKind> Place<K> {
    pub(super) fn new(handle: Arc<Handle<K>>) -> Self {
        let request = handle.shared.requests.begin();
        Self { handle, request, has_ended: false }
    }

    pub(super) fn request(&self) -> u64 {
        self.request
    }

    /// The service has said that the request has ended.
    pub(super) fn ended(mut self) {
        self.has_ended = true;
        self.shared().requests.arrived(self.request);
    }

    /// The service has said that the request holds or waits.
    pub(super) fn arrived(&self) {
        self.shared().requests.arrived(self.request);
    }

    pub(super) fn granted(self, name: Bytes, token: u64) -> Guard<K> {
        self.arrived();
        Guard { held: Arc::new(Held { place: self, name, token, written: AtomicU64::new(0) }) }
    }

    pub(super) fn shared(&self) -> &Shared<K> {
        &self.handle.shared
    }
}

impl<K: GrantKind> Drop for Place<K> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.shared().requests.release(self.request);
            self.shared().release.notify_one();
        }
    }
}

/// A lock that is held, for as long as its session lives. Dropped, it is released in the
/// background: a hint, for the process may end before. [`release`](Self::release) waits for it.
///
/// Clones are the same grant, with the same token (re-entry): the lock is released with the last.
#[must_use = "dropping it releases the lock"]
pub struct Guard<K: GrantKind = Fenced> {
    held: Arc<Held<K>>,
}

struct Held<K: GrantKind> {
    place: Place<K>,
    name: Bytes,
    token: u64,
    /// Number of the latest value that was set by this grant.
    written: AtomicU64,
}

/// What became of a lock that was released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Released {
    /// It is free for others.
    Released,
    /// Clones of the guard hold it still.
    StillHeld,
    /// The session had ended before: others may have held the lock meanwhile.
    AlreadyLost,
    /// The service did not confirm it in time. It is released in the background, at the latest by
    /// the end of the session.
    Unknown(ServiceError),
}

/// The right to act under a lock, for as long as it is borrowed from its guard: what a function
/// that changes a guarded resource asks for. Check it again for each effect.
#[derive(Clone, Copy, Debug)]
pub struct Permit<'a, K: GrantKind = Fenced> {
    token: u64,
    deadline: u64,
    guard: PhantomData<&'a Guard<K>>,
}

impl<K: GrantKind> Permit<'_, K> {
    /// When the holder has to stop unless its session is renewed before, in ns of the session's
    /// clock.
    pub fn deadline(&self) -> u64 {
        self.deadline
    }
}

impl Permit<'_, Fenced> {
    /// What the resource checks.
    pub fn token(&self) -> FencingToken {
        FencingToken::new(self.token)
    }
}

impl Guard<Fenced> {
    /// The fencing token of the grant, whether it is still held or not.
    pub fn token(&self) -> FencingToken {
        FencingToken::new(self.held.token)
    }
}

impl<K: GrantKind> Guard<K> {
    /// The name of the lock.
    pub fn name(&self) -> &Bytes {
        &self.held.name
    }

    /// The number of the grant, of whatever kind.
    pub(crate) fn number(&self) -> u64 {
        self.held.token
    }

    /// The right to act now, by the session's own deadline.
    ///
    /// # Errors
    /// [`SessionLost`]: others may hold the lock.
    pub fn permit(&self) -> Result<Permit<'_, K>, SessionLost> {
        self.permit_at(self.held.place.shared().clock.now())
    }

    /// The same with the time of the session's clock, in ns, passed in.
    ///
    /// # Errors
    /// [`SessionLost`].
    #[inline]
    pub fn permit_at(&self, now: u64) -> Result<Permit<'_, K>, SessionLost> {
        let lease = &self.held.place.shared().lease;
        lease.check(now)?;
        let deadline = lease.deadline().ok_or(SessionLost)?;
        Ok(Permit { token: self.held.token, deadline, guard: PhantomData })
    }

    /// Returns when the lock is lost: its session has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn lost(&self) {
        self.held.place.shared().ended().await;
    }

    /// Runs a future for as long as the lock is held. It is dropped when the lock is lost, before
    /// the service gives the lock to others, by the margin of [`LeaseConfig`](crate::LeaseConfig);
    /// and it is not polled any more from then on, also if the process was paused.
    ///
    /// A future that blocks its thread cannot be stopped, and one in another task than that which
    /// closes the session is dropped a moment later: only the fencing token keeps their late
    /// effects out.
    ///
    /// # Errors
    /// [`SessionLost`]: the future was dropped before its end.
    ///
    /// # Cancel safety
    /// Dropped, it drops the future.
    pub async fn run<F: Future>(&self, future: F) -> Result<F::Output, SessionLost> {
        let shared = self.held.place.shared();
        let (mut future, mut lost) = (pin!(future), pin!(shared.ended()));
        poll_fn(|cx| {
            if shared.check().is_err() || lost.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(SessionLost));
            }
            future.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Sets the value of the lock, at most 4 KiB, `within` this time. It outlives the grant.
    ///
    /// # Errors
    /// [`ServiceError`]: its outcome says whether the value may have been set.
    ///
    /// # Cancel safety
    /// A dropped future may have set it. A value that is set later replaces it.
    pub async fn set_value(
        &self,
        value: impl Into<Bytes>,
        within: Duration,
    ) -> Result<(), ServiceError> {
        let (shared, deadline) = (self.held.place.shared(), after(within));
        let value = NewValue {
            session: shared.id,
            token: self.held.token,
            number: self.held.written.fetch_add(1, Ordering::Relaxed) + 1,
            name: self.held.name.clone(),
            value: value.into(),
        };
        // An earlier attempt may have set it, though the last one was refused.
        let doubt = Mutex::new(None);
        let set = retry(deadline, async || {
            let set = shared.service.set_value(&value, deadline).await;
            if let Err(error @ ServiceError::Unknown { .. }) = &set {
                *doubt.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
            }
            set
        });
        let set = set.await;
        let doubt = doubt.into_inner().unwrap_or_else(PoisonError::into_inner);
        set.map_err(|error| doubt.unwrap_or(error))
    }

    /// Releases the lock, and waits `within` this time until the service has confirmed it.
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped future goes on in the background.
    pub async fn release(self, within: Duration) -> Released {
        let Some(held) = Arc::into_inner(self.held) else { return Released::StillHeld };
        let (place, deadline) = (held.place, after(within));
        let handle = Arc::clone(&place.handle);
        let shared = &handle.shared;
        if shared.check().is_err() {
            return Released::AlreadyLost;
        }
        let request = place.request;
        let released = retry(deadline, || shared.service.release(shared.id, request, deadline));
        let released = tokio::select! {
            biased;
            () = shared.ended() => return Released::AlreadyLost,
            released = released => released,
        };
        match released {
            Ok(()) => {
                place.ended();
                Released::Released
            }
            Err(error) if error.is_end_of_session() => {
                shared.end();
                Released::AlreadyLost
            }
            Err(error) => Released::Unknown(error),
        }
    }
}

impl<K: GrantKind> Clone for Guard<K> {
    fn clone(&self) -> Self {
        Self { held: Arc::clone(&self.held) }
    }
}

impl<K: GrantKind> fmt::Debug for Guard<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Held { name, token, .. } = &*self.held;
        f.debug_struct("Guard").field("name", name).field("token", token).finish_non_exhaustive()
    }
}
