//! A stampede, with and without protection: `cargo run --example cache-minimal`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use voussoir_cache::{Cache, Config, Loaded};

/// A database that answers in 20 ms and counts its queries.
async fn query(queries: Arc<AtomicU64>, key: u64) -> u64 {
    queries.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(20)).await;
    key * 10
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::default();
    config.ttl = Some(Duration::from_secs(60));
    let cache: Cache<u64, u64> = Cache::builder().config(config).build()?;

    for protected in [false, true] {
        let queries = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        let readers: Vec<_> = (0..1000_u64)
            .map(|reader| {
                let (cache, queries) = (cache.clone(), Arc::clone(&queries));
                tokio::spawn(async move {
                    let key = reader % 10;
                    if !protected {
                        return query(queries, key).await;
                    }
                    let load = move |key| {
                        let queries = Arc::clone(&queries);
                        async move { Ok(Loaded::value(query(queries, key).await)) }
                    };
                    let loaded = cache.get_or_load_with(&key, load).await;
                    loaded.ok().flatten().expect("the database answers")
                })
            })
            .collect();
        for reader in readers {
            reader.await?;
        }
        println!(
            "1000 readers of 10 keys, {}: {:>4} queries in {:.0?}",
            if protected { "one load a key" } else { "no protection " },
            queries.load(Ordering::Relaxed),
            began.elapsed(),
        );
    }
    println!("{:#?}", cache.stats());
    Ok(())
}
