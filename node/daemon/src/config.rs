//! The configuration of a daemon: one flat table of settings, each of them a TOML key, a command-line flag and a
//! `SHOAL_*` variable.
//!
//! Later layers win: built-in default, file, environment, flags. Everything is checked once, at load.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use regex::Regex;
use serde::{Deserialize, Serialize};
pub use shoal_origin::UpstreamRule;
use shoal_types::{Endpoint, Zone};

/// Docker Hub's name in references.
pub const DOCKER_HUB: &str = "docker.io";

/// How a setting is written on a command line and in the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A text, path, size, duration or address.
    Text,
    /// A whole number.
    Number,
    /// A number between 0 and 1.
    Share,
    /// A flag with no value, or `true`/`false`.
    Switch,
    /// A flag that may be repeated; commas separate values in a variable.
    List,
}

/// One setting, for generating flags and documentation.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name in a file, `like-this`.
    pub name: &'static str,
    /// Its documentation, a line each.
    pub doc: &'static [&'static str],
    /// What its value looks like.
    pub value_name: &'static str,
    /// How it is written.
    pub kind: KeyKind,
}

impl Key {
    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("SHOAL_{}", self.name.to_uppercase().replace('-', "_"))
    }

    /// The documentation as one paragraph.
    pub fn help(&self) -> String {
        self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

macro_rules! settings {
    ($( $(#[doc = $doc:literal])* $(#[serde($($serde:tt)*)])? $field:ident ($name:literal, $kind:ident, $value:literal): $type:ty = $default:expr; )*) => {
        /// All settings of a daemon.
        #[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config {
            $( $(#[doc = $doc])* #[serde(rename = $name $(, $($serde)*)?)] pub $field: $type, )*
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        /// Every setting, in the order of the documentation.
        pub const KEYS: &[Key] = &[
            $( Key { name: $name, doc: &[$($doc),*], value_name: $value, kind: KeyKind::$kind }, )*
        ];
    };
}

settings! {
    /// Directory that holds pieces, blobs and what describes them. One daemon a directory.
    data_dir("data-dir", Text, "DIR"): PathBuf = PathBuf::from("/var/lib/shoal");
    /// Directory with this process's `identity.key` and `credential.cbor`, as `shoal credential issue` writes them.
    identity("identity", Text, "DIR"): PathBuf = PathBuf::from("/etc/shoal/identity");
    /// File with the mesh's public key, as `shoal mesh init` writes it.
    mesh_pub("mesh-pub", Text, "FILE"): PathBuf = PathBuf::from("/etc/shoal/mesh.pub");
    /// Join token, or the file that holds one (`shoal mesh join-token`): at the first start this process makes its
    /// identity and credential with it, and it enters the mesh through the doors that the token names. A secret: a file
    /// or the variable is better than the flag, which other users of the machine can see.
    #[serde(skip_serializing)]
    join("join", Text, "TOKEN|FILE"): Option<String> = None;
    /// File with an issuing key (`shoal mesh intermediate`) with which this origin renews the credentials of members
    /// before they expire.
    #[serde(skip_serializing_if = "Option::is_none")]
    renewal_key("renewal-key", Text, "FILE"): Option<PathBuf> = None;
    /// Zone this process is in. It must be the one its credential names; leave it out to take the credential's.
    #[serde(skip_serializing_if = "Option::is_none")]
    zone("zone", Text, "ZONE"): Option<Zone> = None;
    /// Where the control plane (DHT and gossip) listens, as multiaddrs.
    listen("listen", List, "MULTIADDR"): Vec<String> = vec!["/ip4/0.0.0.0/tcp/4001".to_owned()];
    /// Where the data plane (pieces) listens.
    data_listen("data-listen", Text, "HOST:PORT"): SocketAddr = SocketAddr::from(([0, 0, 0, 0], 4002));
    /// What others should dial for the control plane, as multiaddrs, when it is not what this process listens on
    /// (NAT, VPN).
    announce("announce", List, "MULTIADDR"): Vec<String> = vec![];
    /// What others should dial for the data plane, when it is not what this process listens on.
    data_announce("data-announce", List, "HOST:PORT"): Vec<Endpoint> = vec![];
    /// Peers through which to enter the mesh: multiaddrs, or `dnsaddr:NAME`.
    bootstrap("bootstrap", List, "MULTIADDR"): Vec<String> = vec![];
    /// Where the OCI registry API listens; only a gateway does.
    gateway("gateway", Text, "HOST:PORT"): SocketAddr = SocketAddr::from(([127, 0, 0, 1], 5000));
    /// File with who may do what at the registry API (`docs/SECURITY.md`); without it everybody may do everything. Read
    /// again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway_access("gateway-access", Text, "FILE"): Option<PathBuf> = None;
    /// File with the registry API's TLS certificate chain in PEM; without it the API is plain HTTP. Read again when it
    /// changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway_tls_cert("gateway-tls-cert", Text, "FILE"): Option<PathBuf> = None;
    /// File with the private key of `gateway-tls-cert` in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway_tls_key("gateway-tls-key", Text, "FILE"): Option<PathBuf> = None;
    /// File with the CA in PEM whose certificates clients of the registry API may show.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway_tls_client_ca("gateway-tls-client-ca", Text, "FILE"): Option<PathBuf> = None;
    /// Where health, metrics and status listen.
    ops("ops", Text, "HOST:PORT"): SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7070));
    /// Whether this process is an origin: it stores pushed blobs and vouches for metainfo and tags.
    origin("origin", Switch, ""): bool = false;
    /// Where an origin stores durably: `fs:/srv/shoal`, `s3://BUCKET/PREFIX?endpoint=URL`, `azblob://CONTAINER/PREFIX`,
    /// and others (docs/STORAGE.md). With `PATTERN=` before it only what is pushed to repositories whose whole names match
    /// that regular expression; the first that matches wins.
    #[serde(deserialize_with = "one_or_many")]
    backend("backend", List, "[PATTERN=]URL"): Vec<String> = vec![];
    /// What this origin's zone copies to other zones without anybody pulling it there: in a file
    /// `[[replicate]]` tables with `match`, a regular expression of whole repository names, and `to`, a list of zones. Set
    /// the same at all origins of a zone.
    replicate("replicate", List, "PATTERN=ZONE[+ZONE]"): Vec<crate::replicate::Rule> = vec![];
    /// Registries whose images are pulled through: their names, as in `docker.io`, and for origins where to ask them and
    /// how, if it is not at their names, as in `docker.io=registry://registry-1.docker.io?docker-config=FILE`
    /// (docs/STORAGE.md). Origins fetch from them; gateways are mirrors of them for clients that say so with `?ns=`.
    #[serde(deserialize_with = "one_or_many")]
    upstream("upstream", List, "HOST[=URL]"): Vec<String> = vec![];
    /// Where a gateway also listens as a mirror of Docker Hub, for dockerd's `registry-mirrors`; `upstream` must have
    /// `docker.io`.
    #[serde(skip_serializing_if = "Option::is_none")]
    hub_mirror("hub-mirror", Text, "HOST:PORT"): Option<SocketAddr> = None;
    /// Whether a gateway takes notifications of pushes at `/registry/notifications`, as Harbor and the distribution registry
    /// send them, and which gateways it then has fetch the image: `all`, `zone` (its own), `zone=NAME`, with `count=N` or
    /// `percent=N` after a comma or alone. Whoever logs in as one whom `gateway-access` allows to `preheat` may send them.
    #[serde(skip_serializing_if = "Option::is_none")]
    preheat("preheat", Text, "SCOPE"): Option<crate::preheat::Scope> = None;
    /// Tags that, once pushed, nobody moves or deletes: regular expressions for the whole of `REPOSITORY:TAG`, as in
    /// `prod/.*:v[0-9.]+`. Origins hold to it, so all of them should have the same.
    #[serde(deserialize_with = "one_or_many")]
    immutable_tag("immutable-tag", List, "PATTERN"): Vec<String> = vec![];
    /// Number of origins that must have a pushed blob or tag on stable storage before the push is acknowledged.
    replicas("replicas", Number, "N"): usize = 1;
    /// Most bytes of blobs kept on disk; without it, what the file system has.
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity("capacity", Text, "SIZE"): Option<ByteSize> = None;
    /// Most payload bytes a second received from peers; without it, no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_in("rate-in", Text, "SIZE"): Option<ByteSize> = None;
    /// Most payload bytes a second sent to peers; without it, no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_out("rate-out", Text, "SIZE"): Option<ByteSize> = None;
    /// Most payload bytes a second received from other zones; without it, no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    zone_rate_in("zone-rate-in", Text, "SIZE"): Option<ByteSize> = None;
    /// Most payload bytes a second sent to other zones; without it, no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    zone_rate_out("zone-rate-out", Text, "SIZE"): Option<ByteSize> = None;
    /// Most memory for pieces on their way.
    buffer_memory("buffer-memory", Text, "SIZE"): ByteSize = ByteSize::mib(64);
    /// Most data-plane connections.
    connections_max("connections-max", Number, "N"): usize = 512;
    /// How long a pull waits for somebody who has the blob, when those who should know cannot be asked.
    #[serde(with = "humantime_serde")]
    search_patience("search-patience", Text, "DURATION"): Duration = Duration::from_secs(10);
    /// How often an origin says that it is alive.
    #[serde(with = "humantime_serde")]
    heartbeat_interval("heartbeat-interval", Text, "DURATION"): Duration = Duration::from_secs(5);
    /// How long running requests may take to end after SIGTERM.
    #[serde(with = "humantime_serde")]
    drain_timeout("drain-timeout", Text, "DURATION"): Duration = Duration::from_secs(20);
    /// Whether the registry API may delete tags, manifests and blobs.
    deletes("deletes", Text, "true|false"): Toggle = Toggle(true);
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,shoal_engine=debug`.
    log("log", Text, "FILTER"): String = "info".to_owned();
    /// How logs look: `human` or `json`.
    log_format("log-format", Text, "FORMAT"): LogFormat = LogFormat::Human;
    /// Collector to which traces of pulls are sent by OTLP over HTTP, as in `http://127.0.0.1:4318`; without it there are
    /// none. Headers it asks for, such as a token, are taken from the variable `OTEL_EXPORTER_OTLP_HEADERS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp("otlp", Text, "URL"): Option<String> = None;
    /// Share of the requests at the registry API that are traced, from 0 to 1. A request whose `traceparent` header says whether
    /// it is sampled is as that says, and so is what one process does for another.
    trace_sample("trace-sample", Share, "SHARE"): f64 = 0.01;
}

/// A list, of which one alone may be written without brackets.
fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum Either {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::One(one) => vec![one],
        Either::Many(many) => many,
    })
}

/// A yes or no that defaults to yes, so that it is written with a value everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Toggle(pub bool);

impl<'de> Deserialize<'de> for Toggle {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Toggle;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true or false")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Toggle, E> {
                Ok(Toggle(value))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Toggle, E> {
                text.parse()
                    .map(Toggle)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// How logs look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Human,
    /// A JSON object a line.
    Json,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML: {message}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A value has the wrong form, or a key is unknown.
    #[error("bad configuration: {0}")]
    Value(String),
    /// Settings contradict each other.
    #[error("bad configuration: {0}")]
    Conflict(String),
}

impl Config {
    /// Puts the layers together and checks the result.
    ///
    /// `file` is the file named by the user, `variables` the process's environment, `flags` the values given on the
    /// command line by key name (a switch as `true`).
    ///
    /// # Errors
    /// [`ConfigError`], whose text names the key and says what to do.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        flags: &BTreeMap<&'static str, Vec<String>>,
    ) -> Result<Self, ConfigError> {
        let mut table = match file {
            Some(path) => read_file(path)?,
            None => toml::Table::new(),
        };
        // The file on its own first, so that an error is blamed on it.
        let own: Result<Self, _> = table.clone().try_into();
        own.map_err(|error: toml::de::Error| {
            let place = file.map(|path| format!("{}: ", path.display())).unwrap_or_default();
            ConfigError::Value(format!("{place}{}", one_line(&error.to_string())))
        })?;
        let variables: BTreeMap<String, String> = variables.into_iter().collect();
        for key in KEYS {
            if let Some(value) = variables.get(&key.variable()) {
                let values = match key.kind {
                    KeyKind::List => value.split(',').map(|part| part.trim().to_owned()).collect(),
                    _ => vec![value.clone()],
                };
                overlay(&mut table, key, &key.variable(), &values)?;
            }
            if let Some(values) = flags.get(key.name) {
                overlay(&mut table, key, &format!("--{}", key.name), values)?;
            }
        }
        let config: Self = table
            .try_into()
            .map_err(|error: toml::de::Error| ConfigError::Value(one_line(&error.to_string())))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let conflict = |text: &str| Err(ConfigError::Conflict(text.to_owned()));
        if self.replicas == 0 {
            return conflict("replicas must be at least 1: a push has to be kept somewhere");
        }
        if self.renewal_key.is_some() && !self.origin {
            return conflict(
                "renewal-key is set, but only origins are asked to renew: set origin = true as well",
            );
        }
        if self.origin && self.backend.is_empty() {
            return conflict("an origin needs a backend: set backend, for instance --backend fs:/srv/shoal");
        }
        if !self.origin && !self.backend.is_empty() {
            return conflict("backend is set, but only an origin has one: set origin = true as well");
        }
        if !self.origin && !self.replicate.is_empty() {
            return conflict("replicate is set, but only an origin replicates: set origin = true as well");
        }
        for rule in &self.backend {
            if let Err(error) = rule.parse::<shoal_origin::BackendRule>() {
                return Err(ConfigError::Value(format!("backend: {error}")));
            }
        }
        for upstream in &self.upstream {
            if let Err(error) = upstream.parse::<UpstreamRule>() {
                return Err(ConfigError::Value(format!("upstream: {error}")));
            }
        }
        for pattern in &self.immutable_tag {
            if let Err(error) = whole(pattern) {
                // The error's own text draws the pattern and an arrow; its last line says what is wrong.
                let error = error.to_string();
                let why = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                return Err(ConfigError::Value(format!("immutable-tag: {pattern:?} is no pattern: {why}")));
            }
        }
        if self.hub_mirror.is_some() && !self.upstreams().iter().any(|rule| rule.host() == DOCKER_HUB) {
            return conflict("hub-mirror is set, but upstream has no docker.io: add it");
        }
        if self.buffer_memory.as_u64() < 16 << 20 {
            return conflict("buffer-memory must be at least 16MiB: four pieces of the largest size");
        }
        if self.listen.is_empty() {
            return conflict("listen is empty: the control plane needs at least one multiaddr");
        }
        if self.gateway_tls_cert.is_some() != self.gateway_tls_key.is_some() {
            return conflict(
                "gateway-tls-cert and gateway-tls-key go together: set both, or neither for plain HTTP",
            );
        }
        if self.gateway_tls_client_ca.is_some() && self.gateway_tls_cert.is_none() {
            return conflict(
                "gateway-tls-client-ca needs gateway-tls-cert: certificates are shown over TLS only",
            );
        }
        if let Some(url) = &self.otlp
            && !is_http(url)
        {
            return Err(ConfigError::Value(format!(
                "otlp: {url:?} is no http:// or https:// URL, as in http://127.0.0.1:4318"
            )));
        }
        if !(0.0..=1.0).contains(&self.trace_sample) {
            return conflict("trace-sample must be between 0, for none, and 1, for all");
        }
        if self.connections_max < 8 {
            return conflict("connections-max must be at least 8");
        }
        Ok(())
    }

    /// The registries that are pulled through. Those that do not parse are left out; [`Config::load`] refuses them.
    pub fn upstreams(&self) -> Vec<UpstreamRule> {
        self.upstream.iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// The tags that are immutable. Patterns that do not parse are left out; [`Config::load`] refuses them.
    pub fn immutable_tags(&self) -> Vec<Regex> {
        self.immutable_tag.iter().filter_map(|pattern| whole(pattern).ok()).collect()
    }

    /// The settings' reference as Markdown: `docs/CONFIGURATION.md`.
    pub fn reference() -> String {
        let defaults = toml::Table::try_from(Self::default()).unwrap_or_default();
        let mut text = String::from(REFERENCE_HEAD);
        for key in KEYS {
            let default =
                defaults.get(key.name).map_or_else(|| "none".to_owned(), |value| format!("`{value}`"));
            let flag = match key.kind {
                KeyKind::Switch => format!("--{}", key.name),
                KeyKind::List => format!("--{} {} (repeatable)", key.name, key.value_name),
                _ => format!("--{} {}", key.name, key.value_name),
            };
            text.push_str(&format!(
                "\n## `{}`\n\n{}\n\nFlag `{flag}`, variable `{}`, default {default}.\n",
                key.name,
                key.help(),
                key.variable()
            ));
        }
        text
    }
}

const REFERENCE_HEAD: &str = "# Configuration

Generated from the settings' definitions in `node/daemon/src/config.rs`; a test checks that it is fresh
(`SHOAL_WRITE_DOCS=1 cargo test -p shoal-daemon reference` writes it).

Every setting is a key in the TOML file given by `--config FILE`, a flag, and a `SHOAL_*` variable. A flag wins over a
variable, a variable over the file. Sizes are written like `64MiB`, durations like `30s`; rates are sizes a second.
";

fn is_http(url: &str) -> bool {
    url.parse::<axum::http::Uri>()
        .is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
}

fn read_file(path: &Path) -> Result<toml::Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        message: one_line(&error.to_string()),
    })
}

