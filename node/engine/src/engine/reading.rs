//! Local readers, and how a blob ends.

use shoal_types::PeerId;

use super::{BAD_SIGNERS_MAX, Engine};
use crate::io::{Effect, Event, ReadError, ReaderId, ReaderWant};
use crate::message::Absence;
use crate::names::BlobName;
use crate::swarm::readers::Reader;
use crate::timers::Timer;

impl Engine {
    pub(super) fn reader_opened(&mut self, reader: ReaderId, name: BlobName, want: ReaderWant) {
        if self.readers.contains(reader) {
            return;
        }
        if !self.swarms.contains(name) && self.swarms.len() >= self.config.swarms_max && !self.evict_swarm() {
            return self.out.push(Effect::ReaderFailed { reader, why: ReadError::Busy });
        }
        let now = self.now;
        let fresh = self.open(name);
        self.readers.insert(reader, name);
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        swarm.readers.insert(reader, Reader::new(want, now));
        swarm.unread_since = None;
        self.timers.cancel(Timer::Linger(name));
        if fresh || swarm.opening {
            return;
        }
        self.start_readers(name);
        let searching = self.swarms.get(name).is_some_and(|swarm| {
            swarm.blob.is_none() || (!swarm.is_complete() && !swarm.in_backend && swarm.members.is_empty())
        });
        if searching {
            self.search(name);
        }
        self.fill_swarm(name);
    }

    pub(super) fn reader_moved(&mut self, reader: ReaderId, offset: u64) {
        let Some(name) = self.readers.get(reader).copied() else { return };
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let layout = swarm.blob.as_ref().map(|blob| blob.layout);
        let window_bytes = self.config.reader_window_bytes;
        let mut changed = false;
        if let Some(reader) = swarm.readers.get_mut(reader) {
            let window = |reader: &Reader| layout.as_ref().map(|layout| reader.window(layout, window_bytes));
            let before = window(reader);
            reader.moved(offset, layout.as_ref());
            changed = before != window(reader);
        }
        self.advance_readers(name);
        // A reader that keeps up with what arrives moves with every piece, and asks for nothing new by that.
        if changed {
            self.fill_swarm(name);
        }
    }

    pub(super) fn reader_closed(&mut self, reader: ReaderId) {
        let Some(name) = self.readers.remove(reader) else { return };
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let closed = swarm.readers.remove(reader);
        let payload = closed.is_some_and(|reader| reader.want != ReaderWant::Metainfo);
        if swarm.readers.is_empty() && payload {
            swarm.unread_since = Some(self.now);
        }
        self.check_use(name);
    }

    /// Tells readers the metainfo, and at once how far they can read.
    pub(super) fn start_readers(&mut self, name: BlobName) {
        let now = self.now;
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let Some(blob) = &swarm.blob else { return };
        let mut beyond = Vec::new();
        for (id, reader) in swarm.readers.iter_mut().filter(|(_, reader)| !reader.started) {
            reader.advanced = now;
            if reader.start(&blob.layout) {
                self.out.push(Effect::ReaderStarted { reader: id, metainfo: blob.metainfo.clone() });
            } else {
                beyond.push(id);
            }
        }
        let size = blob.layout.size();
        if !beyond.is_empty() {
            // They are in order, as all readers are.
            let stays = |reader: ReaderId| beyond.binary_search(&reader).is_err();
            swarm.readers.retain(|reader, _| stays(reader));
            self.readers.retain(|reader, _| stays(reader));
        }
        for reader in beyond {
            self.out.push(Effect::ReaderFailed { reader, why: ReadError::Range { size } });
        }
        self.advance_readers(name);
    }

    pub(super) fn advance_readers(&mut self, name: BlobName) {
        let now = self.now;
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let Some(blob) = &swarm.blob else { return };
        for (id, reader) in swarm.readers.iter_mut() {
            let told = reader.advance(now, &blob.layout, &blob.have, blob.complete);
            if let Some(until) = told.until {
                self.out.push(Effect::ReaderAdvance { reader: id, until });
            }
            if told.done {
                self.out.push(Effect::ReaderDone { reader: id });
            }
        }
    }

