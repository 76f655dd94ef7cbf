//! Figures that others count, copied at a scrape.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::table::{Kind, Row};

type Labels = Vec<(String, String)>;

/// The samples of one scrape, by metric.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<(Row, Vec<(Labels, f64)>)>);

impl Samples {
    /// Adds a metric without labels.
    pub(crate) fn one(&mut self, row: &Row, value: f64) {
        self.labelled(row, &[], value);
    }

    /// Adds a sample of a metric with labels.
    pub(crate) fn labelled(&mut self, row: &Row, labels: &[(&str, &str)], value: f64) {
        debug_assert!(labels.iter().all(|(name, _)| row.labels.contains(name)), "labels of {}", row.name);
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        match self.0.iter_mut().find(|(known, _)| known.name == row.name) {
            Some((_, samples)) => samples.push((labels, value)),
            None => self.0.push((row.clone(), vec![(labels, value)])),
        }
    }

    /// A registry that shows them.
    pub(crate) fn into_registry(self) -> Registry {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        registry
    }
}

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (row, samples) in &self.0 {
            let (base, unit) = row.split();
            let help = format!("{}.", row.help);
            let mut metric = encoder.encode_descriptor(base, &help, unit.as_ref(), row.kind.metric_type())?;
            if let [(labels, value)] = samples.as_slice()
                && labels.is_empty()
            {
                encode(row, *value, metric)?;
                continue;
            }
            for (labels, value) in samples {
                encode(row, *value, metric.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

fn encode(row: &Row, value: f64, encoder: MetricEncoder<'_>) -> fmt::Result {
    match row.kind {
        Kind::Counter => ConstCounter::new(value).encode(encoder),
        Kind::Gauge | Kind::Histogram => ConstGauge::new(value).encode(encoder),
    }
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    #[test]
    fn samples_of_a_metric_stand_together() {
        let mut samples = Samples::default();
        samples.labelled(&table::BACKEND_READ, &[("backend", "fs:/a")], 3.0);
        samples.one(&table::QUEUE_AGE, 1.5);
        samples.labelled(&table::BACKEND_READ, &[("backend", "fs:/b")], 4.0);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &samples.into_registry()).unwrap();
        let expected = "# HELP shoal_backend_read_bytes Bytes of blobs read from a backend.\n\
            # TYPE shoal_backend_read_bytes counter\n# UNIT shoal_backend_read_bytes bytes\n\
            shoal_backend_read_bytes_total{backend=\"fs:/a\"} 3.0\n\
            shoal_backend_read_bytes_total{backend=\"fs:/b\"} 4.0\n\
            # HELP shoal_backend_queue_age_seconds How long the oldest of them has been waiting.\n\
            # TYPE shoal_backend_queue_age_seconds gauge\n# UNIT shoal_backend_queue_age_seconds seconds\n\
            shoal_backend_queue_age_seconds 1.5\n# EOF\n";
        assert_eq!(text, expected);
    }
}
