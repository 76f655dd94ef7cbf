//! Flows on few links, against what can be worked out by hand.

use super::*;

/// Runs the flows until nothing is left; returns when each piece was through.
fn run(network: &mut Network, mut due: Vec<Milestone>) -> Vec<(FlowId, u64)> {
    let mut ended = Vec::new();
    loop {
        due.sort_by_key(|milestone| std::cmp::Reverse(milestone.at));
        let tick = network.next_tick;
        match due.pop() {
            Some(next) if tick.is_none_or(|tick| next.at <= tick) => {
                if next.whole && network.owner(next.flow, next.serial).is_some() {
                    network.suspend(next.flow, next.at);
                    ended.push((next.flow, next.at));
                }
            }
            next => {
                due.extend(next);
                let Some(tick) = tick else { return ended };
                network.rebalance(tick, &mut due);
            }
        }
    }
}

fn network() -> Network {
    Network::new(NetworkConfig { overhead: 1.0, ..NetworkConfig::default() })
}

#[test]
fn two_flows_share_an_uplink_and_the_longer_one_gets_the_rest() {
    let mut network = network();
    let zone = network.zone(&Zone::default());
    let up = network.access(Some(10_000_000));
    let downs = [network.access(Some(10_000_000)), network.access(Some(10_000_000))];
    let flows = downs.map(|down| network.flow(0, up, down, zone, zone));
    let mut due = Vec::new();
    network.carry(flows[0], 0, 1_000_000, &mut due);
    network.carry(flows[1], 0, 2_000_000, &mut due);
    let ended = run(&mut network, due);
    let at: Vec<f64> = ended.iter().map(|(_, at)| *at as f64 / 1e6).collect();
    // 200 ms for the first, 300 ms for both, and the time until the rates are set at either change.
    assert!((198.0..206.0).contains(&at[0]) && (300.0..308.0).contains(&at[1]), "{at:?}");
}

#[test]
fn when_the_first_part_was_through_is_known_and_progress_is_told_after_a_while() {
    let mut network = network();
    let zone = network.zone(&Zone::default());
    let (up, down) = (network.access(Some(1_000_000)), network.access(None));
    let flow = network.flow(0, up, down, zone, zone);
    let mut due = Vec::new();
    network.carry(flow, 0, 1_000_000, &mut due);
    let (mut told, mut now) = (Vec::new(), 0);
    while !due.iter().any(|milestone| milestone.whole) {
        told.extend(due.drain(..).map(|milestone| milestone.at));
        now = network.next_tick.unwrap();
        network.rebalance(now, &mut due);
        if due.iter().any(|milestone| !milestone.whole) {
            let first = u64::from(network.since_first(flow, now));
            // 262,144 bytes at a megabyte a second.
            assert!(now.abs_diff(first + 262_144_000) < 1000, "{first} at {now}");
            network.tell(flow, now);
        }
    }
    // Not at 250 ms, for the first part was not through.
    let told: Vec<u64> = told.into_iter().map(|at| at / 1_000_000).collect();
    assert_eq!(told, [264, 514, 764], "{now}");
}

#[test]
fn what_a_full_wire_does_not_carry_is_late_and_not_lost() {
    for millis in [1, 5, 20] {
        let rebalance = Duration::from_millis(millis);
        let mut network =
            Network::new(NetworkConfig { rebalance, overhead: 1.0, ..NetworkConfig::default() });
        let zone = network.zone(&Zone::default());
        let up = network.access(Some(100_000_000));
        let (mut due, mut bytes) = (Vec::new(), 0);
        // Each ends at another time, and what is left of the wire is then the others'.
        for n in 0..400 {
            let down = network.access(Some(100_000_000));
            let flow = network.flow(0, up, down, zone, zone);
            network.carry(flow, 0, 1_000_000 + 40_000 * n, &mut due);
            bytes += 1_000_000 + 40_000 * n;
        }
        let ended = run(&mut network, due);
        assert_eq!(ended.len(), 400);
        let (last, least) = (ended[399].1 as f64 / 1e9, f64::from(bytes) / 1e8);
        // More than three intervals, one on average for each doubling of a flow's share, if it were lost.
        let late = 1.5 * rebalance.as_secs_f64();
        assert!((least..least + late).contains(&last), "{millis} ms: {last} s in place of {least} s");
    }
}

