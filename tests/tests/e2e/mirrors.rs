//! Other registries pulled through: gateways stand in for them, origins ask them. Debian's docker-registry is upstream.

use std::path::Path;

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use http::StatusCode;
use serde_json::json;
use shoal_origin::conformance::servers::{REGISTRY_PASSWORD, REGISTRY_USER};
use shoal_tests::clients::{Containerd, Docker, Skopeo};
use shoal_tests::contract::metric;
use shoal_tests::wait::PATIENCE;
use shoal_tests::{
    Dialect, Image, ImageBuilder, Mesh, MeshBuilder, NodeSpec, Registry, Server, ports, wait_until,
};

use crate::MIB;

/// The name of a registry that exists only in configurations.
const HOST: &str = "registry.example";

/// Origins and gateways that pull registries through, each with a name and the URL that origins ask.
pub(crate) fn mesh_of(upstreams: &[(&str, String)], origins: usize, gateways: usize) -> MeshBuilder {
    let mut mesh = Mesh::empty().node(NodeSpec::bootstrap("b0"));
    for number in 0..origins {
        let origin = NodeSpec::origin(&format!("o{number}"));
        let told = |origin: NodeSpec, (host, url): &(&str, String)| {
            origin.flag("--upstream", &format!("{host}={url}"))
        };
        mesh = mesh.node(upstreams.iter().fold(origin, told));
    }
    for number in 0..gateways {
        let gateway = NodeSpec::gateway(&format!("g{number}"));
        mesh =
            mesh.node(upstreams.iter().fold(gateway, |gateway, (host, _)| gateway.flag("--upstream", host)));
    }
    mesh
}

pub(crate) fn url(server: &Server, options: &str) -> String {
    format!("registry://127.0.0.1:{}?plain-http{options}", server.port())
}

pub(crate) fn upstream(server: &Server, repository: &str) -> Registry {
    Registry::new(([127, 0, 0, 1], server.port()).into(), repository)
}

/// What the upstream registry was asked, `METHOD PATH STATUS` each, out of its access log.
fn asked(server: &Server) -> Result<Vec<String>> {
    let log = std::fs::read_to_string(server.dir().join("log"))?;
    let request = |line: &str| {
        let mut quoted = line.split('"');
        let request = quoted.nth(1)?.strip_suffix(" HTTP/1.1")?;
        Some(format!("{request} {}", quoted.next()?.split_whitespace().next()?))
    };
    Ok(log.lines().filter_map(request).collect())
}

fn count(requests: &[String], wanted: impl Fn(&str) -> bool) -> usize {
    requests.iter().filter(|request| wanted(request)).count()
}

async fn digest_at(registry: &Registry, tag: &str) -> Result<String> {
    let answer = registry.manifest(tag).await?.expect(StatusCode::OK).await?;
    Ok(answer.header("docker-content-digest").to_owned())
}

