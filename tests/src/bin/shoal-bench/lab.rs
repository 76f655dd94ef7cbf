//! Several hosts on one machine: a network namespace each, a bridge and router a zone, `tbf` for the wires, and links
//! between zones with a rate and a delay.
//!
//! Host `h` of zone `z` is `10.77.z.h`. Its wire is shaped at both ends, so that each direction has its rate. Zones
//! are routed to each other over TUN devices whose packets [`crate::relay`] holds back for the link's delay.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::LinkNameSpaceType;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::relay::Relay;
use crate::scenario::Scenario;

/// Largest GSO packet, in bytes. 64 KiB ones hold small messages up for 5 to 20 ms at these rates; none at all costs
/// several times the processor.
const GSO_BYTES: u32 = 16 * 1024;
/// A token bucket's burst in bytes; must exceed the largest GSO packet.
const BURST_BYTES: u32 = 20 * 1024;
/// How long a packet may wait in a wire's queue: a switch with a small buffer.
const QUEUE: &str = "50ms";
/// Neighbour entries of all namespaces together: the kernel's default overflows at 33 hosts.
const NEIGHBOURS_MAX: u32 = 65_536;
/// Most hosts in one zone: the addresses of a /24, less the router.
const ZONE_HOSTS_MAX: usize = 250;

/// A machine of the lab.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) namespace: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) zone: usize,
}

/// Namespaces, wires and links; gone when dropped.
pub(crate) struct Lab {
    prefix: String,
    namespaces: Vec<String>,
    /// Who has the blob at the start.
    pub(crate) source: Host,
    /// Who is asked for peers: bootstrap peer or tracker. On a wire of its own.
    pub(crate) door: Host,
    /// Who pulls.
    pub(crate) hosts: Vec<Host>,
    relays: Vec<Relay>,
    shaped: bool,
}

impl Lab {
    /// Makes the namespaces of a scenario.
    pub(crate) fn build(scenario: &Scenario, congestion: Option<&str>) -> Result<Self> {
        for level in [1, 2, 3] {
            let path = format!("/proc/sys/net/ipv4/neigh/default/gc_thresh{level}");
            std::fs::write(&path, NEIGHBOURS_MAX.to_string())
                .with_context(|| format!("{path} cannot be written: is this root, with its own network?"))?;
        }
        let prefix = format!("sb{}", std::process::id());
        let mut lab = Self {
            namespaces: Vec::new(),
            source: Host { namespace: format!("{prefix}-source"), address: address(0, 1)?, zone: 0 },
            door: Host { namespace: format!("{prefix}-door"), address: address(0, 2)?, zone: 0 },
            hosts: Vec::new(),
            relays: Vec::new(),
            shaped: scenario.wire.is_some(),
            prefix,
        };
        for zone in 0..scenario.zones {
            lab.make_zone(zone)?;
        }
        let mut next = vec![3; scenario.zones];
        for number in 0..scenario.hosts {
            let zone = scenario.zone_of(number);
            let namespace = format!("{}-h{number}", lab.prefix);
            lab.hosts.push(Host { namespace, address: address(zone, next[zone])?, zone });
            next[zone] += 1;
        }
        let everybody: Vec<Host> =
            [lab.source.clone(), lab.door.clone()].into_iter().chain(lab.hosts.clone()).collect();
        for host in &everybody {
            lab.make_host(host, scenario.wire, congestion)?;
        }
        for one in 0..scenario.zones {
            for other in one + 1..scenario.zones {
                lab.make_link(one, other, scenario)?;
            }
        }
        Ok(lab)
    }

    fn router(&self, zone: usize) -> String {
        format!("{}-z{zone}", self.prefix)
    }

    fn add_namespace(&mut self, name: &str) -> Result<()> {
        run(&["ip", "netns", "add", name])?;
        self.namespaces.push(name.to_owned());
        run_in(name, &["ip", "link", "set", "lo", "up"])
    }

