//! What the journal relies on in a [`Files`], sentence by sentence.

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;

use crate::files::{File, Files};

/// A sentence of the contract of [`Files`] and [`File`] that an implementation does not keep.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}: {found}")]
#[non_exhaustive]
pub struct Violation {
    /// What must hold.
    pub sentence: &'static str,
    /// What was found instead.
    pub found: String,
}

/// Checks an implementation of [`Files`]. `fresh` gives an empty directory at each call.
///
/// What is lost in a crash is not checked: no process can see that of itself.
///
/// # Errors
/// The first [`Violation`].
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use voussoir_journal::MemoryFiles;
/// voussoir_journal::testing::check_files(|| Arc::new(MemoryFiles::new())).unwrap();
/// ```
pub fn check_files(fresh: impl Fn() -> Arc<dyn Files>) -> Result<(), Violation> {
    locks(&*fresh())?;
    names(&*fresh())?;
    reads_and_writes(&*fresh())?;
    threads(&*fresh())
}

fn must(holds: bool, sentence: &'static str, found: impl std::fmt::Debug) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { sentence, found: format!("{found:?}") }) }
}

fn done<T>(result: io::Result<T>, sentence: &'static str) -> Result<T, Violation> {
    result.map_err(|error| Violation { sentence, found: error.to_string() })
}

fn fails<T>(
    result: io::Result<T>,
    kind: ErrorKind,
    sentence: &'static str,
) -> Result<(), Violation> {
    let found = result.err().map(|error| error.kind());
    must(found == Some(kind), sentence, found)
}

fn locks(files: &dyn Files) -> Result<(), Violation> {
    let guard = done(files.lock(), "a directory that nobody holds can be locked")?;
    fails(files.lock(), ErrorKind::WouldBlock, "a lock that is held answers WouldBlock")?;
    drop(guard);
    done(files.lock(), "a lock is free when its guard is dropped").map(drop)
}

fn listed(files: &dyn Files) -> Result<Vec<String>, Violation> {
    let mut names = done(files.list(), "the names of all files are listed")?;
    // A directory may keep files of its own, for its lock.
    names.retain(|name| ["a", "b", "c"].contains(&name.as_str()));
    names.sort_unstable();
    Ok(names)
}

fn names(files: &dyn Files) -> Result<(), Violation> {
    fails(files.open("a"), ErrorKind::NotFound, "opening what is not there answers NotFound")?;
    let a = done(files.create("a"), "a file can be created")?;
    must(a.len().ok() == Some(0), "a file that was created is empty", a.len())?;
    fails(
        files.create("a"),
        ErrorKind::AlreadyExists,
        "creating a file twice answers AlreadyExists",
    )?;
    write_all(&*a, b"of a", 0)?;
    let b = done(files.create("b"), "a file can be created")?;
    write_all(&*b, b"of b, and longer", 0)?;
    must(listed(files)? == ["a", "b"], "the names of all files are listed", files.list())?;
    done(files.rename("a", "b"), "a file can be renamed")?;
    must(listed(files)? == ["b"], "a rename replaces the file of the new name", files.list())?;
    let renamed = done(files.open("b"), "a file that was renamed can be opened")?;
    let found = read_all(&*renamed)?;
    must(found == b"of a", "a rename replaces the file of the new name", found)?;
    fails(
        files.rename("a", "c"),
        ErrorKind::NotFound,
        "renaming what is not there answers NotFound",
    )?;
    done(files.remove("b"), "a file can be removed")?;
    must(listed(files)?.is_empty(), "a file that was removed is gone", files.list())?;
    fails(files.open("b"), ErrorKind::NotFound, "a file that was removed is gone")?;
    fails(files.remove("b"), ErrorKind::NotFound, "removing what is not there answers NotFound")?;
    done(files.sync_dir(), "the directory can be synced")
}

fn reads_and_writes(files: &dyn Files) -> Result<(), Violation> {
    let file = done(files.create("a"), "a file can be created")?;
    write_all(&*file, b"late", 10)?;
    let found = read_all(&*file)?;
    must(found == b"\0\0\0\0\0\0\0\0\0\0late", "a gap reads as zeros", found)?;
    must(file.len().ok() == Some(14), "the length is where the last byte ends", file.len())?;
    let pieces = [IoSlice::new(b"one"), IoSlice::new(b""), IoSlice::new(b"two")];
    let written = done(file.write_at(&pieces, 2), "buffers can be written")?;
    let sentence = "a write answers how many bytes were written, at least one";
    must((1..=6).contains(&written), sentence, written)?;
    let found = read_all(&*file)?;
    let sentence = "buffers are written one after the other from the offset on";
    must(found.get(2..2 + written) == b"onetwo".get(..written), sentence, &found)?;
    must(found.get(10..) == Some(b"late"), "a write changes nothing else", &found)?;
    let other = done(files.open("a"), "a file can be opened twice")?;
    let seen = read_all(&*other)?;
    must(seen == found, "what was written is seen by later calls, through any handle", seen)?;
    let end = file.read_at(&mut [0; 4], 14).ok();
    must(end == Some(0), "a read at the end answers 0", end)?;
    let end = file.read_at(&mut [0; 4], 99).ok();
    must(end == Some(0), "a read behind the end answers 0", end)?;
    let mut buf = [0; 4];
    let cached = done(file.read_cached_at(&mut buf, 10), "cached bytes can be asked for")?;
    let sentence = "a read of what is at hand gives the same bytes, or None";
    let same = cached.is_none_or(|read| (1..=4).contains(&read) && buf[..read] == b"late"[..read]);
    must(same, sentence, (cached, buf))?;
    done(file.sync_data(), "a file can be synced")
}

/// Threads write their own parts, again and again.
fn threads(files: &dyn Files) -> Result<(), Violation> {
    const THREADS: u8 = 4;
    const PART: usize = 1000;
    let file = done(files.create("a"), "a file can be created")?;
    let write = |thread: u8| {
        let half = [thread + 1; PART / 2];
        let mut result = Ok(());
        for _ in 0..50 {
            let mut pieces = [IoSlice::new(&half), IoSlice::new(&half)];
            let at = u64::from(thread) * PART as u64;
            result = result.and(crate::files::write_all_vectored(&*file, &mut pieces, at));
        }
        result
    };
    let results: Vec<io::Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..THREADS).map(|thread| scope.spawn(move || write(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Ok(()))).collect()
    });
    for result in results {
        done(result, "several threads can write at once")?;
    }
    let found = read_all(&*file)?;
    let expected: Vec<u8> = (1..=THREADS).flat_map(|thread| [thread; PART]).collect();
    must(found == expected, "writes of several threads do not disturb each other", found.len())
}

fn write_all(file: &dyn File, bytes: &[u8], offset: u64) -> Result<(), Violation> {
    done(crate::files::write_all_at(file, bytes, offset), "bytes can be written")
}

/// All bytes, read in pieces as short as the file likes.
fn read_all(file: &dyn File) -> Result<Vec<u8>, Violation> {
    let length = done(file.len(), "a file has a length")? as usize;
    let mut bytes = vec![0xee; length];
    let read = crate::files::read_full_at(file, &mut bytes, 0);
    let read = done(read, "bytes can be read")?;
    must(read == length, "a read answers 0 at the end only", read)?;
    Ok(bytes)
}
