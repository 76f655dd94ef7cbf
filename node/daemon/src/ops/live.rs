//! What goes on, as server-sent events: a picture of the node twice a second, and of its mesh every two seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use serde::Serialize;
use shoal_engine::SwarmStatus;
use shoal_types::{Bitfield, Digest, PeerId, PieceLayout, Role};

use super::{Status, refusal, status_of};
use crate::directory::Member;
use crate::node::Node;
use crate::pulls::{Pull, Verdict};
use crate::rpc::{Answer, Request, Traffic};

/// Between two pictures.
const INTERVAL: Duration = Duration::from_millis(500);
/// Between two rounds of asking members for their traffic.
const MESH_INTERVAL: Duration = Duration::from_secs(2);
/// How long a member may take to answer.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(1);
/// Most members asked in a round, so that watching a large fleet costs it little; which ones is shown.
const MEMBERS_ASKED: usize = 64;
/// Most members, swarms and pulls in a picture.
const ROWS_MAX: usize = 200;
/// Cells of a piece map: more pieces share one.
const CELLS_MAX: u32 = 256;
/// Most watchers at once.
const WATCHERS_MAX: usize = 16;

static WATCHERS: AtomicUsize = AtomicUsize::new(0);

/// One watcher, until it is dropped.
struct Watcher;

impl Watcher {
    fn new() -> Option<Self> {
        let before = WATCHERS.fetch_add(1, Ordering::Relaxed);
        // Made first, so that it is counted down again when there is no room.
        let own = Self;
        (before < WATCHERS_MAX).then_some(own)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        WATCHERS.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Serialize)]
struct Picture {
    status: Status,
    members: Vec<MemberRow>,
    members_total: usize,
    swarms: Vec<Swarm>,
    swarms_total: usize,
    pulls: Vec<PullRow>,
    /// Payload between zones, by receiver; of the members that answered.
    traffic: Vec<Flow>,
    answered: usize,
}

#[derive(Clone, Serialize)]
struct MemberRow {
    peer: PeerId,
    zone: String,
    roles: String,
    connected: bool,
    own: bool,
    /// What it answered when it was last asked.
    received_bytes: Option<u64>,
    served_bytes: Option<u64>,
    swarms: Option<u64>,
}

/// Bytes from a zone to a zone since the receivers started, and how fast lately.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Flow {
    from: String,
    to: String,
    bytes: u64,
    bytes_per_sec: f64,
}

#[derive(Serialize)]
struct Swarm {
    digest: Digest,
    size: Option<u64>,
    pieces_total: u32,
    pieces_have: u32,
    complete: bool,
    searching: bool,
    readers: usize,
    /// A digit for each cell: how much of it is here, 0 to 9.
    map: String,
    peers: Vec<(PeerId, u32, usize)>,
}

#[derive(Serialize)]
struct PullRow {
    digest: Digest,
    verdict: Verdict,
    #[serde(flatten)]
    pull: Pull,
}

/// Streams pictures until the watcher leaves or the node stops.
pub(super) async fn follow(State(node): State<Node>) -> Response {
    let Some(watcher) = Watcher::new() else {
        let why = format!("{WATCHERS_MAX} pages are watching already: close one");
        return refusal(StatusCode::SERVICE_UNAVAILABLE, why);
    };
    let stopping = node.clone();
    let state = (node, Mesh::default(), watcher, true);
    let pictures = futures::stream::unfold(state, |(node, mut mesh, watcher, first)| async move {
        if !first {
            tokio::time::sleep(INTERVAL).await;
        }
        mesh.refresh(&node).await;
        let picture = picture(&node, &mesh).await?;
        let event = Event::default().event("picture").json_data(&picture).ok()?;
        Some((Ok::<_, Infallible>(event), (node, mesh, watcher, false)))
    });
    let until = Box::pin(async move { stopping.stopping().await });
    Sse::new(pictures.take_until(until)).into_response()
}

