//! The crash-simulating files lose what a disk may lose, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;

use super::*;

const NAME: &str = "a";

/// A disk with one synced file of `content`.
fn with_file(seed: u64, content: &[u8]) -> (CrashFiles, Arc<dyn File>) {
    let disk = CrashFiles::new(seed);
    let directory = disk.mount();
    let file = directory.create(NAME).unwrap();
    write(&*file, content, 0);
    file.sync_data().unwrap();
    directory.sync_dir().unwrap();
    (disk, file)
}

fn write(file: &dyn File, data: &[u8], offset: u64) {
    assert_eq!(file.write_at(&[IoSlice::new(data)], offset).unwrap(), data.len());
}

fn content(disk: &CrashFiles, name: &str) -> Option<Vec<u8>> {
    disk.snapshot().into_iter().find(|(found, _)| found == name).map(|(_, bytes)| bytes)
}

#[test]
fn reads_show_every_write_at_once() {
    let (_disk, file) = with_file(1, b"hello");
    write(&*file, b"JJ", 2);
    write(&*file, b"far", 9000);
    let mut buf = [0; 8];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 8);
    assert_eq!(&buf, b"heJJo\0\0\0");
    assert_eq!(file.read_at(&mut buf, 9001).unwrap(), 2);
    assert_eq!(&buf[..2], b"ar");
    assert_eq!((file.len().unwrap(), file.read_at(&mut buf, 9003).unwrap()), (9003, 0));
}

#[test]
fn what_was_synced_survives_every_outcome() {
    let (disk, file) = with_file(1, &[7; 5000]);
    write(&*file, &[8; 900], 5000);
    for seed in 0..500 {
        let disk = disk.fork(seed);
        disk.power_loss(Loss::Any);
        assert_eq!(content(&disk, NAME).unwrap()[..5000], [7; 5000]);
    }
}

#[test]
fn each_legal_outcome_of_two_writes_is_reached() {
    let (disk, file) = with_file(1, &[0; 2048]);
    write(&*file, &[1; 1024], 0);
    write(&*file, &[2; 1024], 1024);
    let mut counters = Counters::default();
    let mut outcomes = BTreeSet::new();
    for seed in 0..2000 {
        let disk = disk.fork(seed);
        disk.power_loss(Loss::Any);
        counters.merge(&disk.counters());
        let bytes = content(&disk, NAME).unwrap();
        assert!(
            bytes.iter().enumerate().all(|(at, byte)| [0, 1 + (at / 1024) as u8].contains(byte))
        );
        outcomes.insert(bytes.chunks(512).map(|sector| sector[0] > 0).collect::<Vec<_>>());
    }
    assert_eq!(outcomes.len(), 16, "each of the four sectors kept or lost");
    assert!(counters.writes_torn > 0 && counters.files_reordered > 0, "{counters}");
}

#[test]
fn writes_are_torn_within_a_sector() {
    let (disk, file) = with_file(1, &[0; 512]);
    write(&*file, &[1; 512], 0);
    let cuts: BTreeSet<usize> = (0..1000)
        .map(|seed| {
            let disk = disk.fork(seed);
            disk.power_loss(Loss::Any);
            content(&disk, NAME).unwrap().into_iter().map(usize::from).sum()
        })
        .collect();
    assert!(cuts.len() > 20, "{cuts:?}");
}

#[test]
fn the_size_can_be_ahead_of_the_data() {
    let (disk, file) = with_file(1, &[3; 100]);
    let other = disk.mount().create("old").unwrap();
    write(&*other, &[9; 12_000], 0);
    other.sync_data().unwrap();
    write(&*file, &[4; 9900], 100);
    let (mut zeros, mut stale) = (0, 0);
    for seed in 0..2000 {
        let disk = disk.fork(seed);
        disk.power_loss(Loss::Any);
        let bytes = content(&disk, NAME).unwrap();
        assert!(bytes.len() <= 10_000);
        zeros += u32::from(bytes.last() == Some(&0));
        stale += u32::from(bytes.last() == Some(&9));
    }
    assert!(zeros > 0 && stale > 0, "{zeros} {stale}");
}

