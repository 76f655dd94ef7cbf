//! `s3://`: Amazon S3 and what speaks like it (MinIO, Garage, Ceph, OBS).

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use async_trait::async_trait;
use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;

use crate::backend::{BackendError, Mark};
use crate::objects::{Condition, Listed, ObjectStore};
use crate::throttle::Throttle;
use crate::url::BackendUrl;

mod client;
mod errors;
mod upload;

use errors::{Refusal, refusal};

/// Object whose writes tell whether the server holds conditions.
const PROBE: &str = "shoal-probe";
/// Size of the parts of a large upload: large enough that requests do not matter, small enough that several are in memory.
const PART_BYTES: u64 = 8 << 20;
/// Least size of a part but the last (Amazon S3 User Guide, "Amazon S3 multipart upload limits").
const PART_BYTES_MIN: u64 = 5 << 20;
/// Most parts of an upload (same place).
const PARTS_MAX: u64 = 10_000;

/// Objects in a bucket.
#[derive(Debug)]
pub(crate) struct S3Store {
    client: Client,
    bucket: String,
    /// What all names begin with: empty, or ending with a slash.
    prefix: String,
    storage_class: Option<StorageClass>,
    encryption: Option<ServerSideEncryption>,
    encryption_key: Option<String>,
    part_bytes: u64,
    concurrency: usize,
    /// Whether conditions are held; found out by the first probe.
    conditional: OnceLock<bool>,
}

impl S3Store {
    /// The store at `url`, with credentials of the default chain. Nothing is asked of the server yet.
    ///
    /// # Errors
    /// [`BackendError::Invalid`].
    pub(crate) async fn open(url: &BackendUrl) -> Result<Self, BackendError> {
        Self::open_as(url, None).await
    }

