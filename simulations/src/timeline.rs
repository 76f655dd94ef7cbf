//! Bytes over time.

/// Width of a column in nanoseconds at first; it doubles as a run gets long.
const WIDTH_START: u64 = 10_000_000;
/// Columns at most.
const COLUMNS_MAX: usize = 512;

/// Payload bytes verified in equal stretches of time.
#[derive(Clone, Debug)]
pub struct Timeline {
    width: u64,
    bytes: Vec<u64>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { width: WIDTH_START, bytes: Vec::new() }
    }
}

impl Timeline {
    fn widen(&mut self) {
        self.width *= 2;
        self.bytes = self.bytes.chunks(2).map(|pair| pair.iter().sum()).collect();
    }

    /// Adds all that another one counted.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        while self.width < other.width {
            self.widen();
        }
        while other.width < self.width {
            other.widen();
        }
        if self.bytes.len() < other.bytes.len() {
            self.bytes.resize(other.bytes.len(), 0);
        }
        self.bytes.iter_mut().zip(other.bytes).for_each(|(own, theirs)| *own += theirs);
    }

    pub(crate) fn add(&mut self, now: u64, bytes: u64) {
        while now / self.width >= COLUMNS_MAX as u64 {
            self.widen();
        }
        let column = (now / self.width) as usize;
        if column >= self.bytes.len() {
            self.bytes.resize(column + 1, 0);
        }
        self.bytes[column] += bytes;
    }

    /// Width of a stretch in seconds.
    pub fn width_secs(&self) -> f64 {
        self.width as f64 / 1e9
    }

    /// Bytes in each stretch.
    pub fn bytes(&self) -> &[u64] {
        &self.bytes
    }
}
