//! Opening: from what the disk kept to a journal that can go on.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::Mutex;

use crate::config::Config;
use crate::core::bounds::UNKNOWN;
use crate::core::queue::State;
use crate::core::reserve::Claim;
use crate::core::view::Extent;
use crate::engine::cache::{Buffers, IndexCache};
use crate::engine::lead::Leadership;
use crate::engine::reader::{find_index, read_directory};
use crate::engine::seal::{Seal, write_trailer};
use crate::engine::segment::Segment;
use crate::engine::space::{Census, Keeper, MANIFEST, PrepareError, Space, is_full};
use crate::engine::wakers::Wakers;
use crate::engine::writer::{Active, Writer};
use crate::engine::{Counters, Engine, next_opening};
use crate::error::{Fault, FullCause, OpenError, ReadError};
use crate::files::{File, Files, read_full_at, write_all_at};
use crate::format::index::DirectoryEntry;
use crate::format::manifest::{
    Life, Manifest, SLOT_BYTES, SPAN_REWRITTEN, Slot, segment_name, segment_slot,
};
use crate::format::segment::{self, Found, SegmentHeader};
use crate::format::table::{self, Table};
use crate::format::{FRAMES_AT, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, VERSION};

pub(crate) mod rebuild;
pub(crate) mod replay;
pub(crate) mod scan;

use rebuild::{Rebuild, Rebuilt};
use replay::{Replay, Trust};
use scan::Scanner;

const MANIFEST_NEW: &str = "manifest.new";

/// What the directory holds, before anything is changed.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) manifest: Manifest,
    manifest_file: Arc<dyn File>,
    /// Both copies of the manifest are whole.
    manifest_whole: bool,
    /// Live segments by sequence, without those of moved frames.
    pub(crate) live: Vec<Arc<Segment>>,
    /// Live segments of moved frames, by sequence.
    pub(crate) rewritten: Vec<Arc<Segment>>,
    /// The highest sequence that the manifest or the header of any file has.
    newest: u64,
    /// Slots of segment files that are not live.
    free: Vec<u32>,
}

/// Opens a journal over any files.
pub(crate) fn open(files: Arc<dyn Files>, config: Config) -> Result<Arc<Engine>, OpenError> {
    config.validate()?;
    let guard = lock(&*files)?;
    let names = list(&*files)?;
    // A process that was killed may have left names that are seen and not yet durable.
    files.sync_dir().map_err(|error| Fault::new("sync", "directory", &error))?;
    if !names.iter().any(|name| name == MANIFEST) {
        create_manifest(&*files, &names, &config)?;
    }
    Recovered::read(&*files)?.into_engine(files, config, guard)
}

pub(crate) fn lock(files: &dyn Files) -> Result<Box<dyn Send + Sync>, OpenError> {
    match files.lock() {
        Ok(guard) => Ok(guard),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(OpenError::InUse),
        Err(error) => Err(Fault::new("lock", "directory", &error).into()),
    }
}

fn list(files: &dyn Files) -> Result<Vec<String>, Fault> {
    files.list().map_err(|error| Fault::new("list", "directory", &error))
}

/// Creates the manifest of a new journal: whole under its name, or not there.
fn create_manifest(files: &dyn Files, names: &[String], config: &Config) -> Result<(), OpenError> {
    let segments = names.iter().filter(|name| segment_slot(name).is_some()).count();
    if segments > 0 {
        return Err(OpenError::ManifestMissing { segments });
    }
    let fault = |operation, error: &io::Error| Fault::new(operation, MANIFEST_NEW, error);
    let file = match files.create(MANIFEST_NEW) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => files.open(MANIFEST_NEW),
        other => other,
    };
    let file = file.map_err(|error| fault("create", &error))?;
    let journal = config.identity.unwrap_or_else(random_identity);
    let manifest = Manifest { journal, epoch: 0, counter: 0, mark: 0, live: Vec::new() };
    let mut bytes = manifest.encode();
    bytes.resize(SLOT_BYTES, 0);
    // Both slots, so that the room for them is taken once and for all.
    let second = Manifest { counter: 1, ..manifest }.encode();
    bytes.extend_from_slice(&second);
    bytes.resize(2 * SLOT_BYTES, 0);
    write_all_at(&*file, &bytes, 0).map_err(|error| fault("write", &error))?;
    file.sync_data().map_err(|error| fault("sync", &error))?;
    files.rename(MANIFEST_NEW, MANIFEST).map_err(|error| fault("rename", &error))?;
    files.sync_dir().map_err(|error| Fault::new("sync", "directory", &error))?;
    Ok(())
}

