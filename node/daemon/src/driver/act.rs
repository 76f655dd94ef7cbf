//! Carrying out the engine's wishes.

use std::future::Future;
use std::sync::Arc;

use futures::FutureExt as _;
use shoal_engine::io::{BufferId, DropReason, Effect, Event, Input, LocalBlob, Opened};
use shoal_engine::message::{Channel, Message};
use shoal_net::revocation::Revocations;
use shoal_store::{FinishError, Store};
use shoal_types::{Digest, Metainfo, PeerId, PieceIndex, VouchedMetainfo};

use super::{Driver, DriverHandle};
use crate::pulls::Moment;
use crate::vault::Vault;
use crate::vouchers;

impl Driver {
    pub(super) fn act(&mut self, effect: Effect) {
        self.watch(Moment::Wish(&effect));
        match effect {
            Effect::Connect { peer, endpoints } => self.connect(peer, endpoints),
            Effect::Disconnect { peer, why, ban } => self.disconnect(peer, why, ban),
            Effect::Send { peer, mut message } => {
                if let Message::Join { digest, trace, .. } = &mut message {
                    *trace = self.parts.traces.joining(digest, &peer);
                }
                // When it cannot be sent the connection is gone or going, and the engine hears of that.
                let _ = self.parts.data.send(peer, message);
            }
            Effect::Expect { peer, channel, digest, piece, bytes } => {
                self.parts.data.expect(peer, channel, digest, piece.get(), bytes);
            }
            Effect::Unexpect { peer, channel, piece } => self.parts.data.unexpect(peer, channel, piece),
            Effect::SendPiece { peer, to, digest, piece } => self.send_piece(peer, to, digest, piece),
            Effect::CancelSend { peer, digest, piece } => self.cancel_send(peer, digest, piece),
            Effect::OpenBlob { digest } => self.open_blob(digest),
            Effect::CreateBlob { metainfo, vouched } => self.create_blob(metainfo, vouched),
            Effect::Lookup { digest, source } => {
                self.parts.traces.searching(&digest, source);
                let (discovery, handle) = (Arc::clone(&self.parts.discovery), self.handle.clone());
                self.start(async move { discovery.look_up(digest, source, &handle).await });
            }
            Effect::Provide { digest } => {
                let discovery = Arc::clone(&self.parts.discovery);
                self.start(async move { discovery.provide(digest).await });
            }
            Effect::VerifyPiece { digest, piece, buffer, from } => {
                self.verify_piece(digest, piece, buffer, from)
            }
            Effect::DropBuffer { buffer } => drop(self.buffers.remove(&buffer)),
            Effect::FetchFromBackend { digest, piece } => {
                self.parts.traces.reads_backend(&digest);
                self.fetch_from_backend(digest, piece);
            }
            Effect::FinishBlob { digest } => self.finish_blob(digest),
            Effect::ReaderStarted { reader, metainfo } => {
                self.progress(reader, |progress| progress.metainfo = Some(metainfo));
            }
            Effect::ReaderAdvance { reader, until } => {
                self.progress(reader, |progress| progress.until = progress.until.max(until));
            }
            Effect::ReaderDone { reader } => self.progress(reader, |progress| progress.done = true),
            Effect::ReaderFailed { reader, why } => {
                self.progress(reader, |progress| progress.failed = Some(why))
            }
            Effect::Report(report) => {
                if let Event::SwarmEnded { digest } = &report.event {
                    self.parts.pins.lock().remove(digest);
                }
                self.parts.pulls.note(&report);
                self.parts.traces.note(&report, |digest| self.parts.pulls.get(digest));
                let directory = &self.parts.directory;
                self.parts
                    .metrics
                    .note(&report, |peer| directory.get(peer).map(|member| (member.zone, member.roles)));
                tracing::debug!(target: "shoal::swarm", event = ?report.event);
            }
        }
    }

    fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }

    fn progress(
        &self,
        reader: shoal_engine::io::ReaderId,
        change: impl FnOnce(&mut crate::reader::Progress),
    ) {
        if let Some(progress) = self.readers.get(&reader) {
            progress.send_modify(change);
        }
    }

    fn connect(&self, peer: PeerId, mut endpoints: Vec<shoal_types::Endpoint>) {
        if endpoints.is_empty() {
            endpoints = self.parts.directory.get(&peer).map(|member| member.endpoints).unwrap_or_default();
        }
        self.parts.data.connect(peer, endpoints);
    }

    fn disconnect(&self, peer: PeerId, why: DropReason, ban: Option<std::time::Duration>) {
        if let Some(time) = ban {
            self.parts.data.ban(peer, time);
        }
        let data = self.parts.data.clone();
        if why == DropReason::Idle && self.parts.links.is_busy(&peer) {
            let links = Arc::clone(&self.parts.links);
            self.start(async move {
                while links.is_busy(&peer) {
                    links.changed().await;
                }
                data.disconnect(peer, why);
            });
        } else {
            data.disconnect(peer, why);
        }
    }

    fn send_piece(&mut self, peer: PeerId, to: Channel, digest: Digest, piece: PieceIndex) {
        let source = crate::pieces::source(self.parts.store.clone(), digest, piece);
        self.sending.insert((peer, to, piece.get()), (digest, piece));
        if self.parts.data.send_piece(peer, to, piece.get(), source).is_err() {
            self.sending.remove(&(peer, to, piece.get()));
            self.fact(Input::PieceSent { peer, digest, piece, bytes: 0 });
        }
    }

    fn cancel_send(&self, peer: PeerId, digest: Digest, piece: PieceIndex) {
        let wanted = (digest, piece);
        let found = self.sending.iter().find(|((to, _, _), sent)| *to == peer && **sent == wanted);
        if let Some(((_, channel, number), _)) = found {
            self.parts.data.cancel_send(peer, *channel, *number);
        }
    }

    fn open_blob(&self, digest: Digest) {
        let (store, vault, handle) =
            (self.parts.store.clone(), self.parts.vault.clone(), self.handle.clone());
        let gate = self.parts.creating.get(&digest).cloned();
        let (pins, revocations) = (Arc::clone(&self.parts.pins), self.parts.revocations.clone());
        self.start(async move {
            if let Some(gate) = gate {
                gate.await;
            }
            // Pinned first, so that what is found stays.
            let pin = store.pin(&digest);
            let opened = open(store, vault.as_ref(), &revocations, digest, &handle).await;
            if matches!(&opened, Opened::Here(blob) if !blob.complete) {
                pins.lock().insert(digest, pin);
            }
            handle.tell(Input::BlobOpened { digest, opened }).await;
        });
    }

    fn create_blob(&mut self, metainfo: Arc<Metainfo>, vouched: Option<Arc<VouchedMetainfo>>) {
        let (store, handle) = (self.parts.store.clone(), self.handle.clone());
        let digest = metainfo.digest();
        self.parts.pins.lock().insert(digest, store.pin(&digest));
        let create = async move {
            let layout = metainfo.layout();
            if let Err(why) = blocking(move || store.create(metainfo, vouched)).await {
                tracing::warn!(%digest, %why, "cannot make room for a blob");
                if let Some(piece) = layout.piece(0) {
                    handle.tell(Input::WriteFailed { digest, piece, why }).await;
                }
            }
        };
        // A live metainfo that grows comes after the one it takes the place of.
        let before = self.parts.creating.get(&digest).cloned();
        let create = async move {
            if let Some(before) = before {
                before.await;
            }
            create.await;
        };
        let gate = tokio::spawn(create).map(|_| ()).boxed().shared();
        self.parts.creating.retain(|_, gate| gate.peek().is_none());
        self.parts.creating.insert(digest, gate);
    }

    fn verify_piece(&mut self, digest: Digest, piece: PieceIndex, buffer: BufferId, from: PeerId) {
        let Some(buffer) = self.buffers.remove(&buffer) else { return };
        let (store, handle) = (self.parts.store.clone(), self.handle.clone());
        let metrics = Arc::clone(&self.parts.metrics);
        let gate = self.parts.creating.get(&digest).cloned();
        self.start(async move {
            if let Some(gate) = gate {
                gate.await;
            }
            let fact = match tokio::task::spawn_blocking(move || check_in(&store, digest, piece, &buffer))
                .await
            {
                Ok(CheckedIn::Verified) => Input::PieceVerified { digest, piece },
                Ok(CheckedIn::Corrupt) => {
                    metrics.pieces_corrupt.inc();
                    tracing::warn!(%digest, piece = piece.get(), peer = %from, "a peer sent a corrupt piece");
                    Input::PieceCorrupt { digest, piece, from: Some(from) }
                }
                Ok(CheckedIn::Failed(why)) => Input::WriteFailed { digest, piece, why },
                Err(error) => Input::WriteFailed { digest, piece, why: error.to_string() },
            };
            handle.tell(fact).await;
        });
    }

    fn fetch_from_backend(&self, digest: Digest, piece: PieceIndex) {
        let (store, handle) = (self.parts.store.clone(), self.handle.clone());
        let Some(vault) = self.parts.vault.clone() else { return };
        let gate = self.parts.creating.get(&digest).cloned();
        self.start(async move {
            if let Some(gate) = gate {
                gate.await;
            }
            if vault.is_read_live(&digest) {
                let fact = match vault.wait_for_piece(&digest, piece).await {
                    true => Input::PieceVerified { digest, piece },
                    false => Input::BackendFailed { digest, piece },
                };
                return handle.tell(fact).await;
            }
            let fact = match vault.read_piece(&digest, piece).await {
                Err(why) => {
                    tracing::warn!(%digest, piece = piece.get(), %why, "the backend does not give a piece");
                    Input::BackendFailed { digest, piece }
                }
                Ok(bytes) => {
                    match tokio::task::spawn_blocking(move || check_in(&store, digest, piece, &bytes)).await {
                        Ok(CheckedIn::Verified) => Input::PieceVerified { digest, piece },
                        Ok(CheckedIn::Corrupt) => Input::PieceCorrupt { digest, piece, from: None },
                        Ok(CheckedIn::Failed(why)) => Input::WriteFailed { digest, piece, why },
                        Err(error) => Input::WriteFailed { digest, piece, why: error.to_string() },
                    }
                }
            };
            handle.tell(fact).await;
        });
    }

    fn finish_blob(&self, digest: Digest) {
        let (store, handle) = (self.parts.store.clone(), self.handle.clone());
        let gate = self.parts.creating.get(&digest).cloned();
        let pins = Arc::clone(&self.parts.pins);
        self.start(async move {
            if let Some(gate) = gate {
                gate.await;
            }
            finish(store, digest, &handle).await;
            pins.lock().remove(&digest);
        });
    }
}

