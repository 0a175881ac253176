//! A journal with two logs, a reader that follows one of them, and a reopening:
//! `cargo run --example journal-minimal`.

use voussoir_journal::{Commit, Config, Journal};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("journal-minimal-{}", std::process::id()));
    let mut config = Config::default();
    config.segment_bytes = 1 << 20;

    let journal = Journal::open(&dir, config.clone())?;
    let orders = journal.log("orders", 0)?;
    let events = journal.log("events", 0)?;
    for number in 0..3 {
        // Both or neither are found after a crash.
        let commit = Commit::new()
            .append(&orders, [format!("order {number}")])
            .append(&events, [format!("received {number}"), format!("charged {number}")]);
        let receipt = journal.commit_blocking(commit)?;
        println!("LSN {:?}: positions {:?}", receipt.lsn(), receipt.positions());
    }
    journal.commit_blocking(Commit::new().release(&events, 4))?;
    journal.close()?;

    let journal = Journal::open(&dir, config)?;
    for log in journal.logs() {
        println!("{}: {}..{}, {:?}", log.name, log.first, log.end, log.health);
    }
    let events = journal.log("events", 0)?;
    for record in events.read_range(events.bounds(), 1 << 20)? {
        println!("{}", str::from_utf8(&record)?);
    }
    journal.close()?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
