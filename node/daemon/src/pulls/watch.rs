//! From what passes the driver to the accounts of the downloads under way.

use std::collections::{BTreeMap, HashMap};

use shoal_engine::io::{Effect, Event, Input, Opened, ReaderId, ReaderWant};
use shoal_engine::message::Channel;
use shoal_types::{Digest, PeerId, Timestamp};

use super::account::{Account, Link, Stretch};

/// Most downloads with an account; further ones have no phases.
const ACCOUNTS_MAX: usize = 512;

/// What passes the driver.
#[derive(Clone, Copy)]
pub(crate) enum Moment<'a> {
    /// A fact, before the engine is told.
    Fact(&'a Input),
    /// A wish, before it is carried out.
    Wish(&'a Effect),
}

#[derive(Debug, Default)]
pub(crate) struct Watch {
    accounts: BTreeMap<Digest, Account>,
    readers: HashMap<ReaderId, Digest>,
    /// What was asked for, by who was asked on which channel for which piece: as many as the engine has requests in flight.
    asked: HashMap<(PeerId, Channel, u32), Digest>,
    link: Link,
}

impl Watch {
    /// Takes note of a moment; `spend` is told of each stretch of time that it ends.
    pub(crate) fn take(
        &mut self,
        now: Timestamp,
        limited: bool,
        moment: Moment<'_>,
        spend: impl FnMut(&Digest, Stretch<'_>),
    ) {
        let bytes = match moment {
            Moment::Fact(Input::PieceProgress { bytes, .. }) => u64::from(*bytes),
            _ => 0,
        };
        self.link.note(now, bytes, limited);
        match moment {
            Moment::Fact(fact) => self.fact(now, fact, spend),
            Moment::Wish(wish) => self.wish(now, wish, spend),
        }
    }

    fn fact(&mut self, now: Timestamp, fact: &Input, mut spend: impl FnMut(&Digest, Stretch<'_>)) {
        match fact {
            Input::ReaderOpened { want: ReaderWant::Metainfo, .. } => {}
            Input::ReaderOpened { reader, digest, .. } => {
                if self.accounts.len() < ACCOUNTS_MAX {
                    self.accounts.entry(*digest).or_insert_with(|| Account::new(now));
                }
                self.change(now, digest, &mut spend, |account| {
                    account.readers += 1;
                });
                if self.accounts.contains_key(digest) {
                    self.readers.insert(*reader, *digest);
                }
            }
            Input::ReaderClosed { reader } => {
                let Some(digest) = self.readers.remove(reader) else { return };
                self.change(now, &digest, &mut spend, |account| {
                    account.readers = account.readers.saturating_sub(1);
                });
            }
            Input::BlobOpened { digest, opened: Opened::Here(blob) } => {
                let pieces = blob.metainfo.layout().piece_count();
                let here = blob.pieces.count();
                self.change(now, digest, &mut spend, |account| account.opened(pieces, here));
            }
            Input::PieceProgress { peer, channel, piece, .. } => {
                let Some(digest) = self.asked.get(&(*peer, *channel, *piece)).copied() else { return };
                self.change(now, &digest, &mut spend, |_| {});
            }
            Input::PieceVerified { digest, piece } => {
                self.change(now, digest, &mut spend, |account| account.settled(piece.get(), true));
            }
            Input::PieceCorrupt { digest, piece, .. }
            | Input::WriteFailed { digest, piece, .. }
            | Input::BackendFailed { digest, piece } => {
                self.change(now, digest, &mut spend, |account| account.settled(piece.get(), false));
            }
            Input::PeerDisconnected { peer } => {
                self.asked.retain(|(asked, _, _), _| asked != peer);
                let digests: Vec<Digest> = self.accounts.keys().copied().collect();
                for digest in digests {
                    self.change(now, &digest, &mut spend, |account| account.peer_gone(peer));
                }
            }
            _ => {}
        }
    }

    fn wish(&mut self, now: Timestamp, wish: &Effect, mut spend: impl FnMut(&Digest, Stretch<'_>)) {
        match wish {
            Effect::Expect { peer, channel, digest, piece, .. } => {
                self.asked.insert((*peer, *channel, piece.get()), *digest);
                self.change(now, digest, &mut spend, |account| account.asked(*peer, piece.get()));
            }
            Effect::Unexpect { peer, channel, piece } => {
                let Some(digest) = self.asked.remove(&(*peer, *channel, *piece)) else { return };
                self.change(now, &digest, &mut spend, |account| account.unasked(peer, *piece));
            }
            Effect::VerifyPiece { digest, piece, from, .. } => {
                let number = piece.get();
                self.asked.retain(|(peer, _, asked), of| !(*asked == number && peer == from && of == digest));
                self.change(now, digest, &mut spend, |account| {
                    account.unasked(from, number);
                    account.verifying(number);
                });
            }
            Effect::FetchFromBackend { digest, piece } => {
                self.change(now, digest, &mut spend, |account| account.note_backend(piece.get()));
            }
            Effect::CreateBlob { metainfo, .. } => {
                let pieces = metainfo.layout().piece_count();
                self.change(now, &metainfo.digest(), &mut spend, |account| account.opened(pieces, 0));
            }
            Effect::Report(report) => match &report.event {
                Event::BlobCompleted { digest, .. }
                | Event::BlobFailed { digest, .. }
                | Event::SwarmEnded { digest } => {
                    self.change(now, digest, &mut spend, |_| {});
                    self.accounts.remove(digest);
                    self.readers.retain(|_, of| of != digest);
                }
                _ => {}
            },
            _ => {}
        }
    }

    /// Ends the stretch of time before a change, and makes it.
    fn change(
        &mut self,
        now: Timestamp,
        digest: &Digest,
        spend: &mut impl FnMut(&Digest, Stretch<'_>),
        change: impl FnOnce(&mut Account),
    ) {
        let Some(account) = self.accounts.get_mut(digest) else { return };
        if let Some(stretch) = account.advance(now, &self.link) {
            spend(digest, stretch);
        }
        change(account);
    }
}
