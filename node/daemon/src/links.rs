//! Connections as the rest of the daemon needs them: connected before a question, and not closed under one.
//!
//! The engine decides which data-plane connections swarms need. Questions (calls) need some too, for a moment:
//! [`Links`] opens those, and tells the driver when an idle connection still has a question under way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use shoal_net::data::protocol::CallRefusal;
use shoal_net::data::{CallError, DataHandle};
use shoal_types::{Endpoint, PeerId};
use tokio::sync::watch;

use crate::rpc::{self, Answer, Failure, Request};

/// How long a connection may take to open before a question counts as unanswered: two TCP retransmissions.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// How often room among the open questions is looked for.
const ROOM_POLL: Duration = Duration::from_millis(10);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The peer cannot be reached.
    #[error("{0} cannot be reached")]
    Unreachable(PeerId),
    /// The connection broke, or the answer did not come in time.
    #[error("{peer} did not answer: {why}")]
    Unanswered {
        /// Who was asked.
        peer: PeerId,
        /// What happened.
        why: String,
    },
    /// The peer answered that it could not.
    #[error("{peer} answered: {message}")]
    Failed {
        /// Who was asked.
        peer: PeerId,
        /// What kind of failure.
        kind: Failure,
        /// Its own words.
        message: String,
    },
    /// The answer is none to the question.
    #[error("{0} gave an answer that fits no question of ours")]
    Nonsense(PeerId),
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    connected: bool,
    /// Failed attempts so far; a waiter compares with what it saw before its own.
    failures: u64,
    /// Questions under way.
    calls: usize,
}

/// The state of every connection, shared between the driver and those who ask.
pub struct Links {
    data: DataHandle,
    state: Mutex<HashMap<PeerId, Link>>,
    changed: watch::Sender<u64>,
}

impl Links {
    /// Nobody is connected yet.
    pub fn new(data: DataHandle) -> Arc<Self> {
        Arc::new(Self { data, state: Mutex::default(), changed: watch::channel(0).0 })
    }

    /// The driver heard that a connection opened.
    pub fn opened(&self, peer: PeerId) {
        self.update(peer, |link| link.connected = true);
    }

    /// The driver heard that a connection closed.
    pub fn closed(&self, peer: PeerId) {
        self.update(peer, |link| link.connected = false);
    }

    /// The driver heard that a connection could not be opened.
    pub fn failed(&self, peer: PeerId) {
        self.update(peer, |link| link.failures += 1);
    }

    /// Whether questions to `peer` are under way, so that its connection is not idle.
    pub fn is_busy(&self, peer: &PeerId) -> bool {
        self.state.lock().get(peer).is_some_and(|link| link.calls > 0)
    }

    /// Whether `peer` is connected.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.state.lock().get(peer).is_some_and(|link| link.connected)
    }

    /// The peers connected now.
    pub fn connected(&self) -> Vec<PeerId> {
        self.state.lock().iter().filter(|(_, link)| link.connected).map(|(peer, _)| *peer).collect()
    }

    /// Resolves when a connection changed after this call.
    pub async fn changed(&self) {
        let mut changes = self.changed.subscribe();
        let _ = changes.changed().await;
    }

    /// Asks `peer`, connecting first where needed. A connection that breaks before the answer is tried once more:
    /// every question may be asked twice.
    ///
    /// # Errors
    /// [`AskError`]; ask another member.
    pub async fn ask(
        &self,
        peer: PeerId,
        endpoints: &[Endpoint],
        request: &Request,
        timeout: Duration,
    ) -> Result<Answer, AskError> {
        let _busy = Busy::new(self, peer);
        let deadline = tokio::time::Instant::now() + timeout;
        let body = Bytes::from(rpc::encode(request));
        let mut again = true;
        loop {
            self.connect(peer, endpoints).await?;
            match self.data.call(peer, body.clone(), timeout).await {
                Ok(bytes) => return read_answer(peer, &bytes),
                Err(CallError::NotConnected) if again => again = false,
                // As many questions as a connection carries are open: one of them will end.
                Err(CallError::TooMany | CallError::Refused(CallRefusal::Busy))
                    if tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(ROOM_POLL).await;
                }
                Err(error) => return Err(AskError::Unanswered { peer, why: error.to_string() }),
            }
        }
    }

    async fn connect(&self, peer: PeerId, endpoints: &[Endpoint]) -> Result<(), AskError> {
        let mut changes = self.changed.subscribe();
        let before = self.look(&peer);
        if before.connected {
            return Ok(());
        }
        self.data.connect(peer, endpoints.to_vec());
        let opened = async {
            loop {
                let now = self.look(&peer);
                if now.connected {
                    return Ok(());
                }
                if now.failures != before.failures || changes.changed().await.is_err() {
                    return Err(AskError::Unreachable(peer));
                }
            }
        };
        tokio::time::timeout(CONNECT_TIMEOUT, opened).await.unwrap_or(Err(AskError::Unreachable(peer)))
    }

    fn look(&self, peer: &PeerId) -> Link {
        self.state.lock().get(peer).copied().unwrap_or_default()
    }

    fn update(&self, peer: PeerId, change: impl FnOnce(&mut Link)) {
        {
            let mut state = self.state.lock();
            let link = state.entry(peer).or_default();
            change(link);
            // Only who is connected, asked, or just failed for somebody who still waits is kept.
            if !link.connected && link.calls == 0 {
                state.remove(&peer);
            }
        }
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// Counts a question for as long as it lives.
struct Busy<'a>(&'a Links, PeerId);

impl<'a> Busy<'a> {
    fn new(links: &'a Links, peer: PeerId) -> Self {
        links.update(peer, |link| link.calls += 1);
        Self(links, peer)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.update(self.1, |link| link.calls = link.calls.saturating_sub(1));
    }
}

fn read_answer(peer: PeerId, bytes: &[u8]) -> Result<Answer, AskError> {
    match rpc::decode::<Answer>(bytes) {
        Ok(Answer::Failed { kind, message }) => {
            Err(AskError::Failed { peer, kind, message: message.chars().take(300).collect() })
        }
        Ok(answer) => Ok(answer),
        Err(_) => Err(AskError::Nonsense(peer)),
    }
}
