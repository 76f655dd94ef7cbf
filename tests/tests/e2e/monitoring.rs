//! Metrics, and what is made of them: each in use as the table says, rules and dashboards with a real Prometheus.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::StatusCode;
use serde_json::Value;
use shoal_daemon::metrics::table::{Kind, Row, table};
use shoal_tests::wait::PATIENCE;
use shoal_tests::{Mesh, NodeSpec, http as client, ports, system, wait_until};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use crate::{MIB, pushed_blob};

/// Metrics that a quiet mesh does not show: they come to be with their first count.
// Traffic of a zone is shown once there was some with a member whose heartbeat had come before.
const RARE: [&str; 3] =
    ["shoal_gateway_rejected_total", "shoal_zone_served_bytes_total", "shoal_zone_received_bytes_total"];

async fn scrape(mesh: &Mesh, name: &str) -> Result<String> {
    let answer = client::get(mesh.node(name)?.ops()?, "/metrics").await?.expect(StatusCode::OK).await?;
    answer.text().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_of_the_table_is_shown_and_none_else() -> Result<()> {
    let mesh = Mesh::with_gateways(2).start().await?;
    let blob = pushed_blob(&mesh, "g0", 1501, 2 * MIB).await?;
    mesh.registry("g1", "e2e/blob")?.pull_blob(&blob.digest).await?;
    let rows: Vec<Row> = table().into_iter().flat_map(|(_, rows)| rows).collect();
    let mut shown = BTreeSet::new();
    for name in ["b0", "o0", "g0", "g1"] {
        let text = scrape(&mesh, name).await?;
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (metric, kind) = line.split_once(' ').context("a type line without a type")?;
            let row = rows.iter().find(|row| row.exposed() == metric);
            let row = row.with_context(|| format!("{name} shows {metric}, which is not in the table"))?;
            let expected = match row.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            ensure!(kind == expected, "{metric} is a {kind}");
            shown.insert(metric.to_owned());
        }
        check_labels(&text, &rows)?;
        lint(&text).await.with_context(|| format!("promtool does not like the metrics of {name}"))?;
    }
    for row in &rows {
        let known = shown.contains(&row.exposed()) || RARE.contains(&row.exposed().as_str());
        ensure!(known, "{} is in the table, and no process shows it", row.exposed());
    }
    mesh.finish().await
}

/// Every sample has the labels of its row.
fn check_labels(text: &str, rows: &[Row]) -> Result<()> {
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, labels)) = line.split_once('{') else { continue };
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let row = rows.iter().find(|row| Some(row.exposed().as_str()) == base || row.exposed() == name);
        let row = row.with_context(|| format!("{name} is not in the table"))?;
        let labels = labels.rsplit_once('}').map_or(labels, |(labels, _)| labels);
        for pair in labels.split("\",") {
            let (label, _) = pair.split_once("=\"").with_context(|| format!("{line}: no label"))?;
            ensure!(label == "le" || row.labels.contains(&label), "{name} has the label {label}");
        }
    }
    Ok(())
}

/// `promtool check metrics`.
async fn lint(text: &str) -> Result<()> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool cannot be started: scripts/setup.sh installs it")?;
    let mut input = promtool.stdin.take().context("no input")?;
    input.write_all(text.as_bytes()).await?;
    drop(input);
    let output = promtool.wait_with_output().await?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
    Ok(())
}

/// What a query stands in, and the query.
struct Query {
    place: String,
    text: String,
}

fn deploy() -> PathBuf {
    system::project("deploy")
}

