use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A registry of a few manifests and blobs, each a number.
#[derive(Clone, Debug)]
struct Registry {
    /// Manifest `n`: its children (manifests), blobs, subject.
    manifests: Vec<(Vec<usize>, Vec<usize>, Option<usize>)>,
    /// Manifests that a repository says it holds.
    held: Vec<bool>,
    tags: Vec<usize>,
}

fn manifest_digest(number: usize) -> Digest {
    Digest::sha256(format!("manifest {number}").as_bytes())
}

fn blob_digest(number: usize) -> Digest {
    Digest::sha256(format!("blob {number}").as_bytes())
}

impl Registry {
    /// Children and subjects are of greater and smaller numbers alike: an attacker's manifests cannot name themselves,
    /// but marking must end all the same.
    fn any() -> impl Strategy<Value = Self> {
        let manifest = (
            prop::collection::vec(0..12_usize, 0..3),
            prop::collection::vec(0..12_usize, 0..4),
            prop::option::weighted(0.3, 0..12_usize),
        );
        let manifests = prop::collection::vec(manifest, 12);
        let tags = prop::collection::vec(0..12_usize, 0..4);
        (manifests, prop::collection::vec(prop::bool::weighted(0.8), 12), tags)
            .prop_map(|(manifests, held, tags)| Self { manifests, held, tags })
    }

    fn bytes(&self, number: usize) -> Vec<u8> {
        let (children, blobs, subject) = &self.manifests[number];
        let descriptor = |digest: Digest| json!({"digest": digest.to_string()});
        let list = |digests: Vec<Digest>| digests.into_iter().map(descriptor).collect::<Vec<Value>>();
        let mut manifest = json!({
            "manifests": list(children.iter().map(|n| manifest_digest(*n)).collect()),
            "layers": list(blobs.iter().map(|n| blob_digest(*n)).collect()),
        });
        if let Some(subject) = subject {
            manifest["subject"] = descriptor(manifest_digest(*subject));
        }
        manifest.to_string().into_bytes()
    }

    fn roots(&self) -> Roots {
        let held = (0..self.manifests.len()).filter(|n| self.held[*n]);
        Roots {
            tagged: self.tags.iter().map(|n| manifest_digest(*n)).collect(),
            kept: BTreeSet::new(),
            manifests: held.map(|n| (manifest_digest(n), self.manifests[n].2.map(manifest_digest))).collect(),
        }
    }

    /// The naive model: repeats until nothing is added.
    fn reached(&self, keep_untagged: bool) -> BTreeSet<Digest> {
        let mut manifests: BTreeSet<usize> = self.tags.iter().copied().collect();
        if keep_untagged {
            manifests.extend((0..self.manifests.len()).filter(|n| self.held[*n]));
        }
        loop {
            let mut more = manifests.clone();
            for number in &manifests {
                let (children, _, subject) = &self.manifests[*number];
                more.extend(children);
                more.extend(subject);
            }
            for (number, (_, _, subject)) in self.manifests.iter().enumerate() {
                if self.held[number] && subject.is_some_and(|subject| manifests.contains(&subject)) {
                    more.insert(number);
                }
            }
            if more == manifests {
                break;
            }
            manifests = more;
        }
        let blobs = manifests.iter().flat_map(|number| self.manifests[*number].1.iter());
        let blobs: BTreeSet<Digest> = blobs.map(|n| blob_digest(*n)).collect();
        manifests.iter().map(|n| manifest_digest(*n)).chain(blobs).collect()
    }
}

/// Runs a marker over a registry in which the manifests `lost` cannot be found.
fn mark(registry: &Registry, keep_untagged: bool, lost: &[usize]) -> Result<BTreeSet<Digest>, Unreadable> {
    let mut marker = Marker::new(&registry.roots(), keep_untagged);
    let mut asked = BTreeSet::new();
    while let Some(digest) = marker.pop() {
        assert!(asked.insert(digest), "{digest} is asked for twice");
        let number = (0..registry.manifests.len()).find(|n| manifest_digest(*n) == digest).unwrap();
        match lost.contains(&number) {
            true => marker.unread(digest)?,
            false => marker.read(digest, &registry.bytes(number))?,
        }
    }
    Ok(marker.finish())
}

proptest! {
    #[test]
    fn exactly_what_the_model_reaches_is_marked(registry in Registry::any(), keep_untagged: bool) {
        prop_assert_eq!(mark(&registry, keep_untagged, &[]).unwrap(), registry.reached(keep_untagged));
    }

    /// Whatever is lost, either marking says that it is incomplete, or nothing that is there and reached is missing.
    #[test]
    fn what_is_lost_stops_it_or_was_of_no_repository(registry in Registry::any(), lost in 0..12_usize) {
        let reached = registry.reached(false);
        match mark(&registry, false, &[lost]) {
            Err(error) => {
                prop_assert_eq!(error.digest, manifest_digest(lost));
                prop_assert!(reached.contains(&manifest_digest(lost)));
            }
            Ok(marked) => {
                let is_known = registry.held[lost] || registry.tags.contains(&lost);
                prop_assert!(!is_known || !reached.contains(&manifest_digest(lost)));
                let mut without = registry.clone();
                without.manifests[lost] = (vec![], vec![], without.manifests[lost].2.filter(|_| is_known));
                prop_assert!(without.reached(false).is_subset(&marked));
            }
        }
    }
}

#[test]
fn a_blob_that_is_named_as_a_manifest_later_is_read() {
    // Manifest 0 names manifest 2 as a layer, index 1 names it as a manifest; no repository says that it holds it.
    let descriptor = |digest: Digest| json!({"digest": digest.to_string()});
    let mut roots = Roots::default();
    roots.tagged.extend([manifest_digest(0), manifest_digest(1)]);
    let mut marker = Marker::new(&roots, false);
    let layers = json!({"layers": [descriptor(manifest_digest(2))]}).to_string();
    marker.read(manifest_digest(0), layers.as_bytes()).unwrap();
    let index = json!({"manifests": [descriptor(manifest_digest(2))]}).to_string();
    marker.read(manifest_digest(1), index.as_bytes()).unwrap();
    let mut asked = Vec::new();
    while let Some(digest) = marker.pop() {
        asked.push(digest);
    }
    assert!(asked.contains(&manifest_digest(2)));
}

#[test]
fn a_long_chain_of_referrers_is_followed() {
    let mut roots = Roots::default();
    roots.tagged.insert(manifest_digest(0));
    for n in 1..100_000 {
        roots.manifests.insert(manifest_digest(n), Some(manifest_digest(n - 1)));
    }
    assert_eq!(Marker::new(&roots, false).len(), 100_000);
}

#[test]
fn what_is_no_manifest_stops_it() {
    let mut roots = Roots::default();
    roots.tagged.insert(manifest_digest(0));
    let mut marker = Marker::new(&roots, false);
    assert!(marker.read(manifest_digest(0), b"garbage").is_err());
}
