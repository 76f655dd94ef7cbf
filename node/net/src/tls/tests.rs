use super::*;
use rustls::{ClientConnection, ServerConnection};
use shoal_types::{Credential, Keypair, MeshKey, Role, Roles, Zone};

const NOW: WallTime = WallTime::from_unix_millis(1_800_000_000_000);

fn credential(mesh: &MeshKey, peer: PeerId) -> Credential {
    let _ = mesh;
    Credential {
        peer,
        roles: Roles::NONE.with(Role::Node),
        zone: Zone::default(),
        namespaces: vec![],
        not_before: WallTime::from_unix_millis(NOW.unix_millis() - 1000),
        not_after: WallTime::from_unix_millis(NOW.unix_millis() + 1000),
        issuer: None,
    }
}

fn mesh() -> MeshKey {
    MeshKey::from_secret(&[1; 32])
}

fn identity(seed: u8, change: impl FnOnce(&mut Credential)) -> Identity {
    let keypair = Keypair::from_secret(&[seed; 32]);
    let mut credential = credential(&mesh(), keypair.peer_id());
    change(&mut credential);
    Identity { credential: mesh().issue(credential), keypair, mesh: mesh().public() }
}

fn setup_of(identity: Identity) -> TlsSetup {
    TlsSetup::new(identity, Arc::new(|| NOW), TlsSetup::admit_members()).unwrap()
}

fn member(seed: u8) -> TlsSetup {
    setup_of(identity(seed, |_| ()))
}

