//! The tutorial and the how-tos: each block of commands marked `sh` is run, page by page, in a machine of its own: this
//! one's file system with a layer of its own on top, without a network but loopback.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shoal_tests::process::program;
use shoal_tests::{ImageBuilder, system};
use tokio::process::Command;

/// How long a page may take on a noisy machine.
const PAGE_TIME_MAX: Duration = Duration::from_secs(300);

/// What a page's machine has running before the page begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// `shoal dev`, as on a machine where a mesh is.
    Mesh,
    /// dockerd.
    Docker,
    /// containerd.
    Containerd,
    /// Another registry that holds `library/hello:1`.
    Registry,
    /// A directory that was a mesh's backend.
    Backend,
}

const PAGES: &[(&str, &[Needs])] = &[
    ("TUTORIAL.md", &[Needs::Docker]),
    ("howto/containerd.md", &[Needs::Mesh, Needs::Containerd]),
    ("howto/docker.md", &[Needs::Mesh, Needs::Docker]),
    ("howto/kubernetes.md", &[]),
    ("howto/multi-cloud.md", &[]),
    ("howto/harbor.md", &[Needs::Mesh, Needs::Registry]),
    ("howto/upgrade.md", &[Needs::Mesh]),
    ("howto/disaster-recovery.md", &[Needs::Backend]),
    ("howto/from-kraken.md", &[Needs::Mesh, Needs::Registry]),
    ("howto/harbor-preheat.md", &[Needs::Registry]),
];

/// Starts what stands in for the machine: run as root in namespaces of its own, in the directory it may fill.
const MACHINE: &str = r#"
mount --make-rprivate /
ip link set lo up
mkdir -p upper work root
mount -t overlay overlay -o "lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work" root
for dir in dev proc sys; do mount --rbind /$dir root/$dir; done
for dir in run var/lib/docker var/lib/containerd var/lib/shoal etc/containerd etc/docker etc/containers; do
    mkdir -p root/$dir
    mount -t tmpfs tmpfs root/$dir
done
mkdir -p root/tmp/home root/old
cp hello.tar page.sh root/tmp/home/
cd root
pivot_root . old
umount -l /old
export HOME=/tmp/home
cd /tmp/home
exec bash -eu /tmp/home/page.sh
"#;

/// The commands of a page, in their order. A block inside a list is indented with it.
fn commands(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "```sh" {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let block: Vec<&str> = lines
            .by_ref()
            .take_while(|line| line.trim() != "```")
            .map(|line| line.get(indent..).unwrap_or_default())
            .collect();
        blocks.push(block.join("\n"));
    }
    blocks
}

fn preparations(needs: &[Needs]) -> String {
    let mut script = String::from(
        "mkdir -p /etc/containers\n\
         echo '{\"default\": [{\"type\": \"insecureAcceptAnything\"}]}' >/etc/containers/policy.json\n\
         echo 'unqualified-search-registries = []' >/etc/containers/registries.conf\n\
         wait_for() { for try in $(seq 300); do \"$@\" >/dev/null 2>&1 && return 0; sleep 0.2; done; echo \"gave up: $*\"; exit 1; }\n",
    );
    let mesh = "shoal dev --gateways 2 --data-dir /tmp/mesh >/tmp/mesh.log 2>&1 & mesh=$!\n\
                wait_for curl -sf http://127.0.0.1:7070/readyz\n\
                # A gateway is ready before it has heard of an origin.\n\
                wait_for sh -c \"shoal doctor | grep -q '^ ok   origins'\"\n";
    for need in needs {
        script.push_str(match need {
            Needs::Mesh => mesh,
            Needs::Containerd => {
                "containerd >/tmp/containerd.log 2>&1 &\nwait_for ctr version\n"
            }
            Needs::Docker => {
                "containerd >/tmp/containerd.log 2>&1 &\nwait_for ctr version\n\
                 dockerd --iptables=false --ip6tables=false --bridge=none --containerd /run/containerd/containerd.sock \
                 >/tmp/dockerd.log 2>&1 &\nwait_for docker version\n"
            }
            Needs::Registry => {
                "printf 'version: 0.1\\nstorage: {filesystem: {rootdirectory: /tmp/registry}}\\nhttp: {addr: \"127.0.0.1:15000\"}\\n' \
                 >/tmp/registry.yml\ndocker-registry serve /tmp/registry.yml >/tmp/registry.log 2>&1 &\n\
                 wait_for curl -sf http://127.0.0.1:15000/v2/\n\
                 export KRAKEN=127.0.0.1:15000 HARBOR=127.0.0.1:15000\n\
                 skopeo copy --quiet --dest-tls-verify=false docker-archive:hello.tar \
                 docker://127.0.0.1:15000/library/hello:1\n"
            }
            Needs::Backend => {
                "shoal dev --data-dir /tmp/mesh >/tmp/mesh.log 2>&1 & mesh=$!\n\
                 wait_for curl -sf http://127.0.0.1:7070/readyz\n\
                 skopeo copy --quiet --dest-tls-verify=false docker-archive:hello.tar docker://127.0.0.1:5000/hello:1\n\
                 kill $mesh; wait $mesh\nmv /tmp/mesh/blobs /tmp/backend\nrm -r /tmp/mesh\nexport BACKEND=/tmp/backend\n"
            }
        });
    }
    // The page's own jobs are numbered from one.
    script.push_str("disown -a\n");
    script
}

