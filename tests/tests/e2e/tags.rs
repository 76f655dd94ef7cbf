//! Tags as registers: what clients see of them while origins die and are cut off, explained by one order of events.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::{join, try_join_all};
use http::{Method, StatusCode};
use rand_core::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use rustix::process::Signal;
use serde_json::json;
use shoal_tests::contract::metric;
use shoal_tests::http::call;
use shoal_tests::image::{Blob, OCI_MANIFEST};
use shoal_tests::linear::{Event, Op, check};
use shoal_tests::wait::PATIENCE;
use shoal_tests::{ImageBuilder, Mesh, NodeSpec, Registry, wait_until};

use crate::MIB;

const ORIGINS: usize = 3;
const GATEWAYS: usize = 3;
const TAGS: [&str; 3] = ["a", "b", "c"];
/// Clients of each gateway; the first of them writes.
const CLIENTS: usize = 3;
/// Heartbeats, so that an origin that is cut off is given up and comes back several times in a short run.
const HEARTBEAT: &str = "500ms";
/// Longest pause of an origin that is cut off, and longest time until one that was killed is started again: above and
/// below the three heartbeats after which it is taken for dead.
const OUTAGE_MAX: Duration = Duration::from_secs(4);
/// Longest time between two outages.
const CALM_MAX: Duration = Duration::from_secs(2);

type History = Vec<Event<Option<String>>>;

/// What all clients did and saw.
struct Witness {
    started: Instant,
    over: AtomicBool,
    written: AtomicU64,
    histories: Mutex<BTreeMap<&'static str, History>>,
}

impl Witness {
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn note(
        &self,
        client: &str,
        tag: &'static str,
        op: Op<Option<String>>,
        called: u64,
        returned: Option<u64>,
    ) {
        let event = Event { client: client.to_owned(), op, called, returned };
        self.histories.lock().unwrap().entry(tag).or_default().push(event);
    }

    async fn write(&self, client: &str, registry: &Registry, config: &Blob, tag: &'static str) {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.descriptor(), "layers": [],
            "annotations": {"write": number.to_string()},
        });
        let manifest = Blob::new(OCI_MANIFEST, manifest.to_string());
        let called = self.now();
        let pushed = registry.push_manifest(tag, &manifest).await;
        let returned = pushed.is_ok().then(|| self.now());
        self.note(client, tag, Op::Write(Some(manifest.digest)), called, returned);
    }

    /// What is marked as old is no claim, and an error none either.
    async fn read(&self, client: &str, registry: &Registry, tag: &'static str) {
        let called = self.now();
        let path = format!("/v2/{}/manifests/{tag}", registry.repository);
        let Ok(answer) = call(registry.addr, Method::HEAD, &path).await else { return };
        let seen = match answer.status {
            StatusCode::OK if answer.header(metric::STALE).is_empty() => {
                Some(answer.header("docker-content-digest").to_owned())
            }
            StatusCode::NOT_FOUND => None,
            _ => return,
        };
        self.note(client, tag, Op::Read(seen), called, Some(self.now()));
    }

    /// One client, until it is over.
    async fn use_tags(&self, client: String, registry: Registry, config: &Blob, writes: bool, seed: u64) {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        while !self.over.load(Ordering::Relaxed) {
            let tag = TAGS[random.next_u32() as usize % TAGS.len()];
            if writes && random.next_u32().is_multiple_of(2) {
                self.write(&client, &registry, config, tag).await;
            } else {
                self.read(&client, &registry, tag).await;
            }
            // Not a wait: clients that think for a while leave room for others' operations in between.
            tokio::time::sleep(Duration::from_millis(u64::from(random.next_u32() % 40))).await;
        }
    }
}

fn part(random: &mut Pcg64Mcg, whole: Duration) -> Duration {
    whole * (random.next_u32() >> 16) / (1 << 16)
}

