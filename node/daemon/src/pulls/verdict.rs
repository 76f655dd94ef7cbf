//! What a pull was bounded by, in one word and one sentence.

use serde::Serialize;
use shoal_types::PeerId;

use super::{Phase, Pull};

/// Below this nothing is worth a name, in milliseconds.
const NEGLIGIBLE_MS: f64 = 1.0;

/// What bounded a pull.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// What most of the time was spent on; `None` when nothing took any.
    pub phase: Option<Phase>,
    /// The peer that was waited for longest, when that was for a seeder.
    pub peer: Option<PeerId>,
    /// The same as a sentence.
    pub text: String,
}

impl Pull {
    /// What bounded this pull.
    pub fn verdict(&self) -> Verdict {
        let total: f64 = self.phases.values().sum();
        let longest = self.phases.iter().max_by(|one, two| one.1.total_cmp(two.1));
        let read = self.read.clone().unwrap_or_default();
        let rest_of_read = read.opened_ms + read.arriving_ms + read.disk_ms;
        if read.client_ms > rest_of_read.max(NEGLIGIBLE_MS) {
            let text = format!(
                "the client: it took {} to read what was here, and waited {} for bytes",
                seconds(read.client_ms),
                seconds(rest_of_read)
            );
            return Verdict { phase: Some(Phase::Client), peer: None, text };
        }
        match longest {
            Some((phase, time)) if *time >= NEGLIGIBLE_MS => self.by(*phase, *time, total),
            _ if self.local_bytes > 0 => {
                let text = "the blob was here already".to_owned();
                Verdict { phase: (read.disk_ms >= NEGLIGIBLE_MS).then_some(Phase::Disk), peer: None, text }
            }
            _ => Verdict { phase: None, peer: None, text: "nothing that took time".to_owned() },
        }
    }

    fn by(&self, phase: Phase, time: f64, total: f64) -> Verdict {
        let of = format!("{} of {}", seconds(time), seconds(total));
        let waited = self.peers.iter().max_by(|one, two| one.1.waited_ms.total_cmp(&two.1.waited_ms));
        let (peer, text) = match (phase, waited) {
            (Phase::Seeder, Some((peer, share))) if share.waited_ms >= NEGLIGIBLE_MS => {
                let rate = bytesize::ByteSize::b((share.bytes as f64 / (share.waited_ms / 1000.0)) as u64);
                let zone = share.zone.as_ref().map_or("unknown".to_owned(), ToString::to_string);
                let text = format!(
                    "waiting for a seeder, {of}: {} of it for {peer} in zone {zone}, which gave {} at {rate}/s while it was \
                     waited for",
                    seconds(share.waited_ms),
                    bytesize::ByteSize::b(share.bytes)
                );
                (Some(*peer), text)
            }
            (Phase::Seeder, _) => (None, format!("waiting for anybody to have what was lacking, {of}")),
            (Phase::Lookup, _) => (None, format!("finding out who has the blob, {of}")),
            (Phase::OwnLink, _) => (
                None,
                format!(
                    "this machine's link, {of}: its configured rate was used up, or several peers filled it"
                ),
            ),
            (Phase::Backend, _) => (None, format!("this process's own backend, {of}")),
            (Phase::Disk, _) => (None, format!("checking and writing on the local disk, {of}")),
            (Phase::Client, _) => (None, format!("the client, {of}")),
        };
        Verdict { phase: Some(phase), peer, text }
    }
}

fn seconds(millis: f64) -> String {
    format!("{:.2} s", millis / 1000.0)
}
