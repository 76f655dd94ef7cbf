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
    pub(crate) fn add(&mut self, now: u64, bytes: u64) {
        while now / self.width >= COLUMNS_MAX as u64 {
            self.width *= 2;
            self.bytes = self.bytes.chunks(2).map(|pair| pair.iter().sum()).collect();
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
