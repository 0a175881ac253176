//! Files in memory: fast, and gone with the last handle. For tests and caches.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::{File, Files};

/// A directory in memory. Clones are handles to the same directory, so a journal can be closed
/// and opened again over it. There is no power to lose: every sync succeeds and does nothing.
#[derive(Debug, Clone, Default)]
pub struct MemoryFiles {
    directory: Arc<Directory>,
}

#[derive(Debug, Default)]
struct Directory {
    files: Mutex<BTreeMap<String, Arc<MemoryFile>>>,
    lock: Arc<Mutex<bool>>,
}

#[derive(Debug, Default)]
struct MemoryFile {
    bytes: RwLock<Vec<u8>>,
}

struct Guard(Arc<Mutex<bool>>);

impl Drop for Guard {
    fn drop(&mut self) {
        *self.0.lock() = false;
    }
}

impl MemoryFiles {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Files for MemoryFiles {
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let mut held = self.directory.lock.lock();
        if *held {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        *held = true;
        Ok(Box::new(Guard(Arc::clone(&self.directory.lock))))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.directory.files.lock().keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        match self.directory.files.lock().get(name) {
            Some(file) => Ok(Arc::clone(file) as Arc<dyn File>),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut files = self.directory.files.lock();
        if files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Arc::new(MemoryFile::default());
        files.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.directory.files.lock();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match self.directory.files.lock().remove(name) {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}

impl File for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.read().len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes.read();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let available = &bytes[start..];
        let read = available.len().min(buf.len());
        buf[..read].copy_from_slice(&available[..read]);
        Ok(read)
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.read_at(buf, offset).map(Some)
    }

    fn write_at(&self, bufs: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = start.checked_add(total).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut bytes = self.bytes.write();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        let mut at = start;
        for buf in bufs {
            bytes[at..at + buf.len()].copy_from_slice(buf);
            at += buf.len();
        }
        Ok(total)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder_and_files_keep_their_bytes() {
        let files = MemoryFiles::new();
        let guard = files.lock().unwrap();
        assert_eq!(files.clone().lock().err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(guard);
        files.lock().unwrap();

        let file = files.create("a").unwrap();
        assert_eq!(files.create("a").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        file.write_at(&[io::IoSlice::new(b"xy"), io::IoSlice::new(b"z")], 3).unwrap();
        files.rename("a", "b").unwrap();
        let mut buf = [9; 8];
        assert_eq!(files.open("b").unwrap().read_at(&mut buf, 1).unwrap(), 5);
        assert_eq!(&buf[..5], &[0, 0, b'x', b'y', b'z']);
        assert_eq!(files.open("a").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
