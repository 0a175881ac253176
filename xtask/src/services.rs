//! Real servers that some tests ask for, without changing the system.
//!
//! A server on the machine is used where there is one; else its Debian package is downloaded and
//! unpacked under `target/services`. Each listens on a free loopback port with its data in a
//! temporary folder, and is stopped when the tests are over. Where neither is possible the tests
//! that need the server say that they were left out, and so does the end of the run.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::run::output;

/// The servers found or fetched: a variable for the tests, and the program behind it.
pub(crate) struct Services {
    found: Vec<(&'static str, PathBuf)>,
    missing: Vec<String>,
}

impl Services {
    /// Finds or fetches every server.
    pub(crate) fn start() -> Self {
        let mut services = Self { found: Vec::new(), missing: Vec::new() };
        match redis() {
            Ok(path) => services.found.push(("VOUSSOIR_REDIS_SERVER", path)),
            Err(why) => services.missing.push(format!("tests against Redis: {why}")),
        }
        services
    }

    /// Tells the tests where the servers are.
    pub(crate) fn announce(&self, command: &mut Command) {
        for (variable, path) in &self.found {
            command.env(variable, path);
        }
    }

    /// Whether every server was found.
    pub(crate) fn are_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// What could not be tested, and why.
    pub(crate) fn left_out(&self) -> &[String] {
        &self.missing
    }
}

/// The packages of Redis and of the libraries that it loads.
const REDIS: &[&str] = &[
    "redis-server",
    "redis-tools",
    "libatomic1",
    "libjemalloc2",
    "liblzf1",
    "libssl3",
    "libsystemd0",
];

fn redis() -> Result<PathBuf, String> {
    if let Some(path) = on_path("redis-server") {
        return Ok(path);
    }
    let folder = crate::root().join("target/services/redis");
    let program = folder.join("redis-server");
    if !program.exists() {
        unpack(REDIS, &folder)?;
        wrap(&folder.join("usr/bin/redis-server"), &folder, &program)?;
    }
    output(Command::new(&program).arg("--version").stdin(Stdio::null()))?;
    Ok(program)
}

/// Writes a script that runs `program` with the libraries unpacked in `folder`.
fn wrap(program: &Path, folder: &Path, script: &Path) -> Result<(), String> {
    let libraries = folder.join("usr/lib").join(architecture());
    let text = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n",
        libraries.display(),
        program.display()
    );
    std::fs::write(script, text).map_err(|e| e.to_string())?;
    std::fs::set_permissions(script, Permissions::from_mode(0o755)).map_err(|e| e.to_string())
}

/// The folder of this architecture under Debian's `/usr/lib`.
fn architecture() -> String {
    format!("{}-linux-gnu", std::env::consts::ARCH)
}

/// The program on `PATH`.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Downloads Debian packages and unpacks them into `folder`.
fn unpack(packages: &[&str], folder: &Path) -> Result<(), String> {
    let downloads = folder.join("packages");
    std::fs::create_dir_all(&downloads).map_err(|e| e.to_string())?;
    let quiet = |command: &mut Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{}: {status}", command.get_program().display())),
            Err(error) => Err(format!("{}: {error}", command.get_program().display())),
        }
    };
    quiet(Command::new("apt-get").arg("download").args(packages).current_dir(&downloads))?;
    for file in std::fs::read_dir(&downloads).map_err(|e| e.to_string())?.flatten() {
        quiet(Command::new("dpkg").arg("-x").arg(file.path()).arg(folder))?;
    }
    Ok(())
}
