//! Backends as users write them: `[PATTERN=]SCHEME://PLACE[?OPTION=VALUE&…]`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// `max-age` of a registry that does not say: a tag that moved upstream is seen within a minute, and a roll-out of ten
/// thousand machines asks upstream a few times (Docker Hub counts manifests per six hours and account).
const MAX_AGE: Duration = Duration::from_secs(60);

/// What an option does, for messages and documentation.
pub type OptionHelp = (&'static str, &'static str);

/// Options of every backend.
pub const COMMON_OPTIONS: &[OptionHelp] = &[
    ("rate-in", "most bytes a second read from it, as in `100MiB`"),
    ("rate-out", "most bytes a second written to it"),
    ("must-be-ready", "`true`: the process is not ready (`/readyz`) while it does not answer"),
];

/// Options of backends that keep what is pushed.
pub const WRITE_OPTIONS: &[OptionHelp] = &[(
    "write",
    "`through` (a push is answered when it has the blob; the default) or `back` (it gets the blob afterwards)",
)];

/// The kinds of backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    /// A directory.
    Fs,
    /// Amazon S3 and what speaks like it.
    S3,
    /// Azure Blob Storage.
    Azblob,
    /// Google Cloud Storage.
    Gcs,
    /// HDFS over WebHDFS.
    Webhdfs,
    /// Another registry, read through.
    Registry,
    /// Any web server, read only, by `http`.
    Http,
    /// The same by `https`.
    Https,
}

impl Scheme {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Fs, Self::S3, Self::Azblob, Self::Gcs, Self::Webhdfs, Self::Registry, Self::Http, Self::Https];

    /// As it is written before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fs => "fs",
            Self::S3 => "s3",
            Self::Azblob => "azblob",
            Self::Gcs => "gcs",
            Self::Webhdfs => "webhdfs",
            Self::Registry => "registry",
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Whether it keeps what is pushed.
    pub fn is_writable(self) -> bool {
        !matches!(self, Self::Registry | Self::Http | Self::Https)
    }

    /// Its own options, beside [`COMMON_OPTIONS`] and [`WRITE_OPTIONS`].
    pub fn options(self) -> &'static [OptionHelp] {
        match self {
            Self::Fs => &[],
            Self::S3 => &[
                ("endpoint", "URL of a server other than Amazon's (MinIO, Garage, Ceph, …)"),
                ("region", "region; otherwise that of the environment or profile"),
                ("profile", "profile of the AWS configuration files"),
                ("path-style", "`true`: the bucket is in the path, not in the host's name"),
                ("storage-class", "storage class of blobs, as in `INTELLIGENT_TIERING`"),
                ("sse", "server-side encryption: `AES256` or `aws:kms`"),
                ("sse-kms-key", "id of the key for `sse=aws:kms`"),
                ("checksums", "`false` for servers that refuse the checksums of newer clients"),
                ("part-size", "size of the parts of a large upload (default `8MiB`)"),
                ("concurrency", "parts in flight, and in memory, at once (default 4)"),
                ("ca", "file with the certificates (PEM) that the server's is checked against"),
            ],
            Self::Azblob => &[
                ("endpoint", "URL of the account, as in `https://ACCOUNT.blob.core.windows.net`"),
                ("account", "account; otherwise `AZURE_STORAGE_ACCOUNT_NAME` or that of the endpoint"),
                ("concurrency", "parts in flight, and in memory, at once (default 4)"),
            ],
            Self::Gcs => &[
                ("endpoint", "URL of a server other than Google's"),
                ("anonymous", "`true`: no credentials"),
                ("storage-class", "storage class of blobs, as in `NEARLINE`"),
                ("concurrency", "parts in flight, and in memory, at once (default 4)"),
            ],
            Self::Webhdfs => &[
                ("user", "user name, where HDFS does not authenticate"),
                ("tls", "`true`: HTTPS"),
                ("delegation-file", "file with a delegation token"),
            ],
            Self::Registry => &[
                ("strip", "what names here begin with and upstream's do not, as in `docker.io`"),
                ("ns", "namespace that a mirror is asked for (`?ns=`), as in `docker.io`"),
                ("plain-http", "`true`: no TLS"),
                (
                    "max-age",
                    "how long a tag is taken to name what it named before the registry is asked again (default `1m`)",
                ),
                ("ca", "file with the certificates (PEM) that the server's is checked against"),
                ("client-cert", "file with a client certificate and its key (PEM)"),
                (
                    "docker-config",
                    "file with credentials, as docker writes it (default `~/.docker/config.json`)",
                ),
            ],
            Self::Http | Self::Https => &[
                ("ca", "file with the certificates (PEM) that the server's is checked against"),
                ("client-cert", "file with a client certificate and its key (PEM)"),
            ],
        }
    }

    fn knows(self, option: &str) -> bool {
        let own = self.options().iter().chain(COMMON_OPTIONS);
        let write: &[OptionHelp] = if self.is_writable() { WRITE_OPTIONS } else { &[] };
        own.chain(write).any(|(name, _)| *name == option)
    }
}

