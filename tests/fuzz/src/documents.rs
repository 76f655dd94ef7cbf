//! Signed documents. The signature would stop all but the fuzzer's own payloads, so the target signs them.

use minicbor::bytes::ByteVec;
use shoal_types::intermediate::Intermediate;
use shoal_types::record::SignedRecord;
use shoal_types::{
    Algorithm, Bitfield, Credential, Digest, Document, JoinToken, Keypair, MeshKey, Metainfo, PeerId, Record,
    RecordKey, RecordKind, RecordValue, RecordVersion, RevocationList, Revoked, Role, Roles, Signature,
    Signed, SignedCredential, SignedMetainfo, SignedRevocations, VouchedMetainfo, WallTime,
};

use crate::{choose, chosen, text_of};

const NOW: u64 = 1_700_000_000_000;

pub(crate) fn mesh() -> MeshKey {
    MeshKey::from_secret(&[1; 32])
}

pub(crate) fn signer() -> Keypair {
    Keypair::from_secret(&[2; 32])
}

fn root() -> Keypair {
    Keypair::from_secret(&[1; 32])
}

#[derive(minicbor::Encode)]
struct Envelope {
    #[n(0)]
    payload: ByteVec,
    #[n(1)]
    signer: PeerId,
    #[n(2)]
    signature: Signature,
}

/// The envelope of any payload, signed.
fn envelope<T: Document>(payload: &[u8], by: &Keypair) -> Vec<u8> {
    let input = [T::DOMAIN.as_bytes(), &[0], payload].concat();
    let signature = by.sign(&input);
    let envelope = Envelope { payload: payload.to_vec().into(), signer: by.peer_id(), signature };
    minicbor::to_vec(envelope).unwrap_or_default()
}

/// Reads a payload as a signed document; what is read is the same when read again.
fn signed<T: Document + PartialEq + Clone>(payload: &[u8], by: &Keypair) -> Option<Signed<T>> {
    let bytes = envelope::<T>(payload, by);
    let read = Signed::<T>::from_bytes(&bytes).ok()?;
    assert_eq!(read.to_bytes(), bytes, "an envelope is not canonical");
    let again = Signed::sign(Signed::value(&read).clone(), by);
    assert!(again == read, "a payload is not canonical");
    Some(read)
}

pub(crate) fn credential_of(roles: Roles) -> Credential {
    Credential {
        peer: signer().peer_id(),
        roles,
        zone: Default::default(),
        namespaces: vec!["team".parse().unwrap_or_else(|_| unreachable!("a good name"))],
        not_before: WallTime::default(),
        not_after: WallTime::from_unix_millis(2 * NOW),
        issuer: None,
    }
}

pub(crate) fn vouched() -> VouchedMetainfo {
    let metainfo =
        Metainfo::of_bytes(Algorithm::Sha256, b"hello").unwrap_or_else(|_| unreachable!("it fits"));
    VouchedMetainfo {
        metainfo: Signed::sign(metainfo, &signer()),
        credential: mesh().issue(credential_of(Roles::NONE.with(Role::Origin))),
    }
}

fn encoded<T: minicbor::Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).unwrap_or_default()
}

pub(crate) fn metainfo(data: &[u8]) {
    let Some((choice, data)) = choose(data) else { return };
    match choice % 4 {
        0 => {
            let Some(signed) = signed::<Metainfo>(data, &signer()) else { return };
            let metainfo = signed.value();
            let layout = metainfo.layout();
            let mut end = 0;
            for piece in layout.pieces() {
                let range = layout.range_of(piece);
                assert!(range.start == end && range.end > range.start && range.end <= metainfo.size());
                end = range.end;
                let _ = metainfo.verifies(piece, data);
            }
            assert_eq!(end, metainfo.size(), "the pieces are not the blob");
        }
        1 => {
            let _ = SignedMetainfo::from_bytes(data);
        }
        2 => {
            if let Ok(vouched) = minicbor::decode::<VouchedMetainfo>(data) {
                let _ = vouched.check(&mesh().public());
            }
        }
        _ => {
            let Some((count, bytes)) = data.split_first_chunk::<2>() else { return };
            let count = u32::from(u16::from_be_bytes(*count));
            if let Some(bits) = Bitfield::from_bytes(count, bytes) {
                assert!(bits.count() <= count && bits.to_bytes() == bytes);
            }
        }
    }
}

pub(crate) fn metainfo_seeds() -> Vec<Vec<u8>> {
    let vouched = vouched();
    let long =
        Metainfo::of_bytes(Algorithm::Sha512, &[7; 600_000]).unwrap_or_else(|_| unreachable!("it fits"));
    vec![
        chosen(0, encoded(vouched.value())),
        chosen(0, encoded(&long)),
        chosen(1, vouched.metainfo.to_bytes()),
        chosen(2, encoded(&vouched)),
        chosen(3, [0, 10, 0xff, 0xc0]),
    ]
}

