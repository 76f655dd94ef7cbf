//! Weighted max-min fair rates.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

/// A flow crosses at most an access link at either end and one link between zones.
const LINKS: usize = 3;

/// A flow that wants as much as it can get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    /// What it crosses; unused places repeat the first.
    pub(crate) crosses: [u32; LINKS],
    /// Its part of what it crosses, relative to others'.
    pub(crate) weight: f64,
    /// Its own limit in bytes per second (its congestion window).
    pub(crate) limit: f64,
    /// What it gets, in bytes per second by weight.
    pub(crate) level: f64,
}

/// The level of a flow whose rate is open.
const OPEN: f64 = -1.0;

impl Demand {
    /// What it gets, in bytes per second.
    pub(crate) fn rate(&self) -> f64 {
        (self.level * self.weight).min(self.limit)
    }
}

/// A link while rates are set.
#[derive(Clone, Copy, Debug)]
struct Link {
    left: f64,
    /// Of its flows whose rates are open.
    weight: f64,
    /// How many these are.
    open: u32,
    /// Where its flows are in the list of all of them.
    first: u32,
    end: u32,
    /// The level of the last of its flows whose rate was set, which is the highest.
    top: f64,
}

impl Link {
    /// What it can offer its open flows, by weight.
    fn level(&self) -> f64 {
        // A rest of rounding is nothing.
        if self.left > 0.0 { self.left / self.weight } else { 0.0 }
    }
}

/// Shares capacities by progressive filling. Buffers live here so that nothing is allocated each time.
#[derive(Debug, Default)]
pub(crate) struct Filler {
    links: Vec<Link>,
    /// The flows of each link, side by side.
    flows: Vec<u32>,
    /// Links by what they offered when that was looked at last, as bits, in whose order positive numbers are too.
    offers: BinaryHeap<Reverse<(u64, u32)>>,
    /// Flows' own limits by weight, the lowest last.
    limited: Vec<(f64, u32)>,
}

impl Filler {
    /// Sets every demand's level; `left` begins as the capacities and ends as what nobody uses.
    ///
    /// The level of all flows rises from zero (Bertsekas and Gallager, Data Networks, 6.5.2). Where it meets what a link offers its open
    /// flows, these are set, and where it meets a flow's own limit, that one is. What is set takes no more of other links than they
    /// offered, so that what links offer only rises: of what was looked at earlier the lowest is looked at anew, until it has not risen.
    pub(crate) fn fill(&mut self, left: &mut [f64], demands: &mut [Demand]) {
        self.prepare(left, demands);
        while let Some(mut lowest) = self.offers.peek_mut() {
            let Reverse((known, number)) = *lowest;
            let link = self.links[number as usize];
            let level = link.level();
            if link.open == 0 {
                PeekMut::pop(lowest);
            } else if level.to_bits() > known {
                *lowest = Reverse((level.to_bits(), number));
            } else if let Some((limit, at)) = self.limited.pop_if(|(limit, _)| *limit <= level) {
                drop(lowest);
                set(&mut self.links, &mut demands[at as usize], limit);
            } else {
                PeekMut::pop(lowest);
                for at in &self.flows[link.first as usize..link.end as usize] {
                    set(&mut self.links, &mut demands[*at as usize], level);
                }
            }
        }
        for (left, link) in left.iter_mut().zip(&self.links) {
            *left = link.left.max(0.0);
        }
    }

    /// Lists the flows of each link, what each link offers, and the flows' own limits.
    fn prepare(&mut self, left: &[f64], demands: &mut [Demand]) {
        let unused = Link { left: 0.0, weight: 0.0, open: 0, first: 0, end: 0, top: 0.0 };
        self.links.clear();
        self.links.extend(left.iter().map(|left| Link { left: *left, ..unused }));
        self.limited.clear();
        for (demand, at) in demands.iter_mut().zip(0..) {
            demand.level = OPEN;
            if demand.limit < f64::INFINITY {
                self.limited.push((demand.limit / demand.weight, at));
            }
            for number in distinct(&demand.crosses) {
                let link = &mut self.links[*number as usize];
                link.weight += demand.weight;
                link.open += 1;
            }
        }
        self.limited.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
        let mut count = 0;
        for link in &mut self.links {
            (link.first, link.end) = (count, count);
            count += link.open;
        }
        self.flows.clear();
        self.flows.resize(count as usize, 0);
        for (demand, at) in demands.iter().zip(0..) {
            for number in distinct(&demand.crosses) {
                let end = &mut self.links[*number as usize].end;
                self.flows[*end as usize] = at;
                *end += 1;
            }
        }
        let used = self.links.iter().zip(0..).filter(|(link, _)| link.open > 0);
        self.offers.clear();
        self.offers.extend(used.map(|(link, number)| Reverse((link.level().to_bits(), number))));
    }

    /// The highest level of a link's flows.
    pub(crate) fn top(&self, link: usize) -> f64 {
        self.links[link].top
    }
}

