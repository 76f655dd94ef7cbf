//! What peers send.

use std::time::Duration;

use shoal_daemon::rpc::{self, Answer, Failure, Found, Listing, Request, Stamp};
use shoal_engine::config::EngineConfig;
use shoal_engine::engine::Engine;
use shoal_engine::io::{Effect, Input, LocalBlob, Opened, ReaderId, ReaderWant};
use shoal_engine::message::{Message, TraceContext};
use shoal_net::data::protocol::{Frame, HEAD_BYTES, Head, Hello, Kind, VERSION, VERSION_MIN, check_metainfo};
use shoal_net::tls::certificate;
use shoal_types::{
    Digest, Endpoint, GossipMessage, Heartbeat, Role, Roles, Signed, Timestamp, WallTime, Zone,
};

use crate::documents::{credential_of, key, mesh, record_of, signer, value, vouched};
use crate::{choose, chosen, text_of};

/// Frames, one after the other, as a connection brings them.
fn each_frame(mut data: &[u8], mut take: impl FnMut(Frame)) {
    while let Some((head, rest)) = data.split_first_chunk::<HEAD_BYTES>() {
        let Ok(head) = Head::decode(*head) else { return };
        let Some((body, rest)) = rest.split_at_checked(head.len) else { return };
        data = rest;
        match head.kind {
            None | Some(Kind::Payload | Kind::Call | Kind::Answer) => {}
            Some(kind) => match Frame::decode(kind, body) {
                Ok(frame) => take(frame),
                Err(_) => return,
            },
        }
    }
}

pub(crate) fn frames(data: &[u8]) {
    each_frame(data, |frame| {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let (head, body) =
            bytes.split_first_chunk::<HEAD_BYTES>().unwrap_or_else(|| unreachable!("it has a head"));
        let head = Head::decode(*head).unwrap_or_else(|error| panic!("{error}: {frame:?}"));
        let kind = head.kind.unwrap_or_else(|| panic!("no kind: {frame:?}"));
        let again = Frame::decode(kind, body).unwrap_or_else(|error| panic!("{error}: {frame:?}"));
        assert_eq!(format!("{again:?}"), format!("{frame:?}"));
        if let Frame::Swarm(message) = &frame {
            let _ = check_metainfo(message, &mesh().public());
        }
    });
}

fn messages() -> Vec<Message> {
    let endpoint: Endpoint = Endpoint::from_ip([10, 0, 0, 1].into(), 4002);
    let peers = vec![shoal_engine::message::PeerHint {
        peer: signer().peer_id(),
        zone: Zone::default(),
        endpoints: vec![endpoint],
        complete: true,
    }];
    let vouched = vouched();
    vec![
        Message::Join {
            channel: 1,
            digest: vouched.value().digest(),
            wants_metainfo: true,
            probe: false,
            trace: Some(TraceContext { trace: [1; 16].into(), span: [2; 8].into() }),
        },
        Message::Metainfo { to: 1, metainfo: Box::new(vouched) },
        Message::Bitfield { to: 1, pieces: vec![0x80].into() },
        Message::Have { to: 1, runs: vec![(0, 1)] },
        Message::Request { to: 1, piece: 0 },
        Message::Cancel { to: 1, piece: 0 },
        Message::Busy { to: 1, piece: 0, peers: peers.clone(), again_millis: 5 },
        Message::Peers { to: 1, peers: peers.clone() },
        Message::Absent { to: 1, why: shoal_engine::message::Absence::NotHere, peers },
        Message::Leave { to: 1 },
    ]
}

pub(crate) fn frame_seeds() -> Vec<Vec<u8>> {
    let hello = Hello {
        version: VERSION,
        version_min: VERSION_MIN,
        instance: 7,
        endpoints: vec![Endpoint::from_ip([10, 0, 0, 1].into(), 4002)],
        dial: 1,
    };
    let mut frames = vec![Frame::Hello(hello), Frame::Ping(1), Frame::Pong(2)];
    frames.extend(messages().into_iter().map(Frame::Swarm));
    let mut all = Vec::new();
    let mut seeds: Vec<Vec<u8>> = frames
        .iter()
        .map(|frame| {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            all.extend_from_slice(&bytes);
            bytes
        })
        .collect();
    seeds.push(all);
    seeds
}

/// An engine that downloads, and a peer that says whatever the bytes say.
pub(crate) fn engine(data: &[u8]) {
    let vouched = vouched();
    let digest = vouched.value().digest();
    let peer = signer().peer_id();
    let local = shoal_types::PeerId::from_public_key([0xaa; 32]);
    let now = |n: u64| Timestamp::from_start(Duration::from_millis(n));
    let mut engine = Engine::new(EngineConfig::default(), local, Zone::default(), 1, now(0));
    let roles = Roles::NONE.with(Role::Node);
    engine
        .handle_input(now(1), Input::PeerConnected { peer, zone: Zone::default(), roles, endpoints: vec![] });
    engine.handle_input(now(1), Input::ReaderOpened { reader: ReaderId(1), digest, want: ReaderWant::Whole });
    let mut at = 2;
    each_frame(data, |frame| {
        let Frame::Swarm(message) = frame else { return };
        at += 1;
        engine.handle_input(now(at), Input::Message { peer, message });
        let mut facts = Vec::new();
        while let Some(effect) = engine.poll_effect() {
            match effect {
                Effect::OpenBlob { digest: wanted } if wanted == digest && at % 2 == 0 => {
                    let metainfo = std::sync::Arc::new(vouched.value().clone());
                    let pieces = metainfo.empty_bitfield();
                    let opened = Opened::Here(LocalBlob {
                        metainfo,
                        vouched: None,
                        pieces,
                        complete: false,
                        in_backend: false,
                    });
                    facts.push(Input::BlobOpened { digest, opened });
                }
                Effect::OpenBlob { digest } => {
                    let opened = Opened::Absent { owner: false, backend_down: false };
                    facts.push(Input::BlobOpened { digest, opened });
                }
                Effect::SendPiece { peer, digest, piece, .. } => {
                    facts.push(Input::PieceSent { peer, digest, piece, bytes: 5 });
                }
                Effect::Disconnect { peer, .. } => facts.push(Input::PeerDisconnected { peer }),
                _ => {}
            }
        }
        for fact in facts {
            engine.handle_input(now(at), fact);
        }
        engine.handle_timeout(now(at));
    });
    engine.handle_timeout(now(at + 600_000));
}

