//! Damage to the files of a directory, and which frames it leaves intact.

use std::collections::BTreeMap;

use voussoir_sim::{Rng, Situations};

use crate::frames::{FRAMES_AT, Frame, Intact, SLOT, frames_of, live, u64_at};
use crate::life::Image;

/// One file: its bytes, and the file of the whole image that it was.
#[derive(Clone, Debug)]
struct Damaged {
    bytes: Vec<u8>,
    origin: Option<String>,
}

/// A directory on its way down.
pub(crate) struct Wreck<'a> {
    whole: &'a Image,
    files: BTreeMap<String, Damaged>,
    /// What was done, for messages.
    pub(crate) story: Vec<String>,
}

/// What a wreck has left.
pub(crate) struct Left {
    /// By LSN.
    pub(crate) frames: BTreeMap<u64, Intact>,
    /// It can be told for each file which segment it is.
    pub(crate) is_certain: bool,
}

impl<'a> Wreck<'a> {
    pub(crate) fn new(whole: &'a Image) -> Self {
        let file = |(name, bytes): (&String, &Vec<u8>)| {
            let origin = Some(name.clone());
            (name.clone(), Damaged { bytes: bytes.clone(), origin })
        };
        Self { whole, files: whole.iter().map(file).collect(), story: Vec::new() }
    }

    pub(crate) fn image(&self) -> Image {
        self.files.iter().map(|(name, file)| (name.clone(), file.bytes.clone())).collect()
    }

    fn some_segment(&self, rng: &mut Rng) -> Option<String> {
        let names: Vec<&String> =
            self.files.keys().filter(|name| name.starts_with("segment-")).collect();
        rng.pick(&names).map(|name| (*name).clone())
    }

    /// Somewhere in the frames of a file.
    fn some_offset(&self, rng: &mut Rng, name: &str) -> usize {
        let bytes = &self.files[name].bytes;
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64;
        rng.between((FRAMES_AT as u64).min(used), used) as usize
    }

    /// One thing that happens to a directory.
    pub(crate) fn strike(&mut self, rng: &mut Rng, foreign: &Image) {
        let Some(name) = self.some_segment(rng) else { return };
        let at = self.some_offset(rng, &name);
        let what = rng.below(12);
        self.story.push(format!("{what} to {name} at {at}"));
        match what {
            0..=2 => self.flip(&name, at, rng),
            3 => {
                let bytes = &mut self.files.get_mut(&name).unwrap().bytes;
                let end = (at / 512 * 512 + 512).min(bytes.len());
                bytes[at / 512 * 512..end].fill(0);
            }
            4 => self.files.get_mut(&name).unwrap().bytes.truncate(at),
            5 => drop(self.files.remove(&name)),
            6 => drop(self.files.remove("manifest")),
            7 => {
                if let Some(manifest) = self.files.get_mut("manifest") {
                    let slot = rng.below(2) as usize * SLOT;
                    manifest.bytes[slot + 20] ^= 1;
                    manifest.bytes[SLOT - slot + 20] ^= u8::from(rng.below(2) == 0);
                }
            }
            8 => {
                let Some(other) = self.some_segment(rng) else { return };
                let one = self.files.remove(&name).unwrap();
                if let Some(other) = self.files.insert(other, one) {
                    self.files.insert(name, other);
                }
            }
            9 => {
                let copy = self.files[&name].clone();
                let free = format!("segment-0000{:04x}", 0x1000 + rng.below(0x1000));
                self.files.insert(free, copy);
            }
            10 => {
                let all: Vec<&Vec<u8>> = foreign
                    .iter()
                    .filter(|(name, _)| name.starts_with("segment-"))
                    .map(|(_, bytes)| bytes)
                    .collect();
                let bytes = rng.pick(&all).map(|bytes| (*bytes).clone()).unwrap();
                let name = if rng.below(2) == 0 { name } else { "segment-0000ff00".to_owned() };
                self.files.insert(name, Damaged { bytes, origin: None });
            }
            _ => {
                let at = rng.below(60) as usize;
                self.flip(&name, at, rng);
            }
        }
    }