/// What the store, and at an origin the backend, have of a blob.
pub(crate) async fn open(
    store: Store,
    vault: Option<&Arc<Vault>>,
    revocations: &Revocations,
    digest: Digest,
    handle: &DriverHandle,
) -> Opened {
    let books = store.clone();
    let found = blocking(move || books.lookup(&digest)).await;
    let in_store = match found {
        Ok(entry) => entry,
        Err(why) => {
            tracing::warn!(%digest, %why, "the store cannot be asked for a blob");
            None
        }
    };
    match (in_store, vault) {
        (Some(entry), vault) => {
            let in_backend = match vault {
                Some(vault) if !entry.complete => vault.supplies(&entry.metainfo, handle).await,
                _ => false,
            };
            let vouched = entry.vouched.filter(|vouched| !vouchers::is_revoked(revocations, vouched));
            let vouched = match (vouched, vault) {
                // All of it is here and has the digest, which is what vouching says.
                (None, Some(vault)) if entry.complete => {
                    Some(Arc::new(vault.vouch(entry.metainfo.as_ref().clone())))
                }
                (vouched, _) => vouched,
            };
            Opened::Here(LocalBlob {
                metainfo: entry.metainfo,
                vouched,
                pieces: entry.pieces,
                complete: entry.complete,
                in_backend,
            })
        }
        (None, Some(vault)) => {
            let opened = vault.open(digest, handle).await;
            // What only the backend has gets a place here, for its pieces pass through the store.
            if let Opened::Here(blob) = &opened {
                let (metainfo, vouched) = (Arc::clone(&blob.metainfo), blob.vouched.clone());
                if let Err(why) = blocking(move || store.create(metainfo, vouched)).await {
                    tracing::warn!(%digest, %why, "cannot make room for a blob of the backend");
                    return Opened::Absent { owner: true, backend_down: true };
                }
            }
            opened
        }
        (None, None) => Opened::Absent { owner: false, backend_down: false },
    }
}

enum CheckedIn {
    Verified,
    Corrupt,
    Failed(String),
}

/// Verifies a piece and writes it.
fn check_in(store: &Store, digest: Digest, piece: PieceIndex, bytes: &[u8]) -> CheckedIn {
    let entry = match store.lookup(&digest) {
        Ok(Some(entry)) => entry,
        Ok(None) => return CheckedIn::Failed("the blob was removed while it arrived".to_owned()),
        Err(error) => return CheckedIn::Failed(error.to_string()),
    };
    if !entry.metainfo.verifies(piece, bytes) {
        return CheckedIn::Corrupt;
    }
    match store.write_piece(&digest, piece, bytes) {
        Ok(()) => CheckedIn::Verified,
        Err(error) => CheckedIn::Failed(error.to_string()),
    }
}

/// Checks the whole digest, tells the engine, and only then waits for the disk: readers need not.
async fn finish(store: Store, digest: Digest, handle: &DriverHandle) {
    let checking = store.clone();
    let checked = tokio::task::spawn_blocking(move || checking.check_digest(&digest)).await;
    match checked {
        Ok(Ok(())) => handle.tell(Input::BlobFinished { digest }).await,
        Ok(Err(FinishError::DigestMismatch { .. })) => {
            tracing::error!(%digest, "all pieces were as vouched, but the digest is wrong: the blob is thrown away");
            handle.tell(Input::BlobCorrupt { digest }).await;
            return;
        }
        Ok(Err(error)) => return failed(handle, &store, digest, error.to_string()).await,
        Err(error) => return failed(handle, &store, digest, error.to_string()).await,
    }
    if let Err(why) = blocking(move || store.commit(&digest)).await {
        tracing::error!(%digest, %why, "a complete blob cannot be put in its place; it is kept as a partial one");
    }
}

async fn failed(handle: &DriverHandle, store: &Store, digest: Digest, why: String) {
    let store = store.clone();
    let entry = blocking(move || store.lookup(&digest)).await.ok().flatten();
    if let Some(piece) = entry.and_then(|entry| entry.metainfo.layout().piece(0)) {
        handle.tell(Input::WriteFailed { digest, piece, why }).await;
    } else {
        handle.tell(Input::BlobRemoved { digest }).await;
    }
}

/// Runs disk work off the I/O threads; errors become texts for logs and readers.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, String>
where
    T: Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
