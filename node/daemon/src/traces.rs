//! Traces of pulls as OpenTelemetry spans: who got what from whom, and what each part waited for, across processes.
//!
//! A request at a gateway that is sampled is a span. If the blob is not here, a `pull` below it has the searches and a
//! span a peer that gives something. The first message to that peer about the blob carries the span's name, so that what the
//! peer did for it stands below it: a `serve` span, and if the peer itself fetches the blob because of it, a `pull` of its
//! own, down to the origin that reads its backend.
//!
//! Spans are few: one a peer and blob, not one a piece. Without an exporter ([`enable`]) all of this is one look at a flag.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use axum::http::HeaderMap;
use minicbor::bytes::ByteArray;
use opentelemetry::context::FutureExt as _;
use opentelemetry::propagation::Extractor;
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _,
};
use opentelemetry::{Context, KeyValue, global};
use parking_lot::Mutex;
use shoal_engine::io::{Event, LookupSource, ReadError, Report};
use shoal_engine::message::TraceContext;
use shoal_types::{Digest, PeerId, Zone};

use crate::pulls::Pull;

/// Blobs followed at once at most; further ones have no spans below their requests'.
const BLOBS_MAX: usize = 256;
/// Peers with a span each, a blob and direction, at most.
const PEERS_MAX: usize = 64;
/// A peer that takes nothing for so long has what it came for: it does not say so.
const SERVED_IDLE: Duration = Duration::from_secs(10);
/// Between two looks for such peers.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Whether spans go anywhere. OpenTelemetry's tracer provider is the process's as well.
static ENABLED: AtomicBool = AtomicBool::new(false);

/// From now on requests may be sampled: a tracer provider and a propagator have been set.
pub fn enable() {
    ENABLED.store(true, Ordering::Relaxed);
}

fn is_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Begins a span below `parent`, if it is sampled.
fn begin(
    name: impl Into<std::borrow::Cow<'static, str>>,
    kind: SpanKind,
    attributes: Vec<KeyValue>,
    parent: &Context,
) -> Option<Context> {
    let tracer = global::tracer("shoal");
    let builder = tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
    let span = tracer.build_with_context(builder, parent);
    span.span_context().is_sampled().then(|| parent.with_span(span))
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The span of a request at the registry API; it ends when this is dropped.
#[derive(Debug)]
pub struct RequestTrace {
    context: Option<Context>,
}

impl RequestTrace {
    /// Begins it, below what the client's `traceparent` header names.
    pub fn begin(headers: &HeaderMap, method: &'static str, route: &'static str, path: &str) -> Self {
        if !is_enabled() {
            return Self { context: None };
        }
        let parent = global::get_text_map_propagator(|known| {
            known.extract_with_context(&Context::new(), &HeaderFields(headers))
        });
        let attributes = vec![
            KeyValue::new("http.request.method", method),
            KeyValue::new("http.route", route),
            KeyValue::new("url.path", path.to_owned()),
        ];
        Self { context: begin(format!("{method} {route}"), SpanKind::Server, attributes, &parent) }
    }

    /// The trace's id in hexadecimal, if the request is followed.
    pub fn id(&self) -> Option<String> {
        self.context.as_ref().map(|context| context.span().span_context().trace_id().to_string())
    }

    /// Carries `work` out below the span.
    pub fn run<F: Future>(&self, work: F) -> impl Future<Output = F::Output> {
        work.with_context(self.context.clone().unwrap_or_default())
    }

    /// The head of the response is known; `source` is where its content comes from.
    pub fn answered(&self, status: u16, source: Option<&str>) {
        let Some(context) = &self.context else { return };
        let span = context.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if let Some(source) = source {
            span.set_attribute(KeyValue::new("shoal.source", source.to_owned()));
        }
        if status >= 500 {
            span.set_status(Status::error(status.to_string()));
        }
    }

    /// The first byte of the response's body is on its way.
    pub fn first_byte(&self) {
        if let Some(context) = &self.context {
            context.span().add_event("first byte", Vec::new());
        }
    }

    /// The response's body is broken off.
    pub fn failed(&self, why: &str) {
        if let Some(context) = &self.context {
            context.span().set_status(Status::error(why.to_owned()));
        }
    }
}

impl Drop for RequestTrace {
    fn drop(&mut self) {
        if let Some(context) = &self.context {
            context.span().end();
        }
    }
}

struct HeaderFields<'a>(&'a HeaderMap);

impl Extractor for HeaderFields<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