/// Where a backend is and how it is used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendUrl {
    /// Its kind.
    pub scheme: Scheme,
    /// What stands between the scheme and the options: a directory, `BUCKET/PREFIX`, `HOST:PORT/PATH`.
    pub place: String,
    /// The options, all of them known to the scheme.
    pub options: BTreeMap<String, String>,
}

/// Why a text is not a backend's URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendUrlError {
    /// It has no scheme, or one that is not known.
    #[error(
        "{0:?} is not a backend: expected fs:/absolute/path, s3://BUCKET/PREFIX, azblob://CONTAINER/PREFIX, \
         gcs://BUCKET/PREFIX, webhdfs://HOST:PORT/PATH, registry://HOST/PREFIX or https://HOST/PATH/{{digest}}"
    )]
    Scheme(String),
    /// The path is not absolute.
    #[error("the path of {0:?} must be absolute, as in fs:/srv/shoal")]
    Path(String),
    /// The place is missing.
    #[error("{0} needs {1}")]
    Place(String, &'static str),
    /// There is a user name or password in it.
    #[error(
        "the backend at {0} has credentials in its URL: put them into the environment or a file, where they stay secret"
    )]
    Secret(String),
    /// An option is not known.
    #[error("{url} has no option {option:?}; it has {known}")]
    Option {
        /// The URL without its options.
        url: String,
        /// The option.
        option: String,
        /// Those there are.
        known: String,
    },
    /// An option's value has the wrong form.
    #[error("the option {option}={value} of {url} must be {expected}")]
    Value {
        /// The URL without its options.
        url: String,
        /// The option.
        option: String,
        /// Its value.
        value: String,
        /// What would be right.
        expected: String,
    },
}

/// When a push has reached the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteMode {
    /// Before it is answered.
    #[default]
    Through,
    /// Some time after: the blob is queued on the origin's disk.
    Back,
}

impl FromStr for BackendUrl {
    type Err = BackendUrlError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || BackendUrlError::Scheme(shown(text));
        let (scheme, rest) = text.split_once(':').ok_or_else(unknown)?;
        let scheme = Scheme::ALL.into_iter().find(|known| known.name() == scheme).ok_or_else(unknown)?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let place = place_of(scheme, text, place)?;
        let mut url = Self { scheme, place, options: BTreeMap::new() };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (option, value) = pair.split_once('=').unwrap_or((pair, "true"));
            if !scheme.knows(option) {
                let write: &[OptionHelp] = if scheme.is_writable() { WRITE_OPTIONS } else { &[] };
                let known = scheme.options().iter().chain(COMMON_OPTIONS).chain(write);
                let known = known.map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
                return Err(BackendUrlError::Option {
                    url: url.to_string(),
                    option: option.to_owned(),
                    known,
                });
            }
            url.options.insert(option.to_owned(), decode(value));
        }
        url.check()?;
        Ok(url)
    }
}

/// The text without what may be secret.
fn shown(text: &str) -> String {
    crate::text::scrub(text)
}

fn place_of(scheme: Scheme, text: &str, place: &str) -> Result<String, BackendUrlError> {
    if scheme == Scheme::Fs {
        // With two slashes a host would follow, so only an empty one will do.
        let path = place.strip_prefix("//").unwrap_or(place);
        if !path.starts_with('/') {
            return Err(BackendUrlError::Path(text.to_owned()));
        }
        return Ok(path.to_owned());
    }
    let place = place.strip_prefix("//").ok_or_else(|| BackendUrlError::Scheme(shown(text)))?;
    let authority = place.split('/').next().unwrap_or_default();
    if authority.contains('@') {
        return Err(BackendUrlError::Secret(shown(text)));
    }
    let what = match scheme {
        Scheme::S3 | Scheme::Gcs => "a bucket, as in s3://BUCKET/PREFIX",
        Scheme::Azblob => "a container, as in azblob://CONTAINER/PREFIX",
        _ => "a host, as in registry://HOST:PORT",
    };
    if authority.is_empty() {
        return Err(BackendUrlError::Place(shown(text), what));
    }
    if matches!(scheme, Scheme::Http | Scheme::Https)
        && !place.contains("{digest}")
        && !place.contains("{hex}")
    {
        let what = "{digest} (sha256:…) or {hex} in its path: what is asked for stands there";
        return Err(BackendUrlError::Place(shown(text), what));
    }
    let place =
        if matches!(scheme, Scheme::Http | Scheme::Https) { place } else { place.trim_end_matches('/') };
    Ok(place.to_owned())
}

