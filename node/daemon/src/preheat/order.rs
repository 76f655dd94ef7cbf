//! Having gateways fetch an image: at the node that is asked to.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use shoal_types::{Digest, ImageReference, PeerId, Reference, RepositoryName, Role, rendezvous};
use tokio::sync::{Semaphore, watch};

use super::{Job, NodeReport, Report, Scope, State, Zones};
use crate::directory::{MEMBERS_MAX, Member};
use crate::links::AskError;
use crate::node::{ManifestError, Node};
use crate::rpc::{Answer, Failure, Request};

/// Images that a node has others fetch side by side.
const ORDERS: usize = 4;
/// Images under way and waiting for that; more are refused.
const ORDERS_MAX: usize = 256;
/// Nodes that fetch one image at a time.
const NODES: usize = 128;
/// How long a node may take to say how far it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(15);
/// Questions that may fail one after the other before a node counts as gone, and before one does that has answered: it may be
/// restarting.
const MISSES_MAX: u32 = 3;
const MISSES_LATER_MAX: u32 = 30;
/// Before a node that did not answer, or has too much to do, is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a node may have too much to do.
const BUSY_MAX: Duration = Duration::from_secs(3600);

/// An image that gateways are to fetch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    /// The repositories it may be of; the first that has it counts.
    pub repositories: Vec<RepositoryName>,
    /// Its tag or digest.
    pub reference: Reference,
    /// Which gateways.
    pub scope: Scope,
    /// For which platforms, as [`super::Platforms::parse`] reads them.
    pub platforms: Vec<String>,
}

/// Too many images wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ORDERS_MAX} images are being preheated or wait for it: try again later")]
pub struct Full;

/// What a node has others fetch.
pub(crate) struct Orders {
    open: Mutex<BTreeMap<Order, watch::Receiver<Report>>>,
    slots: Arc<Semaphore>,
}

impl Default for Orders {
    fn default() -> Self {
        Self { open: Mutex::default(), slots: Arc::new(Semaphore::new(ORDERS)) }
    }
}

/// The repositories that an image with the name of a registry may be of in the mesh. Of a registry that this process pulls
/// through it is one; others may be known to the origins alone, or the name is that of a gateway.
pub(crate) fn named(node: &Node, image: &ImageReference) -> Vec<RepositoryName> {
    let Some(host) = image.host.as_ref().map(|host| host.to_ascii_lowercase()) else {
        return vec![image.repository.clone()];
    };
    let below = |prefix: &str| format!("{prefix}/{}", image.repository).parse().ok();
    match node.config().upstreams().iter().find(|rule| rule.host() == host) {
        Some(rule) => below(rule.prefix()).into_iter().collect(),
        None => std::iter::once(image.repository.clone()).chain(below(&host.replace(':', "_"))).collect(),
    }
}

impl Node {
    /// Has gateways fetch an image, and returns what is told of it. The work goes on when nobody listens; of an order that
    /// is under way already there is no second one.
    ///
    /// # Errors
    /// [`Full`].
    pub fn preheat(&self, order: Order) -> Result<watch::Receiver<Report>, Full> {
        let orders = self.preheat_orders();
        let mut open = orders.open.lock();
        if let Some(told) = open.get(&order) {
            return Ok(told.clone());
        }
        if open.len() >= ORDERS_MAX {
            self.metrics().preheats_refused.inc();
            return Err(Full);
        }
        let first = order.repositories.first().map(ToString::to_string).unwrap_or_default();
        let image = match &order.reference {
            Reference::Tag(tag) => format!("{first}:{tag}"),
            Reference::Digest(digest) => format!("{first}@{digest}"),
        };
        let (tell, told) = watch::channel(Report { image, ..Report::default() });
        open.insert(order.clone(), told.clone());
        drop(open);
        self.metrics().preheats.inc();
        let node = self.clone();
        tokio::spawn(async move {
            let done = tokio::select! {
                () = node.stopping() => Err("the node stops".to_owned()),
                done = node.carry_out(&order, &tell) => done,
            };
            if let Err(why) = &done {
                tracing::warn!(image = %tell.borrow().image, %why, "an image is not preheated");
            }
            // Before the end is told, so that whoever asks again then begins anew.
            node.preheat_orders().open.lock().remove(&order);
            tell.send_modify(|report| {
                report.finished = true;
                report.error = done.err();
            });
        });
        Ok(told)
    }