/// What passes between this process and one other, or its backend.
#[derive(Debug)]
struct Exchange {
    context: Context,
    /// When something last passed.
    last: SystemTime,
    bytes: u64,
    pieces: u64,
    timeouts: u64,
    zone: Option<Zone>,
}

impl Exchange {
    fn begin(
        name: &'static str,
        kind: SpanKind,
        digest: &Digest,
        peer: Option<&PeerId>,
        parent: &Context,
    ) -> Option<Self> {
        let mut attributes = vec![KeyValue::new("shoal.digest", digest.to_string())];
        attributes.extend(peer.map(|peer| KeyValue::new("shoal.peer", peer.to_string())));
        let context = begin(name, kind, attributes, parent)?;
        Some(Self { context, last: SystemTime::now(), bytes: 0, pieces: 0, timeouts: 0, zone: None })
    }

    fn passed(&mut self, bytes: u32) {
        self.bytes += u64::from(bytes);
        self.pieces += 1;
        self.last = SystemTime::now();
    }

    /// Ends it when something last passed.
    fn end(&self) {
        let span = self.context.span();
        span.set_attribute(KeyValue::new("shoal.bytes", number(self.bytes)));
        span.set_attribute(KeyValue::new("shoal.pieces", number(self.pieces)));
        if let Some(zone) = &self.zone {
            span.set_attribute(KeyValue::new("shoal.peer.zone", zone.to_string()));
        }
        if self.timeouts > 0 {
            span.set_attribute(KeyValue::new("shoal.timeouts", number(self.timeouts)));
        }
        span.end_with_timestamp(self.last);
    }
}

/// The spans of one blob.
#[derive(Debug, Default)]
struct Followed {
    pull: Option<Context>,
    searches: BTreeMap<LookupSource, Context>,
    /// What peers give.
    fetched: BTreeMap<PeerId, Exchange>,
    /// What peers take.
    served: BTreeMap<PeerId, Exchange>,
    backend: Option<Exchange>,
}

impl Followed {
    fn is_over(&self) -> bool {
        self.pull.is_none() && self.served.is_empty() && self.backend.is_none()
    }

    /// What this process does for the blob happens below this.
    fn cause(&self) -> Option<&Context> {
        self.pull.as_ref().or_else(|| self.served.values().next().map(|exchange| &exchange.context))
    }

    fn begin_pull(&mut self, digest: &Digest, parent: &Context) {
        if self.pull.is_none() {
            let attributes = vec![KeyValue::new("shoal.digest", digest.to_string())];
            self.pull = begin("pull", SpanKind::Internal, attributes, parent);
        }
    }

    /// What this process's backend gives.
    fn read_backend(&mut self, digest: &Digest) -> Option<&mut Exchange> {
        if self.backend.is_none() {
            let cause = self.cause()?;
            self.backend = Exchange::begin("read backend", SpanKind::Client, digest, None, cause);
        }
        self.backend.as_mut()
    }

    fn fetched_from(&mut self, digest: &Digest, peer: &PeerId) -> Option<&mut Exchange> {
        let pull = self.pull.as_ref()?;
        if !self.fetched.contains_key(peer) && self.fetched.len() < PEERS_MAX {
            let exchange = Exchange::begin("fetch", SpanKind::Client, digest, Some(peer), pull)?;
            self.fetched.insert(*peer, exchange);
        }
        self.fetched.get_mut(peer)
    }

    /// The pull is over, with everything below it.
    fn end_pull(&mut self, why: Option<String>, account: Option<&Pull>) {
        for search in std::mem::take(&mut self.searches).into_values() {
            search.span().end();
        }
        for exchange in std::mem::take(&mut self.fetched).into_values() {
            exchange.end();
        }
        if let Some(backend) = self.backend.take() {
            backend.end();
        }
        let Some(context) = self.pull.take() else { return };
        let span = context.span();
        if let Some(account) = account {
            if let Some(size) = account.size {
                span.set_attribute(KeyValue::new("shoal.size", number(size)));
            }
            for (phase, millis) in &account.phases {
                span.set_attribute(KeyValue::new(format!("shoal.waited.{}_ms", phase.name()), *millis));
            }
            span.set_attribute(KeyValue::new("shoal.bounded_by", account.verdict().text));
        }
        if let Some(why) = why {
            span.set_status(Status::error(why));
        }
        span.end();
    }

    /// Nothing more happens to the blob.
    fn end(&mut self, account: Option<&Pull>) {
        self.end_pull(None, account);
        for exchange in std::mem::take(&mut self.served).into_values() {
            exchange.end();
        }
    }
}