async fn picture(node: &Node, mesh: &Mesh) -> Option<Picture> {
    let status = status_of(node).await?;
    let (swarms_total, swarms) = node
        .driver()
        .look(|engine| {
            let mut swarms: Vec<SwarmStatus> = engine.swarms().collect();
            // Those that move first.
            swarms.sort_by_key(|swarm| (swarm.complete, swarm.readers == 0, swarm.digest));
            let total = swarms.len();
            swarms.truncate(ROWS_MAX);
            (total, swarms)
        })
        .await?;
    let pulls = node.pulls().recent().into_iter().take(ROWS_MAX);
    let members = mesh.members(node);
    Some(Picture {
        status,
        members_total: node.directory().len() + 1,
        members,
        swarms: swarms.into_iter().map(swarm).collect(),
        swarms_total,
        pulls: pulls.map(|(digest, pull)| PullRow { digest, verdict: pull.verdict(), pull }).collect(),
        traffic: mesh.flows.clone(),
        answered: mesh.traffic.len(),
    })
}

fn swarm(swarm: SwarmStatus) -> Swarm {
    Swarm {
        digest: swarm.digest,
        size: swarm.size,
        pieces_total: swarm.pieces,
        pieces_have: swarm.have.count(),
        complete: swarm.complete,
        searching: swarm.searching,
        readers: swarm.readers,
        map: swarm
            .size
            .and_then(|size| PieceLayout::for_size(size).ok())
            .map_or_else(String::new, |layout| map(&swarm.have, &layout)),
        peers: swarm.peers.iter().map(|peer| (peer.peer, peer.pieces, peer.requested)).collect(),
    }
}

/// A digit for each of at most [`CELLS_MAX`] cells of equally many pieces: how much of it is here.
fn map(have: &Bitfield, layout: &PieceLayout) -> String {
    let pieces = layout.piece_count();
    let each = pieces.div_ceil(CELLS_MAX).max(1);
    let mut counts = vec![0u32; pieces.div_ceil(each) as usize];
    for piece in have.iter(layout) {
        if let Some(count) = counts.get_mut((piece.get() / each) as usize) {
            *count += 1;
        }
    }
    let digit = |(cell, count): (usize, u32)| {
        let size =
            each.min(pieces.saturating_sub(each.saturating_mul(u32::try_from(cell).unwrap_or(u32::MAX))));
        // Nine is full and nothing less is.
        char::from_digit(if count >= size { 9 } else { count * 9 / size.max(1) }, 10).unwrap_or('0')
    };
    counts.into_iter().enumerate().map(digit).collect()
}

/// What members said of their traffic.
#[derive(Default)]
struct Mesh {
    asked: Option<Instant>,
    traffic: BTreeMap<PeerId, (String, Traffic)>,
    flows: Vec<Flow>,
}

impl Mesh {
    async fn refresh(&mut self, node: &Node) {
        let waited = self.asked.map(|asked| asked.elapsed());
        if waited.is_some_and(|waited| waited < MESH_INTERVAL) {
            return;
        }
        self.asked = Some(Instant::now());
        let connected: BTreeSet<PeerId> = node.links().connected().into_iter().collect();
        let mut members = node.directory().recent(crate::directory::MEMBERS_MAX);
        // A doorman has no data plane; those connected cost no handshake.
        members.retain(|(_, member)| !member.endpoints.is_empty());
        members.sort_by_key(|(peer, _)| (!connected.contains(peer), *peer));
        members.truncate(MEMBERS_ASKED);
        let questions = members.into_iter().map(|(peer, member)| ask(node, peer, member));
        let answers = futures::future::join_all(questions).await;
        let own = (node.peer_id(), (node.zone().to_string(), node.metrics().traffic()));
        let traffic: BTreeMap<_, _> = answers.into_iter().flatten().chain([own]).collect();
        self.flows = flows(&self.traffic, &traffic, waited.unwrap_or_default());
        self.traffic = traffic;
    }

