//! Fetching images into the own store.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use indexmap::IndexMap;
use parking_lot::Mutex;
use shoal_types::Digest;
use tokio::sync::{Semaphore, watch};

use super::platform::{Needed, Platforms};
use super::{Job, State};
use crate::driver::blocking;
use crate::node::Node;

/// Images fetched side by side, and blobs of each: few, for pulls that clients wait for come first.
const IMAGES: usize = 2;
const BLOBS: usize = 4;
/// Images that may wait; whoever asks for more asks again later.
const WAITING_MAX: usize = 64;
/// Images whose end is remembered until it is asked for.
const REMEMBERED_MAX: usize = 256;
/// Manifests in one image: an index of many platforms, and indexes of indexes.
const MANIFESTS_MAX: usize = 1000;
/// Config and layers of one image.
const BLOBS_MAX: usize = 100_000;
/// How long an image may take.
const IMAGE_TIME_MAX: Duration = Duration::from_secs(6 * 3600);
/// How long a question waits for news.
const LINGER: Duration = Duration::from_secs(1);
/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(250);

/// The images that this process fetches, or has fetched and not yet said so.
pub(crate) struct Here {
    jobs: Mutex<IndexMap<Job, watch::Receiver<State>>>,
    slots: Arc<Semaphore>,
}

impl Default for Here {
    fn default() -> Self {
        Self { jobs: Mutex::default(), slots: Arc::new(Semaphore::new(IMAGES)) }
    }
}

impl Here {
    /// Images waiting or being fetched.
    pub(crate) fn active(&self) -> usize {
        self.jobs.lock().values().filter(|told| !told.borrow().is_final()).count()
    }

    /// What is told of a job, and where to tell it when this is the first to ask; `None` when too many wait.
    fn enter(&self, job: &Job) -> Option<(watch::Receiver<State>, Option<watch::Sender<State>>)> {
        let mut jobs = self.jobs.lock();
        if let Some(told) = jobs.get(job) {
            return Some((told.clone(), None));
        }
        if jobs.values().filter(|told| !told.borrow().is_final()).count() >= WAITING_MAX {
            return None;
        }
        while jobs.len() >= REMEMBERED_MAX {
            let over = jobs.values().position(|told| told.borrow().is_final())?;
            jobs.shift_remove_index(over);
        }
        let (tell, told) = watch::channel(State::Waiting);
        jobs.insert(job.clone(), told.clone());
        Some((told, Some(tell)))
    }
}

impl Node {
    /// Fetches an image, and says how far it is: at once when it is over, otherwise after a moment. `None`: too many wait
    /// already.
    pub(crate) async fn preheat_here(&self, job: &Job) -> Option<State> {
        // Before it is remembered: what comes from elsewhere may be long.
        if let Err(error) = Platforms::parse(&job.platforms) {
            return Some(State::Failed { why: error.to_string() });
        }
        let here = self.preheating();
        let (mut told, tell) = here.enter(job)?;
        if let Some(tell) = tell {
            let (node, job) = (self.clone(), job.clone());
            tokio::spawn(async move { node.fetch_image(&job, &tell).await });
        }
        let lost = matches!(tokio::time::timeout(LINGER, told.wait_for(State::is_final)).await, Ok(Err(_)));
        let state = match lost {
            true => State::Failed { why: "the fetch was given up".to_owned() },
            false => told.borrow().clone(),
        };
        if state.is_final() {
            // Told: whoever asks next has it looked after again, if somebody has not begun that already.
            let mut jobs = here.jobs.lock();
            if jobs.get(job).is_some_and(|told| told.borrow().is_final()) {
                jobs.shift_remove(job);
            }
        }
        Some(state)
    }

    async fn fetch_image(&self, job: &Job, tell: &watch::Sender<State>) {
        let slots = Arc::clone(&self.preheating().slots);
        let fetched = tokio::select! {
            () = self.stopping() => Err("the node stops".to_owned()),
            fetched = async {
                let _slot = slots.acquire_owned().await.map_err(|error| error.to_string())?;
                let late = format!("it was not there after {} h", IMAGE_TIME_MAX.as_secs() / 3600);
                tokio::time::timeout(IMAGE_TIME_MAX, self.fetch_all(job, tell)).await.map_err(|_| late)?
            } => fetched,
        };
        let (outcome, state) = match fetched {
            Ok(total_bytes) => ("done", State::Done { total_bytes }),
            Err(why) => {
                tracing::warn!(repository = %job.repository, digest = %job.digest, %why, "an image is not preheated");
                ("failed", State::Failed { why })
            }
        };
        self.metrics().note_preheated(outcome);
        tell.send_replace(state);
    }

