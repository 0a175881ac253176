//! The commands, one after the other, on a queue on disk.

use std::path::Path;
use std::time::Duration;

use clap::Parser;
use voussoir_journal::Journal;
use voussoir_queue::work::WorkConfig;
use voussoir_queue::{Queue, QueueConfig};

use crate::args::Cli;
use crate::commands;

async fn queue(dir: &Path, words: &str, input: &str) -> Result<String, String> {
    let dir = dir.to_str().expect("a path");
    let words = ["queue", "--dir", dir].into_iter().chain(words.split(' '));
    let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    let done = commands::run(&cli, &mut input.as_bytes(), &mut out).await;
    let out = String::from_utf8(out).expect("text");
    done.map(|()| out).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_filled_read_looked_at_and_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("journal");
    let missing = queue(&dir, "topics", "").await.expect_err("there is none");
    assert!(missing.contains("journal"), "{missing}");
    assert!(!dir.exists(), "looking makes nothing");
    queue(&dir, "create orders --partitions 2 --retention-hours 24", "").await.expect("created");
    let lines = "ada:two seats\ngrace:a table\nada:a coat\nno key\n";
    let said = queue(&dir, "produce orders --key-separator : --compression gzip", lines).await;
    assert!(said.expect("written").starts_with("4 records acknowledged"));
    let said = queue(&dir, "consume orders", "").await.expect("read");
    let of_ada: Vec<&str> = said.lines().filter(|line| line.contains("\tada\t")).collect();
    assert_eq!(of_ada.len(), 2, "{said}");
    assert!(of_ada[0].ends_with("two seats") && of_ada[1].ends_with("a coat"), "{said}");
    assert_eq!((said.lines().count(), said.matches("\t-\tno key").count()), (4, 1), "{said}");
    // A group reads on where it was.
    let first = queue(&dir, "consume orders --group billing --max 1", "").await.expect("read");
    let groups = queue(&dir, "groups", "").await.expect("listed");
    assert_eq!(groups, "billing\t3 behind\n");
    let rest = queue(&dir, "consume orders --group billing", "").await.expect("read");
    assert_eq!((first.lines().count(), rest.lines().count()), (1, 3), "{first}{rest}");
    let lag = queue(&dir, "lag billing", "").await.expect("listed");
    assert!(lag.lines().all(|line| line.ends_with("\t0 behind")), "{lag}");
    assert!(queue(&dir, "lag nobody", "").await.is_err());
    let said = queue(&dir, "consume orders --from latest", "").await.expect("read");
    assert_eq!(said, "");
    let said = queue(&dir, "verify", "").await.expect("whole");
    assert!(said.contains("4 records, 0 partitions with a problem"), "{said}");
    let said = queue(&dir, "bench --seconds 1 --record-bytes 10", "").await.expect("measured");
    assert!(said.contains("synced, 64 on their way") && said.contains("read "), "{said}");
    let said = queue(&dir, "topics", "").await.expect("listed");
    assert_eq!(said.lines().count(), 3, "the topic of the measurement is gone: {said}");
    queue(&dir, "create state --compact --tombstone-hours 0", "").await.expect("created");
    for lines in ["a:1\nb:1\n", "a:2\n", "b:2\n", "end:\n"] {
        queue(&dir, "produce state --key-separator :", lines).await.expect("written");
    }
    let said = queue(&dir, "compact", "").await.expect("compacted");
    assert_eq!(said, "state/0: 2 records removed\n");
    let said = queue(&dir, "topics", "").await.expect("listed");
    let words = |topic: &str| {
        let line = said.lines().find(|line| line.starts_with(topic)).expect("a line");
        line.split_whitespace().nth(1).expect("a policy").to_owned()
    };
    assert_eq!((words("state"), words("orders")), ("compact".into(), "delete".into()), "{said}");
    let said = queue(&dir, "consume state", "").await.expect("read");
    assert_eq!(said.lines().count(), 3, "{said}");
    queue(&dir, "delete orders", "").await.expect("deleted");
    assert!(queue(&dir, "consume orders", "").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_and_redriven() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("journal");
    queue(&dir, "create jobs", "").await.expect("created");
    queue(&dir, "produce jobs --partition 0", "good\nbad\n").await.expect("written");
    {
        let journal = Journal::open(&dir, voussoir_journal::Config::default()).expect("it opens");
        let opened = Queue::open(&journal, "queue", QueueConfig::default()).expect("it opens");
        let work =
            opened.work_queue("jobs", 0, "workers", WorkConfig::default()).expect("it opens");
        let jobs = work.receive(2, Duration::from_secs(10)).await.expect("records");
        work.ack(&jobs[0].receipt).await.expect("acknowledged");
        work.reject(&jobs[1].receipt, "cannot be parsed").await.expect("rejected");
        let busy = queue(&dir, "topics", "").await.expect_err("the directory is in use");
        assert!(busy.contains("in use"), "{busy}");
        drop((work, opened));
        journal.close().expect("closed");
    }
    let said = queue(&dir, "dead-letters jobs 0 workers", "").await.expect("listed");
    assert!(said.contains("cannot be parsed") && said.ends_with("\tbad\n"), "{said}");
    let said = queue(&dir, "redrive jobs 0 workers", "").await.expect("redriven");
    assert_eq!(said, "1 dead letters will be delivered again\n");
    let said = queue(&dir, "redrive jobs 0 workers", "").await.expect("nothing is left");
    assert_eq!(said, "0 dead letters will be delivered again\n");
    assert!(queue(&dir, "redrive jobs 0 workers --id 99", "").await.is_err());
}

#[tokio::test]
async fn a_wrong_command_line_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    for words in ["consume t --from yesterday", "bench --seconds 0", "consume t --group g --from 3"]
    {
        assert!(queue(folder.path(), words, "").await.is_err(), "{words}");
    }
}
