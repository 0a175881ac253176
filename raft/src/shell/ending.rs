//! What a driver does last: it tells the store, and everybody who still waits.

use std::future::Future;
use std::mem::take;

use super::driver::Driver;
use super::error::{ChangeError, ProposeError, ReadError, StopReason};
use super::shared::Event;
use crate::store::{Completion, LogWrite};
use crate::types::HaltReason;

impl Driver {
    /// Records in the store that its log is not to be trusted, if that is why the node stopped.
    /// Returns a future that ends when that is durable, or after
    /// [`Config::disk_stall`](crate::Config::disk_stall): a node that cannot record it halts again
    /// when a leader sees the loss again.
    pub(crate) fn condemn(&self, reason: &StopReason) -> impl Future<Output = ()> + Send + 'static {
        let is_lost =
            matches!(reason.halted(), Some(HaltReason::LogLost | HaltReason::Inconsistent));
        let write = LogWrite { condemned: true, ..LogWrite::default() };
        let recorded = is_lost.then(|| self.written(write));
        let node = self.core.config().id;
        async move {
            if let Some(recorded) = recorded
                && !recorded.await
            {
                let what = "the loss of the log could not be recorded";
                tracing::error!(target: "voussoir::raft", node, what);
            }
        }
    }

    /// Returns a future that ends when all that was handed to the store is durable or has failed,
    /// or after [`Config::disk_stall`](crate::Config::disk_stall).
    pub(crate) fn settle(&self) -> impl Future<Output = ()> + Send + 'static {
        let written = self.written(LogWrite::default());
        async move {
            let _ = written.await;
        }
    }

    /// Writes, and returns a future that says whether that became durable in time.
    fn written(&self, write: LogWrite) -> impl Future<Output = bool> + Send + 'static {
        let (done, written) = tokio::sync::oneshot::channel();
        let tell = move |result| {
            // An error here only says that the time is over.
            let _ = done.send(result);
        };
        self.log.write(write, Completion::new(tell));
        let limit = self.core.config().disk_stall;
        async move { matches!(tokio::time::timeout(limit, written).await, Ok(Ok(Ok(())))) }
    }

    /// Answers everybody who still waits.
    pub(crate) fn finish(&mut self, mut left: Vec<Event>, reason: &StopReason) {
        left.append(&mut self.gathered);
        self.proposals.fail_all(reason);
        self.reads.fail_all(reason);
        for reply in take(&mut self.changes).into_values() {
            let _ = reply.send(Err(ChangeError::Stopped(reason.clone())));
        }
        for event in left {
            match event {
                Event::Propose { proposal, .. } => {
                    proposal.fail(ProposeError::Stopped(reason.clone()));
                }
                Event::Read { reply, .. } => {
                    let _ = reply.send(Err(ReadError::Stopped(reason.clone())));
                }
                Event::Change { reply, .. } => {
                    let _ = reply.send(Err(ChangeError::Stopped(reason.clone())));
                }
                _ => {}
            }
        }
        let mut last = self.core.status();
        match reason {
            StopReason::Machine(_) => last.halted = Some(HaltReason::MachineFailed),
            StopReason::Halted { reason, .. } => last.halted = Some(*reason),
            _ => {}
        }
        last.leads_nobody();
        self.status.send_replace(last);
    }
}
