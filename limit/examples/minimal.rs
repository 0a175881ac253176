//! Ten requests a second and sixty a minute for each caller, and a limiter to wait for.
//!
//! ```text
//! cargo run --example limit-minimal
//! ```

use std::time::Duration;

use voussoir_limit::{Keyed, KeyedConfig, Limiter, Quota};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Ten a second with bursts of five, and never more than sixty in any minute.
    let quotas = [
        Quota::gcra(10, Duration::from_secs(1)).burst(5).named("second"),
        Quota::sliding_log(60, Duration::from_secs(60)).named("minute"),
    ];
    let by_caller: Keyed<String> = Keyed::with_config(&quotas, KeyedConfig::default())?;
    for caller in ["alice", "bob", "alice", "alice", "alice", "alice", "alice"] {
        match by_caller.check(caller) {
            Ok(admitted) => println!("{caller}: passes, {} more right now", admitted.remaining()),
            Err(rejected) => println!("{caller}: {rejected}"),
        }
    }

    // One limiter for all of a process, to wait for.
    let limiter = Limiter::new(Quota::gcra(20, Duration::from_secs(1)))?;
    let start = std::time::Instant::now();
    for call in 1..=5 {
        limiter.until_ready().await?;
        println!("call {call} after {:3} ms", start.elapsed().as_millis());
    }
    Ok(())
}
