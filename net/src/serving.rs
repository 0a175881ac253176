//! Finds the handler of a service and runs it, whatever it does.

use std::collections::HashMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::RwLock;

use crate::{Class, Handler, Parts, Rejected, ServeError};

/// Why a handler gave no answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Rejected(Rejected),
    Panicked,
}

pub(crate) type Answer = Result<Parts, Failure>;

/// The handlers by the number of their service.
#[derive(Default)]
pub(crate) struct Services {
    handlers: RwLock<HashMap<u16, Arc<dyn Handler>>>,
}

impl Services {
    pub(crate) fn add(&self, service: u16, handler: Arc<dyn Handler>) -> Result<(), ServeError> {
        match self.handlers.write().entry(service) {
            std::collections::hash_map::Entry::Occupied(_) => {
                Err(ServeError::AlreadyServed { service })
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(handler);
                Ok(())
            }
        }
    }

    pub(crate) fn remove(&self, service: u16) -> bool {
        // The handler may be dropped here, and what it drops may call this transport: not while
        // the lock is held.
        let removed = self.handlers.write().remove(&service);
        removed.is_some()
    }

    pub(crate) fn clear(&self) {
        let removed = std::mem::take(&mut *self.handlers.write());
        drop(removed);
    }

    pub(crate) fn get(&self, service: u16) -> Option<Arc<dyn Handler>> {
        self.handlers.read().get(&service).cloned()
    }
}

/// Hands a message over. A handler that panics loses this message and nothing else.
pub(crate) fn message(handler: &dyn Handler, from: u64, class: Class, body: Bytes) {
    if catch_unwind(AssertUnwindSafe(|| handler.message(from, class, body))).is_err() {
        tracing::error!(target: "voussoir::net", from, "a handler panicked at a message");
    }
}

/// A call that a handler has begun.
pub(crate) enum Begun {
    Answered(Answer),
    Pending(Running),
}

/// Begins a call and polls it once: one that can be answered at once needs no task.
pub(crate) fn begin(handler: Arc<dyn Handler>, from: u64, body: Bytes) -> Begun {
    let future = Box::pin(async move { handler.call(from, body).await });
    let mut running = Running { future };
    // The next poll registers a waker that is woken.
    match Pin::new(&mut running).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Begun::Answered(answer),
        Poll::Pending => Begun::Pending(running),
    }
}

/// The future of a handler; a panic in it is an answer.
pub(crate) struct Running {
    future: Pin<Box<dyn Future<Output = Result<Parts, Rejected>> + Send>>,
}

impl Future for Running {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let future = self.future.as_mut();
        let Ok(poll) = catch_unwind(AssertUnwindSafe(|| future.poll(cx))) else {
            tracing::error!(target: "voussoir::net", "a handler panicked at a call");
            return Poll::Ready(Err(Failure::Panicked));
        };
        poll.map(|answer| answer.map_err(Failure::Rejected))
    }
}
