//! An axum service behind the layer for `Idempotency-Key`: the second attempt of a charge gets the
//! first one's answer, and another request under the same key is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::post;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use voussoir_txn::idempotency::layer::{IdempotencyConfig, IdempotencyLayer};
use voussoir_txn::idempotency::{Keys, KeysConfig, StoreKeys};
use voussoir_txn::store::MemoryStore; // JournalStore, or PostgresKeys, keep keys across restarts

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = StoreKeys::open(MemoryStore::new(), 100_000).await?;
    let keys = Keys::new(store, KeysConfig::default())?;
    // Whom the key belongs to: here the tenant that a gateway has authenticated.
    let layer = IdempotencyLayer::new(keys, IdempotencyConfig::default(), |request| {
        let tenant = request.headers.get("x-tenant").and_then(|name| name.to_str().ok());
        tenant.unwrap_or("nobody").to_owned()
    })?;
    let charges = Arc::new(AtomicU64::new(0));
    let charge = move |body: String| {
        let number = charges.fetch_add(1, Ordering::Relaxed) + 1;
        let location = [(header::LOCATION, format!("/charges/{number}"))];
        async move { (StatusCode::CREATED, location, format!("charge {number} of {body}")) }
    };
    let app = Router::new().route("/charges", post(charge)).layer(layer);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    for (key, cents) in [("\"8e03978e\"", "4200"), ("\"8e03978e\"", "4200"), ("\"8e03978e\"", "1")]
    {
        let mut client = TcpStream::connect(address).await?;
        let request = format!(
            "POST /charges HTTP/1.1\r\nhost: shop\r\nx-tenant: 7\r\nidempotency-key: {key}\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{cents}",
            cents.len()
        );
        client.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await?;
        println!("--- {key} {cents}\n{answer}");
    }
    Ok(())
}
