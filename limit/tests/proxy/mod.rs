//! A TCP proxy before a server, which misbehaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// A TCP proxy on a free loopback port.
pub(crate) struct Proxy {
    port: u16,
    state: Arc<ProxyState>,
}

struct ProxyState {
    target: AtomicU16,
    delay_ms: AtomicU64,
    accepted: AtomicU32,
    /// Counts the silences: a connection from before the last one says nothing more.
    silences: watch::Sender<u32>,
}

impl Proxy {
    pub(crate) async fn start(target: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(ProxyState {
            target: AtomicU16::new(target),
            delay_ms: AtomicU64::new(0),
            accepted: AtomicU32::new(0),
            silences: watch::Sender::new(0),
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((inner, _)) = listener.accept().await {
                shared.accepted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(Arc::clone(&shared).carry(inner));
            }
        });
        Self { port, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// New connections lead to this port; those that are open stay where they are.
    pub(crate) fn lead_to(&self, target: u16) {
        self.state.target.store(target, Ordering::Relaxed);
    }

    /// New connections are carried on only after a while.
    pub(crate) fn delay(&self, time: Duration) {
        self.state.delay_ms.store(time.as_millis() as u64, Ordering::Relaxed);
    }

    /// From now on nothing passes through the open connections, and they stay open.
    pub(crate) fn silence(&self) {
        self.state.silences.send_modify(|silences| *silences += 1);
    }

    pub(crate) fn accepted(&self) -> u32 {
        self.state.accepted.load(Ordering::Relaxed)
    }
}

impl ProxyState {
    async fn carry(self: Arc<Self>, mut client: tokio::net::TcpStream) {
        let mut silences = self.silences.subscribe();
        tokio::time::sleep(Duration::from_millis(self.delay_ms.load(Ordering::Relaxed))).await;
        let target = ("127.0.0.1", self.target.load(Ordering::Relaxed));
        let Ok(mut server) = tokio::net::TcpStream::connect(target).await else { return };
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            _ = silences.changed() => std::future::pending().await,
        }
    }
}
