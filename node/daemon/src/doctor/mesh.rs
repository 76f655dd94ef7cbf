//! What only other members can say: whether the clocks agree, the DHT passes a record on, and this process can be dialled.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use shoal_types::{Algorithm, Digest, DigestHasher, Endpoint, PeerId, Role, Roles, WallTime, Zone};
use tokio::sync::Semaphore;

use super::{Finding, connect};
use crate::directory::Member;
use crate::links::AskError;
use crate::node::Node;
use crate::rpc::{Answer, Dialled, Failure, Request};

/// Members asked: enough to tell a fault here from one there.
const PEERS_ASKED: usize = 6;
/// Members looked at to choose them from.
const PEERS_CONSIDERED: usize = 1000;
/// How long a member may take to say what time it is.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a provider record may take until a lookup finds it: publishing waits its turn, and lookups start with jitter.
const DHT_TIMEOUT: Duration = Duration::from_secs(12);
/// Between two lookups.
const DHT_PAUSE: Duration = Duration::from_millis(300);
/// How long a member may take to examine this one.
const EXAMINE_TIMEOUT: Duration = Duration::from_secs(20);
/// Endpoints of a member that are dialled for it.
const ENDPOINTS_DIALLED: usize = 8;
/// Members examined at the same time; others are told to come later.
static EXAMINATIONS: Semaphore = Semaphore::const_new(4);
/// A clock that is off by more is noticed: certificates and tokens are judged by it.
const CLOCK_OFF_WARN: Duration = Duration::from_secs(2);
/// One that is off by more makes new credentials not yet good.
const CLOCK_OFF_FAIL: Duration = Duration::from_secs(30);

/// What a member said.
struct Heard {
    peer: PeerId,
    zone: Zone,
    /// Round trip, and by how many milliseconds its clock is ahead of ours.
    clock: Result<(Duration, i128), AskError>,
    examined: Result<Examined, AskError>,
}

struct Examined {
    dialled: Vec<Dialled>,
    found: bool,
}

pub(super) async fn examine(node: &Node) -> Vec<Finding> {
    let peers = sample(node);
    let mut findings = vec![origins(node)];
    if peers.is_empty() {
        let none = "no other member with a data plane is known";
        findings.extend(["clock", "data-plane", "reachable", "dht"].map(|check| Finding::skip(check, none)));
        return findings;
    }
    let probe = random_digest();
    node.control().provide(probe).await;
    let heard = join_all(peers.into_iter().map(|(peer, member)| ask(node, peer, member, probe))).await;
    node.control().unprovide(probe).await;
    findings.push(data_plane(&heard));
    findings.push(clock(&heard));
    findings.push(reachable(node, &heard));
    findings.push(dht(&heard));
    findings
}

fn origins(node: &Node) -> Finding {
    match node.control().origins().len() {
        0 => Finding::fail(
            "origins",
            "no origin is alive: pushes fail, and pulls find only what caches hold",
            "start an origin (shoal node --origin), or see why none is heard: its clock, its credential, the firewall",
        ),
        count => Finding::ok("origins", format!("{count} alive")),
    }
}

/// Some members of every zone, in no order that favours one. Origins are known by their heartbeats before they are
/// connected.
fn sample(node: &Node) -> Vec<(PeerId, Member)> {
    let mut known: BTreeMap<PeerId, Member> = node.directory().recent(PEERS_CONSIDERED).into_iter().collect();
    for origin in node.control().origins().iter() {
        let roles = Roles::NONE.with(Role::Node).with(Role::Origin);
        let member = Member { zone: origin.zone.clone(), roles, endpoints: origin.endpoints.clone() };
        known.entry(origin.peer).or_insert(member);
    }
    known.retain(|peer, member| *peer != node.peer_id() && !member.endpoints.is_empty());
    let mut zones: BTreeMap<Zone, Vec<(u32, PeerId, Member)>> = BTreeMap::new();
    for (peer, member) in known {
        let order = getrandom::u32().unwrap_or_default();
        zones.entry(member.zone.clone()).or_default().push((order, peer, member));
    }
    let mut columns: Vec<_> = zones.into_values().collect();
    columns.iter_mut().for_each(|members| members.sort_by_key(|(order, peer, _)| (*order, *peer)));
    let rows = columns.iter().map(Vec::len).max().unwrap_or_default();
    let all = (0..rows).flat_map(|row| columns.iter().filter_map(move |column| column.get(row)));
    all.take(PEERS_ASKED).map(|(_, peer, member)| (*peer, member.clone())).collect()
}

