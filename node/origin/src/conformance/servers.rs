//! Real servers for tests, on loopback, with their data in temporary directories. `scripts/setup.sh` installs them.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// How long a server may take to answer on a noisy machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two looks at whether it answers.
const POLL: Duration = Duration::from_millis(50);

/// The one bucket or container of a server that has such.
pub const BUCKET: &str = "shoal-test";
/// Garage's key: its own form.
pub const S3_KEY: &str = "GK0123456789abcdef01234567";
/// Garage's secret.
pub const S3_SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Azurite's account (its documentation has name and key).
pub const AZURE_ACCOUNT: &str = "devstoreaccount1";
/// The key of that account.
pub const AZURE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
/// User of a registry with basic authentication.
pub const REGISTRY_USER: &str = "puller";
/// That user's password, and its bcrypt hash as `htpasswd` writes it.
pub const REGISTRY_PASSWORD: &str = "pass word:1";
const REGISTRY_HASH: &str = "$2b$05$abcdefghijklmnopqrstuusWsnA3PCG6MJhsuMdaZgkE21cQMslZi";

/// "Create Container" of Azure's blob service, signed with the shared key: the one request that no backend makes. Azurite
/// is a node program, so node is there.
const MAKE_CONTAINER: &str = r#"
const [url, account, key] = process.argv.slice(1);
const date = new Date().toUTCString(), version = "2021-12-02";
const text = "PUT" + "\n".repeat(12) + `x-ms-date:${date}\nx-ms-version:${version}\n`
    + `/${account}${new URL(url).pathname}\nrestype:container`;
const signature = require("crypto").createHmac("sha256", Buffer.from(key, "base64")).update(text).digest("base64");
const headers = {"x-ms-date": date, "x-ms-version": version, authorization: `SharedKey ${account}:${signature}`};
fetch(url, {method: "PUT", headers}).then(async answer => {
    if (!answer.ok) { console.error(answer.status, await answer.text()); process.exit(1); }
});
"#;

