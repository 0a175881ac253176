//! The state behind [`CrashFiles`](super::CrashFiles): what reads show, what the disk holds, and
//! what lies between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::Arc;

use bytes::Bytes;
use fastrand::Rng;

use super::fault::{Counters, Effect, Fault, Op};
use super::image::{Image, PAGE_BYTES};

/// The unit that a disk writes or does not.
pub(super) const SECTOR_BYTES: u64 = 512;

#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) rng: Rng,
    /// Handles of an earlier generation are dead.
    pub(super) generation: u64,
    pub(super) powered: bool,
    pub(super) locked: bool,
    pub(super) inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// The directory as it is seen, and as it was last synced, with what lies between.
    pub(super) names: BTreeMap<String, u64>,
    pub(super) durable_names: BTreeMap<String, u64>,
    pub(super) pending_names: Vec<Entry>,
    pub(super) capacity: Option<u64>,
    /// One page reaches the disk by itself for so many writes.
    pub(super) aging: Option<u32>,
    /// A power loss makes the sector unreadable in which a write is torn.
    pub(super) fragile: bool,
    pub(super) faults: Vec<Fault>,
    pub(super) counters: Counters,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    pub(super) seen: Image,
    pub(super) durable: Image,
    /// Writes since the last good sync, in order.
    pub(super) pending: Vec<Write>,
    /// Sectors that cannot be read until they are written as a whole.
    pub(super) unreadable: BTreeSet<u64>,
    /// Cloned into each handle: a removed file lives as long as its last handle.
    pub(super) handles: Arc<()>,
}

#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) offset: u64,
    pub(super) data: Bytes,
}

/// A change of the directory.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Create { name: String, inode: u64 },
    Rename { to: String, inode: u64 },
    Remove { name: String, inode: u64 },
}

impl Disk {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            generation: 0,
            powered: true,
            locked: false,
            inodes: BTreeMap::new(),
            next_inode: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            capacity: None,
            aging: None,
            fragile: false,
            faults: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Counts an operation and asks the fault plan about it. `Err` is the operation's result.
    fn begin(&mut self, op: Op) -> io::Result<Option<Effect>> {
        self.counters.operations += 1;
        if !self.powered {
            return Err(power_is_off());
        }
        let mut effect = None;
        for fault in &mut self.faults {
            effect = fault.fires(op, &mut self.rng).or(effect);
        }
        let Some(effect) = effect else { return Ok(None) };
        let passes_on = match op {
            Op::Read => matches!(effect, Effect::Short | Effect::FlipRead),
            Op::Write => !matches!(effect, Effect::FlipRead | Effect::DropDirty | Effect::LieSync),
            Op::Sync => matches!(effect, Effect::DropDirty | Effect::LieSync),
            _ => false,
        };
        if passes_on { Ok(Some(effect)) } else { Err(self.reject(effect)) }
    }

    /// The error of an operation that an effect ends.
    fn reject(&mut self, effect: Effect) -> io::Error {
        match effect {
            Effect::PowerOff => {
                self.powered = false;
                power_is_off()
            }
            Effect::NoSpace => self.no_space(),
            _ => {
                self.counters.failed += 1;
                io::Error::other("injected I/O error")
            }
        }
    }

    fn no_space(&mut self) -> io::Error {
        self.counters.no_space += 1;
        io::Error::from(ErrorKind::StorageFull)
    }

    pub(super) fn list(&mut self) -> io::Result<Vec<String>> {
        self.begin(Op::List)?;
        Ok(self.names.keys().cloned().collect())
    }

    pub(super) fn open(&mut self, name: &str) -> io::Result<(u64, Arc<()>)> {
        self.begin(Op::Open)?;
        let inode = self.lookup(name)?;
        Ok((inode, Arc::clone(&self.inode(inode)?.handles)))
    }

    pub(super) fn create(&mut self, name: &str) -> io::Result<(u64, Arc<()>)> {
        self.begin(Op::Create)?;
        if self.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if self.free_bytes() == Some(0) {
            return Err(self.no_space());
        }
        let inode = self.next_inode;
        self.next_inode += 1;
        let file = Inode::default();
        let handle = Arc::clone(&file.handles);
        self.inodes.insert(inode, file);
        self.names.insert(name.to_owned(), inode);
        self.pending_names.push(Entry::Create { name: name.to_owned(), inode });
        Ok((inode, handle))
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.begin(Op::Rename)?;
        let inode = self.lookup(from)?;
        let entry = Entry::Rename { to: to.to_owned(), inode };
        entry.apply(&mut self.names);
        self.pending_names.push(entry);
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) -> io::Result<()> {
        self.begin(Op::Remove)?;
        let inode = self.lookup(name)?;
        let entry = Entry::Remove { name: name.to_owned(), inode };
        entry.apply(&mut self.names);
        self.pending_names.push(entry);
        Ok(())
    }