fn random_digest() -> Digest {
    let mut hasher = DigestHasher::new(Algorithm::Sha256);
    hasher.update(&crate::keys::random_secret());
    hasher.finish()
}

async fn ask(node: &Node, peer: PeerId, member: Member, probe: Digest) -> Heard {
    let clock = ask_time(node, peer, &member.endpoints).await;
    let request = Request::Examine { probe };
    let examined = match node.links().ask(peer, &member.endpoints, &request, EXAMINE_TIMEOUT).await {
        Ok(Answer::Examined { dialled, found }) => Ok(Examined { dialled, found }),
        Ok(_) => Err(AskError::Nonsense(peer)),
        Err(error) => Err(error),
    };
    Heard { peer, zone: member.zone, clock, examined }
}

async fn ask_time(node: &Node, peer: PeerId, endpoints: &[Endpoint]) -> Result<(Duration, i128), AskError> {
    // Connected first, so that the handshake is not in the round trip.
    for _ in 0..2 {
        let (began, before) = (Instant::now(), node.clock().wall());
        let answer = node.links().ask(peer, endpoints, &Request::Time, CLOCK_TIMEOUT).await?;
        let trip = began.elapsed();
        let Answer::Time(theirs) = answer else { return Err(AskError::Nonsense(peer)) };
        let ours = before.saturating_add(trip / 2);
        let ahead = i128::from(theirs.unix_millis()) - i128::from(ours.unix_millis());
        if trip < CLOCK_OFF_WARN / 4 {
            return Ok((trip, ahead));
        }
    }
    Err(AskError::Unanswered { peer, why: "it answers too slowly to compare clocks".to_owned() })
}

fn data_plane(heard: &[Heard]) -> Finding {
    const CHECK: &str = "data-plane";
    let silent: Vec<String> = heard
        .iter()
        .filter_map(|heard| match &heard.clock {
            Err(error) if !is_refusal(error) => Some(format!("{error} (zone {})", heard.zone)),
            _ => None,
        })
        .collect();
    let trips: Vec<String> = heard
        .iter()
        .filter_map(|heard| {
            let (trip, _) = heard.clock.as_ref().ok()?;
            Some(format!("{:.1} ms to zone {}", trip.as_secs_f64() * 1000.0, heard.zone))
        })
        .collect();
    let remedy =
        "see that they run, and that no firewall stands between this machine and their data port (4002)";
    if silent.is_empty() {
        return Finding::ok(
            CHECK,
            format!("{} of {} members answer: {}", trips.len(), heard.len(), trips.join(", ")),
        );
    }
    let detail = format!("{} of {} members do not answer: {}", silent.len(), heard.len(), silent.join("; "));
    if silent.len() == heard.len() {
        Finding::fail(CHECK, detail, remedy)
    } else {
        Finding::warn(CHECK, detail, remedy)
    }
}

/// Whether a member answered, but not this question: one of another version does.
fn is_refusal(error: &AskError) -> bool {
    matches!(error, AskError::Failed { kind: Failure::Refused | Failure::Unavailable, .. })
}

fn clock(heard: &[Heard]) -> Finding {
    const CHECK: &str = "clock";
    let mut ahead: Vec<i128> = heard.iter().filter_map(|heard| Some(-heard.clock.as_ref().ok()?.1)).collect();
    ahead.sort_unstable();
    let Some(median) = ahead.get(ahead.len() / 2) else {
        return Finding::skip(CHECK, "no member says what time it is there");
    };
    let way = if *median < 0 { "behind" } else { "ahead" };
    let off = Duration::from_millis(u64::try_from(median.unsigned_abs()).unwrap_or(u64::MAX));
    let detail = format!("{:.3} s {way}, as the median of {} members has it", off.as_secs_f64(), ahead.len());
    let remedy = "let NTP keep this machine's clock (timedatectl; chronyc tracking), unless it is theirs that are wrong";
    match off {
        off if off > CLOCK_OFF_FAIL => Finding::fail(CHECK, detail, remedy),
        off if off > CLOCK_OFF_WARN => Finding::warn(CHECK, detail, remedy),
        _ => Finding::ok(CHECK, detail),
    }
}