/// Every query of every dashboard.
fn dashboard_queries() -> Result<Vec<Query>> {
    let mut queries = Vec::new();
    let mut files: Vec<PathBuf> = std::fs::read_dir(deploy().join("grafana"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let dashboard: Value = serde_json::from_slice(&std::fs::read(&file)?).context(name.clone())?;
        let panels = dashboard["panels"].as_array().with_context(|| format!("{name} has no panels"))?;
        for panel in panels {
            let title = panel["title"].as_str().with_context(|| format!("{name}: a panel has no title"))?;
            let targets = panel["targets"].as_array().context("a panel has no queries")?;
            ensure!(!targets.is_empty(), "{name}: {title} has no query");
            for target in targets {
                let text = target["expr"].as_str().context("a target has no query")?.to_owned();
                queries.push(Query { place: format!("{name}: {title}"), text });
            }
        }
    }
    Ok(queries)
}

/// The values of a key of a rule file, block texts included, which is all that is needed of YAML here.
fn rule_texts(rules: &str, key: &str) -> Vec<String> {
    let mut texts = Vec::new();
    let mut lines = rules.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(value) = line.trim_start().trim_start_matches("- ").strip_prefix(&format!("{key}: ")) else {
            continue;
        };
        if value != "|" {
            texts.push(value.to_owned());
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let mut block = String::new();
        while let Some(more) = lines.next_if(|more| more.len() - more.trim_start().len() > indent) {
            block.push_str(more.trim());
            block.push(' ');
        }
        texts.push(block);
    }
    texts
}

#[test]
fn dashboards_and_rules_name_metrics_that_exist() -> Result<()> {
    let rules = std::fs::read_to_string(deploy().join("prometheus/shoal.rules.yml"))?;
    let recorded: BTreeSet<String> = rule_texts(&rules, "record").into_iter().collect();
    let mut known: BTreeSet<String> = recorded;
    for row in table().into_iter().flat_map(|(_, rows)| rows) {
        let name = row.exposed();
        if row.kind == Kind::Histogram {
            known.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")));
        } else {
            known.insert(name);
        }
    }
    let mut queries = dashboard_queries()?;
    let rules = rule_texts(&rules, "expr");
    ensure!(queries.len() > 60 && rules.len() > 15, "{} queries, {} rules", queries.len(), rules.len());
    queries.extend(rules.into_iter().map(|text| Query { place: "shoal.rules.yml".to_owned(), text }));
    for Query { place, text } in queries {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        let metrics: Vec<&str> = words
            .filter(|word| word.starts_with("shoal_") || word.starts_with("process_") || word.contains(':'))
            .collect();
        for metric in &metrics {
            ensure!(known.contains(*metric), "{place} asks for {metric}, which there is not: {text}");
        }
        ensure!(!metrics.is_empty() || text.contains("up{"), "{place} asks for nothing of ours: {text}");
    }
    Ok(())
}

#[tokio::test]
async fn rules_pass_their_own_tests() -> Result<()> {
    let mut promtool = Command::new("promtool");
    promtool.current_dir(deploy().join("prometheus")).args(["test", "rules", "shoal.rules.test.yml"]);
    shoal_tests::system::run(&mut promtool).await?;
    // Every alert is made to fire by one of them.
    let rules = std::fs::read_to_string(deploy().join("prometheus/shoal.rules.yml"))?;
    let tests = std::fs::read_to_string(deploy().join("prometheus/shoal.rules.test.yml"))?;
    for alert in rule_texts(&rules, "alert") {
        let fires = format!("alertname: {alert}\n        exp_alerts:\n");
        ensure!(tests.contains(&fires), "no test makes {alert} fire");
    }
    Ok(())
}

/// A Prometheus that scrapes a mesh each second, and heeds the rules at once.
struct Prometheus {
    address: SocketAddr,
    _process: Child,
}

impl Prometheus {
    async fn start(mesh: &Mesh, names: &[&str]) -> Result<Self> {
        let dir = mesh.scratch("prometheus")?;
        let rules = std::fs::read_to_string(deploy().join("prometheus/shoal.rules.yml"))?;
        // As they are, but for how long something must last.
        let hasty: Vec<String> = rules
            .lines()
            .map(|line| match line.trim_start().strip_prefix("for: ") {
                Some(_) => "        for: 1s".to_owned(),
                None => line.to_owned(),
            })
            .collect();
        std::fs::write(dir.join("rules.yml"), hasty.join("\n"))?;
        let targets: Result<Vec<String>> =
            names.iter().map(|name| Ok(format!("\"{}\"", mesh.node(name)?.ops()?))).collect();
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [rules.yml]\n\
             scrape_configs:\n  - job_name: shoal\n    static_configs: [{{ targets: [{}] }}]\n",
            targets?.join(", ")
        );
        std::fs::write(dir.join("prometheus.yml"), config)?;
        let address = ports::reserve()?;
        let log = std::fs::File::create(dir.join("log"))?;
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("prometheus cannot be started: scripts/setup.sh installs it")?;
        let own = Self { address, _process: process };
        wait_until("Prometheus scrapes every process", PATIENCE, async || {
            let up = own.query("sum(up)").await.unwrap_or_default();
            Ok((up == [names.len() as f64]).then_some(()))
        })
        .await?;
        Ok(own)
    }

    /// The values of an instant query.
    async fn query(&self, query: &str) -> Result<Vec<f64>> {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = client::get(self.address, &format!("/api/v1/query?query={escaped}")).await?;
        let answer = answer.json().await?;
        ensure!(answer["status"] == "success", "{query}: {answer}");
        let samples = answer["data"]["result"].as_array().context("no result")?;
        let value = |sample: &Value| sample["value"][1].as_str()?.parse::<f64>().ok();
        Ok(samples.iter().filter_map(value).collect())
    }

    /// The names of the alerts that fire.
    async fn firing(&self) -> Result<BTreeSet<String>> {
        let answer = client::get(self.address, "/api/v1/alerts").await?.json().await?;
        let alerts = answer["data"]["alerts"].as_array().context("no alerts")?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        Ok(firing.filter_map(|alert| Some(alert["labels"]["alertname"].as_str()?.to_owned())).collect())
    }
}

