//! Fuzz targets: every decoder that reads what somebody else wrote, or what a disk gives back.
//!
//! A target is a function that must not panic, and checks what must hold of whatever decodes: most of all that it is
//! encoded again as it came. `make fuzz` runs them under libFuzzer; `cargo test` replays the corpora, and each seed in a
//! few thousand variations.

mod documents;
mod files;
mod network;
mod text;

/// One target.
#[derive(Debug)]
pub struct Target {
    /// What it is called, and where its corpus is: `corpus/NAME`.
    pub name: &'static str,
    /// Feeds it.
    pub run: fn(&[u8]),
    /// Inputs that get far.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "frames", run: network::frames, seeds: network::frame_seeds },
    Target { name: "rpc", run: network::rpc, seeds: network::rpc_seeds },
    Target { name: "gossip", run: network::gossip, seeds: network::gossip_seeds },
    Target { name: "certificate", run: network::certificate, seeds: network::certificate_seeds },
    Target { name: "engine", run: network::engine, seeds: network::engine_seeds },
    Target { name: "metainfo", run: documents::metainfo, seeds: documents::metainfo_seeds },
    Target { name: "credential", run: documents::credential, seeds: documents::credential_seeds },
    Target { name: "record", run: documents::record, seeds: documents::record_seeds },
    Target { name: "references", run: text::references, seeds: text::reference_seeds },
    Target { name: "ranges", run: text::ranges, seeds: text::range_seeds },
    Target { name: "requests", run: text::requests, seeds: text::request_seeds },
    Target { name: "sequences", run: shoal_gateway::fuzzing::play, seeds: sequence_seeds },
    Target { name: "manifest", run: text::manifest, seeds: text::manifest_seeds },
    Target { name: "config", run: files::config, seeds: files::config_seeds },
    Target { name: "access", run: files::access, seeds: files::access_seeds },
    Target { name: "disk", run: files::disk, seeds: files::disk_seeds },
];

/// Sequences of requests that get somewhere: push, tag, read, list, delete, mount.
fn sequence_seeds() -> Vec<Vec<u8>> {
    let at = |repository: u8, item: u8, upload: u8| repository | item << 1 | upload << 3;
    let push = |repository| (0..4).flat_map(move |item| [1, at(repository, item, 0), 0]);
    let image = |item, how| [7, at(0, item, 0), how];
    let all: Vec<u8> = push(0)
        .chain((0..4).flat_map(|item| image(item, item << 2 | 2)))
        .chain([9, 0, 0, 9, 0, 1, 9, at(0, 1, 0), 2, 11, 0, 0, 0, at(0, 3, 0), 0b0100_1010])
        .collect();
    let undone: Vec<u8> = all
        .iter()
        .copied()
        .chain([10, 0, 0, 10, at(0, 1, 0), 1, 10, at(0, 2, 0), 2, 11, 0, 0, 9, 0, 0])
        .collect();
    let uploads = [
        &[2, 0, 0, 2, 1, 0][..],
        &[3, at(0, 1, 0), 0, 3, at(0, 2, 0), 1, 3, at(0, 2, 1), 2, 3, at(0, 2, 0), 3],
        &[6, 0, 0, 4, at(0, 3, 0), 1, 4, at(0, 0, 0), 2, 5, 0, 0, 0, at(0, 1, 0), 0],
    ];
    let mounts =
        push(0).chain([12, at(1, 1, 0), 0, 12, at(1, 2, 0), 1, 12, at(0, 0, 0), 2, 0, at(1, 1, 0), 0]);
    let nonsense = (0..12).flat_map(|n| [13, n * 17, n]);
    vec![all, undone, uploads.concat(), mounts.collect(), nonsense.collect()]
}

/// `data` as text, when it is.
fn text_of(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// The first byte, which chooses among kinds, and the rest.
fn choose(data: &[u8]) -> Option<(u8, &[u8])> {
    data.split_first().map(|(choice, rest)| (*choice, rest))
}

/// A seed of [`choose`].
fn chosen(choice: u8, rest: impl AsRef<[u8]>) -> Vec<u8> {
    [&[choice], rest.as_ref()].concat()
}
