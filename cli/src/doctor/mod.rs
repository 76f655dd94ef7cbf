//! `shoal doctor`: what the running daemon finds, what can be found without one, and how the container engines of this
//! machine are set up.

mod engines;
mod local;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use http_body_util::BodyExt as _;
use hyper::Method;
use serde_json::json;
use shoal_daemon::config::Config;
use shoal_daemon::doctor::{Finding, Verdict};

use crate::client;
use crate::flags::DaemonFlags;

/// The daemon's configuration when none is named.
const CONFIG: &str = "/etc/shoal/shoal.toml";

/// Flags of `shoal doctor`.
#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// containerd's configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
    /// dockerd's configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/docker/daemon.json")]
    docker_config: PathBuf,
    #[command(flatten)]
    daemon: DaemonFlags,
}

/// Examines, prints, and says by its exit code whether anything failed.
pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let findings = crate::daemon::small_runtime()?.block_on(examine(args));
    let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&json!({ "verdict": worst, "findings": findings }))?);
    } else {
        print(&findings);
    }
    Ok(if worst == Verdict::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn examine(args: &DoctorArgs) -> Vec<Finding> {
    let (config, mut findings) = configuration(&args.daemon);
    let address = config.ops;
    let answer = client::request(address, Method::POST, "/api/v1/doctor", None, client::empty()).await;
    let seen = match answer {
        Err(error) => Err(format!("{error:#}")),
        Ok(response) => match response.into_body().collect().await {
            Err(error) => Err(error.to_string()),
            Ok(body) => serde_json::from_slice::<Vec<Finding>>(&body.to_bytes())
                .map_err(|error| format!("its answer is not understood: {error}")),
        },
    };
    match seen {
        Ok(seen) => {
            findings.push(Finding::ok("daemon", format!("answers at {address}")));
            findings.extend(seen);
        }
        Err(why) => {
            findings.push(Finding::fail(
                "daemon",
                why,
                "start it (systemctl start shoal-gateway), or name its ops listener with --ops; a bootstrap peer has none \
                 of these checks",
            ));
            findings.extend(local::examine(&config).await);
        }
    }
    findings.extend(engines::examine(&args.containerd_config, &args.docker_config, config.gateway).await);
    findings
}

/// The configuration that the daemon would have, and what is wrong with it.
fn configuration(flags: &DaemonFlags) -> (Config, Vec<Finding>) {
    const CHECK: &str = "configuration";
    let file = flags.file().or_else(|| Some(PathBuf::from(CONFIG)).filter(|path| path.exists()));
    match flags.load_with(file.as_deref()) {
        Ok(config) => {
            let from = file.map_or_else(|| "no file".to_owned(), |file| file.display().to_string());
            (config, vec![Finding::ok(CHECK, format!("valid ({from})"))])
        }
        Err(error) => {
            let remedy = "correct it, and try with shoal config check";
            (Config::default(), vec![Finding::fail(CHECK, format!("{error:#}"), remedy)])
        }
    }
}

fn print(findings: &[Finding]) {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Skip => "  - ",
            Verdict::Ok => " ok ",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        println!("{verdict}  {:width$}  {}", finding.check, finding.detail);
        if let Some(remedy) = &finding.remedy {
            println!("      {:width$}  -> {remedy}", "");
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    println!(
        "{} failed, {} warnings, {} well",
        count(Verdict::Fail),
        count(Verdict::Warn),
        count(Verdict::Ok)
    );
}
