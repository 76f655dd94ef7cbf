//! Staying a member: the credential is renewed before it expires, without a restart.
//!
//! Two ways. The operator replaces `credential.cbor`, and this process takes the new one; or an origin that keeps an
//! issuing key (`renewal-key`) issues the next one when a third of the time is left.

use std::time::Duration;

use shoal_net::tls::TlsSetup;
use shoal_types::{Credential, PeerId, SignedCredential};

use crate::clock::wall_now;
use crate::keys;
use crate::node::Node;
use crate::rpc::{Answer, Failure, Request};
use crate::vouchers;

/// Between two looks at the credential's file and at the clock.
const ROUND: Duration = Duration::from_secs(1);
/// Between two rounds of asking origins for the next credential, at most and at least.
const ASK_PAUSE_MAX: Duration = Duration::from_secs(300);
/// See [`ASK_PAUSE_MAX`].
const ASK_PAUSE_MIN: Duration = Duration::from_secs(2);
/// How long an origin may take to issue one.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Origins asked in one round.
const ASKED_MAX: usize = 8;

/// Takes a new credential from its file, if there is one, and says so. The last file that was refused is not complained
/// about again.
#[derive(Debug, Default)]
pub struct CredentialFile {
    refused: Option<Vec<u8>>,
}

impl CredentialFile {
    /// Looks into `identity` (a directory) once.
    pub fn follow(&mut self, identity: &std::path::Path, tls: &TlsSetup) {
        let path = identity.join(keys::CREDENTIAL_FILE);
        let Ok(bytes) = std::fs::read(&path) else { return };
        if bytes == tls.identity().credential.to_bytes() || self.refused.as_ref() == Some(&bytes) {
            return;
        }
        let taken = SignedCredential::from_bytes(&bytes)
            .map_err(|error| error.to_string())
            .and_then(|credential| tls.renew(credential).map_err(|error| error.to_string()));
        match taken {
            Ok(()) => {
                self.refused = None;
                let until = tls.identity().credential.value().not_after;
                tracing::info!(path = %path.display(), %until, "a new credential is in use");
            }
            Err(why) => {
                tracing::warn!(path = %path.display(), %why, "a new credential is not taken");
                self.refused = Some(bytes);
            }
        }
    }
}

/// Follows the credential's file and asks for the next credential in time, until the node stops.
pub(crate) async fn keep_credential(node: Node) {
    let mut file = CredentialFile::default();
    let mut next_ask = tokio::time::Instant::now();
    let mut list = node.tls().revocations().version();
    loop {
        tokio::select! {
            () = node.stopping() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
        file.follow(&node.config().identity, node.tls());
        let newest = node.tls().revocations().version();
        if newest != list {
            list = newest;
            vouchers::renew(&node).await;
        }
        let credential = node.identity().credential.clone();
        let value = credential.value();
        let lifetime = value.not_after.saturating_since(value.not_before);
        let left = value.not_after.saturating_since(wall_now());
        if left > lifetime / 3 || tokio::time::Instant::now() < next_ask {
            continue;
        }
        next_ask = tokio::time::Instant::now() + (left / 10).clamp(ASK_PAUSE_MIN, ASK_PAUSE_MAX);
        match ask(&node).await {
            Some(fresh) => adopt(&node, fresh),
            None => tracing::warn!(
                until = %value.not_after,
                "this process's credential expires soon and no origin renews it: replace {}",
                node.config().identity.join(keys::CREDENTIAL_FILE).display()
            ),
        }
    }
}

async fn ask(node: &Node) -> Option<SignedCredential> {
    let before = node.identity().credential.value().not_after;
    let better = |fresh: &SignedCredential| fresh.value().not_after > before;
    if let Some(own) = node.renewer().and_then(|key| renewed(key, &node.identity().credential).ok())
        && better(&own)
    {
        return Some(own);
    }
    for origin in node.discovery().owners(b"").iter().take(ASKED_MAX) {
        if origin.peer == node.peer_id() {
            continue;
        }
        let answer = node.links().ask(origin.peer, &origin.endpoints, &Request::Renew, ASK_TIMEOUT).await;
        if let Ok(Answer::Credential(Some(fresh))) = answer
            && better(&fresh)
        {
            return Some(fresh);
        }
    }
    None
}

fn adopt(node: &Node, fresh: SignedCredential) {
    let until = fresh.value().not_after;
    if let Err(error) = node.tls().renew(fresh.clone()) {
        return tracing::warn!(%error, "the renewed credential is not taken");
    }
    tracing::info!(%until, "this process's credential was renewed");
    if let Err(error) = keys::write_credential(&node.config().identity, &fresh) {
        tracing::warn!(%error, "the renewed credential is in use but cannot be kept: the next start will use the old one");
    }
}

/// The next credential of a member: the same for as long again, within what the key may issue.
fn renewed(
    key: &shoal_types::IssuingKey,
    old: &SignedCredential,
) -> Result<SignedCredential, shoal_types::ScopeError> {
    let (old, now) = (old.value(), wall_now());
    let lifetime = old.not_after.saturating_since(old.not_before);
    key.issue(Credential {
        not_before: now,
        not_after: now.saturating_add(lifetime).min(key.not_after()),
        issuer: None,
        ..old.clone()
    })
}

impl Node {
    /// Answers a member that asks for its next credential. Its connection has proved who it is, and would have ended had
    /// its credential expired or been revoked.
    pub(crate) fn renew(&self, peer: PeerId, credential: &Credential) -> Answer {
        let refuse = |why: &str| Answer::Failed { kind: Failure::Refused, message: why.to_owned() };
        let Some(key) = self.renewer() else { return refuse("this process renews no credentials") };
        let Some(shown) = self.data().credential_of(&peer).filter(|shown| shown.value() == credential) else {
            return refuse("the connection is gone");
        };
        if self.tls().check_member(peer, &shown).is_err() {
            return refuse("the credential is not good any more");
        }
        match renewed(key, &shown) {
            Ok(fresh) => Answer::Credential(Some(fresh)),
            Err(error) => refuse(&error.to_string()),
        }
    }
}
