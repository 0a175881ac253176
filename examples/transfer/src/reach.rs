//! A bank as a participant, which may be away when the process starts.
//!
//! The process does not wait for it: its node of the group is needed for the majority, and what the
//! other bank holds prepared must be ended meanwhile. Until the bank is reached it is as one that
//! does not answer.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;
use voussoir_txn::two_phase::postgres::{PostgresConfig, PostgresError, PostgresParticipant};
use voussoir_txn::two_phase::{
    Applied, Decision, Gid, InDoubt, Participant, ParticipantError, PrepareError, Vote,
};

use crate::Error;
use crate::bank::Bank;

/// Time between two attempts to reach a bank.
const PAUSE: Duration = Duration::from_millis(100);
/// How long opening a connection may take, unless the connection string says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The address of a bank is wrong: an operator has to change it before a restart.
#[derive(Debug, thiserror::Error)]
#[error("{bank}: {said}")]
pub(crate) struct WrongAddress {
    bank: Bank,
    said: String,
}

/// A bank, from when it was reached first. Clones are the same bank.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    bank: Bank,
    open: Arc<OnceLock<PostgresParticipant>>,
}

impl Reach {
    pub(crate) fn new(bank: Bank) -> Self {
        Self { bank, open: Arc::default() }
    }

    /// The bank, or that it has not been reached since the start of the process.
    pub(crate) fn get(&self) -> Result<&PostgresParticipant, ParticipantError> {
        let away = || ParticipantError(format!("{} has not been reached yet", self.bank));
        self.open.get().ok_or_else(away)
    }

    /// Tries until the bank is reached. At most `max` branches of it are open or prepared.
    ///
    /// # Errors
    /// The server does not know the user, the password or the database ([`WrongAddress`]), or its
    /// configuration does not fit.
    pub(crate) async fn run(&self, url: &str, max: u32) -> Result<(), Error> {
        let mut config = PostgresConfig::default();
        config.max_branches = max as usize;
        let mut is_said = false;
        // Ends: with the first answer. The caller stops waiting by dropping it.
        loop {
            let mut server: tokio_postgres::Config = url.parse()?;
            if server.get_connect_timeout().is_none() {
                server.connect_timeout(CONNECT_TIMEOUT);
            }
            match PostgresParticipant::open(server, config.clone()).await {
                Ok(participant) => {
                    let _ = self.open.set(participant);
                    return Ok(());
                }
                Err(PostgresError::Postgres(error)) => {
                    let said = crate::chain(&error);
                    if is_refused(error.code().map(tokio_postgres::error::SqlState::code)) {
                        return Err(WrongAddress { bank: self.bank, said }.into());
                    }
                    if !is_said {
                        tracing::warn!(bank = %self.bank, error = said, "waiting for the database");
                    }
                    is_said = true;
                    sleep(PAUSE).await;
                }
                Err(error) => return Err(format!("{}: {error}", self.bank).into()),
            }
        }
    }
}

/// Whether the server is there, and will say the same again: the user or the password is wrong
/// (class 28), or there is no such database (3D000).
fn is_refused(code: Option<&str>) -> bool {
    code.is_some_and(|code| code.starts_with("28") || code == "3D000")
}

#[async_trait]
impl Participant for Reach {
    async fn prepare(&self, gid: &Gid) -> Result<Vote, PrepareError> {
        let bank = self.get().map_err(|away| PrepareError::Refused(away.to_string()))?;
        bank.prepare(gid).await
    }

    async fn finish(&self, gid: &Gid, decision: Decision) -> Result<Applied, ParticipantError> {
        self.get()?.finish(gid, decision).await
    }

    async fn in_doubt(
        &self,
        coordinator: &str,
        max: usize,
    ) -> Result<Vec<InDoubt>, ParticipantError> {
        self.get()?.in_doubt(coordinator, max).await
    }

    async fn forget(&self, gids: &[Gid]) {
        if let Ok(bank) = self.get() {
            bank.forget(gids).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_away_is_waited_for_and_a_wrong_password_is_not() {
        for code in ["28P01", "28000", "3D000"] {
            assert!(is_refused(Some(code)), "{code}");
        }
        // No answer, it starts, it stops, it has no connection left.
        for code in [None, Some("57P03"), Some("57P01"), Some("53300")] {
            assert!(!is_refused(code), "{code:?}");
        }
    }
}
