//! A relay that forgets connections, as a firewall does that has lost its state.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Dropped, it closes all connections.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    /// How many times connections were forgotten.
    forgotten: watch::Sender<u64>,
}

impl Relay {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let forgotten = watch::Sender::new(0);
        let mut of_all = forgotten.subscribe();
        tokio::spawn(async move {
            // Ends: the relay is dropped.
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    ended = of_all.changed() => match ended {
                        Ok(()) => continue,
                        Err(_) => return,
                    },
                };
                let mut of_one = of_all.clone();
                of_one.mark_unchanged();
                tokio::spawn(async move {
                    let (mut near, _) = accepted?;
                    let mut far = TcpStream::connect(target).await?;
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        // Both stay open, and nothing passes.
                        changed = of_one.changed() => if changed.is_ok() {
                            while of_one.changed().await.is_ok() {}
                        },
                    }
                    Ok::<_, std::io::Error>(())
                });
            }
        });
        Self { address, forgotten }
    }

    /// Nothing passes any more by the connections that stand, and neither side is told. New ones
    /// are as good as ever.
    pub(crate) fn forget(&self) {
        self.forgotten.send_modify(|count| *count += 1);
    }
}
