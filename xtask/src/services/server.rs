//! A running server, which ends with the process that started it.
//!
//! A shell script keeps each server. It holds the reading end of a pipe, stops the server when the
//! pipe is closed, and removes its data. The pipe is closed when the [`Running`] is dropped, and by
//! the system when this process ends in whatever way.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::fetch::Program;
use super::table::{Server, Service};
use crate::run::output;

/// A server that does not answer within this time has failed. A loaded machine needs its time.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// Another process may take the free ports before the server does.
const ATTEMPTS: u32 = 5;
/// Numeric ids of `nobody` and `nogroup`, which every Debian has.
const NOBODY: u32 = 65534;

/// `$1` is the data folder, `$2` the signal, the rest is the server's command line. The server is
/// killed 10 s after the signal.
const KEEPER: &str = r#"
exec 3<&0
data=$1 signal=$2
shift 2
"$@" </dev/null >"$data/log" 2>&1 3<&- &
server=$!
{
    cat <&3
    kill -s "$signal" $server
    tenths=0
    while [ $tenths -lt 100 ] && kill -0 $server; do sleep 0.1; tenths=$((tenths + 1)); done
    kill -9 $server
} >/dev/null 2>&1 &
watch=$!
wait $server
status=$?
kill $watch
[ -e "$data/keep" ] || rm -rf "$data"
exit $status
"#;

/// A server. Dropping it stops the server and removes its data.
#[derive(Debug)]
pub(crate) struct Running {
    keeper: Child,
    /// Variable and address, for those who connect.
    pub(crate) address: (&'static str, String),
    pub(crate) data: PathBuf,
}

impl Running {
    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// What failed, with the end of the server's log.
    pub(crate) fn start(service: &Service, program: &Program) -> Result<Self, String> {
        let server = service.server.as_ref();
        let server = server.ok_or_else(|| format!("{} is a tool, not a server", service.name))?;
        let mut failures = String::new();
        for _ in 0..ATTEMPTS {
            match Self::attempt(service, server, program) {
                Ok(running) => return Ok(running),
                Err(Failure::Ended(why)) => failures = why,
                Err(Failure::Other(why)) => return Err(format!("{}: {why}", service.name)),
            }
        }
        Err(format!("{}: ended {ATTEMPTS} times before it answered: {failures}", service.name))
    }

    /// Whether the server has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.keeper.try_wait(), Ok(None))
    }

    fn attempt(service: &Service, server: &Server, program: &Program) -> Result<Self, Failure> {
        let as_nobody = server.refuses_root && is_root();
        let data = data_folder(service.name, as_nobody).map_err(Failure::Other)?;
        let (port, peer_port) = free_ports().map_err(|error| Failure::Other(error.to_string()))?;
        let fill = |text: &str| {
            text.replace("{port}", &port.to_string())
                .replace("{peer_port}", &peer_port.to_string())
                .replace("{data}", &data.to_string_lossy())
        };
        let program = if as_nobody { reachable(program, &data) } else { Ok(program.clone()) };
        let program = program.map_err(Failure::Other)?;
        let user: &[&str] = if as_nobody {
            &["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]
        } else {
            &["env", "--"]
        };
        for (name, text) in server.files {
            let file = data.join(name);
            fs::write(file, fill(text)).map_err(|error| Failure::Other(error.to_string()))?;
        }
        if let Some((name, args)) = server.prepare {
            let mut command = Command::new(user[0]);
            command.args(&user[1..]).arg(program.sibling(name));
            command.args(args.iter().map(|arg| fill(arg))).current_dir(&data);
            output(command.stdin(Stdio::null())).map_err(Failure::Other)?;
        }
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper"]).arg(&data).arg(server.stop).args(user);
        command.arg(&program.path).args(server.args.iter().map(|arg| fill(arg)));
        // A group of its own: Ctrl-C ends this process, and the keeper then stops the server.
        command.current_dir(&data).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let keeper = command.spawn().map_err(|error| Failure::Other(error.to_string()))?;
        let (variable, address) = server.address;
        let mut running = Self { keeper, address: (variable, fill(address)), data };
        running.wait_until_ready(server, port)?;
        Ok(running)
    }

    /// Waits until the server answers, which it must do while it runs: another one may have taken
    /// the port before it.
    fn wait_until_ready(&mut self, server: &Server, port: u16) -> Result<(), Failure> {
        // The keeper removes the folder of a server that ends, unless this file is there.
        let keep = self.data.join("keep");
        File::create(&keep).map_err(|error| Failure::Other(error.to_string()))?;
        let until = Instant::now() + START_TIME_MAX;
        let result = loop {
            let answered = answers(port, server.ask, server.answer);
            if self.has_ended() {
                break Err(Failure::Ended(self.log()));
            } else if answered {
                break Ok(());
            } else if Instant::now() > until {
                let limit = START_TIME_MAX.as_secs();
                break Err(Failure::Other(format!("no answer within {limit} s: {}", self.log())));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let _ = fs::remove_file(keep);
        if matches!(result, Err(Failure::Ended(_))) {
            let _ = fs::remove_dir_all(&self.data);
        }
        result
    }

    /// The end of what the server has printed.
    fn log(&self) -> String {
        let text = fs::read(self.data.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

enum Failure {
    /// The server ended before it answered: perhaps its port was taken.
    Ended(String),
    Other(String),
}

/// Whether the server on `port` answers `ask` with `answer`.
fn answers(port: u16, ask: &str, answer: &str) -> bool {
    let exchange = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(ask.as_bytes())?;
        let mut said = vec![0; answer.len()];
        stream.read_exact(&mut said)?;
        Ok(said == answer.as_bytes())
    };
    exchange().unwrap_or(false)
}

/// Two ports of the loopback interface that are free now.
fn free_ports() -> std::io::Result<(u16, u16)> {
    let first = TcpListener::bind("127.0.0.1:0")?;
    let second = TcpListener::bind("127.0.0.1:0")?;
    Ok((first.local_addr()?.port(), second.local_addr()?.port()))
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// An empty folder for the server's data.
fn data_folder(name: &str, for_nobody: bool) -> Result<PathBuf, String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("voussoir-{name}-{}-{number}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let _ = fs::remove_dir_all(&folder);
    DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
    if for_nobody {
        chown(&folder, Some(NOBODY), Some(NOBODY)).map_err(failed)?;
    }
    Ok(folder)
}

/// The program where every user can run it: as it is, or, when a folder above it is closed to
/// others, a copy in `data`.
fn reachable(program: &Program, data: &Path) -> Result<Program, String> {
    let open = |folder: &Path| fs::metadata(folder).is_ok_and(|m| m.mode() & 0o001 != 0);
    let Some(folder) = program.fetched_into.as_ref() else { return Ok(program.clone()) };
    if folder.ancestors().all(open) {
        return Ok(program.clone());
    }
    let copy = data.join("program");
    output(Command::new("cp").arg("-r").arg(folder).arg(&copy))?;
    fs::set_permissions(&copy, Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
    let name = program.path.file_name().unwrap_or_default();
    Ok(Program { path: copy.join(name), fetched_into: Some(copy) })
}
