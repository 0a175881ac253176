//! The guarded resource: for each lock a fence, behind a socket. A request is `enter` or `write`,
//! with the lock, the token and the client; the answer is `1` if the token has entered, and `0` if
//! it was refused.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use voussoir_lock::{Fence, FencingToken};

/// Longest wait for what clients do all the time.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) struct Resource {
    address: SocketAddr,
    shared: Arc<(Mutex<Shared>, Condvar)>,
}

#[derive(Default)]
struct Shared {
    /// The tokens that have written, by lock.
    written: HashMap<u64, Fence<Vec<u64>>>,
    refused: u64,
    /// The client whose next entry is answered only once this is `None` again.
    held: Option<u64>,
    /// The lock and the token of its entry, once it has come.
    waiting: Option<(u64, u64)>,
}

impl Resource {
    pub(crate) fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let resource = Self { address, shared: Arc::default() };
        let served = resource.clone();
        // Both end with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                std::thread::spawn(move || served.answer(stream));
            }
        });
        resource
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn refused(&self) -> u64 {
        self.shared.0.lock().expect("no panic").refused
    }

    /// Returns the lock and the token once this client holds a lock and has entered: it is not
    /// answered until [`let_go`](Self::let_go), and writes after that.
    pub(crate) fn hold(&self, client: u64) -> (u64, u64) {
        let (shared, changed) = &*self.shared;
        let mut state = shared.lock().expect("no panic");
        (state.held, state.waiting) = (Some(client), None);
        let waited = changed.wait_timeout_while(state, PATIENCE, |state| state.waiting.is_none());
        let waiting = waited.expect("no panic").0.waiting;
        waiting.unwrap_or_else(|| panic!("client {client} enters nothing"))
    }

    /// Returns once a later token has come for the lock.
    pub(crate) fn wait_for_a_token_after(&self, (lock, token): (u64, u64)) {
        let (shared, changed) = &*self.shared;
        let state = shared.lock().expect("no panic");
        let is_latest = |state: &mut Shared| {
            state.written.get(&lock).is_none_or(|fence| fence.latest() <= token)
        };
        let waited = changed.wait_timeout_while(state, PATIENCE, is_latest).expect("no panic");
        assert!(!waited.1.timed_out(), "nobody enters lock {lock} after token {token}");
    }

    /// Returns once another late write has been refused than the first `before` ones.
    pub(crate) fn wait_for_a_refusal_after(&self, before: u64) {
        let (shared, changed) = &*self.shared;
        let state = shared.lock().expect("no panic");
        let is_none = |state: &mut Shared| state.refused <= before;
        let waited = changed.wait_timeout_while(state, PATIENCE, is_none).expect("no panic");
        assert!(!waited.1.timed_out(), "who was paused writes nothing");
    }

    pub(crate) fn let_go(&self) {
        let (shared, changed) = &*self.shared;
        shared.lock().expect("no panic").held = None;
        changed.notify_all();
    }

    /// Writers come in the order of their tokens.
    pub(crate) fn check(&self) {
        for (lock, written) in &self.shared.0.lock().expect("no panic").written {
            let mut written = written.clone();
            let last = FencingToken::new(written.latest());
            let tokens = written.enter(last).expect("it is the latest");
            assert!(tokens.is_sorted(), "the writers of lock {lock} are out of order");
        }
    }

    /// Answers one client until it closes the connection.
    fn answer(&self, mut stream: TcpStream) {
        let reader = BufReader::new(stream.try_clone().expect("a socket"));
        stream.set_nodelay(true).expect("a socket");
        for line in reader.lines() {
            let Ok(line) = line else { return };
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<u64>().expect("a number");
            let (lock, token, client) = (number(1), FencingToken::new(number(2)), number(3));
            let (shared, changed) = &*self.shared;
            let mut state = shared.lock().expect("no panic");
            let fence = state.written.entry(lock).or_insert_with(|| Fence::new(Vec::new()));
            let is_write = words[0] == "write";
            let enter = |written: &mut Vec<u64>| is_write.then(|| written.push(token.get()));
            let entered = fence.enter(token).map(enter).is_ok();
            state.refused += u64::from(!entered && is_write);
            changed.notify_all();
            if entered && !is_write && state.held == Some(client) {
                state.waiting = Some((lock, token.get()));
                // Ends: `let_go` follows each `hold`.
                let waited = changed.wait_while(state, |state| state.held == Some(client));
                state = waited.expect("no panic");
            }
            drop(state);
            let answer: &[u8] = if entered { b"1" } else { b"0" };
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} late writes refused", self.refused())
    }
}
