//! Threads that commit while the power goes: the order of things is not the test's any more, so
//! each thread knows what it was promised, and that is all that is checked.

use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_journal::{Commit, Config, Durability, Health, Journal};

use crate::losses::in_order;
use crate::rng::Rng;

const THREADS: u64 = 4;
const ROUNDS: u64 = 150;

fn config() -> Config {
    let mut config = Config::default();
    config.segment_bytes = in_order().config.segment_bytes;
    config.max_bytes = 64 * config.segment_bytes;
    config
}

fn record(id: u64, number: u64) -> Vec<u8> {
    let mut bytes = [id.to_le_bytes(), number.to_le_bytes()].concat();
    bytes.resize(16 + Rng::new(id ^ (number << 8)).below(900) as usize, number as u8);
    bytes
}

/// Commits to a log of its own and to one beside it until the journal fails; answers how many
/// records were acknowledged as synced.
fn commit_until_failure(journal: &Journal, id: u64) -> u64 {
    let (own, twin) = (journal.log("own", id).unwrap(), journal.log("twin", id).unwrap());
    let mut acknowledged = own.end();
    let mut rng = Rng::new(acknowledged ^ id);
    for number in own.end().. {
        let synced = !rng.one_in(4);
        let durability = if synced { Durability::Synced } else { Durability::Written };
        let record = [record(id, number)];
        let mut commit = Commit::new().append(&own, &record).append(&twin, &record);
        if number > 60 {
            commit = commit.release(&own, number - 60).release(&twin, number - 60);
        }
        match journal.commit_blocking(commit.durability(durability)) {
            Ok(_) if synced => acknowledged = number + 1,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    acknowledged
}

fn check(journal: &Journal, acknowledged: &[u64]) {
    for (id, acknowledged) in (0..).zip(acknowledged) {
        let (own, twin) = (journal.log("own", id).unwrap(), journal.log("twin", id).unwrap());
        assert_eq!((own.health(), twin.health()), (Health::Intact, Health::Intact), "log {id}");
        let bounds = own.bounds();
        assert!(bounds.end >= *acknowledged, "log {id} has {bounds:?}, not {acknowledged}");
        assert_eq!(bounds, twin.bounds(), "a commit was split");
        for number in bounds {
            assert_eq!(own.read(number).unwrap(), record(id, number));
            assert_eq!(twin.read(number).unwrap(), record(id, number));
        }
    }
}

#[test]
fn threads_lose_nothing_that_was_acknowledged() {
    let disk = CrashFiles::new(1);
    let mut rng = Rng::new(1);
    let mut acknowledged = vec![0; THREADS as usize];
    for _ in 0..ROUNDS {
        let journal = Journal::open_with(disk.mount(), config()).unwrap();
        check(&journal, &acknowledged);
        let (op, nth) = if rng.one_in(2) { (Op::Any, 200) } else { (Op::Sync, 60) };
        let effect = *rng.pick(&[Effect::PowerOff, Effect::Fail, Effect::DropDirty]);
        disk.inject(Fault::new(op, When::Nth(1 + rng.below(nth)), effect));
        // Should it hit an operation whose failure does not matter, this one ends the round.
        disk.inject(Fault::new(Op::Sync, When::From(100), Effect::PowerOff));
        acknowledged = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|id| (id, &journal))
                .map(|(id, journal)| scope.spawn(move || commit_until_failure(journal, id)))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        // Dropping it must not write: what it wrote before is what counts.
        disk.power_loss(Loss::Any);
        disk.heal();
    }
    println!("{acknowledged:?} commits were acknowledged, {}", disk.counters());
    assert!(acknowledged.iter().sum::<u64>() > 10 * ROUNDS);
}
