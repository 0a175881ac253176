//! A test of the tests: a journal with a deliberate defect must be caught, and soon.

use std::panic::{AssertUnwindSafe, catch_unwind};

use voussoir_journal::testing::Mutant;

use crate::losses::{in_order, overtaking};
use crate::run::{Settings, run};

/// Seeds within which each mutant has to be caught.
const SEEDS_MAX: u64 = 300;

fn caught_by(settings: &Settings, seed: u64) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(|| run(seed, settings))) {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.lines().last().unwrap_or_default().trim().to_owned()),
        Err(_) => Some("an assertion of the journal".to_owned()),
    }
}

#[test]
fn every_mutant_is_caught() {
    let mut escaped = Vec::new();
    for mutant in Mutant::ALL {
        let families = [in_order(), overtaking()];
        let caught = (0..SEEDS_MAX).find_map(|seed| {
            let mut settings = families[(seed % 4 == 3) as usize].clone();
            let sound = settings.clone();
            settings.options.__mutant = Some(mutant);
            let why = caught_by(&settings, seed)?;
            assert_eq!(caught_by(&sound, seed), None, "seed {seed} fails without the mutant too");
            Some((seed, why))
        });
        match caught {
            Some((seed, why)) => println!("{mutant:?}: caught by seed {seed}: {why:.150}"),
            None => escaped.push(mutant),
        }
    }
    assert!(escaped.is_empty(), "not caught within {SEEDS_MAX} seeds: {escaped:?}");
}
