//! Where a registry's credentials come from: docker's configuration file and credential helpers, and for ECR the
//! credentials of AWS. They are read anew every time they are needed, so that they can be changed while the process runs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use data_encoding::BASE64;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;

use super::ecr;
use crate::backend::BackendError;
use crate::text::told_text;

/// How long a helper may take: some ask a cloud.
const HELPER_TIMEOUT: Duration = Duration::from_secs(15);
/// User name by which helpers say that the secret is an identity token (docker/docker-credential-helpers).
const TOKEN_USER: &str = "<token>";
/// The name under which docker keeps Docker Hub's credentials.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// What proves who one is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    Password { user: String, password: String },
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Credentials {
    /// As a header of basic authentication.
    pub(super) fn basic(&self) -> String {
        let pair = match self {
            Self::Password { user, password } => format!("{user}:{password}"),
            Self::IdentityToken(token) => format!("{TOKEN_USER}:{token}"),
        };
        format!("Basic {}", BASE64.encode(pair.as_bytes()))
    }
}

/// Where the credentials of one registry are looked for.
#[derive(Debug)]
pub(super) struct Source {
    host: String,
    file: Option<PathBuf>,
    /// Where helpers are; without it, on the search path.
    helpers: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

#[derive(Deserialize)]
struct Helped {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: String,
}

impl Source {
    pub(super) fn new(host: &str, file: Option<&str>) -> Self {
        Self { host: host.to_owned(), file: file.map(PathBuf::from), helpers: None }
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The credentials, if there are any.
    ///
    /// # Errors
    /// [`BackendError::Denied`] when the file or a helper is broken.
    pub(super) async fn get(&self) -> Result<Option<Credentials>, BackendError> {
        if let Some(found) = self.docker_login().await? {
            return Ok(Some(found));
        }
        match ecr::region_of(&self.host) {
            Some(region) => ecr::credentials(&self.host, region).await.map(Some),
            None => Ok(None),
        }
    }

    async fn docker_login(&self) -> Result<Option<Credentials>, BackendError> {
        let Some(path) = self.file.clone().or_else(default_file) else { return Ok(None) };
        let bytes = match tokio::fs::read(&path).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.file.is_none() => {
                return Ok(None);
            }
            Err(error) => return Err(self.broken(&path, &error.to_string())),
        };
        let config: DockerConfig = serde_json::from_slice(&bytes).map_err(|error| {
            self.broken(&path, &format!("not as docker writes it: line {}", error.line()))
        })?;
        let names = self.names();
        if let Some(helper) = names.iter().find_map(|name| config.helpers.get(name)) {
            return self.helper_login(helper).await;
        }
        if let Some(entry) = names.iter().find_map(|name| config.auths.get(name))
            && let Some(found) = entry.credentials()
        {
            return Ok(Some(found));
        }
        match &config.store {
            Some(helper) => self.helper_login(helper).await,
            None => Ok(None),
        }
    }

    /// The names under which docker may keep this registry's credentials.
    fn names(&self) -> Vec<String> {
        let host = &self.host;
        let mut names = vec![
            host.clone(),
            format!("https://{host}"),
            format!("https://{host}/"),
            format!("http://{host}"),
        ];
        if host == "docker.io" || host.ends_with(".docker.io") {
            names.push(DOCKER_HUB.to_owned());
        }
        names
    }

    async fn helper_login(&self, helper: &str) -> Result<Option<Credentials>, BackendError> {
        let program = format!("docker-credential-{helper}");
        let what = || format!("credentials for {} from {program}", self.host);
        let failed = |why: &str| BackendError::denied(what(), told_text(why));
        let plain = helper.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !plain {
            return Err(failed("that is no helper's name"));
        }
        let server = if self.names().iter().any(|name| name == DOCKER_HUB) { DOCKER_HUB } else { &self.host };
        let run = async {
            let path =
                self.helpers.as_ref().map_or_else(|| PathBuf::from(&program), |dir| dir.join(&program));
            let mut child = tokio::process::Command::new(path)
                .arg("get")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            if let Some(mut input) = child.stdin.take() {
                input.write_all(server.as_bytes()).await?;
            }
            child.wait_with_output().await
        };
        let output =
            tokio::time::timeout(HELPER_TIMEOUT, run).await.map_err(|_| failed("it does not answer"))?;
        let output = output.map_err(|error| failed(&error.to_string()))?;
        if !output.status.success() {
            // A helper's way to say that it knows none.
            let none = String::from_utf8_lossy(&output.stdout).contains("credentials not found");
            return if none { Ok(None) } else { Err(failed(&format!("it ended with {}", output.status))) };
        }
        let helped: Helped =
            serde_json::from_slice(&output.stdout).map_err(|_| failed("its answer is not JSON"))?;
        Ok(Some(if helped.user == TOKEN_USER {
            Credentials::IdentityToken(helped.secret)
        } else {
            Credentials::Password { user: helped.user, password: helped.secret }
        }))
    }

