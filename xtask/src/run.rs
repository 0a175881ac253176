//! Runs other programs.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

/// Cargo, in the root of the workspace.
pub(crate) fn cargo(args: &[&str]) -> Command {
    cargo_in(&crate::root(), args)
}

/// Cargo, in the given folder.
pub(crate) fn cargo_in(folder: &Path, args: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(folder).args(args).stdin(Stdio::null());
    command
}

/// Runs to the end, output shown; anything but status 0 is an error that names the command.
pub(crate) fn check(command: &mut Command) -> Result<(), String> {
    let shown = show(command);
    eprintln!("$ {shown}");
    let status = command.status().map_err(|e| format!("{shown}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{shown}: {status}")) }
}

/// Runs to the end and returns what it printed to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let shown = show(command);
    let out = command.output().map_err(|e| format!("{shown}: {e}"))?;
    if !out.status.success() {
        return Err(format!("{shown}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr)));
    }
    String::from_utf8(out.stdout).map_err(|e| format!("{shown}: {e}"))
}

/// The files of the workspace at `root`, those that git does not know yet included.
pub(crate) fn files(root: &Path) -> Result<Vec<String>, String> {
    let args = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let listed = output(Command::new("git").current_dir(root).args(args))?;
    let files: BTreeSet<&str> = listed.lines().filter(|file| root.join(file).is_file()).collect();
    Ok(files.into_iter().map(str::to_owned).collect())
}

/// The command line, for messages.
pub(crate) fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let mut shown = name.to_string_lossy().into_owned();
    for arg in command.get_args() {
        shown.push(' ');
        shown.push_str(&arg.to_string_lossy());
    }
    shown
}
