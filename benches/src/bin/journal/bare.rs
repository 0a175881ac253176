//! The bare system calls: the floor under every log.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use parking_lot::Mutex;

/// `write` and `fdatasync` over a file that was zeroed and synced before: the least that any log
/// can do. No frame, checksum, index or recovery.
pub(crate) struct Bare {
    file: File,
    size: u64,
    offset: Mutex<u64>,
}

impl Bare {
    pub(crate) fn new(folder: &Path, size: u64) -> io::Result<Self> {
        Self::named(folder, "bare", size)
    }

    pub(crate) fn named(folder: &Path, name: &str, size: u64) -> io::Result<Self> {
        let path = folder.join(name);
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(path)?;
        let zeros = vec![0; 1 << 20];
        for offset in (0..size).step_by(zeros.len()) {
            file.write_all_at(&zeros, offset)?;
        }
        file.sync_all()?;
        Ok(Self { file, size, offset: Mutex::new(0) })
    }

    /// Writes the next bytes, from the start again at the end, and syncs them.
    pub(crate) fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut offset = self.offset.lock();
        if *offset + bytes.len() as u64 > self.size {
            *offset = 0;
        }
        self.file.write_all_at(bytes, *offset)?;
        *offset += bytes.len() as u64;
        self.file.sync_data()
    }

    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}