    async fn carry_out(&self, order: &Order, tell: &watch::Sender<Report>) -> Result<(), String> {
        let roles = self.identity().credential.value().roles;
        if !roles.contains(Role::Gateway) && !roles.contains(Role::Origin) {
            return Err("only gateways and origins have others fetch: ask the ops listener of one".to_owned());
        }
        let slots = Arc::clone(&self.preheat_orders().slots);
        let _slot = slots.acquire_owned().await.map_err(|error| error.to_string())?;
        let (repository, digest) = self.find(order).await?;
        tell.send_modify(|report| report.image = format!("{repository}@{digest}"));
        let ranked = self.gateways(&order.scope, &repository);
        let wanted = order.scope.take.of(ranked.len());
        if wanted == 0 {
            return Err(format!("no gateway is known of those meant by {}", order.scope));
        }
        let waiting = |(peer, member): &(PeerId, Member)| NodeReport {
            peer: *peer,
            zone: member.zone.clone(),
            state: State::Waiting,
        };
        tell.send_modify(|report| report.nodes = ranked.iter().take(wanted).map(waiting).collect());
        let job = Job { repository, digest, platforms: order.platforms.clone() };
        let mut following = FuturesUnordered::new();
        let (mut next, mut gone) = (0, 0);
        loop {
            // For a node that is gone the next in the row is asked.
            while following.len() < NODES && next < wanted + gone {
                let Some(target) = ranked.get(next) else { break };
                if next >= wanted {
                    tell.send_modify(|report| report.nodes.push(waiting(target)));
                }
                following.push(self.follow(&job, target, next, tell));
                next += 1;
            }
            match following.next().await {
                Some(is_gone) => gone += usize::from(is_gone),
                None => return Ok(()),
            }
        }
    }

    /// The repository that has the image, and its digest.
    async fn find(&self, order: &Order) -> Result<(RepositoryName, Digest), String> {
        let mut failed = None;
        for repository in &order.repositories {
            match self.resolve(repository, &order.reference).await {
                Ok(resolved) => return Ok((repository.clone(), resolved.value.digest)),
                Err(ManifestError::NotFound) => {}
                Err(error) => failed = Some(error.to_string()),
            }
        }
        Err(failed.unwrap_or_else(|| "there is no such image".to_owned()))
    }

    /// The gateways of some zones, this process among them if it is one, in an order that the repository alone says: the same
    /// few have all of its images, whose layers are often the same.
    fn gateways(&self, scope: &Scope, repository: &RepositoryName) -> Vec<(PeerId, Member)> {
        let own_zone = self.zone();
        let own = Member {
            zone: own_zone.clone(),
            roles: self.identity().credential.value().roles,
            endpoints: Vec::new(),
        };
        let meant = |member: &Member| match &scope.zones {
            Zones::All => true,
            Zones::Own => member.zone == own_zone,
            Zones::One(zone) => member.zone == *zone,
        };
        let mut members: HashMap<PeerId, Member> = self
            .directory()
            .recent(MEMBERS_MAX)
            .into_iter()
            .chain([(self.peer_id(), own)])
            .filter(|(_, member)| member.roles.contains(Role::Gateway) && meant(member))
            .collect();
        let order = rendezvous::rank(repository.as_str().as_bytes(), members.keys().copied());
        order.into_iter().filter_map(|peer| members.remove(&peer).map(|member| (peer, member))).collect()
    }

    /// Has one node fetch, and tells how far it is until it is over; returns whether the node is gone.
    async fn follow(
        &self,
        job: &Job,
        (peer, member): &(PeerId, Member),
        at: usize,
        tell: &watch::Sender<Report>,
    ) -> bool {
        let request = Request::Preheat { job: job.clone() };
        let (mut misses, mut misses_max, mut busy) = (0, MISSES_MAX, Duration::ZERO);
        loop {
            let asked = match *peer == self.peer_id() {
                true => Ok(self.preheat_here(job).await.map_or_else(too_busy, Answer::Preheat)),
                false => self.links().ask(*peer, &member.endpoints, &request, ASK_TIMEOUT).await,
            };
            let state =
                match asked {
                    Ok(Answer::Preheat(state)) => state,
                    Ok(Answer::Failed { kind: Failure::Unavailable, message })
                    | Err(AskError::Failed { kind: Failure::Unavailable, message, .. }) => {
                        if busy >= BUSY_MAX { State::Failed { why: message } } else { State::Waiting }
                    }
                    // What a node that does not know the question says.
                    Err(AskError::Failed { kind: Failure::Refused, .. }) => {
                        State::Failed { why: "it is of a version that cannot preheat".to_owned() }
                    }
                    Err(AskError::Failed { message, .. }) => State::Failed { why: message },
                    Ok(_) | Err(AskError::Nonsense(_)) => {
                        State::Failed { why: "it gave an answer to another question".to_owned() }
                    }
                    Err(error) => {
                        misses += 1;
                        if misses < misses_max {
                            tokio::time::sleep(AGAIN).await;
                            continue;
                        }
                        State::Gone { why: error.to_string() }
                    }
                };
            if state == State::Waiting {
                tokio::time::sleep(AGAIN).await;
                busy += AGAIN;
            }
            let (over, gone) = (state.is_final(), matches!(state, State::Gone { .. }));
            (misses, misses_max) = (0, MISSES_LATER_MAX);
            let state = state.clipped();
            tell.send_if_modified(|report| match report.nodes.get_mut(at) {
                Some(node) if node.state != state => {
                    node.state = state;
                    true
                }
                _ => false,
            });
            if over {
                return gone;
            }
        }
    }
}

/// What a node answers that has too much to fetch already.
pub(crate) fn too_busy() -> Answer {
    Answer::Failed { kind: Failure::Unavailable, message: "too many images wait there".to_owned() }
}
