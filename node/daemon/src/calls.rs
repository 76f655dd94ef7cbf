//! Answering questions from peers.

use bytes::Bytes;
use shoal_engine::message::PeerHint;
use shoal_origin::BackendError;
use shoal_store::UploadId;
use shoal_types::{PeerId, Role};
use tokio::sync::mpsc;

use crate::doctor;
use crate::driver::IncomingCall;
use crate::node::Node;
use crate::preheat;
use crate::records::service::may_push;
use crate::rpc::{self, Answer, Failure, Request};
use crate::vault::AnchorError;

/// Questions waiting to be answered; further ones fail, and their askers go elsewhere.
pub(crate) const QUEUE: usize = 1024;
/// Questions answered side by side.
const CONCURRENT: usize = 256;

/// Answers questions until the node stops.
pub(crate) async fn serve(node: Node, mut calls: mpsc::Receiver<IncomingCall>) {
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(CONCURRENT));
    while let Some(call) = calls.recv().await {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let node = node.clone();
        tokio::spawn(async move {
            let answer = node.answer(call.peer, &call.body).await;
            call.answer.answer(Bytes::from(rpc::encode(&answer)));
            node.metrics().calls.inc();
            drop(slot);
        });
    }
}

impl Node {
    async fn answer(&self, peer: PeerId, body: &[u8]) -> Answer {
        let request = match rpc::decode::<Request>(body) {
            Ok(request) => request,
            Err(why) => return failed(Failure::Refused, format!("malformed question: {why}")),
        };
        let Some(credential) = self.data().credential_of(&peer) else {
            return failed(Failure::Denied, "the connection is gone".to_owned());
        };
        let credential = credential.value();
        match request {
            Request::Stat { digest, repository } => {
                Answer::Stat(self.stat_here(digest, repository.as_ref()).await)
            }
            Request::IsKept { digest, repository } => {
                Answer::Stat(self.kept_here(digest, repository.as_ref()).await)
            }
            request @ (Request::ResolveUpstream { .. } | Request::FetchUpstream { .. }) => {
                self.answer_upstream(request).await
            }
            Request::Upload { id, repository, step } => {
                if !credential.roles.contains(Role::Gateway) {
                    return failed(Failure::Denied, "only gateways pass uploads on".to_owned());
                }
                if !may_push(&repository, &credential.namespaces) {
                    let why = format!("the credential does not allow pushes to {repository}");
                    return failed(Failure::Denied, why);
                }
                let id = UploadId::from_bytes(id.into());
                Answer::Upload(self.do_step(&repository, id, step).await)
            }
            Request::Anchor { metainfo, repository } => {
                if !credential.roles.contains(Role::Gateway) && !credential.roles.contains(Role::Origin) {
                    return failed(Failure::Denied, "only gateways and origins may push".to_owned());
                }
                if let Some(repository) = &repository
                    && !may_push(repository, &credential.namespaces)
                {
                    let why = format!("the credential does not allow pushes to {repository}");
                    return failed(Failure::Denied, why);
                }
                let Some(vault) = self.vault() else {
                    return failed(Failure::Refused, "this process is not an origin".to_owned());
                };
                let endpoints =
                    self.directory().get(&peer).map(|member| member.endpoints).unwrap_or_default();
                let pusher = PeerHint { peer, zone: credential.zone.clone(), endpoints, complete: true };
                if !metainfo.is_whole() {
                    return failed(Failure::Refused, "a push without the hashes of all pieces".to_owned());
                }
                match vault.anchor(*metainfo, repository.as_ref(), Some(pusher), self.driver()).await {
                    Ok(vouched) => {
                        // It is the mesh's own from now on.
                        self.upstreams().forget_cached(vouched.value().digest()).await;
                        Answer::Anchored(Box::new(vouched))
                    }
                    Err(error) => anchor_failed(&error),
                }
            }
            Request::Preheat { .. }
                if !credential.roles.contains(Role::Gateway) && !credential.roles.contains(Role::Origin) =>
            {
                failed(Failure::Denied, "only gateways and origins have others fetch".to_owned())
            }
            Request::Preheat { job } => {
                self.preheat_here(&job).await.map_or_else(preheat::too_busy, Answer::Preheat)
            }
            Request::Traffic => Answer::Traffic(self.metrics().traffic()),
            Request::Renew => self.renew(peer, credential),
            Request::Time => doctor::tell_time(self.clock().wall()),
            Request::Examine { probe } => doctor::examine_for(self, peer, probe).await,
            Request::Replicated { job, version } => {
                if !credential.roles.contains(Role::Origin) || credential.zone != self.zone() {
                    return failed(
                        Failure::Denied,
                        "only origins of this zone say what they copied".to_owned(),
                    );
                }
                if let Some(replication) = self.replication() {
                    replication.made(self, &job, version).await;
                }
                Answer::Ready
            }
            Request::Collect { .. } | Request::ReadyToMark if !credential.roles.contains(Role::Origin) => {
                failed(Failure::Denied, "only origins have each other collect garbage".to_owned())
            }
            Request::Collect { options } => Answer::Collected(Box::new(self.collect_here(&options).await)),
            Request::ReadyToMark => match self.records().ready_to_mark().await {
                Ok(()) => Answer::Ready,
                Err(why) => failed(Failure::Unavailable, why),
            },
            Request::Retain { .. }
                if !credential.roles.contains(Role::Gateway) && !credential.roles.contains(Role::Origin) =>
            {
                failed(Failure::Denied, "only gateways and origins may push".to_owned())
            }
            Request::Retain { digests } => match self.retain_here(&digests).await {
                Ok(()) => Answer::Ready,
                Err(why) => failed(Failure::Unavailable, why),
            },
            other => self.records().answer(other, credential.roles, &credential.namespaces).await,
        }
    }
}

fn anchor_failed(error: &AnchorError) -> Answer {
    let why = error.to_string();
    let kind = match error {
        AnchorError::Corrupt(_) => Failure::Corrupt,
        // Errors of the disk reach this place as texts, through the engine or the backend; a full one says so in its own.
        _ if is_no_space(&why) => Failure::NoSpace,
        AnchorError::Nowhere(_) | AnchorError::Backend(BackendError::ReadOnly { .. }) => Failure::Denied,
        AnchorError::Fetch(_) | AnchorError::Store(_) | AnchorError::Backend(_) => Failure::Unavailable,
    };
    tracing::warn!(%error, "a pushed blob is not anchored");
    failed(kind, error.to_string())
}

/// Whether an error's text is about a full disk: the store's own words, or the system's (ENOSPC).
pub(crate) fn is_no_space(why: &str) -> bool {
    why.to_lowercase().contains("no space")
}

pub(crate) fn failed(kind: Failure, message: String) -> Answer {
    Answer::Failed { kind, message }
}
