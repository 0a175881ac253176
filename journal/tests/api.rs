//! The shape of the public API: what may cross threads, and what may be an object.

use std::error::Error as StdError;
use std::future::Future;
use std::sync::Arc;

use voussoir_journal::{
    Batch, BatchBuilder, Commit, CommitFuture, Config, ConfigError, Durability, Error, Fault, File,
    Files, Follow, FullCause, Health, Journal, Lease, Log, LogInfo, LogName, MemoryFiles,
    OpenError, Outcome, ReadError, Receipt, Report, Stats, Work,
};

fn shared<T: Send + Sync + 'static>() {}
fn error<T: StdError + Clone + PartialEq + Send + Sync + 'static>() {}
fn future<T: Future<Output = Result<Receipt, Error>> + Send + Unpin>() {}

#[test]
fn everything_may_cross_threads() {
    shared::<Journal>();
    shared::<Log>();
    shared::<Lease>();
    shared::<Commit>();
    shared::<Batch>();
    shared::<BatchBuilder>();
    shared::<CommitFuture>();
    shared::<Follow>();
    shared::<Config>();
    shared::<(Durability, Health, LogInfo, LogName, Outcome, Receipt, Report, Stats, Work)>();
    error::<Error>();
    error::<OpenError>();
    error::<ConfigError>();
    error::<ReadError>();
    error::<Fault>();
    future::<CommitFuture>();
}

#[test]
fn the_seam_is_object_safe() {
    let files: Arc<dyn Files> = Arc::new(MemoryFiles::new());
    let file: Arc<dyn File> = files.create("a").unwrap();
    assert!(file.is_empty().unwrap());
}

#[test]
fn outcomes_are_typed() {
    let fault = Fault {
        operation: "sync",
        name: "segment-00000000".to_owned(),
        kind: std::io::ErrorKind::Other,
        message: "device".to_owned(),
    };
    let failed = Error::Failed { fault: fault.clone() };
    assert_eq!(failed.outcome(), Outcome::Unknown);
    assert!(!failed.is_retryable());
    assert_eq!(Error::Stopped { fault }.outcome(), Outcome::NotApplied);
    let cause = FullCause::Limit { segments: 4, max_bytes: 9 };
    let full = Error::Full { cause, pinned_by: vec![LogName { namespace: "a".to_owned(), id: 1 }] };
    assert!(full.is_retryable());
    assert_eq!(
        full.to_string(),
        "the journal is full: its 4 segments are all that are allowed (max_bytes: 9); the \
         oldest segments are pinned by a/1"
    );
}

#[test]
fn configurations_out_of_range_are_rejected_by_name() {
    let with = |change: fn(&mut Config)| {
        let mut config = Config::manual();
        change(&mut config);
        match Journal::open_with(Arc::new(MemoryFiles::new()), config) {
            Err(OpenError::Config(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert!(with(|config| config.segment_bytes = 1).contains("segment_bytes"));
    assert!(with(|config| config.segment_bytes = (64 << 10) + 1).contains("4096"));
    assert!(with(|config| config.max_bytes = config.segment_bytes).contains("max_bytes"));
    assert!(with(|config| config.max_logs = 0).contains("max_logs"));
    assert!(with(|config| config.bulk_share_bytes = 0).contains("bulk_share_bytes"));
}
