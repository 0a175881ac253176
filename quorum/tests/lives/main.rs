//! Long lives of tables and registers, faults of every kind together: messages lost, repeated, late
//! and out of order, links cut in one or both directions, servers that crash and lose what was not
//! synced, disks that are lost, clients that are killed, clocks that jump by up to 10 s.
//!
//! `VOUSSOIR_LIVES` sets the number of seeds of each test, `VOUSSOIR_SEED` the first one.

mod abd;
mod faults;
mod registers;
mod table;

/// Runs a life for each seed, and the first one twice; a failure names its seed. `life` returns
/// what two lives of one seed have in common.
fn lives(test: &str, default: u64, life: impl Fn(u64) -> (u64, u64, u64)) {
    let number = |name: &str, default| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (first, count) = (number("VOUSSOIR_SEED", 0), number("VOUSSOIR_LIVES", default));
    for seed in first..first + count {
        let run = std::panic::AssertUnwindSafe(|| {
            let trace = life(seed);
            assert!(seed != first || trace == life(seed), "a seed is not one life");
        });
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!(
                "seed {seed} fails; VOUSSOIR_SEED={seed} VOUSSOIR_LIVES=1 \
                 cargo test -p voussoir-quorum --test lives {test}"
            );
            std::panic::resume_unwind(panic);
        }
    }
}
