//! The state machine: named counters.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use voussoir_raft::{Chunks, Command, MachineError, StateMachine, WholeSnapshot};

/// Clients whose last request is remembered. Of more, those are forgotten whose request is oldest.
const MAX_CLIENTS: usize = 10_000;

/// The only command: adds `amount` to the counter `name`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Add {
    pub name: String,
    pub amount: i64,
    /// Who asks. Each client has one request under way at a time.
    pub client: u64,
    /// The client's own number of this request, growing. A retry repeats it.
    pub request: u64,
}

/// What every node holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub counters: BTreeMap<String, i64>,
    /// The last request of each client and its answer, so that a retry is not applied twice.
    last: BTreeMap<u64, Answered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answered {
    request: u64,
    answer: i64,
    /// The place of the command in the log.
    index: u64,
}

impl State {
    /// Applies the command at `index` of the log and returns the new value of the counter. Every
    /// node has to come to the same result, so it depends on the state and the command only: no
    /// clock, no randomness, no configuration.
    pub fn apply(&mut self, index: u64, add: &Add) -> i64 {
        if let Some(last) = self.last.get(&add.client)
            && last.request >= add.request
        {
            return last.answer;
        }
        let counter = self.counters.entry(add.name.clone()).or_default();
        *counter = counter.wrapping_add(add.amount);
        let answer = *counter;
        self.last.insert(add.client, Answered { request: add.request, answer, index });
        if self.last.len() > MAX_CLIENTS {
            let oldest = self.last.iter().min_by_key(|(_, last)| last.index);
            let oldest = oldest.map(|(client, _)| *client);
            oldest.and_then(|client| self.last.remove(&client));
        }
        answer
    }
}

/// Hands committed commands to the state, which the node's readers share.
pub struct Machine {
    pub state: Arc<Mutex<State>>,
}

#[async_trait]
impl StateMachine for Machine {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        let mut state = self.state.lock();
        let mut answers = Vec::new();
        for command in commands {
            let add: Add = serde_json::from_slice(&command.data)?;
            answers.push(serde_json::to_vec(&state.apply(command.index, &add))?.into());
        }
        Ok(answers)
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let bytes = serde_json::to_vec(&*self.state.lock())?;
        Ok(Box::new(WholeSnapshot::new(bytes)))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let bytes = WholeSnapshot::collect(chunks).await?;
        *self.state.lock() = serde_json::from_slice(&bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use voussoir_raft::testing::conformance;

    use super::*;

    #[tokio::test]
    async fn the_machine_keeps_the_promises_of_its_trait() {
        let command = |request| {
            let name = format!("counter {}", request % 2);
            serde_json::to_vec(&Add { name, amount: 5, client: 1, request }).unwrap().into()
        };
        let commands: Vec<Bytes> = (1..=10).map(command).collect();
        let create = || -> Box<dyn StateMachine> { Box::new(Machine { state: Arc::default() }) };
        conformance::state_machine(create, &commands).await;
    }

    #[test]
    fn a_retry_is_applied_once() {
        let mut state = State::default();
        let add = Add { name: "visits".to_owned(), amount: 1, client: 7, request: 1 };
        assert_eq!((state.apply(1, &add), state.apply(2, &add)), (1, 1));
        assert_eq!(state.apply(3, &Add { request: 2, ..add }), 2);
    }

    #[test]
    fn the_oldest_client_is_forgotten() {
        let mut state = State::default();
        let add = |client| Add { name: "visits".to_owned(), amount: 1, client, request: 1 };
        for (index, client) in (1..).zip(0..=MAX_CLIENTS as u64) {
            state.apply(index, &add(client));
        }
        let count = MAX_CLIENTS as i64 + 1;
        assert_eq!(state.apply(20_000, &add(1)), 2, "client 1 is remembered");
        assert_eq!(state.apply(20_001, &add(0)), count + 1, "client 0 is not");
    }
}
