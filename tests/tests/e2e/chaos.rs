//! `kill -9` at random moments of pushes and pulls. `SHOAL_SEED` replays a run's choices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::join3;
use rand_core::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use rustix::process::Signal;
use shoal_tests::registry::WrongBytes;
use shoal_tests::wait::TRANSFER;
use shoal_tests::{Image, ImageBuilder, Mesh, NodeSpec, Registry, system, wait_until};

/// As many as the requirement says.
const KILLS: u64 = 50;

/// The first moments of a push or pull of this size; past it, most of them are over.
const MOMENT_MAX: Duration = Duration::from_millis(400);

const VICTIMS: [&str; 4] = ["o0", "g0", "g1", "b0"];

/// What was acknowledged, and so must be readable for ever.
#[derive(Default)]
struct Acknowledged {
    blobs: Vec<String>,
    tags: Vec<(String, String)>,
}

/// Pushes part by part; what was acknowledged before an error counts.
async fn push(registry: &Registry, tag: &str, image: &Image) -> Acknowledged {
    let mut done = Acknowledged::default();
    for blob in image.blobs() {
        if registry.push_blob(blob).await.is_err() {
            return done;
        }
        done.blobs.push(blob.digest.clone());
    }
    if registry.push_manifest(tag, &image.manifest).await.is_ok() {
        done.tags.push((tag.to_owned(), image.manifest.digest.clone()));
    }
    done
}

/// Nothing at all is bearable while processes die, wrong bytes are not.
fn bearable(result: Result<u64>) -> Result<()> {
    match result {
        Err(error) if error.downcast_ref::<WrongBytes>().is_some() => Err(error),
        _ => Ok(()),
    }
}

async fn must_have(registry: &Registry, acknowledged: &Acknowledged) -> Result<()> {
    for blob in &acknowledged.blobs {
        registry.pull_blob(blob).await.with_context(|| format!("an acknowledged blob is lost: {blob}"))?;
    }
    for (tag, digest) in &acknowledged.tags {
        let answer = registry.manifest(tag).await?.expect(http::StatusCode::OK).await;
        let answer = answer.with_context(|| format!("an acknowledged tag is lost: {tag}"))?;
        ensure!(answer.header("docker-content-digest") == digest, "{tag} is another manifest");
        registry.pull(tag).await.with_context(|| format!("an acknowledged image is lost: {tag}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_lose_nothing_acknowledged() -> Result<()> {
    let seed = match std::env::var("SHOAL_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => std::time::UNIX_EPOCH.elapsed()?.as_secs(),
    };
    println!("SHOAL_SEED={seed}");
    let mut random = Pcg64Mcg::seed_from_u64(seed);
    let mut mesh = Mesh::with_gateways(2).start().await?;
    let mut all = Acknowledged::default();
    for round in 0..KILLS {
        let victim = VICTIMS[(random.next_u32() as usize) % VICTIMS.len()];
        let (to, from) = if random.next_u32().is_multiple_of(2) { ("g0", "g1") } else { ("g1", "g0") };
        let tag = format!("r{round}");
        let image = ImageBuilder::new(seed.wrapping_mul(1000) + round)
            .gzip(false)
            .payload(1 + (random.next_u32() as usize) % (4 << 20))
            .payload(1 + (random.next_u32() as usize) % (300 << 10))
            .build()?;
        let known =
            (!all.tags.is_empty()).then(|| all.tags[(random.next_u32() as usize) % all.tags.len()].0.clone());
        let moment = MOMENT_MAX * (random.next_u32() >> 16) / (1 << 16);

        let (pushing, pulling) = (mesh.registry(to, "chaos")?, mesh.registry(from, "chaos")?);
        let pid = mesh.node(victim)?.pid()?;
        let strike = async {
            // The moment itself is what is random here: nothing is waited for.
            tokio::time::sleep(moment).await;
            system::signal(pid, Signal::KILL)
        };
        let pull = async {
            match &known {
                Some(tag) => pulling.pull(tag).await,
                None => Ok(0),
            }
        };
        let (acknowledged, pulled, struck) = join3(push(&pushing, &tag, &image), pull, strike).await;
        struck.with_context(|| format!("round {round}: {victim} was gone before it was killed"))?;
        bearable(pulled).with_context(|| format!("round {round}"))?;
        mesh.reap(victim).await?;
        mesh.restart(victim).await.with_context(|| format!("round {round}: {victim} does not come back"))?;

        wait_until("what was acknowledged is readable again", TRANSFER, async || {
            must_have(&pulling, &acknowledged).await.map(Some)
        })
        .await
        .with_context(|| format!("round {round}: {victim} killed after {moment:?}, pushed to {to}"))?;
        all.blobs.extend(acknowledged.blobs);
        all.tags.extend(acknowledged.tags);
    }
    println!("{} blobs and {} tags were acknowledged", all.blobs.len(), all.tags.len());
    ensure!(all.blobs.len() as u64 > KILLS / 2, "hardly anything was ever acknowledged: nothing is shown");

    // The gateways go, with all that they cached: what is left is what the origin really has.
    mesh.kill("g0").await?;
    mesh.kill("g1").await?;
    mesh.add(NodeSpec::gateway("g2")).await?;
    must_have(&mesh.registry("g2", "chaos")?, &all).await?;
    mesh.finish().await
}
