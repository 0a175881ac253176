//! Who delivers which part of the keys: a row for each lane, with its owner, epoch and lease.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Client, Error};

use super::config::OutboxConfig;
use super::error::OutboxError;
use super::table::Shared;
use crate::postgres::{install, quoted};

const TABLE: &str = "voussoir_outbox_lanes";

/// The table, as it stands in a statement.
pub(super) fn table(schema: &str) -> String {
    format!("{}.{TABLE}", quoted(schema))
}

/// FNV-1a with 64 bits, begun with a salt. Part of the format: the lane of a key never changes.
pub(super) fn hash(text: &str, salt: u64) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ salt;
    text.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Creates the table and its rows, or checks that their number is the configured one.
pub(super) async fn create(client: &mut Client, config: &OutboxConfig) -> Result<(), OutboxError> {
    let create = "(lane INT PRIMARY KEY, owner TEXT NOT NULL DEFAULT '', \
                   epoch BIGINT NOT NULL DEFAULT 0, \
                   lease_until TIMESTAMPTZ NOT NULL DEFAULT '-infinity')";
    install(client, &config.schema, TABLE, create).await?;
    let table = table(&config.schema);
    let transaction = client.transaction().await?;
    // Two that open at once fill it one after the other.
    transaction.batch_execute(&format!("LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")).await?;
    let count = format!("SELECT pg_catalog.count(*) FROM {table}");
    let found: i64 = transaction.query_one(&count, &[]).await?.get(0);
    if found == 0 {
        let fill = format!(
            "INSERT INTO {table} (lane) SELECT pg_catalog.generate_series(0, {})",
            config.lanes - 1
        );
        transaction.batch_execute(&fill).await?;
    } else if found != i64::from(config.lanes) {
        return Err(OutboxError::Lanes { found, configured: config.lanes });
    }
    transaction.commit().await?;
    Ok(())
}

/// The lanes of one relay.
#[derive(Debug)]
pub(super) struct Leases {
    /// Names this life of the relay.
    owner: String,
    /// Lane and epoch.
    held: BTreeMap<i32, i64>,
    /// Nothing is begun after it. Counted from before the lease was asked for, on this machine's
    /// clock, with a tenth taken off for clocks that run at different speeds.
    deadline: Instant,
}

impl Leases {
    pub(super) fn new() -> Self {
        let owner = format!("{:032x}", fastrand::u128(..));
        Self { owner, held: BTreeMap::new(), deadline: Instant::now() }
    }

    /// The lanes that may be delivered now, and until when.
    pub(super) fn held(&self) -> (&BTreeMap<i32, i64>, Instant) {
        static NONE: BTreeMap<i32, i64> = BTreeMap::new();
        let lives = Instant::now() < self.deadline;
        (if lives { &self.held } else { &NONE }, self.deadline)
    }

    /// Extends the leases that nobody else has taken, and takes lanes that are free.
    pub(super) async fn renew(
        &mut self,
        client: &Client,
        shared: &Shared,
        lease: Duration,
        max_lanes: u32,
    ) -> Result<(), Error> {
        let asked = Instant::now();
        let seconds = lease.as_secs_f64();
        let until = "pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $2)";
        // Also one that is over: the epoch says that nobody has taken the lane since.
        let renew = format!(
            "UPDATE {} SET lease_until = {until} WHERE owner = $1 RETURNING lane, epoch",
            shared.lanes
        );
        let rows = client.query(&renew, &[&self.owner, &seconds]).await?;
        self.held = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let held = i64::try_from(self.held.len()).unwrap_or(i64::MAX);
        let room = i64::from(max_lanes) - held;
        if room > 0 {
            let claim = format!(
                "UPDATE {0} SET owner = $1, epoch = epoch + 1, lease_until = {until} \
                 WHERE lane IN (SELECT lane FROM {0} WHERE owner <> $1 AND lease_until < \
                 pg_catalog.clock_timestamp() ORDER BY lane LIMIT $3 FOR UPDATE SKIP LOCKED) \
                 RETURNING lane, epoch",
                shared.lanes
            );
            let rows = client.query(&claim, &[&self.owner, &seconds, &room]).await?;
            self.held.extend(rows.iter().map(|row| (row.get::<_, i32>(0), row.get::<_, i64>(1))));
        }
        self.deadline = asked + lease.mul_f64(0.9);
        Ok(())
    }

    /// Gives all lanes back: others may take them at once.
    pub(super) async fn release(&mut self, client: &Client, shared: &Shared) -> Result<(), Error> {
        self.held.clear();
        let release = format!(
            "UPDATE {} SET owner = '', lease_until = '-infinity' WHERE owner = $1",
            shared.lanes
        );
        client.execute(&release, &[&self.owner]).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another value would put the messages of a key into two lanes.
    #[test]
    fn the_lane_of_a_key_never_changes() {
        assert_eq!(hash("", 0), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("a", 0), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash("foobar", 0), 0x8594_4171_f739_67e8);
        assert_ne!(hash("foobar", 1), hash("foobar", 0));
    }
}
