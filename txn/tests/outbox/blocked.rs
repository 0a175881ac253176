//! A message that is not taken blocks its key, and nothing else.

use std::sync::Arc;

use voussoir_txn::outbox::*;

use crate::{Database, Taken, put, quick, until};

/// A message that is not taken holds up its key and no other, until it is taken or discarded.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_message_that_is_not_taken_holds_up_its_key_alone() {
    let database = Database::create("poison").await;
    let outbox = database.outbox().await;
    let client = database.client().await;
    for body in ["poison", "after"] {
        put(&outbox, &client, "bad", body).await;
    }
    for number in 0..40 {
        put(&outbox, &client, &format!("good{number}"), "fine").await;
    }
    let taken: Arc<Taken> = Arc::default();
    let mut config = quick();
    config.max_rows = 1;
    let relay = Relay::start(&outbox, taken.clone(), config).unwrap();
    until("the others are taken", async || taken.messages.lock().len() == 40).await;
    until("it is tried again", async || {
        relay.stats().blocked.first().is_some_and(|blocked| blocked.attempts > 2)
    })
    .await;
    let stats = relay.stats();
    assert_eq!(stats.blocked.len(), 1);
    assert_eq!((&*stats.blocked[0].key, &*stats.blocked[0].why), ("bad", "the sink panicked"));
    assert!(outbox.discard(&client, &stats.blocked[0].message_id).await.unwrap());
    until("its key goes on", async || taken.bodies("bad") == ["after"]).await;
    until("nothing is blocked", async || relay.stats().blocked.is_empty()).await;
    until("all are counted", async || relay.stats().delivered == 41).await;
    relay.stop().await;
    database.drop().await;
}

/// What waits behind a message that is not taken is not visited again and again for other keys.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn the_backlog_of_a_blocked_key_is_visited_by_nobody() {
    let database = Database::create("backlog").await;
    let outbox = database.outbox().await;
    let client = database.client().await;
    for body in ["0", "x"] {
        put(&outbox, &client, "m", body).await;
    }
    let fill = "INSERT INTO voussoir_outbox (lane, topic, key, body) SELECT lane, topic, key, body \
                FROM voussoir_outbox, generate_series(1, 50000) WHERE body = 'x'";
    client.batch_execute(fill).await.unwrap();
    let taken: Arc<Taken> = Arc::default();
    taken.refused.lock().push("m".to_owned());
    let mut config = quick();
    config.max_rows = 48;
    let relay = Relay::start(&outbox, taken.clone(), config).unwrap();
    until("it is blocked", async || !relay.stats().blocked.is_empty()).await;
    // Before and behind it in the order of keys, in its lane and in others.
    let keys: Vec<String> = (0..60).flat_map(|n| [format!("a{n}"), format!("z{n}")]).collect();
    for body in ["1", "2", "3"] {
        let messages: Vec<NewMessage> =
            keys.iter().map(|key| NewMessage::new("orders", key, body.to_owned())).collect();
        outbox.put(&client, &messages).await.unwrap();
        outbox.wake();
        until("the others are taken", async || {
            keys.iter().all(|key| taken.bodies(key).last().is_some_and(|last| last == body))
        })
        .await;
    }
    for key in &keys {
        assert_eq!(taken.bodies(key), ["1", "2", "3"], "{key}");
    }
    until("it is tried again", async || {
        relay.stats().blocked.first().is_some_and(|blocked| blocked.attempts > 2)
    })
    .await;
    let blocked = relay.stats().blocked;
    assert_eq!(blocked.len(), 1, "{blocked:?}");
    relay.stop().await;
    // What a session has visited is told at its end at the latest.
    until("the relay's session ends", async || {
        let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                      AND pid <> pg_backend_pid() AND query LIKE 'UPDATE%'";
        client.query_one(others, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    let visited = "SELECT coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0) \
                   FROM pg_stat_user_tables WHERE relname = 'voussoir_outbox'";
    let visited: i64 = client.query_one(visited, &[]).await.unwrap().get(0);
    println!("{visited} rows visited");
    assert!(visited < 50_000, "{visited} rows were visited for 360 messages");
    database.drop().await;
}
