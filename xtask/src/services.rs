//! `cargo xtask services`: real servers and tools, without changing the system.
//!
//! - `cargo xtask services`: lists them, with where each was found.
//! - `cargo xtask services up NAME…`: starts servers on free loopback ports and prints
//!   `VARIABLE=ADDRESS` for each, until standard input is closed or the command is stopped.
//! - `cargo xtask services fetch NAME…`: fetches them even if the machine has them.
//!
//! A program on the machine is used where there is one; else its Debian package is downloaded and
//! unpacked under `target/services` ([`fetch`]). A server keeps its data in a temporary folder, and
//! ends with the process that started it ([`server`]).

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

mod fetch;
mod server;
mod table;
#[cfg(test)]
mod tests;

use server::Running;
use table::{InTests, SERVICES};

/// The command.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    match args {
        [] => {
            list();
            Ok(())
        }
        [up, names @ ..] if up == "up" && !names.is_empty() => serve(names),
        [fetched, names @ ..] if fetched == "fetch" && !names.is_empty() => {
            for name in names {
                let program = fetch::fetch(table::named(name)?)?;
                println!("{name}: {}", program.path.display());
            }
            Ok(())
        }
        _ => Err("usage: cargo xtask services [up NAME… | fetch NAME…]".to_owned()),
    }
}

fn list() {
    println!("{:<12} {:<8} {:<22} where", "service", "state", "variable");
    for service in SERVICES {
        let (state, place) = match fetch::find(service) {
            Some(program) if program.fetched_into.is_some() => {
                ("fetched", program.path.display().to_string())
            }
            Some(program) => ("found", program.path.display().to_string()),
            None => {
                let name = service.name;
                ("missing", format!("fetched when used, or by `cargo xtask services fetch {name}`"))
            }
        };
        let variable = service.server.as_ref().map(|server| server.address.0);
        let variable = variable.unwrap_or(service.program_variable);
        println!("{:<12} {state:<8} {variable:<22} {place}", service.name);
    }
}

/// Starts the named services and keeps them until standard input is closed.
fn serve(names: &[String]) -> Result<(), String> {
    let mut servers = Vec::new();
    let chosen: Vec<_> = names.iter().map(|name| table::named(name)).collect::<Result<_, _>>()?;
    for service in chosen {
        let program = fetch::find_or_fetch(service)?;
        if service.server.is_some() {
            let server = Running::start(service, &program)?;
            println!("{}={}", server.address.0, server.address.1);
            servers.push((service.name, server));
        } else {
            println!("{}={}", service.program_variable, program.path.display());
        }
    }
    std::io::stdout().flush().map_err(|error| error.to_string())?;
    eprintln!("running until standard input is closed or Ctrl-C");
    let (closed, wait) = mpsc::channel();
    std::thread::spawn(move || {
        let mut ignored = [0; 1024];
        while std::io::stdin().read(&mut ignored).is_ok_and(|count| count > 0) {}
        let _ = closed.send(());
    });
    // Ends when standard input does, or with the first server that ends.
    loop {
        match wait.recv_timeout(Duration::from_millis(200)) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        for (name, server) in &mut servers {
            if server.has_ended() {
                return Err(format!("{name} has ended by itself"));
            }
        }
    }
}

/// The servers that tests use: their variables, and those that run.
#[derive(Debug)]
pub(crate) struct Services {
    variables: Vec<(&'static str, String)>,
    missing: Vec<String>,
    /// Stopped when the tests are over.
    _running: Vec<Running>,
}

impl Services {
    /// Finds or fetches what tests use, and starts what they expect to be running. A server whose
    /// address the environment gives is not started.
    pub(crate) fn start() -> Self {
        let mut variables = Vec::new();
        let mut missing = Vec::new();
        let mut running = Vec::new();
        for service in SERVICES.iter().filter(|service| service.in_tests != InTests::Unused) {
            let address = service.server.as_ref().map_or("", |server| server.address.0);
            let given = |variable: &str| std::env::var_os(variable).is_some();
            let started = service.in_tests == InTests::Started;
            if given(if started { address } else { service.program_variable }) {
                continue;
            }
            let result = fetch::find_or_fetch(service).and_then(|program| {
                if started {
                    let server = Running::start(service, &program)?;
                    variables.push((server.address.0, server.address.1.clone()));
                    running.push(server);
                }
                variables.push((service.program_variable, shown(program.path)));
                Ok(())
            });
            if let Err(why) = result {
                missing.push(format!("tests against {}: {why}", service.name));
            }
        }
        Self { variables, missing, _running: running }
    }

    /// Tells the tests where the servers are.
    pub(crate) fn announce(&self, command: &mut Command) {
        command.envs(self.variables.iter().map(|(variable, value)| (variable, value)));
    }

    /// Whether every service was found.
    pub(crate) fn are_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// What could not be tested, and why.
    pub(crate) fn left_out(&self) -> &[String] {
        &self.missing
    }
}

/// Two PostgreSQL servers for a bench, on the same disk.
#[derive(Debug)]
pub(crate) struct TwoDatabases(Vec<(&'static str, Running)>);

impl TwoDatabases {
    /// Starts each server whose address the environment does not give.
    ///
    /// # Errors
    /// The server cannot be found or started.
    pub(crate) fn start() -> Result<Self, String> {
        let mut started = Vec::new();
        for variable in ["DATABASE_URL", "DATABASE_URL_2"] {
            if std::env::var_os(variable).is_none() {
                let service = table::named("postgresql")?;
                let program = fetch::find_or_fetch(service)?;
                started.push((variable, Running::start(service, &program)?));
            }
        }
        Ok(Self(started))
    }

    /// Tells the bench where the servers are.
    pub(crate) fn announce(&self, command: &mut Command) {
        command.envs(self.0.iter().map(|(variable, server)| (variable, &server.address.1)));
    }
}

/// Servers for a bench.
#[derive(Debug)]
pub(crate) struct Servers(Vec<Running>);

impl Servers {
    /// Starts each server whose address the environment does not give.
    ///
    /// # Errors
    /// There is no such service, or it cannot be found or started.
    pub(crate) fn start(names: &[&str]) -> Result<Self, String> {
        let mut started = Vec::new();
        for name in names {
            let service = table::named(name)?;
            let variable = service.server.as_ref().map_or("", |server| server.address.0);
            if std::env::var_os(variable).is_none() {
                started.push(Running::start(service, &fetch::find_or_fetch(service)?)?);
            }
        }
        Ok(Self(started))
    }

    /// Tells the bench where the servers are.
    pub(crate) fn announce(&self, command: &mut Command) {
        command.envs(self.0.iter().map(|server| (server.address.0, &server.address.1)));
    }
}

fn shown(path: PathBuf) -> String {
    path.into_os_string().to_string_lossy().into_owned()
}
