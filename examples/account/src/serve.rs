//! A node as a process: commands come from the standard input, one a line, and each is answered by
//! one line.
//!
//! ```text
//! deposit KEY CENTS     more money; answered with the balance
//! withdraw KEY CENTS    less money: paid, or declined because there is not as much
//! balance KEY           the balance
//! settle                what became of a withdrawal whose outcome was not known
//! cut ID ...            no call reaches these nodes any more
//! heal                  every node is reached
//! ```
//!
//! An answer begins with `=`, or with `!` and says what failed. The end of the input ends the node.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, BufReader};
use voussoir_quorum::Bytes;

use crate::Error;
use crate::account::Accounts;
use crate::args::Serve;
use crate::cluster::Server;

pub(crate) async fn run(args: &Serve) -> Result<(), Error> {
    let server = Server::start(args).await?;
    let accounts = Arc::new(Accounts::new(&server)?);
    println!("= node {} is ready", args.id);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    // Ends with the input, or with an error.
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?,
            error = server.journal.failed() => {
                return Err(format!("the journal has failed: {error}").into());
            }
        };
        let Some(line) = line else { break };
        match answer(&server, &accounts, &line).await {
            Ok(answer) => println!("= {answer}"),
            Err(error) => println!("! {error}"),
        }
    }
    drop(accounts);
    server.stop().await;
    Ok(())
}

async fn answer(server: &Server, accounts: &Arc<Accounts>, line: &str) -> Result<String, Error> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let key = |key: &str| Bytes::copy_from_slice(key.as_bytes());
    match &words[..] {
        ["deposit", name, cents] => {
            Ok(accounts.deposit(&key(name), cents.parse()?).await?.to_string())
        }
        ["withdraw", name, cents] => {
            Ok(accounts.withdraw(&key(name), cents.parse()?).await?.to_string())
        }
        ["balance", name] => Ok(accounts.balance(&key(name)).await?.to_string()),
        ["settle"] => Ok(accounts.settle().await?.to_string()),
        ["cut", ids @ ..] => {
            let ids: BTreeSet<u64> = ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
            server.gate.cut(ids);
            Ok("cut".to_owned())
        }
        ["heal"] => {
            server.gate.cut(BTreeSet::new());
            Ok("healed".to_owned())
        }
        _ => Err(format!("no command: {line}").into()),
    }
}
