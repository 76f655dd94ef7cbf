//! containerd: a `hosts.toml` for each registry, and the `config_path` by which the CRI plugin, and so the kubelet,
//! finds them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use toml_edit::{DocumentMut, Item, Table, TableLike, Value};

use super::plan::{Plan, Undo, refuse_directory, set_text, with_block};
use super::{Common, gateway_url, registry_name};

/// Where hosts.toml files are when no `config_path` says otherwise: containerd's documentation, `docs/hosts.md`.
const CERTS_DIR: &str = "/etc/containerd/certs.d";
/// The directory whose hosts.toml is for every registry that has none of its own (`docs/hosts.md`).
const DEFAULT: &str = "_default";

/// Flags of `shoal install containerd`.
#[derive(clap::Args)]
pub(crate) struct ContainerdArgs {
    /// A registry whose images are asked of the gateway first; repeatable. `_default` means every registry that has no
    /// hosts.toml of its own: then all of them should be among the gateways' upstreams, for an image of another registry
    /// is looked for in the mesh by its name without the registry.
    #[arg(long, value_name = "HOST", default_value = "docker.io", value_parser = registry_or_default)]
    registry: Vec<String>,
    /// The gateway.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5000", value_parser = gateway_url)]
    gateway: String,
    /// containerd's configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    config: PathBuf,
    /// Directory for hosts.toml files [default: the file's config_path, or /etc/containerd/certs.d]
    #[arg(long, value_name = "DIR")]
    certs_dir: Option<PathBuf>,
    /// Write hosts.toml files only, for a containerd whose config_path is set elsewhere.
    #[arg(long, requires = "certs_dir")]
    hosts_only: bool,
    #[command(flatten)]
    common: Common,
}

fn registry_or_default(text: &str) -> Result<String, String> {
    if text == DEFAULT { Ok(text.to_owned()) } else { registry_name(text) }
}

/// Writes or reverts.
pub(super) fn run(args: &ContainerdArgs) -> anyhow::Result<()> {
    args.common.carry_out("containerd", |plan| edit(args, plan))
}

fn edit(args: &ContainerdArgs, plan: &mut Plan) -> anyhow::Result<()> {
    let certs_dir = match &args.certs_dir {
        Some(certs_dir) if args.hosts_only => certs_dir.clone(),
        _ => edit_config(args, plan)?,
    };
    for registry in &args.registry {
        let path = certs_dir.join(registry).join("hosts.toml");
        let text = plan.text(&path)?.unwrap_or_default();
        let changed = add_host(&text, &args.gateway).with_context(|| path.display().to_string())?;
        match changed {
            Some(changed) => plan.write(&path, changed, Undo::Block)?,
            None => plan.note(format!("{} has {} already", path.display(), args.gateway)),
        }
    }
    if plan.changes(&args.config) {
        plan.note("next: systemctl restart containerd (running containers go on)".to_owned());
    } else {
        plan.note("containerd reads hosts.toml at every pull: nothing to restart".to_owned());
    }
    Ok(())
}

/// Sets `config_path` where there is none; returns the directory for hosts.toml files.
fn edit_config(args: &ContainerdArgs, plan: &mut Plan) -> anyhow::Result<PathBuf> {
    refuse_directory(&args.config)?;
    let file = args.config.display().to_string();
    let text = plan.text(&args.config)?;
    let found = config_path(text.as_deref(), args.certs_dir.as_deref()).with_context(|| file.clone())?;
    if let Some(change) = found.change {
        let undo = Undo::Toml { path: change.keys, before: change.before, after: change.after };
        plan.write(&args.config, change.text, undo)?;
    }
    if found.cri_disabled {
        plan.note(format!("{file} disables the CRI plugin: the kubelet could not use this containerd"));
    }
    Ok(found.certs_dir)
}

/// What a configuration says of registries.
pub(crate) struct Found {
    /// Where hosts.toml files belong.
    pub(crate) certs_dir: PathBuf,
    /// What is to be changed for containerd to look there.
    pub(crate) change: Option<Change>,
    cri_disabled: bool,
}

