//! The access file: who may do what at the registry API, in TOML.

use std::path::{Path, PathBuf};

use http::Uri;
use serde::Deserialize;

use super::keys::{KeyError, KeySource};
use super::passwords::{HtpasswdError, Passwords};
use super::rules::{Action, Rule, RuleError};
use super::tokens::{Grants, Issuer};

/// Longest access or htpasswd file in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Most rules, and most issuers.
const ENTRIES_MAX: usize = 1000;

/// Why an access file is refused. Each text is one line that names the file.
#[derive(Debug, thiserror::Error)]
pub enum AccessFileError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is too long to be what it should be.
    #[error("{0} has more than {FILE_BYTES_MAX} bytes")]
    TooLong(PathBuf),
    /// The file is not TOML, or a key is unknown.
    #[error("{path}: {why}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        why: String,
    },
    /// A rule is wrong.
    #[error("{path}: rule {number}: {source}")]
    Rule {
        /// Which file.
        path: PathBuf,
        /// Which of its rules, from 1.
        number: usize,
        /// Why.
        source: RuleError,
    },
    /// An issuer is wrong.
    #[error("{path}: issuer {name:?}: {why}")]
    Issuer {
        /// Which file.
        path: PathBuf,
        /// Which issuer.
        name: String,
        /// Why.
        why: String,
    },
    /// The htpasswd file is wrong.
    #[error("{path}: {source}")]
    Htpasswd {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: HtpasswdError,
    },
    /// The file says nothing that could let anybody in, or contradicts itself.
    #[error("{path}: {why}")]
    Contradiction {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Raw {
    htpasswd: Option<PathBuf>,
    #[serde(default)]
    passwords_in_the_clear: bool,
    #[serde(default, rename = "issuer")]
    issuers: Vec<RawIssuer>,
    #[serde(default, rename = "rule")]
    rules: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawRule {
    who: Vec<String>,
    #[serde(default = "everything")]
    repositories: String,
    allow: Vec<Action>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawIssuer {
    name: String,
    issuer: String,
    audience: Vec<String>,
    keys: Option<String>,
    ca: Option<PathBuf>,
    #[serde(default)]
    grants: Grants,
    realm: Option<String>,
    service: Option<String>,
}

fn everything() -> String {
    ".*".to_owned()
}

/// What an access file says, with all that it refers to.
pub(crate) struct Policy {
    pub(crate) rules: Vec<Rule>,
    pub(crate) passwords: Option<Passwords>,
    pub(crate) issuers: Vec<Issuer>,
    /// Passwords and tokens may be sent over connections that are not encrypted, from other machines too.
    pub(crate) in_the_clear: bool,
    /// The bytes of the files it was made from, hashed.
    pub(crate) fingerprint: blake3::Hash,
}

impl Policy {
    /// Reads an access file and the files it names, relative to its own directory.
    pub(crate) fn load(path: &Path) -> Result<Self, AccessFileError> {
        let text = read(path)?;
        Self::parse(path, &text, read)
    }

    /// The same of the access file's text; `read_users` reads the htpasswd file it names.
    fn parse(
        path: &Path,
        text: &str,
        read_users: impl Fn(&Path) -> Result<String, AccessFileError>,
    ) -> Result<Self, AccessFileError> {
        let raw: Raw = toml::from_str(text).map_err(|error| AccessFileError::Syntax {
            path: path.to_owned(),
            why: one_line(&error.to_string()),
        })?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let htpasswd = raw.htpasswd.as_ref().map(|file| dir.join(file));
        let passwords_text = htpasswd.as_deref().map(read_users).transpose()?;
        let fingerprint = fingerprint(text, passwords_text.as_deref());
        let contradiction =
            |why: &str| AccessFileError::Contradiction { path: path.to_owned(), why: why.to_owned() };
        if raw.rules.len() > ENTRIES_MAX || raw.issuers.len() > ENTRIES_MAX {
            return Err(contradiction("more than a thousand rules or issuers"));
        }
        let passwords = match (&htpasswd, passwords_text) {
            (Some(file), Some(text)) => Some(
                text.parse().map_err(|source| AccessFileError::Htpasswd { path: file.clone(), source })?,
            ),
            _ => None,
        };
        let rules = raw.rules.into_iter().enumerate().map(|(index, rule)| {
            Rule::new(&rule.who, &rule.repositories, rule.allow).map_err(|source| AccessFileError::Rule {
                path: path.to_owned(),
                number: index + 1,
                source,
            })
        });
        let rules: Vec<Rule> = rules.collect::<Result<_, _>>()?;
        let issuers = raw.issuers.into_iter().map(|issuer| make_issuer(issuer, path, dir));
        let issuers: Vec<Issuer> = issuers.collect::<Result<_, _>>()?;
        if rules.is_empty() && issuers.iter().all(|issuer| issuer.grants != Grants::Token) {
            return Err(contradiction("nobody may do anything: add a [[rule]]"));
        }
        if issuers.iter().filter(|issuer| issuer.realm.is_some()).count() > 1 {
            return Err(contradiction(
                "a client can be sent to one token server: set realm for one issuer only",
            ));
        }
        let mut names: Vec<_> = issuers.iter().map(|issuer| issuer.name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(contradiction("two issuers have the same name"));
        }
        Ok(Self { rules, passwords, issuers, in_the_clear: raw.passwords_in_the_clear, fingerprint })
    }

    /// Whether any file has changed since; an unreadable one has.
    pub(crate) fn is_stale(&self, path: &Path) -> bool {
        let now = || -> Option<blake3::Hash> {
            let text = read(path).ok()?;
            let raw: Raw = toml::from_str(&text).ok()?;
            let dir = path.parent().unwrap_or(Path::new("."));
            let passwords = raw.htpasswd.map(|file| read(&dir.join(file))).transpose().ok()?;
            Some(fingerprint(&text, passwords.as_deref()))
        };
        now() != Some(self.fingerprint)
    }
}

#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(text: &str) {
    let _ = Policy::parse(Path::new("/nowhere/access.toml"), text, |_| Ok("# nobody\n".to_owned()));
}

fn make_issuer(raw: RawIssuer, path: &Path, dir: &Path) -> Result<Issuer, AccessFileError> {
    let wrong = |why: String| AccessFileError::Issuer { path: path.to_owned(), name: raw.name.clone(), why };
    if raw.name.is_empty() || raw.name.contains('/') {
        return Err(wrong("name must not be empty or contain a slash".to_owned()));
    }
    if raw.audience.is_empty() {
        return Err(wrong("audience is empty: a token for another service would be taken".to_owned()));
    }
    if raw.realm.is_some() != raw.service.is_some() {
        return Err(wrong("realm and service go together".to_owned()));
    }
    if raw.realm.as_ref().is_some_and(|realm| realm.parse::<Uri>().is_err() || realm.contains('"')) {
        return Err(wrong("realm is not a URL".to_owned()));
    }
    let ca = raw.ca.as_ref().map(|file| dir.join(file));
    let keys = KeySource::parse(raw.keys.as_deref(), &raw.issuer, dir, ca.as_deref())
        .map_err(|error: KeyError| wrong(error.to_string()))?;
    Ok(Issuer {
        name: raw.name,
        issuer: raw.issuer,
        audience: raw.audience,
        grants: raw.grants,
        realm: raw.realm.zip(raw.service),
        keys,
    })
}

pub(crate) fn read(path: &Path) -> Result<String, AccessFileError> {
    let failed = |source| AccessFileError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(AccessFileError::TooLong(path.to_owned()));
    }
    std::fs::read_to_string(path).map_err(failed)
}

fn fingerprint(text: &str, passwords: Option<&str>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text.as_bytes());
    hasher.update(passwords.unwrap_or_default().as_bytes());
    hasher.finalize()
}