    pub(super) fn fail_readers(&mut self, name: BlobName, why: &ReadError) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let readers = std::mem::take(&mut swarm.readers);
        if !readers.is_empty() {
            self.readers.retain(|_, of| *of != name);
        }
        for (reader, state) in readers.into_iter() {
            if !state.done {
                self.out.push(Effect::ReaderFailed { reader, why: why.clone() });
            }
        }
    }

    pub(super) fn finish_if_whole(&mut self, name: BlobName) {
        let Some(blob) = self.swarms.get_mut(name).and_then(|swarm| swarm.blob.as_mut()) else { return };
        if blob.have.is_full() && !blob.complete && !blob.finishing {
            blob.finishing = true;
            self.wish(name, |digest| Effect::FinishBlob { digest });
        }
    }

    pub(super) fn blob_finished(&mut self, name: BlobName) {
        let now = self.now;
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        let Some(blob) = &mut swarm.blob else { return };
        if blob.complete || !blob.have.is_full() {
            return;
        }
        blob.complete = true;
        blob.finishing = false;
        let size = blob.layout.size();
        let took = now.saturating_since(swarm.started);
        let provide = !std::mem::replace(&mut swarm.provided, true);
        let members: Vec<PeerId> = swarm.members.keys().copied().collect();
        if provide {
            self.wish(name, |digest| Effect::Provide { digest });
        }
        self.report(name, |digest| Event::BlobCompleted { digest, size, took });
        self.end_search(name);
        self.flush_haves(name);
        self.advance_readers(name);
        for peer in members {
            self.part_seeders(name, peer);
        }
        self.check_use(name);
        self.fill_fetching();
    }

    pub(super) fn blob_corrupt(&mut self, name: BlobName) {
        let Some(swarm) = self.swarms.get(name) else { return };
        let digest = swarm.digest;
        let signer = swarm
            .blob
            .as_ref()
            .and_then(|blob| blob.vouched.as_ref())
            .map(|vouched| vouched.metainfo.signer());
        if let Some(signer) = signer {
            if self.bad_signers.len() >= BAD_SIGNERS_MAX {
                self.bad_signers.pop_first();
            }
            self.bad_signers.insert((digest, signer));
        }
        self.report(name, |digest| Event::BlobFailed { digest, why: ReadError::Corrupt });
        self.fail_readers(name, &ReadError::Corrupt);
        self.end_swarm(name, None);
    }

    pub(super) fn blob_removed(&mut self, name: BlobName) {
        self.fail_readers(name, &ReadError::NotFound);
        self.end_swarm(name, None);
    }

    /// Ends a swarm that serves nobody, and lets one that nobody uses age.
    pub(super) fn check_use(&mut self, name: BlobName) {
        let Some(swarm) = self.swarms.get(name) else { return };
        if !swarm.readers.is_empty() || swarm.opening {
            return self.timers.cancel(Timer::Linger(name));
        }
        if swarm.blob.is_none() && !swarm.owner {
            return self.end_swarm(name, Some(Absence::NotHere));
        }
        if !self.timers.is_set(Timer::Linger(name)) {
            self.timers.set(Timer::Linger(name), self.now + self.config.linger);
        }
    }

    pub(super) fn linger_over(&mut self, name: BlobName) {
        let Some(swarm) = self.swarms.get_mut(name) else { return };
        if !swarm.readers.is_empty() {
            return;
        }
        swarm.unread_since = None;
        if swarm.members.is_empty() {
            return self.end_swarm(name, None);
        }
        let stale: Vec<(PeerId, u32)> = swarm
            .members
            .iter()
            .filter(|_| !swarm.wants_payload(self.now, self.config.linger))
            .flat_map(|(peer, member)| member.outstanding.iter().map(|(number, _)| (*peer, number)))
            .collect();
        for (peer, number) in stale {
            self.withdraw(name, peer, number);
        }
        self.timers.set(Timer::Linger(name), self.now + self.config.linger);
    }

    /// Drops one swarm that nobody uses to make room; `false` when all are in use.
    fn evict_swarm(&mut self) -> bool {
        let idle = self
            .swarms
            .values()
            .filter(|swarm| swarm.readers.is_empty() && swarm.members.is_empty() && !swarm.opening)
            .min_by_key(|swarm| (swarm.unread_since, swarm.digest))
            .map(|swarm| swarm.name);
        let Some(name) = idle else { return false };
        self.end_swarm(name, None);
        true
    }
}
