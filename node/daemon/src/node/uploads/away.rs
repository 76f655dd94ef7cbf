//! Uploads that began at another gateway: behind a load balancer the requests of one upload come to any of them.
//!
//! The bytes stay where they began, and the upload's name says where that is. Whoever is asked passes the request on;
//! while that process restarts, the request waits for it, for what it has on its disk is not lost.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use futures::{Stream, StreamExt as _};
use shoal_store::UploadId;
use shoal_types::{Digest, Endpoint, PeerId, RepositoryName};
use tokio::time::Instant;

use super::{AppendError, FinishError, WRITE_BYTES};
use crate::links::AskError;
use crate::node::Node;
use crate::rpc::{Answer, Failure, Request, UploadState, UploadStep};

/// How long a request waits for a process that cannot be reached: a restart, and time to be found again. Clients give up
/// after a minute or more.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts to reach it.
const PAUSE: Duration = Duration::from_millis(250);
/// How long it may take to write some bytes, or to say where an upload stands.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to finish an upload: it is hashed, and fetched by origins.
const FINISH_TIMEOUT: Duration = Duration::from_secs(3600);

/// Names an upload in the whole mesh: its id, and the process that has its bytes. In text 64 letters, digits, `-` or `_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadName {
    /// Its id there.
    pub id: UploadId,
    /// Who has it.
    pub home: PeerId,
}

/// The text names no upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an upload's name")]
pub struct UploadNameParseError;

impl fmt::Display for UploadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [self.id.as_bytes().as_slice(), self.home.public_key()].concat();
        f.write_str(&BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for UploadName {
    type Err = UploadNameParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| UploadNameParseError)?;
        let (id, home) = bytes.split_first_chunk::<16>().ok_or(UploadNameParseError)?;
        let home = home.try_into().map_err(|_| UploadNameParseError)?;
        Ok(Self { id: UploadId::from_bytes(*id), home: PeerId::from_public_key(home) })
    }
}

/// What stands in the DHT for "this process has uploads": no blob has this digest.
pub(crate) fn home_key(home: &PeerId) -> Digest {
    Digest::sha256(&[b"shoal/uploads/1/".as_slice(), home.public_key()].concat())
}

impl Node {
    /// The name of an upload that began here.
    pub fn upload_name(&self, id: UploadId) -> UploadName {
        UploadName { id, home: self.peer_id() }
    }

    /// [`Node::upload_offset`] of an upload anywhere.
    ///
    /// # Errors
    /// [`AppendError::Unknown`], or [`AppendError::Away`].
    pub async fn offset_of(&self, repository: &RepositoryName, name: UploadName) -> Result<u64, AppendError> {
        if name.home == self.peer_id() {
            return self.upload_offset(repository, name.id).await.ok_or(AppendError::Unknown);
        }
        let state = self.step(repository, name, UploadStep::Status, STEP_TIMEOUT).await;
        appended(state.map_err(AppendError::Away)?)
    }

    /// [`Node::append_upload`] to an upload anywhere.
    ///
    /// # Errors
    /// [`AppendError`]; the body is not touched when the offset is wrong.
    pub async fn append_to(
        &self,
        repository: &RepositoryName,
        name: UploadName,
        offset: Option<u64>,
        mut body: impl Stream<Item = io::Result<Bytes>> + Unpin + Send,
    ) -> Result<u64, AppendError> {
        if name.home == self.peer_id() {
            return self.append_upload(repository, name.id, offset, body).await;
        }
        let mut at = self.offset_of(repository, name).await?;
        if offset.is_some_and(|offset| offset != at) {
            return Err(AppendError::Offset { expected: at });
        }
        let mut gathered = Vec::new();
        loop {
            let part = body.next().await;
            let ended = !matches!(part, Some(Ok(_)));
            if let Some(Ok(bytes)) = &part {
                gathered.extend_from_slice(bytes);
            }
            while gathered.len() >= WRITE_BYTES || (ended && !gathered.is_empty()) {
                let rest = gathered.split_off(gathered.len().min(WRITE_BYTES));
                at = self.pass_on(repository, name, at, std::mem::replace(&mut gathered, rest)).await?;
            }
            match part {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(AppendError::Body(error)),
                None => return Ok(at),
            }
        }
    }