/// Sets an open flow's level.
fn set(links: &mut [Link], demand: &mut Demand, level: f64) {
    if demand.level != OPEN {
        return;
    }
    demand.level = level;
    let rate = demand.rate();
    for number in distinct(&demand.crosses) {
        let link = &mut links[*number as usize];
        link.left -= rate;
        link.weight -= demand.weight;
        link.open -= 1;
        link.top = level;
    }
}

/// What a flow crosses, once each.
pub(crate) fn distinct(crosses: &[u32; LINKS]) -> &[u32] {
    if crosses[2] == crosses[0] { &crosses[..2] } else { crosses }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::{Rng as _, SeedableRng as _};

    fn demand(crosses: [u32; 3]) -> Demand {
        Demand { crosses, weight: 1.0, limit: f64::INFINITY, level: 0.0 }
    }

    #[test]
    fn a_slow_receiver_leaves_the_rest_to_the_others() {
        // One sender of 100, receivers of 10 and 100: 10 and 90.
        let mut left = vec![100.0, 10.0, 100.0];
        let mut demands = [demand([0, 1, 0]), demand([0, 2, 0])];
        Filler::default().fill(&mut left, &mut demands);
        assert_eq!(demands.map(|demand| demand.rate()), [10.0, 90.0]);
    }

    #[test]
    fn a_wire_is_shared_by_weight() {
        let mut left = vec![100.0, 100.0, 100.0];
        let mut demands = [demand([0, 1, 0]), demand([0, 2, 0])];
        demands[1].weight = 0.25;
        Filler::default().fill(&mut left, &mut demands);
        assert_eq!(demands.map(|demand| demand.rate()), [80.0, 20.0]);
    }

    #[test]
    fn a_limited_flow_leaves_the_rest_to_the_others() {
        let mut left = vec![100.0, 100.0, 100.0];
        let mut demands = [demand([0, 1, 0]), demand([0, 2, 0])];
        demands[0].limit = 5.0;
        Filler::default().fill(&mut left, &mut demands);
        assert_eq!(demands.map(|demand| demand.rate()), [5.0, 95.0]);
    }

    /// Each flow is at its own limit, or crosses a link that has nothing left and of which no flow has more by weight: there is one
    /// sharing out like that (Bertsekas and Gallager, Data Networks, 6.5.2).
    #[test]
    fn random_networks_are_shared_fairly() {
        let mut random = rand_pcg::Pcg64::seed_from_u64(5);
        let mut draw = |bound: u64| random.next_u64() % bound;
        let mut filler = Filler::default();
        let same = |a: f64, b: f64| (a - b).abs() < 1e-6;
        let (mut limited, mut held) = (0, 0);
        for _ in 0..1000 {
            let (nodes, flows) = (2 + draw(20), 1 + draw(80));
            // Some carry nothing.
            let mut capacities: Vec<f64> = (0..2 * nodes).map(|_| draw(11) as f64 * 10.0).collect();
            capacities.push(30.0);
            let link = 2 * nodes as u32;
            let mut demands: Vec<Demand> = (0..flows)
                .map(|_| {
                    let from = draw(nodes) as u32;
                    let crosses = [from, nodes as u32 + draw(nodes) as u32, from];
                    let far = Demand { weight: 0.5, ..demand([crosses[0], crosses[1], link]) };
                    let own = if draw(3) == 0 { far } else { demand(crosses) };
                    let limit = (1 + draw(8)) as f64 * 2.0;
                    if draw(3) == 0 { Demand { limit, ..own } } else { own }
                })
                .collect();
            let mut left = capacities.clone();
            filler.fill(&mut left, &mut demands);
            let mut used = vec![0.0; capacities.len()];
            let mut tops = vec![0.0f64; capacities.len()];
            for demand in &demands {
                for link in distinct(&demand.crosses) {
                    used[*link as usize] += demand.rate();
                    tops[*link as usize] = tops[*link as usize].max(demand.level);
                }
            }
            for (link, capacity) in capacities.iter().enumerate() {
                assert!(same(used[link] + left[link], *capacity), "{used:?} used of {capacities:?}");
                assert!(
                    same(filler.top(link), tops[link]),
                    "{} in place of {}",
                    filler.top(link),
                    tops[link]
                );
            }
            for demand in &demands {
                let holds =
                    |link: &u32| same(left[*link as usize], 0.0) && same(demand.level, tops[*link as usize]);
                let is_held = distinct(&demand.crosses).iter().any(holds);
                assert!(demand.rate() <= demand.limit && demand.rate() >= 0.0, "{demand:?}");
                assert!(is_held || same(demand.rate(), demand.limit), "{demand:?} could have more");
                limited += usize::from(!is_held);
                held += usize::from(is_held);
            }
        }
        assert!(limited > 2000 && held > 20_000, "{limited} {held}");
    }
}