    pub(super) fn sync_dir(&mut self) -> io::Result<()> {
        self.begin(Op::SyncDir)?;
        for entry in self.pending_names.drain(..) {
            entry.apply(&mut self.durable_names);
        }
        let (names, handles) = (&self.names, |file: &Inode| Arc::strong_count(&file.handles));
        self.inodes.retain(|id, file| handles(file) > 1 || names.values().any(|named| named == id));
        Ok(())
    }

    pub(super) fn len(&mut self, inode: u64) -> io::Result<u64> {
        self.begin(Op::Len)?;
        Ok(self.inode(inode)?.seen.len())
    }

    pub(super) fn read(&mut self, inode: u64, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let effect = self.begin(Op::Read)?;
        let mut wanted = buf.len();
        if effect == Some(Effect::Short) && wanted > 1 {
            self.counters.short += 1;
            wanted = self.rng.usize(1..wanted);
        }
        self.inode(inode)?.check_readable(offset, wanted as u64)?;
        let read = self.inode(inode)?.seen.read(&mut buf[..wanted], offset);
        if effect == Some(Effect::FlipRead) && read > 0 {
            self.counters.flips += 1;
            let bit = self.rng.usize(..read * 8);
            buf[bit / 8] ^= 1 << (bit % 8);
        }
        Ok(read)
    }

    pub(super) fn write(&mut self, inode: u64, data: Vec<u8>, offset: u64) -> io::Result<usize> {
        let effect = self.begin(Op::Write)?;
        let fits = self.fitting(inode, data.len(), offset)?;
        if fits < data.len() && fits == 0 {
            return Err(self.no_space());
        }
        let data = Bytes::from(data).slice(..fits);
        let length = data.len();
        match effect {
            None => self.store(inode, data, offset),
            Some(Effect::Misdirect) => self.misdirect(inode, &data, offset),
            Some(Effect::Short) => {
                self.counters.short += 1;
                let part = if length > 1 { self.rng.usize(1..length) } else { length };
                self.store(inode, data.slice(..part), offset)?;
                return Ok(part);
            }
            Some(effect) => {
                let part = self.rng.usize(..=length);
                self.store(inode, data.slice(..part), offset)?;
                return Err(self.reject(effect));
            }
        }?;
        Ok(length)
    }

    pub(super) fn sync(&mut self, inode: u64) -> io::Result<()> {
        let effect = self.begin(Op::Sync)?;
        if effect == Some(Effect::LieSync) {
            self.counters.lied += 1;
            return Ok(());
        }
        if effect.is_some() {
            self.counters.dirty_dropped += 1;
            self.inode(inode)?.pending.clear();
            return Err(io::Error::other("injected writeback error: dirty pages dropped"));
        }
        let file = self.inode(inode)?;
        for write in file.pending.drain(..) {
            file.durable.write(&write.data, write.offset);
        }
        Ok(())
    }

    /// Flips one bit of a file, on the disk and in what reads show. False when there is no such
    /// bit.
    pub(super) fn flip(&mut self, name: &str, bit: u64) -> bool {
        let Some(file) = self.names.get(name).and_then(|inode| self.inodes.get_mut(inode)) else {
            return false;
        };
        let (offset, mask) = (bit / 8, 1_u8 << (bit % 8));
        let mut byte = [0];
        if file.seen.read(&mut byte, offset) == 0 {
            return false;
        }
        file.seen.write(&[byte[0] ^ mask], offset);
        if file.durable.read(&mut byte, offset) == 1 {
            file.durable.write(&[byte[0] ^ mask], offset);
        }
        self.counters.flips += 1;
        true
    }

    pub(super) fn repair(&mut self) -> usize {
        let mut repaired = 0;
        for file in self.inodes.values_mut() {
            for sector in std::mem::take(&mut file.unreadable) {
                repaired += 1;
                let at = sector * SECTOR_BYTES;
                for image in [&mut file.seen, &mut file.durable] {
                    let room = image.len().saturating_sub(at).min(SECTOR_BYTES);
                    image.write(&[0; SECTOR_BYTES as usize][..room as usize], at);
                }
            }
        }
        repaired
    }

    pub(super) fn overwrite(&mut self, name: &str, offset: u64, bytes: &[u8]) {
        let Some(file) = self.names.get(name).and_then(|inode| self.inodes.get_mut(inode)) else {
            return;
        };
        for image in [&mut file.seen, &mut file.durable] {
            let room = image.len().saturating_sub(offset).min(bytes.len() as u64);
            image.write(&bytes[..room as usize], offset);
        }
    }

    fn store(&mut self, inode: u64, data: Bytes, offset: u64) -> io::Result<()> {
        let file = self.inode(inode)?;
        file.check_writable(offset, data.len() as u64)?;
        file.seen.write(&data, offset);
        if !data.is_empty() {
            file.pending.push(Write { offset, data });
        }
        self.age();
        Ok(())
    }