fn overlay(table: &mut toml::Table, key: &Key, from: &str, values: &[String]) -> Result<(), ConfigError> {
    use toml::Value;
    let last = values.last().map_or("", String::as_str);
    let value = match key.kind {
        KeyKind::Text => Value::String(last.to_owned()),
        KeyKind::List => Value::Array(values.iter().cloned().map(Value::String).collect()),
        KeyKind::Number => Value::Integer(
            last.parse()
                .map_err(|_| ConfigError::Value(format!("{from}: {last:?} is not a whole number")))?,
        ),
        KeyKind::Share => Value::Float(
            last.parse().map_err(|_| ConfigError::Value(format!("{from}: {last:?} is not a number")))?,
        ),
        KeyKind::Switch => Value::Boolean(
            last.parse().map_err(|_| ConfigError::Value(format!("{from}: {last:?} is not true or false")))?,
        ),
    };
    // The one value on its own, so that an error is blamed on the flag or variable.
    let mut alone = toml::Table::new();
    alone.insert(key.name.to_owned(), value.clone());
    let checked: Result<Config, toml::de::Error> = alone.try_into();
    checked.map_err(|error| {
        ConfigError::Value(format!("{from} {:?}: {}", values.join(","), one_line(error.message())))
    })?;
    table.insert(key.name.to_owned(), value);
    Ok(())
}

