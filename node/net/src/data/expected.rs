//! Which payload is welcome on a connection.

use std::collections::{HashMap, VecDeque};

use shoal_types::Digest;

use super::pool::PieceBuf;
use super::protocol::ProtocolError;

/// Our channel and the piece's number.
pub(crate) type Key = (u32, u32);

/// The requests of one connection whose payload may come.
#[derive(Debug)]
pub(crate) struct Expected {
    open: HashMap<Key, Open>,
    /// Requests taken back, with the piece's length: payload may still be under way, from an old sending as well as
    /// for a renewed request.
    taken_back: HashMap<Key, u32>,
    taken_back_order: VecDeque<Key>,
    taken_back_max: usize,
    partial_max: usize,
    generation: u64,
}

#[derive(Debug)]
struct Open {
    digest: Digest,
    bytes: u32,
    filled: u32,
    buffer: Option<PieceBuf>,
    /// Tells a renewed request from the one whose frame is just being read.
    generation: u64,
}

/// What is to be done with a frame's payload.
#[derive(Debug)]
pub(crate) enum Begun {
    /// Read it into the buffer, which is to be taken from the pool when there is none yet.
    Fill { piece_bytes: u32, buffer: Option<PieceBuf>, generation: u64 },
    /// Pass over it.
    Discard,
}

/// What became of a piece after a frame.
#[derive(Debug)]
pub(crate) enum Ended {
    /// More is to come.
    Partial,
    /// It is all there.
    Whole(Digest, PieceBuf),
    /// Its request was taken back meanwhile.
    TakenBack,
}

impl Expected {
    pub(crate) fn new(partial_max: usize, taken_back_max: usize) -> Self {
        Self {
            open: HashMap::new(),
            taken_back: HashMap::new(),
            taken_back_order: VecDeque::new(),
            taken_back_max,
            partial_max,
            generation: 0,
        }
    }

    /// Payload of a piece is welcome from now on.
    pub(crate) fn expect(&mut self, key: Key, digest: Digest, bytes: u32) {
        self.generation += 1;
        let generation = self.generation;
        self.open.insert(key, Open { digest, bytes, filled: 0, buffer: None, generation });
    }

    /// Payload of a piece is not welcome any more; its buffer is freed.
    pub(crate) fn unexpect(&mut self, key: Key) {
        if let Some(open) = self.open.remove(&key) {
            self.take_back(key, open.bytes);
        }
    }

    fn take_back(&mut self, key: Key, bytes: u32) {
        if self.taken_back.insert(key, bytes).is_some() {
            return;
        }
        self.taken_back_order.push_back(key);
        if self.taken_back_order.len() > self.taken_back_max
            && let Some(oldest) = self.taken_back_order.pop_front()
        {
            self.taken_back.remove(&oldest);
        }
    }

    fn forget_taken_back(&mut self, key: Key) {
        self.taken_back.remove(&key);
        self.taken_back_order.retain(|other| *other != key);
    }

    /// A frame of `len` payload bytes for `key` begins at `offset`.
    pub(crate) fn begin(&mut self, key: Key, offset: u32, len: u32) -> Result<Begun, ProtocolError> {
        let (channel, piece) = key;
        let refused = ProtocolError::Offset { channel, piece, offset };
        let end = offset.checked_add(len).ok_or_else(|| refused.clone())?;
        let stale = self.taken_back.get(&key).copied();
        let partial = self.open.values().filter(|open| open.filled > 0).count();
        match (self.open.get_mut(&key), stale) {
            (None, None) => Err(ProtocolError::NotRequested { channel, piece }),
            (None, Some(bytes)) => {
                if end > bytes {
                    return Err(refused);
                }
                if end == bytes {
                    self.forget_taken_back(key);
                }
                Ok(Begun::Discard)
            }
            (Some(open), _) => {
                if end > open.bytes || (offset != open.filled && stale.is_none()) {
                    return Err(refused);
                }
                if offset != open.filled && offset > 0 {
                    // The rest of a sending whose beginning was passed over.
                    return Ok(Begun::Discard);
                }
                if open.filled == 0 && partial >= self.partial_max {
                    return Err(ProtocolError::TooManyPartial);
                }
                open.filled = offset;
                let (piece_bytes, generation) = (open.bytes, open.generation);
                Ok(Begun::Fill { piece_bytes, buffer: open.buffer.take(), generation })
            }
        }
    }

