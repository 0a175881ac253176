//! Frames read by the specification of the format alone, and what they say in the order of their
//! LSNs: a judge that shares no code with the journal.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use voussoir_journal::LogName;

pub(crate) const FRAMES_AT: usize = 4096;
pub(crate) const SLOT: usize = 64 << 10;

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// One section of a frame, with the place of its payload in the file.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    pub(crate) log: u64,
    pub(crate) position: u64,
    pub(crate) count: u32,
    pub(crate) kind: u8,
    pub(crate) payload: Range<usize>,
}

#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) lsn: u64,
    pub(crate) kind: u8,
    pub(crate) head: Range<usize>,
    pub(crate) all: Range<usize>,
    pub(crate) sections: Vec<Section>,
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// Whether the head of a frame was written at this place in this use of the file.
fn is_of(file: &[u8], at: usize, head: usize) -> bool {
    let place = [&file[16..40], &(at as u64).to_le_bytes()].concat();
    u32_at(file, at + 4) == crc32c(&file[at + 8..at + head]) ^ crc32c(&place)
}

/// The frames of a whole segment, one directly after the other.
pub(crate) fn frames_of(file: &[u8]) -> Vec<Frame> {
    let (mut frames, mut at, mut last) = (Vec::<Frame>::new(), FRAMES_AT, 0);
    while at + 40 <= file.len() - 64 && &file[at..at + 4] == b"vsrf" {
        let (lsn, length) = (u64_at(file, at + 8), u32_at(file, at + 24) as usize);
        let head = u32_at(file, at + 32) as usize;
        // Leftovers of an earlier use.
        if lsn <= last || !is_of(file, at, head) {
            break;
        }
        let count = usize::from(u16::from_le_bytes([file[at + 36], file[at + 37]]));
        let mut payload = at + head;
        let sections = (0..count).map(|number| {
            let section = at + 40 + 40 * number;
            let length = u32_at(file, section + 28) as usize;
            let start = payload;
            payload += length.next_multiple_of(8);
            Section {
                log: u64_at(file, section),
                position: u64_at(file, section + 8),
                count: u32_at(file, section + 24),
                kind: file[section + 36],
                payload: start..start + length,
            }
        });
        let sections = sections.collect();
        let (kind, all) = (file[at + 38], at..at + length);
        frames.push(Frame { lsn, kind, head: at..at + head, all, sections });
        (last, at) = (lsn, at + length);
    }
    frames
}

/// The sequences of the live segments, by slot, as the newest of these copies of the manifest
/// lists them.
pub(crate) fn live(copies: &[&[u8]]) -> BTreeMap<u32, u64> {
    let newer = copies.iter().max_by_key(|copy| u64_at(copy, 40));
    let Some(newer) = newer else { return BTreeMap::new() };
    let entries = (0..u32_at(newer, 48) as usize).map(|number| 64 + 16 * number);
    entries.map(|at| (u32_at(newer, at + 8), u64_at(newer, at))).collect()
}

/// Records of a payload.
pub(crate) fn records(payload: &[u8], count: u32) -> Vec<Vec<u8>> {
    let table = payload.len() - 4 * count as usize;
    let mut start = 0;
    let ends = (0..count as usize).map(|number| u32_at(payload, table + 4 * number) as usize);
    ends.map(|end| payload[std::mem::replace(&mut start, end)..end].to_vec()).collect()
}

/// A log as far as frames tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) records: BTreeMap<u64, Vec<u8>>,
}

impl State {
    fn clip(&mut self) {
        let range = self.first..self.end;
        self.records.retain(|position, _| range.contains(position));
    }

    pub(crate) fn append(&mut self, position: u64, count: u32, records: Option<Vec<Vec<u8>>>) {
        self.end = position;
        self.first = self.first.min(position);
        self.clip();
        self.end = position + u64::from(count);
        self.records.extend((position..).zip(records.unwrap_or_default()));
    }

    pub(crate) fn truncate(&mut self, position: u64) {
        self.end = position.max(self.first);
        self.clip();
    }

