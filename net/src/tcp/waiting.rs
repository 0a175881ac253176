//! Waiters on a pipe: a call for its answer, an answer for room in the queue.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::pipe::Pipe;
use crate::wire::Frame;
use crate::{CallError, Lost, SendError};

/// An answer that waits for room. While there is one no further request is read; the answers to
/// those that had been read are bounded in bytes by [`Pipe`], so a peer that does not read its
/// answers cannot pile them up.
pub(crate) struct LateAnswer {
    pipe: Arc<Pipe>,
    frame: Option<Frame>,
    bytes: usize,
}

impl LateAnswer {
    pub(super) fn new(pipe: Arc<Pipe>, frame: Frame) -> Self {
        let bytes = frame.len();
        Self { pipe, frame: Some(frame), bytes }
    }

    /// Sends it when there is room, or drops it when the connection is gone.
    pub(crate) async fn send(mut self) {
        let pipe = Arc::clone(&self.pipe);
        loop {
            let room = pipe.room();
            tokio::pin!(room);
            // Registered before the look, so that no room is missed in between.
            room.as_mut().enable();
            if pipe.offer(&mut self.frame) {
                pipe.pass_room_on();
                return;
            }
            room.await;
        }
    }
}

impl Drop for LateAnswer {
    fn drop(&mut self) {
        self.pipe.late_answer_ended(self.bytes);
    }
}

/// A call under way; dropping it gives the call up.
#[derive(Debug)]
pub(crate) struct Ticket {
    pipe: Arc<Pipe>,
    id: u64,
    is_done: bool,
}

impl Ticket {
    pub(super) fn new(pipe: Arc<Pipe>, id: u64) -> Self {
        Self { pipe, id, is_done: false }
    }

    /// The answer is there.
    pub(crate) fn done(mut self) {
        self.is_done = true;
    }

    /// The deadline passed.
    pub(crate) fn expire(mut self) -> CallError {
        self.is_done = true;
        if self.pipe.give_up(self.id) {
            CallError::NotSent(SendError::Expired)
        } else {
            CallError::Unknown(Lost::Deadline)
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_done {
            self.pipe.give_up(self.id);
        }
    }
}

/// Outcome reported when the sender was dropped before it answered.
pub(crate) fn lost(_: oneshot::error::RecvError) -> Result<Bytes, CallError> {
    Err(CallError::Unknown(Lost::Closed))
}
