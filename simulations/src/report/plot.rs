//! A report as a picture.

use std::fmt::Write as _;

use super::Report;

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 46.0;
const GAP: f64 = 70.0;

/// An SVG picture: above, the share of hosts that are done over time beside what is physically possible; below, the
/// bytes that arrive over time.
pub fn plot(report: &Report) -> String {
    let end =
        report.cdf.iter().chain(&report.bound_cdf).map(|point| point.0).fold(report.took, f64::max).max(1e-9);
    let mut svg = String::new();
    let (width, height) = (LEFT + WIDTH + 30.0, TOP + 2.0 * HEIGHT + GAP + 60.0);
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"16\">{}: {} hosts, seed {}</text>",
        escape(&report.scenario),
        report.hosts,
        report.seed
    );
    axes(&mut svg, TOP, end, 1.0, "share of hosts complete");
    steps(&mut svg, TOP, end, &report.bound_cdf, "#999999", "6 4");
    steps(&mut svg, TOP, end, &report.cdf, "#1f6fb4", "none");
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" fill=\"#1f6fb4\">hosts</text><text x=\"{}\" y=\"{}\" fill=\"#777777\">bound</text>",
        LEFT + WIDTH - 90.0,
        TOP + HEIGHT - 30.0,
        LEFT + WIDTH - 90.0,
        TOP + HEIGHT - 12.0
    );
    let below = TOP + HEIGHT + GAP;
    let rate = |bytes: &u64| *bytes as f64 / report.timeline_secs.max(1e-9) / 1e9;
    let top = report.timeline.iter().map(rate).fold(0.0, f64::max).max(1e-9);
    axes(&mut svg, below, end, top, "GB/s arriving, all hosts");
    let mut points = String::new();
    for (column, bytes) in report.timeline.iter().enumerate() {
        let at = (column as f64 + 0.5) * report.timeline_secs;
        if at <= end {
            let _ = write!(points, "{:.1},{:.1} ", x(at, end), y(below, rate(bytes) / top));
        }
    }
    let _ = writeln!(
        svg,
        "<polyline points=\"{points}\" fill=\"none\" stroke=\"#2a8f4f\" stroke-width=\"1.5\"/>\n</svg>"
    );
    svg
}

fn x(secs: f64, end: f64) -> f64 {
    LEFT + secs / end * WIDTH
}

fn y(top: f64, share: f64) -> f64 {
    top + HEIGHT * (1.0 - share)
}

fn axes(svg: &mut String, top: f64, end: f64, most: f64, name: &str) {
    let _ = writeln!(
        svg,
        "<path d=\"M{LEFT} {top}V{}H{}\" fill=\"none\" stroke=\"black\"/><text x=\"{LEFT}\" y=\"{}\">{name}</text>",
        top + HEIGHT,
        LEFT + WIDTH,
        top - 6.0
    );
    for tick in 0..=5u8 {
        let part = f64::from(tick) / 5.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.3} s</text><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.2}</text>",
            LEFT + WIDTH * part,
            top + HEIGHT + 18.0,
            end * part,
            LEFT - 6.0,
            y(top, part) + 4.0,
            most * part
        );
    }
}

fn steps(svg: &mut String, top: f64, end: f64, points: &[(f64, f64)], colour: &str, dashes: &str) {
    let mut path = format!("M{:.1} {:.1}", x(0.0, end), y(top, 0.0));
    for (secs, share) in points {
        let _ = write!(path, "H{:.1}V{:.1}", x(*secs, end), y(top, *share));
    }
    let _ = writeln!(
        svg,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>"
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
