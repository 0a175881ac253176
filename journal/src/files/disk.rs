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
/// The process lock is an advisory lock on the directory itself and on the file `lock` inside it,
/// so that removing the file lets nobody in. The kernel drops both with the process, so a killed
/// process leaves nothing to clean up. Where a file system cannot lock directories (some network
/// file systems), the file alone is locked, and an event says so.
#[derive(Debug, Clone)]
pub struct DiskFiles {
    dir: PathBuf,
    read_only: bool,
}

impl DiskFiles {
    /// Opens the directory, creating it and its parents when missing, durably.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn new(dir: impl AsRef<Path>) -> io::Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        create_durably(&dir, &mut sync_directory)?;
        Ok(Self { dir, read_only: false })
    }

    /// Names an existing directory for tools that only look: nothing is created or written, so that
    /// it may be on a read-only file system. All operations that would write fail with
    /// [`io::ErrorKind::ReadOnlyFilesystem`].
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is none.
    pub fn existing(dir: impl AsRef<Path>) -> io::Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        if fs::metadata(&dir)?.is_dir() {
            Ok(Self { dir, read_only: true })
        } else {
            Err(io::ErrorKind::NotADirectory.into())
        }
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }

    /// The file `lock`; a directory that is only looked at may have none.
    fn open_lock(&self) -> io::Result<Option<fs::File>> {
        let path = self.dir.join(LOCK_NAME);
        if !self.read_only {
            return OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .map(Some);
        }
        match fs::File::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Creates missing directories, and syncs the parent of each by `sync`: a directory that nobody
/// synced into its parent is lost with all that was synced inside. That goes for a directory that
/// exists as well, as whoever created it may not have synced it.
fn create_durably(dir: &Path, sync: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    match fs::create_dir(dir) {
        Ok(()) => sync(parent_of(dir)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {
            match sync(parent_of(dir)) {
                // A process that may not read the parent did not create the directory either.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    let dir = dir.display();
                    tracing::warn!(
                        target: "voussoir::journal",
                        %dir,
                        "the parent directory may not be opened, and is not synced"
                    );
                    Ok(())
                }
                synced => synced,
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = dir.parent().filter(|parent| *parent != Path::new("")).ok_or(error)?;
            create_durably(parent, sync)?;
            fs::create_dir(dir)?;
            sync(parent_of(dir))
        }
        Err(error) => Err(error),
    }
}

fn parent_of(dir: &Path) -> &Path {
    dir.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// Keeps other processes out.
struct DirectoryLock {
    _directory: Option<fs::File>,
    _file: Option<fs::File>,
}

/// Locks an open file or directory, or fails with [`io::ErrorKind::WouldBlock`].
fn lock_file(file: &fs::File) -> io::Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(unix)]
fn lock_directory(dir: &Path) -> io::Result<Option<fs::File>> {
    let directory = fs::File::open(dir)?;
    match lock_file(&directory) {
        Ok(()) => Ok(Some(directory)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
        Err(error) => {
            tracing::warn!(target: "voussoir::journal", %error, "the directory cannot be locked");
            Ok(None)
        }
    }
}

// A directory cannot be opened as a file elsewhere.
#[cfg(not(unix))]
fn lock_directory(_dir: &Path) -> io::Result<Option<fs::File>> {
    Ok(None)
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

/// How many files this process may have open, where that is known and limited.
#[cfg(target_os = "linux")]
pub(crate) fn descriptor_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn descriptor_limit() -> Option<u64> {
    None
}

impl Files for DiskFiles {
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let directory = lock_directory(&self.dir)?;
        let file = self.open_lock()?;
        if let Some(file) = &file {
            lock_file(file)?;
        }
        Ok(Box::new(DirectoryLock { _directory: directory, _file: file }))
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
        let mut options = OpenOptions::new();
        let file = options.read(true).write(!self.read_only).open(self.dir.join(name))?;
        Ok(Arc::new(DiskFile::new(file)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.check_writable()?;
        let path = self.dir.join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(DiskFile::new(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check_writable()?;
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.check_writable()?;
        fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.check_writable()?;
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

    #[cfg(target_os = "linux")]
    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        use rustix::io::{Errno, ReadWriteFlags, preadv2};
        let mut bufs = [io::IoSliceMut::new(buf)];
        match preadv2(&self.file, &mut bufs, offset, ReadWriteFlags::NOWAIT) {
            Ok(read) => Ok(Some(read)),
            // Not in the page cache; or the file system or the kernel cannot say.
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn synced(dir: &Path) -> Vec<PathBuf> {
        let mut synced = Vec::new();
        create_durably(dir, &mut |parent| {
            synced.push(parent.to_path_buf());
            Ok(())
        })
        .unwrap();
        synced
    }

    #[test]
    fn the_parent_is_synced_whether_the_directory_is_new_or_not() {
        let root = std::env::temp_dir().join(format!("voussoir-parent-{}", std::process::id()));
        fs::create_dir(&root).unwrap();
        let (outer, inner) = (root.join("outer"), root.join("outer/inner"));
        // The parent of a directory that exists is synced as well: its creator may have died.
        assert_eq!(synced(&inner), [root.clone(), root.clone(), outer.clone()][1..]);
        assert_eq!(synced(&inner), std::slice::from_ref(&outer));
        fs::remove_dir(&inner).unwrap();
        assert_eq!(synced(&inner), std::slice::from_ref(&outer));
        assert_eq!(parent_of(Path::new("relative")), Path::new("."));
        let denied = |kind: io::ErrorKind| create_durably(&inner, &mut |_| Err(kind.into()));
        denied(io::ErrorKind::PermissionDenied).unwrap();
        assert_eq!(denied(io::ErrorKind::Other).unwrap_err().kind(), io::ErrorKind::Other);
        fs::remove_dir_all(&root).unwrap();
    }
}
