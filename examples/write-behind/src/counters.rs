//! What is counted, and the table in PostgreSQL that it ends up in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row};
use voussoir_cache::{Loaded, Plain, Sink, SinkError, Source, SourceError, Write, async_trait};

use crate::pool::Pool;

/// The server ends a statement after this time. Below the cache's time-outs for source and sink.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(4);
/// Connections of one process: one writes, the others load.
const CONNECTIONS: usize = 4;
/// Keys that one statement loads.
const MAX_LOADED: usize = 128;
/// Flushes whose latency is remembered.
const LATENCIES: usize = 256;

/// The views of one page that one edge has reported. A page's views are the sum over all edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    /// At most `i64::MAX`, which is what the column takes.
    pub(crate) page: u64,
    pub(crate) edge: u8,
}

/// The value of a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    /// At most `i64::MAX`.
    pub(crate) views: u64,
    /// Number of the last report that was counted; 0 before the first. A report that is sent again
    /// has the number of the first attempt, and is counted once.
    pub(crate) sequence: u64,
}

/// Bytes in the journal: page, little-endian, and edge.
impl Plain for Key {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.page.to_le_bytes());
        out.push(self.edge);
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (page, rest) = bytes.split_first_chunk()?;
        let &[edge] = rest else { return None };
        Some(Self { page: u64::from_le_bytes(*page), edge })
    }
}

/// The form of a [`Count`] in the journal. Another form gets another number, so that a newer
/// program can read the journal of an older one.
const COUNT_FORM: u8 = 1;

impl Plain for Count {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(COUNT_FORM);
        out.extend_from_slice(&self.views.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (&COUNT_FORM, rest) = bytes.split_first()? else { return None };
        let (views, rest) = rest.split_first_chunk()?;
        let sequence = rest.try_into().ok()?;
        Some(Self { views: u64::from_le_bytes(*views), sequence: u64::from_le_bytes(sequence) })
    }
}

/// A table with one row for each [`Key`]. Clones share the connections.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    name: Arc<str>,
    pool: Arc<Pool>,
    latencies: Arc<Mutex<Latencies>>,
}

impl Table {
    /// Connects when the first statement is executed.
    ///
    /// # Errors
    /// `url` is no connection string.
    pub(crate) fn new(url: &str, name: &str) -> Result<Self, Error> {
        let pool = Arc::new(Pool::new(url, CONNECTIONS, STATEMENT_TIMEOUT)?);
        Ok(Self { name: name.into(), pool, latencies: Arc::default() })
    }

    /// Creates the table if it does not exist.
    ///
    /// # Errors
    /// PostgreSQL cannot be reached or refuses.
    ///
    /// # Cancel safety
    /// Not cancel safe: the table may be there or not.
    pub(crate) async fn create(&self) -> Result<(), Error> {
        self.execute(&format!(
            "CREATE TABLE IF NOT EXISTS {} (page BIGINT, edge SMALLINT, views BIGINT NOT NULL, \
             sequence BIGINT NOT NULL, PRIMARY KEY (page, edge))",
            self.name
        ))
        .await
    }

    /// Executes statements without parameters.
    ///
    /// # Errors
    /// PostgreSQL cannot be reached or refuses.
    ///
    /// # Cancel safety
    /// Not cancel safe: they may be executed or not.
    pub(crate) async fn execute(&self, statements: &str) -> Result<(), Error> {
        let client = self.pool.get().await?;
        client.batch_execute(statements).await?;
        client.give_back();
        Ok(())
    }

    /// The latencies of the last flushes.
    pub(crate) fn latencies(&self) -> Latencies {
        self.latencies.lock().clone()
    }

