//! A node as a process: commands come from the standard input, one a line, and each is answered by
//! one line.
//!
//! ```text
//! like KEY      one more; answered with the count that this node knows
//! unlike KEY    one less
//! show KEY      the count that this node knows
//! cut ID ...    no call reaches these nodes any more
//! heal          every node is reached
//! ```
//!
//! An answer begins with `=`, or with `!` and says what failed. The end of the input ends the node.

use std::collections::BTreeSet;

use tokio::io::{AsyncBufReadExt, BufReader};
use voussoir_quorum::Bytes;

use crate::Error;
use crate::args::Serve;
use crate::cluster::Server;
use crate::likes::Likes;

pub(crate) async fn run(args: &Serve) -> Result<(), Error> {
    let server = Server::start(args).await?;
    let likes = Likes::new(&server).await?;
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
        match answer(&server, &likes, &line).await {
            Ok(answer) => println!("= {answer}"),
            Err(error) => println!("! {error}"),
        }
    }
    drop(likes);
    server.stop().await;
    Ok(())
}

async fn answer(server: &Server, likes: &Likes, line: &str) -> Result<String, Error> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let key = |key: &str| Bytes::copy_from_slice(key.as_bytes());
    match &words[..] {
        ["like", name] => Ok(likes.add(&key(name), 1).await?.to_string()),
        ["unlike", name] => Ok(likes.add(&key(name), -1).await?.to_string()),
        ["show", name] => Ok(likes.show(&key(name)).await?.to_string()),
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
