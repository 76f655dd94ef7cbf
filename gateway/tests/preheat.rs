//! Notifications of pushes: as Harbor sends them to a provider of the kind Kraken, byte for byte, and as the distribution
//! registry does.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry as Metrics;
use shoal_gateway::auth::Guard;
use shoal_gateway::memory::{Fault, MemoryMesh};
use shoal_gateway::{Gateway, GatewayConfig, GatewayMetrics, serve};
use shoal_types::{Digest, Reference};
use support::converse;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    address: std::net::SocketAddr,
    mesh: Arc<MemoryMesh>,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A gateway; with rules if there are any.
async fn start(preheat_enabled: bool, rules: &str) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mesh = Arc::new(MemoryMesh::new());
    let config = GatewayConfig { preheat_enabled, ..GatewayConfig::default() };
    let mut gateway = Gateway::new(mesh.clone(), config, GatewayMetrics::new(&mut Metrics::default()));
    if !rules.is_empty() {
        let users = format!("harbor:{}\n", bcrypt::hash("secret", 4).unwrap());
        std::fs::write(dir.path().join("users"), users).unwrap();
        std::fs::write(dir.path().join("access.toml"), format!("htpasswd = \"users\"\n{rules}")).unwrap();
        for name in ["users", "access.toml"] {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(dir.path().join(name), mode).unwrap();
        }
        gateway = gateway.with_access(Arc::new(Guard::load(&dir.path().join("access.toml")).unwrap()));
    }
    let shutdown = CancellationToken::new();
    tokio::spawn(serve(listener, Arc::new(gateway), shutdown.clone()));
    Running { address, mesh, shutdown, _dir: dir }
}

/// What Go's `net/http` and `encoding/json` make of Harbor's `notification.Notification` (goharbor/harbor,
/// `src/pkg/p2p/preheat/models/notification`, `provider/kraken.go` and `provider/client/http_client.go`), but for
/// `Connection: close`.
fn harbors_request(authorization: &str, repository: &str, digest: &Digest) -> String {
    let body = format!(
        "{{\"Events\":[{{\"Id\":\"XVlBzgbaiCMRAjWwhTHctcuAxhxKQFDa\",\"TimeStamp\":\"2026-11-28T15:48:53.123456789Z\",\
         \"Action\":\"push\",\"Target\":{{\"MediaType\":\"application/vnd.docker.distribution.manifest.v2+json\",\
         \"Digest\":\"{digest}\",\"Repository\":\"{repository}\",\
         \"Url\":\"https://harbor.example.com/v2/{repository}/manifests/1\",\"Tag\":\"1\"}},\
         \"Request\":null,\"Actor\":null}}]}}"
    );
    format!(
        "POST /registry/notifications HTTP/1.1\r\nHost: gateway.example.com\r\nUser-Agent: Go-http-client/1.1\r\n\
         Connection: close\r\nContent-Length: {}\r\nAccept: application/json\r\n{authorization}\
         Content-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n{body}",
        body.len()
    )
}

/// The status of the answer, and its text.
async fn ask(running: &Running, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let (answer, closed) = converse(&mut stream, request.as_bytes(), PATIENCE).await;
    assert!(closed, "no end of the answer");
    let answer = String::from_utf8(answer).unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

fn get(path: &str, authorization: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}\r\n")
}

const HARBOR: &str = "Authorization: Basic aGFyYm9yOnNlY3JldA==\r\n";
const WRONG: &str = "Authorization: Basic aGFyYm9yOndyb25n\r\n";

#[tokio::test]
async fn what_harbor_sends_has_the_image_preheated_by_its_digest() {
    let running = start(true, "").await;
    let digest = Digest::sha256(b"x");
    let (status, answer) = ask(&running, &harbors_request("", "library/hello", &digest)).await;
    assert_eq!(status, 200, "{answer}");
    let wanted = ("library/hello".parse().unwrap(), Reference::Digest(digest));
    assert_eq!(running.mesh.preheated(), [wanted]);
    assert_eq!(ask(&running, &get("/health", "")).await.0, 200);
}