/// A change of a configuration.
pub(crate) struct Change {
    text: String,
    keys: Vec<String>,
    before: Option<String>,
    after: String,
}

/// Where hosts.toml files belong, and how the configuration has to change for that to be so.
pub(crate) fn config_path(text: Option<&str>, wanted: Option<&Path>) -> anyhow::Result<Found> {
    let fresh = text.is_none_or(|text| text.trim().is_empty());
    let text = if fresh { "version = 2\n" } else { text.unwrap_or_default() };
    let mut document: DocumentMut = text.parse().context("it is not valid TOML")?;
    let version = match document.get("version") {
        None => 1,
        Some(version) => version.as_integer().context("version is not a number")?,
    };
    // containerd's docs/cri/registry.md, for each version of its configuration.
    let plugin = match version {
        1 => "cri",
        2 => "io.containerd.grpc.v1.cri",
        3 => "io.containerd.cri.v1.images",
        other => bail!("version {other} of containerd's configuration is not known here"),
    };
    let disabled = document.get("disabled_plugins").and_then(Item::as_array);
    let cri_disabled =
        disabled.is_some_and(|all| all.iter().filter_map(Value::as_str).any(|name| name.ends_with("cri")));
    let keys = ["plugins", plugin, "registry"];
    let registry = table(document.as_table_mut(), &keys)?;
    let before = match registry.get("config_path") {
        None => None,
        Some(value) => Some(value.as_str().context("config_path is not a text")?.to_owned()),
    };
    let paths: Vec<PathBuf> = before
        .iter()
        .flat_map(|paths| paths.split(':'))
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .collect();
    let certs_dir = match (wanted, paths.first()) {
        (Some(wanted), _) => wanted.to_owned(),
        (None, Some(first)) => first.clone(),
        (None, None) => PathBuf::from(CERTS_DIR),
    };
    if paths.contains(&certs_dir) {
        return Ok(Found { certs_dir, change: None, cri_disabled });
    }
    if let Some(first) = paths.first() {
        bail!(
            "its config_path is {}: leave --certs-dir out, or change config_path to {}",
            first.display(),
            certs_dir.display()
        );
    }
    refuse_older_settings(registry)?;
    let after = certs_dir.to_str().context("the directory's name is not UTF-8")?.to_owned();
    set_text(registry, "config_path", &after);
    let keys = keys.iter().chain(&["config_path"]).map(|key| (*key).to_owned()).collect();
    let change = Some(Change { text: document.to_string(), keys, before, after });
    Ok(Found { certs_dir, change, cri_disabled })
}

/// containerd does not start with `config_path` and one of these.
fn refuse_older_settings(registry: &dyn TableLike) -> anyhow::Result<()> {
    let sub = |key: &str| registry.get(key).and_then(Item::as_table_like);
    let mirrors = sub("mirrors").is_some_and(|mirrors| !mirrors.is_empty());
    let tls = sub("configs").is_some_and(|configs| {
        configs
            .iter()
            .any(|(_, config)| config.as_table_like().is_some_and(|config| config.contains_key("tls")))
    });
    if mirrors || tls {
        bail!(
            "it has registry.mirrors or registry.configs.*.tls, with which containerd takes no config_path: move them \
             into hosts.toml files first (containerd's docs/hosts.md), or add the gateway to them by hand"
        );
    }
    Ok(())
}

/// The table with these keys, made where it is not there.
fn table<'a>(root: &'a mut Table, keys: &[&str]) -> anyhow::Result<&'a mut dyn TableLike> {
    let mut table: &mut dyn TableLike = root;
    for (depth, key) in keys.iter().enumerate() {
        let mut fresh = Table::new();
        // Tables that only hold others need no line of their own.
        fresh.set_implicit(depth + 1 < keys.len());
        let item = table.entry(key).or_insert(Item::Table(fresh));
        table = item.as_table_like_mut().with_context(|| format!("{key} is not a table"))?;
    }
    Ok(table)
}

