//! Accounts: a balance that all machines agree on, or that none of them touches.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, oneshot};
use voussoir_quorum::paxos::{Outcome, Token};
use voussoir_quorum::{Bytes, RegisterConfig, RegisterError, Registers};

use crate::Error;
use crate::cluster::{Server, TIMEOUT};

/// How often a change is based on the latest balance again, because another machine was quicker.
const MAX_ATTEMPTS: usize = 32;
/// Changes that a register remembers, and so how long the outcome of one can be asked for.
const MAX_TOKENS: usize = 512;

/// The accounts of one machine, in linearizable registers: a majority of the nodes holds each
/// balance, and a machine that reaches no majority refuses.
pub(crate) struct Accounts {
    registers: Registers,
    /// The withdrawal that is not settled. The machine takes no other one before it is. A real
    /// machine keeps it on its disk.
    open: Mutex<Option<Open>>,
    /// Held by a change: a machine serves one customer at a time.
    serving: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
enum Open {
    /// Whether it was made is not known.
    Unknown { key: Bytes, cents: u64, token: Token },
    /// It was made, and nobody has been told.
    Made { cents: u64 },
}

/// How a withdrawal ended, and the machine's turn, which is over when the customer knows.
type Ended = (Result<Withdrawal, Error>, OwnedMutexGuard<()>);

/// How a withdrawal ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Withdrawal {
    /// The money is the customer's.
    Paid { cents: u64 },
    /// There is not as much on the account.
    Declined { cents: u64 },
    /// Nothing was open, or it was not made and never will be.
    Nothing,
}

impl fmt::Display for Withdrawal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paid { cents } => write!(f, "paid {cents}"),
            Self::Declined { cents } => write!(f, "declined, the balance is {cents}"),
            Self::Nothing => f.write_str("nothing"),
        }
    }
}

impl Accounts {
    pub(crate) fn new(server: &Server) -> Result<Self, Error> {
        let mut config = RegisterConfig::with_acceptors(server.replicas.iter().copied());
        (config.timeout, config.proposer.max_tokens) = (TIMEOUT, MAX_TOKENS);
        Ok(Self::over(Registers::new(server.node.id(), config, server.link.clone())?))
    }

    fn over(registers: Registers) -> Self {
        Self { registers, open: Mutex::default(), serving: Arc::default() }
    }

    /// The balance, in cents.
    ///
    /// # Errors
    /// No majority answers.
    pub(crate) async fn balance(&self, key: &Bytes) -> Result<u64, Error> {
        let (_, value) = self.registers.get(key.clone()).await?;
        cents(value.as_ref())
    }

    /// Adds to the balance, and returns it.
    ///
    /// # Errors
    /// No majority answers, and nothing has changed; or it is not known whether it has.
    pub(crate) async fn deposit(&self, key: &Bytes, more: u64) -> Result<u64, Error> {
        let _serving = self.serving.lock().await;
        // Ends: after so many attempts.
        for _ in 0..MAX_ATTEMPTS {
            let (version, value) = self.registers.get(key.clone()).await?;
            let balance = cents(value.as_ref())?.checked_add(more).ok_or("too much money")?;
            let value = Some(Bytes::copy_from_slice(&balance.to_le_bytes()));
            let written = self.registers.compare_and_set(key.clone(), version, value).await?;
            if matches!(written, Outcome::Applied { .. }) {
                return Ok(balance);
            }
        }
        Err("other machines were quicker each time; nothing has changed".into())
    }

