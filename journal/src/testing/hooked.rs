//! Files that tell a hook of each call before they pass it on.

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use crate::files::crash::Op;
use crate::files::{File, Files};

/// One call of a [`Files`] or a [`File`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call<'a> {
    /// What is called.
    pub op: Op,
    /// The name of the file; of the old name for a rename, empty for the directory.
    pub name: &'a str,
    /// Where the bytes begin that are read or written; 0 for other calls.
    pub offset: u64,
    /// How many bytes are to be read or written; 0 for other calls.
    pub length: usize,
}

impl Call<'_> {
    /// Whether the call reads or writes any of these bytes of its file.
    pub fn touches(&self, bytes: &Range<u64>) -> bool {
        self.offset < bytes.end && self.offset + self.length as u64 > bytes.start
    }
}

type Before = dyn Fn(Call<'_>) -> io::Result<()> + Send + Sync;
type After = dyn Fn(Call<'_>) + Send + Sync;

#[derive(Clone)]
struct Hooks {
    before: Arc<Before>,
    after: Arc<After>,
}

impl Hooks {
    fn around<T>(&self, call: Call<'_>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        (self.before)(call)?;
        let done = work();
        (self.after)(call);
        done
    }

    fn named<T>(&self, op: Op, name: &str, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.around(Call { op, name, offset: 0, length: 0 }, work)
    }
}

/// Passes calls on to other [`Files`], and calls a hook before each one: to count the calls, to
/// fail, to block or to panic in them. Neither taking the lock nor [`File::read_cached_at`] is a
/// call.
///
/// # Example
/// ```
/// use std::io;
/// use std::sync::Arc;
/// use voussoir_journal::files::crash::Op;
/// use voussoir_journal::testing::HookedFiles;
/// use voussoir_journal::{Files, MemoryFiles};
/// let files = HookedFiles::new(Arc::new(MemoryFiles::new()), |call| match call.op {
///     Op::Sync => Err(io::Error::other("no sync today")),
///     _ => Ok(()),
/// });
/// let file = files.create("a").unwrap();
/// assert!(file.sync_data().is_err());
/// ```
#[derive(Clone)]
pub struct HookedFiles {
    files: Arc<dyn Files>,
    hooks: Hooks,
}

impl HookedFiles {
    /// Files that call `before` first; its error is the answer of the call, which then does not
    /// reach `files`. The hook runs on the thread that calls, under no lock of this type.
    pub fn new(
        files: Arc<dyn Files>,
        before: impl Fn(Call<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { files, hooks: Hooks { before: Arc::new(before), after: Arc::new(|_| ()) } }
    }

    /// The same, calling `after` once a call has returned, whatever it answered.
    #[must_use]
    pub fn after(mut self, after: impl Fn(Call<'_>) + Send + Sync + 'static) -> Self {
        self.hooks.after = Arc::new(after);
        self
    }

    fn hooked(&self, name: &str, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(HookedFile { file, name: name.to_owned(), hooks: self.hooks.clone() })
    }
}

impl fmt::Debug for HookedFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookedFiles").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Files for HookedFiles {
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        self.files.lock()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.hooks.named(Op::List, "", || self.files.list())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = self.hooks.named(Op::Open, name, || self.files.open(name))?;
        Ok(self.hooked(name, file))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = self.hooks.named(Op::Create, name, || self.files.create(name))?;
        Ok(self.hooked(name, file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.hooks.named(Op::Rename, from, || self.files.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.hooks.named(Op::Remove, name, || self.files.remove(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.hooks.named(Op::SyncDir, "", || self.files.sync_dir())
    }
}

struct HookedFile {
    file: Arc<dyn File>,
    name: String,
    hooks: Hooks,
}

impl fmt::Debug for HookedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookedFile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl File for HookedFile {
    fn len(&self) -> io::Result<u64> {
        self.hooks.named(Op::Len, &self.name, || self.file.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let call = Call { op: Op::Read, name: &self.name, offset, length: buf.len() };
        self.hooks.around(call, || self.file.read_at(buf, offset))
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.file.read_cached_at(buf, offset)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        let call = Call { op: Op::Write, name: &self.name, offset, length };
        self.hooks.around(call, || self.file.write_at(bufs, offset))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.hooks.named(Op::Sync, &self.name, || self.file.sync_data())
    }
}
