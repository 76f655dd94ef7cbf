//! Access over real connections: TLS, client certificates, passwords, and what becomes of mounts.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry as Metrics;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use shoal_gateway::auth::Guard;
use shoal_gateway::memory::MemoryMesh;
use shoal_gateway::{Gateway, GatewayConfig, GatewayMetrics, ServerTls, TlsFiles, serve};
use support::converse;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

/// A certificate authority.
struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for `name` and its key, in PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

struct Running {
    dir: TempDir,
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
}

impl Running {
    fn write(&self, name: &str, text: &str) {
        write(self.dir.path(), name, text);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn write(dir: &Path, name: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A gateway with these files; TLS if there is a `cert.pem`.
async fn start(files: &[(&str, &str)]) -> Running {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        write(dir.path(), name, text);
    }
    let path = |name: &str| dir.path().join(name);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let metrics = GatewayMetrics::new(&mut Metrics::default());
    let mut gateway = Gateway::new(Arc::new(MemoryMesh::new()), GatewayConfig::default(), metrics);
    if path("access.toml").exists() {
        gateway = gateway.with_access(Arc::new(Guard::load(&path("access.toml")).unwrap()));
    }
    if path("cert.pem").exists() {
        let client_ca = path("clients.pem").exists().then(|| path("clients.pem"));
        let files = TlsFiles { certificate: path("cert.pem"), key: path("key.pem"), client_ca };
        let tls = Arc::new(ServerTls::load(files).unwrap());
        tokio::spawn(tls.clone().follow(shutdown.clone()));
        gateway = gateway.with_tls(tls);
    }
    tokio::spawn(serve(listener, Arc::new(gateway), shutdown.clone()));
    Running { dir, address, shutdown }
}

/// One GET over TLS; the answer's head and body.
async fn https(
    running: &Running,
    trust: &Ca,
    client: Option<&(String, String)>,
    path: &str,
) -> Result<String, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trust.pem.as_bytes()).unwrap()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    let tcp = TcpStream::connect(running.address).await.unwrap();
    let name = ServerName::try_from("registry.test").unwrap();
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(text)?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: registry.test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(text)?;
    let mut answer = Vec::new();
    let read =
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.map_err(|e| e.to_string())?;
    read.map_err(text)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

const CERTIFICATE_RULE: &str =
    "[[rule]]\nwho = [\"certificate:ci.test\"]\nallow = [\"pull\", \"push\", \"catalog\"]\n";

#[tokio::test]
async fn client_certificates_are_verified_and_their_names_ruled_on() {
    let (ca, clients, stranger) = (Ca::new(), Ca::new(), Ca::new());
    let (certificate, key) = ca.issue("registry.test");
    let running = start(&[
        ("cert.pem", &certificate),
        ("key.pem", &key),
        ("clients.pem", &clients.pem),
        ("access.toml", CERTIFICATE_RULE),
    ])
    .await;
    let catalog =
        async |client: Option<&(String, String)>| https(&running, &ca, client, "/v2/_catalog").await;
    let good = clients.issue("ci.test");
    assert!(catalog(Some(&good)).await.unwrap().starts_with("HTTP/1.1 200"));
    let ping = https(&running, &ca, Some(&good), "/v2/").await.unwrap();
    assert!(ping.starts_with("HTTP/1.1 200"), "{ping}");
    let other = clients.issue("somebody.test");
    assert!(catalog(Some(&other)).await.unwrap().starts_with("HTTP/1.1 403"));
    assert!(catalog(None).await.unwrap().starts_with("HTTP/1.1 403"));
    assert!(catalog(Some(&stranger.issue("ci.test"))).await.is_err(), "a certificate of another CA");
}

#[tokio::test]
async fn a_new_certificate_is_served_without_a_restart() {
    let (old, new) = (Ca::new(), Ca::new());
    let (certificate, key) = old.issue("registry.test");
    let running = start(&[("cert.pem", &certificate), ("key.pem", &key)]).await;
    assert!(https(&running, &old, None, "/v2/").await.unwrap().starts_with("HTTP/1.1 200"));
    assert!(https(&running, &new, None, "/v2/").await.is_err());
    // Half of a replacement is not served.
    let (certificate, key) = new.issue("registry.test");
    running.write("cert.pem", &certificate);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(https(&running, &old, None, "/v2/").await.is_ok());
    running.write("key.pem", &key);
    let renewed = async {
        while https(&running, &new, None, "/v2/").await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.expect("the new certificate is served");
    assert!(https(&running, &old, None, "/v2/").await.is_err());
}

#[tokio::test]
async fn plain_http_on_the_tls_port_is_told_so() {
    let ca = Ca::new();
    let (certificate, key) = ca.issue("registry.test");
    let running = start(&[("cert.pem", &certificate), ("key.pem", &key)]).await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let (answer, closed) = converse(&mut stream, b"GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n", PATIENCE).await;
    let text = String::from_utf8_lossy(&answer);
    assert!(closed && text.starts_with("HTTP/1.1 400") && text.contains("HTTPS"), "{text}");
    // Half a hello, and garbage that looks like one.
    for garbage in [&[0x16, 3, 1][..], &[0x16; 2000]] {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut scrap = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut scrap)).await.expect("closed");
    }
    assert!(https(&running, &ca, None, "/v2/").await.unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn keys_that_others_can_read_and_files_that_are_none_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let ca = Ca::new();
    let (certificate, key) = ca.issue("registry.test");
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "cert.pem", &certificate);
    write(dir.path(), "key.pem", &key);
    let files = |certificate: &str, key: &str| TlsFiles {
        certificate: dir.path().join(certificate),
        key: dir.path().join(key),
        client_ca: None,
    };
    let refusal = |files: TlsFiles| ServerTls::load(files).err().expect("refused").to_string();
    assert!(ServerTls::load(files("cert.pem", "key.pem")).is_ok());
    assert!(refusal(files("none.pem", "key.pem")).contains("none.pem"));
    assert!(refusal(files("key.pem", "key.pem")).contains("no certificate"));
    assert!(refusal(files("cert.pem", "cert.pem")).contains("no private key"));
    write(dir.path(), "other.pem", &ca.issue("registry.test").1);
    assert!(refusal(files("cert.pem", "other.pem")).contains("cert.pem"), "the key of another certificate");
    std::fs::set_permissions(dir.path().join("key.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = refusal(files("cert.pem", "key.pem"));
    assert!(open.contains("chmod 600"), "{open}");
}

/// `user:password` in an `Authorization` header.
fn basic(login: &str) -> String {
    format!("Basic {}", data_encoding::BASE64.encode(login.as_bytes()))
}

#[tokio::test]
async fn a_mount_from_where_one_may_not_read_becomes_an_upload() {
    let hash = |password: &str| bcrypt::hash_with_salt(password, 4, [3; 16]).unwrap();
    let users = format!("alice:{}\nroot:{}\n", hash("a"), hash("r"));
    let access = "htpasswd = \"users\"\n\
        [[rule]]\nwho = [\"user:root\"]\nallow = [\"pull\", \"push\", \"delete\", \"catalog\"]\n\
        [[rule]]\nwho = [\"user:alice\"]\nrepositories = \"own|shared\"\nallow = [\"pull\", \"push\"]\n";
    let running = start(&[("users", &users), ("access.toml", access)]).await;
    let client = shoal_gateway::conformance::Registry::new(&format!("http://{}", running.address));
    let (root, alice) = (basic("root:r"), basic("alice:a"));
    let send = async |login: &str, method: &str, path: &str, body: &'static str| {
        client.send(method, path, &[("authorization", login)], body).await.unwrap()
    };
    let digest = shoal_types::Digest::sha256(b"secret");
    for repository in ["private", "shared"] {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        assert_eq!(send(&root, "POST", &path, "secret").await.status, 201);
    }
    let mount = |from: &str| format!("/v2/own/blobs/uploads/?mount={digest}&from={from}");
    let refused = send(&alice, "POST", &mount("private"), "").await;
    assert_eq!(refused.status, 202, "{:?}", String::from_utf8_lossy(&refused.body));
    assert_eq!(send(&alice, "HEAD", &format!("/v2/own/blobs/{digest}"), "").await.status, 404);
    assert_eq!(send(&alice, "GET", &format!("/v2/private/blobs/{digest}"), "").await.status, 403);
    assert_eq!(send(&alice, "POST", &mount("shared"), "").await.status, 201);
    assert_eq!(send(&alice, "HEAD", &format!("/v2/own/blobs/{digest}"), "").await.status, 200);
    assert_eq!(send(&alice, "DELETE", &format!("/v2/own/blobs/{digest}"), "").await.status, 403);
    assert_eq!(send(&alice, "GET", "/v2/_catalog", "").await.status, 403);
    let nobody = client.get("/v2/own/tags/list").await.unwrap().expect_error(401, "UNAUTHORIZED").unwrap();
    assert!(nobody.header("www-authenticate").starts_with("Basic"));
    // What the error says reaches the client, and the password does not come back in it.
    let wrong = send(&basic("alice:hunter2"), "GET", "/v2/", "").await.expect_status(401).unwrap();
    assert!(!String::from_utf8_lossy(&wrong.body).contains("hunter2"));
}
