//! Redis as bus and as second level. Feature `redis`.

mod bus;
mod level;

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisError};

pub use bus::RedisBus;
pub use level::RedisLevel;

/// How long a connection may take to come about. The calls of the cache have limits of their own.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A call that has no answer for so long has failed, whatever its caller's limit.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest pause between attempts to connect.
const MAX_DELAY: Duration = Duration::from_millis(500);
/// A connection that has left so many calls in a row without an answer is replaced: the other end
/// may be gone without a word.
const MAX_UNANSWERED: u32 = 3;

/// The connection: shared by all calls, which it sends in one pipeline, and made anew when it is
/// lost.
struct Link {
    client: Client,
    manager: Mutex<ConnectionManager>,
    unanswered: AtomicU32,
}

/// Counts a call as unanswered unless it ends.
struct Call<'a>(&'a Link);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.0.unanswered.fetch_add(1, Ordering::Relaxed) + 1 < MAX_UNANSWERED {
            return;
        }
        self.0.unanswered.store(0, Ordering::Relaxed);
        // An error here is one of the configuration, which has been used before.
        if let Ok(manager) = connect(&self.0.client) {
            *self.0.manager.lock() = manager;
        }
    }
}

fn connect(client: &Client) -> Result<ConnectionManager, RedisError> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_min_delay(Duration::from_millis(10))
        .set_max_delay(MAX_DELAY)
        .set_pipeline_buffer_size(1024);
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

impl Link {
    fn new(client: Client) -> Result<Self, RedisError> {
        let manager = Mutex::new(connect(&client)?);
        Ok(Self { client, manager, unanswered: AtomicU32::new(0) })
    }

    /// One call over the connection. One that is dropped, as at its time limit, has no answer.
    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(&mut ConnectionManager) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        let mut manager = self.manager.lock().clone();
        let unanswered = Call(self);
        let answer = call(&mut manager).await;
        std::mem::forget(unanswered);
        self.unanswered.store(0, Ordering::Relaxed);
        answer
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}