    /// Takes from the balance, unless there is not as much.
    ///
    /// In a task of its own: a caller that goes away, as a handler does whose client hangs up,
    /// leaves no withdrawal half made. What was made without it [`Accounts::settle`] tells.
    ///
    /// # Errors
    /// No majority answers, and nothing has changed; or it is not known whether it has, and
    /// [`Accounts::settle`] finds out.
    pub(crate) async fn withdraw(
        self: &Arc<Self>,
        key: &Bytes,
        less: u64,
    ) -> Result<Withdrawal, Error> {
        let (accounts, key) = (Arc::clone(self), key.clone());
        let (reply, ended) = oneshot::channel::<Ended>();
        tokio::spawn(async move {
            let serving = Arc::clone(&accounts.serving).lock_owned().await;
            // A caller that went away while it waited for its turn withdraws nothing.
            if !reply.is_closed() {
                let made = accounts.withdraw_in_turn(&key, less).await;
                // An error here says that the caller has gone: the withdrawal stays open.
                let _ = reply.send((made, serving));
            }
        });
        let (made, _serving) = ended.await?;
        if let Ok(Withdrawal::Paid { .. }) = made {
            // Nothing is awaited from here on: the caller has the answer.
            *self.open.lock() = None;
        }
        made
    }

    /// Leaves a withdrawal that was made open, for the caller to close or for `settle`.
    async fn withdraw_in_turn(&self, key: &Bytes, less: u64) -> Result<Withdrawal, Error> {
        if self.open.lock().is_some() {
            return Err("out of service until the last withdrawal is settled".into());
        }
        // Ends: after so many attempts.
        for _ in 0..MAX_ATTEMPTS {
            let (version, value) = self.registers.get(key.clone()).await?;
            let balance = cents(value.as_ref())?;
            let Some(left) = balance.checked_sub(less) else {
                return Ok(Withdrawal::Declined { cents: balance });
            };
            let value = Some(Bytes::copy_from_slice(&left.to_le_bytes()));
            match self.registers.compare_and_set(key.clone(), version, value).await {
                Ok(Outcome::Applied { .. }) => {
                    *self.open.lock() = Some(Open::Made { cents: less });
                    return Ok(Withdrawal::Paid { cents: less });
                }
                // Another machine has changed the balance since: look again.
                Ok(_) => {}
                Err(RegisterError::Unknown(token)) => {
                    // Neither paid out nor given up: either may be wrong.
                    let open = Open::Unknown { key: key.clone(), cents: less, token };
                    *self.open.lock() = Some(open);
                    return Err("the outcome is unknown; out of service until it is settled".into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err("other machines were quicker each time; nothing has changed".into())
    }

    /// Finds out what became of the withdrawal whose outcome nobody was told. Once it has answered,
    /// the answer stays true: what was not made never will be.
    ///
    /// # Errors
    /// No majority answers: it stays open.
    pub(crate) async fn settle(&self) -> Result<Withdrawal, Error> {
        let _serving = self.serving.lock().await;
        let open = self.open.lock().clone();
        let (key, cents, token) = match open {
            Some(Open::Unknown { key, cents, token }) => (key, cents, token),
            Some(Open::Made { cents }) => {
                *self.open.lock() = None;
                return Ok(Withdrawal::Paid { cents });
            }
            None => return Ok(Withdrawal::Nothing),
        };
        let outcome = self.registers.resolve(key, token).await?;
        *self.open.lock() = None;
        match outcome {
            Outcome::Applied { .. } => Ok(Withdrawal::Paid { cents }),
            _ => Ok(Withdrawal::Nothing),
        }
    }
}

/// An account that was never written is empty.
fn cents(value: Option<&Bytes>) -> Result<u64, Error> {
    let Some(value) = value else { return Ok(0) };
    let bytes = value[..].try_into().map_err(|_| "the register holds no balance")?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use voussoir_quorum::table::CallError;
    use voussoir_quorum::{Class, Instant, Link, MemoryStore, Node, NodeConfig, async_trait};

    use super::*;

    /// Three nodes. While told so, a request that carries the balance 300 is lost, or its answer.
    struct Lossy {
        nodes: Vec<Node>,
        loses: AtomicBool,
        /// Whether the request arrives, and only its answer is lost.
        arrives: bool,
    }

    #[async_trait]
    impl Link for Lossy {
        async fn call(
            &self,
            to: u64,
            _class: Class,
            request: Bytes,
            deadline: Instant,
        ) -> Result<Bytes, CallError> {
            let carries = request.windows(8).any(|bytes| bytes == 300_u64.to_le_bytes());
            let is_lost = carries && self.loses.load(Ordering::Relaxed);
            let mut answer = None;
            if !is_lost || self.arrives {
                answer = self.nodes[to as usize - 1].answer(request).await;
            }
            if is_lost {
                tokio::time::sleep_until(deadline).await;
                return Err(CallError::Unknown);
            }
            answer.ok_or(CallError::Unknown)
        }
    }

    async fn settle(arrives: bool) -> (Withdrawal, u64) {
        let mut nodes = Vec::new();
        for id in 1..=3 {
            let (store, config) = (Arc::new(MemoryStore::new()), NodeConfig::with_replicas(1..=3));
            nodes.push(Node::create(id, store, config).await.unwrap());
        }
        let link = Arc::new(Lossy { nodes, loses: AtomicBool::new(false), arrives });
        let mut config = RegisterConfig::with_acceptors(1..=3);
        config.timeout = TIMEOUT;
        let accounts = Arc::new(Accounts::over(Registers::new(1, config, link.clone()).unwrap()));
        let key = Bytes::from_static(b"ann");
        accounts.deposit(&key, 500).await.unwrap();
        link.loses.store(true, Ordering::Relaxed);
        let error = accounts.withdraw(&key, 200).await.unwrap_err().to_string();
        assert!(error.contains("the outcome is unknown"), "{error}");
        let error = accounts.withdraw(&key, 100).await.unwrap_err().to_string();
        assert!(error.contains("out of service"), "{error}");
        link.loses.store(false, Ordering::Relaxed);
        let settled = accounts.settle().await.unwrap();
        assert_eq!(accounts.settle().await.unwrap(), Withdrawal::Nothing);
        (settled, accounts.balance(&key).await.unwrap())
    }

    /// A customer walks away before the answer comes: the withdrawal is settled, once.
    #[tokio::test]
    async fn a_withdrawal_whose_caller_goes_away_is_settled() {
        let mut nodes = Vec::new();
        for id in 1..=3 {
            let (store, config) = (Arc::new(MemoryStore::new()), NodeConfig::with_replicas(1..=3));
            nodes.push(Node::create(id, store, config).await.unwrap());
        }
        let link = Arc::new(Lossy { nodes, loses: AtomicBool::new(false), arrives: true });
        let mut config = RegisterConfig::with_acceptors(1..=3);
        config.timeout = TIMEOUT;
        let accounts = Arc::new(Accounts::over(Registers::new(1, config, link).unwrap()));
        let key = Bytes::from_static(b"ann");
        accounts.deposit(&key, 500).await.unwrap();
        let mut withdrawing = Box::pin(accounts.withdraw(&key, 200));
        let polled = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(withdrawing.as_mut().poll(cx).is_ready())
        });
        assert!(!polled.await);
        // The task has its turn, and the answer waits for the caller.
        tokio::time::sleep(TIMEOUT).await;
        drop(withdrawing);
        assert_eq!(accounts.settle().await.unwrap(), Withdrawal::Paid { cents: 200 });
        assert_eq!(accounts.settle().await.unwrap(), Withdrawal::Nothing);
        assert_eq!(accounts.balance(&key).await.unwrap(), 300);
    }

    #[tokio::test]
    async fn an_unknown_withdrawal_is_paid_if_it_was_made() {
        assert_eq!(settle(true).await, (Withdrawal::Paid { cents: 200 }, 300));
    }

    #[tokio::test]
    async fn an_unknown_withdrawal_is_not_paid_if_it_was_not_made() {
        assert_eq!(settle(false).await, (Withdrawal::Nothing, 500));
    }
}