#[test]
fn names_need_a_directory_sync() {
    let disk = CrashFiles::new(1);
    let directory = disk.mount();
    let file = directory.create("new").unwrap();
    write(&*file, b"x", 0);
    file.sync_data().unwrap();
    directory.rename("new", "final").unwrap();
    let seen: BTreeMap<String, u32> = (0..200).fold(BTreeMap::new(), |mut seen, seed| {
        let disk = disk.fork(seed);
        disk.power_loss(Loss::Any);
        let names: Vec<String> = disk.snapshot().into_iter().map(|(name, _)| name).collect();
        *seen.entry(names.join(",")).or_default() += 1;
        seen
    });
    let names: Vec<&str> = seen.keys().map(String::as_str).collect();
    assert_eq!(names, ["", "final", "new"], "never both names, never half a rename");
    directory.sync_dir().unwrap();
    disk.power_loss(Loss::Everything);
    assert_eq!(content(&disk, "final").unwrap(), b"x");
}

#[test]
fn a_rename_replaces_and_a_remove_frees_the_name() {
    let (disk, _file) = with_file(1, b"old");
    let directory = disk.mount();
    assert_eq!(directory.create(NAME).err().unwrap().kind(), ErrorKind::AlreadyExists);
    let file = directory.create("b").unwrap();
    write(&*file, b"new", 0);
    directory.rename("b", NAME).unwrap();
    assert_eq!(content(&disk, NAME).unwrap(), b"new");
    directory.remove(NAME).unwrap();
    assert_eq!(directory.open(NAME).err().unwrap().kind(), ErrorKind::NotFound);
    let mut buf = [0; 3];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 3, "a removed file lives in its handles");
    disk.power_loss(Loss::Everything);
    assert_eq!(content(&disk, NAME).unwrap(), b"old");
}

#[test]
fn a_dead_process_reaches_the_disk_no_more() {
    let (disk, file) = with_file(1, b"hello");
    let directory = disk.mount();
    let guard = directory.lock().unwrap();
    assert_eq!(disk.mount().lock().err().unwrap().kind(), ErrorKind::WouldBlock);
    write(&*file, b"J", 0);
    disk.kill();
    assert_eq!(content(&disk, NAME).unwrap(), b"Jello", "the page cache outlives the process");
    assert!(file.write_at(&[IoSlice::new(b"K")], 0).is_err());
    assert!(file.sync_data().is_err() && directory.create("b").is_err());
    let second = disk.mount().lock().unwrap();
    drop(guard);
    assert!(disk.mount().lock().is_err(), "a dead process's guard frees no lock of another");
    drop(second);
    assert!(disk.mount().lock().is_ok());
    disk.power_loss(Loss::Everything);
    assert_eq!(content(&disk, NAME).unwrap(), b"hello");
}

#[test]
fn a_failed_sync_can_drop_what_reads_still_show() {
    let (disk, file) = with_file(1, b"hello");
    disk.inject(Fault::new(Op::Sync, When::Nth(0), Effect::DropDirty));
    write(&*file, b"J", 0);
    file.sync_data().unwrap_err();
    file.sync_data().unwrap();
    assert_eq!(content(&disk, NAME).unwrap(), b"Jello");
    disk.power_loss(Loss::Nothing);
    assert_eq!(content(&disk, NAME).unwrap(), b"hello");
    assert_eq!(disk.counters().dirty_dropped, 1);
}

