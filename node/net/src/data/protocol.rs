//! The wire of the data plane.
//!
//! # Goals
//! - One connection between two processes carries every swarm they share, and their questions to each other.
//! - A control frame never waits behind more than one payload frame of [`PAYLOAD_BYTES_MAX`] (256 KiB).
//! - Payload goes from the TLS record into the piece's buffer; nothing is parsed in between.
//! - No length is believed before it is checked, and nothing is allocated for bytes that have not come.
//! - A process speaks the newest protocol version and the one before it (N−1), so that a fleet is upgraded one
//!   machine at a time.
//!
//! # Not goals
//! - Authentication and secrecy: TLS has seen to both before the first frame ([`crate::tls`]; ALPN `shoal/1`).
//! - Streams, flow control by credit, priorities beyond "control first": a receiver asks for every piece, so it is
//!   never sent more than it asked for, and TCP slows the rest.
//! - Compression: layers are compressed already.
//!
//! # Frames
//! A connection is a sequence of frames in each direction. Numbers are big-endian.
//!
//! ```text
//! 0      1       2          4               8
//! +------+-------+----------+---------------+------------------+
//! | kind | flags | reserved | length of body | body …           |
//! +------+-------+----------+---------------+------------------+
//! ```
//!
//! `flags` bit 0 says *optional*: a receiver that does not know the kind passes over the frame. An unknown kind
//! without it, an unknown flag, or a reserved byte that is not zero ends the connection.
//!
//! | kind | name | body | at most |
//! |---|---|---|---|
//! | 1 | Hello | CBOR [`Hello`] | 4 KiB |
//! | 2 | Swarm | CBOR `shoal_engine::message::Message` but `Metainfo` | 64 KiB |
//! | 3 | Metainfo | CBOR `Message::Metainfo` | about 8 MiB |
//! | 4 | Payload | channel u32, piece u32, offset u32, bytes | 12 bytes + 256 KiB |
//! | 5 | Call | id u32, length u32, offset u32, bytes | 12 bytes + 64 KiB |
//! | 6 | Answer | as Call | 12 bytes + 64 KiB |
//! | 7 | CallFailed | id u32, code u8 | 5 bytes |
//! | 8 | Ping | u64 | 8 bytes |
//! | 9 | Pong | the Ping's u64 | 8 bytes |
//! | 10 | Bye | code u8 | 1 byte |
//!
//! # Rules
//! - The dialler sends Hello first. The acceptor decides on it and answers with Hello or Bye. Neither sends anything
//!   else before it has the other's Hello. Hello comes once.
//! - Both speak the smaller of their newest versions; if that is under the other's oldest, Bye `version`.
//! - Of two connections between the same two processes the one dialled by the smaller peer id stays. The smaller one
//!   holds back its answer to the larger one's Hello while its own Hello is out; a dial that has not said Hello yet is
//!   given up instead. A later dial of the same process, or a Hello with another *instance* (a restarted process),
//!   replaces the connection in place. `docs/PROTOCOL.md` has the cases.
//! - Payload is addressed by the *receiver's* channel, goes in order from offset 0, a piece's last frame ends at the
//!   length that was requested. Payload that was never requested ends the connection; payload of a request
//!   taken back is passed over.
//! - The parts of a Call or Answer are contiguous among the Calls and Answers of their direction. A part never waits
//!   for its answer. Ids are the caller's, unique among its open calls.
//! - `Metainfo` is checked (signature, an origin's credential of this mesh) before anything looks at it.
//!
//! # Examples
//! Byte for byte, as `tests::vectors_decode` checks them:
//!
//! ```text
//! 08 00 0000 00000008 0000000000000007                    Ping 7
//! 0a 00 0000 00000001 06                                  Bye: shutting down
//! 07 00 0000 00000005 00000001 02                         Call 1 failed: busy
//! 02 00 0000 00000006 82 05 82 03 18 2a                   Swarm: [5, [3, 42]]: Request of piece 42 in channel 3
//! 04 00 0000 0000000e 00000003 0000002a 00000000 6869     Payload: channel 3, piece 42, offset 0, "hi"
//! 05 00 0000 0000000e 00000001 00000002 00000000 6869     Call 1 of 2 bytes, from offset 0: "hi"
//! ```