    fn broken(&self, path: &std::path::Path, why: &str) -> BackendError {
        BackendError::denied(format!("credentials for {} in {}", self.host, path.display()), told_text(why))
    }
}

impl Entry {
    fn credentials(&self) -> Option<Credentials> {
        if let Some(token) = self.identity_token.as_ref().filter(|token| !token.is_empty()) {
            return Some(Credentials::IdentityToken(token.clone()));
        }
        if let (Some(user), Some(password)) = (&self.username, &self.password) {
            return Some(Credentials::Password { user: user.clone(), password: password.clone() });
        }
        let pair = BASE64.decode(self.auth.as_ref()?.trim().as_bytes()).ok()?;
        let pair = String::from_utf8(pair).ok()?;
        let (user, password) = pair.split_once(':')?;
        Some(Credentials::Password {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        })
    }
}

fn default_file() -> Option<PathBuf> {
    let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let dir = dir.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker")));
    dir.map(|dir| dir.join("config.json"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
    }

    async fn get(host: &str, config: &str) -> Result<Option<Credentials>, BackendError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, config).unwrap();
        Source::new(host, file.to_str()).get().await
    }

    #[tokio::test]
    async fn docker_s_file() {
        let config = r#"{"auths": {"a.example:5000": {"auth": "dTpwOnc="}, "https://b.example": {"identitytoken": "t"},
            "https://index.docker.io/v1/": {"auth": "aHViOng="}, "c.example": {}}}"#;
        assert_eq!(get("a.example:5000", config).await.unwrap(), password("u", "p:w"));
        assert_eq!(get("b.example", config).await.unwrap(), Some(Credentials::IdentityToken("t".to_owned())));
        assert_eq!(get("registry-1.docker.io", config).await.unwrap(), password("hub", "x"));
        assert_eq!(get("c.example", config).await.unwrap(), None);
        assert_eq!(get("d.example", config).await.unwrap(), None);
    }

    #[tokio::test]
    async fn broken_files_are_told_without_their_content() {
        let error = get("a.example", "{\"auths\": \"hunter2\"}").await.unwrap_err().to_string();
        assert!(error.contains("config.json") && !error.contains("hunter2"), "{error}");
        let missing = Source::new("a.example", Some("/nowhere/config.json")).get().await;
        assert!(matches!(missing, Err(BackendError::Denied { .. })), "{missing:?}");
    }

    #[tokio::test]
    async fn helpers_are_asked() {
        let dir = tempfile::tempdir().unwrap();
        let helper = dir.path().join("docker-credential-shoaltest");
        let script = "#!/bin/sh\nread -r host\n[ \"$host\" = b.example ] && echo '{\"Username\":\"<token>\",\"Secret\":\"t\"}' && exit\n\
                      [ \"$host\" = a.example ] || { echo credentials not found in it; exit 1; }\n\
                      echo '{\"Username\":\"u\",\"Secret\":\"s\"}'\n";
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, r#"{"credsStore": "shoaltest"}"#).unwrap();
        let ask =
            |host: &str| Source { helpers: Some(dir.path().to_owned()), ..Source::new(host, file.to_str()) };
        assert_eq!(ask("a.example").get().await.unwrap(), password("u", "s"));
        assert_eq!(ask("b.example").get().await.unwrap(), Some(Credentials::IdentityToken("t".to_owned())));
        assert_eq!(ask("c.example").get().await.unwrap(), None);
        let refused = get("a.example", r#"{"credsStore": "../evil"}"#).await.unwrap_err().to_string();
        assert!(refused.contains("no helper's name"), "{refused}");
        let missing = get("a.example", r#"{"credHelpers": {"a.example": "shoal-not-there"}}"#).await;
        assert!(matches!(missing, Err(BackendError::Denied { .. })), "{missing:?}");
    }

    #[test]
    fn secrets_are_not_printed() {
        let credentials = Credentials::Password { user: "u".into(), password: "hunter2".into() };
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