/// 128 bits from the seeds that the standard library draws for its hash maps.
fn random_identity() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    let half = |salt: u64| u128::from(RandomState::new().hash_one((salt, std::process::id())));
    half(1) << 64 | half(2)
}

/// Reads the manifest and opens the segments that count.
pub(crate) fn read_directory_of(
    files: &dyn Files,
    names: &[String],
) -> Result<Directory, OpenError> {
    let manifest_file =
        files.open(MANIFEST).map_err(|error| Fault::new("open", MANIFEST, &error))?;
    let (manifest, manifest_whole) = read_manifest(&*manifest_file)?;
    let listed: BTreeMap<u32, Life> = manifest.live.iter().map(|life| (life.slot, *life)).collect();
    let lives = Lives {
        manifest: &manifest,
        is_whole: manifest_whole,
        newest: manifest.live.last().map_or(0, |life| life.sequence),
    };
    let mut newest = lives.newest;
    let (mut live, mut rewritten, mut free) = (Vec::new(), Vec::new(), Vec::new());
    let mut slots: Vec<u32> = names.iter().filter_map(|name| segment_slot(name)).collect();
    slots.sort_unstable();
    if let Some(missing) = manifest.live.iter().find(|life| !slots.contains(&life.slot)) {
        return Err(OpenError::SegmentMissing { name: segment_name(missing.slot) });
    }
    for slot in slots {
        let name = segment_name(slot);
        let file = files.open(&name).map_err(|error| Fault::new("open", &*name, &error))?;
        let (segment, sequence) = lives.life_of(file, &name, listed.get(&slot).copied())?;
        // No more rounds of rewriting than this end in a crash between two manifests.
        const AHEAD: u64 = 1 << 32;
        if sequence.saturating_sub(lives.newest) < AHEAD {
            newest = newest.max(sequence);
        }
        match segment {
            Some(segment) if segment.is_rewritten() => rewritten.push(segment),
            Some(segment) => live.push(segment),
            None => free.push(slot),
        }
    }
    live.sort_unstable_by_key(|segment| segment.sequence);
    rewritten.sort_unstable_by_key(|segment| segment.sequence);
    for segment in &live {
        let life = manifest.live.iter().find(|life| life.sequence == segment.sequence);
        segment.set_span(life.map_or(0, |life| life.span));
    }
    Ok(Directory { manifest, manifest_file, manifest_whole, live, rewritten, newest, free })
}

pub(crate) fn read_manifest(file: &dyn File) -> Result<(Manifest, bool), OpenError> {
    let mut found = Vec::new();
    let mut slot = vec![0; SLOT_BYTES];
    for at in [0, SLOT_BYTES as u64] {
        let read = read_full_at(file, &mut slot, at)
            .map_err(|error| Fault::new("read", MANIFEST, &error))?;
        match Manifest::decode(&slot[..read]) {
            Slot::Valid(manifest) => found.push(manifest),
            Slot::Newer(version) => {
                let name = MANIFEST.to_owned();
                return Err(OpenError::NewerFormat { name, found: version, supported: VERSION });
            }
            Slot::Invalid => {}
        }
    }
    let whole = found.len() == 2;
    match found.into_iter().max_by_key(|manifest| manifest.counter) {
        Some(manifest) => Ok((manifest, whole)),
        None => Err(OpenError::ManifestDamaged { detail: "neither copy verifies".to_owned() }),
    }
}