use shoal_engine::io::DropReason;
use shoal_engine::message::{HAVE_RUNS_MAX, HINTS_MAX, Message, PeerHint};
use shoal_types::{Document, Endpoint, MeshPublicKey, Metainfo, VouchError};

/// Newest protocol version spoken.
pub const VERSION: u16 = 1;
/// Oldest protocol version spoken (N−1, once there is one).
pub const VERSION_MIN: u16 = 1;

/// Bytes of a frame's head.
pub const HEAD_BYTES: usize = 8;
/// Bytes in front of the bytes of Payload, Call and Answer.
pub const SUBHEAD_BYTES: usize = 12;
/// Most payload bytes in a frame, 256 KiB (design §6): what a control frame may have to wait for.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024;
/// Most bytes of one part of a call or answer.
pub const PART_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of a control frame's body.
pub const CONTROL_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of a Hello's body.
pub const HELLO_BYTES_MAX: usize = 4 * 1024;
/// Most bytes of a Metainfo frame's body: the largest metainfo, its signer's credential (2 KiB) and their envelopes.
pub const METAINFO_BYTES_MAX: usize = Metainfo::PAYLOAD_BYTES_MAX + 4 * 1024;
/// Most endpoints of one peer, in Hello and hints.
pub const ENDPOINTS_MAX: usize = shoal_types::gossip::ENDPOINTS_MAX;

const FLAG_OPTIONAL: u8 = 1;

/// What is wrong with what a peer sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A kind that is neither known nor optional.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// Flags or reserved bytes that have no meaning.
    #[error("unknown bits in a frame head")]
    UnknownBits,
    /// A body too long or too short for its kind.
    #[error("a {kind:?} frame of {bytes} bytes")]
    Length {
        /// The frame's kind.
        kind: Kind,
        /// The length in its head.
        bytes: usize,
    },
    /// The body does not decode.
    #[error("malformed {kind:?} frame: {why}")]
    Malformed {
        /// The frame's kind.
        kind: Kind,
        /// What the decoder says.
        why: String,
    },
    /// A list in a message is too long.
    #[error("too many {0} in a message")]
    TooMany(&'static str),
    /// A metainfo no origin of this mesh vouches for.
    #[error("a metainfo is not vouched for: {0}")]
    Vouch(#[from] VouchError),
    /// A frame where the rules do not allow it.
    #[error("unexpected {0:?} frame")]
    OutOfPlace(Kind),
    /// Payload that was never requested.
    #[error("payload of piece {piece} in channel {channel} was never requested")]
    NotRequested {
        /// Our channel.
        channel: u32,
        /// The piece's number.
        piece: u32,
    },
    /// Payload out of order or beyond the piece's end.
    #[error("payload of piece {piece} in channel {channel} at the wrong offset {offset}")]
    Offset {
        /// Our channel.
        channel: u32,
        /// The piece's number.
        piece: u32,
        /// The offset in the frame.
        offset: u32,
    },
    /// Too many pieces begun at once.
    #[error("too many pieces begun at once")]
    TooManyPartial,
    /// The parts of a call or answer do not fit together.
    #[error("the parts of a call do not fit together")]
    Parts,
    /// No common protocol version.
    #[error("no common protocol version")]
    Version,
}

/// Kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Who speaks, and which versions.
    Hello = 1,
    /// A swarm's message.
    Swarm = 2,
    /// A swarm's message that carries metainfo.
    Metainfo = 3,
    /// Bytes of a piece.
    Payload = 4,
    /// Part of a question.
    Call = 5,
    /// Part of an answer.
    Answer = 6,
    /// A question that gets no answer.
    CallFailed = 7,
    /// Are you there?
    Ping = 8,
    /// I am.
    Pong = 9,
    /// The connection ends.
    Bye = 10,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Hello,
        Self::Swarm,
        Self::Metainfo,
        Self::Payload,
        Self::Call,
        Self::Answer,
        Self::CallFailed,
        Self::Ping,
        Self::Pong,
        Self::Bye,
    ];

    /// Fewest and most bytes of a body.
    fn limits(self) -> (usize, usize) {
        match self {
            Self::Hello => (1, HELLO_BYTES_MAX),
            Self::Swarm => (1, CONTROL_BYTES_MAX),
            Self::Metainfo => (1, METAINFO_BYTES_MAX),
            Self::Payload => (SUBHEAD_BYTES + 1, SUBHEAD_BYTES + PAYLOAD_BYTES_MAX),
            Self::Call | Self::Answer => (SUBHEAD_BYTES, SUBHEAD_BYTES + PART_BYTES_MAX),
            Self::CallFailed => (5, 5),
            Self::Ping | Self::Pong => (8, 8),
            Self::Bye => (1, 1),
        }
    }
}

