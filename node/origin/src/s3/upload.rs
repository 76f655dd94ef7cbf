//! Blobs going up: in one request, or in parts side by side.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use futures::{StreamExt as _, TryStreamExt as _};

use super::errors::refusal;
use super::{PARTS_MAX, S3Store};
use crate::backend::BackendError;
use crate::text::told;
use crate::throttle::Throttle;

impl S3Store {
    pub(super) async fn put_whole(
        &self,
        key: &str,
        path: &Path,
        size: u64,
        rate: &Throttle,
    ) -> Result<(), BackendError> {
        rate.pass(size).await;
        let body = part_of(path, 0, size).await?;
        let request = self.client.put_object().bucket(&self.bucket).key(self.key(key)).body(body);
        let request = request
            .set_storage_class(self.storage_class.clone())
            .set_server_side_encryption(self.encryption.clone())
            .set_ssekms_key_id(self.encryption_key.clone());
        let what = || self.what("write", key);
        request.send().await.map_err(|error| refusal(&what(), error).into_error(what()))?;
        Ok(())
    }

    pub(super) async fn put_parts(
        &self,
        key: &str,
        path: &Path,
        size: u64,
        rate: &Throttle,
    ) -> Result<(), BackendError> {
        let what = || self.what("write", key);
        let request = self.client.create_multipart_upload().bucket(&self.bucket).key(self.key(key));
        let request = request
            .set_storage_class(self.storage_class.clone())
            .set_server_side_encryption(self.encryption.clone())
            .set_ssekms_key_id(self.encryption_key.clone());
        // In a task of its own: when this call is dropped before the answer is here, the upload is begun all the same,
        // and given up by its guard.
        let (client, bucket, name) = (self.client.clone(), self.bucket.clone(), self.key(key));
        let begun = tokio::spawn(async move {
            let begun = request.send().await?;
            Ok(begun.upload_id.map(|id| Upload { client, bucket, key: name, id, open: true }))
        });
        let begun = begun.await.map_err(|error| BackendError::unavailable(what(), told(&error)))?;
        let begun = begun.map_err(|error| refusal(&what(), error).into_error(what()))?;
        let Some(mut upload) = begun else {
            return Err(BackendError::invalid(what(), "the server gave the upload no id"));
        };
        let part_bytes = self.part_bytes.max(size.div_ceil(PARTS_MAX));
        let parts = (0..size.div_ceil(part_bytes)).map(|number| {
            let offset = number * part_bytes;
            self.put_part(&upload, path, number, offset, part_bytes.min(size - offset), rate)
        });
        let parts = futures::stream::iter(parts).buffered(self.concurrency);
        let parts: Vec<CompletedPart> = parts.try_collect().await?;
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let done = self.client.complete_multipart_upload().bucket(&self.bucket).key(&upload.key);
        let done = done.upload_id(&upload.id).multipart_upload(parts).send().await;
        done.map_err(|error| refusal(&what(), error).into_error(what()))?;
        upload.open = false;
        Ok(())
    }

    async fn put_part(
        &self,
        upload: &Upload,
        path: &Path,
        number: u64,
        offset: u64,
        len: u64,
        rate: &Throttle,
    ) -> Result<CompletedPart, BackendError> {
        rate.pass(len).await;
        let number = i32::try_from(number + 1).unwrap_or(i32::MAX);
        let body = part_of(path, offset, len).await?;
        let sent = self.client.upload_part().bucket(&self.bucket).key(&upload.key).upload_id(&upload.id);
        let sent = sent.part_number(number).body(body).send().await.map_err(|error| {
            let what = format!("write part {number} of s3://{}/{}", self.bucket, upload.key);
            refusal(&what, error).into_error(what)
        })?;
        // Checksums protect the parts on their way and are not repeated here: servers keep them only of uploads that were
        // begun with an algorithm.
        Ok(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build())
    }
}

/// A part of a file, in memory: bodies that are read while they are sent have their checksums behind them, which not all
/// servers take (Garage 2.5 says "Invalid payload signature").
async fn part_of(path: &Path, offset: u64, len: u64) -> Result<ByteStream, BackendError> {
    let (file, name) = (path.to_owned(), path.display().to_string());
    let read = tokio::task::spawn_blocking(move || {
        let mut part = vec![0; usize::try_from(len).unwrap_or(0)];
        std::fs::File::open(file)?.read_exact_at(&mut part, offset)?;
        Ok(part)
    });
    let read = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    read.map(ByteStream::from).map_err(|error| BackendError::invalid(name, error))
}

/// An upload in parts that is given up unless it was finished: its parts would cost money for ever.
struct Upload {
    client: Client,
    bucket: String,
    key: String,
    id: String,
    open: bool,
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let abort =
            self.client.abort_multipart_upload().bucket(&self.bucket).key(&self.key).upload_id(&self.id);
        let key = self.key.clone();
        // At the end of the process there may be no runtime any more; the bucket's own rule has to tidy up then.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = abort.send().await {
                    tracing::warn!(key, error = %told(&error), "the parts of an upload that failed are left in the bucket");
                }
            });
        }
    }
}
