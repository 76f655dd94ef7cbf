//! What HDFS does atomically and OpenDAL does not ask of it: a file that was written aside takes its place, or takes it
//! only when nothing is there (`RENAME` with `renameoptions`, the options of `FileContext.rename`).

use futures::StreamExt as _;
use reqwest::{Client, Method, Url};
use serde::Deserialize;

use crate::backend::BackendError;
use crate::text::told_text;
use crate::url::BackendUrl;
use crate::web;

/// Where files are written until they are whole.
pub(super) const ASIDE: &str = "tmp/";
/// Largest answer: an exception has some KiB.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A name node.
#[derive(Debug)]
pub(super) struct Hdfs {
    client: Client,
    endpoint: Url,
    root: String,
    user: Option<String>,
    delegation: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(rename = "RemoteException")]
    exception: Exception,
}

#[derive(Deserialize)]
struct Exception {
    exception: String,
    message: String,
}

impl Hdfs {
    /// The name node at `endpoint`, where all names are below `root`.
    pub(super) async fn new(
        url: &BackendUrl,
        endpoint: &str,
        root: &str,
        user: Option<&str>,
        delegation: Option<&str>,
    ) -> Result<Self, BackendError> {
        Ok(Self {
            client: web::client(url).await?,
            endpoint: endpoint.parse().map_err(|error| BackendError::invalid(url, error))?,
            root: root.to_owned(),
            user: user.map(str::to_owned),
            delegation: delegation.map(str::to_owned),
        })
    }

    /// A name aside that nobody else has.
    ///
    /// # Errors
    /// The system has no randomness.
    pub(super) fn aside() -> Result<String, BackendError> {
        let number = getrandom::u64().map_err(|error| BackendError::unavailable("name a file", error))?;
        Ok(format!("{ASIDE}{number:016x}"))
    }

    /// Gives a file another name; `false`: there is a file of that name already, and it is not to be replaced.
    ///
    /// # Errors
    /// [`BackendError`], described by `what`.
    pub(super) async fn rename(
        &self,
        what: &str,
        from: &str,
        to: &str,
        replace: bool,
    ) -> Result<bool, BackendError> {
        let option = if replace { "OVERWRITE" } else { "NONE" };
        let destination = format!("/{}", self.path(to));
        let query = [("op", "RENAME"), ("destination", destination.as_str()), ("renameoptions", option)];
        match self.ask(what, from, &query).await? {
            Some(missing) if missing.exception == "FileNotFoundException" => {}
            other => return renamed(what, other),
        }
        // The directory that it goes into is not there yet.
        let directory = to.rsplit_once('/').map_or("", |(directory, _)| directory);
        if let Some(refusal) = self.ask(what, directory, &[("op", "MKDIRS")]).await? {
            return Err(refused(what, &refusal));
        }
        renamed(what, self.ask(what, from, &query).await?)
    }

    fn path(&self, key: &str) -> String {
        if self.root.is_empty() { key.to_owned() } else { format!("{}/{key}", self.root) }
    }

    /// Asks for something to be done to a file; gives the exception, if it is not done.
    async fn ask(
        &self,
        what: &str,
        key: &str,
        query: &[(&str, &str)],
    ) -> Result<Option<Exception>, BackendError> {
        let mut url = self.endpoint.clone();
        url.set_path(&format!("/webhdfs/v1/{}", self.path(key)));
        url.query_pairs_mut().extend_pairs(query);
        if let Some(user) = &self.user {
            url.query_pairs_mut().append_pair("user.name", user);
        }
        if let Some(delegation) = &self.delegation {
            url.query_pairs_mut().append_pair("delegation", delegation);
        }
        let answer = web::send(what, self.client.request(Method::PUT, url)).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(None);
        }
        let mut body = Vec::new();
        let mut parts = answer.bytes_stream();
        while body.len() < ANSWER_BYTES_MAX
            && let Some(Ok(part)) = parts.next().await
        {
            body.extend_from_slice(&part);
        }
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => Ok(Some(refusal.exception)),
            Err(_) => Err(web::refused(what, status)),
        }
    }
}

fn renamed(what: &str, refusal: Option<Exception>) -> Result<bool, BackendError> {
    match refusal {
        None => Ok(true),
        Some(refusal) if refusal.exception == "FileAlreadyExistsException" => Ok(false),
        Some(refusal) => Err(refused(what, &refusal)),
    }
}

fn refused(what: &str, refusal: &Exception) -> BackendError {
    let why = told_text(&format!("{}: {}", refusal.exception, refusal.message));
    match refusal.exception.as_str() {
        "AccessControlException" | "SecurityException" | "InvalidToken" => BackendError::denied(what, why),
        // A name node in standby or safe mode among them.
        _ => BackendError::unavailable(what, why),
    }
}
