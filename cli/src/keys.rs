//! `shoal mesh` and `shoal credential`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use shoal_daemon::clock::wall_now;
use shoal_daemon::keys;
use shoal_types::{Credential, Roles, SignedCredential, Zone};

/// Flags of `shoal credential issue`.
#[derive(clap::Args)]
pub(crate) struct IssueArgs {
    /// The mesh's secret root key.
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
    /// Directory for identity.key (kept if it is there) and credential.cbor.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

fn humantime_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

pub(crate) fn init(dir: &Path) -> anyhow::Result<()> {
    let key = keys::init_mesh(dir)?;
    println!("{}", key.public());
    Ok(())
}

pub(crate) fn issue(args: &IssueArgs) -> anyhow::Result<()> {
    let mesh = keys::read_mesh_key(&args.mesh_key)?;
    let now = wall_now();
    let identity = keys::issue_identity(&args.out, &mesh, |peer| Credential {
        peer,
        roles: args.roles,
        zone: args.zone.clone(),
        namespaces: args.namespace.clone(),
        not_before: now,
        not_after: now.saturating_add(args.valid_for),
    })?;
    println!("{}", identity.peer_id());
    Ok(())
}

pub(crate) fn show(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join(keys::CREDENTIAL_FILE);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let signed = SignedCredential::from_bytes(&bytes)
        .with_context(|| format!("{} is not a credential", path.display()))?;
    let credential = signed.value();
    let time = |millis: u64| {
        let at = std::time::UNIX_EPOCH + Duration::from_millis(millis);
        humantime::format_rfc3339_seconds(at).to_string()
    };
    println!("peer        {}", credential.peer);
    println!("roles       {}", credential.roles);
    println!("zone        {}", credential.zone);
    let namespaces =
        if credential.namespaces.is_empty() { "all".to_owned() } else { credential.namespaces.join(", ") };
    println!("namespaces  {namespaces}");
    println!("not before  {}", time(credential.not_before.unix_millis()));
    println!("not after   {}", time(credential.not_after.unix_millis()));
    Ok(())
}
