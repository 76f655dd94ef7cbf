//! Verifying pieces, and encoding what describes them.

#![expect(clippy::expect_used, reason = "a benchmark")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shoal_types::{Bitfield, Digest, Keypair, Metainfo, PieceHash, PieceLayout, SignedMetainfo};

const MIB: u64 = 1 << 20;

fn metainfo(size: u64) -> Metainfo {
    let layout = PieceLayout::for_size(size).expect("within the limit");
    let zeros = vec![0; layout.piece_bytes() as usize];
    let hash = PieceHash::of(&zeros);
    Metainfo::new(Digest::sha256(b"bench"), layout, vec![hash; layout.piece_count() as usize])
        .expect("a hash a piece")
}

fn verification(c: &mut Criterion) {
    let mut group = c.benchmark_group("verify a piece");
    for size in [100 * MIB, 16 * 1024 * MIB] {
        let metainfo = metainfo(size);
        let piece_bytes = metainfo.layout().piece_bytes();
        let zeros = vec![0; piece_bytes as usize];
        let piece = metainfo.layout().piece(0).expect("there are pieces");
        group.throughput(Throughput::Bytes(piece_bytes.into()));
        group.bench_function(format!("{} KiB", piece_bytes / 1024), |bench| {
            bench.iter(|| assert!(metainfo.verifies(piece, std::hint::black_box(&zeros))));
        });
    }
    group.finish();
}

fn codec(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec, 1,024 pieces");
    let signed = SignedMetainfo::sign(metainfo(1024 * MIB), &Keypair::from_secret(&[7; 32]));
    let bytes = signed.to_bytes();
    group.bench_function("metainfo out", |bench| bench.iter(|| std::hint::black_box(&signed).to_bytes()));
    group.bench_function("metainfo in, signature checked", |bench| {
        bench.iter(|| SignedMetainfo::from_bytes(std::hint::black_box(&bytes)).expect("our own"));
    });
    let full = Bitfield::full(1024);
    group.bench_function("bitfield out and in", |bench| {
        bench.iter(|| Bitfield::from_bytes(1024, &std::hint::black_box(&full).to_bytes()).expect("our own"));
    });
    group.finish();
}

criterion_group!(benches, verification, codec);
criterion_main!(benches);
