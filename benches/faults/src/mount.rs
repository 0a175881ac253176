//! A [`Disk`] as a mounted file system, by FUSE.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

use crate::disk::{Disk, FileData, Node};

/// Nothing is cached by the kernel that another life could see.
const TTL: Duration = Duration::ZERO;

/// A disk that a mounted file system and the run share.
#[derive(Clone)]
pub(crate) struct Shared {
    disk: Arc<Mutex<Disk>>,
    power: Arc<(Mutex<Power>, Condvar)>,
}

/// Requests that came when the power had failed. A process that could not exist any more must not
/// see how they end: they are answered, by an error, after it has been killed.
#[derive(Default)]
struct Power {
    has_failed: bool,
    held: Vec<Held>,
}

/// A request without an answer. Dropping it answers with an error.
#[expect(dead_code, reason = "held, not read")]
enum Held {
    Empty(ReplyEmpty),
    Entry(ReplyEntry),
    Attr(ReplyAttr),
    Write(ReplyWrite),
    Create(ReplyCreate),
}

impl Shared {
    pub(crate) fn new(disk: Disk) -> Self {
        Self { disk: Arc::new(Mutex::new(disk)), power: Arc::default() }
    }

    pub(crate) fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn power(&self) -> MutexGuard<'_, Power> {
        self.power.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the power has failed, at most so long. Returns whether it has.
    pub(crate) fn wait_for_loss(&self, longest: Duration) -> bool {
        let power = self.power();
        let waited = self.power.1.wait_timeout_while(power, longest, |power| !power.has_failed);
        waited.unwrap_or_else(PoisonError::into_inner).0.has_failed
    }

    /// The power fails now.
    pub(crate) fn cut_power(&self) {
        self.power().has_failed = true;
        self.power.1.notify_all();
    }

    /// Answers what was held, when no process is left to see it.
    pub(crate) fn drop_held(&self) {
        let held = std::mem::take(&mut self.power().held);
        drop(held);
    }

    /// Brings the power back, with what the disk has kept.
    pub(crate) fn restore_power(&self) {
        self.disk().lose_power();
        *self.power() = Power::default();
    }

    pub(crate) fn mount(&self, at: &Path) -> io::Result<BackgroundSession> {
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("faults".into()), MountOption::NoAtime];
        fuser::spawn_mount(Mounted(self.clone()), at, &config)
    }

    /// Counts a change. Returns its reply if there is power; else holds it.
    fn admit<R>(&self, reply: R, hold: impl FnOnce(R) -> Held) -> Option<R> {
        let has_power = self.disk().has_power();
        let mut power = self.power();
        if !power.has_failed && has_power {
            return Some(reply);
        }
        power.has_failed = true;
        power.held.push(hold(reply));
        self.power.1.notify_all();
        None
    }
}

struct Mounted(Shared);

fn attributes(ino: u64, node: &Node) -> FileAttr {
    let (kind, size, perm) = match node {
        Node::File(file) => (FileType::RegularFile, file.now.len() as u64, 0o644),
        Node::Folder(_) => (FileType::Directory, 0, 0o755),
    };
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Mounted {
    fn attributes(&self, ino: u64) -> Option<FileAttr> {
        self.0.disk().node(ino).map(|node| attributes(ino, node))
    }

    fn create_node(&self, parent: INodeNo, name: &OsStr, node: Node) -> Option<FileAttr> {
        let ino = self.0.disk().create(parent.0, name.to_str()?, node)?;
        self.attributes(ino)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some(reply) = self.0.admit(reply, Held::Empty) else { return };
        match name.to_str().and_then(|name| self.0.disk().remove(parent.0, name)) {
            Some(()) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn sync(&self, ino: INodeNo, reply: ReplyEmpty) {
        let Some(reply) = self.0.admit(reply, Held::Empty) else { return };
        match self.0.disk().sync(ino.0) {
            Some(true) => reply.ok(),
            Some(false) => reply.error(Errno::EIO),
            None => reply.error(Errno::ENOENT),
        }
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ino = {
            let disk = self.0.disk();
            let names = disk.folder(parent.0);
            names.and_then(|names| names.get(name.to_str()?).copied())
        };
        match ino.and_then(|ino| self.attributes(ino)) {
            Some(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino.0) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Some(reply) = self.0.admit(reply, Held::Attr) else { return };
        if let Some(size) = size {
            let _ = self.0.disk().resize(ino.0, size as usize);
        }
        match self.attributes(ino.0) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let Some(reply) = self.0.admit(reply, Held::Entry) else { return };
        match self.create_node(parent, name, Node::Folder(Default::default())) {
            Some(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            None => reply.error(Errno::EEXIST),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(reply) = self.0.admit(reply, Held::Empty) else { return };
        let (Some(from), Some(to)) = (name.to_str(), newname.to_str()) else {
            return reply.error(Errno::EINVAL);
        };
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        match self.0.disk().rename((parent.0, from), (newparent.0, to)) {
            Some(()) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let disk = self.0.disk();
        let Some(Node::File(file)) = disk.node(ino.0) else { return reply.error(Errno::ENOENT) };
        let from = file.now.len().min(offset as usize);
        let until = file.now.len().min(from + size as usize);
        reply.data(&file.now[from..until]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Also under way when the power fails: some of it may be on the disk.
        let written = self.0.disk().write(ino.0, offset as usize, data);
        let Some(reply) = self.0.admit(reply, Held::Write) else { return };
        match written {
            Some(()) => reply.written(data.len() as u32),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let disk = self.0.disk();
        let Some(names) = disk.folder(ino.0) else { return reply.error(Errno::ENOTDIR) };
        for (at, (name, ino)) in (1_u64..).zip(names).skip(offset as usize) {
            let kind = match disk.node(*ino) {
                Some(Node::Folder(_)) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            if reply.add(INodeNo(*ino), at, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096, 255, 4096);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let Some(reply) = self.0.admit(reply, Held::Create) else { return };
        match self.create_node(parent, name, Node::File(FileData::default())) {
            Some(attributes) => {
                reply.created(&TTL, &attributes, Generation(0), FileHandle(0), FopenFlags::empty());
            }
            None => reply.error(Errno::EEXIST),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        const KEEP_SIZE: i32 = 1;
        let Some(reply) = self.0.admit(reply, Held::Empty) else { return };
        let mut disk = self.0.disk();
        let Some(Node::File(file)) = disk.node(ino.0) else { return reply.error(Errno::ENOENT) };
        let end = (offset + length) as usize;
        match mode {
            0 if end > file.now.len() => {
                let _ = disk.resize(ino.0, end);
                reply.ok();
            }
            0 | KEEP_SIZE => reply.ok(),
            _ => reply.error(Errno::EOPNOTSUPP),
        }
    }
}