/// What decides which files are live.
struct Lives<'a> {
    manifest: &'a Manifest,
    /// Both copies of the manifest are whole.
    is_whole: bool,
    /// The highest sequence in the manifest.
    newest: u64,
}

impl Lives<'_> {
    /// The segment in a file, if it is live, and the sequence that its header has.
    fn life_of(
        &self,
        file: Arc<dyn File>,
        name: &str,
        listed: Option<Life>,
    ) -> Result<(Option<Arc<Segment>>, u64), OpenError> {
        let fault = |error: io::Error| Fault::new("read", name, &error);
        let mut bytes = [0; segment::BYTES];
        let read = read_full_at(&*file, &mut bytes, 0).map_err(fault)?;
        let slot = segment_slot(name).unwrap_or_default();
        let journal = self.manifest.journal;
        match (SegmentHeader::decode(&bytes[..read]), listed) {
            (Found::Newer(found), _) => {
                Err(OpenError::NewerFormat { name: name.to_owned(), found, supported: VERSION })
            }
            (Found::Header(header), _) if header.journal != journal => {
                Err(OpenError::ForeignSegment { name: name.to_owned() })
            }
            (Found::Header(header), listed) => {
                let SegmentHeader { sequence, size, is_rewritten, .. } = header;
                let segment = Segment::new(journal, slot, sequence, size, file);
                let segment = segment.with_moved_frames(is_rewritten);
                let counts = listed.is_some_and(|listed| listed.sequence == sequence)
                    || self.counts_unlisted(&segment, listed.is_some())?;
                Ok((counts.then(|| Arc::new(segment)), sequence))
            }
            // Only the header is damaged; the frames do not need it.
            (Found::Nothing, Some(life)) => {
                let size = file.len().map_err(fault)?;
                let size = size.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
                let segment = Segment::new(journal, slot, life.sequence, size, file);
                let segment = segment.with_moved_frames(life.span == SPAN_REWRITTEN);
                Ok((Some(Arc::new(segment)), life.sequence))
            }
            (Found::Nothing, None) => Ok((None, 0)),
        }
    }

    /// One copy of the manifest may be damaged and the other one older than this life of a file.
    /// `was_listed`: an earlier life of it is in the manifest.
    fn counts_unlisted(&self, segment: &Segment, was_listed: bool) -> Result<bool, OpenError> {
        if segment.is_rewritten() {
            // Its batches are those that it was copied from, so that it never does harm.
            return Ok(!self.is_whole && is_indexed(segment).unwrap_or(false));
        }
        Ok((was_listed || segment.sequence > self.newest) && begins_with_table(segment)?)
    }
}

/// Whether a segment's first frame is a table that verifies.
pub(crate) fn begins_with_table(segment: &Segment) -> Result<bool, Fault> {
    use crate::format::frame::FrameKind;
    let mut scanner = Scanner::new(segment);
    let Some(frame) = scanner.frame(FRAMES_AT)? else { return Ok(false) };
    Ok(frame.unknown.is_some()
        || frame.kind() == Some(FrameKind::Table) && scanner.bad_payloads(&frame)?.is_empty())
}

/// Replays the segments from the newest table on; answers the place of the first of them among
/// the live ones, or nothing for a journal that has no frames.
fn replay_tail(directory: &Directory) -> Result<(Replay, Option<usize>), OpenError> {
    let mut base = None;
    for (number, segment) in directory.live.iter().enumerate().rev() {
        if begins_with_table(segment)? {
            base = Some(number);
            break;
        }
    }
    let Some(base) = base else {
        for segment in &directory.live {
            if let Some(frame) = Scanner::new(segment).search(FRAMES_AT)? {
                let (name, lsn) = (segment.name(), frame.header.lsn);
                let detail = format!("{name} has a frame with LSN {lsn} and no table before it");
                return Err(OpenError::TableDamaged { detail });
            }
        }
        if directory.manifest.mark > 0 {
            let detail = format!("no frames at all up to LSN {}", directory.manifest.mark);
            return Err(OpenError::TableDamaged { detail });
        }
        return Ok((Replay::fresh(), None));
    };
    let closed_epoch = directory.manifest_whole.then_some(directory.manifest.epoch);
    let trust = Trust { closed_epoch, mark: directory.manifest.mark };
    let replay = replay::replay(&directory.live[base..], trust)?;
    Ok((replay, Some(base)))
}