/// A frame's head, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The kind; `None` for an optional frame of an unknown kind, to be passed over.
    pub kind: Option<Kind>,
    /// Bytes of the body; within the kind's limits.
    pub len: usize,
}

impl Head {
    /// Reads and checks a head.
    ///
    /// # Errors
    /// [`ProtocolError`]: end the connection.
    pub fn decode(bytes: [u8; HEAD_BYTES]) -> Result<Self, ProtocolError> {
        let [number, flags, reserved @ .., l0, l1, l2, l3] = bytes;
        if flags & !FLAG_OPTIONAL != 0 || reserved != [0; 2] {
            return Err(ProtocolError::UnknownBits);
        }
        let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let Some(kind) = Kind::ALL.into_iter().find(|kind| *kind as u8 == number) else {
            let passable = flags & FLAG_OPTIONAL != 0 && len <= CONTROL_BYTES_MAX;
            return if passable {
                Ok(Self { kind: None, len })
            } else {
                Err(ProtocolError::UnknownKind(number))
            };
        };
        let (min, max) = kind.limits();
        if len < min || len > max {
            return Err(ProtocolError::Length { kind, bytes: len });
        }
        Ok(Self { kind: Some(kind), len })
    }

    /// The head of a frame of `kind` with a body of `len` bytes.
    pub fn encode(kind: Kind, len: usize) -> [u8; HEAD_BYTES] {
        let [l0, l1, l2, l3] = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
        [kind as u8, 0, 0, 0, l0, l1, l2, l3]
    }
}

/// Three numbers in front of bytes: channel, piece and offset of Payload; id, length and offset of a part.
pub type Subhead = [u32; 3];

/// Reads a [`Subhead`].
pub fn decode_subhead(bytes: [u8; SUBHEAD_BYTES]) -> Subhead {
    let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3] = bytes;
    [[a0, a1, a2, a3], [b0, b1, b2, b3], [c0, c1, c2, c3]].map(u32::from_be_bytes)
}

/// Head and subhead of a frame with `len` bytes after them.
pub fn encode_with_subhead(kind: Kind, subhead: Subhead, len: usize) -> [u8; HEAD_BYTES + SUBHEAD_BYTES] {
    let mut bytes = [0; HEAD_BYTES + SUBHEAD_BYTES];
    let (head, rest) = bytes.split_at_mut(HEAD_BYTES);
    head.copy_from_slice(&Head::encode(kind, SUBHEAD_BYTES + len));
    for (to, number) in rest.as_chunks_mut::<4>().0.iter_mut().zip(subhead) {
        *to = number.to_be_bytes();
    }
    bytes
}

