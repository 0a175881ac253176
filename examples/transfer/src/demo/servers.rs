//! The servers of a demonstration: those of `DATABASE_URL` and `REDIS_URL`, or ones of its own that
//! end with this process.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::Error;

/// Finds or fetches servers, and runs them. `sh` gets the script as an argument.
const SCRIPT: &str = include_str!("servers.sh");
/// The first start may have to fetch the server.
const START_WAIT: Duration = Duration::from_secs(600);
/// Any other command.
const COMMAND_WAIT: Duration = Duration::from_secs(90);

/// What a server is, in a few words.
#[derive(Debug)]
struct Kind {
    name: &'static str,
    /// The name of Debian's package, in commands of the script.
    package: &'static str,
    variable: &'static str,
}

const POSTGRESQL: Kind =
    Kind { name: "PostgreSQL", package: "postgresql", variable: "DATABASE_URL" };
const REDIS: Kind = Kind { name: "Redis", package: "redis-server", variable: "REDIS_URL" };

/// A server.
#[derive(Debug)]
pub(crate) struct Server {
    kind: Kind,
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

impl Server {
    /// The PostgreSQL at `url`, or one of its own, which it starts.
    ///
    /// # Errors
    /// No server could be found, fetched or started.
    pub(crate) async fn postgresql(url: Option<String>) -> Result<Self, Error> {
        let socket = |data: &str| format!("host={data} user=postgres dbname=postgres");
        Self::start(POSTGRESQL, url, socket).await
    }

    /// The Redis at `url`, or one of its own, which it starts.
    ///
    /// # Errors
    /// As [`postgresql`](Self::postgresql).
    #[allow(dead_code, reason = "the templates that need only PostgreSQL have this file too")]
    pub(crate) async fn redis(url: Option<String>) -> Result<Self, Error> {
        Self::start(REDIS, url, |data| format!("redis+unix://{data}/redis.sock")).await
    }

    async fn start(
        kind: Kind,
        url: Option<String>,
        socket: impl Fn(&str) -> String,
    ) -> Result<Self, Error> {
        if let Some(url) = url {
            return Ok(Self { kind, url, own: None });
        }
        let data = tempfile::Builder::new().prefix(&format!("{}-", kind.package)).tempdir()?;
        let mut script = Command::new("sh")
            .args(["-c", SCRIPT, "servers.sh"])
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
        let url = socket(&data.path().display().to_string());
        let mut own = Own { script, commands, answers, data };
        own.command(&kind, "start", START_WAIT).await?;
        Ok(Self { kind, url, own: Some(own) })
    }

    /// The address for its client.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Where the server is, for the user.
    pub(crate) fn description(&self) -> String {
        let Kind { name, variable, .. } = self.kind;
        match &self.own {
            Some(own) => format!("a {name} of its own in {}", own.data.path().display()),
            None => format!("the {name} of {variable}"),
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
            Some(own) => own.command(&self.kind, "crash", COMMAND_WAIT).await,
            None => Ok(()),
        }
    }

    /// Starts the server again after a crash.
    ///
    /// # Errors
    /// The server does not start.
    pub(crate) async fn restart(&mut self) -> Result<(), Error> {
        match &mut self.own {
            Some(own) => own.command(&self.kind, "start", COMMAND_WAIT).await,
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
    async fn command(&mut self, kind: &Kind, verb: &str, wait: Duration) -> Result<(), Error> {
        let Kind { name, package, .. } = kind;
        self.commands.write_all(format!("{verb}-{package}\n").as_bytes()).await?;
        let late = || format!("{name}: no answer to {verb} within {} s", wait.as_secs());
        let answer = timeout(wait, self.answers.next_line()).await.map_err(|_| late())??;
        match answer.as_deref() {
            Some("done") => Ok(()),
            Some(failed) => Err(format!("{name}: {verb} {failed}").into()),
            None => Err(format!("{name}: the script ended during {verb}").into()),
        }
    }
}

/// Where the script unpacks Debian's packages: in the build folder, beside `debug` and `release`.
fn unpacked() -> Result<PathBuf, Error> {
    let program = std::env::current_exe()?;
    let folder = program.parent().and_then(|profile| profile.parent());
    let folder = folder.ok_or("the program is in no folder")?.join("servers");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
