//! Inbound handshakes under way. When there are too many, the one that has lasted longest gives way: an honest one takes
//! milliseconds, so those that only hold their place are the first to go.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// A bounded set of handshakes, in the order they began.
#[derive(Clone, Debug)]
pub(crate) struct Handshakes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    open: VecDeque<(u64, CancellationToken)>,
}

/// One handshake, until it is dropped.
pub(crate) struct Handshake {
    set: Handshakes,
    number: u64,
    token: CancellationToken,
}

impl Handshakes {
    /// A set of at most `max` handshakes (at least one).
    pub(crate) fn new(max: usize) -> Self {
        Self(Arc::new(Inner { max: max.max(1), state: Mutex::default() }))
    }

    /// Begins one; the second value tells whether another one had to give way.
    pub(crate) fn begin(&self) -> (Handshake, bool) {
        let mut state = self.0.state.lock();
        let oldest = if state.open.len() >= self.0.max { state.open.pop_front() } else { None };
        let number = state.next;
        state.next += 1;
        let token = CancellationToken::new();
        state.open.push_back((number, token.clone()));
        drop(state);
        let evicted = oldest.is_some();
        if let Some((_, oldest)) = oldest {
            oldest.cancel();
        }
        (Handshake { set: self.clone(), number, token }, evicted)
    }
}

impl Handshake {
    /// Waits until this one has to give way.
    pub(crate) async fn evicted(&self) {
        self.token.cancelled().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut state = self.set.0.state.lock();
        let at = state.open.iter().position(|(number, _)| *number == self.number);
        if let Some(at) = at {
            state.open.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_gives_way() {
        let set = Handshakes::new(2);
        let (first, _) = set.begin();
        let (second, _) = set.begin();
        assert!(!first.token.is_cancelled() && !second.token.is_cancelled());
        let (third, evicted) = set.begin();
        assert!(evicted && first.token.is_cancelled() && !second.token.is_cancelled());
        drop((first, second));
        assert!(!set.begin().1);
        drop(third);
        assert_eq!(set.0.state.lock().open.len(), 0);
    }
}
