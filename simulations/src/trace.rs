//! A hash of everything that happened, and the story of one host or piece.

use shoal_engine::io::Effect;
use shoal_engine::message::Message;
use shoal_types::Timestamp;

/// What a trace tells; everything it is not asked for is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceFilter {
    /// Only this host.
    pub host: Option<usize>,
    /// Only this piece, of any blob.
    pub piece: Option<u32>,
}

/// Lines kept at most; a trace that long is of no use to a reader.
const LINES_MAX: usize = 200_000;

/// The start of FNV-1a, taken a word at a time.
pub(crate) const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

/// A hash that goes on by a word.
pub(crate) fn hash_word(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
}

/// A line of a story: when, which host, what.
pub(crate) type Line = (u64, u32, String);

/// What is told of some nodes.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) filter: Option<TraceFilter>,
    pub(crate) lines: Vec<Line>,
}

impl Trace {
    /// Takes in an effect: into the node's hash, and into the story if it belongs there.
    pub(crate) fn effect(&mut self, hash: &mut u64, now: u64, node: u32, effect: &Effect) {
        let (tag, detail) = tag(effect);
        *hash = hash_word(hash_word(*hash, now), u64::from(tag) << 32 | u64::from(detail));
        if let Some(filter) = self.filter {
            let host = filter.host.is_none_or(|host| host == node as usize);
            let piece = filter.piece.is_none_or(|piece| piece_of(effect) == Some(piece));
            if host && piece && self.lines.len() < LINES_MAX {
                self.lines.push((now, node, brief(effect)));
            }
        }
    }
}

/// A line as it is shown.
pub(crate) fn shown((at, node, what): &Line) -> String {
    let at = Timestamp::from_start(std::time::Duration::from_nanos(*at)).since_start();
    format!("{:>12.6} host {node}: {what}", at.as_secs_f64())
}

fn brief(effect: &Effect) -> String {
    match effect {
        Effect::Send { peer, message: Message::Metainfo { .. } } => {
            format!("Send metainfo to {}", peer.short())
        }
        Effect::Send { peer, message: Message::Bitfield { .. } } => {
            format!("Send bitfield to {}", peer.short())
        }
        Effect::Send { peer, message: Message::Peers { peers, .. } } => {
            format!("Send {} peers to {}", peers.len(), peer.short())
        }
        Effect::Send { peer, message } => format!("Send {message:?} to {}", peer.short()),
        Effect::CreateBlob { metainfo, .. } => format!("CreateBlob {}", metainfo.digest()),
        Effect::ReaderStarted { reader, .. } => format!("ReaderStarted {reader:?}"),
        Effect::Report(report) => format!("{:?}", report.event),
        other => format!("{other:?}"),
    }
}

fn piece_of(effect: &Effect) -> Option<u32> {
    match effect {
        Effect::Send {
            message:
                Message::Request { piece, .. } | Message::Cancel { piece, .. } | Message::Busy { piece, .. },
            ..
        } => Some(*piece),
        Effect::Unexpect { piece, .. } => Some(*piece),
        Effect::Expect { piece, .. }
        | Effect::SendPiece { piece, .. }
        | Effect::CancelSend { piece, .. }
        | Effect::VerifyPiece { piece, .. }
        | Effect::FetchFromBackend { piece, .. } => Some(piece.get()),
        _ => None,
    }
}

/// A number for the kind of an effect, which must not change with the compiler, and one for what it is about.
fn tag(effect: &Effect) -> (u8, u32) {
    let piece = piece_of(effect).unwrap_or(0);
    let tag = match effect {
        Effect::Connect { .. } => 1,
        Effect::Disconnect { .. } => 2,
        Effect::Send { message, .. } => match message {
            Message::Join { .. } => 3,
            Message::Absent { .. } => 4,
            Message::Metainfo { .. } => 5,
            Message::Bitfield { .. } => 6,
            Message::Have { runs, .. } => return (7, runs.first().map_or(0, |(first, _)| *first)),
            Message::Request { .. } => 8,
            Message::Cancel { .. } => 9,
            Message::Busy { .. } => 10,
            Message::Peers { .. } => 11,
            Message::Leave { .. } => 12,
        },
        Effect::Expect { .. } => 13,
        Effect::Unexpect { .. } => 14,
        Effect::SendPiece { .. } => 15,
        Effect::CancelSend { .. } => 16,
        Effect::OpenBlob { .. } => 17,
        Effect::CreateBlob { .. } => 18,
        Effect::Lookup { .. } => 19,
        Effect::Provide { .. } => 20,
        Effect::VerifyPiece { .. } => 21,
        Effect::DropBuffer { .. } => 22,
        Effect::FetchFromBackend { .. } => 23,
        Effect::FinishBlob { .. } => 24,
        Effect::ReaderStarted { .. } => 25,
        Effect::ReaderAdvance { .. } => 26,
        Effect::ReaderDone { .. } => 27,
        Effect::ReaderFailed { .. } => 28,
        Effect::Report(_) => 29,
    };
    (tag, piece)
}

/// Bytes of a message on the wire, from its contents: a frame's head, small integers, and what is long.
pub(crate) fn wire_bytes(message: &Message) -> u64 {
    const HEAD: usize = 8;
    const HINT: usize = 38 + 12 + 24;
    let body = match message {
        Message::Join { .. } => 44,
        Message::Absent { peers, .. } => 4 + peers.len() * HINT,
        Message::Metainfo { metainfo, .. } => 420 + metainfo.value().layout().piece_count() as usize * 32,
        Message::Bitfield { pieces, .. } => 6 + pieces.len(),
        Message::Have { runs, .. } => 4 + runs.len() * 5,
        Message::Request { .. } | Message::Cancel { .. } => 8,
        Message::Busy { peers, .. } => 8 + peers.len() * HINT,
        Message::Peers { peers, .. } => 4 + peers.len() * HINT,
        Message::Leave { .. } => 4,
    };
    (HEAD + body) as u64
}