/// The hosts of a hosts.toml, in their order.
pub(crate) fn hosts(text: &str) -> anyhow::Result<Vec<String>> {
    let document: DocumentMut = text.parse().context("it is not valid TOML")?;
    let hosts = document.get("host").and_then(Item::as_table_like);
    Ok(hosts.into_iter().flat_map(TableLike::iter).map(|(url, _)| url.to_owned()).collect())
}

/// The text with the gateway before all other hosts; `None` when it is among them already.
fn add_host(text: &str, gateway: &str) -> anyhow::Result<Option<String>> {
    let before = hosts(text)?;
    if before.iter().any(|url| url == gateway) {
        return Ok(None);
    }
    let block = format!("[host.\"{gateway}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    let changed = with_block(text, &block, |line| line.starts_with("[host"));
    // The order of hosts in the file is the order in which they are asked.
    let after = hosts(&changed).unwrap_or_default();
    if after.first().is_none_or(|first| first != gateway) || after.get(1..) != Some(&before) {
        bail!("it cannot be edited: put a table [host.\"{gateway}\"] before the others by hand");
    }
    Ok(Some(changed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: &str = "http://127.0.0.1:5000";

    fn changed(text: &str) -> String {
        config_path(Some(text), None).unwrap().change.unwrap().text
    }

    #[test]
    fn a_config_path_is_set_where_there_is_none() {
        let found = config_path(None, None).unwrap();
        assert_eq!(found.certs_dir, Path::new(CERTS_DIR));
        assert_eq!(
            found.change.unwrap().text,
            "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
        );
        let debian = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\" # theirs\n";
        let text = changed(debian);
        assert!(text.starts_with(debian), "{text}");
        assert!(text.contains("cri\".registry]\nconfig_path = \""), "{text}");
        let empty =
            "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = '' # none\n";
        assert_eq!(changed(empty), empty.replace("''", "\"/etc/containerd/certs.d\""));
    }

    #[test]
    fn a_config_path_that_is_there_is_used() {
        let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/a:/b\"\n";
        let found = config_path(Some(text), None).unwrap();
        assert!(found.change.is_none());
        assert_eq!(found.certs_dir, Path::new("/a"));
        assert_eq!(config_path(Some(text), Some(Path::new("/b"))).unwrap().certs_dir, Path::new("/b"));
        assert!(config_path(Some(text), Some(Path::new("/c"))).is_err());
    }

    #[test]
    fn what_containerd_would_not_start_with_is_refused() {
        let head = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry";
        for rest in
            [".mirrors.\"docker.io\"]\nendpoint = [\"https://x\"]", ".configs.\"x\".tls]\nca_file = \"y\""]
        {
            let error = config_path(Some(&format!("{head}{rest}")), None).err().unwrap().to_string();
            assert!(error.contains("hosts.toml"), "{error}");
        }
        assert!(config_path(Some(&format!("{head}.configs.\"x\".auth]\nusername = \"y\"")), None).is_ok());
        assert!(config_path(Some("version = 9"), None).is_err());
        assert!(config_path(Some("version = "), None).is_err());
    }

    #[test]
    fn the_gateway_is_the_first_host() {
        assert_eq!(
            add_host("", GATEWAY).unwrap().unwrap(),
            "# >>> shoal install\n[host.\"http://127.0.0.1:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n# <<< shoal install\n"
        );
        let theirs = "server = \"https://x\" # theirs\n\n  [host.\"https://y\"]\n    ca = \"z\"\n[host.\"https://w\"]\n";
        let text = add_host(theirs, GATEWAY).unwrap().unwrap();
        assert!(
            text.starts_with("server = \"https://x\" # theirs\n\n# >>>")
                && text.ends_with("  [host.\"https://y\"]\n    ca = \"z\"\n[host.\"https://w\"]\n")
        );
        assert_eq!(add_host(&text, GATEWAY).unwrap(), None);
        for odd in ["host = {}\n", "host.\"https://y\".ca = \"z\"\n", "[[host]]\n", "x ="] {
            assert!(add_host(odd, GATEWAY).is_err(), "{odd}");
        }
    }
}