    fn make_zone(&mut self, zone: usize) -> Result<()> {
        let router = self.router(zone);
        self.add_namespace(&router)?;
        run_in(&router, &["ip", "link", "add", "br0", "type", "bridge"])?;
        run_in(&router, &["ip", "address", "add", &format!("10.77.{zone}.254/24"), "dev", "br0"])?;
        run_in(&router, &["ip", "link", "set", "br0", "up"])?;
        run_in(&router, &["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    }

    fn make_host(&mut self, host: &Host, wire: Option<u64>, congestion: Option<&str>) -> Result<()> {
        let (router, name) = (self.router(host.zone), host.namespace.clone());
        self.add_namespace(&name)?;
        let port = port_of(host);
        run_in(
            &router,
            &["ip", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name],
        )?;
        run_in(&router, &["ip", "link", "set", &port, "master", "br0"])?;
        for (namespace, device) in [(&router, port.as_str()), (&name, "eth0")] {
            if let Some(rate) = wire {
                let gso = GSO_BYTES.to_string();
                run_in(namespace, &["ip", "link", "set", device, "gso_max_size", &gso])?;
                shape(namespace, device, rate)?;
            }
            run_in(namespace, &["ip", "link", "set", device, "up"])?;
        }
        run_in(&name, &["ip", "address", "add", &format!("{}/24", host.address), "dev", "eth0"])?;
        let gateway = format!("10.77.{}.254", host.zone);
        run_in(&name, &["ip", "route", "add", "default", "via", &gateway])?;
        if let Some(congestion) = congestion {
            run_in(&name, &["sysctl", "-qw", &format!("net.ipv4.tcp_congestion_control={congestion}")])?;
        }
        Ok(())
    }

    fn make_link(&mut self, one: usize, other: usize, scenario: &Scenario) -> Result<()> {
        let ends = [(one, other), (other, one)].map(|(from, to)| {
            let router = self.router(from);
            let device = format!("to{to}");
            let made = tun_in(&router, &device)?;
            if let Some(rate) = scenario.link.rate {
                shape(&router, &device, rate)?;
            }
            run_in(&router, &["ip", "link", "set", &device, "up"])?;
            run_in(&router, &["ip", "route", "add", &format!("10.77.{to}.0/24"), "dev", &device])?;
            Ok(made)
        });
        let [here, there]: [Result<Arc<SyncDevice>>; 2] = ends;
        self.relays.push(Relay::start(here?, there?, scenario.link.delay));
        Ok(())
    }

    /// Bytes that a host has sent over its wire, headers of every packet included.
    pub(crate) fn wire_bytes(&self, host: &Host) -> Result<u64> {
        if !self.shaped {
            let text = output_in(&host.namespace, &["cat", "/sys/class/net/eth0/statistics/tx_bytes"])?;
            return Ok(text.trim().parse()?);
        }
        // The queue counts a GSO packet as the packets it stands for; the device's own counter does not.
        let text = output_in(&host.namespace, &["tc", "-s", "-j", "qdisc", "show", "dev", "eth0"])?;
        let queues: serde_json::Value = serde_json::from_str(&text)?;
        queues[0]["bytes"].as_u64().with_context(|| format!("no bytes in {text}"))
    }

    /// What crossed the links between zones, both ways.
    pub(crate) fn link_bytes(&self) -> u64 {
        self.relays.iter().map(|relay| relay.counters().bytes()).sum()
    }

    /// Packets the links' relays could not hold.
    pub(crate) fn link_drops(&self) -> u64 {
        self.relays.iter().map(|relay| relay.counters().dropped()).sum()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.relays.clear();
        for namespace in self.namespaces.iter().rev() {
            if let Err(error) = run(&["ip", "netns", "delete", namespace]) {
                eprintln!("{namespace} stays: {error:#}");
            }
        }
    }
}

fn address(zone: usize, host: usize) -> Result<Ipv4Addr> {
    ensure!(host <= ZONE_HOSTS_MAX, "more than {ZONE_HOSTS_MAX} hosts in a zone");
    Ok(Ipv4Addr::new(10, 77, u8::try_from(zone)?, u8::try_from(host)?))
}

fn port_of(host: &Host) -> String {
    format!("p{}", host.address.octets()[3])
}

fn shape(namespace: &str, device: &str, bits_per_sec: u64) -> Result<()> {
    let (rate, burst) = (format!("{bits_per_sec}bit"), BURST_BYTES.to_string());
    run_in(
        namespace,
        &[
            "tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", &rate, "burst", &burst, "latency",
            QUEUE,
        ],
    )
}

/// A TUN device that lives in `namespace`; its descriptor is ours.
fn tun_in(namespace: &str, device: &str) -> Result<Arc<SyncDevice>> {
    let device = device.to_owned();
    inside(namespace, move || {
        let made = DeviceBuilder::new().name(&device).layer(Layer::L3).build_sync();
        Ok(Arc::new(made.with_context(|| format!("the TUN device {device} cannot be made"))?))
    })
}

/// Runs `work` on a thread of its own inside a namespace: sockets it opens belong there.
pub(crate) fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(namespace)?;
            work()
        });
        thread.join().unwrap_or_else(|_| bail!("a thread in {namespace} panicked"))
    })
}

/// Moves the calling thread into a namespace, for good.
pub(crate) fn enter(namespace: &str) -> Result<()> {
    let path = Path::new("/run/netns").join(namespace);
    let file = File::open(&path).with_context(|| format!("no {}", path.display()))?;
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("{namespace} cannot be entered"))
}

/// A command inside a namespace. `ip` becomes it, so that its process id is the command's.
pub(crate) fn command_in(namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program).stdin(Stdio::null());
    command
}

fn run(words: &[&str]) -> Result<()> {
    output(words).map(|_| ())
}

fn run_in(namespace: &str, words: &[&str]) -> Result<()> {
    output_in(namespace, words).map(|_| ())
}

pub(crate) fn output_in(namespace: &str, words: &[&str]) -> Result<String> {
    let mut all = vec!["ip", "netns", "exec", namespace];
    all.extend(words);
    output(&all)
}

fn output(words: &[&str]) -> Result<String> {
    let shown = words.join(" ");
    let Some((program, rest)) = words.split_first() else { bail!("no command") };
    let output = Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{shown}: cannot be run (scripts/setup.sh installs what is needed)"))?;
    ensure!(
        output.status.success(),
        "{shown}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
