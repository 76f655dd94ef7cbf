//! What the parts of a fleet send each other: each part runs by itself for a step, or a stride, and its mail is
//! delivered after that.

use std::time::Duration;

use shoal_engine::io::Input;
use shoal_engine::message::Message;

/// What happens at a node. Small: what is large is in a slab. Whether a message is a request is known without a look at it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    Input { node: u32, life: u32, input: u32 },
    Wake { node: u32 },
    Message { node: u32, from: u32, serial: u32, request: bool, message: u32 },
    Dialed { node: u32, from: u32, life: u32 },
    Linked { node: u32, other: u32, connection: u32, serial: u32 },
    Unlinked { node: u32, other: u32, serial: u32 },
    Sent { node: u32, to: u32, serial: u32, blob: u32, piece: u32, bytes: u32 },
    Progress(Coming),
    Arrived(Coming),
    Verified { node: u32, life: u32, blob: u32, piece: u32 },
    ReaderMoved { node: u32, life: u32, reader: u32, offset: u64 },
}

/// What of a piece has come to a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coming {
    pub(crate) node: u32,
    pub(crate) from: u32,
    pub(crate) serial: u32,
    pub(crate) channel: u32,
    pub(crate) piece: u32,
    pub(crate) bytes: u32,
    /// Nanoseconds since its first part was here.
    pub(crate) since_first: u32,
}

impl Coming {
    pub(crate) fn since_first(&self) -> Duration {
        Duration::from_nanos(self.since_first.into())
    }
}

impl Event {
    pub(crate) fn node(&self) -> u32 {
        match *self {
            Self::Input { node, .. }
            | Self::Wake { node }
            | Self::Message { node, .. }
            | Self::Dialed { node, .. }
            | Self::Linked { node, .. }
            | Self::Unlinked { node, .. }
            | Self::Sent { node, .. }
            | Self::Progress(Coming { node, .. })
            | Self::Arrived(Coming { node, .. })
            | Self::Verified { node, .. }
            | Self::ReaderMoved { node, .. } => node,
        }
    }
}

/// An event at a node on its way there, with what is large.
#[derive(Debug)]
pub(crate) enum Mail {
    Event(Event),
    Input(Box<ForNode>),
    Message { node: u32, from: u32, serial: u32, request: bool, message: Box<Message> },
}

/// An input for a life of a node.
#[derive(Debug)]
pub(crate) struct ForNode {
    pub(crate) node: u32,
    pub(crate) life: u32,
    pub(crate) input: Input,
}

impl Mail {
    pub(crate) fn input(node: u32, life: u32, input: Input) -> Self {
        Self::Input(Box::new(ForNode { node, life, input }))
    }
}

#[derive(Debug)]
pub(crate) struct Posted {
    pub(crate) at: u64,
    pub(crate) mail: Mail,
}

/// Mail of one part, by the shard it goes to.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) boxes: Vec<Vec<Posted>>,
    /// The first time that any of it is for; `u64::MAX` when there is none.
    pub(crate) earliest: u64,
    /// Nothing may happen at another part before this: it has run until here.
    pub(crate) not_before: u64,
}

impl Outbox {
    /// To so many shards, a power of two.
    pub(crate) fn new(shards: usize) -> Self {
        Self {
            boxes: std::iter::repeat_with(Vec::new).take(shards).collect(),
            earliest: u64::MAX,
            not_before: 0,
        }
    }

    pub(crate) fn post(&mut self, node: u32, at: u64, mail: Mail) {
        let at = at.max(self.not_before);
        self.earliest = self.earliest.min(at);
        let shard = node as usize & (self.boxes.len() - 1);
        self.boxes[shard].push(Posted { at, mail });
    }
}

/// A piece on its way out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sending {
    /// The receiver's.
    pub(crate) channel: u32,
    pub(crate) blob: u32,
    pub(crate) piece: u32,
    pub(crate) bytes: u32,
}

/// What a node wants of the network.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// A connection is accepted; it is open at `at`.
    Open { from: u32, life: u32, to: u32, at: u64 },
    /// A node closes a connection.
    HangUp { connection: u32, serial: u32, at: u64 },
    /// A piece to send, and when it would be read from the disk.
    Send { connection: u32, serial: u32, node: u32, sending: Sending, read: u64 },
    /// A piece that has not begun is not to be sent any more.
    Cancel { connection: u32, serial: u32, node: u32, blob: u32, piece: u32, at: u64 },
    /// A provider record is stored at `at`.
    Provide { node: u32, blob: u32, at: u64 },
    /// A lookup in the DHT of a blob that is known.
    LookUp { node: u32, life: u32, blob: u32, at: u64 },
}
