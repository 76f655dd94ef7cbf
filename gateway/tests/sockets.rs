//! What no well-behaved client does, and what real clients do that the specification does not speak of.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use shoal_gateway::GatewayConfig;
use shoal_gateway::memory::Fault;
use shoal_types::Digest;
use support::{converse, start, start_with, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longer than anything here should take.
const PATIENCE: Duration = Duration::from_secs(20);

fn quick() -> GatewayConfig {
    GatewayConfig {
        header_timeout: Duration::from_millis(200),
        body_timeout: Duration::from_millis(200),
        write_timeout: Duration::from_millis(300),
        drain_timeout: Duration::from_secs(10),
        ..GatewayConfig::default()
    }
}

fn text(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).into_owned()
}

/// Clients try TLS first; dockerd waits 10 s for an answer to its hello.
#[tokio::test]
async fn quirk_tls_hello_on_the_plain_port_is_answered_at_once() {
    let gateway = start().await;
    let mut stream = gateway.connect().await;
    // The beginning of a ClientHello; the client waits after it.
    stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03]).await.unwrap();
    let mut answer = [0; 256];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut answer)).await.unwrap().unwrap();
    // One read: what Go's TLS library takes for a plain HTTP server, then the end.
    assert!(text(&answer[..read]).starts_with("HTTP/1.1 400 "), "{}", text(&answer[..read]));
    assert_eq!(stream.read(&mut answer).await.unwrap(), 0);
    assert!(gateway.counted("shoal_gateway_rejected_total{refusal=\"tls_on_plain_port\"}"));
}

#[tokio::test]
async fn garbage_is_refused_counted_and_does_not_hurt_others() {
    let gateway = start().await;
    for garbage in
        [&b"\0\0\0\0\r\n\r\n"[..], b"GET\r\n\r\n", b"SSH-2.0-OpenSSH\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"]
    {
        let mut stream = gateway.connect().await;
        let (answer, closed) = converse(&mut stream, garbage, PATIENCE).await;
        assert!(closed, "{garbage:?}");
        assert!(answer.is_empty() || text(&answer).starts_with("HTTP/1.1 400"), "{}", text(&answer));
    }
    until("garbage is counted", || gateway.counted("shoal_gateway_rejected_total{refusal=\"garbage\"}"))
        .await;
    gateway.client().get("/v2/").await.unwrap().expect_status(200).unwrap();
}

#[tokio::test]
async fn a_flood_of_headers_is_cut_off() {
    let gateway = start().await;
    let many = (0..5_000).map(|n| format!("x-{n}: y\r\n")).collect::<String>();
    let long = format!("x-long: {}\r\n", "y".repeat(1 << 20));
    for headers in [many, long] {
        let mut stream = gateway.connect().await;
        let request = format!("GET /v2/ HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        let (answer, closed) = converse(&mut stream, request.as_bytes(), PATIENCE).await;
        assert!(closed);
        assert!(!text(&answer).starts_with("HTTP/1.1 200"), "{}", text(&answer));
    }
}

#[tokio::test]
async fn a_slow_head_and_a_silent_connection_are_closed() {
    let gateway = start_with(quick()).await;
    for beginning in [&b""[..], b"GET /v2/ HT", b"GET /v2/ HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = gateway.connect().await;
        let (_, closed) = converse(&mut stream, beginning, PATIENCE).await;
        assert!(closed, "{}", text(beginning));
    }
}

#[tokio::test]
async fn a_slow_body_is_given_up_and_the_upload_survives() {
    let gateway = start_with(quick()).await;
    let client = gateway.client();
    let reply = client.send("POST", "/v2/slow/blobs/uploads/", &[], "").await.unwrap();
    let location = reply.header("location").to_owned();
    let mut stream = gateway.connect().await;
    let request = format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nonly this");
    let (answer, closed) = converse(&mut stream, request.as_bytes(), PATIENCE).await;
    assert!(closed && text(&answer).starts_with("HTTP/1.1 408"), "{}", text(&answer));
    // What came is kept: the client may resume.
    let status = client.get(&location).await.unwrap().expect_status(204).unwrap();
    assert_eq!(status.header("range"), "0-8");
}

/// containerd and BuildKit keep their connections; the others close each.
#[tokio::test]
async fn quirk_keep_alive_and_connection_close() {
    let gateway = start().await;
    let mut stream = gateway.connect().await;
    for _ in 0..3 {
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).await.unwrap();
        assert!(text(&answer[..read]).starts_with("HTTP/1.1 200"));
    }
    let (answer, closed) =
        converse(&mut stream, b"GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", PATIENCE).await;
    assert!(closed && text(&answer).starts_with("HTTP/1.1 200"));
}