/// A running server, killed when it is dropped.
#[derive(Debug)]
pub struct Server {
    dir: TempDir,
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// Garage as an S3 server with one bucket, [`BUCKET`].
    ///
    /// # Panics
    /// When it is not installed or does not start; as all of these.
    pub async fn garage() -> Self {
        let dir = scratch();
        let (s3, rpc) = (free_port(), free_port());
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "metadata_dir = {:?}\ndata_dir = {:?}\ndb_engine = \"lmdb\"\nreplication_factor = 1\n\
             rpc_bind_addr = \"127.0.0.1:{rpc}\"\nrpc_public_addr = \"127.0.0.1:{rpc}\"\nrpc_secret = {S3_SECRET:?}\n\
             [s3_api]\napi_bind_addr = \"127.0.0.1:{s3}\"\ns3_region = \"garage\"\nroot_domain = \".s3.localhost\"\n",
            path("meta"),
            path("data")
        );
        std::fs::write(dir.path().join("garage.toml"), config).unwrap();
        let args = ["-c", &path("garage.toml"), "server", "--single-node", "--default-bucket"];
        let env = [
            ("GARAGE_DEFAULT_ACCESS_KEY", S3_KEY),
            ("GARAGE_DEFAULT_SECRET_KEY", S3_SECRET),
            ("GARAGE_DEFAULT_BUCKET", BUCKET),
            ("RUST_LOG", "warn"),
        ];
        Self::start(dir, &tool("garage"), &args, &env, s3).await
    }

    /// Azurite as Azure's blob service, without a container.
    ///
    /// # Panics
    /// As [`Self::garage`].
    pub async fn azurite() -> Self {
        let dir = scratch();
        let port = free_port();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (number, location) = (port.to_string(), path("data"));
        let args = [
            "--blobHost",
            "127.0.0.1",
            "--blobPort",
            &number,
            "--location",
            &location,
            "--silent",
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ];
        Self::start(dir, &tool("azurite-blob"), &args, &[], port).await
    }

    /// fake-gcs-server as Google's storage service, with one bucket, [`BUCKET`].
    ///
    /// # Panics
    /// As [`Self::garage`].
    pub async fn gcs() -> Self {
        let dir = scratch();
        let port = free_port();
        let root = dir.path().join("data");
        std::fs::create_dir_all(root.join(BUCKET)).unwrap();
        let number = port.to_string();
        let root = root.display().to_string();
        let public = format!("127.0.0.1:{port}");
        let args = [
            "-scheme",
            "http",
            "-host",
            "127.0.0.1",
            "-port",
            &number,
            "-backend",
            "memory",
            "-data",
            &root,
            "-public-host",
            &public,
            "-log-level",
            "error",
        ];
        Self::start(dir, &tool("fake-gcs-server"), &args, &[], port).await
    }

    /// Hadoop's HDFS with WebHDFS.
    ///
    /// # Panics
    /// As [`Self::garage`].
    pub async fn hdfs() -> Self {
        let dir = scratch();
        let port = free_port();
        let data = dir.path().join("data").display().to_string();
        let server = Self::start(dir, &tool("minihdfs"), &[&port.to_string(), &data], &[], port).await;
        // Its port answers before there is anybody to write to.
        let started = Instant::now();
        let log = server.dir().join("log");
        while !std::fs::read_to_string(&log).unwrap_or_default().lines().any(|line| line == "ready") {
            assert!(started.elapsed() < START_TIMEOUT, "HDFS does not come up: see {}", log.display());
            tokio::time::sleep(POLL).await;
        }
        server
    }

    /// Moto as Amazon's IAM and ECR. It believes everybody for the first `open` requests, and from then on checks
    /// signatures and policies.
    ///
    /// # Panics
    /// As [`Self::garage`].
    pub async fn moto(open: u32) -> Self {
        let port = free_port();
        let args = ["-H", "127.0.0.1", "-p", &port.to_string()];
        let env = [("INITIAL_NO_AUTH_ACTION_COUNT", &*open.to_string())];
        Self::start(scratch(), &tool("moto-server"), &args, &env, port).await
    }

    /// Debian's docker-registry, with basic authentication or without.
    ///
    /// # Panics
    /// As [`Self::garage`].
    pub async fn registry(password: bool) -> Self {
        let dir = scratch();
        let port = free_port();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 127.0.0.1:{port}\n  secret: test\n",
            path("data")
        );
        if password {
            std::fs::write(path("htpasswd"), format!("{REGISTRY_USER}:{REGISTRY_HASH}\n")).unwrap();
            config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path("htpasswd"));
        }
        std::fs::write(path("config.yml"), config).unwrap();
        let args = ["serve", &path("config.yml")];
        Self::start(dir, Path::new("/usr/bin/docker-registry"), &args, &[], port).await
    }

    /// busybox as a web server for the files in [`Self::dir`]'s `www`; it knows ranges.
    ///
    /// # Panics
    /// As [`Self::garage`].
    pub async fn files() -> Self {
        let dir = scratch();
        let port = free_port();
        let www = dir.path().join("www");
        std::fs::create_dir(&www).unwrap();
        let args = ["httpd", "-f", "-p", &format!("127.0.0.1:{port}"), "-h", &www.display().to_string()];
        Self::start(dir, Path::new("/bin/busybox"), &args, &[], port).await
    }

    /// Python as a web server for the files in [`Self::dir`]'s `www`; it knows no ranges.
    ///
    /// # Panics
    /// As [`Self::garage`].
    pub async fn files_without_ranges() -> Self {
        let dir = scratch();
        let port = free_port();
        let www = dir.path().join("www");
        std::fs::create_dir(&www).unwrap();
        let args = [
            "-m",
            "http.server",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--directory",
            &www.display().to_string(),
        ];
        Self::start(dir, Path::new("python3"), &args, &[], port).await
    }

    async fn start(dir: TempDir, program: &Path, args: &[&str], env: &[(&str, &str)], port: u16) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut server = Self { dir, program: program.to_owned(), args, env, port, child: None };
        server.resume().await;
        server
    }

    /// Starts it again after [`Self::stop`], with the data it had.
    ///
    /// # Panics
    /// As [`Self::garage`].
    pub async fn resume(&mut self) {
        let log =
            std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let child = Command::new(&self.program)
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        let mut child = child.unwrap_or_else(|error| {
            panic!("cannot start {}: {error}; run scripts/setup.sh", self.program.display())
        });
        let started = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_err() {
            let ended = child.try_wait().unwrap();
            if ended.is_some() || started.elapsed() > START_TIMEOUT {
                let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                panic!("{} does not answer ({ended:?}):\n{log}", self.program.display());
            }
            tokio::time::sleep(POLL).await;
        }
        self.child = Some(child);
    }

    /// Kills it.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub async fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.unwrap();
        }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address, of servers that are asked by plain HTTP.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// Garage's bucket as a backend, under `prefix`.
    pub fn s3_url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}?endpoint=http://127.0.0.1:{}&region=garage&path-style", self.port)
    }

    /// What a process needs in its environment for [`Self::s3_url`].
    pub fn s3_env(&self) -> [(&'static str, &'static str); 2] {
        [("AWS_ACCESS_KEY_ID", S3_KEY), ("AWS_SECRET_ACCESS_KEY", S3_SECRET)]
    }

    /// The bucket of fake-gcs-server as a backend, under `prefix`.
    pub fn gcs_url(&self, prefix: &str) -> String {
        format!("gcs://{BUCKET}/{prefix}?endpoint=http://127.0.0.1:{}&anonymous", self.port)
    }

    /// Azurite's container as a backend, under `prefix`. [`Self::make_container`] makes it.
    pub fn azblob_url(&self, prefix: &str) -> String {
        format!("azblob://{BUCKET}/{prefix}?endpoint=http://127.0.0.1:{}/{AZURE_ACCOUNT}", self.port)
    }

    /// What a process needs in its environment for [`Self::azblob_url`].
    pub fn azblob_env(&self) -> [(&'static str, &'static str); 2] {
        [("AZURE_STORAGE_ACCOUNT_NAME", AZURE_ACCOUNT), ("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY)]
    }

    /// The files of HDFS as a backend, under `prefix`, as the user that the server runs as.
    pub fn webhdfs_url(&self, prefix: &str) -> String {
        let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
        format!("webhdfs://127.0.0.1:{}/{prefix}?user={user}", self.port)
    }

    /// Makes Azurite's container, which its own protocol does and no backend.
    ///
    /// # Panics
    /// When it is not made.
    pub async fn make_container(&self) {
        let url = format!("http://127.0.0.1:{}/{AZURE_ACCOUNT}/{BUCKET}?restype=container", self.port);
        let made = Command::new("node").args(["-e", MAKE_CONTAINER, &url, AZURE_ACCOUNT, AZURE_KEY]).output();
        let made =
            made.await.unwrap_or_else(|error| panic!("cannot run node: {error}; run scripts/setup.sh"));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("shoal-server-").tempdir().unwrap()
}

/// A program that `scripts/setup.sh` installed.
fn tool(name: &str) -> PathBuf {
    let tools = std::env::var_os("SHOAL_TOOLS").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/shoal-tools")
    });
    let path = tools.join("bin").join(name);
    assert!(path.exists(), "{} is missing: run scripts/setup.sh", path.display());
    path
}

/// A port nobody listens on. Servers that come back on their port need one below the range of outgoing connections.
fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 2000) as u16;
    loop {
        let port = 30_100 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 2500;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
