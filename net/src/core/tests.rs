//! The decisions of a connection, without one.

use std::io::IoSlice;
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use voussoir_sim::Situations;

use super::backoff::{Backoff, duration_between};
use super::liveness::Liveness;
use super::outbox::{Batch, MAX_SLICES, Outbox};
use crate::Parts;
use crate::wire::{Frame, HEADER_BYTES, Header, Kind};

fn frame(pieces: &[usize]) -> Frame {
    let parts = Parts::default()
        .with(pieces.iter().enumerate().map(|(i, &len)| Bytes::from(vec![i as u8; len])));
    Frame::new(Header { kind: Kind::Message, service: 1, id: 0, left_ms: 0 }, parts)
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    frame.pieces().flatten().copied().collect()
}

/// Writes a batch as a socket would that takes at most `step` bytes at a time.
fn write_out(batch: &mut Batch, step: usize, out: &mut Vec<u8>) -> usize {
    let mut taken = Vec::new();
    {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = batch.slices(&mut slices);
        for slice in &slices[..count] {
            let room = step - taken.len();
            taken.extend_from_slice(&slice[..slice.len().min(room)]);
        }
    }
    batch.advance(taken.len());
    out.extend_from_slice(&taken);
    taken.len()
}

fn batch_bytes(batch: &Batch) -> usize {
    let mut slices = [IoSlice::new(&[]); MAX_SLICES];
    let count = batch.slices(&mut slices);
    slices[..count].iter().map(|slice| slice.len()).sum()
}

static WRITES: [&str; 8] = [
    "first frame written in part by its sender",
    "first frame written whole by its sender",
    "frame split over several writes",
    "several frames in one write",
    "more than one batch",
    "batch full of slices",
    "frame put back behind one that is written in part",
    "withdrawn frame behind one that waits",
];

#[test]
fn what_goes_in_comes_out_in_order() {
    let situations = Situations::new(&WRITES);
    // Many long pieces fill a batch's slices; small and large steps split and join frames.
    let pieces = prop_oneof![3 => vec(0_usize..3000, 0..6), 1 => vec(1025_usize..1100, 20..40)];
    let strategy = (vec(pieces, 0..40), 1_usize..100_000, 0_usize..4000, any::<bool>());
    let mut runner = TestRunner::new(ProptestConfig::default());
    let outcome = runner.run(&strategy, |(frames, step, begun, puts_back)| {
        write_frames(&frames, step, begun, puts_back, &situations)
    });
    outcome.unwrap();
    situations.assert_all_reached();
}

fn write_frames(
    frames: &[Vec<usize>],
    step: usize,
    begun: usize,
    puts_back: bool,
    situations: &Situations,
) -> Result<(), TestCaseError> {
    let mut outbox = Outbox::new(usize::MAX, usize::MAX);
    let (mut batch, mut expected, mut out) = (Batch::default(), Vec::new(), Vec::new());
    let (mut begins, mut ends) = (Vec::new(), Vec::new());
    for (i, pieces) in frames.iter().enumerate() {
        let frame = frame(pieces);
        begins.push(expected.len());
        if i % 5 == 3 {
            let place = outbox.push(frame);
            prop_assert!(place == i as u64 && outbox.withdraw(place), "places are dense");
            ends.push(expected.len());
            continue;
        }
        expected.extend(bytes_of(&frame));
        ends.push(expected.len());
        if i == 0 {
            // The first one has been written in part by its sender.
            let begun = begun.min(frame.len());
            situations.reached(WRITES[usize::from(begun == frame.len())]);
            out.extend(&bytes_of(&frame)[..begun]);
            outbox.pass();
            outbox.begun(frame.len() - begun);
            batch.add_rest(&frame, begun);
            batch.seal();
        } else {
            prop_assert_eq!(outbox.push(frame), i as u64, "places are dense");
        }
    }
    let mut batches = 0;
    loop {
        if batch.is_empty() {
            outbox.fill(&mut batch);
            batches += u64::from(!batch.is_empty());
            let slices = batch.slices(&mut [IoSlice::new(&[]); MAX_SLICES]);
            situations.add("batch full of slices", u64::from(slices == MAX_SLICES));
        }
        if batch.is_empty() {
            break;
        }
        let before = out.len();
        let written = write_out(&mut batch, step, &mut out);
        prop_assert!(written > 0, "progress");
        outbox.written(written);
        if puts_back {
            outbox.put_back(&mut batch);
            for (place, (&begin, &end)) in begins.iter().zip(&ends).enumerate().skip(1) {
                let (is_withdrawn, is_begun) = (begin == end, begin < out.len());
                let waits = outbox.is_waiting(place as u64);
                prop_assert!(is_withdrawn || waits != is_begun, "frame {place} waits: {waits}");
            }
            let is_split = batch.is_in_a_frame();
            prop_assert_eq!(is_split, !out.is_empty() && !ends.contains(&out.len()));
            let waits = ends.iter().any(|&end| end > out.len() + batch_bytes(&batch));
            situations.add(WRITES[6], u64::from(is_split && waits));
            let last = ends.windows(2).rposition(|pair| pair[0] == pair[1]);
            situations.add(WRITES[7], u64::from(last.is_some_and(|at| ends[at] > out.len())));
        }
        let ended = ends.iter().filter(|end| (before + 1..=out.len()).contains(*end)).count();
        situations.add("several frames in one write", u64::from(ended > 1));
        situations.add("frame split over several writes", u64::from(!ends.contains(&out.len())));
    }
    situations.add("more than one batch", u64::from(batches > 1));
    prop_assert_eq!(outbox.bytes(), 0, "nothing is counted that is gone");
    prop_assert!(out == expected);
    Ok(())
}