/// An error is one line: TOML's own show the source in several, and the source may hold secrets one day.
fn one_line(text: &str) -> String {
    let said = text.lines().filter(|line| !line.contains('|')).map(str::trim).filter(|line| !line.is_empty());
    said.collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Policy, AccessFileError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.toml");
        std::fs::write(&path, text).unwrap();
        Policy::load(&path)
    }

    #[test]
    fn bad_files_are_one_line_that_names_the_culprit() {
        let rule = "[[rule]]\nwho = [\"anyone\"]\nallow = [\"pull\"]\n";
        let issuer = "[[issuer]]\nname = \"a\"\nissuer = \"https://a.example\"\n";
        for (text, named) in [
            (String::new(), "[[rule]]"),
            ("rule = 1".to_owned(), "line 1"),
            ("[[rule]]\nwho = [\"anyone\"]\nallow = [\"fly\"]".to_owned(), "fly"),
            ("[[rule]]\nwho = [\"alice\"]\nallow = [\"pull\"]".to_owned(), "rule 1"),
            (format!("htpasswd = \"none\"\n{rule}"), "none"),
            (format!("{rule}{issuer}audience = []"), "audience"),
            (format!("{rule}{issuer}audience = [\"x\"]\nkeys = \"http://keys.example/jwks\""), "http"),
            (format!("{rule}{issuer}audience = [\"x\"]\nrealm = \"https://a.example/token\""), "service"),
        ] {
            let error = load(&text).err().unwrap_or_else(|| panic!("accepted: {text}")).to_string();
            assert!(error.contains(named), "{text}: {error}");
            // A file that it names and that cannot be read is the culprit itself.
            assert!(error.contains("access.toml") || named == "none", "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn a_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.toml");
        let hash = |salt| bcrypt::hash_with_salt("x", 4, [salt; 16]).unwrap();
        std::fs::write(dir.path().join("users"), format!("a:{}\n", hash(1))).unwrap();
        let text = "htpasswd = \"users\"\n[[rule]]\nwho = [\"user:a\"]\nallow = [\"pull\"]\n";
        std::fs::write(&path, text).unwrap();
        let policy = Policy::load(&path).unwrap();
        assert!(!policy.is_stale(&path));
        std::fs::write(dir.path().join("users"), format!("a:{}\n", hash(2))).unwrap();
        assert!(policy.is_stale(&path));
        let policy = Policy::load(&path).unwrap();
        std::fs::write(&path, format!("{text}# more\n")).unwrap();
        assert!(policy.is_stale(&path));
    }
}
