//! A copy of the workspace under `target/mutants`, in which mutants may be put.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{cargo_in, files};
use crate::services::Services;

/// The copy. One process at a time owns it.
pub(crate) struct Copy {
    folder: PathBuf,
    /// What the tests are told about servers.
    services: Option<Services>,
    /// Locks the folder against a second run until this one ends.
    _lock: File,
}

impl Copy {
    /// Brings the copy of the workspace at `root` up to date. Files whose content is the same are
    /// not written, so that builds stay incremental; files that are gone are removed.
    pub(crate) fn new(root: &Path) -> Result<Self, String> {
        let folder = root.join("target/mutants");
        make_folder(&folder.join("log"))?;
        let lock = File::create(folder.join("lock")).map_err(|e| named(&folder, &e))?;
        lock.try_lock().map_err(|error| {
            format!("{}: another run uses this folder: {error}", folder.display())
        })?;
        let copy = Self { folder, services: None, _lock: lock };
        let files = files(root)?;
        let wanted: BTreeSet<PathBuf> = files.iter().map(PathBuf::from).collect();
        copy.remove_others(&copy.tree(), &wanted)?;
        for file in &files {
            let text = fs::read(root.join(file)).map_err(|e| named(Path::new(file), &e))?;
            copy.write(file, &text)?;
        }
        Ok(copy)
    }

    /// Writes `text` to `file` of the copy, unless the file holds it already.
    pub(crate) fn write(&self, file: &str, text: &[u8]) -> Result<(), String> {
        let path = self.tree().join(file);
        if fs::read(&path).is_ok_and(|held| held == text) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        fs::write(&path, text).map_err(|e| named(&path, &e))
    }

    /// The content of `file` of the copy. The workspace may be edited while mutants are tried.
    pub(crate) fn read(&self, file: &str) -> Result<String, String> {
        let path = self.tree().join(file);
        fs::read_to_string(&path).map_err(|e| named(&path, &e))
    }

    /// Starts the servers that tests use. Without one its tests are left out, and the mutants that
    /// these should catch survive.
    pub(crate) fn start_services(&mut self) {
        let services = Services::start();
        for line in services.left_out() {
            eprintln!("left out: {line}");
        }
        self.services = Some(services);
    }

    /// Cargo in the copy, with a build folder of its own.
    pub(crate) fn cargo(&self, args: &[&str]) -> Command {
        let mut command = cargo_in(&self.tree(), args);
        command.env("CARGO_TARGET_DIR", self.folder.join("build"));
        // Line tables double the time of a link, and no one debugs a mutant.
        command.env("CARGO_INCREMENTAL", "1");
        command.env("CARGO_PROFILE_TEST_DEBUG", "0").env("CARGO_PROFILE_DEV_DEBUG", "0");
        // In one unit, each mutant would have its whole crate built again.
        command.env_remove("CARGO_PROFILE_TEST_CODEGEN_UNITS");
        if let Some(services) = &self.services {
            services.announce(&mut command);
        }
        command
    }

    /// Where the output of each trial is kept.
    pub(crate) fn logs(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    /// Removes the files below `folder` that the original does not have.
    fn remove_others(&self, folder: &Path, wanted: &BTreeSet<PathBuf>) -> Result<(), String> {
        let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                self.remove_others(&path, wanted)?;
            } else if !path.strip_prefix(self.tree()).is_ok_and(|file| wanted.contains(file)) {
                fs::remove_file(&path).map_err(|e| named(&path, &e))?;
            }
        }
        Ok(())
    }
}

fn make_folder(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|e| named(folder, &e))
}

fn named(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
