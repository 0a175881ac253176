//! What the core alone costs: three of them in one thread, messages moved in memory, writes
//! durable at once. Prints the time per replicated entry of all three together.
//!
//! `cargo run --release -p voussoir-raft --example core_cost -- [window] [payload bytes]`

use std::collections::VecDeque;
use std::error::Error;
use std::time::Instant;

use bytes::Bytes;
use voussoir_raft::Restored;
use voussoir_raft::core::{Core, Input, Output};
use voussoir_raft::{Config, Message, Role};

const ENTRIES: u64 = 1_000_000;

/// Does all that the three want done, until nothing is left; returns how many of the leader's
/// entries were applied.
fn settle(cores: &mut [Core], queue: &mut VecDeque<(usize, Input)>, now: u64) -> u64 {
    let mut applied = 0;
    loop {
        for (at, core) in cores.iter_mut().enumerate() {
            while let Some(output) = core.poll_output() {
                let (to, message) = match output {
                    Output::Persist(write) => {
                        queue.push_back((at, Input::Persisted { id: write.id }));
                        continue;
                    }
                    Output::Apply { range } => {
                        applied += if at == 0 { range.end - range.start } else { 0 };
                        queue.push_back((at, Input::Applied { index: range.end - 1 }));
                        continue;
                    }
                    Output::Replicate { to, head, range } => {
                        let lent = core.entries(range).expect("the core lends what it sends");
                        (to, Message::Append { head, entries: lent.cloned().collect() })
                    }
                    Output::Send { to, message } => (to, message),
                    _ => continue,
                };
                let from = at as u64 + 1;
                queue.push_back((to as usize - 1, Input::Message { from, message }));
            }
        }
        if queue.is_empty() {
            return applied;
        }
        queue.drain(..).for_each(|(at, input)| cores[at].step(now, input));
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let window: u64 = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let payload: usize = arguments.next().map_or(Ok(0), |text| text.parse())?;
    let mut cores = Vec::new();
    for id in 1..=3 {
        let mut config = Config::new(id, [1, 2, 3]);
        config.snapshot_after_entries = 0;
        config.snapshot_after_bytes = 0;
        cores.push(Core::new(config, Restored::empty(), 0)?);
    }
    let mut queue = VecDeque::new();
    let now = 401_000_000;
    cores[0].step(now, Input::Tick);
    settle(&mut cores, &mut queue, now);
    assert_eq!(cores[0].status().role, Role::Leader, "the first one asked first");
    let data = Bytes::from(vec![7; payload]);
    let (mut applied, mut token) = (0, 0);
    let begun = Instant::now();
    while applied < ENTRIES {
        for _ in 0..window {
            token += 1;
            cores[0].step(now, Input::Propose { token, data: data.clone() });
        }
        applied += settle(&mut cores, &mut queue, now);
    }
    let each = begun.elapsed().as_nanos() as f64 / applied as f64;
    println!("window {window}, payload {payload} B: {each:.0} ns per entry");
    Ok(())
}