    fn flip(&mut self, name: &str, at: usize, rng: &mut Rng) {
        let bytes = &mut self.files.get_mut(name).unwrap().bytes;
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << rng.below(8);
        }
    }

    /// The copies of the manifest that are intact.
    fn manifests(&self) -> Vec<&[u8]> {
        let Some(file) = self.files.get("manifest") else { return Vec::new() };
        let copies = [0, SLOT].into_iter().map(|at| at..(at + SLOT).min(file.bytes.len()));
        // What strikes them, strikes their first bytes.
        let intact = copies.filter(|copy| {
            let head = copy.start..copy.start + 64;
            file.bytes[head.clone()] == self.whole["manifest"][head]
        });
        intact.map(|copy| &file.bytes[copy]).collect()
    }

    pub(crate) fn has_manifest(&self) -> bool {
        !self.manifests().is_empty()
    }

    /// What is intact, byte by byte.
    pub(crate) fn left(&self, situations: &Situations) -> Left {
        let mut left = Left { frames: BTreeMap::new(), is_certain: true };
        let has_manifest = self.has_manifest();
        let manifest_is_whole = self.manifests().len() == 2;
        let listed = live(&self.manifests());
        for (name, file) in &self.files {
            let Some(origin) = file.origin.as_ref().filter(|name| name.starts_with("segment-"))
            else {
                continue;
            };
            let whole = &self.whole[origin];
            let sequence = u64_at(whole, 32);
            let is_listed = listed.values().any(|live| *live == sequence);
            // Bytes 52 on: it holds moved frames. One copy of the manifest may be older than those.
            let has_header = file.bytes.get(..64) == Some(&whole[..64]);
            let is_decided = manifest_is_whole || has_header && whole[52] == 0;
            let is_older = listed.values().any(|live| *live > sequence);
            if has_manifest && is_decided && !is_listed && is_older {
                situations.reached("a segment that the manifest knows to be released");
                continue;
            }
            situations.add("a released segment without a manifest", u64::from(!is_listed));
            let all = frames_of(whole);
            let heads = all.iter().filter(|frame| is_same(&frame.head, file, whole)).count();
            if !has_header {
                let slot = name.strip_prefix("segment-").unwrap();
                let slot = u32::from_str_radix(slot, 16).unwrap();
                let by_name = has_manifest && listed.get(&slot) == Some(&sequence) && heads > 0;
                // Else what verifies may be of an earlier use of the file, if anything is.
                let is_empty = !file.bytes.chunks(8).any(|bytes| bytes.starts_with(b"vsrf"));
                left.is_certain &= by_name || heads > 1 || is_empty;
                situations.add("a header lost, named by the manifest", u64::from(by_name));
                let by_trial = !by_name && heads > 1;
                situations.add("a header lost, found by its frames", u64::from(by_trial));
            }
            for frame in all {
                take(&frame, file, whole, &mut left, situations);
            }
        }
        left
    }
}

fn take(frame: &Frame, file: &Damaged, whole: &[u8], left: &mut Left, situations: &Situations) {
    if frame.all.end > file.bytes.len() {
        situations.add("a frame cut off", u64::from(frame.all.start < file.bytes.len()));
        return;
    }
    if !is_same(&frame.head, file, whole) {
        situations.reached("a head damaged");
        return;
    }
    let payloads: Vec<Option<Vec<u8>>> = frame
        .sections
        .iter()
        .map(|section| &section.payload)
        .map(|range| is_same(range, file, whole).then(|| whole[range.clone()].to_vec()))
        .collect();
    let is_damaged = payloads.iter().any(Option::is_none);
    situations.add("a payload damaged", u64::from(is_damaged));
    situations.add("a table damaged", u64::from(is_damaged && frame.kind == 3));
    let found = left.frames.entry(frame.lsn).or_insert_with(|| {
        let nothing = vec![None; payloads.len()];
        Intact { frame: frame.clone(), payloads: nothing }
    });
    for (have, more) in found.payloads.iter_mut().zip(payloads) {
        situations.add("copies that complete each other", u64::from(is_damaged && have.is_some()));
        *have = have.take().or(more);
    }
}

fn is_same(range: &std::ops::Range<usize>, file: &Damaged, whole: &[u8]) -> bool {
    file.bytes.get(range.clone()) == whole.get(range.clone())
}
