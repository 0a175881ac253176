//! Where a service's program is: fetched before, on the machine, or to be fetched.
//!
//! Fetching leaves the system as it is: apt's own resolver says which packages the machine lacks
//! for the wanted one, and these are unpacked below `target/services`. The lists of packages that
//! it reads are there too, so it works on a machine that never ran `apt-get update`, and without
//! root.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::table::Service;
use crate::run::output;

/// Packages that the resolver names and no server here loads, by the start of their names.
const UNUSED: &[&str] = &[
    "adduser", "debconf", "libc-bin", "libc6", "libllvm", "libperl", "libz3", "locales", "openssl",
    "perl", "ssl-cert",
];

/// A program that can be run.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// The folder it was unpacked into, if it was fetched.
    pub(crate) fetched_into: Option<PathBuf>,
}

impl Program {
    /// Another program of the same service.
    pub(crate) fn sibling(&self, name: &str) -> PathBuf {
        self.path.with_file_name(name)
    }
}

/// The program, as fetched before or as the machine has it.
pub(crate) fn find(service: &Service) -> Option<Program> {
    let folder = home(service);
    let script = folder.join(service.program);
    if script.is_file() {
        return Some(Program { path: script, fetched_into: Some(folder) });
    }
    // A program in the folder of its package comes before a link to it: its siblings are there.
    let path = below(Path::new("/"), service.folders, service.program)
        .or_else(|| on_path(service.program))?;
    Some(Program { path, fetched_into: None })
}

/// The program, fetched if nothing else helps.
///
/// # Errors
/// Why it can be had in no way.
pub(crate) fn find_or_fetch(service: &Service) -> Result<Program, String> {
    if let Some(program) = find(service) {
        return Ok(program);
    }
    fetch(service).map_err(|why| {
        let packages = service.packages.join(" ");
        format!("{why}; to have it on the machine: apt-get install {packages}")
    })
}

