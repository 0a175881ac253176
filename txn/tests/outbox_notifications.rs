//! How often an outbox notifies the relays of other processes, on a real PostgreSQL.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::{AsyncMessage, NoTls};
use voussoir_txn::outbox::{Outbox, OutboxConfig};
use voussoir_txn::postgres::Connect;

const MS: Duration = Duration::from_millis(1);

/// The server commits transactions that notify one after the other, so one for each message would
/// hold up the messages' own.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn many_messages_share_a_notification() {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL is set by `cargo xtask test`");
    let server: tokio_postgres::Config = url.parse().unwrap();
    let name = format!("voussoir_outbox_paced_{}", std::process::id());
    let admin = Connect::connect(&server).await.unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let mut own = server.clone();
    own.dbname(&name);
    let (client, mut connection) = own.connect(NoTls).await.unwrap();
    let heard: Arc<AtomicU64> = Arc::default();
    let count = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if matches!(message, AsyncMessage::Notification(_)) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    client.batch_execute("LISTEN voussoir_outbox").await.unwrap();
    let outbox = Outbox::open(own, OutboxConfig::default()).await.unwrap();
    let start = Instant::now();
    while start.elapsed() < 500 * MS {
        outbox.wake();
        tokio::time::sleep(MS / 4).await;
    }
    let most = start.elapsed().as_millis() as u64 / 5 + 2;
    while heard.load(Ordering::Relaxed) == 0 {
        assert!(start.elapsed() < Duration::from_secs(15), "none is heard");
        tokio::time::sleep(50 * MS).await;
    }
    let heard = heard.load(Ordering::Relaxed);
    assert!(heard <= most, "{heard} notifications in {:?}", start.elapsed());
    drop((client, outbox));
    admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
}
