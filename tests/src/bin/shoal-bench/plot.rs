//! The ratio of the last host's time to the bound, as bars.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::args::System;
use crate::report::Results;

const SIZE: (u32, u32) = (1000, 460);
/// Bars end here; a single registry's would make all others invisible.
const RATIO_MAX: f64 = 3.0;

/// Draws `results` to an SVG file.
pub(crate) fn draw(results: &Results, file: &Path) -> Result<()> {
    let bars: Vec<(String, System, f64)> = results
        .medians()
        .into_iter()
        .filter_map(|(scenario, system, figures, _)| {
            Some((scenario.name.to_owned(), system, figures.last_ratio?))
        })
        .collect();
    if bars.is_empty() {
        return Ok(());
    }
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("{}: {error}", file.display());
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            "Last host's time over the bound (1 = size / slowest rate; 1.046 with headers)",
            ("sans-serif", 18),
        )
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(48)
        .build_cartesian_2d(0f64..bars.len() as f64, 0f64..RATIO_MAX)
        .map_err(|error| failed(&error))?;
    let label = |x: &f64| {
        bars.get(x.floor() as usize)
            .map_or_else(String::new, |(name, system, _)| format!("{name} {}", system.name()))
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_labels(7)
        .draw()
        .map_err(|error| failed(&error))?;
    for (at, (_, system, ratio)) in bars.iter().enumerate() {
        let colour = match system {
            System::Shoal => RGBColor(0, 110, 160),
            System::Aria2 => RGBColor(220, 150, 40),
            System::Registry => RGBColor(150, 150, 150),
        };
        let (left, right) = (at as f64 + 0.12, at as f64 + 0.88);
        let bar = Rectangle::new([(left, 0.0), (right, ratio.min(RATIO_MAX))], colour.filled());
        let above = (left, (ratio + 0.08).min(RATIO_MAX - 0.02));
        let text = Text::new(format!("{ratio:.2}"), above, ("sans-serif", 13));
        let name = Text::new(
            label(&(at as f64)),
            (left, 0.06),
            ("sans-serif", 11).into_font().transform(FontTransform::Rotate270).color(&WHITE),
        );
        chart.draw_series(std::iter::once(bar)).map_err(|error| failed(&error))?;
        chart.draw_series(std::iter::once(text)).map_err(|error| failed(&error))?;
        chart.draw_series(std::iter::once(name)).map_err(|error| failed(&error))?;
    }
    root.present().map_err(|error| failed(&error))
}