    async fn open_as(url: &BackendUrl, credentials: Option<Credentials>) -> Result<Self, BackendError> {
        let (bucket, path) = url.split_place();
        let invalid = |why: String| BackendError::invalid(url, why);
        let part_bytes = url.size("part-size").map_err(|error| invalid(error.to_string()))?;
        let part_bytes = part_bytes.unwrap_or(PART_BYTES);
        if part_bytes < PART_BYTES_MIN {
            return Err(invalid(format!("part-size must be at least {PART_BYTES_MIN} bytes")));
        }
        Ok(Self {
            client: client::open(url, credentials).await?,
            bucket: bucket.to_owned(),
            prefix: if path.is_empty() { String::new() } else { format!("{path}/") },
            storage_class: url.option("storage-class").map(StorageClass::from),
            encryption: url.option("sse").map(ServerSideEncryption::from),
            encryption_key: url.option("sse-kms-key").map(str::to_owned),
            part_bytes,
            concurrency: url.concurrency().map_err(|error| invalid(error.to_string()))?,
            conditional: OnceLock::new(),
        })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn what(&self, verb: &str, key: &str) -> String {
        format!("{verb} s3://{}/{}{key}", self.bucket, self.prefix)
    }

    /// Whether the server refuses to replace an object that should not be there. Servers that do not know the condition
    /// pass over it, which only a second write shows.
    async fn holds_conditions(&self) -> Result<bool, BackendError> {
        self.put(PROBE, Bytes::from_static(b"probe"), Condition::Any).await?;
        let replaced = self.put(PROBE, Bytes::from_static(b"probe"), Condition::Absent).await?;
        Ok(!replaced)
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    fn describe(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix.trim_end_matches('/')).trim_end_matches('/').to_owned()
    }

    fn is_conditional(&self) -> bool {
        self.conditional.get().copied().unwrap_or(false)
    }

    async fn probe(&self) -> Result<(), BackendError> {
        let holds = self.holds_conditions().await?;
        if self.conditional.set(holds).is_ok() && !holds {
            tracing::info!(
                backend = self.describe(),
                "the server does not hold conditions of writes: of records written in one moment the older may stay in it \
                 for a while"
            );
        }
        Ok(())
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, BackendError> {
        let asked = self.client.head_object().bucket(&self.bucket).key(self.key(key)).send().await;
        match asked {
            Ok(answer) => {
                let size = answer.content_length().and_then(|size| u64::try_from(size).ok());
                let unknown = || BackendError::invalid(self.what("ask for", key), "the server tells no size");
                size.map(Some).ok_or_else(unknown)
            }
            Err(error) => match refusal(&self.what("ask for", key), error) {
                Refusal::Absent => Ok(None),
                other => Err(other.into_error(self.what("ask for", key))),
            },
        }
    }

    async fn get(&self, key: &str, bytes_max: u64) -> Result<Option<(Bytes, Mark)>, BackendError> {
        let what = || self.what("read", key);
        let asked = self.client.get_object().bucket(&self.bucket).key(self.key(key)).send().await;
        let answer = match asked {
            Ok(answer) => answer,
            Err(error) => {
                return match refusal(&what(), error) {
                    Refusal::Absent => Ok(None),
                    other => Err(other.into_error(what())),
                };
            }
        };
        let size = answer.content_length().and_then(|size| u64::try_from(size).ok()).unwrap_or(u64::MAX);
        if size > bytes_max {
            return Err(BackendError::invalid(
                what(),
                format!("{size} bytes are over the limit of {bytes_max}"),
            ));
        }
        let mark = Mark(answer.e_tag().unwrap_or_default().to_owned());
        let body = answer.body.collect().await;
        let body = body.map_err(|error| BackendError::unavailable(what(), crate::text::told(&error)))?;
        Ok(Some((body.into_bytes(), mark)))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, BackendError> {
        let what = || self.what("read", key);
        // Both ends are named, so nothing beyond what was asked for is sent.
        let bytes = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        let asked =
            self.client.get_object().bucket(&self.bucket).key(self.key(key)).range(bytes).send().await;
        let answer = match asked {
            Ok(answer) => answer,
            Err(error) => {
                return match refusal(&what(), error) {
                    Refusal::Absent => Ok(None),
                    Refusal::Beyond => Ok(Some(Bytes::new())),
                    other => Err(other.into_error(what())),
                };
            }
        };
        let wanted = range.end.saturating_sub(range.start);
        if answer.content_length().and_then(|size| u64::try_from(size).ok()).is_none_or(|size| size > wanted)
        {
            return Err(BackendError::invalid(what(), "the server does not honour ranges"));
        }
        let body = answer.body.collect().await;
        let body = body.map_err(|error| BackendError::unavailable(what(), crate::text::told(&error)))?;
        Ok(Some(body.into_bytes()))
    }

    async fn put(&self, key: &str, object: Bytes, condition: Condition<'_>) -> Result<bool, BackendError> {
        let what = || self.what("write", key);
        let mut condition = condition;
        if !matches!(condition, Condition::Any) && self.conditional.get() == Some(&false) {
            // The next best: whoever looks just before he writes.
            let now = self.get(key, object.len() as u64 + crate::RECORD_OBJECT_BYTES_MAX as u64).await?;
            let holds = match (condition, now) {
                (Condition::Is(mark), Some((_, now))) => *mark == now,
                (Condition::Absent, now) => now.is_none(),
                _ => false,
            };
            if !holds {
                return Ok(false);
            }
            condition = Condition::Any;
        }
        let request = self.client.put_object().bucket(&self.bucket).key(self.key(key));
        let request = match condition {
            Condition::Any => request,
            Condition::Absent => request.if_none_match("*"),
            Condition::Is(mark) => request.if_match(&mark.0),
        };
        let request = request
            .set_server_side_encryption(self.encryption.clone())
            .set_ssekms_key_id(self.encryption_key.clone());
        match request.body(ByteStream::from(object)).send().await {
            Ok(_) => Ok(true),
            Err(error) => match refusal(&what(), error) {
                Refusal::Condition => Ok(false),
                // `If-Match` on what is gone.
                Refusal::Absent if matches!(condition, Condition::Is(_)) => Ok(false),
                other => Err(other.into_error(what())),
            },
        }
    }

    async fn put_file(&self, key: &str, path: &Path, size: u64, rate: &Throttle) -> Result<(), BackendError> {
        if size <= self.part_bytes {
            return self.put_whole(key, path, size, rate).await;
        }
        self.put_parts(key, path, size, rate).await
    }

    async fn delete(&self, key: &str) -> Result<(), BackendError> {
        let asked = self.client.delete_object().bucket(&self.bucket).key(self.key(key)).send().await;
        match asked {
            Ok(_) => Ok(()),
            Err(error) => match refusal(&self.what("delete", key), error) {
                Refusal::Absent => Ok(()),
                other => Err(other.into_error(self.what("delete", key))),
            },
        }
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<Listed, BackendError>> {
        let what = self.what("list", prefix);
        let pages = self.client.list_objects_v2().bucket(&self.bucket).prefix(self.key(prefix));
        let pages = pages.into_paginator().send();
        let pages = futures::stream::unfold((pages, what), |(mut pages, what)| async move {
            let page = pages.next().await?;
            let page = page.map_err(|error| refusal(&what, error).into_error(what.clone()));
            Some((page, (pages, what)))
        });
        let listed = pages.map(|page| match page {
            Err(error) => vec![Err(error)],
            Ok(page) => {
                let objects = page.contents.unwrap_or_default().into_iter();
                let listed = objects.filter_map(|object| {
                    let key = object.key?.strip_prefix(&self.prefix)?.to_owned();
                    Some(Ok(Listed { key, size: u64::try_from(object.size?).ok()? }))
                });
                listed.collect()
            }
        });
        listed.flat_map(futures::stream::iter).boxed()
    }
}

#[cfg(test)]
mod tests;
