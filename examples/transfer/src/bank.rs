//! Banks, accounts and transfers, and all SQL on them.
//!
//! A transfer writes a row under its id into each bank that it touches, in the transaction that
//! changes the accounts. So a transfer that is asked for again is found, and one that is in doubt
//! makes the second wait: the primary key does it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use crate::Error;

/// The most that an account holds, and that one transfer moves.
pub(crate) const MAX_CENTS: i64 = 1_000_000_000_000_000;
/// The longest id of a transfer.
const MAX_ID_BYTES: usize = 64;

/// A bank is a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Bank {
    East,
    West,
}

impl Bank {
    pub(crate) const ALL: [Self; 2] = [Self::East, Self::West];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::East => "east",
            Self::West => "west",
        }
    }

    /// The environment variable with the address of its database.
    pub(crate) fn variable(self) -> &'static str {
        match self {
            Self::East => "EAST_DATABASE_URL",
            Self::West => "WEST_DATABASE_URL",
        }
    }
}

impl fmt::Display for Bank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An account, spelled `east/17`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Account {
    pub(crate) bank: Bank,
    /// From 0.
    pub(crate) number: i64,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bank, self.number)
    }
}

impl FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (bank, number) = text.split_once('/')?;
            let bank = Bank::ALL.into_iter().find(|one| one.name() == bank)?;
            let number = number.parse().ok().filter(|number| *number >= 0)?;
            Some(Self { bank, number })
        };
        // Only the spelling of `Display`, so that one account has one name.
        let account = parse().filter(|account| account.to_string() == text);
        account.ok_or_else(|| format!("`{text}` is no account: expected one such as east/17"))
    }
}

impl TryFrom<String> for Account {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Account> for String {
    fn from(account: Account) -> Self {
        account.to_string()
    }
}

/// What is asked for: the body of `POST /transfers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Transfer {
    pub(crate) from: Account,
    pub(crate) to: Account,
    /// From 1 to [`MAX_CENTS`].
    pub(crate) cents: i64,
}

/// What a transfer does in one bank: accounts by number, and what is added to each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) bank: Bank,
    pub(crate) moves: Vec<(i64, i64)>,
}

impl Transfer {
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !(1..=MAX_CENTS).contains(&self.cents) {
            return Err(format!("cents {}: must be from 1 to {MAX_CENTS}", self.cents));
        }
        if self.from == self.to {
            return Err(format!("{} to itself: must be two accounts", self.from));
        }
        Ok(())
    }

    /// Banks and accounts in one order for all transfers: no two wait for each other, in one bank
    /// or over both.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let mut moves = [(self.from, -self.cents), (self.to, self.cents)];
        moves.sort_unstable();
        let part = |bank| {
            let moves = moves.iter().filter(|(account, _)| account.bank == bank);
            let moves = moves.map(|(account, cents)| (account.number, *cents)).collect();
            Part { bank, moves }
        };
        Bank::ALL.map(part).into_iter().filter(|part| !part.moves.is_empty()).collect()
    }
}

/// # Errors
/// The rule that it breaks.
pub(crate) fn check_id(id: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=MAX_ID_BYTES).contains(&id.len()) && id.chars().all(fits) {
        return Ok(());
    }
    Err(format!("the Idempotency-Key must have 1 to {MAX_ID_BYTES} of a-z, A-Z, 0-9, -, _ and ."))
}

/// Why a part was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartError {
    /// The transfer was done before.
    #[error("the transfer was done before")]
    Before,
    #[error("this Idempotency-Key belongs to another transfer")]
    Mismatch,
    #[error("{0} does not exist")]
    NoAccount(Account),
    #[error("{0} does not hold that much")]
    NoMoney(Account),
    #[error("{0} would hold more than {MAX_CENTS} cents")]
    Full(Account),
    /// An earlier attempt with this id is in doubt.
    #[error("an earlier attempt of this transfer is not decided yet")]
    InDoubt,
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
}

/// Does one part of a transfer inside the caller's transaction.
///
/// # Errors
/// [`PartError`]: the caller's transaction must not commit.
///
/// # Cancel safety
/// The transaction must not commit then.
pub(crate) async fn work(
    client: &Client,
    id: &str,
    transfer: &Transfer,
    part: &Part,
) -> Result<(), PartError> {
    let (from, to) = (transfer.from.to_string(), transfer.to.to_string());
    // Waits for an earlier attempt that is prepared.
    let insert = "INSERT INTO transfers (id, source, target, cents) VALUES ($1, $2, $3, $4) \
                  ON CONFLICT (id) DO NOTHING";
    let inserted = client.execute(insert, &[&id, &from, &to, &transfer.cents]).await;
    if inserted.map_err(in_doubt)? == 0 {
        let before = "SELECT 1 FROM transfers WHERE id = $1 AND source = $2 AND target = $3 \
                      AND cents = $4";
        let same = client.query_opt(before, &[&id, &from, &to, &transfer.cents]).await?;
        return Err(same.map_or(PartError::Mismatch, |_| PartError::Before));
    }
    for (number, cents) in &part.moves {
        let add = "UPDATE accounts SET cents = cents + $2 \
                   WHERE number = $1 AND cents + $2 BETWEEN 0 AND $3";
        if client.execute(add, &[number, cents, &MAX_CENTS]).await? == 0 {
            let account = Account { bank: part.bank, number: *number };
            let exists = "SELECT 1 FROM accounts WHERE number = $1";
            return Err(match client.query_opt(exists, &[number]).await? {
                None => PartError::NoAccount(account),
                Some(_) if *cents < 0 => PartError::NoMoney(account),
                Some(_) => PartError::Full(account),
            });
        }
    }
    Ok(())
}