async fn run_page(page: &str, needs: &[Needs]) -> Result<()> {
    let text = std::fs::read_to_string(system::project("docs").join(page))?;
    let blocks = commands(&text);
    ensure!(!blocks.is_empty(), "{page} has no commands");
    let dir = tempfile::Builder::new().prefix("shoal-docs-").tempdir_in(memory())?;
    ImageBuilder::new(550)
        .runnable()
        .payload(100_000)
        .build()?
        .save_docker_archive(&dir.path().join("hello.tar"), "hello:1")?;
    // As one would type it: each command is shown before it runs.
    let script = format!("{}set -xm\n{}\n", preparations(needs), blocks.join("\n"));
    std::fs::write(dir.path().join("page.sh"), script)?;
    std::fs::write(dir.path().join("machine.sh"), MACHINE)?;
    let program = std::fs::canonicalize(program()?)?;
    let tools = system::tool("helm")?;
    let path = format!(
        "{}:{}:{}",
        program.parent().context("no directory")?.display(),
        tools.parent().context("no directory")?.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    ensure!(program.ends_with("shoal"), "the program is not called shoal: {}", program.display());
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "bash",
        "-eu",
        "machine.sh",
    ]);
    command.current_dir(dir.path()).env("PATH", path);
    command.env("PROJECT", std::fs::canonicalize(system::project("."))?);
    // To a file: what a page starts in the background would hold a pipe open.
    let log = dir.path().join("page.log");
    let out = std::fs::File::create(&log)?;
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).kill_on_drop(true);
    let status = tokio::time::timeout(PAGE_TIME_MAX, command.status()).await;
    let said = system::tail(&log, 80);
    let status = status.with_context(|| format!("{page} does not end:\n{said}"))??;
    ensure!(status.success(), "{page}: {status}\n{said}");
    Ok(())
}

/// A file system that can be a layer's upper one: not one that is layered itself.
fn memory() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() }
}

/// A test for each page, so that one names what is wrong.
macro_rules! pages {
    ($($name:ident: $number:literal),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() -> Result<()> {
                let (page, needs) = PAGES[$number];
                run_page(page, needs).await
            }
        )*

        #[test]
        fn every_page_is_run() {
            assert_eq!([$($number),*].len(), PAGES.len());
            let mut pages: Vec<String> = std::fs::read_dir(system::project("docs/howto"))
                .unwrap()
                .map(|entry| format!("howto/{}", entry.unwrap().file_name().to_string_lossy()))
                .collect();
            pages.push("TUTORIAL.md".to_owned());
            for page in pages {
                assert!(PAGES.iter().any(|(name, _)| *name == page), "{page} is run by no test");
            }
        }
    };
}

pages! {
    tutorial: 0,
    howto_containerd: 1,
    howto_docker: 2,
    howto_kubernetes: 3,
    howto_multi_cloud: 4,
    howto_harbor: 5,
    howto_upgrade: 6,
    howto_disaster_recovery: 7,
    howto_from_kraken: 8,
    howto_harbor_preheat: 9,
}

#[test]
fn links_lead_somewhere() {
    let docs = system::project("docs");
    let pages = PAGES.iter().map(|(page, _)| docs.join(page));
    for page in pages.chain([docs.join("README.md"), system::project("deploy/wireguard/README.md")]) {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let there = page.parent().unwrap().join(target);
            assert!(there.exists(), "{}: {link} leads nowhere", page.display());
        }
    }
}
