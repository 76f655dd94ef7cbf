//! How far commands say they have got: a bar on a terminal, plain lines elsewhere, nothing beside JSON.

use anyhow::{Context, Result, ensure};
use shoal_tests::image::{Blob, noise};
use shoal_tests::process::program;
use shoal_tests::{ImageBuilder, Mesh, NodeSpec, system};
use tokio::process::Command;

use crate::{MIB, pushed_blob};

/// What bars are drawn with.
const BAR: [char; 2] = ['█', '░'];
/// The columns of the terminal.
const COLUMNS: usize = 90;

/// What a terminal of its own shows of a command that succeeds, escapes and all.
async fn on_terminal(words: &[&str]) -> Result<String> {
    let line = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let line = format!("stty cols {COLUMNS} rows 24 && exec '{}' {line}", program()?.display());
    system::run(Command::new("script").args(["-q", "-e", "-f", "-c", &line, "/dev/null"]))
        .await
        .with_context(|| format!("{words:?} on a terminal"))
}

/// What a command that succeeds prints without a terminal: standard output and error.
async fn elsewhere(words: &[&str]) -> Result<[String; 2]> {
    let output = Command::new(program()?).args(words).output().await?;
    let [out, error] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    ensure!(output.status.success(), "{words:?}: {error}");
    Ok([out, error])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bars_on_a_terminal_lines_elsewhere_and_json_alone() -> Result<()> {
    let mesh = Mesh::empty().node(NodeSpec::bootstrap("b0")).node(NodeSpec::gateway("g0").zone("eu"));
    let mesh = mesh.node(NodeSpec::origin("o0").zone("eu")).node(NodeSpec::origin("u0").zone("us"));
    let slow = NodeSpec::gateway("g1").zone("eu").flag("--rate-in", "2MiB");
    let mesh = mesh.node(slow).flag("--replicas", "1").start().await?;
    let dir = mesh.scratch("files")?;
    let image = ImageBuilder::new(1901).gzip(false).payload(2 * MIB).build()?;
    let archive = dir.join("image.tar");
    image.save_docker_archive(&archive, "thing:1")?;
    let file = dir.join("file");
    std::fs::write(&file, Blob::new("application/octet-stream", noise(1902, 4 * MIB)).bytes)?;
    let scenario = system::project("simulations/scenarios/bench-hosts-8.toml");
    let out = dir.join("out");
    let [archive, file, scenario, out] =
        [archive, file, scenario, out].map(|path| path.to_string_lossy().into_owned());
    let gateway = mesh.node("g0")?.gateway()?.to_string();
    let ops = |name: &str| anyhow::Ok(mesh.node(name)?.ops()?.to_string());
    let (origin, near, slow) = (ops("o0")?, ops("g0")?, ops("g1")?);
    let blobs =
        [pushed_blob(&mesh, "g0", 1903, 14 * MIB).await?, pushed_blob(&mesh, "g0", 1904, 14 * MIB).await?];
    let [one, two] = [0, 1].map(|at: usize| blobs[at].digest.as_str());

    let commands: [(&[&str], &str); 7] = [
        (&["put", "--ops", &near, &file], "/4.00 MiB"),
        (&["push", "--gateway", &gateway, &archive, "app:1"], "MiB/"),
        (&["get", "--ops", &slow, "--output", &out, one], "/14.00 MiB"),
        (&["preheat", "--ops", &near, "app:1"], "MiB/"),
        (&["replicate", "--ops", &origin, "app:1", "--to", "us"], "blobs and manifests"),
        (&["gc", "--ops", &origin, "--dry-run"], "origins"),
        (&["simulate", &scenario], "downloads"),
    ];
    for (words, told) in commands {
        let shown = on_terminal(words).await?;
        ensure!(shown.contains(BAR), "{words:?} shows no bar: {shown:?}");
        ensure!(shown.contains(told), "{words:?} does not say {told:?}: {shown:?}");
        // One line that is drawn again, and taken away before the result.
        let drawn = shown.split(['\r', '\n']).filter(|line| line.contains(BAR));
        for line in drawn {
            let columns = console_width(line);
            ensure!(columns <= COLUMNS, "{words:?}: {columns} columns: {line:?}");
        }
        let last = shown.lines().rfind(|line| !line.trim().is_empty()).context("nothing is shown")?;
        let result = last.rsplit('\r').next().unwrap_or_default();
        ensure!(!result.contains(BAR), "{words:?} leaves its bar: {shown:?}");
    }

    // Without a terminal, a line now and then.
    let [said, lines] = elsewhere(&["get", "--ops", &slow, "--output", &out, two]).await?;
    ensure!(!lines.contains(BAR) && said.contains(two), "{said}{lines}");
    let line = lines.lines().next().context("no line in seven seconds")?;
    ensure!(line.starts_with(&format!("get {two}: ")) && line.contains(" %, "), "{line}");
    ensure!(line.contains("of 14.0 MiB after "), "{line}");
    // With JSON, JSON alone.
    for words in commands.map(|(words, _)| [words, &["--json"]].concat()) {
        let [said, lines] = elsewhere(&words).await?;
        ensure!(lines.is_empty(), "{words:?}: {lines}");
        serde_json::from_str::<serde_json::Value>(&said).with_context(|| format!("{words:?}: {said}"))?;
    }
    mesh.finish().await
}

/// The columns that a line takes: escape sequences take none.
fn console_width(line: &str) -> usize {
    let mut columns = 0;
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        if char == '\u{1b}' {
            // CSI sequences end with a letter.
            let _ = chars.by_ref().skip(1).find(char::is_ascii_alphabetic);
        } else {
            columns += 1;
        }
    }
    columns
}
