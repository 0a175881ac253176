//! Ids from a leased worker number, whose next holder repeats none of them.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use voussoir_lock::ids::{
    IdError, MemoryNumbers, Snowflake, SnowflakeConfig, WorkerLease, WorkerNumbers,
};
use voussoir_lock::{Clock, WallClock};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (layout, clock) = (SnowflakeConfig::default(), Arc::new(WallClock));
    let numbers: Arc<dyn WorkerNumbers> = Arc::new(MemoryNumbers::new());
    let ahead = Duration::from_millis(200);
    let acquire = || WorkerLease::acquire(Arc::clone(&numbers), 1, ahead, clock.clone());

    let (lease, window) = acquire().await?;
    let ids = Snowflake::new(layout.clone(), window)?;
    let last = ids.next(clock.now())?;
    println!("worker {}: {last}", lease.grant().worker);
    lease.release().await?;

    // The only number again. The first holder could have used times up to its ceiling.
    let (_lease, window) = acquire().await?;
    let ids = Snowflake::new(layout.clone(), window)?;
    let first = loop {
        match ids.next(clock.now()) {
            Ok(id) => break id,
            Err(IdError::ClockBehind { behind_ms, .. }) => {
                println!("ready in {behind_ms} ms");
                tokio::time::sleep(Duration::from_millis(behind_ms)).await;
            }
            Err(IdError::Exhausted { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(error) => return Err(error.into()),
        }
    };
    println!("worker {}: {first}", layout.parts(first)?.worker);
    assert!(first > last);
    Ok(())
}
