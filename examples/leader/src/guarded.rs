//! The ledger behind a socket, for processes that lead in turn, and its client.
//!
//! A request is a line of text: `enter TERM NODE` or `append TERM NODE NUMBER TEXT`. The answer is
//! `ok NUMBER`, `stale LATEST`, or `failed REASON`.

use std::io::{self, BufRead, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use voussoir_lock::FencingToken;

use crate::Error;
use crate::ledger::{Author, Ledger, Refused};

/// The longest request, in bytes.
const MAX_REQUEST_BYTES: u64 = 4096;
/// Connections at a time. Further ones wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may be silent. A step is much shorter, and a machine that lost its power
/// in one leaves its connection open for ever.
const IDLE: Duration = Duration::from_secs(30);
/// How long the client waits for the ledger to accept, and to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What has happened at the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The author is about to compute and add a line.
    Entered(Author),
    Added(Author),
    /// The author is older than one that has entered. It wanted to add a line, or only to enter.
    Refused {
        author: Author,
        is_line: bool,
    },
}

/// Told of each event before it is answered. It may block.
pub(crate) type Observer = Arc<dyn Fn(Event) + Send + Sync>;

/// Serves a ledger file until the process ends.
pub(crate) async fn run(listen: SocketAddr, file: &Path) -> Result<(), Error> {
    let ledger = Ledger::open(file)?;
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    tracing::info!(address = %listener.local_addr()?, "the ledger serves");
    let observer = |event| match event {
        Event::Refused { author: Author { term, node }, .. } => {
            tracing::warn!(term, node, "a late write is refused");
        }
        event => tracing::debug!(?event),
    };
    serve(listener, ledger, Arc::new(observer)).await;
    Ok(())
}

/// Answers connections until it is dropped.
pub(crate) async fn serve(listener: TcpListener, ledger: Ledger, observer: Observer) {
    let (ledger, room) = (Arc::new(Mutex::new(ledger)), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    // Ends: it is dropped.
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (ledger, observer) = (Arc::clone(&ledger), Arc::clone(&observer));
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, ledger, observer).await {
                        tracing::debug!(%error, "a connection has ended");
                    }
                    drop(permit);
                });
            }
            // Too many open files, for example: it may pass.
            Err(error) => {
                tracing::warn!(%error, "no connection is accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(
    stream: tokio::net::TcpStream,
    ledger: Arc<Mutex<Ledger>>,
    observer: Observer,
) -> Result<(), Error> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = tokio::io::BufReader::new(reader);
    // Ends: the client closes the connection, is silent, or sends what is no request.
    loop {
        let mut line = String::new();
        let mut request = (&mut reader).take(MAX_REQUEST_BYTES);
        timeout(IDLE, request.read_line(&mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let Some(request) = Request::parse(&line) else {
            return Err(format!("`{}` is no request", line.escape_debug()).into());
        };
        let (ledger, observer) = (Arc::clone(&ledger), Arc::clone(&observer));
        // It waits for the disk.
        let answer = tokio::task::spawn_blocking(move || request.apply(&ledger, &observer));
        writer.write_all(answer.await?.as_bytes()).await?;
    }
}

struct Request {
    author: Author,
    /// Number and text of the line to add.
    line: Option<(u64, String)>,
}

impl Request {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_suffix('\n')?.splitn(5, ' ');
        let verb = words.next()?;
        let author =
            Author { term: words.next()?.parse().ok()?, node: words.next()?.parse().ok()? };
        let line = match verb {
            "enter" => None,
            "append" => Some((words.next()?.parse().ok()?, words.next()?.to_owned())),
            _ => return None,
        };
        Some(Self { author, line })
    }

    fn apply(&self, ledger: &Mutex<Ledger>, observer: &Observer) -> String {
        let (author, is_line) = (self.author, self.line.is_some());
        // The guard ends with this statement: the observer may block.
        let done = match &self.line {
            None => ledger.lock().enter(author),
            Some((number, text)) => ledger.lock().append(author, *number, text).map(|()| *number),
        };
        match &done {
            Ok(_) if is_line => observer(Event::Added(author)),
            Ok(_) => observer(Event::Entered(author)),
            Err(Refused::Stale(_)) => observer(Event::Refused { author, is_line }),
            Err(_) => {}
        }
        match done {
            Ok(number) => format!("ok {number}\n"),
            Err(Refused::Stale(stale)) => format!("stale {}\n", stale.latest),
            Err(error) => format!("failed {error}\n"),
        }
    }
}

/// A client of the ledger. It blocks its thread.
pub(crate) struct Client {
    stream: io::BufReader<TcpStream>,
    author: Author,
}

/// Why the ledger did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    /// A newer leader has entered. Final for this term; nothing was written.
    #[error("term {term} is refused: term {latest} has entered")]
    Stale { term: u64, latest: u64 },
    /// Nothing was written.
    #[error("the ledger failed: {0}")]
    Failed(String),
    /// The line may have been written: enter again, which says what the last line is.
    #[error("no answer of the ledger: {0}")]
    Unknown(#[from] io::Error),
}

impl Client {
    /// Connects for one term.
    pub(crate) fn connect(
        ledger: SocketAddr,
        token: FencingToken,
        node: u64,
    ) -> Result<Self, LedgerError> {
        let stream = TcpStream::connect_timeout(&ledger, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let author = Author { term: token.get(), node };
        Ok(Self { stream: io::BufReader::new(stream), author })
    }

    /// Shuts out all older terms, and returns the number of the last line.
    pub(crate) fn enter(&mut self) -> Result<u64, LedgerError> {
        let Author { term, node } = self.author;
        self.ask(&format!("enter {term} {node}\n"))
    }

    /// Adds a line; `text` is one line.
    pub(crate) fn append(&mut self, number: u64, text: &str) -> Result<u64, LedgerError> {
        let Author { term, node } = self.author;
        self.ask(&format!("append {term} {node} {number} {text}\n"))
    }

    fn ask(&mut self, request: &str) -> Result<u64, LedgerError> {
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        let unknown = || io::Error::other(format!("`{}` is no answer", answer.escape_debug()));
        let (word, rest) = answer.trim_end().split_once(' ').ok_or_else(unknown)?;
        let number = || rest.parse::<u64>().map_err(|_| unknown());
        match word {
            "ok" => Ok(number()?),
            "stale" => Err(LedgerError::Stale { term: self.author.term, latest: number()? }),
            "failed" => Err(LedgerError::Failed(rest.to_owned())),
            _ => Err(unknown().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    /// Machines that lost their power leave connections that nobody closes.
    #[tokio::test(start_paused = true)]
    async fn silent_connections_shut_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&folder.path().join("ledger")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, ledger, Arc::new(|_| {})));
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"enter 1 1\n").await.unwrap();
        let mut answer = String::new();
        let mut reader = tokio::io::BufReader::new(&mut client);
        let read = timeout(2 * IDLE, reader.read_line(&mut answer)).await;
        assert!(read.is_ok(), "all {MAX_CONNECTIONS} places are taken for ever");
        assert_eq!(answer, "ok 0\n");
    }
}
