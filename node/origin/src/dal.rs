//! `azblob://`, `gcs://`, `webhdfs://`: through OpenDAL.

mod hdfs;

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use opendal::layers::{RetryLayer, TimeoutLayer};
use opendal::options::{ListOptions, ReadOptions, WriteOptions};
use opendal::services::{Azblob, Gcs, Webhdfs};
use opendal::{Capability, Error, ErrorKind, Metadata, Operator};
use tokio::io::AsyncReadExt as _;

use self::hdfs::Hdfs;
use crate::backend::{BackendError, Mark};
use crate::objects::{Condition, Listed, ObjectStore};
use crate::text::told;
use crate::throttle::Throttle;
use crate::url::{BackendUrl, Scheme};

/// Object whose writes tell whether the store may be written.
const PROBE: &str = "shoal-probe";
/// Bytes of a part of a large upload.
const PART_BYTES: usize = 8 << 20;
/// How long one request without a body may take.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long reading or writing one part may take.
const IO_TIMEOUT: Duration = Duration::from_secs(60);
/// Times a request is tried again.
const RETRIES: usize = 2;
/// A file aside that is older than this was left by a process that died.
const ABANDONED: Duration = Duration::from_secs(86_400);
/// Reads of one record that change under the reader before he gives up.
const GLIMPSES: usize = 8;

/// Looks a variable up.
type Environment<'a> = dyn Fn(&str) -> Option<String> + Send + Sync + 'a;

/// Objects in a container, bucket or directory.
#[derive(Debug)]
pub(crate) struct DalStore {
    operator: Operator,
    capability: Capability,
    described: String,
    concurrency: usize,
    /// Where objects are written aside and renamed: a file of HDFS is seen from its first byte on.
    hdfs: Option<Hdfs>,
}

impl DalStore {
    /// The store at `url`. Credentials come from the environment, as the cloud's own tools take them. Nothing is asked
    /// of the server yet.
    ///
    /// # Errors
    /// [`BackendError::Invalid`].
    pub(crate) async fn open(url: &BackendUrl) -> Result<Self, BackendError> {
        Self::open_as(url, &|name| std::env::var(name).ok().filter(|value| !value.is_empty())).await
    }

    /// The same with the variables of `environment`.
    async fn open_as(url: &BackendUrl, environment: &Environment<'_>) -> Result<Self, BackendError> {
        // Once a process; its constructor of the same effect is a feature that registers everything else as well.
        opendal::install_default();
        let invalid = |why: String| BackendError::invalid(url, why);
        let (built, hdfs) = match url.scheme {
            Scheme::Azblob => (azblob(url, environment), None),
            Scheme::Gcs => (gcs(url), None),
            _ => {
                let (built, hdfs) = webhdfs(url).await?;
                (built, Some(hdfs))
            }
        };
        let operator = built.map_err(|error| invalid(crate::text::scrub(error.message())))?;
        let capability = operator.info().capability();
        let retries = RetryLayer::new().with_max_times(RETRIES).with_jitter();
        let timeouts = TimeoutLayer::new().with_timeout(TIMEOUT).with_io_timeout(IO_TIMEOUT);
        Ok(Self {
            operator: operator.layer(timeouts).layer(retries),
            capability,
            described: url.to_string(),
            concurrency: url.concurrency().map_err(|error| invalid(error.to_string()))?,
            hdfs,
        })
    }

    fn what(&self, verb: &str, key: &str) -> String {
        format!("{verb} {}/{key}", self.described)
    }

    fn error(&self, verb: &str, key: &str, error: &Error) -> BackendError {
        let what = self.what(verb, key);
        let message = format!("{}: {}", error.kind(), crate::text::scrub(error.message()));
        let cause = std::error::Error::source(error).map(told);
        let why = crate::text::told_text(&match cause {
            Some(cause) => format!("{message}: {cause}"),
            None => message,
        });
        match error.kind() {
            ErrorKind::NotFound => BackendError::NotFound { what },
            ErrorKind::PermissionDenied => BackendError::denied(what, why),
            ErrorKind::ConfigInvalid
            | ErrorKind::Unsupported
            | ErrorKind::IsADirectory
            | ErrorKind::NotADirectory => BackendError::invalid(what, why),
            _ => BackendError::unavailable(what, why),
        }
    }

