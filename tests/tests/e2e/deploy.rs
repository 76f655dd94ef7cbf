//! What is in `deploy/`: the image runs in a real engine, the chart renders what Kubernetes takes and the program
//! understands, the compose file names what is there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shoal_tests::clients::Docker;
use shoal_tests::process::{program, run_program};
use shoal_tests::system::Namespace;
use shoal_tests::wait::{PATIENCE, wait_until};
use shoal_tests::{ImageBuilder, Registry, http, ports, system};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_image_runs_a_mesh_as_nobody() -> Result<()> {
    let scratch = super::install::Scratch::new()?;
    let build = system::project("deploy/image/build.sh");
    let archive = scratch.join("shoal.tar");
    system::run(Command::new(&build).arg(program()?).arg("shoal:test").arg(&archive)).await?;
    let again = scratch.join("again.tar");
    system::run(Command::new(&build).arg(program()?).arg("shoal:test").arg(&again)).await?;
    ensure!(std::fs::read(&archive)? == std::fs::read(&again)?, "the same program makes two images");
    std::fs::remove_file(again)?;

    let docker = Docker::start(&scratch.join("docker")).await?;
    docker.run_docker(&["load", "--quiet", "--input", &archive.to_string_lossy()]).await?;
    let help = docker.run_docker(&["run", "--rm", "--network", "none", "shoal:test"]).await?;
    ensure!(help.contains("Usage: shoal"), "{help}");
    let (gateway, ops) = (ports::reserve()?, ports::reserve()?);
    let (port, ops_port) = (gateway.port().to_string(), ops.port().to_string());
    let run = [
        "run",
        "--detach",
        "--name",
        "mesh",
        "--network",
        "host",
        "--read-only",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "shoal:test",
        "dev",
        "--data-dir",
        "/var/lib/shoal/dev",
        "--port",
        &port,
        "--ops-port",
        &ops_port,
    ];
    docker.run_docker(&run).await?;
    let up = wait_until("the mesh in the container is up", PATIENCE, async || {
        Ok((http::get(gateway, "/v2/").await?.status == ::http::StatusCode::OK).then_some(()))
    })
    .await;
    if up.is_err() {
        eprintln!("{:?}", docker.run_docker(&["logs", "mesh"]).await);
    }
    up?;
    let image = ImageBuilder::new(540).payload(5_000_000).build()?;
    let registry = Registry::new(gateway, "app");
    registry.push_image("1", &image).await?;
    registry.pull("1").await?;
    let user = docker.run_docker(&["inspect", "--format", "{{.Config.User}}", "mesh"]).await?;
    ensure!(user.trim() == "65532:65532", "it runs as {user}");
    docker.run_docker(&["stop", "mesh"]).await?;
    let code = docker.run_docker(&["inspect", "--format", "{{.State.ExitCode}}", "mesh"]).await?;
    ensure!(code.trim() == "0", "it ended with {code}");
    docker.run_docker(&["rm", "--volumes", "mesh"]).await?;
    docker.stop().await
}

async fn helm(args: &[&str]) -> Result<String> {
    let mut helm = Command::new(system::tool("helm")?);
    let chart = system::project("deploy/helm/shoal");
    system::run(helm.arg(args[0]).args(&args[1..]).arg(chart)).await
}