/// Kills origins and cuts them off, one at a time, so that a majority lives; returns how many of each.
async fn torment(mesh: &mut Mesh, random: &mut Pcg64Mcg, lasting: Duration) -> Result<(u32, u32)> {
    let started = Instant::now();
    let (mut killed, mut cut_off) = (0, 0);
    while started.elapsed() < lasting {
        tokio::time::sleep(part(random, CALM_MAX)).await;
        let victim = format!("o{}", random.next_u32() as usize % ORIGINS);
        let outage = part(random, OUTAGE_MAX);
        if random.next_u32().is_multiple_of(2) {
            mesh.kill(&victim).await?;
            tokio::time::sleep(outage).await;
            mesh.restart(&victim).await?;
            killed += 1;
        } else {
            // Connections stay open and nothing comes: what a cut link looks like, and a machine that hangs.
            mesh.node(&victim)?.signal(Signal::STOP)?;
            tokio::time::sleep(outage).await;
            mesh.node(&victim)?.signal(Signal::CONT)?;
            cut_off += 1;
        }
        mesh.wait_joined().await?;
    }
    Ok((killed, cut_off))
}

async fn histories_are_linearizable(lasting: Duration) -> Result<()> {
    let seed = match std::env::var("SHOAL_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => std::time::UNIX_EPOCH.elapsed()?.as_secs(),
    };
    println!("SHOAL_SEED={seed}");
    let mut random = Pcg64Mcg::seed_from_u64(seed);
    let mut mesh = Mesh::empty().node(NodeSpec::bootstrap("b0"));
    for number in 0..ORIGINS {
        mesh = mesh.node(NodeSpec::origin(&format!("o{number}")));
    }
    for number in 0..GATEWAYS {
        mesh = mesh.node(NodeSpec::gateway(&format!("g{number}")));
    }
    let mut mesh = mesh.flag("--heartbeat-interval", HEARTBEAT).exclusive().start().await?;
    let config = Blob::new("application/vnd.oci.image.config.v1+json", "{}");
    let registries: Vec<_> = (0..GATEWAYS)
        .map(|number| mesh.registry(&format!("g{number}"), "tags/under/fire"))
        .collect::<Result<_>>()?;
    for registry in &registries {
        registry.push_blob(&config).await?;
    }
    let witness = Witness {
        started: Instant::now(),
        over: AtomicBool::new(false),
        written: AtomicU64::new(0),
        histories: Mutex::default(),
    };
    let clients = (0..GATEWAYS * CLIENTS).map(|number| {
        let (gateway, client) = (number % GATEWAYS, number / GATEWAYS);
        let name = format!("g{gateway}/{client}");
        witness.use_tags(name, registries[gateway].clone(), &config, client == 0, seed ^ (number as u64 + 1))
    });
    let tormented = async {
        let result = torment(&mut mesh, &mut random, lasting).await;
        witness.over.store(true, Ordering::Relaxed);
        result
    };
    let (tormented, _) = join(tormented, futures::future::join_all(clients)).await;
    let (killed, cut_off) = tormented.with_context(|| format!("SHOAL_SEED={seed}"))?;
    // What all of them say in the end is part of the history too: it shows whether an acknowledged push is lost.
    for registry in &registries {
        for tag in TAGS {
            wait_until("tags are read without a mark", PATIENCE, async || {
                let answer = registry.manifest(tag).await?;
                let known = answer.status == StatusCode::OK || answer.status == StatusCode::NOT_FOUND;
                Ok((known && answer.header(metric::STALE).is_empty()).then_some(()))
            })
            .await?;
            witness.read("last", registry, tag).await;
        }
    }
    let histories = witness.histories.into_inner().expect("no client panicked");
    let (mut acknowledged, mut unsure, mut reads) = (0, 0, 0);
    for (tag, history) in &histories {
        for event in history {
            match (&event.op, event.returned) {
                (Op::Write(_), Some(_)) => acknowledged += 1,
                (Op::Write(_), None) => unsure += 1,
                (Op::Read(_), _) => reads += 1,
            }
        }
        let tried =
            check(&None, history).map_err(|why| anyhow::anyhow!("SHOAL_SEED={seed}, tag {tag}: {why}"))?;
        println!("tag {tag}: {} operations, {tried} states tried", history.len());
    }
    println!(
        "{killed} kills, {cut_off} cuts; {acknowledged} writes were acknowledged, {unsure} not; {reads} reads"
    );
    ensure!(
        killed + cut_off > 3 && acknowledged > 20 && reads > 100,
        "too little happened: nothing is shown"
    );
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tag_histories_are_linearizable_while_origins_die_and_are_cut_off() -> Result<()> {
    histories_are_linearizable(Duration::from_secs(30)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes: `make test-large`"]
async fn large_tag_histories_of_ten_minutes() -> Result<()> {
    histories_are_linearizable(Duration::from_secs(600)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_origins_down_and_back_two_seconds_later_the_pull_waits() -> Result<()> {
    let origin = |number: usize| NodeSpec::origin(&format!("o{number}"));
    let mesh = (0..ORIGINS)
        .fold(Mesh::empty().node(NodeSpec::bootstrap("b0")), |mesh, number| mesh.node(origin(number)));
    let mesh = mesh.node(NodeSpec::gateway("g0")).node(NodeSpec::gateway("g1"));
    // Three processes start anew on a machine that may be busy.
    let mut mesh = mesh.flag("--search-patience", "60s").start().await?;
    let image = ImageBuilder::new(1101).gzip(false).payload(5 * MIB).payload(1000).build()?;
    mesh.registry("g0", "app")?.push_image("1", &image).await?;
    mesh.kill("g0").await?;
    for number in 0..ORIGINS {
        mesh.kill(&format!("o{number}")).await?;
    }
    let registry = mesh.registry("g1", "app")?;
    let started = Instant::now();
    let back = async {
        // The outage itself: not a wait for anything.
        tokio::time::sleep(Duration::from_secs(2)).await;
        for number in 0..ORIGINS {
            mesh.restart(&format!("o{number}")).await?;
        }
        anyhow::Ok(())
    };
    let (pulled, back) = join(registry.pull("1"), back).await;
    back?;
    pulled.context("a pull that began with all origins down")?;
    ensure!(started.elapsed() >= Duration::from_secs(2), "it did not wait: somebody else had it");
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn immutable_tags_stay() -> Result<()> {
    let mesh = Mesh::with_gateways(2).flag("--immutable-tag", "prod/.*:v[0-9]+").start().await?;
    let (first, other) =
        (ImageBuilder::new(1111).payload(10).build()?, ImageBuilder::new(1112).payload(10).build()?);
    let prod = mesh.registry("g0", "prod/app")?;
    prod.push_image("v1", &first).await?;
    // The same again is no move.
    mesh.registry("g1", "prod/app")?.push_image("v1", &first).await?;
    for gateway in ["g0", "g1"] {
        let registry = mesh.registry(gateway, "prod/app")?;
        let refused = registry.push_image("v1", &other).await;
        let why = format!("{:#}", refused.err().context("an immutable tag was moved")?);
        ensure!(why.contains("403") && why.contains("immutable"), "{why}");
        let deleted = call(registry.addr, Method::DELETE, "/v2/prod/app/manifests/v1").await?;
        ensure!(deleted.status == StatusCode::FORBIDDEN, "an immutable tag is deleted: {}", deleted.status);
        let answer = registry.manifest("v1").await?.expect(StatusCode::OK).await?;
        ensure!(answer.header("docker-content-digest") == first.manifest.digest, "it names another image");
    }
    // Others move.
    for (repository, tag) in [("prod/app", "latest"), ("dev/app", "v1")] {
        let registries = [mesh.registry("g0", repository)?, mesh.registry("g1", repository)?];
        try_join_all(registries.iter().map(|registry| registry.push_image(tag, &first))).await?;
        registries[0].push_image(tag, &other).await?;
        let answer = registries[1].manifest(tag).await?.expect(StatusCode::OK).await?;
        ensure!(answer.header("docker-content-digest") == other.manifest.digest, "{repository}:{tag} stays");
    }
    mesh.finish().await
}
