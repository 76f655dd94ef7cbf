//! `shoal preheat`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use bytes::{Buf as _, BytesMut};
use bytesize::ByteSize;
use http_body_util::BodyExt as _;
use serde_json::json;
use shoal_daemon::preheat::{NodeReport, Platforms, Report, Scope, State, Take, Zones};
use shoal_types::{ImageReference, PeerId, Zone};

use crate::client;
use crate::progress::{Progress, Unit};

/// Longest line of the daemon's answer, in bytes: all nodes of a large fleet.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Flags of `shoal preheat`.
#[derive(clap::Args)]
pub(crate) struct PreheatArgs {
    /// The image, such as team/app:1 or docker.io/library/nginx:1.
    #[arg(value_name = "REFERENCE")]
    image: ImageReference,
    /// At the gateways of this zone; without it, of the zone of the daemon that is asked.
    #[arg(long, value_name = "ZONE", conflicts_with = "all")]
    zone: Option<Zone>,
    /// At the gateways of all zones.
    #[arg(long)]
    all: bool,
    /// At so many of them: always the same ones for a repository, as long as they live.
    #[arg(long, value_name = "N", conflicts_with = "percent", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// At so many of a hundred of them.
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u8).range(1..=100))]
    percent: Option<u8>,
    /// For this platform, such as linux/arm64, or all; repeatable. Without it, each gateway fetches for its own.
    #[arg(long = "platform", value_name = "PLATFORM")]
    platforms: Vec<String>,
    /// The ops listener of a gateway or an origin.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070", env = "SHOAL_OPS")]
    ops: SocketAddr,
    /// Print one JSON line at the end, and no progress.
    #[arg(long)]
    json: bool,
}

impl PreheatArgs {
    fn scope(&self) -> Scope {
        let zones = match &self.zone {
            Some(zone) => Zones::One(zone.clone()),
            None if self.all => Zones::All,
            None => Zones::Own,
        };
        let take = match (self.count, self.percent) {
            (Some(count), _) => Take::Count(count),
            (None, Some(percent)) => Take::Percent(percent),
            (None, None) => Take::All,
        };
        Scope { zones, take }
    }
}

/// Has gateways fetch an image, and waits for them.
pub(crate) async fn run(args: PreheatArgs) -> anyhow::Result<()> {
    Platforms::parse(&args.platforms)?;
    let image = args.image.to_string();
    let question = json!({ "image": image, "scope": args.scope(), "platforms": args.platforms });
    let response = client::post(args.ops, "/api/v1/preheats", &question).await?;
    let bar = Progress::new(&format!("preheat {image}"), 0, Unit::Bytes, args.json);
    let mut nodes = BTreeMap::new();
    let mut last = Report::default();
    let (mut body, mut buffer) = (response.into_body(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("the daemon broke off; the gateways go on")?.into_data() else {
            continue;
        };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end);
            buffer.advance(1);
            last = serde_json::from_slice(&line).context("the daemon's answer is not understood")?;
            nodes.extend(last.nodes.drain(..).map(|node| (node.peer, node)));
            show(&bar, &nodes);
        }
        if buffer.len() > LINE_BYTES_MAX {
            bail!("the daemon's answer is not understood: a line without an end");
        }
    }
    bar.finish();
    let report = Report { nodes: nodes.into_values().collect(), ..last };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        report.nodes.iter().for_each(print);
    }
    conclude(&report)
}

fn show(bar: &Progress, nodes: &BTreeMap<PeerId, NodeReport>) {
    let (mut done, mut total) = (0, 0);
    for (here, all) in nodes.values().map(|node| node.state.bytes()) {
        done += here;
        total += all;
    }
    let finished = nodes.values().filter(|node| node.state.is_final()).count();
    bar.set_length(total);
    bar.set_message(format!("{finished} of {} nodes", nodes.len()));
    bar.set_position(done);
}

fn print(node: &NodeReport) {
    let what = match &node.state {
        State::Done { total_bytes } => format!("done, {}", ByteSize::b(*total_bytes)),
        State::Failed { why } => format!("failed: {why}"),
        State::Gone { why } => format!("gone: {why}"),
        State::Waiting | State::Fetching { .. } => "not told any more".to_owned(),
    };
    println!("{}  {}  {what}", node.peer, node.zone);
}

/// Fails unless every node that is still there has it.
fn conclude(report: &Report) -> anyhow::Result<()> {
    if let Some(why) = &report.error {
        bail!("{}: {why}", report.image);
    }
    if !report.finished {
        bail!("the daemon broke off; the gateways go on");
    }
    let count = |wanted: fn(&State) -> bool| report.nodes.iter().filter(|node| wanted(&node.state)).count();
    let (done, gone) = (
        count(|state| matches!(state, State::Done { .. })),
        count(|state| matches!(state, State::Gone { .. })),
    );
    let failed = report.nodes.len() - done - gone;
    if failed > 0 || done == 0 {
        bail!(
            "{done} of {} nodes have {}; {failed} failed, {gone} are gone",
            report.nodes.len(),
            report.image
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(states: &[State]) -> Report {
        let node = |(number, state): (usize, &State)| NodeReport {
            peer: PeerId::from_public_key([number as u8; 32]),
            zone: "eu".parse().unwrap(),
            state: state.clone(),
        };
        Report {
            image: "a@b".into(),
            nodes: states.iter().enumerate().map(node).collect(),
            finished: true,
            error: None,
        }
    }

    #[test]
    fn it_succeeds_when_all_that_are_still_there_have_it() {
        let done = State::Done { total_bytes: 1 };
        let gone = State::Gone { why: "x".into() };
        let failed = State::Failed { why: "x".into() };
        assert!(conclude(&report(&[done.clone(), gone.clone()])).is_ok());
        assert!(conclude(&report(&[gone])).is_err());
        let why = conclude(&report(&[done.clone(), failed])).unwrap_err().to_string();
        assert!(why.contains("1 of 2 nodes") && why.contains("1 failed"), "{why}");
        assert!(conclude(&Report { finished: false, ..report(std::slice::from_ref(&done)) }).is_err());
        assert!(conclude(&Report { error: Some("no".into()), ..report(&[done]) }).is_err());
    }
}