    /// Takes everything back and frees all buffers.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
        self.taken_back.clear();
        self.taken_back_order.clear();
    }

    /// Whether the request of `generation` still stands.
    pub(crate) fn stands(&self, key: Key, generation: u64) -> bool {
        self.open.get(&key).is_some_and(|open| open.generation == generation)
    }

    /// The frame that was begun is in `buffer`, which now holds `filled` bytes.
    pub(crate) fn end(&mut self, key: Key, generation: u64, filled: u32, buffer: PieceBuf) -> Ended {
        let Some(open) = self.open.get_mut(&key).filter(|open| open.generation == generation) else {
            return Ended::TakenBack;
        };
        open.filled = filled;
        if filled < open.bytes {
            open.buffer = Some(buffer);
            return Ended::Partial;
        }
        let digest = open.digest;
        self.open.remove(&key);
        Ended::Whole(digest, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::Pool;
    use super::*;
    use shoal_types::{Algorithm, DigestHasher};

    const KEY: Key = (1, 2);

    fn digest() -> Digest {
        DigestHasher::new(Algorithm::Sha256).finish()
    }

    fn frame(
        expected: &mut Expected,
        pool: &Pool,
        offset: u32,
        len: u32,
    ) -> Result<Option<Ended>, ProtocolError> {
        match expected.begin(KEY, offset, len)? {
            Begun::Discard => Ok(None),
            Begun::Fill { piece_bytes, buffer, generation } => {
                let buffer = buffer.unwrap_or_else(|| pool.try_take(piece_bytes as usize).unwrap());
                Ok(Some(expected.end(KEY, generation, offset + len, buffer)))
            }
        }
    }

    #[test]
    fn pieces_come_in_order_and_once() {
        let (mut expected, pool) = (Expected::new(2, 2), Pool::new(1 << 20));
        let unasked = frame(&mut expected, &pool, 0, 1).unwrap_err();
        assert_eq!(unasked, ProtocolError::NotRequested { channel: 1, piece: 2 });
        expected.expect(KEY, digest(), 10);
        for (offset, len) in [(1, 1), (0, 11), (u32::MAX, 2)] {
            let error = frame(&mut expected, &pool, offset, len).unwrap_err();
            assert_eq!(error, ProtocolError::Offset { channel: 1, piece: 2, offset });
        }
        assert!(matches!(frame(&mut expected, &pool, 0, 6), Ok(Some(Ended::Partial))));
        assert!(matches!(frame(&mut expected, &pool, 6, 4), Ok(Some(Ended::Whole(..)))));
        assert!(frame(&mut expected, &pool, 0, 1).is_err(), "a piece comes once");
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn payload_of_requests_taken_back_is_passed_over() {
        let (mut expected, pool) = (Expected::new(2, 2), Pool::new(1 << 20));
        expected.expect(KEY, digest(), 10);
        assert!(matches!(frame(&mut expected, &pool, 0, 6), Ok(Some(Ended::Partial))));
        expected.unexpect(KEY);
        assert_eq!(pool.in_use(), 0, "the buffer is freed at once");
        assert!(matches!(frame(&mut expected, &pool, 6, 4), Ok(None)));
        assert!(frame(&mut expected, &pool, 0, 1).is_err(), "the old sending has ended");
    }

    #[test]
    fn a_request_renewed_in_mid_piece_is_answered_anew() {
        let (mut expected, pool) = (Expected::new(2, 2), Pool::new(1 << 20));
        expected.expect(KEY, digest(), 10);
        assert!(matches!(frame(&mut expected, &pool, 0, 6), Ok(Some(Ended::Partial))));
        expected.unexpect(KEY);
        expected.expect(KEY, digest(), 10);
        assert!(matches!(frame(&mut expected, &pool, 6, 4), Ok(None)), "the rest of the old sending");
        assert!(matches!(frame(&mut expected, &pool, 0, 10), Ok(Some(Ended::Whole(..)))));
    }

    #[test]
    fn a_frame_under_way_does_not_count_for_a_renewed_request() {
        let (mut expected, pool) = (Expected::new(2, 2), Pool::new(1 << 20));
        expected.expect(KEY, digest(), 10);
        let Begun::Fill { generation, .. } = expected.begin(KEY, 0, 10).unwrap() else { panic!() };
        expected.unexpect(KEY);
        expected.expect(KEY, digest(), 10);
        assert!(!expected.stands(KEY, generation));
        let buffer = pool.try_take(10).unwrap();
        assert!(matches!(expected.end(KEY, generation, 10, buffer), Ended::TakenBack));
    }

    #[test]
    fn begun_pieces_and_requests_taken_back_are_bounded() {
        let mut expected = Expected::new(1, 2);
        let pool = Pool::new(1 << 20);
        for piece in 0..4 {
            expected.expect((1, piece), digest(), 10);
        }
        let Begun::Fill { generation, .. } = expected.begin((1, 0), 0, 5).unwrap() else { panic!() };
        assert!(matches!(expected.end((1, 0), generation, 5, pool.try_take(10).unwrap()), Ended::Partial));
        assert_eq!(expected.begin((1, 1), 0, 5).unwrap_err(), ProtocolError::TooManyPartial);
        for piece in 0..4 {
            expected.unexpect((1, piece));
        }
        assert_eq!((expected.taken_back.len(), expected.taken_back_order.len()), (2, 2));
    }
}