/// Everything that was found, on the way to a journal that works.
pub(crate) struct Recovered {
    pub(crate) directory: Directory,
    pub(crate) replay: Replay,
    replayed: Option<usize>,
    /// Full segments without an index that can be used.
    without_index: Vec<Arc<Segment>>,
}

impl Recovered {
    /// Reads what there is, changing nothing.
    pub(crate) fn read(files: &dyn Files) -> Result<Self, OpenError> {
        let names = list(files)?;
        if !names.iter().any(|name| name == MANIFEST) {
            let segments = names.iter().filter(|name| segment_slot(name).is_some()).count();
            return Err(OpenError::ManifestMissing { segments });
        }
        let directory = read_directory_of(files, &names)?;
        let (replay, replayed) = replay_tail(&directory)?;
        let mut recovered = Self { directory, replay, replayed, without_index: Vec::new() };
        if let Some((active, _)) = recovered.active() {
            recovered.attach_sealed(&active)?;
        }
        Ok(recovered)
    }

    fn into_engine(
        self,
        files: Arc<dyn Files>,
        config: Config,
        guard: Box<dyn Send + Sync>,
    ) -> Result<Arc<Engine>, OpenError> {
        self.check_table(&config)?;
        let active = self.active();
        if let Some((segment, tail)) = &active {
            self.rewrite_above_mark(segment, *tail)?;
        }
        let unmovable = self.restore_indexes();
        let census = self.census(active.as_ref().map(|(segment, _)| segment), &config);
        let Directory { mut manifest, manifest_file, .. } = self.directory;
        manifest.epoch = manifest.epoch.max(self.replay.epoch).saturating_add(1);
        let mut first_lsn = 0;
        if let Some((segment, _)) = &active {
            first_lsn = scan::first_lsn(segment)?.unwrap_or(0);
            // A rotation that a crash cut off may have left a span; the segment is not full yet.
            let index = self.replay.sealed.map_or(0, |(_, _, lsn)| lsn);
            segment.set_full(first_lsn, index);
        }
        let live = census.live(active.as_ref().map(|(segment, _)| segment));
        manifest.mark = self.replay.next_lsn - 1;
        let epoch = manifest.epoch;
        let space = Space::new(census, &config);
        let mut keeper = Keeper::new(Arc::clone(&files), &config, manifest, live, manifest_file);
        keeper.write_manifest()?;

        let last = self.replay.next_lsn - 1;
        let mut state = State::new(&config);
        state.next_number = self.replay.next_number;
        state.names_missing = self.replay.names_missing;
        let (segment, tail) = match active {
            Some(active) => active,
            None => (first_segment(&mut keeper, &space)?, FRAMES_AT),
        };
        let sealed = self.replay.sealed.is_some();
        let active = Active { tail, first_lsn, sealed, ..Active::new(segment) };
        let mut writer = Writer::new(active, self.replay.next_lsn, epoch);
        let spare = if self.replay.gaps > 0 { spare_segment(&mut keeper, &space)? } else { None };
        fill_state(&mut state, &mut writer.active, self.replay);
        let engine = Arc::new(Engine {
            opening: next_opening(),
            index_cache: Mutex::new(IndexCache::new(config.index_cache_bytes)),
            config,
            writer: Mutex::new(writer),
            state: Mutex::new(state),
            leadership: Leadership::default(),
            space,
            keeper: Mutex::new(keeper),
            buffers: Buffers::default(),
            rewriter: Mutex::default(),
            rounds_ended: AtomicU64::new(0),
            write_buffers: Arc::default(),
            durable: AtomicU64::new(last),
            written: AtomicU64::new(last),
            counters: Counters { segments_unmovable: unmovable.into(), ..Counters::default() },
            closed: AtomicBool::new(false),
            halted: Wakers::default(),
            leases: Mutex::default(),
            shared: Mutex::default(),
            guard: Mutex::new(Some(guard)),
            files,
        });
        begin_epoch(&engine, spare)?;
        Ok(engine)
    }