    async fn upsert(&self, writes: &[Write<Key, Count>]) -> Result<(), SinkError> {
        // No statement was sent.
        let not_sent = |error: Error| SinkError::not_applied(error);
        let client = self.pool.get().await.map_err(not_sent)?;
        let values = || writes.iter().map(|write| write.value.unwrap_or_default());
        let pages: Vec<i64> = writes.iter().map(|write| write.key.page.cast_signed()).collect();
        let edges: Vec<i16> = writes.iter().map(|write| write.key.edge.into()).collect();
        let views: Vec<i64> = values().map(|count| count.views.cast_signed()).collect();
        let sequences: Vec<i64> = values().map(|count| count.sequence.cast_signed()).collect();
        // The condition makes a statement that the server executes late, after its time-out here,
        // harmless: it never replaces a newer count.
        let statement = format!(
            "INSERT INTO {} AS held (page, edge, views, sequence) \
             SELECT * FROM UNNEST($1::BIGINT[], $2::SMALLINT[], $3::BIGINT[], $4::BIGINT[]) \
             ON CONFLICT (page, edge) DO UPDATE SET views = EXCLUDED.views, \
             sequence = EXCLUDED.sequence WHERE held.sequence < EXCLUDED.sequence",
            self.name
        );
        let began = Instant::now();
        client
            .execute_typed(
                &statement,
                &[
                    (&pages, Type::INT8_ARRAY),
                    (&edges, Type::INT2_ARRAY),
                    (&views, Type::INT8_ARRAY),
                    (&sequences, Type::INT8_ARRAY),
                ],
            )
            .await
            .map_err(|error| sink_error(error, writes.len()))?;
        client.give_back();
        self.latencies.lock().record(began.elapsed());
        Ok(())
    }

    async fn select(&self, keys: &[Key]) -> Result<HashMap<Key, Count>, Error> {
        let client = self.pool.get().await?;
        let pages: Vec<i64> = keys.iter().map(|key| key.page.cast_signed()).collect();
        let edges: Vec<i16> = keys.iter().map(|key| key.edge.into()).collect();
        let statement = format!(
            "SELECT page, edge, views, sequence FROM {} \
             JOIN UNNEST($1::BIGINT[], $2::SMALLINT[]) AS asked (page, edge) USING (page, edge)",
            self.name
        );
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&pages, Type::INT8_ARRAY), (&edges, Type::INT2_ARRAY)];
        let rows = client.query_typed(&statement, &parameters).await?;
        client.give_back();
        rows.iter().map(counter).collect()
    }

    /// Every row.
    ///
    /// # Errors
    /// PostgreSQL cannot be reached or refuses.
    ///
    /// # Cancel safety
    /// Cancel safe.
    #[cfg(any(feature = "demo", test))]
    pub(crate) async fn rows(&self) -> Result<HashMap<Key, Count>, Error> {
        let client = self.pool.get().await?;
        let statement = format!("SELECT page, edge, views, sequence FROM {}", self.name);
        let rows = client.query_typed(&statement, &[]).await?;
        client.give_back();
        rows.iter().map(counter).collect()
    }
}

fn counter(row: &Row) -> Result<(Key, Count), Error> {
    let (page, edge): (i64, i16) = (row.try_get(0)?, row.try_get(1)?);
    let (views, sequence): (i64, i64) = (row.try_get(2)?, row.try_get(3)?);
    let key = Key { page: page.cast_unsigned(), edge: edge as u8 };
    Ok((key, Count { views: views.cast_unsigned(), sequence: sequence.cast_unsigned() }))
}

/// What a failed statement means for the `count` writes in it.
fn sink_error(error: Error, count: usize) -> SinkError {
    // The connection was lost: the server may have executed the statement.
    let Some(refusal) = error.as_db_error() else { return SinkError::unknown(error) };
    // A row that breaks a constraint (class 23) or does not fit its column (22) is never taken.
    // A statement of several rows does not say which: the cache halves it until it has one.
    let class = refusal.code().code().get(..2);
    if count == 1 && matches!(class, Some("22" | "23")) {
        return SinkError::rejected(error);
    }
    SinkError::not_applied(error)
}

#[async_trait]
impl Sink<Key, Count> for Table {
    async fn write(&self, writes: &[Write<Key, Count>]) -> Vec<Result<(), SinkError>> {
        let written = self.upsert(writes).await;
        writes.iter().map(|_| written.clone()).collect()
    }
}

#[async_trait]
impl Source<Key, Count> for Table {
    async fn load(&self, keys: &[Key]) -> Vec<Result<Loaded<Count>, SourceError>> {
        match self.select(keys).await {
            Ok(found) => keys.iter().map(|key| Ok(Loaded::from(found.get(key).copied()))).collect(),
            Err(error) => {
                let error = SourceError::new(error);
                keys.iter().map(|_| Err(error.clone())).collect()
            }
        }
    }

    fn max_batch(&self) -> usize {
        MAX_LOADED
    }
}

/// The latencies of the last flushes, the oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(std::collections::VecDeque<Duration>);

impl Latencies {
    fn record(&mut self, latency: Duration) {
        if self.0.len() == LATENCIES {
            self.0.pop_front();
        }
        self.0.push_back(latency);
    }

