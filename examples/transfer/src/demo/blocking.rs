//! What two-phase commit costs while its coordinator is away: it is killed between the phases and
//! stays dead for a while.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Stage;
use super::audit::{blocked, compare_banks, prepared};
use super::rounds::settle;
use crate::Error;

/// How long the coordinator stays dead.
const AWAY: Duration = Duration::from_secs(3);
/// How long transfers gather at the point.
const GATHER: Duration = Duration::from_millis(500);

/// What a coordinator that was dead has kept blocked.
pub(super) struct Blocked {
    pub(super) branches: i64,
    pub(super) accounts: i64,
    pub(super) time: Duration,
}

impl Stage<'_> {
    /// Shows what is locked while the coordinator is away, and that it is let go when it is back.
    pub(super) async fn show_blocking(&mut self) -> Result<Blocked, Error> {
        self.clients.check()?;
        println!("\nthe coordinator is killed between the phases, and stays dead:");
        let service = self.service()?;
        service.order("hold 0 before the decision").await?;
        service.stopped_at("before the decision").await?;
        sleep(GATHER).await;
        self.kill_service().await?;
        let away = Instant::now();
        let (branches, mut most) = (prepared(&self.urls).await?, 0);
        // Ends: after `AWAY`.
        while away.elapsed() < AWAY {
            let (accounts, locks) = blocked(&self.urls).await?;
            println!(
                "  dead for {:>3.1} s: {branches} branches prepared, {locks} locks on tables held, \
                 {accounts} accounts blocked",
                away.elapsed().as_secs_f64()
            );
            most = most.max(accounts);
            if accounts == 0 || locks == 0 || prepared(&self.urls).await? != branches {
                return Err("a prepared branch has let its accounts go by itself".into());
            }
            sleep(Duration::from_millis(500)).await;
        }
        let begun = Instant::now();
        self.start_service(None)?;
        self.await_service().await?;
        let started = begun.elapsed();
        let settled = {
            let _paused = self.clients.pause().await;
            let (address, bound) = (self.addresses.borrow()[0], self.kills.bound);
            let settled = settle(&self.urls, address, Instant::now(), bound).await?;
            compare_banks(&self.urls).await?;
            settled
        };
        println!(
            "  started again: {} ms later it listens, {} ms after that nothing is prepared; {most} \
             accounts were blocked for {:.1} s",
            started.as_millis(),
            settled.as_millis(),
            away.elapsed().as_secs_f64()
        );
        Ok(Blocked { branches, accounts: most, time: away.elapsed() })
    }
}
