//! What callers rely on: threads, and that public types stay what they are.

use std::error::Error;

use voussoir_sim::{
    Broken, Call, CheckError, Checked, Config, ConfigError, Counts, Crash, DiskFault, DiskHealth,
    Failure, FaultClass, FaultSet, History, Intensity, Kv, KvOp, KvRet, Plan, Report, RequestId,
    Rng, Runner, Step, Summary,
};

fn shared<T: Send + Sync + 'static>() {}
fn error<T: Error + Send + Sync + 'static>() {}

#[test]
fn values_cross_threads() {
    shared::<Plan>();
    shared::<Config>();
    shared::<Intensity>();
    shared::<(FaultClass, FaultSet, Counts, Crash, DiskFault, DiskHealth)>();
    shared::<(Report, Failure, Summary, Runner, Rng, RequestId)>();
    shared::<History<KvOp<String, u64>, KvRet<u64>>>();
    shared::<Call<KvOp<String, u64>, KvRet<u64>>>();
    shared::<(Kv<String, u64>, Checked, Step<u64>)>();
}

#[test]
fn errors_are_errors() {
    error::<ConfigError>();
    error::<Broken>();
    error::<CheckError<String>>();
}