#[test]
fn faults_hit_the_operation_they_name() {
    let (disk, file) = with_file(1, &[0; 100]);
    disk.inject(Fault::new(Op::Write, When::Nth(1), Effect::NoSpace));
    disk.inject(Fault::new(Op::Read, When::From(1), Effect::Fail));
    disk.inject(Fault::new(Op::SyncDir, When::Nth(0), Effect::Short));
    let mut buf = [0; 10];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 10);
    file.read_at(&mut buf, 0).unwrap_err();
    file.read_at(&mut buf, 0).unwrap_err();
    write(&*file, b"x", 0);
    let rejected = file.write_at(&[IoSlice::new(b"x")], 0).unwrap_err();
    assert_eq!(rejected.kind(), ErrorKind::StorageFull);
    write(&*file, b"x", 0);
    disk.mount().sync_dir().unwrap_err();
    disk.mount().sync_dir().unwrap();
    disk.heal();
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 10);
    disk.inject(Fault::new(Op::Any, When::OneIn(2), Effect::Short));
    let short = (0..100).filter(|_| file.read_at(&mut buf, 0).unwrap() < 10).count();
    assert!((20..80).contains(&short), "{short}");
}

#[test]
fn the_power_goes_in_the_middle_of_a_write() {
    let (disk, file) = with_file(1, &[0; 100]);
    disk.inject(Fault::new(Op::Any, When::Nth(0), Effect::PowerOff));
    file.write_at(&[IoSlice::new(&[1; 100])], 0).unwrap_err();
    file.sync_data().unwrap_err();
    assert!(disk.mount().list().is_err() && disk.mount().lock().is_err());
    disk.power_loss(Loss::Everything);
    assert_eq!(content(&disk, NAME).unwrap(), [0; 100]);
    assert!(disk.mount().list().is_ok());
}

#[test]
fn a_misdirected_write_is_seen_after_the_power_loss() {
    let (disk, file) = with_file(1, &[0; 4096]);
    disk.inject(Fault::new(Op::Write, When::Nth(0), Effect::Misdirect));
    write(&*file, &[1; 512], 4096);
    file.sync_data().unwrap();
    assert_eq!(content(&disk, NAME).unwrap()[4096..], [1; 512]);
    disk.power_loss(Loss::Nothing);
    let bytes = content(&disk, NAME).unwrap();
    assert!(bytes[..4096].contains(&1) && !bytes[4096..].contains(&1), "{}", disk.counters());
}

#[test]
fn a_flipped_bit_is_there_to_stay() {
    let (disk, file) = with_file(1, &[0; 100]);
    assert!(disk.flip_bit(NAME, 8 * 42 + 3));
    assert!(!disk.flip_bit(NAME, 8 * 100) && !disk.flip_bit("b", 0));
    let mut buf = [0];
    file.read_at(&mut buf, 42).unwrap();
    assert_eq!(buf, [8]);
    disk.power_loss(Loss::Everything);
    assert_eq!(content(&disk, NAME).unwrap()[42], 8);
}

#[test]
fn a_block_is_overwritten_within_the_file() {
    let (disk, file) = with_file(1, &[0; 100]);
    disk.overwrite(NAME, 90, &[1; 20]);
    disk.overwrite("b", 0, &[1]);
    assert_eq!(file.len().unwrap(), 100);
    disk.power_loss(Loss::Everything);
    let bytes = content(&disk, NAME).unwrap();
    assert_eq!((bytes.len(), &bytes[88..92]), (100, &[0, 0, 1, 1][..]));
}

#[test]
fn a_full_disk_still_overwrites() {
    let (disk, file) = with_file(1, &[0; 100]);
    disk.set_capacity(Some(110));
    assert_eq!(file.write_at(&[IoSlice::new(&[1; 40])], 80).unwrap(), 30, "what fits");
    let rejected = file.write_at(&[IoSlice::new(&[1; 40])], 110).unwrap_err();
    assert_eq!(rejected.kind(), ErrorKind::StorageFull);
    assert_eq!(disk.mount().create("b").err().unwrap().kind(), ErrorKind::StorageFull);
    write(&*file, &[2; 110], 0);
    file.sync_data().unwrap();
    disk.mount().remove(NAME).unwrap();
    assert!(disk.mount().create("b").is_ok());
}

