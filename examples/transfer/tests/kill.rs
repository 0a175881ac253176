//! The coordinator and both databases are killed with `kill -9` at each point of the protocol.
//!
//! `VOUSSOIR_KILLS` sets the number of rounds, each of which kills one to three processes; with 120
//! every point meets every victim. Without it there are 8, four of which kill databases.
//! `VOUSSOIR_SEED` sets the seed.

use std::process::Command;

use voussoir_sim::Situations;

const SITUATIONS: [&str; 6] = [
    "the coordinator was killed",
    "a database was killed",
    "a transaction was left prepared",
    "a transfer was left decided",
    "a client asked again",
    "a client's transfer had been done",
];

/// The number before these words.
fn number(said: &str, words: &str) -> u64 {
    let (before, _) = said.split_once(words).unwrap_or_else(|| panic!("no `{words}`: {said}"));
    before.trim_end().rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs postgresql"]
fn kills_at_every_point_make_and_lose_no_money() {
    let (first, rounds) = match std::env::var("VOUSSOIR_KILLS") {
        Ok(rounds) => ("0", rounds),
        Err(_) => ("20", "8".to_owned()),
    };
    let seed = std::env::var("VOUSSOIR_SEED").unwrap_or("7".to_owned());
    let output = Command::new(env!("CARGO_BIN_EXE_transfer"))
        .args(["--first", first, "--rounds", &rounds, "--seed", &seed])
        // A server that is not its own it does not kill.
        .env_remove("DATABASE_URL")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    println!("{said}\n{errors}");
    assert!(output.status.success(), "{}", output.status);
    assert!(said.contains("exact: both banks hold what was acknowledged"));
    let situations = Situations::new(&SITUATIONS);
    let counts = [
        number(&said, " of the coordinator, "),
        number(&said, " of a database; "),
        number(&said, " transactions were prepared, "),
        number(&said, " transfers were decided and not "),
        number(&said, " attempts repeated, "),
        number(&said, " of them found "),
    ];
    for (name, count) in SITUATIONS.into_iter().zip(counts) {
        situations.add(name, count);
    }
    println!("{situations}");
    situations.assert_all_reached();
}