    /// Has bytes that begin at `at` written at the upload's home.
    async fn pass_on(
        &self,
        repository: &RepositoryName,
        name: UploadName,
        at: u64,
        bytes: Vec<u8>,
    ) -> Result<u64, AppendError> {
        let end = at + bytes.len() as u64;
        let step = UploadStep::Append { offset: at, bytes: bytes.into() };
        let state = self.step(repository, name, step, STEP_TIMEOUT).await.map_err(AppendError::Away)?;
        match appended(state) {
            // They had been written when the answer was lost.
            Err(AppendError::Offset { expected }) if expected == end => Ok(end),
            result => result,
        }
    }

    /// [`Node::finish_upload`] of an upload anywhere.
    ///
    /// # Errors
    /// [`FinishError`].
    pub async fn finish_at(
        &self,
        repository: &RepositoryName,
        name: UploadName,
        digest: Digest,
    ) -> Result<(), FinishError> {
        if name.home == self.peer_id() {
            return self.finish_upload(repository, name.id, digest).await;
        }
        let step = UploadStep::Finish { digest };
        match self.step(repository, name, step, FINISH_TIMEOUT).await.map_err(FinishError::Unsafe)? {
            UploadState::Done => Ok(()),
            UploadState::Unknown => Err(FinishError::Unknown),
            UploadState::Busy => Err(FinishError::Busy),
            UploadState::Digest { got } => Err(FinishError::Digest(got)),
            UploadState::NoSpace { why } => Err(FinishError::NoSpace(why)),
            UploadState::Unsafe { why } => Err(FinishError::Unsafe(why)),
            UploadState::Denied { why } => Err(FinishError::Denied(why)),
            other => Err(FinishError::Store(format!("the upload's home answers {other:?}"))),
        }
    }

    /// [`Node::cancel_upload`] of an upload anywhere.
    ///
    /// # Errors
    /// [`AppendError::Away`].
    pub async fn cancel_at(
        &self,
        repository: &RepositoryName,
        name: UploadName,
    ) -> Result<bool, AppendError> {
        if name.home == self.peer_id() {
            return Ok(self.cancel_upload(repository, name.id).await);
        }
        let state = self.step(repository, name, UploadStep::Cancel, STEP_TIMEOUT).await;
        Ok(state.map_err(AppendError::Away)? == UploadState::Done)
    }