    async fn stat(&self, key: &str) -> Result<Option<Metadata>, BackendError> {
        match self.operator.stat(key).await {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error("look at", key, &error)),
        }
    }

    /// What names an object's state: the generation where writes can ask for it, otherwise the ETag.
    fn mark_of(&self, metadata: &Metadata) -> Option<Mark> {
        let mark =
            if self.capability.write_with_if_version_match { metadata.version() } else { metadata.etag() };
        mark.map(|mark| Mark(mark.to_owned()))
    }

    fn write_options(&self, condition: Condition<'_>) -> WriteOptions {
        let mut options = WriteOptions::default();
        match condition {
            Condition::Any => {}
            Condition::Absent => options.if_not_exists = true,
            Condition::Is(mark) if self.capability.write_with_if_version_match => {
                options.if_version_match = Some(mark.0.clone());
            }
            Condition::Is(mark) => options.if_match = Some(mark.0.clone()),
        }
        options
    }

    /// Writes a file of HDFS that is not seen before it is whole; `false`: something is there, and is not to be replaced.
    async fn put_aside(
        &self,
        hdfs: &Hdfs,
        key: &str,
        replace: bool,
        write: impl AsyncFnOnce(&str) -> Result<(), BackendError>,
    ) -> Result<bool, BackendError> {
        let aside = Hdfs::aside()?;
        let put = match write(&aside).await {
            Ok(()) => hdfs.rename(&self.what("write", key), &aside, key, replace).await,
            Err(error) => Err(error),
        };
        if !matches!(put, Ok(true)) {
            // Left where it is if the server does not answer: the next start takes it away.
            let _ = self.operator.delete(&aside).await;
        }
        put
    }

    /// Takes away what processes that died left aside.
    async fn sweep(&self) -> Result<(), BackendError> {
        let listed = match self.operator.list(hdfs::ASIDE).await {
            Ok(listed) => listed,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.error("list", hdfs::ASIDE, &error)),
        };
        for entry in listed.into_iter().filter(|entry| entry.metadata().is_file()) {
            let changed = entry.metadata().last_modified().map(SystemTime::from);
            let age = changed.and_then(|changed| changed.elapsed().ok());
            if age.is_some_and(|age| age > ABANDONED) {
                self.delete(entry.path()).await?;
            }
        }
        Ok(())
    }

    async fn write(&self, key: &str, object: Bytes, condition: Condition<'_>) -> Result<bool, BackendError> {
        match self.operator.write_options(key, object, self.write_options(condition)).await {
            Ok(_) => Ok(true),
            Err(error) => match (error.kind(), condition) {
                (
                    ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists | ErrorKind::Conflict,
                    Condition::Absent,
                ) => Ok(false),
                (
                    ErrorKind::ConditionNotMatch | ErrorKind::NotFound | ErrorKind::Conflict,
                    Condition::Is(_),
                ) => Ok(false),
                _ => Err(self.error("write", key, &error)),
            },
        }
    }

    async fn write_file(
        &self,
        key: &str,
        path: &Path,
        size: u64,
        rate: &Throttle,
    ) -> Result<(), BackendError> {
        let failed = |error: Error| self.error("write", key, &error);
        let source = |error: std::io::Error| BackendError::invalid(path.display(), error);
        let mut file = tokio::fs::File::open(path).await.map_err(source)?;
        // A store that takes no parts takes the whole at once.
        let part_bytes = if self.capability.write_can_multi { PART_BYTES as u64 } else { size.max(1) };
        let options = WriteOptions {
            concurrent: self.concurrency,
            chunk: self.capability.write_can_multi.then_some(PART_BYTES),
            ..WriteOptions::default()
        };
        let mut writer = self.operator.writer_options(key, options).await.map_err(failed)?;
        let mut left = size;
        loop {
            let len = left.min(part_bytes);
            rate.pass(len).await;
            let mut part = vec![0; usize::try_from(len).unwrap_or(0)];
            let written = match file.read_exact(&mut part).await {
                Ok(_) => writer.write(Bytes::from(part)).await.map_err(failed),
                Err(error) => Err(source(error)),
            };
            if let Err(error) = written {
                let _ = writer.abort().await;
                return Err(error);
            }
            left -= len;
            if left == 0 {
                break;
            }
        }
        writer.close().await.map_err(failed)?;
        Ok(())
    }

    /// Without conditions in the store: whoever looks just before he writes.
    async fn looks_like(&self, key: &str, condition: Condition<'_>) -> Result<bool, BackendError> {
        let now = self.get(key, u64::MAX).await?;
        Ok(match (condition, now) {
            (Condition::Any, _) | (Condition::Absent, None) => true,
            (Condition::Is(mark), Some((_, now))) => *mark == now,
            _ => false,
        })
    }
}

