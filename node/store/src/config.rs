//! What a store may use, and where.

use std::path::PathBuf;
use std::time::Duration;

/// Configuration of a [`Store`](crate::Store).
#[derive(Clone, Debug, PartialEq)]
pub struct StoreConfig {
    /// The store's own directory; made when missing. One process at a time.
    pub dir: PathBuf,
    /// Bytes of blobs and uploads to keep at most, each counted in whole [`ALLOCATION_BYTES`]. `None`: what the
    /// filesystem holds, less [`Self::free_bytes_min`].
    pub capacity_bytes: Option<u64>,
    /// Share of the capacity above which blobs are evicted.
    pub watermark_high: f64,
    /// Share of the capacity down to which eviction goes.
    pub watermark_low: f64,
    /// Bytes the filesystem keeps free: nothing is admitted below, so that the database can always write.
    pub free_bytes_min: u64,
    /// An upload is thrown away when nothing was appended for this long.
    pub upload_expiry: Duration,
    /// Uploads open at once at most; another is refused.
    pub uploads_max: usize,
    /// Blob files held open at most; the one used longest ago is closed.
    pub open_files_max: usize,
    /// Bytes of decoded metainfo held in memory at most (about; what is in use elsewhere is not counted).
    pub metainfo_cache_bytes: usize,
}

/// What a blob or upload is counted in: the block of the usual filesystems, so that a million tiny blobs weigh
/// what they take and the number of blobs is bounded by the capacity too.
pub const ALLOCATION_BYTES: u64 = 4096;

impl StoreConfig {
    /// The defaults, in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            capacity_bytes: None,
            watermark_high: 0.95,
            watermark_low: 0.85,
            free_bytes_min: 64 << 20,
            upload_expiry: Duration::from_secs(24 * 60 * 60),
            uploads_max: 1024,
            open_files_max: 256,
            metainfo_cache_bytes: 32 << 20,
        }
    }

    /// Checks the numbers against each other.
    ///
    /// # Errors
    /// [`ConfigError`], which says what to change.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let low_to_high = 0.0 < self.watermark_low && self.watermark_low <= self.watermark_high;
        if !low_to_high || self.watermark_high > 1.0 {
            return Err(ConfigError::Watermarks { low: self.watermark_low, high: self.watermark_high });
        }
        for (name, value) in [("uploads_max", self.uploads_max), ("open_files_max", self.open_files_max)] {
            if value == 0 {
                return Err(ConfigError::Zero(name));
            }
        }
        Ok(())
    }
}

/// Why a configuration makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// The watermarks are not `0 < low <= high <= 1`.
    #[error("the watermarks must satisfy 0 < low <= high <= 1, but low is {low} and high is {high}")]
    Watermarks {
        /// The low one.
        low: f64,
        /// The high one.
        high: f64,
    },
    /// A bound of zero lets nothing happen.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused() {
        let good = StoreConfig::new("x");
        assert_eq!(good.validate(), Ok(()));
        for (low, high) in [(0.0, 0.5), (0.9, 0.8), (0.5, 1.1), (f64::NAN, 0.9), (0.5, f64::NAN)] {
            let bad = StoreConfig { watermark_low: low, watermark_high: high, ..good.clone() };
            assert!(matches!(bad.validate(), Err(ConfigError::Watermarks { .. })), "{low} {high}");
        }
        let bad = StoreConfig { open_files_max: 0, ..good };
        assert_eq!(bad.validate(), Err(ConfigError::Zero("open_files_max")));
    }
}
