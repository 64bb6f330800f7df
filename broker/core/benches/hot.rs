//! How long a shard takes for messages, path by path, and what of it are records and frames: without disk and network.
//!
//! `cargo bench -p ringmq-core --bench hot [-- FILTER]`. For comparing two builds on one machine; what CI holds against is
//! the count of instructions beside this file.
#![allow(clippy::unwrap_used, missing_docs)] // A failure here is the benchmark's.

mod paths;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use paths::PATHS;
use ringmq_schema::build::{MessageSpec, RecordBuilder};
use ringmq_schema::record;
use std::hint::black_box;

fn shard(criterion: &mut Criterion) {
    for path in PATHS {
        let mut group = criterion.benchmark_group("shard");
        group.throughput(Throughput::Elements(path.messages));
        let mut round = (path.begin)();
        group.bench_function(path.name, |bench| bench.iter(&mut round));
    }
}

fn records(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("records");
    for body_bytes in [64, 1024, 16 << 10] {
        let body = vec![7; body_bytes];
        let spec = MessageSpec { body: &body, ..MessageSpec::default() };
        let (mut builder, mut run) = (RecordBuilder::new(), Vec::new());
        group.throughput(Throughput::Bytes(body_bytes as u64));
        group.bench_function(format!("build, {body_bytes} bytes"), |bench| {
            bench.iter(|| {
                run.clear();
                builder.append(&mut run, 1, 0, &spec).unwrap();
            });
        });
        group.bench_function(format!("walk and check, {body_bytes} bytes"), |bench| {
            bench.iter(|| {
                for record in record::records(black_box(&run)) {
                    record.unwrap().check_payload().unwrap();
                }
            });
        });
    }
}

criterion_group!(hot, shard, records);
criterion_main!(hot);
