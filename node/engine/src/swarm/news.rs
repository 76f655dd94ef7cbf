//! What members are to be told of: pieces that came here.

use shoal_types::Timestamp;

use crate::prefetch::{prefetch_at, prefetch_list};

/// Members to be told that are prefetched.
const DUE_MAX: usize = 24;
/// Cache lines of what as many members as a swarm has are owed.
const OWED_LINES_MAX: usize = 48;

/// What one member is still to be told of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owed {
    /// All pieces from this place on.
    from: usize,
    /// When it is told of them at the latest, if there is any among them that it may lack.
    pub(crate) until: Option<Timestamp>,
    /// Of what it was told it lacks so many more than are enough, or more; `None` when it may lack less than enough. Each piece that
    /// it gets and each that comes here makes them one less at most, and while they last nothing has to be counted.
    pub(crate) spare: Option<u32>,
}

impl Owed {
    /// Until when it can wait for certain when so many pieces have come, and what is spare then.
    pub(crate) fn waits(&self, now: Timestamp, fresh: usize) -> Option<(Timestamp, u32)> {
        let until = self.until.filter(|until| now < *until)?;
        Some((until, self.spare_after(fresh)?))
    }

    /// What is spare when so many pieces have come.
    pub(crate) fn spare_after(&self, fresh: usize) -> Option<u32> {
        self.spare?.checked_sub(u32::try_from(fresh).ok()?)
    }
}

/// The pieces that came, and how far members know of them. What is looked at of every member whenever some are told stands side by
/// side.
#[derive(Debug, Default)]
// In the order of use: docs/adr/0018.
#[repr(C)]
pub(crate) struct News {
    /// In the order of the members.
    owed: Vec<Owed>,
    /// In the order in which they came.
    pieces: Vec<u32>,
    /// How many of them members of the own zone were told of, or are owed.
    near: usize,
    /// The same for other zones.
    far: usize,
}

impl News {
    /// Prefetches what the member at a place is owed.
    pub(crate) fn prefetch_owed(&self, place: usize) {
        prefetch_at(&self.owed, place);
    }

    /// Prefetches what all members are owed.
    pub(crate) fn prefetch(&self) {
        prefetch_list(&self.owed, OWED_LINES_MAX);
    }

    /// The first few places of members that have to be looked at when the own zone is told of what is here by now.
    pub(crate) fn due(&self, now: Timestamp) -> impl Iterator<Item = usize> {
        let fresh = self.fresh(true);
        let due = self.owed.iter().enumerate().filter(move |(_, owed)| owed.waits(now, fresh).is_none());
        due.map(|(place, _)| place).take(DUE_MAX)
    }

    /// Takes in a member, behind all others.
    pub(crate) fn add_member(&mut self) {
        self.owed.push(Owed::default());
    }

    /// Takes out the member at a place; the last one comes to its place.
    pub(crate) fn swap_remove_member(&mut self, place: usize) {
        if place < self.owed.len() {
            self.owed.swap_remove(place);
        }
    }

    /// A piece came. `abroad` says that other zones are to be told of it too.
    pub(crate) fn add(&mut self, piece: u32, abroad: bool) {
        self.pieces.push(piece);
        if !abroad {
            self.far = self.pieces.len();
        }
    }

    /// How many came since members were told last.
    pub(crate) fn fresh(&self, same_zone: bool) -> usize {
        self.pieces.len().saturating_sub(if same_zone { self.near } else { self.far })
    }

    /// A member learns all there is by other means: what was told to others it is not owed.
    pub(crate) fn begin(&mut self, place: usize, same_zone: bool) {
        let from = if same_zone { self.near } else { self.far };
        if let Some(owed) = self.owed.get_mut(place) {
            *owed = Owed { from, ..Owed::default() };
        }
    }