    /// Whether the table of logs leaves enough of a segment of the size asked for.
    fn check_table(&self, config: &Config) -> Result<(), OpenError> {
        let logs = self.replay.logs.values();
        let bytes = table::bytes(logs.map(|log| &*log.name.namespace));
        let segment_bytes = config.segment_bytes;
        if bytes <= table::bytes_max(segment_bytes) {
            return Ok(());
        }
        Err(OpenError::TableTooLarge { logs: self.replay.logs.len(), bytes, segment_bytes })
    }

    /// The segment to go on in, and where.
    pub(crate) fn active(&self) -> Option<(Arc<Segment>, u64)> {
        let base = self.replayed?;
        let (number, tail) = self.replay.end;
        Some((Arc::clone(self.directory.live.get(base + number)?), tail))
    }

    /// Gives the logs what sealed segments have of them.
    fn attach_sealed(&mut self, active: &Arc<Segment>) -> Result<(), OpenError> {
        let base = self.replayed.unwrap_or_default();
        let mut found: BTreeMap<u64, Vec<Extent>> = BTreeMap::new();
        let moved_are_whole = self.attach_moved(&mut found)?;
        // The newest segment in which something of a log may be lost.
        let mut unproven: BTreeMap<u64, u64> = BTreeMap::new();
        let live = self.directory.live.clone();
        for pair in live[..=base].windows(2) {
            let [segment, next] = pair else { continue };
            let (extents, rebuilt) = contents(segment)?;
            self.keep_known(extents, &mut found);
            let Some(rebuild) = rebuilt else { continue };
            self.without_index.push(Arc::clone(segment));
            if rebuild.is_whole(segment.span(), scan::first_lsn(next)?) {
                let (first, index) = rebuild.lsns();
                segment.set_full(first, index);
            } else {
                for number in self.unproven(segment, next, &rebuild)? {
                    unproven.insert(number, segment.sequence);
                }
            }
        }
        for (number, log) in &mut self.replay.logs {
            log.view.merge(found.remove(number).unwrap_or_default());
            for segment in &live[base..] {
                if !Arc::ptr_eq(segment, active) {
                    log.view.seal(segment);
                }
            }
            // A lost frame there may have replaced what is in older segments, and in none newer.
            let lost_in = unproven.get(number).copied().unwrap_or_default();
            let is_older = |extent: &Extent| {
                extent.segment.sequence <= lost_in || lost_in > 0 && extent.segment.is_rewritten()
            };
            if !moved_are_whole || log.view.extents().any(is_older) {
                let end = log.view.bounds.end;
                log.view.bounds.hurt(end, UNKNOWN);
            }
            if let Some((from, until)) = log.view.hole() {
                log.view.bounds.hurt(from, until);
            }
            if let Some((from, until)) = log.view.bounds.damage {
                let log = &log.name;
                tracing::warn!(target: "voussoir::journal", %log, from, until, "damaged");
            }
        }
        Ok(())
    }

    /// Of what a segment holds, keeps the extents of logs that exist.
    fn keep_known(&self, extents: Extents, found: &mut BTreeMap<u64, Vec<Extent>>) {
        for (number, mut extent) in extents {
            if self.replay.logs.contains_key(&number) {
                extent.batches = None;
                found.entry(number).or_default().push(extent);
            } else {
                extent.segment.unpin(0);
            }
        }
    }