/// `%2F` and the like.
fn decode(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail.get(..2).filter(|_| *first == b'%').and_then(|hex| {
            let hex = std::str::from_utf8(hex).ok()?;
            u8::from_str_radix(hex, 16).ok()
        });
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl fmt::Display for BackendUrl {
    /// Without the options.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slashes = if self.scheme == Scheme::Fs { "" } else { "//" };
        write!(f, "{}:{slashes}{}", self.scheme.name(), self.place)
    }
}

impl BackendUrl {
    /// A directory.
    pub fn fs(path: &std::path::Path) -> Self {
        Self { scheme: Scheme::Fs, place: path.display().to_string(), options: BTreeMap::new() }
    }

    fn check(&self) -> Result<(), BackendUrlError> {
        for size in ["rate-in", "rate-out", "part-size"] {
            self.size(size)?;
        }
        for switch in ["must-be-ready", "path-style", "checksums", "anonymous", "tls", "plain-http"] {
            self.switch(switch)?;
        }
        self.concurrency()?;
        self.write_mode()?;
        self.max_age()?;
        match self.option("sse") {
            None | Some("AES256" | "aws:kms") => {}
            Some(_) => return Err(self.bad_value("sse", "AES256 or aws:kms")),
        }
        Ok(())
    }

    /// An option's text.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// The place's first part, and the rest without slashes around it.
    pub fn split_place(&self) -> (&str, &str) {
        let (first, rest) = self.place.split_once('/').unwrap_or((&self.place, ""));
        (first, rest.trim_matches('/'))
    }

    /// The directory of a backend that is one.
    pub fn directory(&self) -> Option<PathBuf> {
        (self.scheme == Scheme::Fs).then(|| self.path())
    }

    /// A directory's path.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(&self.place)
    }

    /// When a push has reached it.
    ///
    /// # Errors
    /// [`BackendUrlError::Value`].
    pub fn write_mode(&self) -> Result<WriteMode, BackendUrlError> {
        match self.option("write") {
            None | Some("through") => Ok(WriteMode::Through),
            Some("back") => Ok(WriteMode::Back),
            Some(_) => Err(self.bad_value("write", "through or back")),
        }
    }

    /// Whether the process is not ready without it.
    pub fn must_be_ready(&self) -> bool {
        self.switch("must-be-ready").ok().flatten().unwrap_or(false)
    }

    pub(crate) fn size(&self, name: &str) -> Result<Option<u64>, BackendUrlError> {
        let parse = |text: &str| {
            let size =
                text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()).filter(|size| *size > 0);
            size.ok_or_else(|| self.bad_value(name, "a size, as in 64MiB"))
        };
        self.option(name).map(parse).transpose()
    }

    /// How long a tag of a registry is taken to name what it named before the registry is asked again.
    ///
    /// # Errors
    /// [`BackendUrlError::Value`].
    pub fn max_age(&self) -> Result<Duration, BackendUrlError> {
        let parse = |text: &str| {
            humantime::parse_duration(text).map_err(|_| self.bad_value("max-age", "a duration, as in 5m"))
        };
        Ok(self.option("max-age").map(parse).transpose()?.unwrap_or(MAX_AGE))
    }

    pub(crate) fn switch(&self, name: &str) -> Result<Option<bool>, BackendUrlError> {
        let parse = |text: &str| text.parse().map_err(|_| self.bad_value(name, "true or false"));
        self.option(name).map(parse).transpose()
    }

    pub(crate) fn is_on(&self, name: &str) -> bool {
        self.switch(name).ok().flatten().unwrap_or(false)
    }

    pub(crate) fn concurrency(&self) -> Result<usize, BackendUrlError> {
        let parse = |text: &str| {
            let number = text.parse().ok().filter(|number| (1..=64).contains(number));
            number.ok_or_else(|| self.bad_value("concurrency", "a number from 1 to 64"))
        };
        Ok(self.option("concurrency").map(parse).transpose()?.unwrap_or(4))
    }

    fn bad_value(&self, option: &str, expected: &str) -> BackendUrlError {
        let value = self.option(option).unwrap_or_default().to_owned();
        BackendUrlError::Value {
            url: self.to_string(),
            option: option.to_owned(),
            value,
            expected: expected.to_owned(),
        }
    }
}

/// Repositories and the backend that keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendRule {
    /// A regular expression that the whole of a repository's name must match.
    pub pattern: String,
    /// Their backend.
    pub url: BackendUrl,
}

