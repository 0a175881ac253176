//! What the databases hold, compared with itself and with the ledger.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Client, Config, NoTls};

use super::load::Ledger;
use crate::Error;
use crate::bank::{Bank, Transfer};

pub(super) async fn connect(url: &str) -> Result<Client, Error> {
    let (client, connection) = url.parse::<Config>()?.connect(NoTls).await?;
    // Ends with the client.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// Prepared transactions of both banks.
pub(super) async fn prepared(urls: &[String; 2]) -> Result<i64, Error> {
    let mut all = 0;
    for url in urls {
        let count =
            "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()::TEXT";
        all += connect(url).await?.query_one(count, &[]).await?.get::<_, i64>(0);
    }
    Ok(all)
}

/// The ids of the prepared transactions of both banks.
pub(super) async fn prepared_ids(urls: &[String; 2]) -> Result<HashSet<String>, Error> {
    let mut ids = HashSet::new();
    for url in urls {
        let list = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()::TEXT";
        let rows = connect(url).await?.query(list, &[]).await?;
        ids.extend(rows.into_iter().map(|row| row.get::<_, String>(0)));
    }
    Ok(ids)
}

/// Accounts that nobody else can change now, and locks on tables that prepared transactions hold.
pub(super) async fn blocked(urls: &[String; 2]) -> Result<(i64, i64), Error> {
    let (mut accounts, mut locks) = (0, 0);
    for url in urls {
        let client = connect(url).await?;
        let free = "SELECT (SELECT count(*) FROM accounts) - count(*) FROM \
                    (SELECT FROM accounts FOR UPDATE SKIP LOCKED) free";
        accounts += client.query_one(free, &[]).await?.get::<_, i64>(0);
        // Those of a prepared transaction have no process.
        let held = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database \
                    WHERE pid IS NULL AND datname = current_database()";
        locks += client.query_one(held, &[]).await?.get::<_, i64>(0);
    }
    Ok((accounts, locks))
}

/// What one bank holds.
struct Books {
    cents: i64,
    opened: i64,
    /// Accounts that do not hold what they were opened with and what the transfers moved.
    wrong: i64,
    /// Number and digest of the transfers that touch both banks.
    shared: (i64, String),
}

async fn books(bank: Bank, url: &str) -> Result<Books, Error> {
    let client = connect(url).await?;
    let sums = "SELECT sum(cents)::BIGINT, sum(opened)::BIGINT FROM accounts";
    let sums = client.query_one(sums, &[]).await?;
    let wrong = "WITH moved AS (SELECT target AS account, cents FROM transfers \
                 UNION ALL SELECT source, -cents FROM transfers), \
                 sums AS (SELECT account, sum(cents) AS moved FROM moved GROUP BY account) \
                 SELECT count(*) FROM accounts LEFT JOIN sums ON account = $1 || '/' || number \
                 WHERE cents <> opened + coalesce(moved, 0)";
    let wrong = client.query_one(wrong, &[&bank.name()]).await?.get(0);
    let shared = "SELECT count(*), \
                  coalesce(sum(hashtextextended(concat_ws(' ', id, source, target, cents), 0)), 0) \
                  ::TEXT FROM transfers \
                  WHERE split_part(source, '/', 1) <> split_part(target, '/', 1)";
    let shared = client.query_one(shared, &[]).await?;
    let shared = (shared.get(0), shared.get(1));
    Ok(Books { cents: sums.get(0), opened: sums.get(1), wrong, shared })
}

/// Compares the banks with each other. Nothing may be under way. Returns the money that there is.
///
/// # Errors
/// Money was made or lost, or a transfer was done in one bank and not in the other.
pub(super) async fn compare_banks(urls: &[String; 2]) -> Result<i64, Error> {
    let (east, west) = tokio::try_join!(books(Bank::East, &urls[0]), books(Bank::West, &urls[1]))?;
    let (cents, opened) = (east.cents + west.cents, east.opened + west.opened);
    if cents != opened {
        return Err(format!("the accounts hold {cents} cents, not {opened}").into());
    }
    if east.shared != west.shared {
        let (east, west) = (east.shared.0, west.shared.0);
        return Err(format!(
            "{east} transfers between the banks in the east, {west} others in the \
                            west"
        )
        .into());
    }
    let wrong = east.wrong + west.wrong;
    if wrong > 0 {
        return Err(format!("{wrong} accounts differ from the sum of their transfers").into());
    }
    Ok(cents)
}

/// Compares both banks with what the clients were told.
///
/// # Errors
/// A transfer that was acknowledged is missing, or one that was not is there.
pub(super) async fn compare_ledger(urls: &[String; 2], ledger: &Ledger) -> Result<(), Error> {
    for bank in Bank::ALL {
        let all = "SELECT id, source, target, cents FROM transfers";
        let rows = connect(&urls[bank as usize]).await?.query(all, &[]).await?;
        let row = |row: tokio_postgres::Row| -> Result<(String, Transfer), Error> {
            let (from, to): (String, String) = (row.get(1), row.get(2));
            Ok((row.get(0), Transfer { from: from.parse()?, to: to.parse()?, cents: row.get(3) }))
        };
        let rows: HashMap<String, Transfer> =
            rows.into_iter().map(row).collect::<Result<_, _>>()?;
        if let Some(difference) = difference(bank, &rows, ledger) {
            return Err(difference.into());
        }
    }
    Ok(())
}

/// The first transfer in which a bank and the ledger differ.
fn difference(bank: Bank, rows: &HashMap<String, Transfer>, ledger: &Ledger) -> Option<String> {
    let touches = |transfer: &Transfer| transfer.from.bank == bank || transfer.to.bank == bank;
    let ours = ledger.done.iter().filter(|(_, transfer)| touches(transfer));
    for (id, transfer) in ours {
        if rows.get(id) != Some(transfer) {
            let found = rows.get(id);
            return Some(format!("{id}: acknowledged {transfer:?}, in the {bank} {found:?}"));
        }
    }
    let is_known = |id: &String| ledger.done.contains_key(id);
    let (id, transfer) = rows.iter().find(|(id, _)| !is_known(id))?;
    let told = if ledger.refused.contains(id) { "refused" } else { "never acknowledged" };
    Some(format!("{id}: {told}, in the {bank} {transfer:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_changed_and_unknown_transfers_are_differences() {
        let transfer = |from: &str, to: &str, cents| Transfer {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            cents,
        };
        let mut ledger = Ledger::default();
        ledger.done.insert("a".into(), transfer("east/1", "west/1", 5));
        ledger.done.insert("b".into(), transfer("west/1", "west/2", 5));
        ledger.refused.insert("c".into());
        let west = ledger.done.clone();
        let mut east = west.clone();
        east.remove("b");
        assert_eq!(difference(Bank::West, &west, &ledger), None);
        assert_eq!(difference(Bank::East, &east, &ledger), None);
        let said = |rows: &HashMap<_, _>| difference(Bank::East, rows, &ledger).unwrap();
        assert!(said(&HashMap::new()).starts_with("a: acknowledged"));
        let mut changed = east.clone();
        changed.insert("a".into(), transfer("east/1", "west/1", 6));
        assert!(said(&changed).starts_with("a: acknowledged"));
        let mut more = east.clone();
        more.insert("c".into(), transfer("east/1", "west/1", 6));
        assert!(said(&more).starts_with("c: refused, in the east"));
        let mut more = east.clone();
        more.insert("d".into(), transfer("east/1", "west/1", 6));
        assert!(said(&more).starts_with("d: never acknowledged"));
    }
}