    /// Gathers what segments of moved frames hold. False when batches may be missing of which it
    /// is not known where they stood: older ones may then seem to count.
    fn attach_moved(&mut self, found: &mut BTreeMap<u64, Vec<Extent>>) -> Result<bool, OpenError> {
        let mut whole = true;
        for segment in &self.directory.rewritten.clone() {
            if let Some(index) = readable(segment, find_index(segment))
                && let Some(directory) = readable(segment, read_directory(segment, &index))
            {
                self.keep_known(extents_of(segment, directory), found);
                continue;
            }
            let name = segment.name();
            tracing::warn!(target: "voussoir::journal", name, "no index: reading all frames");
            self.without_index.push(Arc::clone(segment));
            let rebuild = scan::rebuild_moved(segment)?;
            whole &= rebuild.is_whole_moved();
            self.keep_known(rebuilt_extents(segment, &rebuild.logs), found);
        }
        Ok(whole)
    }

    /// Frames of a sealed segment are lost. They may have held changes to any of these logs; for
    /// the others the chain of sections and the tables here and in the next segment prove that
    /// they did not.
    fn unproven(
        &self,
        segment: &Segment,
        next: &Segment,
        rebuild: &Rebuild,
    ) -> Result<Vec<u64>, OpenError> {
        let lasts = |table: Option<(Table, u64)>| -> (BTreeMap<u64, u64>, u64) {
            let (table, next_number) = table.unwrap_or_default();
            (table.logs.into_iter().map(|log| (log.number, log.last)).collect(), next_number)
        };
        let (before, _) = lasts(scan::first_table(segment)?);
        let (after, next_number) = lasts(scan::first_table(next)?);
        let proven = |number: &u64| {
            let created_later = next_number > 0 && *number >= next_number;
            let after = after.get(number).copied();
            let before = before.get(number).copied();
            created_later || after.is_some_and(|after| rebuild.proves(*number, before, after))
        };
        Ok(self.replay.logs.keys().copied().filter(|number| !proven(number)).collect())
    }

    /// Writes what is kept above the mark once more: an earlier sync that failed may have left
    /// it in the page cache alone, from where it was read.
    fn rewrite_above_mark(&self, segment: &Arc<Segment>, tail: u64) -> Result<(), OpenError> {
        let Some(from) = self.replay.above_mark(self.replay.end.0) else { return Ok(()) };
        let fault = |operation, error: &io::Error| Fault::new(operation, segment.name(), error);
        let mut scanner = Scanner::new(segment);
        let mut at = from;
        while at < tail {
            let length = (tail - at).min(1 << 20) as usize;
            let bytes = scanner.bytes(at, length)?;
            write_all_at(&*segment.file, bytes, at).map_err(|error| fault("write", &error))?;
            at += length as u64;
        }
        if let Some((offset, length, lsn)) = self.replay.sealed {
            write_trailer(segment, offset, length, lsn)?;
        }
        segment.file.sync_data().map_err(|error| fault("sync", &error))?;
        Ok(())
    }

    /// Gives full segments the index that a crash took, so that no reader and no round of rewriting
    /// has to read all their frames. Answers how many have none after that: of these, frames are
    /// lost as well, or the disk does not take the index. They stay as they are.
    fn restore_indexes(&self) -> u64 {
        let mut missing = 0;
        // One at a time: the batches of all of them may not fit into memory.
        for segment in self.without_index.iter().filter(|segment| segment.pinned()) {
            if !restore_index(segment) {
                segment.set_unmovable();
                missing += 1;
            }
        }
        missing
    }