#[test]
fn limits_of_the_outbox() {
    let len = HEADER_BYTES + 100;
    let mut by_bytes = Outbox::new(2 * len, 10);
    let mut by_count = Outbox::new(1 << 20, 2);
    for outbox in [&mut by_bytes, &mut by_count] {
        for _ in 0..2 {
            assert!(outbox.has_room(len));
            outbox.push(frame(&[100]));
        }
        assert!(!outbox.has_room(len));
    }
    // Frames that are being written count in bytes: they are still in memory.
    let mut batch = Batch::default();
    by_bytes.fill(&mut batch);
    assert!(!by_bytes.has_room(len));
    by_bytes.written(len);
    assert!(by_bytes.has_room(len));
    let empty = Outbox::new(10, 10);
    assert!(empty.has_room(len), "the first frame always finds room");
}

#[test]
fn a_frame_is_withdrawn_only_while_it_waits() {
    let mut outbox = Outbox::new(1 << 20, 100);
    let places: Vec<u64> = (0..3).map(|i| outbox.push(frame(&[i]))).collect();
    assert!(outbox.withdraw(places[1]));
    let mut batch = Batch::default();
    outbox.fill(&mut batch);
    assert!(!outbox.withdraw(places[0]), "it is being given to the socket");
    assert!(!outbox.is_waiting(places[2]));
    let mut out = Vec::new();
    write_out(&mut batch, 1 << 20, &mut out);
    assert_eq!(out, [bytes_of(&frame(&[0])), bytes_of(&frame(&[2]))].concat());
    let later = outbox.push(frame(&[5]));
    assert!(outbox.is_waiting(later));
    outbox.clear();
    assert!(!outbox.is_waiting(later), "it went with its connection");
    assert_eq!(outbox.push(frame(&[6])), later + 1, "a place names one frame for ever");
}

#[test]
fn what_the_socket_has_not_taken_waits_again_at_its_place() {
    let mut outbox = Outbox::new(1 << 20, 100);
    outbox.ping(1);
    let places: Vec<u64> = (0..4).map(|i| outbox.push(frame(&[i]))).collect();
    let (mut batch, mut out) = (Batch::default(), Vec::new());
    outbox.fill(&mut batch);
    outbox.put_back(&mut batch);
    assert!(outbox.is_waiting(places[0]) && !batch.is_in_a_frame());
    assert_eq!(outbox.len(), 4, "the ping stays in the batch");
    assert!(outbox.withdraw(places[1]));
    outbox.written(write_out(&mut batch, 1 << 20, &mut out));
    assert_eq!(out.len(), HEADER_BYTES);
    outbox.fill(&mut batch);
    outbox.written(write_out(&mut batch, HEADER_BYTES + 10, &mut out));
    outbox.put_back(&mut batch);
    assert!(batch.is_in_a_frame(), "ten bytes of the third have been written");
    let waiting = places.iter().map(|&place| outbox.is_waiting(place));
    assert_eq!(waiting.collect::<Vec<_>>(), [false, false, false, true]);
    // Ends: each turn writes something.
    while outbox.bytes() > 0 {
        if batch.is_empty() {
            outbox.fill(&mut batch);
        }
        outbox.written(write_out(&mut batch, 7, &mut out));
    }
    let frames = [bytes_of(&frame(&[0])), bytes_of(&frame(&[2])), bytes_of(&frame(&[3]))];
    assert_eq!(out, [bytes_of(&Frame::bare(Kind::Ping, 1)), frames.concat()].concat());
}

