//! Salvage: everything that verifies in the files of a journal, written to a new journal.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Fault, LogName, OpenError};
use crate::files::Files;
use crate::log_info::Health;
use crate::recovery;

mod collect;
mod identify;
mod restore;
mod rewrite;

use collect::Collected;
use restore::Restored;

/// What [`salvage`] is told.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SalvageConfig {
    /// Which journal to look for, where files of several are mixed. `None` (the default) takes the
    /// one that the manifest names, if any of its segments is there, else the one with most
    /// segment files. [`SalvagedFile::journal`] says which there are.
    pub journal: Option<u128>,
    /// Where nothing proves that the newest segments are there (the manifest is gone, or a file is
    /// cut), every log counts as [`Health::Suspect`], as its last changes may be missing. True
    /// takes the last frame found for the end instead, on the word of whoever calls. Default false.
    pub accept_end: bool,
}

/// What [`salvage`] found, and what is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SalvageReport {
    /// The identity of the journal that was salvaged; the new one has another.
    pub journal: u128,
    /// Whether a copy of its manifest verifies.
    pub has_manifest: bool,
    /// The manifest, or a later file, proves that nothing is missing behind the last frame.
    pub end_is_proven: bool,
    /// All files that may be segments, by name.
    pub files: Vec<SalvagedFile>,
    /// Segments that the manifest lists and no file holds. Some may have been empty.
    pub missing_segments: Vec<String>,
    /// Frames that verify, each counted once.
    pub frames: u64,
    /// LSNs of the first and the last of them; 0 when there are none.
    pub lsns: (u64, u64),
    /// LSNs between those of frames that verify. Not each of them held records: marks, tables and
    /// indexes have LSNs too, and a power loss may take an index.
    pub missing_lsns: Vec<Range<u64>>,
    /// The creation of logs may be among what is missing. Records of a log whose name is not
    /// found go to a log of the namespace `unnamed`, with its number for an id.
    pub names_missing: bool,
    /// The logs of the new journal, by name.
    pub logs: Vec<SalvagedLog>,
}

/// One file of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SalvagedFile {
    /// Its name.
    pub name: String,
    /// The journal that its header names; `None` when the header does not verify.
    pub journal: Option<u128>,
    /// Which use of a segment file it is, by its header or else by its frames.
    pub sequence: Option<u64>,
    /// Frames that verify in it.
    pub frames: u64,
    /// What it was good for.
    pub role: FileRole,
}

/// What a file was good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileRole {
    /// A segment of the journal.
    Segment,
    /// The same segment as a file before it: the two complete each other.
    Copy,
    /// The manifest says that all logs had released it. Left alone.
    Released,
    /// A segment of another journal. Left alone.
    Foreign,
    /// No frame of the journal verifies in it.
    Unreadable,
}

/// One log of the new journal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SalvagedLog {
    /// Its name.
    pub name: LogName,
    /// Its first position.
    pub first: u64,
    /// The position after its last.
    pub end: u64,
    /// Records that were written to the new journal.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Positions within its bounds that have no record.
    pub missing: Vec<Range<u64>>,
    /// As [`Log::health`](crate::Log::health) says it of the new journal.
    pub health: Health,
}

impl SalvageReport {
    /// Whether nothing is known to be missing, and nothing may be.
    pub fn is_whole(&self) -> bool {
        !self.names_missing && self.logs.iter().all(|log| log.health == Health::Intact)
    }
}

/// How far a salvage has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SalvageProgress {
    /// Files that have been searched.
    pub files: usize,
    /// Frames found so far.
    pub frames: u64,
    /// Records written so far.
    pub records: u64,
}

