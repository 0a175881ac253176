//! Connections to PostgreSQL: opened when they are needed, and again after one was lost.

use std::ops::Deref;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::{Client, Config, Error, NoTls};

/// How long opening a connection may take, unless the connection string says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How much longer than its longest statement a server may leave a packet unacknowledged.
const MARGIN: Duration = Duration::from_secs(2);

/// At most `size` connections, each used by one caller at a time.
#[derive(Debug)]
pub(crate) struct Pool {
    config: Config,
    /// Connections that nobody uses. Some may have been closed by the server.
    idle: Mutex<Vec<Client>>,
    /// One permit for each connection in use.
    permits: Semaphore,
}

impl Pool {
    /// Connects nowhere yet. The server ends each statement of this pool after `statement_timeout`.
    ///
    /// # Errors
    /// `url` is no connection string.
    pub(crate) fn new(url: &str, size: usize, statement_timeout: Duration) -> Result<Self, Error> {
        let mut config: Config = url.parse()?;
        let given = config.get_options().unwrap_or_default();
        let timeout = statement_timeout.as_millis();
        let options = format!("{given} -c statement_timeout={timeout}");
        config.options(options);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        // A server that has vanished resets nothing: what was sent to it is waited for no longer
        // than any answer takes, instead of the system's quarter of an hour.
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(statement_timeout + MARGIN);
        }
        Ok(Self { config, idle: Mutex::new(Vec::new()), permits: Semaphore::new(size) })
    }

    /// A connection; waits for one while all are in use.
    ///
    /// # Errors
    /// None could be opened.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn get(&self) -> Result<Lent<'_>, Error> {
        let permit = self.permits.acquire().await.expect("the semaphore is never closed");
        // Ends: each round takes a connection out of `idle`.
        while let Some(client) = self.take_idle() {
            if !client.is_closed() {
                return Ok(Lent { client, pool: self, _permit: permit });
            }
        }
        let (client, connection) = self.config.connect(NoTls).await?;
        // Ends with the connection. The statement that is lost with it returns the error.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Lent { client, pool: self, _permit: permit })
    }

    /// On its own, so that the lock is not held while a connection is looked at.
    fn take_idle(&self) -> Option<Client> {
        self.idle.lock().pop()
    }
}

/// A connection in use. Dropping it closes the connection: after an error or a cancelled statement
/// nobody waits behind what the server may still be doing.
#[derive(Debug)]
pub(crate) struct Lent<'a> {
    client: Client,
    pool: &'a Pool,
    _permit: SemaphorePermit<'a>,
}

impl Lent<'_> {
    /// Keeps the connection open for the next caller. For use after a statement that succeeded.
    pub(crate) fn give_back(self) {
        self.pool.idle.lock().push(self.client);
    }
}

impl Deref for Lent<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_has_vanished_is_not_waited_for_unless_the_address_says_so() {
        let user_timeout = |url: &str| {
            let pool = Pool::new(url, 1, Duration::from_secs(3)).unwrap();
            pool.config.get_tcp_user_timeout().copied()
        };
        assert_eq!(user_timeout("host=a"), Some(Duration::from_secs(5)));
        let given = "host=a tcp_user_timeout=60";
        assert_eq!(
            user_timeout(given),
            given.parse::<Config>().unwrap().get_tcp_user_timeout().copied()
        );
    }
}
