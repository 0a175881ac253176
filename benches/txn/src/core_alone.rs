//! A saga's step, without a store: the state machine alone, and the whole runner with a store in
//! memory, beside steno with its own store in memory. CPU time, so that other load does not count.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use voussoir_txn::Sagas;
use voussoir_txn::store::MemoryStore;

use crate::bars::{Bars, Side};
use crate::config::Retry;
use crate::core::{Event, Graph, Input, Kind, Node, Output, Run};
use crate::report::{Figure, Report};
use crate::sagas::{STEPS, config, five, run};
use crate::{block_on, steno_rival};

const ROUNDS: usize = 7;

/// CPU time of all threads of this process, in ns.
fn cpu() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// CPU time for each step of so many sagas, in ns.
fn per_step(sagas: u64, work: impl FnOnce()) -> f64 {
    let start = cpu();
    work();
    (cpu() - start) / (sagas * STEPS) as f64
}

/// The same five steps as in [`five`].
fn graph() -> Arc<Graph> {
    let node = |id: u16| Node {
        name: format!("step {id}").into(),
        kind: if id < 4 { Kind::Compensatable { has_undo: true } } else { Kind::Pivot },
        after: (0..id).rev().take(1).collect(),
        retry: Retry::default(),
        undo_retry: Retry::default(),
        timeout: Duration::from_secs(30),
        has_probe: false,
    };
    Arc::new(Graph::new("five", 1, (0..5).map(node).collect()).expect("a graph in order"))
}

/// From the start of a saga to its end: each record is encoded and at once durable, each call
/// answers at once.
fn life(graph: &Arc<Graph>, now: u64) {
    let input = bytes::Bytes::from_static(b"7");
    let mut run = Run::start(Arc::clone(graph), input, None, now, now);
    let mut is_ended = false;
    // Ends: with the saga.
    while let Some(output) = run.poll_output() {
        match output {
            Output::Persist { id, events } => {
                black_box(Event::encode(&events));
                run.step(now, Input::Persisted(id));
            }
            Output::Call { step, attempt, .. } => {
                let result = Ok(bytes::Bytes::from_static(b"14"));
                run.step(now, Input::Acted { step, attempt, result });
            }
            Output::Cancel { .. } => {}
            Output::Ended(_) => is_ended = true,
        }
        black_box(run.next_deadline());
    }
    assert!(is_ended, "a saga whose calls answer ends");
}

pub fn core(report: &mut Report, bars: &mut Bars) {
    const LIVES: u64 = 200_000;
    const SAGAS: u64 = 4_000;
    let (graph, saga) = (graph(), five());
    let (mut alone, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(per_step(LIVES, || (0..LIVES).for_each(|now| life(&graph, now))));
        ours.push(per_step(SAGAS, || {
            block_on(async {
                let builder = Sagas::builder().config(config()).register(&saga);
                let sagas = builder.open(MemoryStore::new()).await.expect("it opens");
                for id in 0..SAGAS {
                    run(&sagas, &saga, &id.to_string()).await;
                }
            });
        }));
        theirs.push(per_step(SAGAS, || {
            block_on(async {
                let site = steno_rival::Site::new();
                for _ in 0..SAGAS {
                    site.run().await;
                }
            });
        }));
    }
    let steno = || Figure::from(theirs.clone());
    let name = "a step, the state machine alone, CPU";
    report.beside(name, Figure::from(alone.clone()), "steno 0.5 in memory", steno(), "ns");
    let name = "a step, runner and store in memory, CPU";
    report.beside(name, Figure::from(ours), "steno 0.5 in memory", steno(), "ns");
    let name = "saga core per step, CPU, to steno's in memory";
    bars.add_ratio(name, &alone, &theirs, Side::AtMost, 0.1);
    bars.add("saga core per step, CPU, in us", Figure::from(alone).value / 1e3, Side::AtMost, 1.0);
}