/// Why a salvage gave nothing, or not all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SalvageError {
    /// A process has one of the two directories open. Nothing was written.
    #[error("another process has the {directory} directory open")]
    InUse {
        /// `"damaged"` or `"new"`.
        directory: &'static str,
    },
    /// The damaged directory cannot be listed, or one of its files may not be opened: this process
    /// lacks the permission, or a descriptor (each segment file takes one). What the disk cannot
    /// read of its files is no error: it counts as missing. Nothing was written.
    #[error("the damaged directory: {0}")]
    Damaged(#[source] Fault),
    /// No file names a journal. Nothing was written.
    #[error("no segment and no manifest of a journal verifies in {files} files")]
    NoJournal {
        /// How many files there are.
        files: usize,
    },
    /// The new directory holds files. Nothing was written.
    #[error("the new directory is not empty: it holds {name}")]
    NotEmpty {
        /// One of them.
        name: String,
    },
    /// The new journal could not be created. Remove what is there, and run it again.
    #[error("the new journal: {0}")]
    Create(#[source] OpenError),
    /// The new journal could not be written. All its logs say that they are suspect. Remove it,
    /// and run it again.
    #[error("the new journal: {0}")]
    Write(#[source] Error),
}

/// Finds every frame that verifies in a directory whose journal may not open any more, and writes
/// the records that count to a new journal in `to`, which must be empty: under the names and at
/// the positions that they had. It needs no manifest and no index, takes segments under any name,
/// and copies of one that are damaged in different places. Nothing is written to `from`.
///
/// Changes apply in the order of their LSNs, as far as they are there. A log of the new journal
/// says by its [`Health`] what is known of it: `Intact` when nothing of it is missing, `Lost` when
/// only records are missing, within that range, and all else is known to be right, `Suspect` when
/// changes of any kind may be missing. The README says how its owner repairs it.
///
/// Memory: 40 bytes per frame found, and 24 per batch that counts.
///
/// # Errors
/// [`SalvageError`].
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use voussoir_journal::{Commit, Config, Files, Journal, MemoryFiles, SalvageConfig, salvage};
/// let (damaged, new) = (MemoryFiles::new(), Arc::new(MemoryFiles::new()));
/// let journal = Journal::open_with(Arc::new(damaged.clone()), Config::manual())?;
/// let log = journal.log("entries", 1)?;
/// journal.commit_blocking(Commit::new().append(&log, ["one", "two"]))?;
/// journal.close()?;
/// damaged.remove("manifest")?;
/// assert!(Journal::open_with(Arc::new(damaged.clone()), Config::manual()).is_err());
///
/// let report = salvage(&damaged, new.clone(), &SalvageConfig::default(), &mut |_| {})?;
/// assert_eq!(report.logs[0].records, 2);
/// let journal = Journal::open_with(new, Config::manual())?;
/// assert_eq!(journal.log("entries", 1)?.read(1)?, "two");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn salvage(
    from: &dyn Files,
    to: Arc<dyn Files>,
    config: &SalvageConfig,
    progress: &mut dyn FnMut(SalvageProgress),
) -> Result<SalvageReport, SalvageError> {
    let _guard = recovery::lock(from).map_err(|error| match error {
        OpenError::Io(fault) => SalvageError::Damaged(fault),
        _ => SalvageError::InUse { directory: "damaged" },
    })?;
    check_empty(&*to)?;
    let collected = Collected::read(from, config, progress)?;
    let restored = Restored::replay(&collected, config);
    let logs = rewrite::write(&collected, &restored, to, progress)?;
    let frames = restored.frames;
    Ok(SalvageReport {
        journal: collected.journal,
        has_manifest: collected.manifest.is_some(),
        end_is_proven: restored.end_is_proven,
        missing_segments: collected.missing_segments(),
        files: collected.files,
        frames,
        lsns: restored.lsns,
        missing_lsns: restored.missing_lsns,
        names_missing: restored.replay.names_missing,
        logs,
    })
}

fn check_empty(to: &dyn Files) -> Result<(), SalvageError> {
    let fault = |error| SalvageError::Create(Fault::new("list", "directory", &error).into());
    let names = to.list().map_err(fault)?;
    match names.into_iter().find(|name| name != "lock") {
        Some(name) => Err(SalvageError::NotEmpty { name }),
        None => Ok(()),
    }
}
