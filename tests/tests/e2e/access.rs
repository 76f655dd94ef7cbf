//! Gateways that do not let everybody do everything: real clients log in, and grants hold for cached content.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use data_encoding::BASE64;
use http::{Method, Request, StatusCode};
use serde_json::json;
use shoal_tests::clients::{Docker, Podman, Skopeo};
use shoal_tests::image::{Blob, noise};
use shoal_tests::process::run_program;
use shoal_tests::tokens::{ISSUER, SERVICE, TokenServer};
use shoal_tests::{Image, ImageBuilder, Mesh, NodeSpec, http as client};

use crate::MIB;

fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    std::fs::write(&path, text)?;
    Ok(path)
}

/// A mesh with two gateways under the same access file.
async fn guarded(access: &Path) -> Result<Mesh> {
    let access = access.to_string_lossy();
    let gateway = |name: &str| NodeSpec::gateway(name).flag("--gateway-access", &access);
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0")).node(NodeSpec::origin("o0"));
    mesh.node(gateway("g0")).node(gateway("g1")).start().await
}

fn htpasswd(users: &[(&str, &str)]) -> Result<String> {
    let mut text = String::new();
    for (user, password) in users {
        let hash =
            bcrypt::hash_with_salt(password, 5, [7; 16]).map_err(|error| anyhow::anyhow!("{error}"))?;
        text.push_str(&format!("{user}:{hash}\n"));
    }
    Ok(text)
}

/// One request with a login, `user:password`.
async fn ask(
    addr: SocketAddr,
    login: &str,
    method: Method,
    path: &str,
    body: impl Into<Bytes>,
) -> Result<client::Answer> {
    let mut request = Request::builder().method(method).uri(path);
    if !login.is_empty() {
        request = request.header("authorization", format!("Basic {}", BASE64.encode(login.as_bytes())));
    }
    client::send(addr, request.body(client::full(body))?).await
}

async fn push_blob(addr: SocketAddr, login: &str, repository: &str, blob: &Blob) -> Result<()> {
    let path = format!("/v2/{repository}/blobs/uploads/?digest={}", blob.digest);
    ask(addr, login, Method::POST, &path, blob.bytes.clone()).await?.expect(StatusCode::CREATED).await?;
    Ok(())
}

async fn push_image(addr: SocketAddr, login: &str, repository: &str, image: &Image) -> Result<()> {
    for blob in image.blobs() {
        push_blob(addr, login, repository, blob).await?;
    }
    let status = put_manifest(addr, login, repository, "1", &image.manifest).await?;
    ensure!(status == StatusCode::CREATED, "{repository}: {status}");
    Ok(())
}

