//! The contract of `Files`: our own implementations keep it, and each sentence is checked.
#![cfg(feature = "testing")]

use std::io::{self, IoSlice};
use std::sync::Arc;

use voussoir_journal::files::crash::CrashFiles;
use voussoir_journal::testing::check_files;
use voussoir_journal::{DiskFiles, File, Files, MemoryFiles};

/// How a directory breaks the contract, with the beginning of the sentence that it breaks.
const DEFECTS: [(Defect, &str); 16] = [
    (Defect::LockTwice, "a lock that is held answers WouldBlock"),
    (Defect::LockForEver, "a lock is free when its guard is dropped"),
    (Defect::ListNothing, "the names of all files are listed"),
    (Defect::OpenCreates, "opening what is not there answers NotFound"),
    (Defect::CreateOpens, "creating a file twice answers AlreadyExists"),
    (Defect::RenameKeeps, "a rename replaces the file of the new name"),
    (Defect::RenameOfNothing, "renaming what is not there answers NotFound"),
    (Defect::RemoveKeeps, "a file that was removed is gone"),
    (Defect::RemoveOfNothing, "removing what is not there answers NotFound"),
    (Defect::GapOfGarbage, "a gap reads as zeros"),
    (Defect::WriteOneBuffer, "buffers are written one after the other"),
    (Defect::WriteNothing, "a write answers how many bytes were written, at least one"),
    (Defect::EndBeforeTheEnd, "a read answers 0 at the end only"),
    (Defect::ErrorAtTheEnd, "a read at the end answers 0"),
    (Defect::StaleCache, "a read of what is at hand gives the same bytes"),
    (Defect::SharedCursor, "writes of several threads do not disturb each other"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    LockTwice,
    LockForEver,
    ListNothing,
    OpenCreates,
    CreateOpens,
    RenameKeeps,
    RenameOfNothing,
    RemoveKeeps,
    RemoveOfNothing,
    GapOfGarbage,
    WriteOneBuffer,
    WriteNothing,
    EndBeforeTheEnd,
    ErrorAtTheEnd,
    StaleCache,
    SharedCursor,
}

#[derive(Debug)]
struct Broken {
    files: MemoryFiles,
    defect: Defect,
}

#[derive(Debug)]
struct BrokenFile {
    file: Arc<dyn File>,
    defect: Defect,
}

impl Broken {
    fn broken(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(BrokenFile { file, defect: self.defect })
    }
}

impl Files for Broken {
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        match self.defect {
            Defect::LockTwice => Ok(Box::new(())),
            Defect::LockForEver => {
                std::mem::forget(self.files.lock()?);
                Ok(Box::new(()))
            }
            _ => self.files.lock(),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        if self.defect == Defect::ListNothing { Ok(Vec::new()) } else { self.files.list() }
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let opened = self.files.open(name);
        let creates = self.defect == Defect::OpenCreates && opened.is_err();
        if creates { self.files.create(name) } else { opened }.map(|file| self.broken(file))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let created = self.files.create(name);
        let opens = self.defect == Defect::CreateOpens && created.is_err();
        if opens { self.files.open(name) } else { created }.map(|file| self.broken(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match self.defect {
            Defect::RenameKeeps => self.files.remove(from),
            Defect::RenameOfNothing => self.files.rename(from, to).or(Ok(())),
            _ => self.files.rename(from, to),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match self.defect {
            Defect::RemoveKeeps => Ok(()),
            Defect::RemoveOfNothing => self.files.remove(name).or(Ok(())),
            _ => self.files.remove(name),
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.files.sync_dir()
    }
}

impl File for BrokenFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.len()?.saturating_sub(offset);
        match self.defect {
            Defect::EndBeforeTheEnd if offset + rest > 9 && offset > 4 => Ok(0),
            Defect::EndBeforeTheEnd => {
                let most = buf.len().min(5);
                self.file.read_at(&mut buf[..most], offset)
            }
            Defect::ErrorAtTheEnd if rest == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => self.file.read_at(buf, offset),
        }
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        if self.defect == Defect::StaleCache {
            buf.fill(0);
            return Ok(Some(buf.len()));
        }
        self.file.read_cached_at(buf, offset)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let length = self.len()?;
        match self.defect {
            Defect::GapOfGarbage if offset > length => {
                let garbage = vec![0xaa; (offset - length) as usize];
                self.file.write_at(&[IoSlice::new(&garbage)], length)?;
            }
            Defect::WriteOneBuffer => {
                self.file.write_at(&bufs[..1], offset)?;
                return Ok(bufs.iter().map(|buf| buf.len()).sum());
            }
            Defect::WriteNothing if bufs.len() > 1 => return Ok(0),
            Defect::SharedCursor if bufs.len() > 1 && offset > 0 && length > 100 => {
                return self.file.write_at(bufs, offset - 1);
            }
            _ => {}
        }
        self.file.write_at(bufs, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[test]
fn each_sentence_of_the_contract_is_checked() {
    for (defect, sentence) in DEFECTS {
        let broken = || Arc::new(Broken { files: MemoryFiles::new(), defect }) as Arc<dyn Files>;
        let violation = check_files(broken).expect_err(sentence);
        assert!(violation.sentence.starts_with(sentence), "{defect:?}: {violation}");
    }
}

#[test]
fn our_own_files_keep_the_contract() {
    check_files(|| Arc::new(MemoryFiles::new())).unwrap();
    let seeds = std::cell::Cell::new(0);
    check_files(|| {
        seeds.set(seeds.get() + 1);
        CrashFiles::new(seeds.get()).mount()
    })
    .unwrap();
    let root = std::env::temp_dir().join(format!("voussoir-files-{}", std::process::id()));
    check_files(|| {
        seeds.set(seeds.get() + 1);
        Arc::new(DiskFiles::new(root.join(seeds.get().to_string())).unwrap())
    })
    .unwrap();
    std::fs::remove_dir_all(&root).unwrap();
}
