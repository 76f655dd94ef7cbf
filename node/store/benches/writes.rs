//! Pieces into the store, and out of it. In a directory of `TMPDIR`: set it to a memory disk to leave the disk out.

#![expect(clippy::expect_used, reason = "a benchmark")]

use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shoal_store::{Store, StoreConfig};
use shoal_types::{MetainfoBuilder, PieceLayout, WallTime};

const BLOB_BYTES: u64 = 64 << 20;

fn writes(c: &mut Criterion) {
    let layout = PieceLayout::for_size(BLOB_BYTES).expect("within the limit");
    let bytes = vec![7; layout.piece_bytes() as usize];
    let mut builder = MetainfoBuilder::new(shoal_types::Algorithm::Sha256, layout);
    for _ in layout.pieces() {
        builder.update(&bytes);
    }
    let metainfo = Arc::new(builder.finish().expect("all of it"));
    let digest = metainfo.digest();
    let dir = tempfile::tempdir().expect("a directory");
    let config = StoreConfig::new(dir.path().join("store"));
    let (store, _) = Store::open(config, WallTime::from_unix_millis(0)).expect("a new store");
    let mut group = c.benchmark_group("store");
    group.sample_size(10).throughput(Throughput::Bytes(BLOB_BYTES));
    group.bench_function("256 pieces written in order, digest along", |bench| {
        bench.iter_batched(
            || {
                store.remove(&digest).expect("the database works");
                store.create(metainfo.clone(), None).expect("there is room");
            },
            |()| {
                for piece in layout.pieces() {
                    store.write_piece(&digest, piece, &bytes).expect("there is room");
                }
                store.check_digest(&digest).expect("it is right");
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("256 pieces read", |bench| {
        bench.iter(|| {
            for piece in layout.pieces() {
                std::hint::black_box(store.read_piece(&digest, piece).expect("it is here"));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, writes);
criterion_main!(benches);