pub(crate) fn engine_seeds() -> Vec<Vec<u8>> {
    frame_seeds()
}

pub(crate) fn rpc(data: &[u8]) {
    if let Ok(request) = rpc::decode::<Request>(data) {
        assert!(rpc::decode::<Request>(&rpc::encode(&request)).is_ok_and(|again| again == request));
    }
    if let Ok(answer) = rpc::decode::<Answer>(data) {
        assert!(rpc::decode::<Answer>(&rpc::encode(&answer)).is_ok_and(|again| again == answer));
    }
}

pub(crate) fn rpc_seeds() -> Vec<Vec<u8>> {
    let vouched = vouched();
    let digest = vouched.value().digest();
    let repository = key().repository;
    let record = Signed::sign(record_of(Some(value())), &signer());
    let metainfo = Box::new(vouched.value().clone());
    let requests = [
        Request::Anchor { metainfo, repository: Some(repository.clone()) },
        Request::Stat { digest, repository: None },
        Request::WriteRecord {
            key: key(),
            value: Some(value()),
            stamp: Some(Stamp { counter: 3, written: shoal_types::WallTime::default() }),
        },
        Request::PutRecord { record: record.clone() },
        Request::GetRecord { key: key() },
        Request::ListRecords {
            repository: repository.clone(),
            what: Listing::Referrers(digest),
            after: Some(key().kind),
            limit: 7,
        },
        Request::ListRepositories { after: Some(repository.clone()), limit: 1 },
        Request::Renew,
        Request::GetCredential { peer: signer().peer_id() },
    ];
    let answers = [
        Answer::Anchored(Box::new(vouched)),
        Answer::Stat(Found::Size(5)),
        Answer::Record(Some(record.clone())),
        Answer::Records { records: vec![record], more: true },
        Answer::Repositories { names: vec![repository], more: false },
        Answer::Credential(Some(mesh().issue(credential_of(Roles::NONE.with(Role::Node))))),
        Answer::Failed { kind: Failure::Denied, message: "no".to_owned() },
    ];
    requests.iter().map(rpc::encode).chain(answers.iter().map(rpc::encode)).collect()
}

fn heartbeat() -> Signed<Heartbeat> {
    let credential = mesh().issue(credential_of(Roles::NONE.with(Role::Origin)));
    let endpoints = vec![Endpoint::from_ip([10, 0, 0, 1].into(), 4002)];
    Signed::sign(
        Heartbeat { credential, endpoints, sent: WallTime::from_unix_millis(5), leaving: false },
        &signer(),
    )
}

pub(crate) fn gossip(data: &[u8]) {
    let Some((choice, data)) = choose(data) else { return };
    match choice % 3 {
        0 => {
            if let Ok(message) = GossipMessage::from_bytes(data) {
                assert_eq!(message.to_bytes(), data);
            }
        }
        1 => shoal_net::fuzzing::introduction(data),
        _ => {
            if let Some(text) = text_of(data) {
                shoal_net::fuzzing::data_address(text);
                let _ = text.parse::<shoal_net::control::BootstrapPeer>();
            }
        }
    }
}

pub(crate) fn gossip_seeds() -> Vec<Vec<u8>> {
    let record = Signed::sign(record_of(None), &signer());
    let beat = minicbor::to_vec(vec![(7u64, heartbeat())]).unwrap_or_default();
    vec![
        chosen(0, GossipMessage::Heartbeat(heartbeat()).to_bytes()),
        chosen(0, GossipMessage::RecordChanged(record).to_bytes()),
        chosen(0, GossipMessage::BlobAdded { digest: Digest::sha256(b"x"), size: 5 }.to_bytes()),
        chosen(1, beat),
        chosen(2, "/ip4/10.0.0.1/tcp/4002/tls/sni/eu"),
        chosen(2, "/dns4/a.example/tcp/4001/p2p/12D3KooWQYV9dGMFoRzNStwpXztXaBUjtPqi6aU76ZgUriHhKust"),
        chosen(2, "dnsaddr:mesh.example"),
    ]
}

pub(crate) fn certificate(data: &[u8]) {
    if let Ok(member) = certificate::parse(&rustls_pki_types::CertificateDer::from(data)) {
        let _ = mesh().public().check(&member.credential, member.peer, WallTime::from_unix_millis(5));
    }
}

/// One that was made once: each has a fresh key, and seeds are to be the same in each run.
pub(crate) fn certificate_seeds() -> Vec<Vec<u8>> {
    vec![include_bytes!("../seeds/certificate.der").to_vec()]
}
