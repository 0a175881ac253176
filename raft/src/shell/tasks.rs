//! Tasks that a node may have beside its loop.

use std::future::Future;

use tokio::task::{AbortHandle, JoinSet};

/// Tasks that end with this. Nothing is kept while there are none: of ten thousand groups few have
/// any.
#[derive(Debug, Default)]
pub(crate) struct Tasks(Option<JoinSet<()>>);

impl Tasks {
    pub(crate) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.0.get_or_insert_default().spawn(task)
    }

    /// Forgets those that have ended.
    pub(crate) fn reap(&mut self) {
        if let Some(tasks) = &mut self.0 {
            while tasks.try_join_next().is_some() {}
            self.0.take_if(|tasks| tasks.is_empty());
        }
    }

    /// Ends all of them, and returns when they have.
    pub(crate) async fn shutdown(self) {
        if let Some(mut tasks) = self.0 {
            tasks.shutdown().await;
        }
    }
}
