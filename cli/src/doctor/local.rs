//! What can be found out without a running daemon: why it may not start.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::time::Duration;

use shoal_daemon::clock::wall_now;
use shoal_daemon::config::Config;
use shoal_daemon::doctor::{Finding, disk, host_and_port};
use shoal_daemon::keys;
use shoal_types::Role;
use tokio::net::TcpStream;

/// How long a door may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![credential(config)];
    findings.extend(ports(config));
    for door in &config.bootstrap {
        findings.extend(bootstrap(door).await);
    }
    if config.data_dir.exists() {
        findings.extend(disk(&config.data_dir, None, 0));
    } else {
        let detail = format!("{} is not there: the daemon makes it", config.data_dir.display());
        findings.push(Finding::skip("disk-space", detail));
    }
    findings
}

fn credential(config: &Config) -> Finding {
    const CHECK: &str = "credential";
    let dir = config.identity.display();
    let remedy = format!(
        "put into {dir} what shoal credential issue makes and into {} the mesh's public key, or let the daemon join with \
         a token (join)",
        config.mesh_pub.display()
    );
    match keys::read_identity(&config.identity, &config.mesh_pub, wall_now()) {
        Ok(identity) => {
            let credential = identity.credential.value();
            if config.origin && !credential.roles.contains(Role::Origin) {
                let detail = format!("origin is set, and the credential's roles are {}", credential.roles);
                return Finding::fail(CHECK, detail, "issue one with the role origin");
            }
            Finding::ok(CHECK, format!("{} in zone {}", credential.roles, credential.zone))
        }
        Err(error) if config.join.is_some() => {
            Finding::skip(CHECK, format!("{error}; a join token is set, which makes one at the next start"))
        }
        Err(error) => Finding::fail(CHECK, error.to_string(), remedy),
    }
}

/// Whether the ports that the daemon will listen on are free.
fn ports(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "ports";
    let mut wanted =
        vec![("data-listen", config.data_listen), ("gateway", config.gateway), ("ops", config.ops)];
    for listen in &config.listen {
        let address = host_and_port(listen).and_then(|address| address.to_socket_addrs().ok()?.next());
        wanted.extend(address.map(|address| ("listen", address)));
    }
    let mut taken = Vec::new();
    for (key, address) in &wanted {
        if let Err(error) = free(*address) {
            let remedy = format!(
                "see who has it (ss -ltnp 'sport = :{}'), and end that or set {key} to another address",
                address.port()
            );
            taken.push(Finding::fail(CHECK, format!("{key}: cannot listen on {address}: {error}"), remedy));
        }
    }
    if taken.is_empty() {
        let all: Vec<_> = wanted.iter().map(|(_, address)| address.to_string()).collect();
        taken.push(Finding::ok(CHECK, format!("{} can be listened on", all.join(", "))));
    }
    taken
}

fn free(address: SocketAddr) -> std::io::Result<()> {
    TcpListener::bind(address).map(drop)
}

async fn bootstrap(door: &str) -> Option<Finding> {
    const CHECK: &str = "bootstrap";
    let (host, port) = host_and_port(door)?;
    let why = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host.as_str(), port))).await {
        Ok(Ok(_)) => return Some(Finding::ok(CHECK, format!("{door} takes connections"))),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer in {} s", CONNECT_TIMEOUT.as_secs()),
    };
    let remedy =
        format!("see that it runs, that its address is right, and that no firewall keeps tcp/{port} from it");
    Some(Finding::warn(CHECK, format!("{door} cannot be reached: {why}"), remedy))
}