#[tokio::test]
async fn of_what_a_registry_tells_pushes_of_images_count() {
    let running = start(true, "").await;
    let event = |action: &str, media_type: &str, tag: &str| {
        format!(
            "{{\"id\":\"1\",\"action\":\"{action}\",\"target\":{{\"mediaType\":\"{media_type}\",\"size\":7,\
             \"repository\":\"team/app\",\"url\":\"http://r/v2/team/app/manifests/1\",\"tag\":\"{tag}\"}},\
             \"request\":{{\"id\":\"2\",\"method\":\"PUT\"}},\"source\":{{}}}}"
        )
    };
    let index = "application/vnd.oci.image.index.v1+json";
    let events = [
        event("push", index, "1"),
        event("pull", index, "2"),
        event("push", "application/octet-stream", "3"),
    ];
    let post = |body: &str| {
        format!(
            "POST /registry/notifications HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\
             Content-Type: application/vnd.docker.distribution.events.v1+json\r\n\r\n{body}",
            body.len()
        )
    };
    let told = post(&format!("{{\"events\":[{}]}}", events.join(",")));
    assert_eq!(ask(&running, &told).await.0, 200);
    let wanted = ("team/app".parse().unwrap(), Reference::Tag("1".parse().unwrap()));
    assert_eq!(running.mesh.preheated(), [wanted]);

    let bad_name = post(&format!("{{\"events\":[{}]}}", event("push", index, "-")));
    let long = post(&format!("{{\"events\":[],\"x\":\"{}\"}}", "x".repeat(1 << 20)));
    for (request, status) in [(post("no json"), 400), (bad_name, 400), (long, 413)] {
        assert_eq!(ask(&running, &request).await.0, status);
    }
    assert_eq!(ask(&running, &get("/registry/notifications", "")).await.0, 405);
    running.mesh.set_fault(Some(Fault::Busy));
    let (status, answer) = ask(&running, &told).await;
    assert!(status == 429 && answer.to_lowercase().contains("retry-after"), "{answer}");
    assert_eq!(running.mesh.preheated().len(), 1);
}

#[tokio::test]
async fn only_whom_a_rule_allows_it_may_preheat_and_only_there() {
    let rule = "[[rule]]\nwho = [\"user:harbor\"]\nrepositories = \"team/.*\"\nallow = [\"preheat\"]\n";
    let running = start(true, rule).await;
    let digest = Digest::sha256(b"x");
    for (authorization, repository, status) in [
        ("", "team/app", 401),
        (WRONG, "team/app", 401),
        (HARBOR, "other/app", 403),
        (HARBOR, "team/app", 200),
    ] {
        let (answered, answer) = ask(&running, &harbors_request(authorization, repository, &digest)).await;
        assert_eq!(answered, status, "{authorization}{repository}: {answer}");
    }
    assert_eq!(running.mesh.preheated().len(), 1);
    // Harbor's test of the connection: a wrong password is told, and none is needed to see that it lives.
    for (authorization, status) in [("", 200), (HARBOR, 200), (WRONG, 401)] {
        assert_eq!(ask(&running, &get("/health", authorization)).await.0, status, "{authorization}");
    }
    let pulls = start(true, &rule.replace("preheat", "pull")).await;
    assert_eq!(ask(&pulls, &harbors_request(HARBOR, "team/app", &digest)).await.0, 403);
}

#[tokio::test]
async fn nothing_is_preheated_where_it_is_not_set() {
    let running = start(false, "").await;
    let request = harbors_request("", "library/hello", &Digest::sha256(b"x"));
    let (status, answer) = ask(&running, &request).await;
    assert!(status == 404 && answer.contains("set preheat"), "{answer}");
    assert!(running.mesh.preheated().is_empty());
    assert_eq!(ask(&running, &get("/health", "")).await.0, 200);
}