/// Pushes and pulls small blobs until it is dropped.
async fn keep_busy(mesh: &Mesh) -> Result<()> {
    for seed in 1600.. {
        let blob = pushed_blob(mesh, "g0", seed, MIB).await?;
        mesh.registry("g1", "e2e/blob")?.pull_blob(&blob.digest).await?;
        mesh.registry("g2", "e2e/blob")?.pull_blob(&blob.digest).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_dashboard_query_has_data_and_a_dead_origin_is_told_of() -> Result<()> {
    const NAMES: [&str; 6] = ["b0", "o0", "o1", "g0", "g1", "g2"];
    let mut mesh = Mesh::empty()
        .node(NodeSpec::bootstrap("b0"))
        .node(NodeSpec::origin("o0"))
        .node(NodeSpec::origin("o1"))
        .node(NodeSpec::gateway("g0"))
        .node(NodeSpec::gateway("g1"))
        .node(NodeSpec::gateway("g2").zone("away"))
        .flag("--heartbeat-interval", "1s")
        .start()
        .await?;
    let prometheus = Prometheus::start(&mesh, &NAMES).await?;
    let asking = async {
        for Query { place, text } in dashboard_queries()? {
            let text =
                text.replace("$__rate_interval", "15s").replace("$job", "shoal").replace("$instance", ".*");
            // `$1` is a group of a regular expression.
            ensure!(
                !text.replace("\"$1\"", "").contains('$'),
                "{place}: a variable that is not known here: {text}"
            );
            wait_until(&format!("{place}: {text} has data"), Duration::from_secs(60), async || {
                let values = prometheus.query(&text).await?;
                ensure!(values.iter().any(|value| !value.is_nan()), "{values:?}");
                Ok(Some(()))
            })
            .await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        asked = asking => asked?,
        busy = keep_busy(&mesh) => busy.and_then(|()| -> Result<()> { bail!("the mesh does no more work") })?,
    }
    let firing = prometheus.firing().await?;
    ensure!(firing.is_empty(), "nothing is wrong, and {firing:?} fire");
    mesh.kill("o1").await?;
    wait_until("the dead origin is told of", Duration::from_secs(120), async || {
        let firing = prometheus.firing().await?;
        let told = ["ShoalDown", "ShoalOriginLost"].iter().all(|alert| firing.contains(*alert));
        ensure!(told, "{firing:?} fire");
        Ok(Some(()))
    })
    .await?;
    drop(prometheus);
    mesh.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_lines_are_json_and_carry_the_id_of_their_request() -> Result<()> {
    let mesh = Mesh::empty()
        .node(NodeSpec::bootstrap("b0"))
        .node(NodeSpec::origin("o0"))
        .node(NodeSpec::gateway("g0").flag("--log-format", "json").flag("--log", "info,shoal_gateway=debug"))
        .start()
        .await?;
    let answer = client::get(mesh.node("g0")?.gateway()?, "/v2/no/such/manifests/1").await?;
    let id = answer.expect(StatusCode::NOT_FOUND).await?.header("x-request-id").to_owned();
    ensure!(id.len() == 16, "the request's id is {id:?}");
    wait_until("the request is logged with its id", PATIENCE, async || {
        // The first line is the harness's own.
        let log = mesh.log("g0")?;
        let lines: Vec<Value> = log
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?;
        let of_request =
            |line: &&Value| line["span"]["id"] == id.as_str() && line["span"]["name"] == "request";
        let line = lines.iter().find(of_request).context("no line has the id")?;
        ensure!(line["fields"]["status"] == 404, "{line}");
        Ok(Some(()))
    })
    .await?;
    mesh.finish().await
}
