//! What somebody sees who listens on the wire between two zones.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use shoal_tests::capture::Capture;
use shoal_tests::image::Blob;
use shoal_tests::{ImageBuilder, Mesh, NodeSpec};

use crate::MIB;

const MARKER: &[u8] = b"MARKER: the quick brown fox jumps over the lazy dog. ";
const REPOSITORY: &str = "secret-project/payroll";
const ZONES: [&str; 2] = ["zone-of-the-east", "zone-of-the-west"];

fn contains(heard: &[u8], needle: &[u8]) -> bool {
    let first = needle.first().copied();
    heard
        .iter()
        .enumerate()
        .filter(|(_, byte)| Some(**byte) == first)
        .any(|(at, _)| heard.get(at..at + needle.len()) == Some(needle))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_between_two_zones_shows_no_plaintext() -> Result<()> {
    let [east, west] = ZONES;
    let mesh = Mesh::empty()
        .node(NodeSpec::bootstrap("b0").zone(east))
        .node(NodeSpec::origin("o0").zone(east))
        .node(NodeSpec::gateway("g0").zone(east))
        .node(NodeSpec::gateway("g1").zone(west))
        .start()
        .await?;
    let (mut secret, mut clear) = (Vec::new(), Vec::new());
    for name in ["b0", "o0", "g0", "g1"] {
        for (plane, addr) in mesh.node(name)?.ready().ports()? {
            match plane {
                "control" | "data" => secret.push((name, plane, addr.port())),
                "gateway" => clear.push(addr.port()),
                _ => {}
            }
        }
    }
    let ports: Vec<u16> = secret.iter().map(|(_, _, port)| *port).chain(clear.iter().copied()).collect();
    let capture = Capture::start(&ports)?;

    let text: Bytes = MARKER.iter().copied().cycle().take(4 * MIB).collect::<Vec<u8>>().into();
    let plain = Blob::new("application/octet-stream", text);
    mesh.registry("g0", REPOSITORY)?.push_blob(&plain).await?;
    let image = ImageBuilder::new(1301).payload(MIB).build()?;
    mesh.registry("g0", REPOSITORY)?.push_image("tag-nobody-may-know", &image).await?;
    mesh.registry("g1", REPOSITORY)?.pull_blob(&plain.digest).await?;
    mesh.registry("g1", REPOSITORY)?.pull("tag-nobody-may-know").await?;
    let seen = capture.finish()?;

    let compressed = &image.layers.first().context("no layer")?.blob.bytes;
    let manifest = &image.manifest.bytes;
    let needles: [(&str, &[u8]); 6] = [
        ("the blob", MARKER),
        ("a compressed layer", compressed.get(200..264).context("a short layer")?),
        ("the manifest", manifest.get(..64).context("a short manifest")?),
        ("the repository's name", REPOSITORY.as_bytes()),
        ("the tag", b"tag-nobody-may-know"),
        ("a zone's name", west.as_bytes()),
    ];
    let mut payload = 0;
    for (name, plane, port) in &secret {
        let heard = seen.get(port).map(Vec::as_slice).unwrap_or_default();
        payload += if *plane == "data" { heard.len() } else { 0 };
        for (what, needle) in needles {
            ensure!(!contains(heard, needle), "{what} is in the clear on {name}'s {plane} port");
        }
    }
    ensure!(payload > 8 * MIB, "{payload} bytes were captured: not the transfer");
    // The capture works: the clients' side, plain HTTP on loopback, shows all but the zone.
    let clear: Vec<u8> = clear.iter().filter_map(|port| seen.get(port)).flatten().copied().collect();
    for (what, needle) in &needles[..5] {
        ensure!(contains(&clear, needle), "the capture misses {what}");
    }
    mesh.finish().await
}
