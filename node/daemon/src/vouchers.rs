//! Metainfo whose origin has been revoked: it is not taken, not given out, and made anew by origins that can.

use shoal_engine::io::{Input, LocalBlob, Opened};
use shoal_net::revocation::Revocations;
use shoal_types::VouchedMetainfo;

use crate::driver;
use crate::node::Node;

/// Whether the origin that vouches has been revoked, or the key that made it an origin.
pub(crate) fn is_revoked(revocations: &Revocations, vouched: &VouchedMetainfo) -> bool {
    revocations.is_revoked(&vouched.metainfo.signer(), &vouched.credential)
}

/// After a new list of revocations: an origin puts its own word in the place of that of revoked ones, for blobs that are
/// being shared. All others are looked at when they are next opened.
pub(crate) async fn renew(node: &Node) {
    let Some(vault) = node.vault() else { return };
    let swarms = node.driver().look(|engine| engine.swarms().map(|swarm| swarm.digest).collect());
    let swarms: Vec<_> = swarms.await.unwrap_or_default();
    for digest in swarms {
        let store = node.store().clone();
        let opened = driver::open(store, Some(vault), node.tls().revocations(), digest, node.driver()).await;
        if let Opened::Here(LocalBlob { metainfo, vouched: Some(vouched), .. }) = opened {
            node.driver().tell(Input::MetainfoLearned { metainfo, vouched: Some(vouched) }).await;
        }
    }
}