/// What each side says first.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Hello {
    /// Newest protocol version spoken.
    #[n(0)]
    pub version: u16,
    /// Oldest protocol version spoken.
    #[n(1)]
    pub version_min: u16,
    /// Drawn at random when the process started: a connection from a restarted process replaces the old one.
    #[n(2)]
    pub instance: u64,
    /// Where the sender's data plane is dialled, best first; at most [`ENDPOINTS_MAX`].
    #[n(3)]
    pub endpoints: Vec<Endpoint>,
    /// A dialler counts its dials from 1: one that was given up may be heard after a later one. Zero from an acceptor.
    #[n(4)]
    pub dial: u64,
}

impl Hello {
    /// The version two sides speak.
    ///
    /// # Errors
    /// [`ProtocolError::Version`].
    pub fn common_version(&self, other: &Self) -> Result<u16, ProtocolError> {
        let version = self.version.min(other.version);
        let good = version >= self.version_min.max(other.version_min);
        if good { Ok(version) } else { Err(ProtocolError::Version) }
    }
}

/// Why a connection ends, as the peer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ByeReason {
    /// The engine does not want the peer.
    Dropped(DropReason),
    /// The process shuts down.
    Shutdown,
    /// The peer is banned for now.
    Banned,
    /// No room for another connection.
    Full,
    /// No common protocol version.
    Version,
    /// A code this version does not know.
    Other(u8),
}

const DROP_CODES: [(DropReason, u8); 5] = [
    (DropReason::CorruptPiece, 1),
    (DropReason::Protocol, 2),
    (DropReason::Stalled, 3),
    (DropReason::Idle, 4),
    (DropReason::Replaced, 5),
];

impl ByeReason {
    fn code(self) -> u8 {
        match self {
            Self::Dropped(why) => {
                DROP_CODES.iter().find(|(reason, _)| *reason == why).map_or(0, |(_, code)| *code)
            }
            Self::Shutdown => 6,
            Self::Banned => 7,
            Self::Full => 8,
            Self::Version => 9,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            6 => Self::Shutdown,
            7 => Self::Banned,
            8 => Self::Full,
            9 => Self::Version,
            _ => match DROP_CODES.iter().find(|(_, known)| *known == code) {
                Some((reason, _)) => Self::Dropped(*reason),
                None => Self::Other(code),
            },
        }
    }
}

/// Why a call gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallRefusal {
    /// The callee could not answer.
    Failed,
    /// The callee has too many open calls.
    Busy,
    /// A code this version does not know.
    Other(u8),
}

impl CallRefusal {
    fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Busy => 2,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Failed,
            2 => Self::Busy,
            _ => Self::Other(code),
        }
    }
}

/// A frame that is held whole: everything but Payload and parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The first frame.
    Hello(Hello),
    /// A swarm's message; its lists are within their limits, its metainfo is not checked yet.
    Swarm(Message),
    /// A call of ours gets no answer.
    CallFailed {
        /// The call.
        id: u32,
        /// Why.
        why: CallRefusal,
    },
    /// To be answered with the same number.
    Ping(u64),
    /// The answer to our Ping.
    Pong(u64),
    /// The last frame.
    Bye(ByeReason),
}