/// One uplink sends one piece after the other to one receiver, each asked for `gap` nanoseconds after the one before.
fn one_after_the_other(millis: u64, gap: u64) -> f64 {
    let rebalance = Duration::from_millis(millis);
    let mut network = Network::new(NetworkConfig { rebalance, overhead: 1.0, ..NetworkConfig::default() });
    let zone = network.zone(&Zone::default());
    let [up, down, other_up, other_down] = [(); 4].map(|()| network.access(Some(100_000_000)));
    let flow = network.flow(0, up, down, zone, zone);
    // Rates are set because of somebody else.
    let other = network.flow(1, other_up, other_down, zone, zone);
    let (mut due, mut now) = (Vec::new(), 0);
    network.carry(other, 0, 400_000_000, &mut due);
    for _ in 0..100 {
        network.carry(flow, now, 256_000, &mut due);
        loop {
            due.sort_by_key(|milestone: &Milestone| std::cmp::Reverse(milestone.at));
            let tick = network.next_tick.unwrap();
            match due.pop() {
                Some(next) if next.at <= tick => {
                    if next.whole && next.flow == flow && network.owner(flow, next.serial).is_some() {
                        network.suspend(flow, next.at);
                        now = next.at + gap;
                        break;
                    }
                }
                next => {
                    due.extend(next);
                    network.rebalance(tick, &mut due);
                }
            }
        }
        while let Some(tick) = network.next_tick.filter(|tick| *tick <= now) {
            network.rebalance(tick, &mut due);
        }
    }
    now as f64 / 1e9
}

#[test]
fn what_nobody_asked_for_is_not_carried_later() {
    for millis in [1, 5, 20] {
        let secs = one_after_the_other(millis, 800_000);
        let least = 100.0 * (0.002_56 + 0.000_8);
        assert!((least - 1e-6..least + 1e-3).contains(&secs), "{millis} ms: {secs} s in place of {least} s");
    }
}

/// An uplink of 100 MB/s, rates set every 20 ms, and flows to quick receivers.
fn quick_receivers<const N: usize>() -> (Network, [FlowId; N]) {
    let rebalance = Duration::from_millis(20);
    let mut network = Network::new(NetworkConfig { rebalance, overhead: 1.0, ..NetworkConfig::default() });
    let zone = network.zone(&Zone::default());
    let up = network.access(Some(100_000_000));
    let flows = [(); N].map(|()| {
        let down = network.access(Some(1_000_000_000));
        network.flow(0, up, down, zone, zone)
    });
    (network, flows)
}

#[test]
fn a_flow_after_a_silence_has_the_wire_and_no_more() {
    let (mut network, [first, second, later]) = quick_receivers();
    let mut due = Vec::new();
    network.carry(first, 0, 2_200_000, &mut due);
    network.carry(second, 0, 2_000_000, &mut due);
    // The second carries late what the first left, and ends in the same interval.
    let ended = run(&mut network, due);
    assert!((46_000_000..48_000_000).contains(&ended[1].1), "{ended:?}");
    let mut due = Vec::new();
    network.carry(later, 1_000_000_000, 1_000_000, &mut due);
    let ended = run(&mut network, due);
    assert!((1_010_000_000..1_010_001_000).contains(&ended[0].1), "{ended:?}");
}

#[test]
fn what_is_late_is_carried_in_the_next_interval_or_not_at_all() {
    let (mut network, flows) = quick_receivers::<3>();
    let mut due = Vec::new();
    // The first has the wire for 20 ms, the others a third from then on and two thirds of a wire late after 40 ms each; the first two
    // end 0.1 ms after that.
    for (flow, bytes) in flows.into_iter().zip([2_003_333, 673_333, 4_000_000]) {
        network.carry(flow, 0, bytes, &mut due);
    }
    let ended = run(&mut network, due);
    // 2 MB are left after 60 ms, when a third of an interval is late. That the first left is not.
    assert!((74_500_000..75_500_000).contains(&ended[2].1), "{ended:?}");
}

#[test]
fn a_long_link_is_entered_slowly() {
    let mut network = Network::new(NetworkConfig {
        overhead: 1.0,
        zone_delay: Duration::from_millis(50),
        ..NetworkConfig::default()
    });
    let zones = [network.zone(&"a".parse().unwrap()), network.zone(&"b".parse().unwrap())];
    let (up, down) = (network.access(None), network.access(None));
    let flow = network.flow(0, up, down, zones[0], zones[1]);
    let mut due = Vec::new();
    network.carry(flow, 0, 1_000_000, &mut due);
    let ended = run(&mut network, due);
    // log2(1 MB / 14.6 kB * ln 2 + 1) round trips of 100 ms.
    let secs = ended[0].1 as f64 / 1e9;
    assert!((0.5..0.65).contains(&secs), "{secs}");
    assert_eq!(network.crossed().map(|(.., bytes)| bytes).sum::<u64>(), 1_000_000);
}

#[test]
fn a_link_between_zones_is_shared_by_all() {
    let mut network = Network::new(NetworkConfig {
        overhead: 1.0,
        zone_delay: Duration::from_micros(500),
        zone_rate_bytes_per_sec: Some(4_000_000),
        ..NetworkConfig::default()
    });
    let zones = [network.zone(&"a".parse().unwrap()), network.zone(&"b".parse().unwrap())];
    let mut due = Vec::new();
    for _ in 0..4 {
        let (up, down) = (network.access(Some(10_000_000)), network.access(Some(10_000_000)));
        let flow = network.flow(0, up, down, zones[0], zones[1]);
        network.carry(flow, 0, 1_000_000, &mut due);
    }
    for (_, at) in run(&mut network, due) {
        assert!((990_000_000..1_010_000_000).contains(&at), "{at}");
    }
}
