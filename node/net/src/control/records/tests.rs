//! The store against a naive model, and its bounds.

use super::*;
use proptest::prelude::*;
use shoal_types::Keypair;

fn peer(n: u8) -> PeerId {
    addr::to_libp2p(Keypair::from_secret(&[n.max(1); 32]).peer_id())
}

fn digest(n: u16) -> Digest {
    Digest::sha256(&n.to_le_bytes())
}

fn config(records_max: usize, per_publisher_max: usize, per_key_max: usize) -> RecordsConfig {
    RecordsConfig { records_max, per_publisher_max, per_key_max, ..RecordsConfig::default() }
}

fn record(of: u16, by: u8, expires: Instant) -> ProviderRecord {
    ProviderRecord { key: key_of(&digest(of)), provider: peer(by), expires: Some(expires), addresses: vec![] }
}

fn store(config: RecordsConfig) -> Records {
    Records::new(peer(255), config, 7)
}

#[derive(Clone, Debug)]
enum Operation {
    Add { of: u16, by: u8, seconds: u64 },
    Remove { of: u16, by: u8 },
    Lapse { seconds: u64 },
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let one = prop_oneof![
        4 => (0u16..12, 1u8..8, 1u64..100).prop_map(|(of, by, seconds)| Operation::Add { of, by, seconds }),
        1 => (0u16..12, 1u8..8).prop_map(|(of, by)| Operation::Remove { of, by }),
        1 => (0u64..60).prop_map(|seconds| Operation::Lapse { seconds }),
    ];
    prop::collection::vec(one, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn agrees_with_a_map_while_there_is_room(operations in operations()) {
        let start = Instant::now();
        let mut store = store(config(10_000, 10_000, 1_000));
        let mut model: BTreeMap<(Digest, PeerId), Instant> = BTreeMap::new();
        for operation in operations {
            match operation {
                Operation::Add { of, by, seconds } => {
                    let expires = start + Duration::from_secs(seconds);
                    store.add_provider(record(of, by, expires)).unwrap();
                    model.insert((digest(of), peer(by)), expires);
                }
                Operation::Remove { of, by } => {
                    store.remove_provider(&key_of(&digest(of)), &peer(by));
                    model.remove(&(digest(of), peer(by)));
                }
                Operation::Lapse { seconds } => {
                    let now = start + Duration::from_secs(seconds);
                    store.lapse(now, usize::MAX);
                    model.retain(|_, expires| *expires > now);
                }
            }
            prop_assert_eq!(store.len(), model.len());
            for of in 0..12 {
                let found: BTreeSet<_> =
                    store.providers(&key_of(&digest(of))).into_iter().map(|r| r.provider).collect();
                let wanted: BTreeSet<_> =
                    model.keys().filter(|(d, _)| *d == digest(of)).map(|(_, p)| *p).collect();
                prop_assert_eq!(found, wanted);
            }
        }
    }

    #[test]
    fn bounds_hold_and_indexes_agree(operations in operations()) {
        let start = Instant::now();
        let mut store = store(config(20, 9, 4));
        for operation in operations {
            match operation {
                Operation::Add { of, by, seconds } => {
                    let _ = store.add_provider(record(of, by, start + Duration::from_secs(seconds)));
                }
                Operation::Remove { of, by } => store.remove_provider(&key_of(&digest(of)), &peer(by)),
                Operation::Lapse { seconds } => store.lapse(start + Duration::from_secs(seconds), usize::MAX),
            }
            prop_assert!(store.len() <= 20);
            prop_assert!(store.publishers.values().all(|records| records.len() <= 9));
            prop_assert!(store.keys.values().all(|providers| providers.len() <= 4 && !providers.is_empty()));
            let by_key: usize = store.keys.values().map(IndexMap::len).sum();
            let by_publisher: usize = store.publishers.values().map(BTreeSet::len).sum();
            prop_assert_eq!(by_key, store.len());
            prop_assert_eq!(by_publisher, store.len());
            prop_assert_eq!(store.by_count.len(), store.publishers.len());
        }
    }
}

#[test]
fn a_flood_does_not_displace_the_records_of_others() {
    let expires = Instant::now() + Duration::from_secs(100);
    let mut store = store(config(100, 1_000, 256));
    for of in 0..10 {
        store.add_provider(record(of, 1, expires)).unwrap();
    }
    for of in 100..1_000 {
        let _ = store.add_provider(record(of, 2, expires));
    }
    assert_eq!(store.publishers[&peer(1)].len(), 10, "the modest publisher kept everything");
    assert_eq!(store.publishers[&peer(2)].len(), 90);
    assert_eq!(store.counters().refused, 810);
    // A newcomer takes from the largest.
    store.add_provider(record(5, 3, expires)).unwrap();
    assert_eq!(store.publishers[&peer(2)].len(), 89);
    assert_eq!(store.publishers[&peer(1)].len(), 10);
    assert_eq!(store.len(), 100);
}

#[test]
fn samples_are_bounded_random_and_cover_everybody() {
    let expires = Instant::now() + Duration::from_secs(100);
    let mut store = store(RecordsConfig::default());
    for by in 1..=100 {
        store.add_provider(record(1, by, expires)).unwrap();
    }
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        let sample = store.providers(&key_of(&digest(1)));
        assert_eq!(sample.len(), RecordsConfig::default().sample);
        seen.extend(sample.into_iter().map(|r| r.provider));
    }
    // Each of the 100 is missed with probability (84/100)^200, below 10^-14.
    assert_eq!(seen.len(), 100);
}