    fn census(&self, active: Option<&Arc<Segment>>, config: &Config) -> Census {
        let (mut sealed, mut spares) = (Vec::new(), Vec::new());
        let mut free = self.directory.free.clone();
        let active_sequence = active.map_or(0, |active| active.sequence);
        sealed.extend(self.directory.rewritten.iter().cloned());
        for segment in &self.directory.live {
            if segment.sequence < active_sequence {
                sealed.push(Arc::clone(segment));
            } else if segment.sequence > active_sequence {
                if segment.size == config.segment_bytes {
                    spares.push(Arc::clone(segment));
                } else {
                    free.push(segment.slot);
                }
            }
        }
        let Directory { live, rewritten, free: unused, .. } = &self.directory;
        Census {
            files: live.len() + rewritten.len() + unused.len(),
            next_slot: live
                .iter()
                .chain(rewritten)
                .map(|segment| segment.slot)
                .chain(unused.iter().copied())
                .max()
                .map_or(0, |slot| slot + 1),
            // Never that of a file which is not live: frames of such a life would verify again.
            next_sequence: self.directory.newest + 1,
            base: active_sequence,
            sealed,
            spares,
            free,
        }
    }
}

impl Census {
    fn live(&self, active: Option<&Arc<Segment>>) -> Vec<Arc<Segment>> {
        let mut live: Vec<Arc<Segment>> =
            self.sealed.iter().chain(active).chain(&self.spares).map(Arc::clone).collect();
        live.sort_unstable_by_key(|segment| segment.sequence);
        live
    }
}

/// By the number of the log.
type Extents = Vec<(u64, Extent)>;

/// What was read of an index; `None` also when the device cannot read it.
fn readable<T>(segment: &Segment, read: Result<Option<T>, ReadError>) -> Option<T> {
    read.unwrap_or_else(|error| {
        let segment = segment.name();
        tracing::warn!(target: "voussoir::journal", segment, %error, "index skipped");
        None
    })
}

/// What each log has in a sealed segment, pinning it; and what else was seen when its frames had
/// to be read because there is no index.
fn contents(segment: &Arc<Segment>) -> Result<(Extents, Option<Rebuild>), OpenError> {
    // The index only speeds things up: one that cannot be read is as good as none.
    let directory = match readable(segment, find_index(segment)) {
        Some(index) => {
            if segment.span() == 0
                && let Some(first) = scan::first_lsn(segment)?
            {
                segment.set_full(first, index.lsn);
            }
            readable(segment, read_directory(segment, &index))
        }
        None => None,
    };
    if let Some(directory) = directory {
        return Ok((extents_of(segment, directory), None));
    }
    let name = segment.name();
    tracing::warn!(target: "voussoir::journal", name, "no index: reading all frames");
    let rebuild = scan::rebuild_index(segment)?;
    Ok((rebuilt_extents(segment, &rebuild.logs), Some(rebuild)))
}

/// What a directory says that logs have in its segment, pinning it.
fn extents_of(segment: &Arc<Segment>, directory: Vec<DirectoryEntry>) -> Extents {
    let extent = |log: DirectoryEntry| {
        let bytes = u64::from(log.bytes);
        (log.log, Extent::found(segment, log.first..log.end, log.last, bytes))
    };
    directory.into_iter().map(extent).collect()
}

/// What frames say that logs have in their segment, pinning it.
fn rebuilt_extents(segment: &Arc<Segment>, logs: &[Rebuilt]) -> Extents {
    let extent = |log: &Rebuilt| {
        (log.number, Extent::found(segment, log.first..log.end, log.last, log.bytes))
    };
    logs.iter().map(extent).collect()
}

/// Writes the index of a full segment by its frames, if it lacks nothing else. A segment of moved
/// frames loses its index to rot alone, since that is synced before the segment counts.
fn restore_index(segment: &Arc<Segment>) -> bool {
    if segment.is_rewritten() {
        return false;
    }
    let Ok(rebuild) = scan::rebuild_index(segment) else { return false };
    if !rebuild.is_whole(segment.span(), None) {
        return false;
    }
    let Some(seal) = Seal::rebuilt(segment, rebuild) else { return false };
    // The index only speeds things up: a disk that does not take it has lost nothing by that.
    let written = seal.write();
    if let Err(fault) = &written {
        tracing::warn!(target: "voussoir::journal", %fault, "no index");
    }
    written.is_ok()
}

