//! Members that lie: a member that is no origin says what only origins may say, and an origin that has been revoked is
//! quoted. The liar runs in the test, on both planes of this project's own network, told to lie.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shoal_daemon::keys;
use shoal_engine::message::Message;
use shoal_net::control::{Control, ControlConfig, ControlHandle, MemoryPersistence};
use shoal_net::data::{DataConfig, DataEvent, DataHandle, DataPlane};
use shoal_net::identity::Identity;
use shoal_net::tls::{TlsSetup, system_clock};
use shoal_tests::process::run_program;
use shoal_tests::wait::PATIENCE;
use shoal_tests::{ImageBuilder, Mesh, NodeSpec, wait_until};
use shoal_types::{
    Credential, Digest, Endpoint, GossipMessage, Heartbeat, Keypair, PeerId, Record, RecordKey, RecordKind,
    RecordValue, RecordVersion, Role, Roles, Signed, SignedCredential, VouchedMetainfo,
};
use tokio::sync::mpsc;

use crate::{MIB, pushed_blob};

/// A member that is a node and nothing more, with both planes.
struct Liar {
    keypair: Keypair,
    credential: SignedCredential,
    control: ControlHandle,
    data: DataHandle,
    events: mpsc::Receiver<DataEvent>,
}

impl Liar {
    async fn join(mesh: &Mesh, seed: u8) -> Result<Self> {
        let root = keys::read_mesh_key(&mesh.mesh_key()?)?;
        let keypair = Keypair::from_secret(&[seed; 32]);
        let now = system_clock()();
        let credential = root.issue(Credential {
            peer: keypair.peer_id(),
            roles: Roles::NONE.with(Role::Node),
            zone: shoal_tests::mesh::ZONE.parse()?,
            namespaces: vec![],
            not_before: shoal_types::WallTime::default(),
            not_after: now.saturating_add(Duration::from_secs(3600)),
            issuer: None,
        });
        let identity =
            Identity { keypair: keypair.clone(), credential: credential.clone(), mesh: root.public() };
        let setup = TlsSetup::new(identity, system_clock(), TlsSetup::admit_members())?;
        let settings = DataConfig { listen: "127.0.0.1:0".parse()?, ..DataConfig::default() };
        let (data, events) = DataPlane::bind(settings, setup.clone()).await?;
        let addr = data.local_addr();
        let settings = ControlConfig {
            listen: vec!["/ip4/127.0.0.1/tcp/0".parse()?],
            data_endpoints: vec![Endpoint::from_ip(addr.ip(), addr.port())],
            bootstrap: mesh.bootstrap_peers().iter().map(|door| door.parse()).collect::<Result<_, _>>()?,
            ..ControlConfig::default()
        };
        let (control, mut news) = Control::start(settings, setup, MemoryPersistence::shared()).await?;
        tokio::spawn(async move { while news.recv().await.is_some() {} });
        let watch = control.clone();
        wait_until("the liar is among the members", PATIENCE, async || {
            let status = watch.status().await.context("the control plane stopped")?;
            Ok((status.origins.len() == 1 && status.peers.len() >= 2).then_some(()))
        })
        .await?;
        Ok(Self { keypair, credential, control, data, events })
    }

