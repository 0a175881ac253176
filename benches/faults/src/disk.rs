//! A disk in memory that loses power and fails syncs: what was written and not synced is kept or
//! lost by sectors, at random.

use std::collections::{BTreeMap, HashMap};

use fastrand::Rng;

/// The inode of the root folder.
pub(crate) const ROOT: u64 = 1;
/// What a real disk writes at once.
const SECTOR_BYTES: usize = 512;

/// Which syncs make a name (created, renamed, removed) durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// A sync of any file or folder, for all names before it, in order: what ext4's journal does.
    WithAnySync,
    /// A sync of the folder alone: what POSIX promises.
    WithTheirFolder,
}

/// What a file or folder is.
pub(crate) enum Node {
    File(FileData),
    /// The names as a process sees them.
    Folder(BTreeMap<String, u64>),
}

/// Bytes of a file, as a process sees them and as they are on the disk.
#[derive(Default)]
pub(crate) struct FileData {
    pub(crate) now: Vec<u8>,
    durable: Vec<u8>,
    /// Changes since the last sync, oldest first.
    pending: Vec<Change>,
}

enum Change {
    Write { at: usize, data: Vec<u8> },
    Resize(usize),
}

/// A change of names. Applied to the folders on the disk in order.
struct NameChange {
    removes: Option<(u64, String)>,
    adds: Option<(u64, String, u64)>,
}

impl NameChange {
    fn touches(&self, folder: u64) -> bool {
        let removed = self.removes.as_ref().is_some_and(|(parent, _)| *parent == folder);
        removed || self.adds.as_ref().is_some_and(|(parent, ..)| *parent == folder)
    }

    fn apply(&self, folders: &mut HashMap<u64, BTreeMap<String, u64>>) {
        if let Some((parent, name)) = &self.removes {
            folders.entry(*parent).or_default().remove(name);
        }
        if let Some((parent, name, ino)) = &self.adds {
            folders.entry(*parent).or_default().insert(name.clone(), *ino);
        }
    }
}

/// What happened to a disk, so that a run can show that its faults were met.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Met {
    pub(crate) losses: u64,
    pub(crate) writes_lost: u64,
    pub(crate) writes_torn: u64,
    pub(crate) names_lost: u64,
    pub(crate) syncs_failed: u64,
}

pub(crate) struct Disk {
    names: Names,
    nodes: HashMap<u64, Node>,
    /// The folders as they are on the disk.
    durable: HashMap<u64, BTreeMap<String, u64>>,
    pending: Vec<NameChange>,
    next: u64,
    random: Rng,
    /// How many changes and syncs until the power fails.
    pub(crate) loses_power_after: u64,
    /// How many syncs until one fails; `None`: none does.
    pub(crate) fails_sync_after: Option<u64>,
    pub(crate) met: Met,
}

impl Disk {
    pub(crate) fn new(names: Names, seed: u64) -> Self {
        Self {
            names,
            nodes: HashMap::from([(ROOT, Node::Folder(BTreeMap::new()))]),
            durable: HashMap::new(),
            pending: Vec::new(),
            next: ROOT + 1,
            random: Rng::with_seed(seed),
            loses_power_after: u64::MAX,
            fails_sync_after: None,
            met: Met::default(),
        }
    }

    pub(crate) fn node(&self, ino: u64) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    pub(crate) fn folder(&self, ino: u64) -> Option<&BTreeMap<String, u64>> {
        match self.nodes.get(&ino)? {
            Node::Folder(names) => Some(names),
            Node::File(_) => None,
        }
    }

    fn folder_mut(&mut self, ino: u64) -> Option<&mut BTreeMap<String, u64>> {
        match self.nodes.get_mut(&ino)? {
            Node::Folder(names) => Some(names),
            Node::File(_) => None,
        }
    }

    fn file_mut(&mut self, ino: u64) -> Option<&mut FileData> {
        match self.nodes.get_mut(&ino)? {
            Node::File(file) => Some(file),
            Node::Folder(_) => None,
        }
    }

    /// Counts a change or a sync. Returns false once the power has failed.
    pub(crate) fn has_power(&mut self) -> bool {
        self.loses_power_after = self.loses_power_after.saturating_sub(1);
        self.loses_power_after > 0
    }

    /// Creates a file or a folder; `None` if the folder is unknown or the name is taken.
    pub(crate) fn create(&mut self, parent: u64, name: &str, node: Node) -> Option<u64> {
        if self.folder(parent)?.contains_key(name) {
            return None;
        }
        let ino = self.next;
        self.next += 1;
        self.nodes.insert(ino, node);
        self.folder_mut(parent)?.insert(name.to_owned(), ino);
        let adds = Some((parent, name.to_owned(), ino));
        self.pending.push(NameChange { removes: None, adds });
        Some(ino)
    }