/// Fetches the service, also when the machine has it.
pub(crate) fn fetch(service: &Service) -> Result<Program, String> {
    let services = crate::root().join("target/services");
    make_folder(&services)?;
    let lock = File::create(services.join("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    let folder = home(service);
    // Another process may have fetched it while this one waited for the lock.
    if !folder.join(service.program).is_file() {
        eprintln!("fetching {} into target/services", service.packages.join(" "));
        let unfinished = folder.with_extension("unfinished");
        let _ = fs::remove_dir_all(&unfinished);
        make_folder(&unfinished)?;
        unpack(service.packages, &services.join("apt"), &unfinished)?;
        write_scripts(service, &unfinished)?;
        let _ = fs::remove_dir_all(&folder);
        fs::rename(&unfinished, &folder).map_err(|error| error.to_string())?;
    }
    Ok(Program { path: folder.join(service.program), fetched_into: Some(folder) })
}

/// Where a fetched service is.
fn home(service: &Service) -> PathBuf {
    crate::root().join("target/services").join(service.name)
}

/// Downloads `packages` with what the machine lacks for them, and unpacks all of it into `folder`.
fn unpack(packages: &[&str], state: &Path, folder: &Path) -> Result<(), String> {
    let lists = state.join("lists");
    for part in [&lists.join("partial"), &state.join("cache"), &folder.join("packages")] {
        make_folder(part)?;
    }
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.arg("-o").arg(format!("Dir::State::Lists={}", lists.display()));
        command.arg("-o").arg(format!("Dir::Cache={}", state.join("cache").display()));
        // apt's own user may be kept out of the folder.
        command.args(["-o", "APT::Sandbox::User=root", "-q"]).args(args).stdin(Stdio::null());
        command
    };
    output(&mut apt(&["update"]))?;
    let plan = ["--simulate", "install", "--reinstall", "--no-install-recommends"];
    let wanted = packages_of(&output(&mut apt(&[&plan, packages].concat()))?);
    output(apt(&["download"]).args(&wanted).current_dir(folder.join("packages")))?;
    for file in fs::read_dir(folder.join("packages")).map_err(|e| e.to_string())?.flatten() {
        output(Command::new("dpkg-deb").arg("-x").arg(file.path()).arg(folder))?;
    }
    fs::remove_dir_all(folder.join("packages")).map_err(|error| error.to_string())
}

/// The packages in the plan of `apt-get --simulate install`, but for those that nothing here uses.
fn packages_of(plan: &str) -> Vec<String> {
    let name = |line: &str| Some(line.strip_prefix("Inst ")?.split(' ').next()?.to_owned());
    let used = |name: &String| !UNUSED.iter().any(|start| name.starts_with(start));
    plan.lines().filter_map(name).filter(used).collect()
}

/// For each program of the service, a script in `folder` that runs it with the unpacked libraries.
fn write_scripts(service: &Service, folder: &Path) -> Result<(), String> {
    let prepare = service.server.as_ref().and_then(|server| server.prepare);
    let places: Vec<&str> = [&["usr/bin", "usr/sbin"], service.folders].concat();
    for name in [service.program].into_iter().chain(prepare.map(|(name, _)| name)) {
        let program = below(folder, &places, name)
            .ok_or_else(|| format!("no {name} in {}", service.packages.join(" ")))?;
        let program = program.strip_prefix(folder).map_err(|error| error.to_string())?;
        let libraries = format!("{}-linux-gnu", std::env::consts::ARCH);
        let text = format!(
            "#!/bin/sh\n# Runs {name} with the libraries beside it.\n\
             here=$(dirname \"$(readlink -f \"$0\")\")\n\
             LD_LIBRARY_PATH=\"$here/usr/lib/{libraries}:$here/lib/{libraries}\" \
             exec \"$here/{}\" \"$@\"\n",
            program.display()
        );
        let script = folder.join(name);
        fs::write(&script, text).map_err(|error| error.to_string())?;
        fs::set_permissions(&script, Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// The program in one of the folders below `root`; the last of several versions.
fn below(root: &Path, folders: &[&str], program: &str) -> Option<PathBuf> {
    folders.iter().find_map(|folder| {
        let (before, after) = folder.split_once('*').unwrap_or((folder, ""));
        let mut found: Vec<PathBuf> = if folder.contains('*') {
            let versions = fs::read_dir(root.join(before)).ok()?.flatten();
            versions.map(|entry| entry.path().join(after.trim_start_matches('/'))).collect()
        } else {
            vec![root.join(folder)]
        };
        found.sort();
        found.into_iter().map(|folder| folder.join(program)).rfind(|file| file.is_file())
    })
}

/// The program on `PATH`.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn make_folder(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_of_apt_names_what_is_to_be_unpacked() {
        let plan = "NOTE: This is only a simulation!\n\
                    Inst libpq5 (15.1 Debian:12/oldstable [amd64])\n\
                    Inst libllvm14 (14 Debian:12 [amd64]) []\n\
                    Inst postgresql-15 [15.0] (15.1 Debian:12/oldstable [amd64])\n\
                    Conf libpq5 (15.1 Debian:12/oldstable [amd64])\n";
        assert_eq!(packages_of(plan), ["libpq5", "postgresql-15"]);
    }

    #[test]
    fn a_star_stands_for_the_last_version() {
        let root = std::env::temp_dir().join(format!("xtask-below-{}", std::process::id()));
        for version in ["14", "15"] {
            fs::create_dir_all(root.join("lib").join(version).join("bin")).unwrap();
        }
        fs::write(root.join("lib/14/bin/server"), "").unwrap();
        let found = below(&root, &["sbin", "lib/*/bin"], "server");
        assert_eq!(found, Some(root.join("lib/14/bin/server")));
        fs::write(root.join("lib/15/bin/server"), "").unwrap();
        let found = below(&root, &["sbin", "lib/*/bin"], "server");
        assert_eq!(found, Some(root.join("lib/15/bin/server")));
        assert_eq!(below(&root, &["sbin", "lib/*/bin"], "other"), None);
        fs::remove_dir_all(root).unwrap();
    }
}