    /// Answers everybody who joins the swarm of a blob with `metainfo`, until `told` says that it is enough.
    async fn tell(
        &mut self,
        metainfo: &VouchedMetainfo,
        mut told: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<()> {
        const OURS: u32 = 1;
        let pieces = metainfo.value().layout().piece_count();
        let mut every = vec![0xff; pieces.div_ceil(8) as usize];
        if let Some(last) = every.last_mut().filter(|_| !pieces.is_multiple_of(8)) {
            *last = 0xff << (8 - pieces % 8);
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let event = tokio::time::timeout(Duration::from_millis(200), self.events.recv()).await;
            if let Ok(Some(DataEvent::Message { peer, message: Message::Join { channel, digest, .. } })) =
                event
            {
                if digest != metainfo.value().digest() {
                    let why = shoal_engine::message::Absence::NotHere;
                    let _ = self.data.send(peer, Message::Absent { to: channel, why, peers: vec![] });
                    continue;
                }
                let say = |message| {
                    // When the peer has hung up, `told` finds out why.
                    let _ = self.data.send(peer, message);
                };
                say(Message::Join {
                    channel: OURS,
                    digest,
                    wants_metainfo: false,
                    probe: false,
                    trace: None,
                });
                say(Message::Metainfo { to: channel, metainfo: Box::new(metainfo.clone()) });
                say(Message::Bitfield { to: channel, pieces: every.clone().into() });
            }
            if told().await? {
                return Ok(());
            }
            ensure!(tokio::time::Instant::now() < deadline, "nobody asked the liar, or nobody minded");
        }
    }

    async fn leave(self) {
        self.control.shutdown().await;
        self.data.shutdown().await;
    }
}

async fn figure(mesh: &Mesh, name: &str, part: &str, figure: &str) -> Result<f64> {
    mesh.node(name)?.counted(&format!("shoal_{part}_{figure}_total")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_and_tags_of_a_member_that_is_no_origin_are_not_believed() -> Result<()> {
    let mesh = Mesh::with_gateways(1).start().await?;
    let image = ImageBuilder::new(1401).payload(1000).build()?;
    mesh.registry("g0", "app")?.push_image("1", &image).await?;
    mesh.registry("g0", "app")?.pull("1").await?;
    let liar = Liar::join(&mesh, 41).await?;
    let stolen = liar.control.origins().first().context("no origin")?.credential.clone();
    let now = system_clock()();
    // No two the same: what gossip knows already it does not pass on.
    let later = |n: u64| now.saturating_add(Duration::from_millis(n));
    let beat = |n, credential: &SignedCredential, leaving| {
        let (credential, endpoints) = (credential.clone(), vec![]);
        let beat = Heartbeat { credential, endpoints, sent: later(n), leaving };
        GossipMessage::Heartbeat(Signed::sign(beat, &liar.keypair))
    };
    let value = RecordValue {
        digest: Digest::sha256(b"forged"),
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        size: 1,
        subject: None,
        artifact_type: None,
        annotations: Default::default(),
    };
    let tag = |n, value| {
        let key = RecordKey { repository: "app".parse()?, kind: RecordKind::Tag("1".parse()?) };
        let version = RecordVersion { counter: u64::MAX, written: later(n), author: liar.keypair.peer_id() };
        anyhow::Ok(GossipMessage::RecordChanged(Signed::sign(Record { key, version, value }, &liar.keypair)))
    };
    type Lie<'a> = Box<dyn Fn(u64) -> Result<GossipMessage> + 'a>;
    let lies: [(&str, &str, Lie<'_>); 5] = [
        ("its own heartbeat", "gossip_rejected", Box::new(|n| Ok(beat(n, &liar.credential, false)))),
        ("the origin's end", "gossip_rejected", Box::new(|n| Ok(beat(n, &stolen, true)))),
        ("a tag", "gossip_ignored", Box::new(|n| tag(n, Some(value.clone())))),
        ("a deletion", "gossip_ignored", Box::new(|n| tag(n, None))),
        (
            "a blob",
            "gossip_ignored",
            Box::new(|size| Ok(GossipMessage::BlobAdded { digest: Digest::sha256(b"forged"), size })),
        ),
    ];
    let tries = AtomicU64::new(0);
    for (what, counted, lie) in lies {
        let before = figure(&mesh, "g0", "control", counted).await?;
        wait_until(&format!("{what} has been heard and is {counted}"), PATIENCE, async || {
            let lie = lie(tries.fetch_add(1, Ordering::Relaxed))?;
            let _ = liar.control.publish_unchecked(lie).await;
            Ok((figure(&mesh, "g0", "control", counted).await? > before).then_some(()))
        })
        .await?;
        for name in ["g0", "o0"] {
            let origins = mesh.node(name)?.count(shoal_tests::contract::metric::ORIGINS).await?;
            ensure!(origins == 1.0, "{name} believes {what}: {origins} origins");
        }
    }
    // The tag is where it was, for who asks anew.
    ensure!(mesh.registry("g0", "app")?.pull("1").await? > 0);
    let manifest = mesh.registry("g0", "app")?.manifest("1").await?;
    ensure!(manifest.header("docker-content-digest") == image.manifest.digest, "the tag moved");
    liar.leave().await;
    mesh.finish().await
}

/// The metainfo that the origin gives to everybody who asks.
async fn vouched_by_origin(
    liar: &mut Liar,
    digest: Digest,
    origin: PeerId,
    at: Endpoint,
) -> Result<VouchedMetainfo> {
    liar.data.connect(origin, vec![at]);
    let mut joined = false;
    loop {
        let event = tokio::time::timeout(PATIENCE, liar.events.recv()).await?.context("no events")?;
        match event {
            DataEvent::Connected { peer, .. } if peer == origin => {
                let join =
                    Message::Join { channel: 9, digest, wants_metainfo: true, probe: true, trace: None };
                joined = liar.data.send(origin, join).is_ok();
            }
            DataEvent::Message { message: Message::Metainfo { to: 9, metainfo }, .. } => {
                return Ok(*metainfo);
            }
            DataEvent::ConnectFailed { why, .. } => anyhow::bail!("the origin is not reached: {why}"),
            DataEvent::Disconnected { reason, .. } if joined => anyhow::bail!("the origin hung up: {reason}"),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metainfo_of_a_revoked_origin_is_not_taken_any_more() -> Result<()> {
    let mut mesh = Mesh::with_gateways(1).start().await?;
    let blob = pushed_blob(&mesh, "g0", 1404, 2 * MIB).await?;
    let mut liar = Liar::join(&mesh, 43).await?;
    let origin = mesh.node("o0")?;
    let (peer, data) = (origin.peer().to_owned(), origin.ready().data);
    let at = Endpoint::from_ip(data.ip(), data.port());
    let digest: Digest = blob.digest.parse()?;
    let quoted = vouched_by_origin(&mut liar, digest, peer.parse()?, at).await?;

    // Another gateway takes it as long as the origin is good, even when the origin is gone.
    mesh.add(NodeSpec::gateway("g1")).await?;
    mesh.kill("o0").await?;
    mesh.registry("g1", "e2e/blob")?.pull_blob(&blob.digest).await?;

    mesh.add(NodeSpec::gateway("g2")).await?;
    let key = mesh.mesh_key()?.to_string_lossy().into_owned();
    let list = mesh.scratch("keys")?.join("revocations.cbor").to_string_lossy().into_owned();
    let ops = mesh.node("g0")?.ops()?.to_string();
    let revoke = ["credential", "revoke", "--mesh-key", &key, "--list", &list, "--ops", &ops, &peer];
    run_program(&revoke.map(str::to_owned)).await?;
    for name in ["g0", "g1", "g2"] {
        wait_until(&format!("{name} knows of the revocation"), PATIENCE, async || {
            let list = mesh.node(name)?.api("/api/v1/revocations").await?;
            Ok((list["version"] == 1).then_some(()))
        })
        .await?;
    }
    // Two gateways have the whole blob, and a member quotes the origin: nobody's word is good.
    liar.control.provide(digest).await;
    let registry = mesh.registry("g2", "e2e/blob")?;
    let name = blob.digest.clone();
    let pull = tokio::spawn(async move { registry.blob(&name).await });
    let refused = async || Ok(mesh.node("g2")?.metrics().await?.sum("shoal_metainfo_revoked_total") > 0.0);
    liar.tell(&quoted, refused).await?;
    let answer = pull.await??;
    ensure!(!answer.status.is_success(), "{}: a revoked origin's word counts", answer.status);
    liar.leave().await;

    // An origin that is good vouches anew, for whoever brings the blob; then all three share it.
    mesh.add(NodeSpec::origin("o1")).await?;
    mesh.wait_joined().await?;
    mesh.registry("g1", "e2e/blob")?.push_blob(&blob).await?;
    mesh.registry("g2", "e2e/blob")?.pull_blob(&blob.digest).await?;
    mesh.finish().await
}