/// What the chart renders with these values.
async fn render(sets: &[&str]) -> Result<Vec<Value>> {
    let mut args =
        vec!["template", "--namespace", "shoal", "--kube-version", "1.30.0", "--name-template", "demo"];
    for set in sets {
        args.extend(["--set", set]);
    }
    system::yaml(&helm(&args).await?).await
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a Value> {
    documents.iter().filter(|document| document["kind"] == kind).collect()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The pods of a rendering, with the kind of what makes them.
fn pods(documents: &[Value]) -> Vec<(String, &Value)> {
    let makers = documents.iter().filter(|document| document["spec"]["template"]["spec"].is_object());
    makers.map(|maker| (maker["metadata"]["name"].to_string(), &maker["spec"]["template"])).collect()
}

/// Settings and arguments are what the program takes.
async fn check_commands(documents: &[Value], dir: &Path) -> Result<()> {
    let [config] = of_kind(documents, "ConfigMap")[..] else { anyhow::bail!("not one ConfigMap") };
    for (name, text) in config["data"].as_object().context("no data")? {
        std::fs::write(dir.join(name), text.as_str().context("no text")?)?;
    }
    for (name, pod) in pods(documents) {
        let spec = &pod["spec"];
        let all = [&spec["containers"], &spec["initContainers"]];
        for container in all.into_iter().filter_map(Value::as_array).flatten() {
            let args = texts(&container["args"]);
            let file = args.iter().position(|arg| arg == "--config").and_then(|at| args.get(at + 1));
            if let Some(file) = file {
                let local = dir.join(Path::new(file).file_name().context("no name")?);
                let words = ["config", "check", "--config", &local.to_string_lossy()].map(str::to_owned);
                run_program(&words).await.with_context(|| format!("{name}: {file}"))?;
                ensure!(["bootstrap", "node", "gateway"].contains(&args[0].as_str()), "{name} runs {args:?}");
            } else {
                let mut words: Vec<String> = args
                    .iter()
                    .map(|arg| arg.replace("/etc/containerd", &dir.display().to_string()))
                    .filter(|arg| !arg.starts_with("--state-dir"))
                    .collect();
                words.extend(
                    ["--dry-run", "--state-dir", &dir.join("state").to_string_lossy()].map(str::to_owned),
                );
                let said = run_program(&words).await.with_context(|| name.clone())?;
                ensure!(said.contains("would create") && said.contains("hosts.toml"), "{said}");
            }
            let security = &container["securityContext"];
            ensure!(
                security["allowPrivilegeEscalation"] == false
                    && security["readOnlyRootFilesystem"] == true
                    && texts(&security["capabilities"]["drop"]) == ["ALL"],
                "{name} may too much: {security}"
            );
            let mounted: Vec<&Value> = container["volumeMounts"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|mount| &mount["name"])
                .collect();
            let claims = documents.iter().flat_map(|document| {
                document["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten()
            });
            let there: Vec<&Value> =
                spec["volumes"].as_array().into_iter().flatten().map(|v| &v["name"]).collect();
            let claimed: Vec<&Value> = claims.map(|claim| &claim["metadata"]["name"]).collect();
            for mount in mounted {
                ensure!(
                    there.contains(&mount) || claimed.contains(&mount),
                    "{name} mounts {mount}, which is nowhere"
                );
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chart_renders_what_the_program_takes() -> Result<()> {
    helm(&["lint", "--strict"]).await?;
    let dir = tempfile::tempdir()?;
    let documents = render(&["podMonitor.enabled=true"]).await?;
    for (kind, count) in [
        ("DaemonSet", 1),
        ("StatefulSet", 2),
        ("Service", 3),
        ("NetworkPolicy", 1),
        ("PodMonitor", 1),
        ("PodDisruptionBudget", 2),
        ("ServiceAccount", 3),
        ("Secret", 0),
    ] {
        ensure!(of_kind(&documents, kind).len() == count, "{} {kind}", of_kind(&documents, kind).len());
    }
    check_commands(&documents, dir.path()).await?;
    // Whoever selects something selects a pod that is there.
    let labels: Vec<Value> =
        pods(&documents).into_iter().map(|(_, pod)| pod["metadata"]["labels"].clone()).collect();
    let selectors = documents.iter().flat_map(|document| {
        let spec = &document["spec"];
        let service = (document["kind"] == "Service").then(|| spec["selector"].clone());
        [
            service,
            Some(spec["selector"]["matchLabels"].clone()),
            Some(spec["podSelector"]["matchLabels"].clone()),
        ]
    });
    for selector in selectors.flatten().filter(Value::is_object) {
        let wanted = selector.as_object().context("no selector")?;
        let met = labels.iter().any(|labels| wanted.iter().all(|(key, value)| labels[key] == *value));
        ensure!(met, "{selector} selects nothing");
    }

    // Other values than the defaults.
    let more = [
        "zone=eu-1",
        "bootstrap.enabled=false",
        "bootstrapPeers={/ip4/10.0.0.1/tcp/4001}",
        "join.tokens.gateway=secret",
        "origin.backends={prod/.*=s3://images?region=x,fs:/var/lib/shoal/blobs}",
        "origin.config.capacity=80GiB",
        "gateway.config.rate-out=20MiB",
        "gateway.capacity=50GiB",
        "gateway.containerd.registries={docker.io,quay.io}",
        "networkPolicy.enabled=false",
        "ports.ops=7171",
    ];
    let documents = render(&more).await?;
    ensure!(of_kind(&documents, "Secret").len() == 1 && of_kind(&documents, "NetworkPolicy").is_empty());
    check_commands(&documents, dir.path()).await?;
    let gateway = std::fs::read_to_string(dir.path().join("gateway.toml"))?;
    ensure!(gateway.contains("rate-out = \"20MiB\"") && gateway.contains("7171"), "{gateway}");

    for wrong in [
        "zone=EU!",
        "origin.replicas=0",
        "gateway.port=70000",
        "nonsense=1",
        "origin.backends={}",
        "gateway.containerd.registries={a/b}",
        "networkPolicy.memberCIDRs={everybody}",
    ] {
        ensure!(render(&[wrong]).await.is_err(), "{wrong} is taken");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_compose_file_names_what_is_there() -> Result<()> {
    let dir = system::project("deploy/compose");
    let text = std::fs::read_to_string(dir.join("compose.yaml"))?;
    let [compose] = &system::yaml(&text).await?[..] else { anyhow::bail!("not one document") };
    let volumes = compose["volumes"].as_object().context("no volumes")?;
    let mut programs = 0;
    for (name, service) in compose["services"].as_object().context("no services")? {
        for mount in texts(&service["volumes"]) {
            let from = mount.split(':').next().unwrap_or_default();
            let there =
                if from.starts_with('.') { dir.join(from).exists() } else { volumes.contains_key(from) };
            ensure!(there, "{name} mounts {from}, which is not there");
        }
        for needed in texts(&service["depends_on"]) {
            ensure!(compose["services"][&needed].is_object(), "{name} needs {needed}");
        }
        for secret in texts(&service["secrets"]) {
            ensure!(compose["secrets"][&secret].is_object(), "{name} has no secret {secret}");
        }
        if service["image"].as_str().is_some_and(|image| image.contains("shoal")) {
            // The same flags as the daemon's.
            let mut words = vec!["config".to_owned(), "check".to_owned()];
            words.extend(texts(&service["command"]).into_iter().skip(1));
            run_program(&words).await.with_context(|| name.clone())?;
            programs += 1;
        }
    }
    ensure!(programs == 6, "{programs} services of ours");
    let prometheus = std::fs::read_to_string(dir.join("prometheus.yml"))?;
    let [prometheus] = &system::yaml(&prometheus).await?[..] else { anyhow::bail!("not one document") };
    for target in texts(&prometheus["scrape_configs"][0]["static_configs"][0]["targets"]) {
        let host = target.split(':').next().unwrap_or_default();
        ensure!(compose["services"][host].is_object(), "Prometheus scrapes {host}, which is no service");
    }
    // Keys and tokens, which a machine can join with.
    let copy: PathBuf = tempfile::tempdir()?.keep();
    std::fs::copy(dir.join("prepare.sh"), copy.join("prepare.sh"))?;
    for _ in 0..2 {
        system::run(Command::new("sh").arg(copy.join("prepare.sh")).env("SHOAL", program()?)).await?;
    }
    for part in ["bootstrap", "origin", "gateway"] {
        ensure!(copy.join(format!("mesh/{part}.token")).exists(), "no token of {part}");
    }
    std::fs::remove_dir_all(copy)?;
    Ok(())
}

/// Loads a program of this machine as an image that stands in for the one that a registry would have.
async fn bundle(docker: &Docker, program: &Path, at: &str, reference: &str, changes: &[&str]) -> Result<()> {
    const SCRIPT: &str = r#"
        set -eu
        root=$(mktemp -d)
        trap 'rm -rf "$root"' EXIT
        install -D "$1" "$root/$2"
        ldd "$1" | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }' | while read -r library; do
            install -D "$library" "$root$library"
        done
        mkdir -p "$root/etc" "$root/tmp"
        tar -C "$root" -cf "$3" .
    "#;
    let archive = tempfile::NamedTempFile::new()?;
    system::run(Command::new("sh").args(["-c", SCRIPT, "-"]).arg(program).arg(at).arg(archive.path()))
        .await?;
    let mut words = vec!["import"];
    changes.iter().for_each(|change| words.extend(["--change", change]));
    let archive = archive.path().to_string_lossy();
    words.extend([&*archive, reference]);
    docker.run_docker(&words).await.map(drop)
}

/// All of the compose file but Grafana, which cannot be had without a registry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_compose_file_runs_a_mesh_that_keeps_its_images() -> Result<()> {
    const SERVICES: [&str; 8] =
        ["bootstrap", "origin-1", "origin-2", "gateway-1", "gateway-2", "gateway-3", "garage", "prometheus"];
    let scratch = super::install::Scratch::new()?;
    let copy = scratch.join("deploy");
    system::run(Command::new("cp").arg("-r").arg(system::project("deploy")).arg(&copy)).await?;
    let compose_dir = copy.join("compose");
    let _ = std::fs::remove_dir_all(compose_dir.join("mesh"));
    let prepare = compose_dir.join("prepare.sh");
    system::run(Command::new("sh").arg(prepare).env("SHOAL", program()?)).await?;

    let namespace = Namespace::new("shcompose").await?;
    let docker = Docker::start_inside(&scratch.join("docker"), &namespace).await?;
    let archive = scratch.join("shoal.tar");
    let build = system::project("deploy/image/build.sh");
    system::run(Command::new(&build).arg(program()?).arg("shoal:latest").arg(&archive)).await?;
    docker.run_docker(&["load", "--quiet", "--input", &archive.to_string_lossy()]).await?;
    std::fs::remove_file(archive)?;
    bundle(&docker, &system::tool("garage")?, "garage", "garage:test", &[]).await?;
    let prometheus = [
        r#"ENTRYPOINT ["/bin/prometheus"]"#,
        r#"CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]"#,
    ];
    bundle(&docker, Path::new("/usr/bin/prometheus"), "bin/prometheus", "prometheus:test", &prometheus)
        .await?;
    let compose = async |words: &[&str]| {
        let mut command = docker.client(system::tool("docker-compose")?);
        command.arg("--file").arg(compose_dir.join("compose.yaml"));
        command.env("GARAGE_IMAGE", "garage:test").env("PROMETHEUS_IMAGE", "prometheus:test");
        system::run(command.args(words)).await
    };
    let up = [&["up", "--detach", "--quiet-pull", "--pull", "never"][..], &SERVICES].concat();
    let ran = async {
        compose(&up).await?;

        let inside = async |words: &[&str]| system::run(namespace.command(words[0]).args(&words[1..])).await;
        let image = ImageBuilder::new(545).payload(5_000_000).build()?;
        let file = scratch.join("image.tar");
        image.save_docker_archive(&file, "app:1")?;
        let shoal = program()?;
        let (shoal, file) = (shoal.to_string_lossy(), file.to_string_lossy());
        let pushed = wait_until("an image can be pushed", PATIENCE, async || {
            inside(&[&*shoal, "push", "--json", "--gateway", "127.0.0.1:5000", &*file, "app:1"])
                .await
                .map(Some)
        })
        .await;
        if pushed.is_err() {
            eprintln!("{}", compose(&["logs", "--tail", "40"]).await?);
        }
        let pushed: Value = serde_json::from_str(&pushed?)?;
        let pull = async |port: u16, to: &str| {
            let (from, to) =
                (format!("docker://127.0.0.1:{port}/app:1"), format!("dir:{}", scratch.join(to).display()));
            let words =
                ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", &from, &to];
            inside(&words).await?;
            let manifest = std::fs::read(scratch.join(to.trim_start_matches("dir:")).join("manifest.json"))?;
            ensure!(pushed["digest"] == shoal_tests::image::digest_of(&manifest), "another image");
            anyhow::Ok(())
        };
        for port in [5001, 5002] {
            pull(port, &format!("pulled-{port}")).await?;
        }
        // Prometheus has every process's figures.
        wait_until("Prometheus has scraped everybody", PATIENCE, async || {
            let answer =
                inside(&["curl", "-sf", "http://127.0.0.1:9090/api/v1/query?query=count(up==1)"]).await?;
            let answer: Value = serde_json::from_str(&answer)?;
            ensure!(answer["data"]["result"][0]["value"][1] == "6", "{answer}");
            Ok(Some(()))
        })
        .await?;

        // Everybody's own disk lost, the bucket kept.
        compose(&["down"]).await?;
        for part in ["bootstrap", "origin-1", "origin-2", "gateway-1", "gateway-2", "gateway-3"] {
            docker.run_docker(&["volume", "rm", &format!("shoal_{part}")]).await?;
        }
        compose(&up).await?;
        wait_until("the image is there again", PATIENCE, async || pull(5002, "again").await.map(Some))
            .await?;
        anyhow::Ok(())
    }
    .await;
    // Its containers would outlive it.
    compose(&["down", "--volumes"]).await?;
    ran?;
    docker.stop().await
}
