//! A process that writes to a store is killed at a moment it does not choose; nothing it was told is lost.
//!
//! The test binary runs itself: the child writes blobs and uploads as fast as it can and prints a line for each thing
//! the store acknowledged; the parent reads some lines, kills it, opens the store and holds it to its word.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use shoal_store::{Store, StoreConfig, UploadId};
use shoal_types::{Algorithm, Metainfo, WallTime};

const DIR: &str = "SHOAL_STORE_CRASH_DIR";
const ROUND: &str = "SHOAL_STORE_CRASH_ROUND";
const ROUNDS: u32 = 12;
const NOW: WallTime = WallTime::from_unix_millis(0);

fn config(dir: &Path) -> StoreConfig {
    StoreConfig { free_bytes_min: 0, capacity_bytes: Some(8 << 30), ..StoreConfig::new(dir) }
}

/// The blob a line speaks of.
fn blob(kind: &str, round: u32, number: u32) -> (Vec<u8>, Arc<Metainfo>) {
    let seed = u64::from(round) << 32 | u64::from(number) << 8 | u64::from(kind.as_bytes()[0]);
    let len = 1 + (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44) as usize;
    let data: Vec<u8> =
        (0..len as u64).map(|at| (at.wrapping_mul(seed | 1).wrapping_add(at >> 8) >> 3) as u8).collect();
    let metainfo = Arc::new(Metainfo::of_bytes(Algorithm::Sha256, &data).unwrap());
    (data, metainfo)
}

fn upload_id(round: u32, number: u32) -> UploadId {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&round.to_le_bytes());
    bytes[4..8].copy_from_slice(&number.to_le_bytes());
    UploadId::from_bytes(bytes)
}

fn say(line: &str) {
    // Through the handle: the harness's capture would hold back `println!`.
    let mut out = std::io::stdout().lock();
    writeln!(out, "ack {line}.").and_then(|()| out.flush()).unwrap();
}

/// Not a test by itself: the child of the test below.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let round: u32 = std::env::var(ROUND).unwrap().parse().unwrap();
    let (store, _) = Store::open(config(Path::new(&dir)), NOW).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                let (data, metainfo) = blob("piece", round, number);
                let (digest, layout) = (metainfo.digest(), metainfo.layout());
                store.create(metainfo, None).unwrap();
                for piece in layout.pieces().rev() {
                    let range = layout.range_of(piece);
                    let bytes = &data[range.start as usize..range.end as usize];
                    store.write_piece(&digest, piece, bytes).unwrap();
                    say(&format!("piece {number} {}", piece.get()));
                }
                store.check_digest(&digest).unwrap();
                store.commit(&digest).unwrap();
                say(&format!("commit {number} 0"));
            }
        });
        scope.spawn(|| {
            for number in 0.. {
                let (data, metainfo) = blob("upload", round, number);
                let id = upload_id(round, number);
                store.upload_begin(id).unwrap();
                let mut at = 0;
                for part in data.chunks(100_000) {
                    at = store.upload_append(id, at, part).unwrap();
                    say(&format!("append {number} {at}"));
                }
                store.upload_finish(id, &metainfo.digest()).unwrap();
                say(&format!("finish {number} 0"));
            }
        });
    });
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a line acknowledges: of the harness's lines, and of one that was cut off, nothing.
fn acknowledgement(line: &str) -> Option<String> {
    let (_, ack) = line.split_once("ack ")?;
    Some(ack.strip_suffix('.')?.to_owned())
}

/// Runs a child until it said `lines` lines, kills it, and returns all it said.
fn run_and_kill(dir: &Path, round: u32, lines: usize) -> Vec<String> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let mut output = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    while said.len() < lines {
        let Some(line) = output.next() else { break };
        said.extend(acknowledgement(&line.unwrap()));
    }
    // SIGKILL; what it said before and nobody has read yet counts too.
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let rest: Vec<String> = output.map(|line| line.unwrap()).collect();
    said.extend(rest.iter().filter_map(|line| acknowledgement(line)));
    said
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    if std::env::var_os(DIR).is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        // Odd numbers of lines, so that the cut falls at all sorts of operations.
        let lines = 1 + (round as usize * 37) % 90;
        let said = run_and_kill(dir.path(), round, lines);
        assert!(said.len() >= lines, "the child ended by itself");
        acknowledged += said.len();
        let (store, _) = Store::open(config(dir.path()), NOW).unwrap();
        for line in &said {
            let mut words = line.split(' ');
            let (what, number, at) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            hold_to(&store, round, what, number.parse().unwrap(), at.parse().unwrap());
        }
        no_wrong_byte(&store, round, said.len() as u32);
    }
    assert!(acknowledged > 300);
}

fn hold_to(store: &Store, round: u32, what: &str, number: u32, at: u64) {
    let kind = if matches!(what, "piece" | "commit") { "piece" } else { "upload" };
    let (data, metainfo) = blob(kind, round, number);
    let digest = metainfo.digest();
    let entry = store.lookup(&digest).unwrap();
    match what {
        "piece" => {
            let piece = metainfo.layout().piece(at as u32).unwrap();
            let range = metainfo.layout().range_of(piece);
            let bytes = store.read_piece(&digest, piece).unwrap();
            assert!(bytes == data[range.start as usize..range.end as usize], "piece {at} of blob {number}");
        }
        "commit" | "finish" => {
            assert!(entry.is_some_and(|entry| entry.complete), "{what} {number}");
            let mut bytes = Vec::new();
            store.read(&digest, 0..data.len() as u64, &mut bytes).unwrap();
            assert!(bytes == data, "{what} {number}");
        }
        "append" => {
            let end = store.upload_offset(upload_id(round, number));
            // Either it goes on, from there or later, or it was finished.
            assert!(end.is_some_and(|end| end >= at) || entry.is_some_and(|entry| entry.complete));
        }
        other => panic!("{other}"),
    }
}

/// Whatever the store offers of the blobs that may have been begun, acknowledged or not, is right.
fn no_wrong_byte(store: &Store, round: u32, numbers: u32) {
    let here: Vec<_> = store.blobs().into_iter().map(|blob| blob.digest).collect();
    for kind in ["piece", "upload"] {
        for number in 0..=numbers {
            let (data, metainfo) = blob(kind, round, number);
            if !here.contains(&metainfo.digest()) {
                break;
            }
            let Some(entry) = store.lookup(&metainfo.digest()).unwrap() else { continue };
            for piece in entry.pieces.iter(&metainfo.layout()) {
                let range = metainfo.layout().range_of(piece);
                let bytes = store.read_piece(&metainfo.digest(), piece).unwrap();
                assert!(bytes == data[range.start as usize..range.end as usize]);
            }
        }
    }
}