    fn members(&self, node: &Node) -> Vec<MemberRow> {
        let connected: BTreeSet<PeerId> = node.links().connected().into_iter().collect();
        let identity = node.identity();
        let own =
            Member { zone: node.zone(), roles: identity.credential.value().roles, endpoints: Vec::new() };
        let row = |(peer, member): (PeerId, Member)| {
            let traffic = self.traffic.get(&peer).map(|(_, traffic)| traffic);
            MemberRow {
                peer,
                zone: member.zone.to_string(),
                roles: member.roles.to_string(),
                connected: connected.contains(&peer),
                own: peer == node.peer_id(),
                received_bytes: traffic.map(|traffic| {
                    traffic.received.iter().map(|(_, bytes)| bytes).sum::<u64>() + traffic.backend
                }),
                served_bytes: traffic.map(|traffic| traffic.served),
                swarms: traffic.map(|traffic| traffic.swarms),
            }
        };
        let others = node.directory().recent(ROWS_MAX);
        std::iter::once((node.peer_id(), own)).chain(others).map(row).collect()
    }
}

/// What a member has received, if it answers and has the data plane for it.
async fn ask(node: &Node, peer: PeerId, member: Member) -> Option<(PeerId, (String, Traffic))> {
    if member.roles.contains(Role::Bootstrap) && !member.roles.contains(Role::Node) {
        return None;
    }
    let asked = node.links().ask(peer, &member.endpoints, &Request::Traffic, MEMBER_TIMEOUT);
    match tokio::time::timeout(MEMBER_TIMEOUT, asked).await {
        Ok(Ok(Answer::Traffic(traffic))) => Some((peer, (member.zone.to_string(), traffic))),
        _ => None,
    }
}

type Reports = BTreeMap<PeerId, (String, Traffic)>;

/// The flows between zones, from what members said before and now. Rates are of members that answered both times.
fn flows(before: &Reports, now: &Reports, time: Duration) -> Vec<Flow> {
    let mut flows: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for (peer, (to, traffic)) in now {
        let known: Option<BTreeMap<&str, u64>> = before.get(peer).map(|(_, traffic)| {
            traffic.received.iter().map(|(zone, bytes)| (zone.as_str(), *bytes)).collect()
        });
        for (from, bytes) in traffic.received.iter().take(65) {
            let (total, fresh) = flows.entry((from.clone(), to.clone())).or_default();
            *total = total.saturating_add(*bytes);
            if let Some(known) = &known {
                let earlier = known.get(from.as_str()).copied().unwrap_or_default();
                *fresh = fresh.saturating_add(bytes.saturating_sub(earlier));
            }
        }
    }
    let seconds = time.as_secs_f64();
    let rate = |fresh: u64| if seconds > 0.0 { fresh as f64 / seconds } else { 0.0 };
    flows
        .into_iter()
        .map(|((from, to), (bytes, fresh))| Flow { from, to, bytes, bytes_per_sec: rate(fresh) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_has_a_digit_for_each_cell_and_nine_is_full() {
        let layout = |pieces: u64| PieceLayout::for_size(pieces * 256 * 1024).unwrap();
        let many = layout(600);
        let mut have = Bitfield::new(600);
        assert_eq!(map(&have, &many).len(), 200);
        for number in (0..6).chain([7]) {
            have.insert(many.piece(number).unwrap());
        }
        assert!(map(&have, &many).starts_with("99300"));
        let odd = layout(257);
        let mut last = Bitfield::new(257);
        last.insert(odd.piece(256).unwrap());
        assert!(map(&last, &odd).ends_with("09"), "the last cell has one piece");
    }

    #[test]
    fn flows_add_up_by_zones_and_a_member_that_is_new_has_no_rate() {
        let report = |zone: &str, received: &[(&str, u64)]| {
            let received = received.iter().map(|(zone, bytes)| ((*zone).to_owned(), *bytes)).collect();
            (zone.to_owned(), Traffic { received, ..Traffic::default() })
        };
        let peer = |n| PeerId::from_public_key([n; 32]);
        let before = Reports::from([(peer(1), report("eu", &[("us", 100)]))]);
        let now = Reports::from([
            (peer(1), report("eu", &[("us", 300), ("eu", 40)])),
            (peer(2), report("eu", &[("us", 1000)])),
        ]);
        let flows = flows(&before, &now, Duration::from_secs(2));
        let flow = |from: &str, bytes, bytes_per_sec| Flow {
            from: from.to_owned(),
            to: "eu".to_owned(),
            bytes,
            bytes_per_sec,
        };
        assert_eq!(flows, [flow("eu", 40, 20.0), flow("us", 1300, 100.0)]);
    }
}
