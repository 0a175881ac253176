//! The PostgreSQL server of a demonstration: the one of `DATABASE_URL`, or one of its own that ends
//! with this process.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::Error;

/// Finds or fetches a server, and runs it. `sh` gets the script as an argument.
const SCRIPT: &str = include_str!("postgres.sh");
/// The first start may have to fetch the server.
const START_WAIT: Duration = Duration::from_secs(600);
/// Any other command.
const COMMAND_WAIT: Duration = Duration::from_secs(90);

/// A PostgreSQL server.
#[derive(Debug)]
pub(crate) struct Postgres {
    url: String,
    own: Option<Own>,
}

/// A server of this process. Its script ends it when `commands` is closed, by whatever end of this
/// process.
#[derive(Debug)]
struct Own {
    script: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    data: tempfile::TempDir,
}

impl Postgres {
    /// The server at `url`, or a server of its own, which it starts.
    ///
    /// # Errors
    /// No server could be found, fetched or started.
    pub(crate) async fn start(url: Option<String>) -> Result<Self, Error> {
        if let Some(url) = url {
            return Ok(Self { url, own: None });
        }
        let data = tempfile::Builder::new().prefix("postgres-").tempdir()?;
        let mut script = Command::new("sh")
            .args(["-c", SCRIPT, "postgres.sh"])
            .arg(data.path())
            .arg(unpacked()?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for this process; the script then sees the end of its input.
            .process_group(0)
            .spawn()?;
        let commands = script.stdin.take().ok_or("the script has no standard input")?;
        let answers = script.stdout.take().ok_or("the script has no standard output")?;
        let answers = BufReader::new(answers).lines();
        let url = format!("host={} user=postgres dbname=postgres", data.path().display());
        let mut own = Own { script, commands, answers, data };
        own.command("start", START_WAIT).await?;
        Ok(Self { url, own: Some(own) })
    }

    /// The connection string.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Where the server is, for the user.
    pub(crate) fn description(&self) -> String {
        match &self.own {
            Some(own) => format!("a PostgreSQL of its own in {}", own.data.path().display()),
            None => "the PostgreSQL of DATABASE_URL".to_owned(),
        }
    }

    /// Whether the server may be stopped: it belongs to this process.
    pub(crate) fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Ends the server as a crash would. Does nothing to a server that is not its own.
    ///
    /// # Errors
    /// The server does not end.
    pub(crate) async fn crash(&mut self) -> Result<(), Error> {
        match &mut self.own {
            Some(own) => own.command("crash", COMMAND_WAIT).await,
            None => Ok(()),
        }
    }

    /// Starts the server again after a crash.
    ///
    /// # Errors
    /// The server does not start.
    pub(crate) async fn restart(&mut self) -> Result<(), Error> {
        match &mut self.own {
            Some(own) => own.command("start", COMMAND_WAIT).await,
            None => Ok(()),
        }
    }

    /// Stops a server of its own, and waits until its data has been removed.
    ///
    /// # Errors
    /// The script does not end.
    pub(crate) async fn end(self) -> Result<(), Error> {
        if let Some(Own { mut script, commands, data, .. }) = self.own {
            drop(commands);
            timeout(COMMAND_WAIT, script.wait()).await??;
            // The script has removed it.
            let _ = data.close();
        }
        Ok(())
    }
}

impl Own {
    async fn command(&mut self, command: &str, wait: Duration) -> Result<(), Error> {
        self.commands.write_all(format!("{command}\n").as_bytes()).await?;
        let late = || format!("PostgreSQL: no answer to {command} within {} s", wait.as_secs());
        let answer = timeout(wait, self.answers.next_line()).await.map_err(|_| late())??;
        match answer.as_deref() {
            Some("done") => Ok(()),
            Some(failed) => Err(format!("PostgreSQL: {command} {failed}").into()),
            None => Err(format!("PostgreSQL: the script ended during {command}").into()),
        }
    }
}

/// Where the script unpacks Debian's package: in the build folder, beside `debug` and `release`.
fn unpacked() -> Result<PathBuf, Error> {
    let program = std::env::current_exe()?;
    let folder = program.parent().and_then(|profile| profile.parent());
    Ok(folder.ok_or("the program is in no folder")?.join("postgresql"))
}