    /// Asks an upload's home, waiting for one that restarts. Every step may be asked twice.
    async fn step(
        &self,
        repository: &RepositoryName,
        name: UploadName,
        step: UploadStep,
        timeout: Duration,
    ) -> Result<UploadState, String> {
        let request =
            Request::Upload { id: (*name.id.as_bytes()).into(), repository: repository.clone(), step };
        let started = Instant::now();
        loop {
            let endpoints = self.endpoints_of_home(&name.home).await;
            let why = match self.links().ask(name.home, &endpoints, &request, timeout).await {
                Ok(Answer::Upload(state)) => return Ok(state),
                Ok(_) => return Err("it gave an answer to another question".to_owned()),
                // It stops, or has just started.
                Err(AskError::Failed { kind: Failure::Unavailable, message, .. }) => message,
                Err(AskError::Failed { message, .. }) => return Err(message),
                Err(error) => error.to_string(),
            };
            if started.elapsed() > PATIENCE {
                return Err(format!("{}, which has the upload, cannot be asked: {why}", name.home));
            }
            tracing::debug!(home = %name.home, why, "an upload's home cannot be asked; it is tried again");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Where another gateway is reached: as it is known from the control plane, or as the DHT says.
    async fn endpoints_of_home(&self, home: &PeerId) -> Vec<Endpoint> {
        if self.links().is_connected(home) {
            return Vec::new();
        }
        if let Some(member) = self.directory().get(home) {
            return member.endpoints;
        }
        let mut lookup = self.control().find_providers(home_key(home));
        while let Some(provider) = lookup.next().await {
            if provider.peer == *home {
                return provider.endpoints;
            }
        }
        Vec::new()
    }

    /// Does what another gateway passes on.
    pub(crate) async fn do_step(
        &self,
        repository: &RepositoryName,
        id: UploadId,
        step: UploadStep,
    ) -> UploadState {
        match step {
            UploadStep::Status => match self.upload_offset(repository, id).await {
                Some(offset) => UploadState::At { offset },
                None => UploadState::Unknown,
            },
            UploadStep::Append { offset, bytes } => {
                let body = futures::stream::iter([Ok(Bytes::from(Vec::from(bytes)))]);
                state_of(self.append_upload(repository, id, Some(offset), body).await)
            }
            UploadStep::Finish { digest } => match self.finish_upload(repository, id, digest).await {
                Ok(()) => UploadState::Done,
                // Asked again after its answer was lost.
                Err(FinishError::Unknown) if self.is_finished(repository, digest).await => UploadState::Done,
                Err(FinishError::Unknown) => UploadState::Unknown,
                Err(FinishError::Busy) => UploadState::Busy,
                Err(FinishError::Digest(got)) => UploadState::Digest { got },
                Err(FinishError::NoSpace(why)) => UploadState::NoSpace { why },
                Err(FinishError::Unsafe(why)) => UploadState::Unsafe { why },
                Err(FinishError::Denied(why)) => UploadState::Denied { why },
                Err(FinishError::Store(why)) => UploadState::Failed { why },
            },
            UploadStep::Cancel if self.cancel_upload(repository, id).await => UploadState::Done,
            UploadStep::Cancel => UploadState::Unknown,
        }
    }
}

fn appended(state: UploadState) -> Result<u64, AppendError> {
    match state {
        UploadState::At { offset } => Ok(offset),
        UploadState::Unknown => Err(AppendError::Unknown),
        UploadState::Busy => Err(AppendError::Busy),
        UploadState::Elsewhere { expected } => Err(AppendError::Offset { expected }),
        UploadState::NoSpace { why } => Err(AppendError::NoSpace(why)),
        UploadState::TooLarge { why } => Err(AppendError::TooLarge(why)),
        UploadState::Failed { why } => Err(AppendError::Store(why)),
        other => Err(AppendError::Store(format!("the upload's home answers {other:?}"))),
    }
}

fn state_of(result: Result<u64, AppendError>) -> UploadState {
    match result {
        Ok(offset) => UploadState::At { offset },
        Err(AppendError::Unknown) => UploadState::Unknown,
        Err(AppendError::Busy) => UploadState::Busy,
        Err(AppendError::Offset { expected }) => UploadState::Elsewhere { expected },
        Err(AppendError::NoSpace(why)) => UploadState::NoSpace { why },
        Err(AppendError::TooLarge(why)) => UploadState::TooLarge { why },
        Err(error @ (AppendError::Body(_) | AppendError::Store(_) | AppendError::Away(_))) => {
            UploadState::Failed { why: error.to_string() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_are_short() {
        let name =
            UploadName { id: UploadId::from_bytes([0xff; 16]), home: PeerId::from_public_key([7; 32]) };
        let text = name.to_string();
        assert_eq!(text.len(), 64);
        assert_eq!(text.parse(), Ok(name));
        for text in ["", "abc", &text[..63], &(text.clone() + "A"), &text.replace('_', "/")] {
            assert!(text.parse::<UploadName>().is_err(), "{text}");
        }
    }
}