    pub(crate) fn release(&mut self, position: u64) {
        self.first = self.first.max(position);
        self.end = self.end.max(position);
        self.clip();
    }
}

/// One log of a table: number, first, end, name.
type Entry = (u64, u64, u64, LogName);

fn table(payload: &[u8], count: u32) -> Vec<Entry> {
    let mut at = 8;
    let entries = (0..count).map(|_| {
        let length = usize::from(u16::from_le_bytes([payload[at + 56], payload[at + 57]]));
        let namespace = String::from_utf8(payload[at + 64..at + 64 + length].to_vec()).unwrap();
        let name = LogName { namespace, id: u64_at(payload, at + 32) };
        let entry = (u64_at(payload, at), u64_at(payload, at + 8), u64_at(payload, at + 16), name);
        at += 64 + length.next_multiple_of(8);
        entry
    });
    entries.collect()
}

/// A frame of which the head is intact, with the payloads that are.
#[derive(Clone, Debug)]
pub(crate) struct Intact {
    pub(crate) frame: Frame,
    pub(crate) payloads: Vec<Option<Vec<u8>>>,
}

/// What the intact frames say: the logs by name. Without a name, the number stands in for the id.
pub(crate) fn replay(frames: &BTreeMap<u64, Intact>) -> BTreeMap<LogName, State> {
    let mut names: BTreeMap<u64, LogName> = BTreeMap::new();
    for Intact { frame, payloads } in frames.values() {
        for (section, payload) in frame.sections.iter().zip(payloads) {
            match (section.kind, payload) {
                (5, Some(payload)) => {
                    let namespace = String::from_utf8(payload.clone()).unwrap();
                    names.insert(section.log, LogName { namespace, id: section.position });
                }
                (6, Some(payload)) => {
                    let entries = table(payload, section.count).into_iter();
                    names.extend(entries.map(|(number, .., name)| (number, name)));
                }
                _ => {}
            }
        }
    }
    let mut logs: BTreeMap<u64, State> = BTreeMap::new();
    for Intact { frame, payloads } in frames.values() {
        for (section, payload) in frame.sections.iter().zip(payloads) {
            let Section { log, position, count, kind, .. } = *section;
            if (1..=3).contains(&kind) && !logs.contains_key(&log) {
                forget_namesakes(&mut logs, &names, log);
                let (first, end) = (position, position);
                logs.insert(log, State { first, end, ..State::default() });
            }
            match kind {
                1 => {
                    let records = payload.as_ref().map(|payload| records(payload, count));
                    logs.get_mut(&log).unwrap().append(position, count, records);
                }
                2 => logs.get_mut(&log).unwrap().truncate(position),
                3 => logs.get_mut(&log).unwrap().release(position),
                4 => drop(logs.remove(&log)),
                5 if payload.is_some() => {
                    forget_namesakes(&mut logs, &names, log);
                    logs.insert(log, State::default());
                }
                6 => {
                    if let Some(payload) = payload {
                        adopt(&mut logs, table(payload, count));
                    }
                }
                _ => {}
            }
        }
    }
    let name_of = |number| {
        let unnamed = LogName { namespace: "unnamed".to_owned(), id: number };
        names.get(&number).cloned().unwrap_or(unnamed)
    };
    logs.into_iter().map(|(number, state)| (name_of(number), state)).collect()
}

fn forget_namesakes(logs: &mut BTreeMap<u64, State>, names: &BTreeMap<u64, LogName>, number: u64) {
    if let Some(name) = names.get(&number) {
        logs.retain(|other, _| names.get(other) != Some(name));
    }
}

fn adopt(logs: &mut BTreeMap<u64, State>, entries: Vec<Entry>) {
    let listed: BTreeSet<u64> = entries.iter().map(|(number, ..)| *number).collect();
    logs.retain(|number, _| listed.contains(number));
    for (number, first, end, _) in entries {
        let log = logs.entry(number).or_default();
        (log.first, log.end) = (first, end);
        log.clip();
    }
}
