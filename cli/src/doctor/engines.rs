//! How containerd and dockerd of this machine are set up.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use shoal_daemon::doctor::Finding;
use tokio::net::TcpStream;

use crate::install::{containerd, docker};

/// How long a mirror on this machine may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn examine(containerd: &Path, docker: &Path, gateway: SocketAddr) -> Vec<Finding> {
    let mut findings = examine_containerd(containerd, gateway).await;
    findings.extend(examine_docker(docker).await);
    findings
}

async fn examine_containerd(file: &Path, gateway: SocketAddr) -> Vec<Finding> {
    const CHECK: &str = "containerd";
    let Ok(text) = std::fs::read_to_string(file) else {
        return vec![Finding::skip(CHECK, format!("there is no {}", file.display()))];
    };
    let install = "shoal install containerd";
    let found = match containerd::config_path(Some(&text), None) {
        Ok(found) => found,
        Err(error) => {
            let remedy = "correct it, then shoal install containerd";
            return vec![Finding::fail(CHECK, format!("{}: {error:#}", file.display()), remedy)];
        }
    };
    let mut findings = Vec::new();
    let mut mirrors = Vec::new();
    for hosts in hosts_files(&found.certs_dir) {
        let text = std::fs::read_to_string(&hosts).unwrap_or_default();
        match containerd::hosts(&text) {
            Err(error) => {
                let remedy = "correct it: containerd fails every pull from that registry";
                findings.push(Finding::fail(CHECK, format!("{}: {error:#}", hosts.display()), remedy));
            }
            Ok(urls) => {
                let ours = urls.iter().filter(|url| is_ours(url, gateway));
                mirrors.extend(ours.map(|url| (hosts.clone(), url.clone())));
            }
        }
    }
    if mirrors.is_empty() && findings.is_empty() {
        let detail = format!("no hosts.toml below {} names {gateway}", found.certs_dir.display());
        return vec![Finding::warn(CHECK, detail, install)];
    }
    if found.change.is_some() {
        let detail =
            format!("{} has no config_path: the kubelet does not see hosts.toml files", file.display());
        findings.push(Finding::fail(CHECK, detail, format!("{install}, then restart containerd")));
    }
    for (hosts, url) in mirrors {
        findings.push(mirror(CHECK, &hosts, &url).await);
    }
    findings
}

/// The hosts.toml files of a directory, by registry.
fn hosts_files(certs_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(certs_dir).into_iter().flatten().flatten();
    let mut files: Vec<_> =
        entries.map(|entry| entry.path().join("hosts.toml")).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

/// Whether a URL is the gateway's, or another listener of this machine's, as gateways' are.
fn is_ours(url: &str, gateway: SocketAddr) -> bool {
    let Some(address) = address(url) else { return false };
    address == gateway.to_string() || address.parse::<SocketAddr>().is_ok_and(|one| one.ip().is_loopback())
}

fn address(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let port = if scheme == "https" { 443 } else { 80 };
    Some(if has_port { authority.to_owned() } else { format!("{authority}:{port}") })
}

async fn examine_docker(file: &Path) -> Vec<Finding> {
    const CHECK: &str = "docker";
    let Ok(text) = std::fs::read_to_string(file) else {
        let detail = format!("there is no {}: it pulls 127.0.0.1:5000/… without", file.display());
        return vec![Finding::skip(CHECK, detail)];
    };
    let value: Value = match serde_json::from_str(&text) {
        Ok(value) => value,
        Err(error) => {
            let detail = format!("{}: {error}", file.display());
            return vec![Finding::fail(CHECK, detail, "correct it: dockerd does not start with it")];
        }
    };
    let mirrors = value.get(docker::KEY).and_then(Value::as_array).into_iter().flatten();
    let mut findings = Vec::new();
    for url in mirrors.filter_map(Value::as_str) {
        let local = address(url).and_then(|address| address.parse::<SocketAddr>().ok());
        if local.is_some_and(|address| address.ip().is_loopback()) {
            findings.push(mirror(CHECK, file, url).await);
        }
    }
    if findings.is_empty() {
        findings.push(Finding::skip(CHECK, format!("{} has no mirror on this machine", file.display())));
    }
    findings
}

/// Whether somebody listens where an engine is sent.
async fn mirror(check: &str, file: &Path, url: &str) -> Finding {
    let file = file.display();
    let remedy = "start the gateway there, or take the mirror out (shoal install … --revert)";
    let Some(address) = address(url) else {
        return Finding::fail(check, format!("{file}: {url} is no URL"), remedy);
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&address)).await {
        Ok(Ok(_)) => Finding::ok(check, format!("{file} sends pulls to {url}, which answers")),
        Ok(Err(error)) => Finding::fail(
            check,
            format!("{file} sends pulls to {url}, which does not answer: {error}"),
            remedy,
        ),
        Err(_) => Finding::fail(check, format!("{file} sends pulls to {url}, which does not answer"), remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_urls() {
        assert_eq!(address("http://127.0.0.1:5000").as_deref(), Some("127.0.0.1:5000"));
        assert_eq!(address("https://gw.example/v2/").as_deref(), Some("gw.example:443"));
        assert_eq!(address("gw.example"), None);
        let gateway = "10.0.0.7:443".parse().unwrap();
        assert!(is_ours("https://10.0.0.7", gateway) && is_ours("http://127.0.0.1:5001/", gateway));
        assert!(!is_ours("https://registry-1.docker.io", gateway));
    }
}