/// docker's PATCH: chunked coding, no Content-Length, Content-Range or Content-Type; then an empty PUT with an escaped
/// digest; then a HEAD that must be 200 at once.
#[tokio::test]
async fn quirk_docker_push() {
    let gateway = start().await;
    let client = gateway.client();
    let reply =
        client.send("POST", "/v2/a/b/blobs/uploads/", &[], "").await.unwrap().expect_status(202).unwrap();
    let location = reply.header("location").to_owned();
    let mut stream = gateway.connect().await;
    let request = format!(
        "PATCH {location} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    );
    let (answer, _) = converse(&mut stream, request.as_bytes(), PATIENCE).await;
    let answer = text(&answer).to_lowercase();
    assert!(answer.starts_with("http/1.1 202") && answer.contains("range: 0-4\r\n"), "{answer}");
    let digest = Digest::sha256(b"abcde");
    let path = format!("{location}?digest={}", digest.to_string().replace(':', "%3A"));
    client.send("PUT", &path, &[], "").await.unwrap().expect_status(201).unwrap();
    client
        .send("HEAD", &format!("/v2/a/b/blobs/{digest}"), &[], "")
        .await
        .unwrap()
        .expect_status(200)
        .unwrap();
}

/// containerd appends `ns` to what it asks of mirrors, and asks for manifests by HEAD and digest.
#[tokio::test]
async fn quirk_ns_parameter_is_tolerated() {
    let gateway = start().await;
    let client = gateway.client();
    let manifest = client.push_image("mirrored", "v1").await.unwrap();
    for reference in ["v1".to_owned(), Digest::sha256(manifest.as_bytes()).to_string()] {
        let path = format!("/v2/mirrored/manifests/{reference}?ns=docker.io");
        client.send("HEAD", &path, &[], "").await.unwrap().expect_status(200).unwrap();
    }
}

/// docker sends six Accept lines in any order.
#[tokio::test]
async fn quirk_many_accept_lines() {
    let gateway = start().await;
    let client = gateway.client();
    client.push_image("accepted", "v1").await.unwrap();
    let accepts = ["a/1", "a/2", "a/3", "a/4", "a/5", "a/6"].map(|kind| ("accept", kind));
    client.send("GET", "/v2/accepted/manifests/v1", &accepts, "").await.unwrap().expect_status(200).unwrap();
}

/// docker and containerd resume after a cut.
#[tokio::test]
async fn quirk_a_broken_response_is_seen_as_broken_and_can_be_resumed() {
    let gateway = start().await;
    let client = gateway.client();
    let content: Vec<u8> = (0..60_000u32).flat_map(u32::to_le_bytes).collect();
    let digest = client.push_blob("broken", &content).await.unwrap();
    let path = format!("/v2/broken/blobs/{digest}");
    // Also a mesh that ends too soon without an error must not look like a whole blob.
    for fault in [Fault::BreakAfter(100_000), Fault::EndAfter(100_000)] {
        gateway.mesh.set_fault(Some(fault));
        let mut stream = gateway.connect().await;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        let (answer, closed) = converse(&mut stream, request.as_bytes(), PATIENCE).await;
        let head = answer.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
        assert!(closed && text(&answer[..head]).contains("content-length: 240000"));
        assert!(answer.len() - head < content.len(), "{fault:?}: {} bytes", answer.len() - head);
        assert!(content.starts_with(&answer[head..]), "{fault:?}: wrong bytes");
    }
    gateway.mesh.set_fault(None);
    let reply = client.send("GET", &path, &[("range", "bytes=100000-")], "").await.unwrap();
    assert_eq!(reply.expect_status(206).unwrap().body, content[100_000..]);
    assert!(gateway.counted("shoal_gateway_responses_broken_total"));
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_the_read() {
    let gateway = start().await;
    let digest = gateway.client().push_blob("gone", &[7; 100_000]).await.unwrap();
    gateway.mesh.set_fault(Some(Fault::StallAfter(50_000)));
    let mut stream = gateway.connect().await;
    stream
        .write_all(format!("GET /v2/gone/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mesh = gateway.mesh.clone();
    until("the read is open", || mesh.reads_open() == 1).await;
    drop(stream);
    until("the read is closed", || mesh.reads_open() == 0).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_dropped() {
    let gateway = start_with(quick()).await;
    // More than the sockets' buffers hold.
    let digest = gateway.client().push_blob("deaf", &vec![7; 32 << 20]).await.unwrap();
    let mut stream = gateway.connect().await;
    stream
        .write_all(format!("GET /v2/deaf/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mesh = gateway.mesh.clone();
    until("the read is open", || mesh.reads() == 1).await;
    until("the read is closed", || mesh.reads_open() == 0).await;
}

#[tokio::test]
async fn head_never_reads() {
    let gateway = start().await;
    let client = gateway.client();
    let digest = client.push_blob("head", b"content").await.unwrap();
    client
        .send("HEAD", &format!("/v2/head/blobs/{digest}"), &[], "")
        .await
        .unwrap()
        .expect_status(200)
        .unwrap();
    assert_eq!(gateway.mesh.reads(), 0);
}

/// On 429 containerd and skopeo retry; docker fails unless the body is the specification's.
#[tokio::test]
async fn quirk_overload_is_429_with_retry_after_and_a_json_body() {
    let gateway = start_with(GatewayConfig { requests_max: 1, ..GatewayConfig::default() }).await;
    let client = gateway.client();
    let digest = client.push_blob("busy", &[7; 100_000]).await.unwrap();
    let path = format!("/v2/busy/blobs/{digest}");
    gateway.mesh.set_fault(Some(Fault::StallAfter(50_000)));
    let mut stream = gateway.connect().await;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mesh = gateway.mesh.clone();
    until("the read is open", || mesh.reads_open() == 1).await;
    // The one place is taken for as long as the response's body.
    let reply = client.get(&path).await.unwrap().expect_error(429, "TOOMANYREQUESTS").unwrap();
    assert_eq!(reply.header("retry-after"), "1");
    // The ping is answered all the same.
    client.get("/v2/").await.unwrap().expect_status(200).unwrap();
    gateway.mesh.set_fault(None);
    drop(stream);
    until("the read is closed", || mesh.reads_open() == 0).await;
    let mut status = 0;
    while status != 200 {
        status = client.get(&path).await.unwrap().status;
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn faults_of_the_mesh_have_their_status() {
    let gateway = start().await;
    let client = gateway.client();
    let digest = client.push_blob("faults", b"content").await.unwrap();
    let blob = format!("/v2/faults/blobs/{digest}");
    gateway.mesh.set_fault(Some(Fault::Unavailable));
    let reply = client.get(&blob).await.unwrap().expect_status(503).unwrap();
    // Rounded up from a second and a half.
    assert_eq!(reply.header("retry-after"), "2");
    client.send("POST", "/v2/faults/blobs/uploads/", &[], "").await.unwrap().expect_status(503).unwrap();
    gateway.mesh.set_fault(Some(Fault::Busy));
    client.get(&blob).await.unwrap().expect_error(429, "TOOMANYREQUESTS").unwrap();
    gateway.mesh.set_fault(Some(Fault::NoSpace));
    let path = format!("/v2/faults/blobs/uploads/?digest={}", Digest::sha256(b"x"));
    client.send("POST", &path, &[], "x").await.unwrap().expect_status(507).unwrap();
    assert_eq!(gateway.mesh.uploads_open(), 0, "a failed single POST leaves no upload behind");
}

#[tokio::test]
async fn a_stale_tag_says_so() {
    let gateway = start().await;
    let client = gateway.client();
    client.push_image("stale", "v1").await.unwrap();
    let path = "/v2/stale/manifests/v1";
    assert_eq!(client.get(path).await.unwrap().header("shoal-stale"), "");
    gateway.mesh.set_stale(true);
    assert_eq!(client.get(path).await.unwrap().header("shoal-stale"), "true");
}

#[tokio::test]
async fn deleting_can_be_switched_off() {
    let gateway = start_with(GatewayConfig { delete_enabled: false, ..GatewayConfig::default() }).await;
    let client = gateway.client();
    let digest = Digest::sha256(client.push_image("kept", "v1").await.unwrap().as_bytes());
    for path in ["manifests/v1".to_owned(), format!("manifests/{digest}"), format!("blobs/{digest}")] {
        let reply = client.send("DELETE", &format!("/v2/kept/{path}"), &[], "").await.unwrap();
        reply.expect_error(405, "UNSUPPORTED").unwrap();
    }
}

#[tokio::test]
async fn blobs_over_the_limit_are_413() {
    let gateway = start_with(GatewayConfig { blob_bytes_max: Some(10), ..GatewayConfig::default() }).await;
    let client = gateway.client();
    let path = format!("/v2/large/blobs/uploads/?digest={}", Digest::sha256(b"x"));
    client.send("POST", &path, &[], "eleven byte").await.unwrap().expect_error(413, "SIZE_INVALID").unwrap();
    // Also when the length is not announced.
    let mut stream = gateway.connect().await;
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\nb\r\neleven byte\r\n0\r\n\r\n"
    );
    let (answer, _) = converse(&mut stream, request.as_bytes(), PATIENCE).await;
    assert!(text(&answer).starts_with("HTTP/1.1 413"), "{}", text(&answer));
    assert_eq!(gateway.mesh.uploads_open(), 0);
}

#[tokio::test]
async fn shutdown_ends_responses_under_way_and_then_returns() {
    let gateway = start().await;
    let digest = gateway.client().push_blob("drain", &vec![7; 8 << 20]).await.unwrap();
    let mut idle = gateway.connect().await;
    let mut stream = gateway.connect().await;
    stream
        .write_all(format!("GET /v2/drain/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mesh = gateway.mesh.clone();
    until("the read is open", || mesh.reads() == 1).await;
    gateway.shutdown.cancel();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.len() > 8 << 20, "{} bytes", answer.len());
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap_or(0), 0);
    tokio::time::timeout(PATIENCE, gateway.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn requests_are_counted_by_route() {
    let gateway = start().await;
    gateway.client().get("/v2/no/such/repository/tags/list").await.unwrap().expect_status(404).unwrap();
    let labels = "shoal_gateway_requests_total{route=\"/v2/<name>/tags/list\",method=\"GET\",code=\"404\"}";
    assert!(gateway.counted(labels));
    until("the first byte is timed", || gateway.counted("shoal_gateway_first_byte_seconds_count")).await;
    until("nothing is in flight", || !gateway.counted("shoal_gateway_requests_in_flight")).await;
}
