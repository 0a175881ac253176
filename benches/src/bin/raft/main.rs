//! raft beside its rivals: three nodes in one process, a store in memory, no network but function
//! calls and channels; 1, 64 and 1024 clients that each wait for an answer before they send the
//! next command of 16 bytes. Every contender runs on both kinds of runtime. Then ours alone,
//! durable, over TCP, beside the floor of the machine. Without the feature `rivals` ours runs
//! alone.
//!
//! The arguments `memory` and `durable` choose one of the two, a number chooses how many clients.
//! `VOUSSOIR_BENCH_ROUNDS` says how many rounds count (default 5).

mod durable;
#[cfg(feature = "rivals")]
mod openraft_group;
#[cfg(feature = "rivals")]
mod tikv_group;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use voussoir_benches::raft_group::Group;
use voussoir_benches::{Sample, compare, contender, process_cpu};

/// How long one round of one contender goes on.
const ROUND: Duration = Duration::from_secs(1);

/// One round over a fresh group. Starting and stopping it do not count.
macro_rules! round {
    ($start:expr, $runtime:expr, $clients:expr) => {
        $runtime.block_on(async {
            let group = Arc::new($start.await);
            let (wall, cpu) = (Instant::now(), process_cpu());
            let mut clients = tokio::task::JoinSet::new();
            for _ in 0..$clients {
                let group = group.clone();
                clients.spawn(async move {
                    let command = Bytes::from_static(&[7; 16]);
                    let mut done = 0;
                    while wall.elapsed() < ROUND {
                        group.propose(command.clone()).await;
                        done += 1;
                    }
                    done
                });
            }
            let ops = clients.join_all().await.into_iter().sum();
            let sample =
                Sample { ops, wall: wall.elapsed(), cpu: process_cpu().saturating_sub(cpu) };
            Arc::into_inner(group).expect("all clients have ended").stop().await;
            sample
        })
    };
}

fn main() {
    let rounds = std::env::var("VOUSSOIR_BENCH_ROUNDS");
    let rounds = rounds.ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5);
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (numbers, words): (Vec<String>, Vec<String>) =
        words.into_iter().partition(|word| word.parse::<usize>().is_ok());
    let wants = |word: &str| words.is_empty() || words.iter().any(|given| given == word);
    if wants("memory") {
        let mut clients: Vec<usize> = numbers.iter().flat_map(|number| number.parse()).collect();
        if clients.is_empty() {
            clients = vec![1, 64, 1024];
        }
        memory(rounds, &clients);
    }
    if wants("durable") {
        durable::run(rounds);
    }
}

fn memory(rounds: usize, clients: &[usize]) {
    let multi = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let current = Builder::new_current_thread().enable_all().build();
    let runtimes: [(&str, Runtime); 2] = [
        ("multi-thread runtime, 2 workers", multi.expect("a runtime")),
        ("current-thread runtime", current.expect("a runtime")),
    ];
    for (kind, runtime) in &runtimes {
        for clients in clients.iter().copied() {
            let contenders = vec![
                contender("voussoir", || round!(Group::start(true), runtime, clients)),
                contender("the same, machine apart", || {
                    round!(Group::start(false), runtime, clients)
                }),
                #[cfg(feature = "rivals")]
                contender("openraft 0.9", || {
                    round!(openraft_group::Group::start(), runtime, clients)
                }),
                #[cfg(feature = "rivals")]
                contender("raft 0.7", || round!(tikv_group::Group::start(), runtime, clients)),
            ];
            compare(&format!("3 nodes, {clients} clients, {kind}"), rounds, contenders);
        }
    }
}
