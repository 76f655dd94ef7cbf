//! `shoal mesh` and `shoal credential`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full};
use hyper::Method;
use shoal_daemon::clock::wall_now;
use shoal_daemon::keys;
use shoal_types::{
    Credential, Intermediate, IssuingKey, JoinToken, Keypair, MeshPublicKey, PeerId, RevocationList, Revoked,
    Roles, SignedCredential, SignedRevocations, WallTime, Zone,
};

use crate::client;

/// Flags of `shoal credential issue`.
#[derive(clap::Args)]
pub(crate) struct IssueArgs {
    /// The mesh's secret root key, or an intermediate's.
    #[arg(long, value_name = "FILE")]
    mesh_key: PathBuf,
    /// What the process may be: any of bootstrap, node, gateway, origin, joined by commas.
    #[arg(long, value_name = "ROLES")]
    roles: Roles,
    /// Where the process is.
    #[arg(long, value_name = "ZONE", default_value = "default")]
    zone: Zone,
    /// Repository prefixes it may push to; all when left out. Repeatable.
    #[arg(long, value_name = "PREFIX")]
    namespace: Vec<String>,
    /// How long the credential lasts, such as 90days.
    #[arg(long, value_name = "DURATION", default_value = "1year", value_parser = humantime_duration)]
    valid_for: Duration,
    /// The process's peer id, when its identity.key stays on its own machine; only credential.cbor is written then.
    #[arg(long, value_name = "PEER")]
    peer: Option<PeerId>,
    /// Directory for identity.key (kept if it is there) and credential.cbor.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Flags of `shoal mesh intermediate`.
#[derive(clap::Args)]
pub(crate) struct IntermediateArgs {
    /// The mesh's secret root key.
    #[arg(long, value_name = "FILE")]
    mesh_key: PathBuf,
    /// The roles it may give, joined by commas.
    #[arg(long, value_name = "ROLES")]
    roles: Roles,
    /// A zone it may put processes in; all when left out. Repeatable.
    #[arg(long, value_name = "ZONE")]
    zone: Vec<Zone>,
    /// A repository prefix it may let processes push to; all when left out. Repeatable.
    #[arg(long, value_name = "PREFIX")]
    namespace: Vec<String>,
    /// How long it can be used, and its credentials last at most.
    #[arg(long, value_name = "DURATION", default_value = "90days", value_parser = humantime_duration)]
    valid_for: Duration,
    /// The key file to make.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Flags of `shoal mesh join-token`.
#[derive(clap::Args)]
pub(crate) struct JoinTokenArgs {
    /// The mesh's secret root key.
    #[arg(long, value_name = "FILE")]
    mesh_key: PathBuf,
    /// What the machines will be, joined by commas.
    #[arg(long, value_name = "ROLES")]
    roles: Roles,
    /// Where they are.
    #[arg(long, value_name = "ZONE", default_value = "default")]
    zone: Zone,
    /// Repository prefixes they may push to; all when left out. Repeatable.
    #[arg(long, value_name = "PREFIX")]
    namespace: Vec<String>,
    /// A door to the mesh. Repeatable.
    #[arg(long, value_name = "MULTIADDR", required = true)]
    bootstrap: Vec<String>,
    /// How long the token can be used. Credentials made with it end with it, unless an origin renews them.
    #[arg(long, value_name = "DURATION", default_value = "7days", value_parser = humantime_duration)]
    valid_for: Duration,
    /// How long a credential made with it lasts at most.
    #[arg(long, value_name = "DURATION", default_value = "7days", value_parser = humantime_duration)]
    credential_valid_for: Duration,
    /// File for the token, which only its owner can read; without it the token is printed.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Flags of `shoal credential revoke`.
#[derive(clap::Args)]
pub(crate) struct RevokeArgs {
    /// The mesh's secret root key.
    #[arg(long, value_name = "FILE")]
    mesh_key: PathBuf,
    /// The mesh's list of revocations; made if it is not there. Keep it: the next list is made from it.
    #[arg(long, value_name = "FILE")]
    list: PathBuf,
    /// How long the keys stay on the list: at least as long as their credentials last.
    #[arg(long, value_name = "DURATION", default_value = "10years", value_parser = humantime_duration)]
    remembered_for: Duration,
    /// Ops listener of a member to hand the list to, which tells all others.
    #[arg(long, value_name = "HOST:PORT")]
    ops: Option<SocketAddr>,
    /// Whom: peer ids of processes, or of intermediates as `credential show` and `mesh intermediate` print them. None
    /// only hands in the list.
    #[arg(value_name = "PEER")]
    peers: Vec<PeerId>,
}

fn humantime_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

pub(crate) fn init(dir: &Path) -> anyhow::Result<()> {
    let key = keys::init_mesh(dir)?;
    println!("{}", key.public());
    Ok(())
}

/// The mesh that a key issues for.
fn mesh_of(key: &IssuingKey) -> MeshPublicKey {
    match key {
        IssuingKey::Root(root) => root.public(),
        IssuingKey::Intermediate(_, document) => MeshPublicKey::of_signer(document.signer()),
    }
}

pub(crate) fn issue(args: &IssueArgs) -> anyhow::Result<()> {
    let key = keys::read_issuing_key(&args.mesh_key)?;
    let now = wall_now();
    let describe = |peer| Credential {
        peer,
        roles: args.roles,
        zone: args.zone.clone(),
        namespaces: args.namespace.clone(),
        not_before: now,
        not_after: now.saturating_add(args.valid_for).min(key.not_after()),
        issuer: None,
    };
    if let Some(peer) = args.peer {
        keys::write_credential(&args.out, &key.issue(describe(peer))?)?;
        println!("{peer}");
        return Ok(());
    }
    let identity = keys::issue_identity(&args.out, (&key, mesh_of(&key)), describe)?;
    println!("{}", identity.peer_id());
    Ok(())
}

pub(crate) fn intermediate(args: &IntermediateArgs) -> anyhow::Result<()> {
    let mesh = keys::read_mesh_key(&args.mesh_key)?;
    let now = wall_now();
    let made = keys::make_intermediate(&args.out, &mesh, |key| Intermediate {
        key,
        roles: args.roles,
        zones: args.zone.clone(),
        namespaces: args.namespace.clone(),
        not_before: now,
        not_after: now.saturating_add(args.valid_for),
    })?;
    if let Some(id) = made.id() {
        println!("{id}");
    }
    Ok(())
}

pub(crate) fn join_token(args: &JoinTokenArgs) -> anyhow::Result<()> {
    let mesh = keys::read_mesh_key(&args.mesh_key)?;
    let now = wall_now();
    let key = Keypair::from_secret(&keys::random_secret());
    let document = mesh.certify(Intermediate {
        key: key.peer_id(),
        roles: args.roles,
        zones: vec![args.zone.clone()],
        namespaces: args.namespace.clone(),
        not_before: now,
        not_after: now.saturating_add(args.valid_for),
    });
    let doors = args.bootstrap.clone();
    let token =
        JoinToken::new(mesh.public(), &key, document, args.zone.clone(), doors, args.credential_valid_for)?;
    // Says now what a machine would say then.
    let text = token.to_string();
    text.parse::<JoinToken>()?;
    match &args.out {
        Some(path) => {
            keys::write_new_secret(path, &format!("{text}\n"))?;
            println!("{}", key.peer_id());
        }
        None => println!("{text}"),
    }
    Ok(())
}

pub(crate) async fn revoke(args: &RevokeArgs) -> anyhow::Result<()> {
    let mesh = keys::read_mesh_key(&args.mesh_key)?;
    let now = wall_now();
    let path = args.list.display();
    let before = match std::fs::read(&args.list) {
        Ok(bytes) => {
            let list = SignedRevocations::from_bytes(&bytes)
                .with_context(|| format!("{path} is not a list of revocations"))?;
            mesh.public().check_revocations(&list).with_context(|| format!("{path}"))?;
            Some(list)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
    };
    let until = now.saturating_add(args.remembered_for);
    let more: Vec<Revoked> = args.peers.iter().map(|key| Revoked { key: *key, until }).collect();
    let list = match before {
        Some(list) if more.is_empty() => list,
        before => {
            let list = before.map(|list| list.value().clone()).unwrap_or_else(RevocationList::default);
            mesh.revoke(list.with(&more, now)?)
        }
    };
    let fresh = args.list.with_extension("new");
    std::fs::write(&fresh, list.to_bytes())
        .and_then(|()| std::fs::rename(&fresh, &args.list))
        .with_context(|| format!("cannot write {path}"))?;
    if let Some(ops) = args.ops {
        let bytes = list.to_bytes();
        let length = bytes.len() as u64;
        let body = Full::new(bytes.into()).map_err(|never| match never {}).boxed();
        client::request(ops, Method::PUT, "/api/v1/revocations", Some(length), body).await?;
    }
    println!("version {}, {} keys", list.value().version, list.value().revoked.len());
    Ok(())
}

pub(crate) fn show(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join(keys::CREDENTIAL_FILE);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let signed = SignedCredential::from_bytes(&bytes)
        .with_context(|| format!("{} is not a credential", path.display()))?;
    let credential = signed.value();
    println!("peer        {}", credential.peer);
    println!("roles       {}", credential.roles);
    println!("zone        {}", credential.zone);
    let namespaces =
        if credential.namespaces.is_empty() { "all".to_owned() } else { credential.namespaces.join(", ") };
    println!("namespaces  {namespaces}");
    println!("not before  {}", time(credential.not_before));
    println!("not after   {}", time(credential.not_after));
    match &credential.issuer {
        None => println!("issued by   the mesh's root key"),
        Some(_) => println!("issued by   the intermediate {}", signed.signer()),
    }
    Ok(())
}

fn time(at: WallTime) -> String {
    let at = std::time::UNIX_EPOCH.checked_add(Duration::from_millis(at.unix_millis()));
    // Later than a calendar goes.
    at.map_or_else(|| "never".to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string())
}
