//! A connection that can be cut: what one process sends to another passes through here.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::Duration;

/// Listens on an address of its own, and passes on what arrives there, unless it is cut. Its
/// threads end with the process of the test.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    is_cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    pub(crate) fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (is_cut, open) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let proxy = Self { address, is_cut: Arc::clone(&is_cut), open: Arc::clone(&open) };
        spawn(move || {
            for inner in listener.incoming().flatten() {
                // A process that was killed refuses, and so does what leads to it.
                let Ok(outer) = TcpStream::connect(to) else { continue };
                let _ = (inner.set_nodelay(true), outer.set_nodelay(true));
                for (from, to) in [(&inner, &outer), (&outer, &inner)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    open.lock().unwrap().push(from.try_clone().unwrap());
                    let is_cut = Arc::clone(&is_cut);
                    spawn(move || pass_on(from, to, &is_cut));
                }
            }
        });
        proxy
    }

    /// Nothing arrives from now on. Without a reset, neither side is told, and what was sent
    /// meanwhile arrives late.
    pub(crate) fn cut(&self, is_reset: bool) {
        self.is_cut.store(true, Ordering::Relaxed);
        let mut open = self.open.lock().unwrap();
        if is_reset {
            for stream in open.drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    pub(crate) fn mend(&self) {
        self.is_cut.store(false, Ordering::Relaxed);
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, is_cut: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    // Ends: with the connection.
    loop {
        let read = from.read(&mut buffer).unwrap_or(0);
        // Ends: when the cut is mended.
        while is_cut.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(2));
        }
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
}