    /// The latency that a share `q` (0 to 1) of the flushes did not exceed; zero before the first.
    pub(crate) fn quantile(&self, q: f64) -> Duration {
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let at = (sorted.len() as f64 * q).ceil() as usize;
        sorted.get(at.saturating_sub(1)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(plain: &impl Plain) -> Vec<u8> {
        let mut out = Vec::new();
        plain.write(&mut out);
        out
    }

    #[test]
    fn the_journal_gives_back_what_was_written() {
        let key = Key { page: 0x0102_0304_0506_0708, edge: 9 };
        assert_eq!(bytes(&key), [8, 7, 6, 5, 4, 3, 2, 1, 9]);
        assert_eq!(Key::read(&bytes(&key)), Some(key));
        let count = Count { views: 5, sequence: 6 };
        assert_eq!(bytes(&count), [1, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Count::read(&bytes(&count)), Some(count));
    }

    #[test]
    fn other_bytes_are_neither_key_nor_count() {
        let (key, count) = (Key { page: 1, edge: 2 }, Count { views: 3, sequence: 4 });
        for length in 0..20 {
            let cut = |mut whole: Vec<u8>| {
                whole.resize(length, 1);
                whole
            };
            assert_eq!(Key::read(&cut(bytes(&key))).is_some(), length == 9, "{length}");
            assert_eq!(Count::read(&cut(bytes(&count))).is_some(), length == 17, "{length}");
        }
        let mut other_form = bytes(&count);
        other_form[0] = 2;
        assert_eq!(Count::read(&other_form), None);
    }

    #[test]
    fn quantiles_are_of_the_last_flushes() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), Duration::ZERO);
        (1..=1_000).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        assert_eq!(latencies.quantile(0.5), Duration::from_millis(744 + 128));
        assert_eq!(latencies.quantile(1.0), Duration::from_secs(1));
    }

    async fn table(name: &str) -> Table {
        let url = std::env::var("DATABASE_URL").expect("these tests need PostgreSQL");
        let table = Table::new(&url, &format!("{name}_{}", std::process::id())).unwrap();
        table.create().await.unwrap();
        table
    }

    fn write(page: u64, views: u64, sequence: u64) -> Write<Key, Count> {
        Write::new(Key { page, edge: 1 }, Some(Count { views, sequence }))
    }

    #[tokio::test]
    #[ignore = "needs postgresql"]
    async fn a_late_statement_changes_nothing() {
        let table = table("late").await;
        for write in [write(1, 50, 5), write(1, 30, 3), write(1, 40, 5)] {
            assert!(table.write(&[write]).await[0].is_ok());
        }
        let key = Key { page: 1, edge: 1 };
        let held = Count { views: 50, sequence: 5 };
        assert_eq!(table.rows().await.unwrap(), [(key, held)].into());
        let absent = Key { page: 2, edge: 1 };
        let loaded = table.load(&[absent, key]).await;
        assert_eq!(loaded[0].as_ref().unwrap(), &Loaded::absent());
        assert_eq!(loaded[1].as_ref().unwrap(), &Loaded::value(held));
        table.execute(&format!("DROP TABLE {}", table.name)).await.unwrap();
    }

    #[tokio::test]
    #[ignore = "needs postgresql"]
    async fn a_row_that_breaks_a_constraint_is_rejected_and_alone() {
        let table = table("broken").await;
        let name = &table.name;
        let rule = format!("ALTER TABLE {name} ADD CHECK (page <> 13)");
        table.execute(&rule).await.unwrap();
        // Of several rows one is broken, and which one is not known: none is applied.
        let answers = table.write(&[write(1, 1, 1), write(13, 1, 1)]).await;
        for answer in answers {
            let error = answer.unwrap_err();
            assert!(!error.is_rejection() && error.outcome == voussoir_cache::Outcome::NotApplied);
        }
        assert!(table.rows().await.unwrap().is_empty());
        assert!(table.write(&[write(13, 1, 1)]).await.remove(0).unwrap_err().is_rejection());
        assert!(table.write(&[write(1, 1, 1)]).await[0].is_ok());
        // A table that is away may come back.
        table.execute(&format!("DROP TABLE {name}")).await.unwrap();
        let error = table.write(&[write(1, 1, 2)]).await.remove(0).unwrap_err();
        assert!(!error.is_rejection(), "{error}");
    }
}
