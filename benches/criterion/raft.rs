//! Three nodes in one process, in memory: what one committed command costs.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Builder;
use voussoir_benches::raft_group::Group;

fn propose(c: &mut Criterion) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let group = std::sync::Arc::new(runtime.block_on(Group::start(true)));
    let mut bench = c.benchmark_group("raft/propose, in memory");
    for at_once in [1, 64, 1024] {
        bench.throughput(Throughput::Elements(at_once));
        bench.bench_function(BenchmarkId::from_parameter(at_once), |b| {
            b.to_async(&runtime).iter(|| async {
                let mut proposals = tokio::task::JoinSet::new();
                for _ in 0..at_once {
                    let group = group.clone();
                    proposals.spawn(async move { group.propose((&[7; 16][..]).into()).await });
                }
                proposals.join_all().await
            });
        });
    }
    bench.finish();
}

criterion_group!(benches, propose);
criterion_main!(benches);
