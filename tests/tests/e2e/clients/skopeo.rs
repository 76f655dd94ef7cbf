//! skopeo: formats and media types; and what only an HTTP client can ask for here, an artifact's referrers.

use anyhow::{Context, Result, ensure};
use shoal_tests::clients::Skopeo;
use shoal_tests::image::{Blob, artifact_of, noise};
use shoal_tests::{Dialect, ImageBuilder};

use super::{Gateways, many_layers, platforms};
use crate::MIB;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_copies_in_every_format() -> Result<()> {
    let gateways = Gateways::start().await?;
    let skopeo = Skopeo::new(&gateways.dir("skopeo"))?;
    let formats: [(&str, &[&str], &str); 4] = [
        ("v2s2", &["--format=v2s2"], "distribution.manifest.v2+json"),
        ("oci", &["--format=oci"], "oci.image.layer.v1.tar+gzip"),
        ("zstd", &["--format=oci", "--dest-compress-format=zstd"], "oci.image.layer.v1.tar+zstd"),
        ("plain", &["--format=oci", "--dest-decompress"], "oci.image.manifest.v1+json"),
    ];
    for (seed, (tag, options, media_type)) in (410..).zip(formats) {
        // An image each: of a layer that the registry has already, skopeo takes the form that it has.
        let image = ImageBuilder::new(seed).payload(20 * MIB).payload(5).build()?;
        let archive = format!("docker-archive:{}", gateways.archive(&image, "skopeo")?.display());
        let to = gateways.registry(0, "skopeo").reference(tag);
        skopeo.copy(options, &archive, &format!("docker://{to}")).await?;
        for gateway in [1, 2] {
            let from = gateways.registry(gateway, "skopeo").reference(tag);
            let manifest = skopeo.inspect_raw(&from).await?;
            ensure!(manifest.contains(media_type), "{from}: {manifest}");
            skopeo.pull_to_dir(&[], &from, &format!("{tag}-{gateway}")).await?;
        }
    }
    let repository = format!("{}/skopeo", gateways.addrs[2]);
    ensure!(skopeo.list_tags(&repository).await? == ["oci", "plain", "v2s2", "zstd"]);

    gateways.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_copies_indexes_and_many_layers_between_gateways() -> Result<()> {
    let gateways = Gateways::start().await?;
    let skopeo = Skopeo::new(&gateways.dir("skopeo"))?;

    gateways.registry(0, "skopeo-index").push_index("1", &platforms(42)?, Dialect::Oci).await?;
    let from = gateways.registry(1, "skopeo-index").reference("1");
    skopeo.pull_to_dir(&["--all"], &from, "index").await?;
    // Into another repository of the same mesh: it tries mounts.
    let copy = gateways.registry(2, "skopeo-copy").reference("1");
    skopeo.copy(&["--all"], &format!("docker://{from}"), &format!("docker://{copy}")).await?;
    gateways.registry(0, "skopeo-copy").pull("1").await?;

    let layers = many_layers(43).build()?;
    gateways.registry(0, "skopeo-layers").push_image("1", &layers).await?;
    let from = gateways.registry(1, "skopeo-layers").reference("1");
    skopeo.pull_to_dir(&[], &from, "layers").await?;
    gateways.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_is_found_by_its_subject_from_every_gateway() -> Result<()> {
    const KIND: &str = "application/vnd.shoal.test.sbom";
    let gateways = Gateways::start().await?;
    // Another kind of registry may know no referrers: this test is about ours.
    if gateways.mesh.is_none() {
        return gateways.finish().await;
    }
    let image = ImageBuilder::new(44).payload(1000).build()?;
    let registry = gateways.registry(0, "subject");
    registry.push_image("1", &image).await?;
    let mut artifacts = Vec::new();
    for (seed, kind) in [(45, KIND), (46, "application/vnd.shoal.test.signature")] {
        let content = Blob::new("application/octet-stream", noise(seed, 2 * MIB));
        let (config, manifest) = artifact_of(&image.manifest, kind, &content);
        registry.push_blob(&config).await?;
        registry.push_blob(&content).await?;
        let answer = registry.push_manifest(&manifest.digest, &manifest).await?;
        ensure!(answer.header("oci-subject") == image.manifest.digest, "OCI-Subject is missing");
        artifacts.push(manifest);
    }
    for gateway in [0, 1, 2] {
        let registry = gateways.registry(gateway, "subject");
        let all = registry.referrers(&image.manifest.digest, "").await?;
        ensure!(all.len() == 2, "gateway {gateway} knows {} referrers", all.len());
        let query = format!("?artifactType={KIND}");
        let some = registry.referrers(&image.manifest.digest, &query).await?;
        let only = some.first().filter(|_| some.len() == 1).context("the filter does not filter")?;
        ensure!(only["digest"] == artifacts[0].digest.as_str() && only["artifactType"] == KIND, "{only}");
        registry.pull(&artifacts[0].digest).await?;
    }
    gateways.finish().await
}
