//! `/tls/1.0.0` for libp2p, with this crate's TLS: the fast cipher first, and the credential checked before any
//! protocol runs. (`libp2p-tls` has a fixed configuration with ChaCha20 first and knows of no credentials.)

use std::io;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite, FutureExt as _};
use indexmap::IndexMap;
use libp2p::core::UpgradeInfo;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use parking_lot::Mutex;
use shoal_types::{PeerId, SignedCredential};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};

use super::addr;
use crate::tls::{self, Plane, Rejection, SetupError, TlsSetup};

/// Handshakes whose connection the host has not reported yet, at most; the oldest gives way, and that member's
/// zone and roles are then unknown until it connects again.
const ADMITTED_MAX: usize = 4096;

/// The credentials shown in handshakes, until the host reports the connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Admitted(Arc<Mutex<IndexMap<PeerId, SignedCredential>>>);

impl Admitted {
    /// Takes the credential that `peer` showed.
    pub(crate) fn take(&self, peer: &PeerId) -> Option<SignedCredential> {
        self.0.lock().swap_remove(peer)
    }

    fn put(&self, peer: PeerId, credential: SignedCredential) {
        let mut admitted = self.0.lock();
        if admitted.len() >= ADMITTED_MAX {
            admitted.shift_remove_index(0);
        }
        admitted.insert(peer, credential);
    }
}

/// Why a connection did not become one of the control plane.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    #[error("TLS handshake failed")]
    Handshake(#[source] io::Error),
    #[error(transparent)]
    Rejected(#[from] Rejection),
}

/// The upgrade; cheap to clone.
#[derive(Clone)]
pub(crate) struct Upgrade {
    setup: TlsSetup,
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
    admitted: Admitted,
}

impl Upgrade {
    pub(crate) fn new(setup: &TlsSetup, admitted: Admitted) -> Result<Self, SetupError> {
        Ok(Self {
            setup: setup.clone(),
            server: tls::server_config(setup, Plane::Control)?,
            // Whether it is the peer that was dialled, libp2p checks.
            client: tls::client_config(setup, Plane::Control, None)?,
            admitted,
        })
    }

    fn admit<S>(&self, stream: &TlsStream<S>) -> Result<libp2p::PeerId, UpgradeError> {
        let (_, connection) = stream.get_ref();
        let admitted = tls::check_plane(Plane::Control, connection.alpn_protocol())
            .and_then(|()| tls::peer_of(connection.peer_certificates()));
        let (peer, credential) = admitted.inspect_err(|why| self.setup.rejections().count(why.reason()))?;
        self.admitted.put(peer, credential);
        Ok(addr::to_libp2p(peer))
    }
}

impl UpgradeInfo for Upgrade {
    type Info = &'static str;
    type InfoIter = std::iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/tls/1.0.0")
    }
}

type Encrypted<C> = Compat<TlsStream<Compat<C>>>;

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Upgrade {
    type Output = (libp2p::PeerId, Encrypted<C>);
    type Error = UpgradeError;
    type Future = BoxFuture<'static, Result<Self::Output, UpgradeError>>;

    fn upgrade_inbound(self, socket: C, _: &'static str) -> Self::Future {
        async move {
            let accept = TlsAcceptor::from(self.server.clone()).accept(socket.compat());
            let stream = TlsStream::from(accept.await.map_err(UpgradeError::Handshake)?);
            Ok((self.admit(&stream)?, stream.compat()))
        }
        .boxed()
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Upgrade {
    type Output = (libp2p::PeerId, Encrypted<C>);
    type Error = UpgradeError;
    type Future = BoxFuture<'static, Result<Self::Output, UpgradeError>>;

    fn upgrade_outbound(self, socket: C, _: &'static str) -> Self::Future {
        async move {
            let connect =
                TlsConnector::from(self.client.clone()).connect(tls::server_name(), socket.compat());
            let stream = TlsStream::from(connect.await.map_err(UpgradeError::Handshake)?);
            Ok((self.admit(&stream)?, stream.compat()))
        }
        .boxed()
    }
}