async fn put_manifest(
    addr: SocketAddr,
    login: &str,
    repository: &str,
    tag: &str,
    manifest: &Blob,
) -> Result<StatusCode> {
    let request = Request::builder()
        .method(Method::PUT)
        .uri(format!("/v2/{repository}/manifests/{tag}"))
        .header("content-type", &manifest.media_type)
        .header("authorization", format!("Basic {}", BASE64.encode(login.as_bytes())));
    Ok(client::send(addr, request.body(client::full(manifest.bytes.clone()))?).await?.status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_podman_and_skopeo_log_in_with_a_token_server() -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("shoal-access-").tempdir()?;
    let dir = scratch.path();
    let server = TokenServer::start().await?;
    write(dir, "jwks.json", &server.signer.jwks())?;
    let access = format!(
        "[[issuer]]\nname = \"tokens\"\nissuer = \"{ISSUER}\"\naudience = [\"{SERVICE}\"]\nkeys = \"jwks.json\"\n\
         grants = \"token\"\nrealm = \"{}\"\nservice = \"{SERVICE}\"\n",
        server.realm()
    );
    let mesh = guarded(&write(dir, "access.toml", &access)?).await?;
    let (g0, g1) = (mesh.node("g0")?.gateway()?, mesh.node("g1")?.gateway()?);
    let image = ImageBuilder::new(1001).runnable().payload(2 * MIB).build()?;
    let reference = |addr: SocketAddr, name: &str| format!("{addr}/{name}:1");

    let docker = Docker::start(&dir.join("docker")).await?;
    ensure!(docker.login(&g0.to_string(), "alice", "wrong").await.is_err(), "a wrong password logs in");
    docker.login(&g0.to_string(), "alice", "alice-password").await?;
    docker.login(&g1.to_string(), "alice", "alice-password").await?;
    let archive = dir.join("image.tar");
    image.save_docker_archive(&archive, &reference(g0, "alice/app"))?;
    docker.push(&archive, &reference(g0, "alice/app")).await?;
    docker.pull(&reference(g1, "alice/app")).await?;
    ensure!(docker.run(&reference(g1, "alice/app")).await? == image.output);
    docker.forget().await?;
    image.save_docker_archive(&archive, &reference(g0, "bob/app"))?;
    ensure!(docker.push(&archive, &reference(g0, "bob/app")).await.is_err(), "alice pushes to bob's");
    docker.logout(&g1.to_string()).await?;
    ensure!(docker.pull(&reference(g1, "alice/app")).await.is_err(), "nobody pulls alice's");
    docker.stop().await?;

    let podman = Podman::new(&dir.join("podman"))?;
    ensure!(podman.pull(&reference(g1, "alice/app")).await.is_err(), "nobody pulls alice's");
    ensure!(podman.login(&g1.to_string(), "alice", "wrong").await.is_err(), "a wrong password logs in");
    podman.login(&g1.to_string(), "alice", "alice-password").await?;
    podman.pull(&reference(g1, "alice/app")).await?;
    podman.stop().await?;

    let skopeo = Skopeo::new(&dir.join("skopeo"))?;
    ensure!(skopeo.login(&g1.to_string(), "alice", "wrong").await.is_err(), "a wrong password logs in");
    skopeo.login(&g1.to_string(), "alice", "alice-password").await?;
    skopeo.login(&g0.to_string(), "alice", "alice-password").await?;
    let (from, to) = (reference(g1, "alice/app"), reference(g0, "alice/copy"));
    skopeo.copy(&[], &format!("docker://{from}"), &format!("docker://{to}")).await?;
    skopeo.pull_to_dir(&[], &to, "copy").await?;
    ensure!(skopeo.pull_to_dir(&[], &reference(g1, "bob/app"), "bob").await.is_err());
    ensure!(server.issued() > 8, "tokens came from somewhere else: {}", server.issued());
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_podman_and_skopeo_log_in_with_htpasswd_and_pull_without() -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("shoal-access-").tempdir()?;
    let dir = scratch.path();
    write(dir, "users", &htpasswd(&[("alice", "apple")])?)?;
    let access = "htpasswd = \"users\"\n\
        [[rule]]\nwho = [\"anyone\"]\nrepositories = \"public/.*\"\nallow = [\"pull\"]\n\
        [[rule]]\nwho = [\"user:alice\"]\nallow = [\"pull\", \"push\"]\n";
    let mesh = guarded(&write(dir, "access.toml", access)?).await?;
    let (g0, g1) = (mesh.node("g0")?.gateway()?, mesh.node("g1")?.gateway()?);
    let image = ImageBuilder::new(1002).runnable().payload(MIB).build()?;
    let reference = |addr: SocketAddr, name: &str| format!("{addr}/{name}:1");

    let docker = Docker::start(&dir.join("docker")).await?;
    let archive = dir.join("image.tar");
    image.save_docker_archive(&archive, &reference(g0, "public/app"))?;
    ensure!(docker.push(&archive, &reference(g0, "public/app")).await.is_err(), "nobody pushes");
    ensure!(docker.login(&g0.to_string(), "alice", "pear").await.is_err(), "a wrong password logs in");
    docker.login(&g0.to_string(), "alice", "apple").await?;
    docker.push(&archive, &reference(g0, "public/app")).await?;
    image.save_docker_archive(&archive, &reference(g0, "private/app"))?;
    docker.push(&archive, &reference(g0, "private/app")).await?;
    // At the other gateway docker has no password.
    docker.pull(&reference(g1, "public/app")).await?;
    ensure!(docker.pull(&reference(g1, "private/app")).await.is_err(), "nobody pulls what is private");
    docker.stop().await?;

    let podman = Podman::new(&dir.join("podman"))?;
    podman.pull(&reference(g1, "public/app")).await?;
    ensure!(podman.pull(&reference(g1, "private/app")).await.is_err());
    podman.login(&g1.to_string(), "alice", "apple").await?;
    podman.pull(&reference(g1, "private/app")).await?;
    podman.stop().await?;

    let skopeo = Skopeo::new(&dir.join("skopeo"))?;
    skopeo.pull_to_dir(&[], &reference(g1, "public/app"), "public").await?;
    ensure!(skopeo.pull_to_dir(&[], &reference(g1, "private/app"), "refused").await.is_err());
    skopeo.login(&g1.to_string(), "alice", "apple").await?;
    skopeo.pull_to_dir(&[], &reference(g1, "private/app"), "private").await?;

    for name in ["g0", "g1"] {
        let log = mesh.log(name)?;
        ensure!(!log.contains("apple") && !log.contains("YWxpY2U6"), "{name} logs a password");
    }
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_is_read_only_through_a_repository_that_holds_it() -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("shoal-access-").tempdir()?;
    let dir = scratch.path();
    write(dir, "users", &htpasswd(&[("root", "r"), ("eve", "e")])?)?;
    let access = "htpasswd = \"users\"\n\
        [[rule]]\nwho = [\"user:root\"]\nallow = [\"pull\", \"push\", \"delete\", \"catalog\"]\n\
        [[rule]]\nwho = [\"user:eve\"]\nrepositories = \"eve/.*\"\nallow = [\"pull\", \"push\"]\n";
    let mut mesh = guarded(&write(dir, "access.toml", access)?).await?;
    // A gateway without rules, as an operator may run one on a build machine's loopback.
    mesh.add(NodeSpec::gateway("open")).await?;
    let (g0, g1) = (mesh.node("g0")?.gateway()?, mesh.node("g1")?.gateway()?);
    let image = ImageBuilder::new(1003).payload(MIB).build()?;
    push_image(g0, "root:r", "private/app", &image).await?;
    let secret = &image.layers[0].blob;
    let get = async |addr: SocketAddr, login: &str, repository: &str| -> Result<StatusCode> {
        let path = format!("/v2/{repository}/blobs/{}", secret.digest);
        Ok(ask(addr, login, Method::GET, &path, "").await?.status)
    };
    // It is in the store of g0, and soon in g1's: what is cached is checked like what is not.
    ensure!(get(g1, "root:r", "private/app").await? == StatusCode::OK);
    for addr in [g0, g1] {
        ensure!(get(addr, "eve:e", "private/app").await? == StatusCode::FORBIDDEN);
        ensure!(get(addr, "eve:e", "eve/app").await? == StatusCode::NOT_FOUND, "through another repository");
        ensure!(get(addr, "", "private/app").await? == StatusCode::UNAUTHORIZED);
    }
    // Nor by mounting it, naming a source or none, nor by a manifest that refers to it.
    for from in ["&from=private/app", "", "&from=eve/other"] {
        let path = format!("/v2/eve/app/blobs/uploads/?mount={}{from}", secret.digest);
        let mount = ask(g0, "eve:e", Method::POST, &path, "").await?;
        ensure!(mount.status == StatusCode::ACCEPTED, "{from}: {}", mount.status);
    }
    let config = Blob::new("application/json", b"{}".to_vec());
    push_blob(g0, "eve:e", "eve/app", &config).await?;
    let grab = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor(),
        "layers": [secret.descriptor()],
    });
    let grab = Blob::new("application/vnd.oci.image.manifest.v1+json", grab.to_string().into_bytes());
    ensure!(put_manifest(g0, "eve:e", "eve/app", "1", &grab).await? == StatusCode::NOT_FOUND);
    let manifest = format!("/v2/eve/app/manifests/{}", image.manifest.digest);
    ensure!(ask(g1, "eve:e", Method::GET, &manifest, "").await?.status == StatusCode::NOT_FOUND);
    ensure!(get(g1, "eve:e", "eve/app").await? == StatusCode::NOT_FOUND, "something opened the way");
    // Who has the bytes may push them, and then has them there.
    push_blob(g1, "eve:e", "eve/app", secret).await?;
    ensure!(get(g0, "eve:e", "eve/app").await? == StatusCode::OK);

    // What came through the gateway without rules is its repository's by the manifest that refers to it.
    let shared = ImageBuilder::new(1004).payload(MIB).build()?;
    let open = mesh.registry("open", "eve/build")?;
    open.push_image("1", &shared).await?;
    let path = format!("/v2/eve/build/blobs/{}", shared.layers[0].blob.digest);
    ensure!(ask(g1, "eve:e", Method::GET, &path, "").await?.status == StatusCode::OK);
    let loose = Blob::new("application/octet-stream", noise(1005, 1000));
    mesh.registry("open", "private/loose")?.push_blob(&loose).await?;
    let path = format!("/v2/eve/build/blobs/{}", loose.digest);
    ensure!(ask(g1, "eve:e", Method::GET, &path, "").await?.status == StatusCode::NOT_FOUND);
    mesh.finish().await
}