#[async_trait]
impl ObjectStore for DalStore {
    fn describe(&self) -> String {
        self.described.clone()
    }

    fn is_conditional(&self) -> bool {
        let matches = self.capability.write_with_if_match || self.capability.write_with_if_version_match;
        matches && self.capability.write_with_if_not_exists
    }

    async fn probe(&self) -> Result<(), BackendError> {
        if self.hdfs.is_some() {
            self.sweep().await?;
        }
        self.put(PROBE, Bytes::from_static(b"probe"), Condition::Any).await.map(|_| ())
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, BackendError> {
        Ok(self.stat(key).await?.map(|metadata| metadata.content_length()))
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Option<(Bytes, Mark)>, BackendError> {
        for _ in 0..GLIMPSES {
            let Some(metadata) = self.stat(key).await? else { return Ok(None) };
            let size = metadata.content_length();
            if size > bytes_max {
                let why = format!("{size} bytes are over the limit of {bytes_max}");
                return Err(BackendError::invalid(self.what("read", key), why));
            }
            // The bytes of just this state, or it is looked at again.
            let mark = self.mark_of(&metadata);
            let mut options = ReadOptions::default();
            match &mark {
                Some(mark) if self.capability.read_with_if_version_match => {
                    options.if_version_match = Some(mark.0.clone())
                }
                Some(mark) if self.capability.read_with_if_match => options.if_match = Some(mark.0.clone()),
                _ => {}
            }
            match self.operator.read_options(key, options).await {
                Ok(bytes) => {
                    let bytes = bytes.to_bytes();
                    let mark = mark.unwrap_or_else(|| Mark(shoal_types::Digest::sha256(&bytes).hex()));
                    return Ok(Some((bytes, mark)));
                }
                Err(error) if matches!(error.kind(), ErrorKind::ConditionNotMatch | ErrorKind::NotFound) => {}
                Err(error) => return Err(self.error("read", key, &error)),
            }
        }
        Err(BackendError::unavailable(self.what("read", key), "it changes all the time"))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, BackendError> {
        let options = ReadOptions { range: range.clone().into(), ..ReadOptions::default() };
        match self.operator.read_options(key, options).await {
            Ok(bytes) => Ok(Some(bytes.to_bytes())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => {
                // Stores differ in what they say of a range beyond the end.
                match self.size(key).await? {
                    Some(size) if size < range.end => Ok(Some(Bytes::new())),
                    Some(_) => Err(self.error("read", key, &error)),
                    None => Ok(None),
                }
            }
        }
    }

    async fn put(&self, key: &str, object: Bytes, condition: Condition<'_>) -> Result<bool, BackendError> {
        // HDFS itself sees to it that nothing is there.
        let is_asked = self.hdfs.is_some() && matches!(condition, Condition::Absent);
        let condition = if self.is_conditional() || is_asked {
            condition
        } else if self.looks_like(key, condition).await? {
            Condition::Any
        } else {
            return Ok(false);
        };
        let Some(hdfs) = &self.hdfs else { return self.write(key, object, condition).await };
        let replace = !matches!(condition, Condition::Absent);
        let write = async |aside: &str| self.write(aside, object, Condition::Any).await.map(drop);
        self.put_aside(hdfs, key, replace, write).await
    }

    async fn put_file(&self, key: &str, path: &Path, size: u64, rate: &Throttle) -> Result<(), BackendError> {
        let Some(hdfs) = &self.hdfs else { return self.write_file(key, path, size, rate).await };
        let write = async |aside: &str| self.write_file(aside, path, size, rate).await;
        self.put_aside(hdfs, key, true, write).await.map(drop)
    }

    async fn delete(&self, key: &str) -> Result<(), BackendError> {
        match self.operator.delete(key).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.error("delete", key, &error)),
            _ => Ok(()),
        }
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<Listed, BackendError>> {
        let prefix = prefix.to_owned();
        let lister = async move {
            let options = ListOptions { recursive: true, ..ListOptions::default() };
            let lister = match self.operator.lister_options(&prefix, options).await {
                Ok(lister) => lister,
                Err(error) if error.kind() == ErrorKind::NotFound => return futures::stream::empty().boxed(),
                Err(error) => {
                    let error = self.error("list", &prefix, &error);
                    return futures::stream::once(std::future::ready(Err(error))).boxed();
                }
            };
            let listed = lister.filter_map(move |entry| {
                let listed = match entry {
                    Ok(entry) if entry.metadata().mode() == opendal::EntryMode::FILE => Some(Ok(Listed {
                        key: entry.path().to_owned(),
                        size: entry.metadata().content_length(),
                    })),
                    Ok(_) => None,
                    Err(error) if error.kind() == ErrorKind::NotFound => None,
                    Err(error) => Some(Err(self.error("list", &prefix, &error))),
                };
                std::future::ready(listed)
            });
            listed.boxed()
        };
        futures::stream::once(lister).flatten().boxed()
    }
}

fn azblob(url: &BackendUrl, variable: &Environment<'_>) -> opendal::Result<Operator> {
    let (container, root) = url.split_place();
    let account = url.option("account").map(str::to_owned).or_else(|| variable("AZURE_STORAGE_ACCOUNT_NAME"));
    let endpoint = url
        .option("endpoint")
        .map(str::to_owned)
        .or_else(|| account.as_ref().map(|account| format!("https://{account}.blob.core.windows.net")));
    let mut builder = Azblob::default().container(container).root(root);
    if let Some(endpoint) = endpoint {
        builder = builder.endpoint(&endpoint);
    }
    if let Some(account) = account {
        builder = builder.account_name(&account);
    }
    if let Some(key) = variable("AZURE_STORAGE_ACCOUNT_KEY") {
        builder = builder.account_key(&key);
    }
    Operator::new(builder)
}

fn gcs(url: &BackendUrl) -> opendal::Result<Operator> {
    let (bucket, root) = url.split_place();
    let mut builder = Gcs::default().bucket(bucket).root(root);
    if let Some(endpoint) = url.option("endpoint") {
        builder = builder.endpoint(endpoint);
    }
    if let Some(class) = url.option("storage-class") {
        builder = builder.default_storage_class(class);
    }
    if url.is_on("anonymous") {
        builder = builder.skip_signature().disable_vm_metadata().disable_config_load();
    }
    Operator::new(builder)
}

async fn webhdfs(url: &BackendUrl) -> Result<(opendal::Result<Operator>, Hdfs), BackendError> {
    let (host, root) = url.split_place();
    let scheme = if url.is_on("tls") { "https" } else { "http" };
    let endpoint = format!("{scheme}://{host}");
    let delegation = match url.option("delegation-file") {
        Some(file) => {
            let token = crate::web::read_pem(url, "delegation-file", file).await?;
            Some(String::from_utf8_lossy(&token).trim().to_owned())
        }
        None => None,
    };
    let user = url.option("user");
    let hdfs = Hdfs::new(url, &endpoint, root, user, delegation.as_deref()).await?;
    // The parts of a large file are aside, too.
    let mut builder = Webhdfs::default().endpoint(&endpoint).root(&format!("/{root}"));
    builder = builder.atomic_write_dir(hdfs::ASIDE);
    if let Some(user) = user {
        builder = builder.user_name(user);
    }
    if let Some(delegation) = &delegation {
        builder = builder.delegation(delegation);
    }
    Ok((Operator::new(builder), hdfs))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::Backend as _;
    use crate::conformance::servers::Server;
    use crate::objects::ObjectBackend;

    async fn backend(url: &str, environment: &[(&str, &str)]) -> ObjectBackend<DalStore> {
        let environment = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let store = DalStore::open_as(&url.parse().unwrap(), &environment).await.unwrap();
        ObjectBackend::new(store, Throttle::new(None))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn azblob_conforms_on_azurite() {
        let azurite = Server::azurite().await;
        azurite.make_container().await;
        let dir = tempfile::tempdir().unwrap();
        let backend = backend(&azurite.azblob_url("a/b"), &azurite.azblob_env()).await;
        assert!(backend.has_conditional_writes());
        crate::conformance::check(Arc::new(backend), dir.path()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn azblob_failures_are_told_apart_and_keep_secrets() {
        const WRONG: &str = "bm90IHRoZSBrZXk=";
        let mut azurite = Server::azurite().await;
        azurite.make_container().await;
        let url = azurite.azblob_url("x");
        let [account, (key_name, _)] = azurite.azblob_env();
        let wrong = backend(&url, &[account, (key_name, WRONG)]).await;
        let error = wrong.probe().await.unwrap_err();
        assert!(matches!(error, BackendError::Denied { .. }), "{error:?}");
        assert!(!format!("{error} {error:?}").contains(WRONG), "{error:?}");
        let good = backend(&url, &azurite.azblob_env()).await;
        let digest = shoal_types::Digest::sha256(b"x");
        assert_eq!(good.stat(&digest, None).await.unwrap(), None);
        azurite.stop().await;
        let error = good.stat(&digest, None).await.unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn gcs_conforms_on_fake_gcs_server() {
        let gcs = Server::gcs().await;
        let dir = tempfile::tempdir().unwrap();
        let url = gcs.gcs_url("a/b").parse().unwrap();
        let mut store = DalStore::open_as(&url, &|_: &str| None).await.unwrap();
        // The server has no uploads in parts ("invalid uploadType"): those are tried by nothing here.
        store.capability.write_can_multi = false;
        let backend = ObjectBackend::new(store, Throttle::new(None));
        crate::conformance::check(Arc::new(backend), dir.path()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn webhdfs_conforms_on_hadoop() {
        let hdfs = Server::hdfs().await;
        let dir = tempfile::tempdir().unwrap();
        let backend = backend(&hdfs.webhdfs_url("a/b"), &[]).await;
        // HDFS compares nothing when it writes.
        assert!(!backend.has_conditional_writes());
        crate::conformance::check(Arc::new(backend), dir.path()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn webhdfs_writers_are_seen_whole_and_one_of_many_is_the_first() {
        let hdfs = Server::hdfs().await;
        let backend = Arc::new(backend(&hdfs.webhdfs_url("a/b"), &[]).await);
        backend.probe().await.unwrap();
        let put = async |content: Vec<u8>, condition: Condition<'_>| {
            backend.store().put("dir/key", content.into(), condition).await.unwrap()
        };
        let first = futures::future::join_all((1..=8).map(|n| put(vec![n; 1000], Condition::Absent))).await;
        assert_eq!(first.iter().filter(|first| **first).count(), 1, "{first:?}");
        // Whoever reads while others write sees what one of them wrote.
        let writers = futures::future::join_all((1..=20).map(|n| put(vec![n; 1000], Condition::Any)));
        let reads = async {
            for _ in 0..40 {
                let (bytes, _) = backend.store().get("dir/key", 1 << 20).await.unwrap().unwrap();
                assert!(bytes.len() == 1000 && bytes.iter().all(|byte| *byte == bytes[0]), "{bytes:?}");
            }
        };
        let (written, ()) = tokio::join!(writers, reads);
        assert!(written.iter().all(|written| *written));
        let aside = backend.store().operator.list(hdfs::ASIDE).await.unwrap();
        assert!(!aside.iter().any(|entry| entry.metadata().is_file()), "{aside:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_dead_process_left_in_hdfs_is_taken_away() {
        let hdfs = Server::hdfs().await;
        let backend = backend(&hdfs.webhdfs_url("x"), &[]).await;
        for name in ["tmp/old", "tmp/new"] {
            backend.store().operator.write(name, "half").await.unwrap();
        }
        let url = format!("{}webhdfs/v1/x/tmp/old", hdfs.url());
        let query =
            format!("op=SETTIMES&modificationtime=1000&{}", hdfs.webhdfs_url("").split_once('?').unwrap().1);
        let answer = reqwest::Client::new()
            .put(format!("{url}?{}", query.replace("user=", "user.name=")))
            .send()
            .await;
        assert!(answer.unwrap().status().is_success());
        backend.probe().await.unwrap();
        assert!(backend.store().size("tmp/old").await.unwrap().is_none());
        assert!(backend.store().size("tmp/new").await.unwrap().is_some());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn webhdfs_failures_are_told_apart() {
        let mut hdfs = Server::hdfs().await;
        let url = hdfs.webhdfs_url("x");
        let good = backend(&url, &[]).await;
        good.probe().await.unwrap();
        // Others may not write where that user does.
        let stranger = url.split("?user=").next().unwrap().to_owned() + "?user=stranger";
        let error = backend(&stranger, &[]).await.probe().await.unwrap_err();
        assert!(matches!(error, BackendError::Denied { .. }), "{error:?}");
        hdfs.stop().await;
        let digest = shoal_types::Digest::sha256(b"x");
        let error = good.stat(&digest, None).await.unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
    }
}