/// Runs a handshake in memory until it is done or one side refuses: the client's and the server's end.
fn handshake(
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let mut client = ClientConnection::new(client, server_name()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    while client.wants_write() || server.wants_write() {
        let mut bytes = vec![];
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        feed(&bytes, |read| server.read_tls(read));
        server.process_new_packets()?;
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        feed(&bytes, |read| client.read_tls(read));
        client.process_new_packets()?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

fn feed(mut bytes: &[u8], mut read_tls: impl FnMut(&mut &[u8]) -> std::io::Result<usize>) {
    while !bytes.is_empty() && read_tls(&mut bytes).unwrap() > 0 {}
}

fn connect(client: &TlsSetup, server: &TlsSetup, expected: Option<PeerId>) -> Result<(), Rejection> {
    let result = handshake(
        client_config(client, Plane::Data, expected).unwrap(),
        server_config(server, Plane::Data).unwrap(),
    );
    match result {
        Ok((at_client, at_server)) => {
            assert_eq!(peer_of(at_client.peer_certificates()).unwrap().0, server.identity().peer_id());
            let (peer, credential) = peer_of(at_server.peer_certificates()).unwrap();
            assert_eq!(peer, client.identity().peer_id());
            assert_eq!(credential, client.identity().credential);
            check_plane(Plane::Data, at_server.alpn_protocol()).unwrap();
            Ok(())
        }
        Err(error) => Err(rejection_of(&std::io::Error::other(error)).expect("a rejection of ours").clone()),
    }
}

#[test]
fn members_meet() {
    let (one, two) = (member(2), member(3));
    connect(&one, &two, None).unwrap();
    connect(&two, &one, Some(one.identity().peer_id())).unwrap();
    assert!(one.rejections().iter().all(|(_, count)| count == 0));
}

#[test]
fn the_fast_cipher_is_chosen() {
    let (one, two) = (member(2), member(3));
    let config = client_config(&one, Plane::Control, None).unwrap();
    let (client, _) = handshake(config, server_config(&two, Plane::Control).unwrap()).unwrap();
    let suite = client.negotiated_cipher_suite().unwrap().suite();
    let first = if has_aes() {
        rustls::CipherSuite::TLS13_AES_128_GCM_SHA256
    } else {
        rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
    };
    assert_eq!(suite, first);
}

/// Both directions, for each side checks the other. (A client's refusal needs a server that accepts the client.)
#[track_caller]
fn refused(bad: TlsSetup, reason: RejectReason) {
    let good = member(3);
    let rejection = connect(&bad, &good, None).unwrap_err();
    assert_eq!(rejection.reason(), reason);
    assert_eq!(good.rejections().get(reason), 1);
    let rejection = connect(&good, &bad, None).unwrap_err();
    assert_eq!(rejection.reason(), reason);
    assert_eq!(good.rejections().get(reason), 2);
}

#[test]
fn a_member_of_another_mesh_is_refused() {
    let mut stranger = identity(2, |_| ());
    stranger.credential = MeshKey::from_secret(&[9; 32]).issue(stranger.credential.value().clone());
    refused(setup_of(stranger), RejectReason::OtherMesh);
}

#[test]
fn credentials_out_of_their_time_are_refused() {
    let before = |credential: &mut Credential| credential.not_after = WallTime::from_unix_millis(1);
    refused(setup_of(identity(2, before)), RejectReason::Expired);
    let after = |credential: &mut Credential| credential.not_before = credential.not_after;
    refused(setup_of(identity(2, after)), RejectReason::NotYetValid);
}

#[test]
fn a_stolen_credential_is_refused() {
    let mut thief = identity(2, |_| ());
    thief.keypair = Keypair::from_secret(&[7; 32]);
    refused(setup_of(thief), RejectReason::OtherHolder);
}

#[test]
fn somebody_else_than_dialled_is_refused() {
    let (one, two) = (member(2), member(3));
    let expected = Keypair::from_secret(&[5; 32]).peer_id();
    let found = two.identity().peer_id();
    assert_eq!(connect(&one, &two, Some(expected)), Err(Rejection::OtherPeer { expected, found }));
}

#[test]
fn the_policy_decides_last() {
    let no: Admission = Arc::new(|_, _| Err(Refusal::Revoked));
    let strict = TlsSetup::new(identity(3, |_| ()), Arc::new(|| NOW), no).unwrap();
    assert_eq!(connect(&member(2), &strict, None).unwrap_err().reason(), RejectReason::Revoked);
    assert_eq!(strict.rejections().get(RejectReason::Revoked), 1);
}

#[test]
fn the_planes_do_not_mix() {
    let (one, two) = (member(2), member(3));
    let control = client_config(&one, Plane::Control, None).unwrap();
    assert!(handshake(control, server_config(&two, Plane::Data).unwrap()).is_err());
    assert_eq!(check_plane(Plane::Data, None), Err(Rejection::Plane));
}

/// A certificate of `identity` with its extensions changed.
fn forge(
    identity: &Identity,
    change: impl FnOnce(&mut Vec<rcgen::CustomExtension>),
) -> CertificateDer<'static> {
    let made = certificate::generate(identity).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&made.certificate).unwrap();
    let key = rcgen::KeyPair::try_from(made.key.secret_der()).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.custom_extensions = parsed
        .extensions()
        .iter()
        .map(|found| {
            let oid: Vec<u64> = found.oid.iter().unwrap().collect();
            rcgen::CustomExtension::from_oid_content(&oid, found.value.to_vec())
        })
        .collect();
    change(&mut params.custom_extensions);
    params.self_signed(&key).unwrap().into()
}

#[test]
fn strangers_and_forgers_are_refused() {
    let own = identity(2, |_| ());
    assert_eq!(certificate::parse(&forge(&own, |_| ())).unwrap().peer, own.peer_id());
    let stranger = forge(&own, |extensions| extensions.truncate(1));
    assert_eq!(certificate::parse(&stranger).unwrap_err(), Rejection::NoCredential);
    let nobody = forge(&own, |extensions| drop(extensions.remove(0)));
    assert_eq!(certificate::parse(&nobody).unwrap_err().reason(), RejectReason::Malformed);
    let twice = forge(&own, |extensions| extensions.push(extensions[1].clone()));
    assert_eq!(certificate::parse(&twice).unwrap_err().reason(), RejectReason::Malformed);
    // The identity's signature is over another certificate's key.
    let other = certificate::generate(&own).unwrap();
    let (_, other) = x509_parser::parse_x509_certificate(&other.certificate).unwrap();
    let replayed = forge(&own, |extensions| {
        let signed = other.extensions()[0].value.to_vec();
        extensions[0] = rcgen::CustomExtension::from_oid_content(&certificate::LIBP2P_OID, signed);
    });
    assert_eq!(certificate::parse(&replayed).unwrap_err(), Rejection::Signature);
}

proptest::proptest! {
    /// Whatever byte under the signature changes, the certificate is refused. (The outer heads are not under it:
    /// a parser may take another spelling of them, which says nothing else.)
    #[test]
    fn no_signed_byte_of_a_certificate_can_change(at: proptest::sample::Index, bit in 0u8..8) {
        let mut der = certificate::generate(&identity(2, |_| ())).unwrap().certificate.to_vec();
        let signed = {
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
            parsed.tbs_certificate.as_ref().to_vec()
        };
        let start = der.windows(signed.len()).position(|window| window == signed).unwrap();
        let at = start + at.index(signed.len());
        der[at] ^= 1 << bit;
        proptest::prop_assert!(certificate::parse(&der.into()).is_err());
    }

    #[test]
    fn parsing_never_panics(bytes: Vec<u8>) {
        let _ = certificate::parse(&bytes.into());
    }
}
