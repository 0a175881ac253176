//! The seam to the disk: what a journal asks of the place that holds its bytes.
//!
//! A journal lives in one flat directory. It writes at positions it chooses, never appends, and
//! makes data and directory entries durable by separate calls, as POSIX does: a file that was
//! created but whose directory was not synced may be gone after a power loss.

use std::fmt;
use std::io;
use std::sync::Arc;

#[cfg(feature = "testing")]
pub mod crash;
pub mod disk;
pub mod memory;

pub use disk::DiskFiles;
pub use memory::MemoryFiles;

/// One flat directory that belongs to one journal.
///
/// Calls may come from several threads at once. An implementation must not report success
/// before the effect is visible to later calls of the same process; it need not be durable
/// before [`File::sync_data`] (contents and length) or [`Files::sync_dir`] (names).
pub trait Files: Send + Sync + fmt::Debug + 'static {
    /// Takes the directory for this process until the returned guard is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when somebody else holds it.
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>>;

    /// The names of all files, in any order.
    ///
    /// # Errors
    /// Whatever the directory answers.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is none.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Creates an empty file and opens it. Its name is durable only after
    /// [`sync_dir`](Files::sync_dir).
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`]; [`io::ErrorKind::StorageFull`] when there is no room.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Renames a file, replacing any file of the new name, atomically.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is no file `from`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is none.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes every creation, rename and removal so far durable.
    ///
    /// # Errors
    /// After a failure it is unknown which names survive a power loss.
    fn sync_dir(&self) -> io::Result<()>;
}

/// One open file, written and read at given positions (bytes from the start).
pub trait File: Send + Sync + fmt::Debug + 'static {
    /// The length in bytes.
    ///
    /// # Errors
    /// Whatever the file answers.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// As [`len`](File::len).
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }

    /// Reads into `buf` from `offset` on and answers how many bytes were read: fewer than asked
    /// for when it is convenient, 0 only at the end of the file.
    ///
    /// # Errors
    /// Whatever the device answers; nothing is known about `buf` then.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// As [`read_at`](File::read_at), but only what can be had without waiting for a device:
    /// `None` when the first byte would have to be waited for, or when it is not known whether it
    /// would. The default answers `None`.
    ///
    /// # Errors
    /// Whatever the device answers; nothing is known about `buf` then.
    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        let _ = (buf, offset);
        Ok(None)
    }

    /// Writes the buffers one after the other from `offset` on, extending the file as needed
    /// (a gap reads as zeros), and answers how many bytes were written; it may be fewer.
    ///
    /// # Errors
    /// Whatever the device answers; any part may have been written then.
    fn write_at(&self, bufs: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize>;

    /// Makes everything written so far, and the length, durable.
    ///
    /// # Errors
    /// After a failure it is unknown which writes since the last success are durable, and a
    /// second call that succeeds proves nothing about them: the journal never makes one.
    fn sync_data(&self) -> io::Result<()>;
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_all_at(file: &dyn File, bytes: &[u8], offset: u64) -> io::Result<()> {
    write_all_vectored(file, &mut [io::IoSlice::new(bytes)], offset)
}

/// Writes all buffers one after the other from `offset` on, in as few calls as the file lets.
pub(crate) fn write_all_vectored(
    file: &dyn File,
    mut bufs: &mut [io::IoSlice<'_>],
    mut offset: u64,
) -> io::Result<()> {
    // One vectored write takes at most this many buffers on Linux.
    const BUFFERS_MAX: usize = 1024;
    io::IoSlice::advance_slices(&mut bufs, 0);
    while !bufs.is_empty() {
        let batch = bufs.len().min(BUFFERS_MAX);
        match file.write_at(&bufs[..batch], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                io::IoSlice::advance_slices(&mut bufs, written);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// As [`read_full_at`], without waiting for a device: `None` when any byte is not at hand.
pub(crate) fn read_full_cached_at(
    file: &dyn File,
    buf: &mut [u8],
    offset: u64,
) -> io::Result<Option<usize>> {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read_cached_at(&mut buf[filled..], offset + filled as u64) {
            Ok(Some(0)) => break,
            Ok(Some(read)) => filled += read,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(filled))
}

/// Reads until `buf` is full or the file ends; answers the bytes read.
pub(crate) fn read_full_at(file: &dyn File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read_at(&mut buf[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