/// An error is one line: TOML's own show the source in several.
fn one_line(text: &str) -> String {
    text.split('\n').map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// A pattern for the whole of a text.
fn whole(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!("^(?:{pattern})$"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(
        file: &str,
        variables: &[(&str, &str)],
        flags: &[(&'static str, &str)],
    ) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shoal.toml");
        std::fs::write(&path, file).unwrap();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut map: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        for (name, value) in flags {
            map.entry(name).or_default().push((*value).to_owned());
        }
        Config::load(Some(&path), variables, &map)
    }

    #[test]
    fn later_layers_win() {
        let file = "replicas = 2\nrate-out = \"8MiB\"\nsearch-patience = \"3s\"\nbootstrap = [\"/ip4/10.0.0.1/tcp/1\"]";
        let config = load(file, &[("SHOAL_REPLICAS", "3")], &[]).unwrap();
        assert_eq!((config.replicas, config.rate_out), (3, Some(ByteSize::mib(8))));
        assert_eq!(config.search_patience, Duration::from_secs(3));
        let config = load(file, &[("SHOAL_REPLICAS", "3")], &[("replicas", "4")]).unwrap();
        assert_eq!(config.replicas, 4);
        let config = load(file, &[("SHOAL_BOOTSTRAP", "a, b")], &[]).unwrap();
        assert_eq!(config.bootstrap, ["a", "b"]);
        let config =
            load(file, &[], &[("bootstrap", "x"), ("bootstrap", "y"), ("deletes", "false")]).unwrap();
        assert_eq!((config.bootstrap, config.deletes), (vec!["x".to_owned(), "y".to_owned()], Toggle(false)));
    }

    #[test]
    fn errors_are_one_line_that_names_the_culprit() {
        let line = |result: Result<Config, ConfigError>| {
            let text = result.unwrap_err().to_string();
            assert_eq!(text.lines().count(), 1, "{text}");
            text
        };
        assert!(line(load("replica = 2", &[], &[])).contains("replica"));
        assert!(line(load("replicas = [", &[], &[])).contains("shoal.toml"));
        assert!(line(load("", &[("SHOAL_RATE_IN", "fast")], &[])).contains("SHOAL_RATE_IN"));
        assert!(line(load("", &[], &[("replicas", "many")])).contains("--replicas"));
        assert!(line(load("", &[], &[("zone", "EU!")])).contains("--zone"));
        assert!(line(load("origin = true", &[], &[])).contains("backend"));
        assert!(line(load("replicas = 0", &[], &[])).contains("replicas"));
        let origin = |backend: &str| line(load(&format!("origin = true\nbackend = {backend}"), &[], &[]));
        assert!(origin("\"s3://b?path-stile=true\"").contains("path-style"));
        assert!(origin("[\"a=fs:/x\", \"ftp:/x\"]").contains("ftp"));
        assert!(origin("7").contains("a text or a list"));
        assert!(line(load("upstream = \"s3://x\"", &[], &[])).contains("upstream"));
        assert!(line(load("immutable-tag = \"prod/(\"", &[], &[])).contains("immutable-tag"));
        assert!(line(load("hub-mirror = \"127.0.0.1:1\"", &[], &[])).contains("docker.io"));
    }

    #[test]
    fn one_backend_or_several() {
        let one = load("origin = true\nbackend = \"fs:/a\"", &[], &[]).unwrap();
        assert_eq!(one.backend, ["fs:/a"]);
        let flags = [("backend", "prod/.*=s3://b?region=x"), ("backend", "fs:/a")];
        let two = load("origin = true\nbackend = \"fs:/z\"", &[], &flags).unwrap();
        assert_eq!(two.backend, ["prod/.*=s3://b?region=x", "fs:/a"]);
    }

    #[test]
    fn traces_need_a_collectors_url_and_a_share() {
        let load = |name: &'static str, value: &str| {
            Config::load(None, [], &BTreeMap::from([(name, vec![value.to_owned()])]))
        };
        assert_eq!(
            load("otlp", "http://127.0.0.1:4318").unwrap().otlp.as_deref(),
            Some("http://127.0.0.1:4318")
        );
        assert!(load("otlp", "127.0.0.1:4318").unwrap_err().to_string().contains("otlp"));
        assert_eq!(load("trace-sample", "0.25").unwrap().trace_sample, 0.25);
        for bad in ["2", "-0.1", "NaN", "all"] {
            assert!(load("trace-sample", bad).unwrap_err().to_string().contains("trace-sample"), "{bad}");
        }
    }

    #[test]
    fn the_reference_is_fresh() {
        let path = Path::new("../../docs/CONFIGURATION.md");
        if std::env::var_os("SHOAL_WRITE_DOCS").is_some() {
            std::fs::write(path, Config::reference()).unwrap();
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(there, Config::reference(), "run SHOAL_WRITE_DOCS=1 cargo test -p shoal-daemon reference");
    }
}