    /// A member got so many pieces.
    pub(crate) fn heard(&mut self, place: usize, pieces: u32) {
        if let Some(owed) = self.owed.get_mut(place) {
            owed.spare = owed.spare.and_then(|spare| spare.checked_sub(pieces));
        }
    }

    /// A member has everything now, or quite other pieces than it was known to have.
    pub(crate) fn heard_anew(&mut self, place: usize) {
        if let Some(owed) = self.owed.get_mut(place) {
            owed.spare = None;
        }
    }

    /// Lets `tell` decide about every member: it is given the member's place, what is known of what it is owed, the pieces that it is
    /// owed, and how many at their end are fresh, and says whether it told. `over` says that no piece will come any more.
    pub(crate) fn tell(
        &mut self,
        same_zone: bool,
        over: bool,
        mut tell: impl FnMut(usize, &mut Owed, &[u32], usize) -> bool,
    ) {
        let (end, fresh) = (self.pieces.len(), self.fresh(same_zone));
        for (place, owed) in self.owed.iter_mut().enumerate() {
            let pieces = self.pieces.get(owed.from..).unwrap_or_default();
            if tell(place, owed, pieces, fresh) {
                *owed = Owed { from: end, ..Owed::default() };
            }
        }
        *(if same_zone { &mut self.near } else { &mut self.far }) = end;
        if over && self.near == end && self.far == end {
            self.pieces = Vec::new();
            (self.near, self.far) = (0, 0);
            self.owed.iter_mut().for_each(|owed| owed.from = 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each member is told now, if all are.
    fn told(news: &mut News, same_zone: bool, over: bool) -> Vec<(Vec<u32>, usize)> {
        let mut told = Vec::new();
        news.tell(same_zone, over, |_, _, pieces, fresh| {
            told.push((pieces.to_vec(), fresh));
            true
        });
        told
    }

    #[test]
    fn each_is_owed_what_came_since_it_was_told() {
        let mut news = News::default();
        (0..3).for_each(|_| news.add_member());
        [7, 3].into_iter().for_each(|piece| news.add(piece, true));
        news.begin(2, false);
        let mut places = Vec::new();
        news.tell(true, false, |place, _, pieces, fresh| {
            places.push(place);
            assert_eq!((pieces, fresh), (&[7, 3][..], 2));
            place == 1
        });
        assert_eq!(places, [0, 1, 2]);
        news.add(9, true);
        assert_eq!((news.fresh(true), news.fresh(false)), (1, 3));
        // One that begins is owed what nobody was told of.
        news.begin(2, true);
        assert_eq!(told(&mut news, true, false), [(vec![7, 3, 9], 1), (vec![9], 1), (vec![9], 1)]);
        // The last takes the place of one that goes.
        news.add(1, false);
        assert_eq!(news.fresh(false), 0);
        news.begin(2, true);
        news.swap_remove_member(0);
        assert_eq!(told(&mut news, true, true), [(vec![1], 1), (vec![1], 1)]);
        assert_eq!(told(&mut news, true, true), [(vec![], 0), (vec![], 0)]);
    }

    #[test]
    fn spare_is_used_up_by_what_either_gets() {
        let mut news = News::default();
        news.add_member();
        let mut spare = |heard: Option<u32>, fresh: usize| {
            match heard {
                Some(pieces) => news.heard(0, pieces),
                None => news.heard_anew(0),
            }
            let mut left = None;
            news.tell(true, false, |_, owed, _, _| {
                left = owed.spare_after(fresh);
                owed.spare = Some(3);
                false
            });
            left
        };
        assert_eq!(spare(Some(0), 0), None);
        assert_eq!(spare(Some(0), 0), Some(3));
        assert_eq!(spare(Some(1), 2), Some(0));
        assert_eq!(spare(Some(1), 3), None);
        assert_eq!(spare(Some(3), 0), Some(0));
        assert_eq!(spare(Some(4), 0), None);
        assert_eq!(spare(Some(0), 0), Some(3));
        assert_eq!(spare(None, 0), None);
    }
}