pub(crate) fn credential(data: &[u8]) {
    let Some((choice, data)) = choose(data) else { return };
    let (public, now) = (mesh().public(), WallTime::from_unix_millis(NOW));
    match choice % 6 {
        0 => {
            let Some(signed) = signed::<Credential>(data, &root()) else { return };
            let peer = signed.value().peer;
            let good = public.check(&signed, peer, now).is_ok();
            let value = signed.value();
            assert!(!good || value.issuer.is_some() || (value.not_before <= now && now <= value.not_after));
        }
        1 => {
            if let Some(signed) = signed::<Intermediate>(data, &root()) {
                let key = shoal_types::IssuingKey::Intermediate(signer(), signed);
                let _ = key.issue(credential_of(Roles::NONE.with(Role::Node)));
            }
        }
        2 => {
            if let Some(list) = signed::<RevocationList>(data, &root()) {
                let _ = public.check_revocations(&list);
                let _ = list.value().with(&[], now);
            }
        }
        3 => {
            let _ = SignedCredential::from_bytes(data).map(|own| public.check(&own, own.value().peer, now));
            let _ = SignedRevocations::from_bytes(data);
        }
        4 => {
            if let Some(Ok(token)) = text_of(data).map(str::parse::<JoinToken>) {
                let _ = token.issue(signer().peer_id(), now);
                let again = token.to_string().parse::<JoinToken>().map(|again| again.to_string());
                assert!(again.is_ok_and(|again| again == token.to_string()));
            }
        }
        _ => {
            let Some(text) = text_of(data) else { return };
            if let Ok(roles) = text.parse::<Roles>() {
                assert!(roles.to_string().parse::<Roles>().is_ok_and(|again| again == roles));
            }
            let _ = text.parse::<shoal_types::MeshPublicKey>();
        }
    }
}

pub(crate) fn credential_seeds() -> Vec<Vec<u8>> {
    let own = credential_of(Roles::NONE.with(Role::Node).with(Role::Gateway));
    let key = signer();
    let intermediate = Intermediate {
        key: key.peer_id(),
        roles: Roles::NONE.with(Role::Node).with(Role::Gateway),
        zones: vec![],
        namespaces: vec![],
        not_before: WallTime::default(),
        not_after: WallTime::from_unix_millis(3 * NOW),
    };
    let certified = mesh().certify(intermediate.clone());
    let list = RevocationList::default();
    let entry = Revoked { key: key.peer_id(), until: WallTime::from_unix_millis(NOW) };
    let longer =
        list.with(&[entry], WallTime::from_unix_millis(1)).unwrap_or_else(|_| unreachable!("it fits"));
    let doors = vec!["/ip4/10.0.0.1/tcp/4001".to_owned()];
    let lifetime = std::time::Duration::from_secs(1000);
    let token =
        JoinToken::new(mesh().public(), &key, certified, "eu".parse().unwrap_or_default(), doors, lifetime);
    let mut seeds = vec![
        chosen(0, encoded(&own)),
        chosen(1, encoded(&intermediate)),
        chosen(2, encoded(&longer)),
        chosen(3, mesh().issue(own).to_bytes()),
        chosen(3, mesh().revoke(longer).to_bytes()),
        chosen(5, "node,gateway"),
        chosen(5, mesh().public().to_string()),
    ];
    seeds.extend(token.ok().map(|token| chosen(4, token.to_string())));
    seeds
}

pub(crate) fn value() -> RecordValue {
    RecordValue {
        digest: Digest::sha256(b"x"),
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        size: 7,
        subject: Some(Digest::sha256(b"y")),
        artifact_type: Some("a/b".to_owned()),
        annotations: [("k".to_owned(), "v".to_owned())].into_iter().collect(),
    }
}

pub(crate) fn key() -> RecordKey {
    let repository = "team/app".parse().unwrap_or_else(|_| unreachable!("a good name"));
    let tag = "latest".parse().unwrap_or_else(|_| unreachable!("a good tag"));
    RecordKey { repository, kind: RecordKind::Tag(tag) }
}

pub(crate) fn record_of(value: Option<RecordValue>) -> Record {
    let version =
        RecordVersion { counter: 3, written: WallTime::from_unix_millis(NOW), author: signer().peer_id() };
    Record { key: key(), version, value }
}

pub(crate) fn record(data: &[u8]) {
    let Some((choice, data)) = choose(data) else { return };
    match choice % 2 {
        0 => drop(signed::<Record>(data, &signer())),
        _ => drop(SignedRecord::from_bytes(data)),
    }
}

pub(crate) fn record_seeds() -> Vec<Vec<u8>> {
    let (full, deleted) = (record_of(Some(value())), record_of(None));
    let signed = Signed::sign(full.clone(), &signer());
    vec![chosen(0, encoded(&full)), chosen(0, encoded(&deleted)), chosen(1, signed.to_bytes())]
}
