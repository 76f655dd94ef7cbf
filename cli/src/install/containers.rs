//! podman, buildah, skopeo and CRI-O, which read the same files: one of ours in `registries.conf.d`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use toml_edit::{DocumentMut, Item};

use super::plan::{Plan, Undo};
use super::{Common, gateway_url, registry_name};

/// The file's name: after the distribution's own, before the administrator's.
const FILE: &str = "50-shoal.conf";

/// Flags of `shoal install podman` and `crio`.
#[derive(clap::Args)]
pub(crate) struct ContainersArgs {
    /// A registry whose images are asked of the gateway first; repeatable. It must be among the mesh's upstreams.
    #[arg(long, value_name = "HOST", default_value = "docker.io", value_parser = registry_name)]
    registry: Vec<String>,
    /// The gateway.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5000", value_parser = gateway_url)]
    gateway: String,
    /// The engine's configuration file; ours goes into the directory of the same name with .d.
    #[arg(long, value_name = "FILE", default_value = "/etc/containers/registries.conf")]
    config: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Writes or reverts. Both engines share what is installed.
pub(super) fn run(args: &ContainersArgs, next: &str) -> anyhow::Result<()> {
    args.common.carry_out("containers", |plan| edit(args, plan, next))
}

fn edit(args: &ContainersArgs, plan: &mut Plan, next: &str) -> anyhow::Result<()> {
    let mut directory = args.config.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    let ours = directory.join(FILE);
    if plan.text(&ours)?.is_some() {
        bail!("{} is there, and not from an installation that is remembered: move it away", ours.display());
    }
    // A registry in a later file replaces the same one of an earlier file as a whole, mirrors and all.
    for file in others(&args.config, &directory, &ours)? {
        let text = plan.text(&file)?.unwrap_or_default();
        let taken = registries(&text).with_context(|| file.display().to_string())?;
        if let Some(registry) = args.registry.iter().find(|registry| taken.contains(registry)) {
            bail!(
                "{} has settings for {registry}, which a file of ours would replace: add there a [[registry.mirror]] with \
                 location = \"{}\"{}, and leave {registry} out here",
                file.display(),
                mirror(&args.gateway, registry),
                if is_plain(&args.gateway) { " and insecure = true" } else { "" }
            );
        }
    }
    plan.write(&ours, content(&args.gateway, &args.registry), Undo::Whole)?;
    plan.note(next.to_owned());
    Ok(())
}

/// The other files that the engine reads.
fn others(main: &Path, directory: &Path, ours: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = vec![main.to_owned()];
    match std::fs::read_dir(directory) {
        Ok(entries) => files.extend(entries.flatten().map(|entry| entry.path())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", directory.display())),
    }
    files.retain(|file| file != ours && file.extension().is_some_and(|extension| extension == "conf"));
    Ok(files)
}

/// The registries that a file has settings for, by the prefix of references (containers-registries.conf(5)).
fn registries(text: &str) -> anyhow::Result<Vec<String>> {
    let document: DocumentMut = text.parse().context("it is not valid TOML")?;
    let tables = document.get("registry").and_then(Item::as_array_of_tables);
    let name = |table: &toml_edit::Table| {
        let text = |key: &str| table.get(key).and_then(Item::as_str).filter(|text| !text.is_empty());
        text("prefix").or_else(|| text("location")).map(str::to_owned)
    };
    Ok(tables.into_iter().flat_map(|tables| tables.iter()).filter_map(name).collect())
}

fn is_plain(gateway: &str) -> bool {
    gateway.starts_with("http://")
}

fn address(gateway: &str) -> &str {
    gateway.split_once("://").map_or(gateway, |(_, address)| address)
}

/// Where a registry's images are in the mesh: these engines do not say which registry they mean, so that it stands in the
/// name. A colon cannot.
fn mirror(gateway: &str, registry: &str) -> String {
    format!("{}/{}", address(gateway), registry.replace(':', "_"))
}

fn content(gateway: &str, registries: &[String]) -> String {
    let insecure = if is_plain(gateway) { "insecure = true\n" } else { "" };
    let mut text = format!(
        "# Written by `shoal install`; `shoal install podman --revert` takes it back.\n\n\
         [[registry]]\nlocation = \"{}\"\n{insecure}",
        address(gateway)
    );
    for registry in registries {
        text.push_str(&format!(
            "\n[[registry]]\nprefix = \"{registry}\"\nlocation = \"{registry}\"\n\
             [[registry.mirror]]\nlocation = \"{}\"\n{insecure}",
            mirror(gateway, registry)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_says_what_it_should() {
        let text = content("http://127.0.0.1:5000", &["docker.io".to_owned(), "r.example:5000".to_owned()]);
        assert_eq!(registries(&text).unwrap(), ["127.0.0.1:5000", "docker.io", "r.example:5000"]);
        assert!(text.contains("location = \"127.0.0.1:5000/r.example_5000\"\ninsecure = true"), "{text}");
        assert!(!content("https://gw.example:443", &["docker.io".to_owned()]).contains("insecure"));
    }
}