    /// Fetches all that an image needs; returns the bytes of its blobs.
    async fn fetch_all(&self, job: &Job, tell: &watch::Sender<State>) -> Result<u64, String> {
        let blobs = self.look_through(job).await?;
        let total = blobs.values().fold(0u64, |sum, size| sum.saturating_add(*size));
        let capacity = self.store().usage().capacity_bytes;
        if total > capacity {
            return Err(format!("its {total} bytes are more than this node's store may have, {capacity}"));
        }
        let sizes: Vec<(Digest, u64)> = blobs.into_iter().collect();
        let digests: Vec<Digest> = sizes.iter().map(|(digest, _)| *digest).collect();
        let fetches = digests.into_iter().map(|digest| async move {
            let fetched = self.fetch_of(&job.repository, digest).await;
            fetched.map_err(|error| format!("the blob {digest}: {error}"))
        });
        let mut fetches = futures::stream::iter(fetches.collect::<Vec<_>>()).buffer_unordered(BLOBS);
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                fetched = fetches.next() => match fetched {
                    Some(fetched) => fetched?,
                    None => break,
                },
                _ = look.tick() => {
                    let done = self.bytes_here(&sizes).await?;
                    tell.send_replace(State::Fetching { done_bytes: done.min(total), total_bytes: total });
                }
            }
        }
        drop(fetches);
        // What came first may have had to give way already.
        match self.bytes_here(&sizes).await? {
            here if here >= total => Ok(total),
            here => Err(format!(
                "{} of its {total} bytes were evicted again: the store is too small",
                total - here
            )),
        }
    }

    /// The config and layers that an image needs, by reading its manifests.
    async fn look_through(&self, job: &Job) -> Result<IndexMap<Digest, u64>, String> {
        let platforms = Platforms::parse(&job.platforms).map_err(|error| error.to_string())?;
        let mut blobs = IndexMap::new();
        let mut seen = BTreeSet::from([job.digest]);
        let mut queue = VecDeque::from([job.digest]);
        while let Some(digest) = queue.pop_front() {
            let failed = |why: String| format!("the manifest {digest}: {why}");
            let bytes = self.read_manifest_of(&job.repository, digest).await;
            let bytes = bytes.map_err(|error| failed(error.to_string()))?;
            let needed = Needed::parse(&bytes, &platforms).map_err(failed)?;
            blobs.extend(needed.blobs);
            queue.extend(needed.manifests.into_iter().filter(|digest| seen.insert(*digest)));
            if seen.len() > MANIFESTS_MAX || blobs.len() > BLOBS_MAX {
                return Err("it refers to too many manifests and blobs".to_owned());
            }
        }
        Ok(blobs)
    }

    /// How many bytes of these blobs are in the store.
    async fn bytes_here(&self, blobs: &[(Digest, u64)]) -> Result<u64, String> {
        let (store, blobs) = (self.store().clone(), blobs.to_vec());
        blocking(move || {
            let mut here = 0u64;
            for (digest, size) in blobs {
                let Some(entry) = store.lookup(&digest)? else { continue };
                let share = match entry.complete {
                    true => size,
                    false => {
                        let pieces = u64::from(entry.metainfo.layout().piece_count()).max(1);
                        size.saturating_mul(u64::from(entry.pieces.count())) / pieces
                    }
                };
                here = here.saturating_add(share);
            }
            Ok::<_, shoal_store::StoreError>(here)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(n: u32) -> Job {
        let digest = Digest::sha256(&n.to_le_bytes());
        Job { repository: "a".parse().unwrap(), digest, platforms: Vec::new() }
    }

    #[test]
    fn one_job_is_entered_once_and_the_number_of_jobs_is_bounded() {
        let here = Here::default();
        let mut open = Vec::new();
        for n in 0..WAITING_MAX as u32 {
            let (_, tell) = here.enter(&job(n)).unwrap();
            open.push(tell.unwrap());
        }
        assert!(here.enter(&job(0)).unwrap().1.is_none(), "it is under way");
        assert!(here.enter(&job(9999)).is_none(), "too many wait");
        for tell in open {
            tell.send_replace(State::Done { total_bytes: 1 });
        }
        assert_eq!(here.active(), 0);
        for n in 0..2 * REMEMBERED_MAX as u32 {
            let (_, tell) = here.enter(&job(1000 + n)).unwrap();
            tell.unwrap().send_replace(State::Done { total_bytes: 1 });
        }
        assert_eq!(here.jobs.lock().len(), REMEMBERED_MAX);
    }
}