    /// Writes a page back that nobody has synced, now and then: what the kernel does after some
    /// time, or when it needs the memory.
    fn age(&mut self) {
        let Some(one_in) = self.aging else { return };
        if self.rng.u32(..one_in.max(1)) != 0 {
            return;
        }
        let dirty = |(inode, file): (&u64, &Inode)| (!file.pending.is_empty()).then_some(*inode);
        let dirty: Vec<u64> = self.inodes.iter().filter_map(dirty).collect();
        let Some(inode) = self.rng.choice(&dirty) else { return };
        let nth = self.rng.u64(..);
        if let Some(file) = self.inodes.get_mut(inode) {
            let write = &file.pending[(nth % file.pending.len() as u64) as usize];
            let page = (write.offset + nth % write.data.len() as u64) / PAGE_BYTES as u64;
            file.write_back(page);
            self.counters.aged += 1;
        }
    }

    /// Reads of the right place show the write, out of the page cache; the disk has it elsewhere.
    fn misdirect(&mut self, inode: u64, data: &[u8], offset: u64) -> io::Result<()> {
        self.inode(inode)?.seen.write(data, offset);
        let victims: Vec<u64> = self.inodes.keys().copied().collect();
        let victim = victims[self.rng.usize(..victims.len())];
        let sectors = self.inode(victim)?.durable.len() / SECTOR_BYTES;
        let place = self.rng.u64(..sectors.max(1)) * SECTOR_BYTES;
        let room = self.inode(victim)?.durable.len().saturating_sub(place) as usize;
        if room > 0 && (victim, place) != (inode, offset) {
            self.counters.misdirected += 1;
            self.inode(victim)?.durable.write(&data[..data.len().min(room)], place);
        }
        Ok(())
    }

    /// How many of `length` bytes at `offset` the capacity allows.
    fn fitting(&mut self, inode: u64, length: usize, offset: u64) -> io::Result<usize> {
        let end = self.inode(inode)?.seen.len();
        let Some(free) = self.free_bytes() else { return Ok(length) };
        let room = end.saturating_sub(offset).saturating_add(free);
        Ok(length.min(usize::try_from(room).unwrap_or(usize::MAX)))
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.names.values().map(|inode| self.inodes[inode].seen.len()).sum()
    }

    fn free_bytes(&self) -> Option<u64> {
        self.capacity.map(|capacity| capacity.saturating_sub(self.used_bytes()))
    }

    fn lookup(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn inode(&mut self, inode: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&inode).ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl Inode {
    /// Everything that is pending for a page reaches the disk, in the order of the writes; what
    /// the writes hold beside it stays pending.
    fn write_back(&mut self, page: u64) {
        let (from, to) = (page * PAGE_BYTES as u64, (page + 1) * PAGE_BYTES as u64);
        for write in std::mem::take(&mut self.pending) {
            let Write { offset, data } = write;
            let cut = |at: u64| at.saturating_sub(offset).min(data.len() as u64) as usize;
            let (start, end) = (cut(from), cut(to));
            self.durable.write(&data[start..end], offset + start as u64);
            for rest in [0..start, end..data.len()] {
                if !rest.is_empty() {
                    let at = offset + rest.start as u64;
                    self.pending.push(Write { offset: at, data: data.slice(rest) });
                }
            }
        }
    }

    fn check_readable(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = (offset + length).div_ceil(SECTOR_BYTES);
        match self.unreadable.range(offset / SECTOR_BYTES..end).next() {
            None => Ok(()),
            Some(sector) => Err(io::Error::other(format!("sector {sector} is unreadable"))),
        }
    }

    /// A sector that cannot be read can only be written as a whole, and can be read then.
    fn check_writable(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let whole = offset.div_ceil(SECTOR_BYTES)..(offset + length) / SECTOR_BYTES;
        let touched = offset / SECTOR_BYTES..(offset + length).div_ceil(SECTOR_BYTES);
        if self.unreadable.range(touched).any(|sector| !whole.contains(sector)) {
            return self.check_readable(offset, length);
        }
        self.unreadable.retain(|sector| !whole.contains(sector));
        Ok(())
    }
}

impl Entry {
    /// A rename moves whatever name the file has, so that it never ends up with two.
    pub(super) fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Create { name, inode } => {
                names.insert(name.clone(), *inode);
            }
            Self::Rename { to, inode } => {
                names.retain(|_, named| named != inode);
                names.insert(to.clone(), *inode);
            }
            Self::Remove { name, inode } => {
                if names.get(name) == Some(inode) {
                    names.remove(name);
                }
            }
        }
    }
}

pub(super) fn power_is_off() -> io::Error {
    io::Error::other("the power is off")
}
