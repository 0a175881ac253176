//! `cargo xtask templates [NAME]`: copies templates out of the workspace, as a user would, and runs
//! the tests and the program of each copy. A template with a folder `src/demo` is also tried
//! without it: the demo is there to be left out.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::run::{cargo_in, check, show};
use crate::sample;
use crate::services::Services;

/// A template's program ends by itself within this time when it has no terminal.
const RUN_TIME_MAX: Duration = Duration::from_secs(120);

pub(crate) use crate::new::templates as names;

/// Tries the named template, or every one.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let names = match args {
        [] => names()?,
        named => named.to_vec(),
    };
    let services = Services::start();
    for name in &names {
        let began = Instant::now();
        try_copy(name, &services)?;
        println!("template {name}: {:.0} s", began.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Tries one template, drawn from the hash of `HEAD`.
pub(crate) fn sample() -> Result<(), String> {
    let head = sample::head()?;
    let mut names = crate::new::templates()?;
    names.sort_by_cached_key(|name| sample::fnv1a(&[&head, name]));
    names.truncate(1);
    run(&names)
}

fn try_copy(name: &str, services: &Services) -> Result<(), String> {
    let root = crate::root();
    // Outside the workspace, as for a user: nothing is found by looking in the folders above.
    let folder = std::env::temp_dir().join(format!("voussoir-copy-{}", std::process::id()));
    let folder = folder.join(name);
    let result = crate::new::copy(&folder, name).and_then(|()| {
        // The build folder of the workspace holds every dependency of the copy.
        let target = root.join("target");
        let cargo = |args: &[&str]| {
            let mut command = cargo_in(&folder, args);
            command.env("CARGO_TARGET_DIR", &target);
            services.announce(&mut command);
            command
        };
        check(&mut cargo(&["test"]))?;
        // In the profile of its tests, which has built the dependencies.
        check(&mut cargo(&["build", "--profile", "test"]))?;
        ends_by_itself(&mut cargo(&["run", "--profile", "test"]), &folder)?;
        if !folder.join("src/demo").exists() {
            return Ok(());
        }
        std::fs::remove_dir_all(folder.join("src/demo")).map_err(|error| error.to_string())?;
        check(&mut cargo(&["test", "--no-default-features"]))
    });
    let _ = std::fs::remove_dir_all(folder.parent().unwrap_or(&folder));
    result.map_err(|error| format!("template {name}: {error}"))
}

/// Runs the command to its end, which must come in time and with status 0.
fn ends_by_itself(command: &mut Command, folder: &Path) -> Result<(), String> {
    let shown = show(command);
    eprintln!("$ {shown}");
    let failed = |error: std::io::Error| format!("{shown}: {error}");
    let log = folder.join("run.log");
    let file = std::fs::File::create(&log).map_err(failed)?;
    command.stderr(file.try_clone().map_err(failed)?).stdout(file).process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    let until = Instant::now() + RUN_TIME_MAX;
    let result = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => break format!("{shown}: {status}"),
            None if Instant::now() >= until => {
                let group = format!("-{}", child.id());
                let _ = Command::new("kill").args(["-9", "--", &group]).status();
                child.wait().map_err(failed)?;
                let limit = RUN_TIME_MAX.as_secs();
                break format!("{shown}: still running after {limit} s without a terminal");
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    eprintln!("{}", std::fs::read_to_string(&log).unwrap_or_default());
    Err(result)
}