fn image(seed: u64) -> Result<Image> {
    ImageBuilder::new(seed).payload(3 * MIB).payload(1000).build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_is_one_client_of_the_registry() -> Result<()> {
    const GATEWAYS: usize = 6;
    let server = Server::registry(false).await;
    let image = ImageBuilder::new(901).gzip(false).payload(20 * MIB).payload(MIB).payload(10).build()?;
    upstream(&server, "team/app").push_image("1", &image).await?;
    let before = asked(&server)?.len();
    let mesh = mesh_of(&[(HOST, url(&server, ""))], 2, GATEWAYS).start().await?;
    let registries: Vec<_> = (0..GATEWAYS)
        .map(|number| Ok(mesh.registry(&format!("g{number}"), "team/app")?.of(HOST)))
        .collect::<Result<_>>()?;
    try_join_all(registries.iter().map(|registry| registry.pull("1"))).await?;
    let requests = asked(&server)?.split_off(before);
    for blob in image.blobs() {
        let gets = count(&requests, |request| request.starts_with("GET") && request.contains(&blob.digest));
        // Once, but for gateways that do not know both origins yet: then each of the two may be asked. Never once a gateway.
        ensure!((1..=2).contains(&gets), "{} was read {gets} times: {requests:#?}", blob.digest);
    }
    let gets = count(&requests, |request| request.starts_with("GET") && request.contains("/manifests/"));
    let heads = count(&requests, |request| request.starts_with("HEAD") && request.contains("/manifests/1"));
    ensure!(
        (1..=2).contains(&gets) && heads <= 2,
        "the manifest was read {gets} times, asked after {heads} times: {requests:#?}"
    );
    // A mirror is read, and says so.
    let listed =
        shoal_tests::http::get(registries[0].addr, &format!("/v2/team/app/tags/list?ns={HOST}")).await?;
    ensure!(listed.status == StatusCode::METHOD_NOT_ALLOWED, "a mirror lists: {}", listed.status);
    // What is mirrored is no image of the mesh's own.
    let own = mesh.registry("g0", "team/app")?;
    ensure!(
        own.manifest("1").await?.status == StatusCode::NOT_FOUND,
        "a mirrored tag has the mesh's own name"
    );
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_stay_apart_and_pushes_are_not_mistaken_for_cached_blobs() -> Result<()> {
    let (one, other) = (Server::registry(false).await, Server::registry(false).await);
    let (first, second, own) = (image(911)?, image(912)?, image(913)?);
    upstream(&one, "app").push_image("1", &first).await?;
    upstream(&other, "app").push_image("1", &second).await?;
    let upstreams = [(HOST, url(&one, "")), ("other.example:5000", url(&other, ""))];
    let mesh = mesh_of(&upstreams, 1, 2).start().await?;
    let here = mesh.registry("g0", "app")?;
    here.push_image("1", &own).await?;
    for gateway in ["g0", "g1"] {
        let registry = mesh.registry(gateway, "app")?;
        for (registry, wanted) in [
            (registry.clone().of(HOST), &first),
            (registry.clone().of("other.example:5000"), &second),
            (registry.clone(), &own),
            // A mirror of a registry that nobody mirrors gives what was pushed under the name.
            (registry.of("elsewhere.example"), &own),
        ] {
            registry.pull("1").await?;
            let digest = digest_at(&registry, "1").await?;
            ensure!(digest == wanted.manifest.digest, "{registry:?} gave {digest}");
        }
    }
    // A blob that is only cached is not one that the mesh keeps: a client that asks before it pushes has to push.
    let cached = &first.layers[0].blob;
    let path = format!("/v2/app/blobs/{}", cached.digest);
    let head = shoal_tests::http::call(here.addr, http::Method::HEAD, &path).await?;
    ensure!(head.status == StatusCode::NOT_FOUND, "a cached blob passes for a pushed one");
    here.push_image("2", &first).await?;
    ensure!(
        digest_at(&mesh.registry("g1", "app")?, "2").await? == first.manifest.digest,
        "it cannot be pushed"
    );
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moved_tag_is_seen_when_the_known_one_is_too_old() -> Result<()> {
    let server = Server::registry(false).await;
    let (old, new) = (image(921)?, image(922)?);
    let there = upstream(&server, "app");
    for tag in ["fresh", "kept"] {
        there.push_image(tag, &old).await?;
    }
    let upstreams =
        [("fresh.example", url(&server, "&max-age=0s")), ("kept.example", url(&server, "&max-age=1h"))];
    let mesh = mesh_of(&upstreams, 1, 2).start().await?;
    let fresh = mesh.registry("g0", "app")?.of("fresh.example");
    let kept = mesh.registry("g0", "app")?.of("kept.example");
    for (registry, tag) in [(&fresh, "fresh"), (&kept, "kept")] {
        ensure!(digest_at(registry, tag).await? == old.manifest.digest, "{tag}: another image");
    }
    // Asked again by HEAD, and nothing is read again.
    let before = asked(&server)?.len();
    let again = mesh.registry("g1", "app")?;
    ensure!(
        digest_at(&again.clone().of("fresh.example"), "fresh").await? == old.manifest.digest,
        "another image"
    );
    ensure!(digest_at(&again.of("kept.example"), "kept").await? == old.manifest.digest, "another image");
    let requests = asked(&server)?.split_off(before);
    let heads = count(&requests, |request| request.starts_with("HEAD /v2/app/manifests/fresh"));
    ensure!(heads >= 1 && requests.len() == heads, "the registry was asked {requests:#?}");
    // The tag moves.
    for tag in ["fresh", "kept"] {
        there.push_image(tag, &new).await?;
    }
    for gateway in ["g0", "g1"] {
        let registry = mesh.registry(gateway, "app")?;
        let now = digest_at(&registry.clone().of("fresh.example"), "fresh").await?;
        ensure!(now == new.manifest.digest, "the tag that moved is not seen through {gateway}");
        let now = digest_at(&registry.of("kept.example"), "kept").await?;
        ensure!(now == old.manifest.digest, "the registry is asked more often than max-age says");
    }
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_registry_down_the_last_known_answer_is_given_and_marked() -> Result<()> {
    let mut server = Server::registry(false).await;
    let (old, new) = (image(931)?, image(932)?);
    upstream(&server, "app").push_image("1", &old).await?;
    let mesh = mesh_of(&[(HOST, url(&server, "&max-age=0s"))], 1, 2).start().await?;
    let here = mesh.registry("g0", "app")?.of(HOST);
    here.pull("1").await?;
    let answer = here.manifest("1").await?.expect(StatusCode::OK).await?;
    ensure!(answer.header(metric::STALE).is_empty(), "a fresh answer is marked stale");

    server.stop().await;
    for gateway in ["g0", "g1"] {
        let registry = mesh.registry(gateway, "app")?.of(HOST);
        let answer = registry.manifest("1").await?.expect(StatusCode::OK).await?;
        ensure!(answer.header("docker-content-digest") == old.manifest.digest, "another image");
        ensure!(answer.header(metric::STALE) == "true", "an old answer through {gateway} is not marked");
        registry.pull("1").await?;
        ensure!(mesh.node(gateway)?.counted(metric::STALE_ANSWERS).await? >= 1.0, "it is not counted");
        let unknown = registry.manifest("unknown").await?;
        ensure!(unknown.status.is_server_error(), "what cannot be known is {}", unknown.status);
    }

    server.resume().await;
    upstream(&server, "app").push_image("1", &new).await?;
    wait_until("the registry is asked again", PATIENCE, async || {
        let answer = here.manifest("1").await?.expect(StatusCode::OK).await?;
        Ok((answer.header("docker-content-digest") == new.manifest.digest).then_some(()))
    })
    .await?;
    let answer = here.manifest("1").await?.expect(StatusCode::OK).await?;
    ensure!(answer.header(metric::STALE).is_empty(), "a fresh answer is marked stale");
    let unknown = here.manifest("unknown").await?;
    ensure!(unknown.status == StatusCode::NOT_FOUND, "what does not exist is {}", unknown.status);
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_origins_dead_what_gateways_have_is_given_and_marked() -> Result<()> {
    let server = Server::registry(false).await;
    let (image, other) = (image(961)?, image(962)?);
    upstream(&server, "app").push_image("1", &image).await?;
    upstream(&server, "app").push_image("2", &other).await?;
    let mut mesh = mesh_of(&[(HOST, url(&server, ""))], 1, 3).start().await?;
    for (gateway, tag) in [("g0", "1"), ("g0", "2"), ("g1", "1")] {
        mesh.registry(gateway, "app")?.of(HOST).pull(tag).await?;
    }
    mesh.kill("o0").await?;
    for (gateway, tag, image) in
        [("g0", "1", &image), ("g0", "2", &other), ("g1", "1", &image), ("g2", "2", &other)]
    {
        let registry = mesh.registry(gateway, "app")?.of(HOST);
        let answer = registry.manifest(tag).await?.expect(StatusCode::OK).await?;
        ensure!(answer.header("docker-content-digest") == image.manifest.digest, "another image");
        ensure!(answer.header(metric::STALE) == "true", "an old answer through {gateway} is not marked");
        registry.pull(tag).await?;
        registry.pull(&image.manifest.digest).await?;
    }
    let unknown = mesh.registry("g0", "app")?.of(HOST).manifest("unknown").await?;
    ensure!(unknown.status.is_server_error(), "what cannot be known is {}", unknown.status);
    // And after a start.
    mesh.kill("g0").await?;
    mesh.restart("g0").await?;
    mesh.registry("g0", "app")?.of(HOST).pull("2").await?;
    mesh.finish().await
}

/// A `config.json` as `docker login` writes it.
fn login(dir: &Path, server: &Server) -> Result<String> {
    let auth = data_encoding::BASE64.encode(format!("{REGISTRY_USER}:{REGISTRY_PASSWORD}").as_bytes());
    let file = dir.join("config.json");
    let config = json!({"auths": {format!("127.0.0.1:{}", server.port()): {"auth": auth}}});
    std::fs::write(&file, config.to_string())?;
    Ok(file.display().to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_open_what_is_shut_to_others() -> Result<()> {
    let server = Server::registry(true).await;
    let dir = tempfile::tempdir()?;
    let config = login(dir.path(), &server)?;
    let image = image(941)?;
    let archive = dir.path().join("image.tar");
    image.save_docker_archive(&archive, "app:1")?;
    let credentials = format!("{REGISTRY_USER}:{REGISTRY_PASSWORD}");
    let (from, to) = (
        format!("docker-archive:{}", archive.display()),
        format!("docker://127.0.0.1:{}/app:1", server.port()),
    );
    Skopeo::new(dir.path())?.copy(&["--dest-creds", &credentials], &from, &to).await?;
    let upstreams = [
        ("open.example", url(&server, &format!("&docker-config={config}"))),
        ("shut.example", {
            let none = dir.path().join("none.json");
            std::fs::write(&none, "{}")?;
            url(&server, &format!("&docker-config={}", none.display()))
        }),
    ];
    let mesh = mesh_of(&upstreams, 1, 1).start().await?;
    let registry = mesh.registry("g0", "app")?;
    registry.clone().of("open.example").pull("1").await?;
    let refused = registry.of("shut.example").manifest("1").await?;
    ensure!(refused.status == StatusCode::FORBIDDEN, "without a password: {}", refused.status);
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_and_dockerd_pull_through() -> Result<()> {
    let server = Server::registry(false).await;
    let image = ImageBuilder::new(951).runnable().payload(5 * MIB).build()?;
    upstream(&server, "library/tool").push_image("1", &image).await?;
    let platforms = [
        ImageBuilder::new(952).runnable().dialect(Dialect::Docker).payload(MIB).build()?,
        ImageBuilder::new(953).arch("riscv64").dialect(Dialect::Docker).payload(MIB).build()?,
    ];
    upstream(&server, "library/tool").push_index("multi", &platforms, Dialect::Docker).await?;
    let hub = ports::reserve()?;
    let upstreams = [("docker.io", url(&server, "")), (HOST, url(&server, ""))];
    let gateway =
        NodeSpec::gateway("hub").flag("--upstream", "docker.io").flag("--hub-mirror", &hub.to_string());
    let mesh = mesh_of(&upstreams, 1, 1).node(gateway).start().await?;
    let scratch = crate::clients::Scratch::new()?;

    let containerd = Containerd::start(&scratch.path().join("containerd")).await?;
    for host in ["docker.io", HOST] {
        containerd.send_to(host, mesh.node("g0")?.gateway()?)?;
        for (tag, output) in [("1", &image.output), ("multi", &platforms[0].output)] {
            let (reference, namespace) =
                (format!("{host}/library/tool:{tag}"), format!("{}-{tag}", host.replace('.', "-")));
            containerd.pull(&namespace, &reference).await?;
            let printed = containerd.run(&namespace, &reference, &format!("run-{namespace}")).await?;
            ensure!(printed == *output, "{reference} printed {printed:?} instead of {output:?}");
        }
    }
    containerd.stop().await?;

    let settings = json!({"registry-mirrors": [format!("http://{hub}")]});
    let docker = Docker::start_with(&scratch.path().join("docker"), &settings.to_string()).await?;
    for (reference, output) in [("tool:1", &image.output), ("tool:multi", &platforms[0].output)] {
        docker.pull(reference).await?;
        let printed = docker.run(reference).await?;
        ensure!(printed == *output, "{reference} printed {printed:?} instead of {output:?}");
    }
    docker.stop().await?;
    mesh.finish().await
}