impl Frame {
    /// Appends the frame's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEAD_BYTES]);
        let kind = match self {
            Self::Hello(hello) => append_cbor(hello, out, Kind::Hello),
            Self::Swarm(message @ Message::Metainfo { .. }) => append_cbor(message, out, Kind::Metainfo),
            Self::Swarm(message) => append_cbor(message, out, Kind::Swarm),
            Self::CallFailed { id, why } => {
                out.extend_from_slice(&id.to_be_bytes());
                out.push(why.code());
                Kind::CallFailed
            }
            Self::Ping(number) | Self::Pong(number) => {
                out.extend_from_slice(&number.to_be_bytes());
                if matches!(self, Self::Ping(_)) { Kind::Ping } else { Kind::Pong }
            }
            Self::Bye(reason) => {
                out.push(reason.code());
                Kind::Bye
            }
        };
        let head = Head::encode(kind, out.len() - start - HEAD_BYTES);
        if let Some(room) = out.get_mut(start..start + HEAD_BYTES) {
            room.copy_from_slice(&head);
        }
    }

    /// Reads a body of `kind`, which is not Payload or a part.
    ///
    /// # Errors
    /// [`ProtocolError`]: end the connection.
    pub fn decode(kind: Kind, body: &[u8]) -> Result<Self, ProtocolError> {
        let malformed = || ProtocolError::Malformed { kind, why: "wrong length".to_owned() };
        let number = || body.try_into().map(u64::from_be_bytes).map_err(|_| malformed());
        match kind {
            Kind::Hello => {
                let hello: Hello = decode_cbor(kind, body)?;
                check_endpoints(&hello.endpoints)?;
                Ok(Self::Hello(hello))
            }
            Kind::Swarm | Kind::Metainfo => {
                let message: Message = decode_cbor(kind, body)?;
                if matches!(message, Message::Metainfo { .. }) != (kind == Kind::Metainfo) {
                    return Err(ProtocolError::OutOfPlace(kind));
                }
                check_lists(&message)?;
                Ok(Self::Swarm(message))
            }
            Kind::CallFailed => match *body {
                [a, b, c, d, code] => {
                    let id = u32::from_be_bytes([a, b, c, d]);
                    Ok(Self::CallFailed { id, why: CallRefusal::from_code(code) })
                }
                _ => Err(malformed()),
            },
            Kind::Ping => Ok(Self::Ping(number()?)),
            Kind::Pong => Ok(Self::Pong(number()?)),
            Kind::Bye => match *body {
                [code] => Ok(Self::Bye(ByeReason::from_code(code))),
                _ => Err(malformed()),
            },
            Kind::Payload | Kind::Call | Kind::Answer => Err(ProtocolError::OutOfPlace(kind)),
        }
    }
}

/// Checks the metainfo in a message before anybody acts on it.
///
/// # Errors
/// [`ProtocolError::Vouch`].
pub fn check_metainfo(message: &Message, mesh: &MeshPublicKey) -> Result<(), ProtocolError> {
    match message {
        Message::Metainfo { metainfo, .. } => Ok(metainfo.check(mesh)?),
        _ => Ok(()),
    }
}

fn check_endpoints(endpoints: &[Endpoint]) -> Result<(), ProtocolError> {
    if endpoints.len() > ENDPOINTS_MAX { Err(ProtocolError::TooMany("endpoints")) } else { Ok(()) }
}

fn check_hints(hints: &[PeerHint]) -> Result<(), ProtocolError> {
    if hints.len() > HINTS_MAX {
        return Err(ProtocolError::TooMany("hints"));
    }
    hints.iter().try_for_each(|hint| check_endpoints(&hint.endpoints))
}

fn check_lists(message: &Message) -> Result<(), ProtocolError> {
    match message {
        Message::Absent { peers, .. } | Message::Busy { peers, .. } | Message::Peers { peers, .. } => {
            check_hints(peers)
        }
        Message::Have { runs, .. } if runs.len() > HAVE_RUNS_MAX => Err(ProtocolError::TooMany("runs")),
        _ => Ok(()),
    }
}

fn append_cbor<T: minicbor::Encode<()>>(value: &T, out: &mut Vec<u8>, kind: Kind) -> Kind {
    #[expect(
        clippy::expect_used,
        reason = "writing to a Vec cannot fail and our encoders have no errors of their own"
    )]
    minicbor::encode(value, out).expect("encoding to memory cannot fail");
    kind
}

fn decode_cbor<T: for<'b> minicbor::Decode<'b, ()>>(kind: Kind, body: &[u8]) -> Result<T, ProtocolError> {
    let mut decoder = minicbor::Decoder::new(body);
    let value =
        decoder.decode().map_err(|error| ProtocolError::Malformed { kind, why: error.to_string() })?;
    if decoder.position() != body.len() {
        return Err(ProtocolError::Malformed { kind, why: "bytes follow the value".to_owned() });
    }
    Ok(value)
}

#[cfg(test)]
mod tests;