#[test]
fn one_ping_and_one_pong_overtake() {
    let mut outbox = Outbox::new(1 << 20, 100);
    outbox.push(frame(&[10]));
    for id in 0..1000 {
        outbox.pong(id);
    }
    let (mut batch, mut out) = (Batch::default(), Vec::new());
    outbox.fill(&mut batch);
    write_out(&mut batch, 1 << 20, &mut out);
    let expected = [bytes_of(&Frame::bare(Kind::Pong, 999)), bytes_of(&frame(&[10]))].concat();
    assert_eq!(out, expected, "a flood of pings is answered once");
}

#[test]
fn silence_and_trickles_end_a_connection() {
    const SECOND: u64 = 1_000_000_000;
    const ONE: Duration = Duration::from_secs(1);
    let mut silent = Liveness::new(0, ONE, 3 * ONE);
    assert!(!silent.tick(SECOND));
    silent.heard();
    assert!(!silent.tick(2 * SECOND), "a frame came in");
    assert!(!silent.tick(4 * SECOND));
    assert!(silent.tick(5 * SECOND), "three seconds after the last sign");

    let mut trickle = Liveness::new(0, ONE, 3 * ONE);
    let mut bulk = Liveness::new(0, ONE, 3 * ONE);
    let mut writer = Liveness::new(0, ONE, 3 * ONE);
    for second in 1..=2 {
        trickle.read(100);
        bulk.read(1 << 20);
        writer.written(1 << 20);
        assert!(!trickle.tick(second * SECOND));
        assert!(!bulk.tick(second * SECOND));
        assert!(!writer.tick(second * SECOND));
    }
    trickle.read(100);
    bulk.read(1 << 20);
    writer.written(1 << 20);
    assert!(trickle.tick(3 * SECOND), "a few bytes are no sign of life");
    assert!(!bulk.tick(3 * SECOND), "a long frame on its way is one");
    assert!(!writer.tick(3 * SECOND), "and so is a peer that takes much");
}

#[test]
fn a_line_is_not_too_slow_because_ticks_are_short() {
    for tick_ms in [1, 50, 500, 60_000] {
        let tick = Duration::from_millis(tick_ms);
        let mut line = Liveness::new(0, tick, 6 * tick);
        // A line of 2 Mbit/s that brings one long message.
        let is_given_up = (1..100_u32).any(|ticks| {
            line.read(250 * tick_ms as usize);
            line.tick((ticks * tick).as_nanos() as u64)
        });
        assert!(!is_given_up, "{tick:?}");
    }
    for tick_ms in [10, 500] {
        let tick = Duration::from_millis(tick_ms);
        let mut trickle = Liveness::new(0, tick, 6 * tick);
        // 100 bytes a millisecond.
        let is_given_up = (1..=6_u32).any(|ticks| {
            trickle.read(100 * tick_ms as usize);
            trickle.tick((ticks * tick).as_nanos() as u64)
        });
        assert!(is_given_up, "{tick:?}");
    }
}

#[test]
fn pauses_grow_are_jittered_and_repeat_by_seed() {
    let ms = Duration::from_millis;
    let pauses = |seed| {
        let mut backoff = Backoff::new(ms(10), ms(100), seed);
        (0..10).map(|_| backoff.next()).collect::<Vec<_>>()
    };
    for seed in 0..100 {
        for (i, pause) in pauses(seed).into_iter().enumerate() {
            let step = ms(10 * (1 << i).min(10));
            assert!(step / 2 <= pause && pause <= step, "pause {i}: {pause:?}");
        }
    }
    assert_eq!(pauses(1), pauses(1));
    assert_ne!(pauses(1), pauses(2));
    let mut backoff = Backoff::new(ms(10), ms(100), 1);
    for _ in 0..9 {
        backoff.next();
    }
    backoff.reset();
    assert!(backoff.next() <= ms(10));
}

#[test]
fn a_drawn_duration_is_within_its_bounds() {
    let mut rng = fastrand::Rng::with_seed(3);
    let (low, high) = (Duration::from_millis(3), Duration::from_millis(5));
    assert!((0..1000).all(|_| (low..high).contains(&duration_between(&mut rng, low, high))));
    assert_eq!(duration_between(&mut rng, low, low), low);
}
