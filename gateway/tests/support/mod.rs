//! A gateway to test, and raw sockets to test it with.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use shoal_gateway::memory::MemoryMesh;
use shoal_gateway::{Gateway, GatewayConfig, GatewayMetrics, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub struct Running {
    pub address: SocketAddr,
    pub mesh: Arc<MemoryMesh>,
    pub shutdown: CancellationToken,
    pub server: JoinHandle<()>,
    metrics: Registry,
}

pub async fn start() -> Running {
    start_with(GatewayConfig::default()).await
}

pub async fn start_with(config: GatewayConfig) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mesh = Arc::new(MemoryMesh::new());
    let mut metrics = Registry::default();
    let gateway = Gateway::new(mesh.clone(), config, GatewayMetrics::new(&mut metrics));
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve(listener, Arc::new(gateway), shutdown.clone()));
    Running { address, mesh, shutdown, server, metrics }
}

impl Running {
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn client(&self) -> shoal_gateway::conformance::Registry {
        shoal_gateway::conformance::Registry::new(&self.base_url())
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Whether the exposed metrics have a line with this beginning and a value other than zero.
    pub fn counted(&self, beginning: &str) -> bool {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        text.lines().any(|line| line.starts_with(beginning) && !line.ends_with(" 0"))
    }
}

/// Writes `request` and reads until the gateway closes or `patience` is over; what came, and whether it closed.
pub async fn converse(stream: &mut TcpStream, request: &[u8], patience: Duration) -> (Vec<u8>, bool) {
    // The gateway may hang up before all is written.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(patience, stream.read_to_end(&mut answer)).await.is_ok();
    (answer, closed)
}

/// Waits for a condition.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}