    /// Removes a name. What it named stays for those who have it open.
    pub(crate) fn remove(&mut self, parent: u64, name: &str) -> Option<()> {
        self.folder_mut(parent)?.remove(name)?;
        let removes = Some((parent, name.to_owned()));
        self.pending.push(NameChange { removes, adds: None });
        Some(())
    }

    /// Gives what has one name another, in place of what may have had that.
    pub(crate) fn rename(&mut self, from: (u64, &str), to: (u64, &str)) -> Option<()> {
        let ino = self.folder_mut(from.0)?.remove(from.1)?;
        self.folder_mut(to.0)?.insert(to.1.to_owned(), ino);
        let removes = Some((from.0, from.1.to_owned()));
        self.pending.push(NameChange { removes, adds: Some((to.0, to.1.to_owned(), ino)) });
        Some(())
    }

    pub(crate) fn write(&mut self, ino: u64, at: usize, data: &[u8]) -> Option<()> {
        let file = self.file_mut(ino)?;
        let change = Change::Write { at, data: data.to_vec() };
        change.apply(&mut file.now);
        file.pending.push(change);
        Some(())
    }

    pub(crate) fn resize(&mut self, ino: u64, bytes: usize) -> Option<()> {
        let file = self.file_mut(ino)?;
        file.now.resize(bytes, 0);
        file.pending.push(Change::Resize(bytes));
        Some(())
    }

    /// Makes a file or the names of a folder durable. `Some(false)`: the sync failed, and what it
    /// should have written is marked as written, as Linux does: a later sync will not write it.
    pub(crate) fn sync(&mut self, ino: u64) -> Option<bool> {
        self.nodes.get(&ino)?;
        if let Some(left) = self.fails_sync_after {
            self.fails_sync_after = left.checked_sub(1);
            if left == 0 {
                if let Some(file) = self.file_mut(ino) {
                    file.pending.clear();
                }
                self.met.syncs_failed += 1;
                return Some(false);
            }
        }
        if let Some(file) = self.file_mut(ino) {
            for change in std::mem::take(&mut file.pending) {
                change.apply(&mut file.durable);
            }
        }
        let names = self.names;
        for change in std::mem::take(&mut self.pending) {
            if names == Names::WithAnySync || change.touches(ino) {
                change.apply(&mut self.durable);
            } else {
                self.pending.push(change);
            }
        }
        Some(true)
    }

    /// The power fails: of what was not synced some is kept, and the rest is gone.
    pub(crate) fn lose_power(&mut self) {
        self.met.losses += 1;
        for node in self.nodes.values_mut() {
            if let Node::File(file) = node {
                let FileData { now, durable, pending } = file;
                for change in std::mem::take(pending) {
                    change.apply_in_part(durable, &mut self.random, &mut self.met);
                }
                now.clone_from(durable);
            }
        }
        self.lose_names();
        let folders: Vec<u64> = self
            .nodes
            .iter()
            .filter_map(|(ino, node)| matches!(node, Node::Folder(_)).then_some(*ino))
            .collect();
        for ino in folders {
            let names = self.durable.get(&ino).cloned().unwrap_or_default();
            self.nodes.insert(ino, Node::Folder(names));
        }
    }

    /// Keeps the first changes of names: of all folders in one order, or of each folder.
    fn lose_names(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let mut kept = self.random.usize(..=pending.len());
        let mut lost_folders = Vec::new();
        for (at, change) in pending.iter().enumerate() {
            let is_kept = match self.names {
                Names::WithAnySync => at < kept,
                Names::WithTheirFolder => {
                    let is_lost = lost_folders.iter().any(|&folder| change.touches(folder));
                    !is_lost && self.random.bool()
                }
            };
            if is_kept {
                change.apply(&mut self.durable);
                continue;
            }
            kept = kept.min(at);
            self.met.names_lost += 1;
            lost_folders.extend(change.removes.as_ref().map(|(folder, _)| *folder));
            lost_folders.extend(change.adds.as_ref().map(|(folder, ..)| *folder));
        }
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Resize(length) => bytes.resize(*length, 0),
            Self::Write { at, data } => put(bytes, *at, data),
        }
    }

    /// As it may be after a loss of power: wholly, not at all, or some of its sectors.
    fn apply_in_part(self, bytes: &mut Vec<u8>, random: &mut Rng, met: &mut Met) {
        match (random.u8(..3), &self) {
            (0, _) => self.apply(bytes),
            (1, Self::Write { at, data }) if data.len() > 1 => {
                met.writes_torn += 1;
                let mut from = 0;
                while from < data.len() {
                    let of_sector = SECTOR_BYTES - (at + from) % SECTOR_BYTES;
                    let until = data.len().min(from + of_sector);
                    if random.bool() {
                        put(bytes, at + from, &data[from..until]);
                    }
                    from = until;
                }
            }
            _ => met.writes_lost += 1,
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}
