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
    Target { name: "manifest", run: text::manifest, seeds: text::manifest_seeds },
    Target { name: "config", run: files::config, seeds: files::config_seeds },
    Target { name: "access", run: files::access, seeds: files::access_seeds },
    Target { name: "disk", run: files::disk, seeds: files::disk_seeds },
];

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