/// The insert ended by its time: another attempt with its id held it up.
fn in_doubt(error: tokio_postgres::Error) -> PartError {
    match error.code() {
        Some(&(SqlState::LOCK_NOT_AVAILABLE | SqlState::QUERY_CANCELED)) => PartError::InDoubt,
        _ => PartError::Postgres(error),
    }
}

/// Creates tables and accounts where they do not exist.
///
/// # Errors
/// The database cannot be asked, or refuses.
///
/// # Cancel safety
/// Dropped, it may have created some; call it again.
pub(crate) async fn create(url: &str, accounts: i64, cents: i64) -> Result<(), Error> {
    let (client, connection) = url.parse::<Config>()?.connect(NoTls).await?;
    // Ends with the client.
    tokio::spawn(connection);
    let tables = format!(
        "CREATE TABLE IF NOT EXISTS accounts (number BIGINT PRIMARY KEY, opened BIGINT NOT NULL, \
         cents BIGINT NOT NULL CHECK (cents BETWEEN 0 AND {MAX_CENTS})); \
         CREATE TABLE IF NOT EXISTS transfers (id TEXT PRIMARY KEY, source TEXT NOT NULL, \
         target TEXT NOT NULL, cents BIGINT NOT NULL CHECK (cents > 0), \
         at TIMESTAMPTZ NOT NULL DEFAULT now())"
    );
    client.batch_execute(&tables).await?;
    let open = "INSERT INTO accounts (number, opened, cents) SELECT number, $2, $2 FROM \
                generate_series(0::BIGINT, $1::BIGINT - 1) number ON CONFLICT DO NOTHING";
    client.execute(open, &[&accounts, &cents]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(from: &str, to: &str, cents: i64) -> Transfer {
        Transfer { from: from.parse().unwrap(), to: to.parse().unwrap(), cents }
    }

    #[test]
    fn an_account_has_one_spelling() {
        for name in ["east/0", "west/17", "east/9223372036854775807"] {
            assert_eq!(name.parse::<Account>().unwrap().to_string(), name);
        }
        let wrong = ["", "east", "east/", "north/1", "east/-1", "east/01", "east/+1", "East/1"];
        for name in wrong.into_iter().chain(["east/9223372036854775808", "east/1/2"]) {
            assert!(name.parse::<Account>().unwrap_err().contains("is no account"), "{name}");
        }
    }

    #[test]
    fn all_transfers_take_banks_and_accounts_in_one_order() {
        let moves = |transfer: Transfer| -> Vec<(Bank, Vec<(i64, i64)>)> {
            transfer.parts().into_iter().map(|part| (part.bank, part.moves)).collect()
        };
        let (east, west) = (Bank::East, Bank::West);
        let back = transfer("west/7", "east/3", 5);
        assert_eq!(moves(back), [(east, vec![(3, 5)]), (west, vec![(7, -5)])]);
        let forth = transfer("east/3", "west/7", 5);
        assert_eq!(moves(forth), [(east, vec![(3, -5)]), (west, vec![(7, 5)])]);
        // In one bank there is one part, also in the order of the accounts.
        assert_eq!(moves(transfer("west/9", "west/2", 5)), [(west, vec![(2, 5), (9, -5)])]);
    }

    #[test]
    fn a_transfer_between_one_account_or_of_nothing_breaks_a_rule() {
        assert_eq!(transfer("east/1", "east/2", MAX_CENTS).check(), Ok(()));
        for wrong in [transfer("east/1", "east/1", 1), transfer("east/1", "west/1", 0)] {
            assert!(wrong.check().unwrap_err().contains("must be"), "{wrong:?}");
        }
        assert!(transfer("east/1", "west/1", -1).check().is_err());
        assert!(transfer("east/1", "west/1", MAX_CENTS + 1).check().is_err());
        for id in ["", "a b", "a'b", &"x".repeat(65)] {
            assert!(check_id(id).is_err(), "{id}");
        }
        assert_eq!(check_id(&"x".repeat(64)), Ok(()));
    }
}
