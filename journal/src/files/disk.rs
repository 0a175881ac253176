//! Files of the operating system.

use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{File, Files};

const LOCK_NAME: &str = "lock";

/// A directory of the operating system, created when missing.
///
/// The process lock is an advisory lock on the file `lock` inside it; the kernel drops it with
/// the process, so a killed process leaves nothing to clean up.
#[derive(Debug, Clone)]
pub struct DiskFiles {
    dir: PathBuf,
}

impl DiskFiles {
    /// Opens the directory, creating it and its parents when missing, durably.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn new(dir: impl AsRef<Path>) -> io::Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        create_durably(&dir)?;
        Ok(Self { dir })
    }

    /// Names an existing directory without creating anything: for tools that only look.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is none.
    pub fn existing(dir: impl AsRef<Path>) -> io::Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        if fs::metadata(&dir)?.is_dir() {
            Ok(Self { dir })
        } else {
            Err(io::ErrorKind::NotADirectory.into())
        }
    }
}

/// Creates missing directories, and syncs the parent of each: a directory that nobody synced
/// into its parent is lost with all that was synced inside.
fn create_durably(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Ok(()) => sync_parent(dir),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = dir.parent().filter(|parent| *parent != Path::new("")).ok_or(error)?;
            create_durably(parent)?;
            fs::create_dir(dir)?;
            sync_parent(dir)
        }
        Err(error) => Err(error),
    }
}

fn sync_parent(dir: &Path) -> io::Result<()> {
    match dir.parent() {
        Some(parent) if parent != Path::new("") => sync_directory(parent),
        _ => sync_directory(Path::new(".")),
    }
}

#[cfg(unix)]
fn sync_directory(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

// A directory cannot be opened as a file elsewhere; those systems order names themselves.
#[cfg(not(unix))]
fn sync_directory(_dir: &Path) -> io::Result<()> {
    Ok(())
}

impl Files for DiskFiles {
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.dir.join(LOCK_NAME))?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = OpenOptions::new().read(true).write(true).open(self.dir.join(name))?;
        Ok(Arc::new(DiskFile::new(file)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let path = self.dir.join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(DiskFile::new(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        sync_directory(&self.dir)
    }
}

#[derive(Debug)]
struct DiskFile {
    file: fs::File,
    /// The standard library has no vectored write at a position; several buffers go through the
    /// file's cursor, which this lock guards.
    cursor: Mutex<()>,
}

impl DiskFile {
    fn new(file: fs::File) -> Self {
        Self { file, cursor: Mutex::new(()) }
    }
}

impl File for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    #[cfg(unix)]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.file, buf, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&self.file, buf, offset)
    }

    fn write_at(&self, bufs: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize> {
        #[cfg(unix)]
        if let [one] = bufs {
            return std::os::unix::fs::FileExt::write_at(&self.file, one, offset);
        }
        let _cursor = self.cursor.lock();
        let mut file = &self.file;
        file.seek(io::SeekFrom::Start(offset))?;
        file.write_vectored(bufs)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