#[test]
fn equal_seeds_give_equal_disks() {
    let run = |seed| {
        let (disk, file) = with_file(seed, &[0; 3000]);
        disk.inject(Fault::new(Op::Write, When::OneIn(3), Effect::Short));
        for round in 0..20 {
            let _ = file.write_at(&[IoSlice::new(&[round; 700])], u64::from(round) * 100);
        }
        disk.power_loss(Loss::Any);
        (disk.snapshot(), disk.counters())
    };
    assert_eq!(run(5), run(5));
    assert!((0..5).any(|seed| run(seed) != run(seed + 1)));
}

#[test]
fn a_sync_that_lies_syncs_nothing() {
    let (disk, file) = with_file(1, b"hello");
    disk.inject(Fault::new(Op::Sync, When::Nth(0), Effect::LieSync));
    write(&*file, b"J", 0);
    file.sync_data().unwrap();
    assert_eq!((content(&disk, NAME).unwrap(), disk.counters().lied), (b"Jello".to_vec(), 1));
    let lost = disk.fork(1);
    lost.power_loss(Loss::Everything);
    assert_eq!(content(&lost, NAME).unwrap(), b"hello");
    // The next honest one makes good for it.
    file.sync_data().unwrap();
    disk.power_loss(Loss::Everything);
    assert_eq!(content(&disk, NAME).unwrap(), b"Jello");
}

#[test]
fn what_ages_survives_page_by_page_and_never_turns_back() {
    let (disk, file) = with_file(1, &[0; 12_288]);
    disk.set_aging(Some(2));
    for round in 1..=40 {
        write(&*file, &[round; 6_000], 2_000);
    }
    assert!(disk.counters().aged > 5, "{}", disk.counters());
    let after = |loss| {
        let disk = disk.fork(3);
        disk.power_loss(loss);
        content(&disk, NAME).unwrap()
    };
    assert_eq!(after(Loss::Nothing)[2_000..8_000], [40; 6_000]);
    let aged = after(Loss::Everything);
    assert!(aged.iter().any(|byte| *byte > 0) && aged != after(Loss::Nothing));
    assert!(aged[..2_000].iter().chain(&aged[8_000..]).all(|byte| *byte == 0));
    for page in aged.chunks(4_096) {
        let mut written: Vec<u8> = page.iter().copied().filter(|byte| *byte > 0).collect();
        written.dedup();
        assert!(written.len() <= 1, "a page is written back as a whole: {written:?}");
    }
}

#[test]
fn a_torn_sector_of_a_fragile_disk_cannot_be_read_until_it_is_written() {
    let (disk, file) = with_file(1, &[7; 2_048]);
    disk.set_fragile(true);
    write(&*file, &[1; 700], 300);
    let torn = (0..).map(|seed| {
        let disk = disk.fork(seed);
        disk.power_loss(Loss::Any);
        disk
    });
    let disk = torn.into_iter().find(|disk| disk.counters().unreadable > 0).unwrap();
    let file = disk.mount().open(NAME).unwrap();
    let mut buf = [0; 512];
    let readable = |at: u64, buf: &mut [u8]| file.read_at(buf, at * 512).is_ok();
    let bad: Vec<u64> = (0..4).filter(|at| !readable(*at, &mut buf)).collect();
    assert_eq!(bad.len(), 1);
    assert!(file.write_at(&[IoSlice::new(&[2; 10])], bad[0] * 512).is_err(), "a part of it");
    let other = disk.fork(1);
    write(&*file, &[2; 512], bad[0] * 512);
    assert!(readable(bad[0], &mut buf) && buf == [2; 512]);
    assert_eq!((other.repair(), other.repair()), (1, 0));
    let zeroed = content(&other, NAME).unwrap();
    assert_eq!(zeroed[bad[0] as usize * 512..][..512], [0; 512]);
}