impl FromStr for BackendRule {
    type Err = BackendUrlError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_url = Scheme::ALL
            .iter()
            .any(|scheme| text.strip_prefix(scheme.name()).is_some_and(|rest| rest.starts_with(':')));
        // No repository's name has an equals sign, so no pattern needs one.
        match text.split_once('=') {
            Some((pattern, url)) if !is_url => Ok(Self { pattern: pattern.to_owned(), url: url.parse()? }),
            _ => Ok(Self { pattern: ".*".to_owned(), url: text.parse()? }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> BackendUrl {
        text.parse().unwrap()
    }

    #[test]
    fn directories() {
        for text in ["fs:/srv/x", "fs:///srv/x"] {
            assert_eq!(url(text).path(), PathBuf::from("/srv/x"));
            assert_eq!(url(text).to_string(), "fs:/srv/x");
        }
        for bad in ["fs:srv", "fs:", "fs://host/x", "fs:./x"] {
            assert_eq!(bad.parse::<BackendUrl>(), Err(BackendUrlError::Path(bad.to_owned())));
        }
        for bad in ["", "/srv", "ftp:/x", "s3", "s3:bucket"] {
            assert_eq!(bad.parse::<BackendUrl>(), Err(BackendUrlError::Scheme(bad.to_owned())));
        }
    }

    #[test]
    fn buckets_and_options() {
        let parsed =
            url("s3://bucket/a/b/?endpoint=http://127.0.0.1:3900&path-style&rate-in=1MiB&write=back");
        assert_eq!(parsed.split_place(), ("bucket", "a/b"));
        assert_eq!(parsed.option("endpoint"), Some("http://127.0.0.1:3900"));
        assert!(parsed.is_on("path-style") && !parsed.must_be_ready());
        assert_eq!(parsed.size("rate-in").unwrap(), Some(1 << 20));
        assert_eq!(parsed.write_mode().unwrap(), WriteMode::Back);
        assert_eq!(parsed.to_string(), "s3://bucket/a/b");
        assert_eq!(url("s3://bucket").split_place(), ("bucket", ""));
        assert_eq!(url("registry://h?ns=a%2fb%").option("ns"), Some("a/b%"));
        assert_eq!(url("https://host/x/{digest}").place, "host/x/{digest}");
    }

    #[test]
    fn mistakes_are_named() {
        let message = |text: &str| text.parse::<BackendUrl>().unwrap_err().to_string();
        assert!(message("s3://b?pathstyle=true").contains("path-style"));
        assert!(message("s3://b?path-style=yes").contains("true or false"));
        assert!(message("s3://b?rate-in=fast").contains("a size"));
        assert!(message("s3://b?concurrency=0").contains("1 to 64"));
        assert!(message("s3://b?sse=none").contains("AES256"));
        assert!(message("registry://h?write=back").contains("no option"));
        assert!(message("s3://").contains("a bucket"));
        assert!(message("https://host/x").contains("{digest}"));
        let secret = message("registry://user:hunter2@host/x");
        assert!(secret.contains("environment") && !secret.contains("hunter2"), "{secret}");
    }

    #[test]
    fn the_documentation_has_every_option() {
        let mut table = String::from("| backends | option | what it does |\n|---|---|---|\n");
        let mut rows = |who: &str, options: &[OptionHelp]| {
            for (name, help) in options {
                table.push_str(&format!("| {who} | `{name}` | {help} |\n"));
            }
        };
        rows("all", COMMON_OPTIONS);
        rows("those that keep pushes", WRITE_OPTIONS);
        for scheme in Scheme::ALL {
            rows(&format!("`{}`", scheme.name()), scheme.options());
        }
        let path = std::path::Path::new("../../docs/STORAGE.md");
        let there = std::fs::read_to_string(path).unwrap();
        let (head, rest) = there.split_once("## Options\n\n").unwrap();
        let (old, tail) = rest.split_once("\n\n").unwrap();
        if std::env::var_os("SHOAL_WRITE_DOCS").is_some() {
            std::fs::write(path, format!("{head}## Options\n\n{}\n\n{tail}", table.trim_end())).unwrap();
            return;
        }
        assert_eq!(old, table.trim_end(), "run SHOAL_WRITE_DOCS=1 cargo test -p shoal-origin documentation");
    }

    #[test]
    fn rules_may_name_their_repositories() {
        let rule: BackendRule = "prod/(?:a|b)=s3://bucket?region=x".parse().unwrap();
        assert_eq!((rule.pattern.as_str(), rule.url.option("region")), ("prod/(?:a|b)", Some("x")));
        let rule: BackendRule = "s3://bucket?region=x".parse().unwrap();
        assert_eq!(rule.pattern, ".*");
        let rule: BackendRule = "fs:/srv/a=b".parse().unwrap();
        assert_eq!(rule.url.path(), PathBuf::from("/srv/a=b"));
        assert!("prod/.*=".parse::<BackendRule>().is_err());
    }
}