/// The blobs that are followed.
#[derive(Debug, Default)]
pub struct Traces {
    blobs: Mutex<HashMap<Digest, Followed>>,
}

impl Traces {
    fn change<T>(&self, digest: &Digest, change: impl FnOnce(&mut Followed) -> T) -> Option<T> {
        if !is_enabled() {
            return None;
        }
        let mut blobs = self.blobs.lock();
        let followed = blobs.get_mut(digest)?;
        let changed = change(followed);
        if followed.is_over() {
            blobs.remove(digest);
        }
        Some(changed)
    }

    /// A place for a blob that is to be followed, if there is one.
    fn follow(&self, digest: &Digest, change: impl FnOnce(&mut Followed)) {
        let mut blobs = self.blobs.lock();
        if blobs.len() >= BLOBS_MAX && !blobs.contains_key(digest) {
            return;
        }
        let followed = blobs.entry(*digest).or_default();
        change(followed);
        if followed.is_over() {
            blobs.remove(digest);
        }
    }

    /// A request wants a blob from the mesh: the pull stands below the request's span, if that is followed.
    pub(crate) fn wanted(&self, digest: &Digest) {
        if !is_enabled() {
            return;
        }
        let parent = Context::current();
        if parent.span().span_context().is_sampled() {
            self.follow(digest, |followed| followed.begin_pull(digest, &parent));
        }
    }

    /// A request's pull came to nothing. The engine reports only those for which it had room.
    pub(crate) fn gave_up(&self, digest: &Digest, why: &ReadError) {
        self.change(digest, |followed| followed.end_pull(Some(why.to_string()), None));
    }

    /// This process says `Join` to a peer: what goes with it.
    pub(crate) fn joining(&self, digest: &Digest, peer: &PeerId) -> Option<TraceContext> {
        self.change(digest, |followed| {
            let asked_by_it = followed.served.contains_key(peer);
            if followed.pull.is_none() && !asked_by_it {
                // Somebody's request makes this process look for the blob itself.
                let cause = followed.cause()?.clone();
                followed.begin_pull(digest, &cause);
            }
            let exchange = followed.fetched_from(digest, peer)?;
            let span = exchange.context.span();
            let context = span.span_context();
            Some(TraceContext {
                trace: ByteArray::from(context.trace_id().to_bytes()),
                span: ByteArray::from(context.span_id().to_bytes()),
            })
        })
        .flatten()
    }

    /// A peer said `Join` with this.
    pub(crate) fn joined(&self, digest: &Digest, peer: &PeerId, zone: Option<Zone>, theirs: &TraceContext) {
        if !is_enabled() {
            return;
        }
        let theirs = SpanContext::new(
            TraceId::from_bytes(*theirs.trace),
            SpanId::from_bytes(*theirs.span),
            TraceFlags::SAMPLED,
            true,
            TraceState::NONE,
        );
        if !theirs.is_valid() {
            return;
        }
        let parent = Context::new().with_remote_span_context(theirs);
        self.follow(digest, |followed| {
            if let Some(before) = followed.served.remove(peer) {
                before.end();
            }
            if followed.served.len() < PEERS_MAX
                && let Some(mut exchange) =
                    Exchange::begin("serve", SpanKind::Server, digest, Some(peer), &parent)
            {
                exchange.zone = zone;
                followed.served.insert(*peer, exchange);
            }
        });
    }

    /// A search begins.
    pub(crate) fn searching(&self, digest: &Digest, source: LookupSource) {
        self.change(digest, |followed| {
            let name = match source {
                LookupSource::Owners => "find owners",
                LookupSource::Dht => "find providers",
            };
            if let Some(pull) = &followed.pull
                && let Some(search) = begin(name, SpanKind::Internal, Vec::new(), pull)
            {
                followed.searches.insert(source, search);
            }
        });
    }

    /// A search has ended.
    pub(crate) fn searched(&self, digest: &Digest, source: LookupSource, answered: bool) {
        self.change(digest, |followed| {
            if let Some(search) = followed.searches.remove(&source) {
                search.span().set_attribute(KeyValue::new("shoal.answered", answered));
                search.span().end();
            }
        });
    }

    /// This process's backend is asked for a piece.
    pub(crate) fn reads_backend(&self, digest: &Digest) {
        self.change(digest, |followed| {
            followed.read_backend(digest);
        });
    }