fn reachable(node: &Node, heard: &[Heard]) -> Finding {
    const CHECK: &str = "reachable";
    let examined: Vec<&Examined> = heard.iter().filter_map(|heard| heard.examined.as_ref().ok()).collect();
    if examined.is_empty() {
        return Finding::skip(CHECK, "no member could be asked to dial this one");
    }
    let remedy = format!(
        "open tcp/{} to the members, or say with data-announce what they should dial (NAT, VPN)",
        node.data().local_addr().port()
    );
    // One that is not connected on the control plane may not have heard of this process yet.
    let judges: Vec<&&Examined> = examined.iter().filter(|examined| !examined.dialled.is_empty()).collect();
    if judges.is_empty() {
        let detail = format!("none of {} members knows an address of this one", examined.len());
        return Finding::warn(
            CHECK,
            detail,
            "ask again in a minute, if it has just started; then: ".to_owned() + &remedy,
        );
    }
    let (mut good, mut bad) = (0_usize, BTreeMap::new());
    for examined in &judges {
        if examined.dialled.iter().any(|dialled| dialled.error.is_none()) {
            good += 1;
        }
        for dialled in &examined.dialled {
            if let Some(error) = &dialled.error {
                bad.insert(dialled.endpoint.to_string(), error.clone());
            }
        }
    }
    let bad: Vec<String> = bad.iter().map(|(endpoint, why)| format!("{endpoint}: {why}")).collect();
    let detail = format!("{good} of {} members can dial this one", judges.len());
    if good == 0 {
        Finding::fail(CHECK, format!("{detail}: {}", bad.join("; ")), remedy)
    } else if good < judges.len() || !bad.is_empty() {
        Finding::warn(CHECK, format!("{detail}; in vain: {}", bad.join("; ")), remedy)
    } else {
        Finding::ok(CHECK, detail)
    }
}

fn dht(heard: &[Heard]) -> Finding {
    const CHECK: &str = "dht";
    let examined: Vec<(&Heard, &Examined)> =
        heard.iter().filter_map(|heard| Some((heard, heard.examined.as_ref().ok()?))).collect();
    if examined.is_empty() {
        return Finding::skip(CHECK, "no member could be asked to look for a probe");
    }
    let blind: Vec<String> = examined
        .iter()
        .filter(|(_, examined)| !examined.found)
        .map(|(heard, _)| heard.peer.to_string())
        .collect();
    let remedy = "see that tcp/4001 is open between all members, in both directions, and that announce says what others \
                  can dial";
    match blind.len() {
        0 => Finding::ok(CHECK, format!("a probe provided here is found by {} members", examined.len())),
        all if all == examined.len() => {
            Finding::fail(CHECK, format!("a probe provided here is found by none of {all} members"), remedy)
        }
        _ => Finding::warn(
            CHECK,
            format!("a probe provided here is not found by {}", blind.join(", ")),
            remedy,
        ),
    }
}

/// The answer to [`Request::Time`].
pub(crate) fn tell_time(now: WallTime) -> Answer {
    Answer::Time(now)
}

/// The answer to [`Request::Examine`]: dials the asker where this process has heard that it is, nowhere else, and looks
/// for its probe.
pub(crate) async fn examine_for(node: &Node, asker: PeerId, probe: Digest) -> Answer {
    let Ok(_slot) = EXAMINATIONS.try_acquire() else {
        let message = "busy with other examinations: ask again".to_owned();
        return Answer::Failed { kind: Failure::Unavailable, message };
    };
    let endpoints = node.directory().get(&asker).map(|member| member.endpoints).unwrap_or_default();
    let dials = endpoints.into_iter().take(ENDPOINTS_DIALLED).map(|endpoint| async {
        let host = match (endpoint.ip(), endpoint.dns()) {
            (Some(ip), _) => ip.to_string(),
            (None, name) => name.unwrap_or_default().to_owned(),
        };
        let error = connect(&host, endpoint.port()).await.err();
        Dialled { endpoint, error }
    });
    let (dialled, found) = tokio::join!(join_all(dials), finds(node, asker, probe));
    Answer::Examined { dialled, found }
}

async fn finds(node: &Node, asker: PeerId, probe: Digest) -> bool {
    let looking = async {
        loop {
            let mut lookup = node.control().find_providers(probe);
            while let Some(provider) = lookup.next().await {
                if provider.peer == asker {
                    return;
                }
            }
            tokio::time::sleep(DHT_PAUSE).await;
        }
    };
    tokio::time::timeout(DHT_TIMEOUT, looking).await.is_ok()
}
