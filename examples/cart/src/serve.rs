//! A node as a process: commands come from the standard input, one a line, and each is answered by
//! one line.
//!
//! ```text
//! add CART ITEM N     N more of an item; answered with how many carts were merged
//! remove CART ITEM    all of an item; answered with how many were removed, and of how many carts
//! show CART           what the cart holds: ITEM N, ...
//! lag                 for how long the other region may lack a change of this node, in ms
//! cut ID ...          no call reaches these nodes any more
//! heal                every node is reached
//! ```
//!
//! An answer begins with `=`, or with `!` and says what failed. The end of the input ends the node.

use std::collections::BTreeSet;

use tokio::io::{AsyncBufReadExt, BufReader};
use voussoir_quorum::Bytes;

use crate::Error;
use crate::args::Serve;
use crate::cart::{Carts, Items};
use crate::cluster::Server;

pub(crate) async fn run(args: &Serve) -> Result<(), Error> {
    let server = Server::start(args).await?;
    let carts = Carts::new(&server).await?;
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
        match answer(&server, &carts, &line).await {
            Ok(answer) => println!("= {answer}"),
            Err(error) => println!("! {error}"),
        }
    }
    drop(carts);
    server.stop().await;
    Ok(())
}

async fn answer(server: &Server, carts: &Carts, line: &str) -> Result<String, Error> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let bytes = |word: &str| Bytes::copy_from_slice(word.as_bytes());
    match &words[..] {
        ["add", cart, item, n] => {
            let added = carts.add(&bytes(cart), &bytes(item), n.parse()?).await?;
            Ok(format!("added {n} merged {}", added.merged))
        }
        ["remove", cart, item] => {
            let removed = carts.remove(&bytes(cart), &bytes(item)).await?;
            Ok(format!("removed {} merged {}", removed.before, removed.merged))
        }
        ["show", cart] => Ok(text(&carts.show(&bytes(cart)).await?)),
        ["lag"] => {
            let lags = server.region.stats().into_iter().map(|other| other.lag.as_millis());
            Ok(lags.max().unwrap_or(0).to_string())
        }
        ["cut", ids @ ..] => {
            let ids: BTreeSet<u64> = ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
            *server.cut.lock() = ids;
            Ok("cut".to_owned())
        }
        ["heal"] => {
            server.cut.lock().clear();
            Ok("healed".to_owned())
        }
        _ => Err(format!("no command: {line}").into()),
    }
}

fn text(items: &Items) -> String {
    let item = |(item, n): (&Bytes, &u64)| format!("{} {n}", String::from_utf8_lossy(item));
    items.iter().map(item).collect::<Vec<_>>().join(", ")
}
