//! Values by number, whose places are used again.

use shoal_engine::prefetch::prefetch_at;

/// Holds what events only name, so that events stay small.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    values: Vec<Option<T>>,
    unused: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self { values: Vec::new(), unused: Vec::new() }
    }

    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if let Some(place) = self.unused.pop() {
            self.values[place as usize] = Some(value);
            return place;
        }
        self.values.push(Some(value));
        u32::try_from(self.values.len() - 1).unwrap_or(u32::MAX)
    }

    /// Prefetches where a value is.
    pub(crate) fn prefetch(&self, place: u32) {
        prefetch_at(&self.values, place as usize);
    }

    pub(crate) fn get(&self, place: u32) -> Option<&T> {
        self.values.get(place as usize)?.as_ref()
    }

    pub(crate) fn take(&mut self, place: u32) -> Option<T> {
        let value = self.values.get_mut(place as usize)?.take();
        if value.is_some() {
            self.unused.push(place);
        }
        value
    }
}