#[test]
fn own_blobs_are_always_named_first_and_never_counted() {
    let mut store = store(config(1, 1, 1));
    let own = ProviderRecord::new(key_of(&digest(1)), peer(255), vec![]);
    store.add_provider(own).unwrap();
    store.add_provider(record(1, 2, Instant::now() + Duration::from_secs(9))).unwrap();
    let found = store.providers(&key_of(&digest(1)));
    assert_eq!(found.iter().map(|r| r.provider).collect::<Vec<_>>(), [peer(255), peer(2)]);
    store.remove_provider(&key_of(&digest(1)), &peer(255));
    assert_eq!(store.providers(&key_of(&digest(1))).len(), 1);
}

#[test]
fn foreign_keys_values_and_long_addresses_are_refused() {
    let mut store = store(RecordsConfig { addresses_max: 2, ..RecordsConfig::default() });
    let foreign = ProviderRecord::new(RecordKey::new(&b"not a digest"), peer(1), vec![]);
    assert!(store.add_provider(foreign).is_err());
    assert!(store.put(Record::new(key_of(&digest(1)), vec![1])).is_err());
    assert_eq!(store.counters().refused, 2);
    let long = Multiaddr::empty().with(libp2p::multiaddr::Protocol::Dns("x".repeat(200).into()));
    let control: Multiaddr = "/ip4/10.0.0.1/tcp/4001".parse().unwrap();
    let data: Multiaddr = "/ip4/10.0.0.1/tcp/4002/tls/sni/default".parse().unwrap();
    let mut full = record(1, 2, Instant::now() + Duration::from_secs(9));
    full.addresses = vec![long, control.clone(), control.clone(), data.clone()];
    store.add_provider(full).unwrap();
    assert_eq!(store.addresses(&digest(1), &peer(2)), [data, control]);
}

#[test]
fn records_survive_a_restart_by_the_wall_clock() {
    let (now, wall) = (Instant::now(), WallTime::from_unix_millis(1_000_000));
    let mut first = store(RecordsConfig::default());
    first.add_provider(record(1, 1, now + Duration::from_secs(100))).unwrap();
    first.add_provider(record(2, 2, now + Duration::from_secs(10))).unwrap();
    first.add_provider(record(3, 3, now + Duration::from_secs(100))).unwrap();
    first.remove_provider(&key_of(&digest(3)), &peer(3));
    let changes = first.take_changes(100, now, wall);
    assert_eq!(changes.len(), 3);
    assert!(first.take_changes(100, now, wall).is_empty());
    let stored: Vec<StoredProvider> = changes
        .into_iter()
        .filter_map(|change| match change {
            Change::PutProvider(stored) => Some(stored),
            _ => None,
        })
        .collect();
    let mut second = store(RecordsConfig::default());
    second.restore(stored, now, wall.saturating_add(Duration::from_secs(50)));
    assert_eq!(second.len(), 1);
    second.lapse(now + Duration::from_secs(49), 10);
    assert_eq!(second.len(), 1);
    second.lapse(now + Duration::from_secs(51), 10);
    assert_eq!(second.len(), 0);
    // The lapsed one is also deleted where it is kept.
    let changes = second.take_changes(100, now, wall);
    assert!(changes.iter().all(|change| matches!(change, Change::DeleteProvider { .. })));
    assert_eq!(changes.len(), 2);
}
