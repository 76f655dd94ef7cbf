//! Who may not come in, against real processes: each kind of stranger at each port of both planes, and members at what
//! their role does not allow. The hostile side runs in the test; it uses this project's own TLS, told to lie.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::StatusCode;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use shoal_daemon::keys;
use shoal_daemon::rpc::{self, Answer, Failure, Request};
use shoal_net::data::{DataConfig, DataEvent, DataPlane};
use shoal_net::identity::Identity;
use shoal_net::tls::{self, Plane, TlsSetup, system_clock};
use shoal_tests::contract::metric;
use shoal_tests::image::{Blob, noise};
use shoal_tests::wait::PATIENCE;
use shoal_tests::{Mesh, NodeSpec, wait_until};
use shoal_types::{
    Credential, Digest, Endpoint, Keypair, MeshKey, PeerId, Record, RecordKey, RecordKind, RecordValue,
    RecordVersion, Role, Roles, Signed, WallTime,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{MIB, pushed_blob};

/// What the control plane says before TLS (multistream-select 1.0: each line behind its length).
const MULTISTREAM: &[u8] = b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n";

fn credential_of(mesh: &MeshKey, peer: PeerId, role: Role, until: WallTime) -> shoal_types::SignedCredential {
    mesh.issue(Credential {
        peer,
        roles: Roles::NONE.with(Role::Node).with(role),
        zone: shoal_tests::mesh::ZONE.parse().unwrap(),
        namespaces: vec![],
        not_before: WallTime::default(),
        not_after: until,
        issuer: None,
    })
}

fn hour() -> WallTime {
    system_clock()().saturating_add(Duration::from_secs(3600))
}

/// The strangers that have a certificate in the form of ours, and the reason for which each is to be refused.
fn strangers(mesh: &MeshKey, stolen: &shoal_types::SignedCredential) -> Vec<(&'static str, Identity)> {
    let keypair = |n: u8| Keypair::from_secret(&[n; 32]);
    let identity = |keypair: Keypair, credential| Identity { keypair, credential, mesh: mesh.public() };
    let other = MeshKey::from_secret(&[9; 32]);
    let one = keypair(21);
    let of_other = credential_of(&other, one.peer_id(), Role::Origin, hour());
    let two = keypair(22);
    let expired = credential_of(mesh, two.peer_id(), Role::Origin, WallTime::from_unix_millis(1000));
    vec![
        ("other_mesh", identity(one, of_other)),
        ("expired", identity(two, expired)),
        ("other_holder", identity(keypair(23), stolen.clone())),
    ]
}

/// Believes every server: a stranger does not care.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// TLS as a process has it that knows the protocol and has no credential: with any certificate, or with none.
fn without_credential(plane: Plane, certificate: bool) -> Result<Arc<rustls::ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = if certificate {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let own = rcgen::CertificateParams::new(vec![])?.self_signed(&key)?;
        let secret = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        builder.with_client_auth_cert(vec![own.der().clone()], secret.into())?
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = vec![plane.alpn().to_vec()];
    Ok(Arc::new(config))
}

/// Connects, speaks the plane's first words inside TLS, and reads on: everything the other side says after its handshake.
async fn knock(addr: SocketAddr, plane: Plane, config: Arc<rustls::ClientConfig>) -> Result<Vec<u8>> {
    let mut tcp = TcpStream::connect(addr).await?;
    if plane == Plane::Control {
        tcp.write_all(MULTISTREAM).await?;
        let mut echo = vec![0; MULTISTREAM.len()];
        tokio::time::timeout(PATIENCE, tcp.read_exact(&mut echo)).await.context("no multistream")??;
        ensure!(echo == MULTISTREAM, "{echo:?}");
    }
    let handshake = TlsConnector::from(config).connect(tls::server_name(), tcp);
    let shaken = tokio::time::timeout(PATIENCE, handshake).await.context("the handshake hangs")?;
    let Ok(mut stream) = shaken else { return Ok(Vec::new()) };
    // Being cut off at any point is the right answer.
    let words: &[u8] = if plane == Plane::Control { b"\x13/multistream/1.0.0\n" } else { &[0; 64] };
    let _ = stream.write_all(words).await;
    let _ = stream.flush().await;
    let mut heard = Vec::new();
    let listen = async {
        let mut part = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut part).await {
            heard.extend_from_slice(&part[..read]);
        }
    };
    tokio::time::timeout(PATIENCE, listen).await.context("a stranger's connection stays open")?;
    Ok(heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kind_of_stranger_hears_a_byte_on_either_plane() -> Result<()> {
    let mesh = Mesh::with_gateways(1).start().await?;
    pushed_blob(&mesh, "g0", 1201, MIB).await?;
    let root = keys::read_mesh_key(&mesh.mesh_key()?)?;
    let stolen = keys::read_identity(&mesh.identity_dir("g0")?, &mesh.public_key()?, system_clock()())?;
    for name in ["b0", "o0", "g0"] {
        let node = mesh.node(name)?;
        for (port, addr) in node.ready().ports()? {
            let plane = match port {
                "control" => Plane::Control,
                "data" => Plane::Data,
                _ => continue,
            };
            for (reason, identity) in strangers(&root, &stolen.credential) {
                let before = refusals(&mesh, name, reason).await?;
                let setup = TlsSetup::new(identity, system_clock(), TlsSetup::admit_members())?;
                let heard = knock(addr, plane, tls::client_config(&setup, plane, None)?).await?;
                ensure!(heard.is_empty(), "{name} says {} bytes to {reason} on {port}", heard.len());
                let what = format!("{name} counts {reason} on {port}");
                wait_until(&what, PATIENCE, async || {
                    Ok((refusals(&mesh, name, reason).await? > before).then_some(()))
                })
                .await?;
            }
            for certificate in [true, false] {
                let heard = knock(addr, plane, without_credential(plane, certificate)?).await?;
                ensure!(heard.is_empty(), "{name} says {} bytes on {port}", heard.len());
            }
        }
    }
    // A member, by the same way, is answered: the test would notice if nobody were.
    let member = Keypair::from_secret(&[24; 32]);
    let credential = credential_of(&root, member.peer_id(), Role::Node, hour());
    let identity = Identity { keypair: member, credential, mesh: root.public() };
    let setup = TlsSetup::new(identity, system_clock(), TlsSetup::admit_members())?;
    let (_, control) = mesh.node("o0")?.ready().ports()?[0];
    let heard = tokio::time::timeout(
        Duration::from_secs(5),
        knock(control, Plane::Control, tls::client_config(&setup, Plane::Control, None)?),
    );
    // It is let in, so the connection stays open, or it hears Yamux.
    ensure!(
        heard.await.map_or(true, |heard| heard.is_ok_and(|heard| !heard.is_empty())),
        "members are refused too"
    );
    mesh.finish().await
}

/// Handshakes refused for a reason; for a bootstrap peer, which does not say the reason, all that failed.
async fn refusals(mesh: &Mesh, name: &str, reason: &str) -> Result<f64> {
    let metrics = mesh.node(name)?.metrics().await?;
    Ok(if name.starts_with('b') {
        metrics.sum(metric::STRANGERS[0].1)
    } else {
        metrics.sum_where(metric::REJECTED, &[(metric::REJECTION, reason)])
    })
}

fn value(digest: Digest) -> RecordValue {
    RecordValue {
        digest,
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        size: 1,
        subject: None,
        artifact_type: None,
        annotations: Default::default(),
    }
}

/// A member that is a node and nothing more, by its own data plane, connected with `addr`.
struct Member {
    data: shoal_net::data::DataHandle,
    keypair: Keypair,
    to: PeerId,
}

impl Member {
    async fn connect(mesh: &Mesh, to: &str) -> Result<Self> {
        let root = keys::read_mesh_key(&mesh.mesh_key()?)?;
        let keypair = Keypair::from_secret(&[31; 32]);
        let credential = credential_of(&root, keypair.peer_id(), Role::Node, hour());
        let identity = Identity { keypair: keypair.clone(), credential, mesh: root.public() };
        let setup = TlsSetup::new(identity, system_clock(), TlsSetup::admit_members())?;
        let config = DataConfig { listen: "127.0.0.1:0".parse()?, ..DataConfig::default() };
        let (data, mut events) = DataPlane::bind(config, setup).await?;
        let node = mesh.node(to)?;
        let peer: PeerId = node.peer().parse()?;
        let addr = node.ready().data;
        data.connect(peer, vec![Endpoint::from_ip(addr.ip(), addr.port())]);
        loop {
            match tokio::time::timeout(PATIENCE, events.recv()).await?.context("no events")? {
                DataEvent::Connected { .. } => break,
                DataEvent::ConnectFailed { why, .. } => bail!("a member is not let in: {why}"),
                _ => {}
            }
        }
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        Ok(Self { data, keypair, to: peer })
    }

    async fn ask(&self, request: &Request) -> Result<Answer> {
        let body = Bytes::from(rpc::encode(request));
        let answer = self.data.call(self.to, body, PATIENCE).await?;
        rpc::decode(&answer).map_err(anyhow::Error::msg)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_member_can_ask_but_neither_push_nor_vouch() -> Result<()> {
    let mesh = Mesh::with_gateways(1).start().await?;
    let image = shoal_tests::ImageBuilder::new(1202).payload(1000).build()?;
    mesh.registry("g0", "app")?.push_image("1", &image).await?;
    let member = Member::connect(&mesh, "o0").await?;
    let key = RecordKey { repository: "app".parse()?, kind: RecordKind::Tag("1".parse()?) };
    let Answer::Record(Some(known)) = member.ask(&Request::GetRecord { key: key.clone() }).await? else {
        bail!("a member may read records");
    };
    let forged = Digest::sha256(b"forged");
    let version =
        RecordVersion { counter: u64::MAX, written: system_clock()(), author: member.keypair.peer_id() };
    let record = Record { key: key.clone(), version, value: Some(value(forged)) };
    let metainfo = shoal_types::Metainfo::of_bytes(shoal_types::Algorithm::Sha256, b"forged")?;
    for request in [
        Request::WriteRecord { key: key.clone(), value: Some(value(forged)), stamp: None },
        Request::WriteRecord { key: key.clone(), value: None, stamp: None },
        Request::PutRecord { record: Signed::sign(record, &member.keypair) },
        Request::Anchor { metainfo: Box::new(metainfo), repository: Some("app".parse()?) },
    ] {
        let answer = member.ask(&request).await?;
        ensure!(matches!(answer, Answer::Failed { kind: Failure::Denied, .. }), "{request:?}: {answer:?}");
    }
    let Answer::Record(Some(now)) = member.ask(&Request::GetRecord { key }).await? else {
        bail!("the record is gone")
    };
    ensure!(now == known, "the tag moved");
    mesh.registry("g0", "app")?.pull("1").await?;
    member.data.shutdown().await;
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_push_rights_cannot_push_through_its_own_gateway() -> Result<()> {
    let mut mesh = Mesh::with_gateways(1).start().await?;
    // The later --roles counts: these run the gateway's program without its role, and with a namespace.
    mesh.add(NodeSpec::gateway("plain").credential("--roles", "node")).await?;
    mesh.add(NodeSpec::gateway("team").credential("--namespace", "team")).await?;
    for (name, repository, allowed) in [
        ("plain", "app", false),
        ("team", "app", false),
        ("team", "teams/app", false),
        ("team", "team/app", true),
    ] {
        let blob = Blob::new("application/octet-stream", noise(1203 + repository.len() as u64, 50_000));
        let registry = mesh.registry(name, repository)?;
        let answer = registry.try_push_blob(&blob.digest, blob.bytes.clone()).await?;
        if allowed {
            ensure!(answer.status == StatusCode::CREATED, "{name} {repository}: {}", answer.status);
            continue;
        }
        ensure!(answer.status == StatusCode::FORBIDDEN, "{name} {repository}: {}", answer.status);
        ensure!(answer.text().await?.contains("DENIED"));
        let other = mesh.registry("g0", repository)?.blob(&blob.digest).await?;
        ensure!(!other.status.is_success(), "{name}: the blob of {repository} is in the mesh");
        let backend = mesh.scratch("backend")?;
        let hex = blob.digest.trim_start_matches("sha256:");
        let kept = shoal_tests::system::files_below(&backend);
        ensure!(!kept.iter().any(|(path, _)| path.to_string_lossy().contains(hex)), "an origin keeps it");
    }
    mesh.finish().await
}