    /// Takes note of an engine's report; `account` tells what is known of a pull that is over.
    pub(crate) fn note(&self, report: &Report, account: impl Fn(&Digest) -> Option<Pull>) {
        if !is_enabled() {
            return;
        }
        match &report.event {
            Event::PieceReceived { digest, bytes, from: Some(peer), zone, .. } => {
                self.change(digest, |followed| {
                    if let Some(exchange) = followed.fetched_from(digest, peer) {
                        exchange.passed(*bytes);
                        exchange.zone.clone_from(zone);
                    }
                });
            }
            Event::PieceReceived { digest, bytes, from: None, .. } => {
                self.change(digest, |followed| {
                    // One that is read for the first time was not asked for piece by piece.
                    if let Some(backend) = followed.read_backend(digest) {
                        backend.passed(*bytes);
                    }
                });
            }
            Event::PieceServed { digest, bytes, to, .. } => {
                self.change(digest, |followed| {
                    if let Some(exchange) = followed.served.get_mut(to) {
                        exchange.passed(*bytes);
                    }
                });
            }
            Event::RequestTimedOut { digest, peer, .. } => {
                self.change(digest, |followed| {
                    if let Some(exchange) = followed.fetched.get_mut(peer) {
                        exchange.timeouts += 1;
                    }
                });
            }
            Event::BlobCompleted { digest, .. } => {
                self.change(digest, |followed| followed.end_pull(None, account(digest).as_ref()));
            }
            Event::BlobFailed { digest, why } => {
                self.change(digest, |followed| {
                    followed.end_pull(Some(why.to_string()), account(digest).as_ref());
                });
            }
            Event::SwarmEnded { digest } => {
                self.change(digest, |followed| followed.end(account(digest).as_ref()));
            }
            Event::SwarmStarted { .. } | Event::MetainfoReceived { .. } | Event::PeerDropped { .. } => {}
        }
    }

    /// Ends what peers that take nothing any more were served.
    fn sweep(&self, now: SystemTime) {
        let mut blobs = self.blobs.lock();
        blobs.retain(|_, followed| {
            followed.served.retain(|_, exchange| {
                let idle = now.duration_since(exchange.last).unwrap_or_default();
                if idle >= SERVED_IDLE {
                    exchange.end();
                }
                idle < SERVED_IDLE
            });
            // What is read without a pull is read for those.
            if followed.cause().is_none()
                && let Some(backend) = followed.backend.take()
            {
                backend.end();
            }
            !followed.is_over()
        });
    }

    /// [`Self::sweep`] again and again.
    pub(crate) async fn keep(&self) {
        while is_enabled() {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            self.sweep(SystemTime::now());
        }
    }

    /// Ends everything: the process stops.
    pub fn end(&self) {
        for (_, mut followed) in self.blobs.lock().drain() {
            followed.end(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use shoal_types::Timestamp;

    use super::*;

    #[test]
    fn nothing_is_followed_for_ever() {
        global::set_tracer_provider(SdkTracerProvider::builder().build());
        enable();
        let (traces, digest) = (Traces::default(), Digest::sha256(b"x"));
        let followed = || traces.blobs.lock().len();
        traces.wanted(&digest);
        assert_eq!(followed(), 0, "nobody's request");
        let request = begin("request", SpanKind::Server, Vec::new(), &Context::new()).unwrap();
        {
            let _current = request.clone().attach();
            traces.wanted(&digest);
        }
        assert_eq!(followed(), 1);
        // The engine had no room, and reports nothing.
        traces.gave_up(&digest, &ReadError::Busy);
        assert_eq!(followed(), 0);

        let peer = PeerId::from_public_key([1; 32]);
        let theirs = TraceContext { trace: ByteArray::from([1; 16]), span: ByteArray::from([2; 8]) };
        traces.joined(&digest, &peer, None, &theirs);
        assert!(traces.joining(&digest, &peer).is_none(), "the answer to a Join asks for nothing");
        let event = Event::PieceReceived {
            digest,
            piece: shoal_types::PieceLayout::for_size(1).unwrap().piece(0).unwrap(),
            bytes: 1,
            from: None,
            zone: None,
            latency: Duration::ZERO,
        };
        traces.note(&Report { at: Timestamp::ZERO, event }, |_| None);
        let read = traces.change(&digest, |followed| followed.backend.as_ref().map(|backend| backend.bytes));
        assert_eq!(read, Some(Some(1)), "a blob read for the first time has its backend's span");
        traces.sweep(SystemTime::now());
        assert_eq!(followed(), 1);
        traces.sweep(SystemTime::now() + SERVED_IDLE);
        assert_eq!(followed(), 0);
    }
}