/// Whether a segment ends in an index that verifies.
pub(crate) fn is_indexed(segment: &Segment) -> Result<bool, OpenError> {
    let Some(index) = find_index(segment).map_err(into_open_error)? else { return Ok(false) };
    Ok(read_directory(segment, &index).map_err(into_open_error)?.is_some())
}

fn into_open_error(error: ReadError) -> OpenError {
    match error {
        ReadError::Io(fault) => OpenError::Io(fault),
        // Finding and reading an index fails in no other way.
        other => OpenError::TableDamaged { detail: other.to_string() },
    }
}

fn fill_state(state: &mut State, active: &mut Active, replay: Replay) {
    for log in replay.logs.into_values() {
        let bounds = log.view.bounds;
        let inner = state.insert(&log.name.namespace, log.name.id, bounds, log.last);
        if let Some(extent) = log.view.extent_in(&active.segment) {
            active.logs.push(inner.index());
            active.batches += extent.batches.as_ref().map_or(0, |batches| batches.len() as u64);
        }
        *inner.view.write() = log.view;
    }
}

fn first_segment(keeper: &mut Keeper, space: &Space) -> Result<Arc<Segment>, OpenError> {
    if let Some(spare) = space.take_spare(Claim::Controls) {
        return Ok(spare);
    }
    match keeper.prepare(space, &|| 0) {
        Ok(()) => {}
        Err(PrepareError::Fault(fault)) => return Err(fault.into()),
        Err(PrepareError::Full(FullCause::Disk { fault })) if !is_full(fault.kind) => {
            return Err(fault.into());
        }
        Err(PrepareError::Full(cause)) => return Err(OpenError::NoRoom { cause }),
    }
    Ok(space.take_spare(Claim::Controls).expect("the keeper has just made one ready"))
}

/// A segment for what follows damage, if there is room for one.
fn spare_segment(keeper: &mut Keeper, space: &Space) -> Result<Option<Arc<Segment>>, OpenError> {
    match first_segment(keeper, space) {
        Err(OpenError::NoRoom { .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// Writes the first frame of the new epoch: the table of a new journal, else a mark. New damage
/// stays in its segment: the table of the next segment lists the logs that it hit. So the writer
/// of any later section that heals a log is known to have known of the damage.
fn begin_epoch(engine: &Engine, spare: Option<Arc<Segment>>) -> Result<(), OpenError> {
    let mut writer = engine.writer.lock();
    let writer = &mut *writer;
    if let Some(spare) = spare {
        engine.rotate(writer, spare)?;
    } else if writer.next_lsn == 1 {
        engine.stage_table(writer);
        writer.sync_next = true;
    } else if writer.mark_fits() {
        writer.stage_mark(writer.next_lsn - 1, false);
    } else {
        // The next segment's table will be the first frame of the epoch.
        return Ok(());
    }
    Ok(make_durable(engine, writer)?)
}

/// Goes on in a new segment, whose table has the bounds and the damage of all logs.
pub(crate) fn begin_table(engine: &Engine) -> Result<(), Fault> {
    let spare = first_segment(&mut engine.keeper.lock(), &engine.space);
    let spare = spare.map_err(|error| match error {
        OpenError::Io(fault) => fault,
        other => Fault::new("prepare", "segment", &io::Error::other(other.to_string())),
    })?;
    let mut writer = engine.writer.lock();
    engine.rotate(&mut writer, spare)?;
    make_durable(engine, &mut writer)
}

fn make_durable(engine: &Engine, writer: &mut Writer) -> Result<(), Fault> {
    engine.write_staged(writer)?;
    engine.sync(writer)?;
    writer.marked = writer.next_lsn - 1;
    engine.seal_full_segments()
}