#[tokio::test]
async fn a_gateway_that_would_take_passwords_in_the_clear_does_not_start() -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("shoal-access-").tempdir()?;
    let dir = scratch.path();
    write(dir, "users", &htpasswd(&[("alice", "apple")])?)?;
    let rule = "htpasswd = \"users\"\n[[rule]]\nwho = [\"user:alice\"]\nallow = [\"pull\"]\n";
    let access = write(dir, "access.toml", rule)?;
    let mesh = Mesh::with_gateways(0).start().await?;
    let access = access.to_string_lossy().into_owned();
    let start = async |spec: NodeSpec| -> Result<String> {
        let mut other = Mesh::empty().beside(&mesh).start().await?;
        let refused = other.add(spec).await.err().context("it starts")?;
        other.finish().await?;
        Ok(format!("{refused:#}"))
    };
    let outside = NodeSpec::gateway("g0").flag("--gateway", "0.0.0.0:0").flag("--gateway-access", &access);
    let said = start(outside).await?;
    ensure!(said.contains("gateway-tls-cert"), "{said}");
    let missing = NodeSpec::gateway("g0").flag("--gateway-access", "/nowhere/access.toml");
    ensure!(start(missing).await?.contains("/nowhere/access.toml"));
    // The settings are printed without secrets, because there are none in them.
    let shown = run_program(&["config", "show", "--gateway-access", &access].map(str::to_owned)).await?;
    ensure!(shown.contains("access.toml") && !shown.contains("$2"), "{shown}");
    mesh.finish().await
}
