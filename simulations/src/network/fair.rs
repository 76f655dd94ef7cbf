//! Weighted max-min fair rates.

/// Rounds in which bottlenecks are found exactly; what is left then is shared out in sequential passes.
const ROUNDS: usize = 12;
/// Sequential passes: each later one hands out what the flows of the one before could not use.
const PASSES: usize = 3;
/// A share within this of another counts as equal.
const EQUAL: f64 = 1.000_001;
/// No weight at all: far less than a flow's.
const NOTHING: f64 = 1e-6;
/// A flow crosses at most an access link at either end and one link between zones.
pub(crate) const RESOURCES: usize = 3;

/// A flow that wants as much as it can get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    /// What it crosses; unused places repeat the first.
    pub(crate) crosses: [u32; RESOURCES],
    /// Its part of what it crosses, relative to others'.
    pub(crate) weight: f64,
    /// Its own limit in bytes per second (its congestion window).
    pub(crate) limit: f64,
    /// What it gets, in bytes per second.
    pub(crate) rate: f64,
}

/// A flow whose rate is open. All of them are gone through in every round, one beside the other.
#[derive(Clone, Copy, Debug)]
struct Open {
    crosses: [u32; RESOURCES],
    /// Its place among the demands.
    at: u32,
    weight: f64,
    /// Its own limit by weight.
    limit: f64,
    /// What it is offered by weight.
    wish: f64,
}

/// What a resource offers its flows by weight, and the least that one of them is offered anywhere.
#[derive(Clone, Copy, Debug)]
struct Offer {
    share: f64,
    low: f64,
}

/// Shares capacities by progressive filling. Buffers live here so that nothing is allocated a round.
#[derive(Debug, Default)]
pub(crate) struct Filler {
    /// Weights of the flows whose rates are open.
    weight: Vec<f64>,
    offers: Vec<Offer>,
    /// Resources none of whose flows is offered less elsewhere.
    bottleneck: Vec<bool>,
    open: Vec<Open>,
}

impl Filler {
    /// Sets every demand's rate; `left` begins as the capacities and ends as what nobody uses.
    ///
    /// In a round every resource offers its flows shares by weight of what it has left. A resource none of whose
    /// flows is offered less elsewhere is a bottleneck: its flows' rates are final (that is the max-min condition), and
    /// so are those of flows that want no more than they are offered. Few rounds settle most flows; the
    /// rest, in turn and a few times, take the least of what their resources can still offer each of their flows. That
    /// never exceeds a capacity and leaves little unused.
    pub(crate) fn fill(&mut self, left: &mut [f64], demands: &mut [Demand]) {
        self.weight.clear();
        self.weight.resize(left.len(), 0.0);
        self.open.clear();
        for (demand, at) in demands.iter().zip(0..) {
            let Demand { crosses, weight, limit, .. } = *demand;
            self.open.push(Open { crosses, at, weight, limit: limit / weight, wish: 0.0 });
            for place in distinct(&crosses) {
                self.weight[*place as usize] += weight;
            }
        }
        for _ in 0..ROUNDS {
            if self.open.is_empty() {
                return;
            }
            self.round(left, demands);
        }
        for open in &self.open {
            demands[open.at as usize].rate = 0.0;
        }
        for _ in 0..PASSES {
            self.pass(left, demands);
        }
    }

    fn pass(&mut self, left: &mut [f64], demands: &mut [Demand]) {
        for Open { crosses, at, weight, .. } in &self.open {
            let demand = &mut demands[*at as usize];
            let part = |resource: &u32| left[*resource as usize] / self.weight[*resource as usize];
            let offered = |resource: &u32| part(resource) * weight;
            let room = demand.limit - demand.rate;
            let more = distinct(crosses).iter().map(offered).fold(room, f64::min).max(0.0);
            demand.rate += more;
            settle(left, &mut self.weight, crosses, *weight, more);
        }
        for Open { crosses, weight, .. } in &self.open {
            for place in distinct(crosses) {
                self.weight[*place as usize] += weight;
            }
        }
    }

    fn round(&mut self, left: &mut [f64], demands: &mut [Demand]) {
        self.offers.clear();
        self.offers.extend(self.weight.iter().zip(left.iter()).map(|(weight, left)| {
            // Sums of weights that were taken away one by one leave a rest.
            let share = if *weight > NOTHING { left.max(0.0) / weight } else { f64::INFINITY };
            Offer { share, low: f64::INFINITY }
        }));
        for open in &mut self.open {
            let crosses = distinct(&open.crosses);
            let share = |resource: &u32| self.offers[*resource as usize].share;
            open.wish = crosses.iter().map(share).fold(open.limit, less);
            for resource in crosses {
                let low = &mut self.offers[*resource as usize].low;
                *low = less(*low, open.wish);
            }
        }
        self.bottleneck.clear();
        self.bottleneck.extend(self.offers.iter().map(|offer| offer.low * EQUAL >= offer.share));
        self.open.retain(|open| {
            let is_final = open.wish >= open.limit
                || distinct(&open.crosses).iter().any(|resource| self.bottleneck[*resource as usize]);
            if is_final {
                let rate = open.wish * open.weight;
                demands[open.at as usize].rate = rate;
                settle(left, &mut self.weight, &open.crosses, open.weight, rate);
            }
            !is_final
        });
    }
}

/// The smaller one, neither being NaN, which `f64::min` has to look for.
fn less(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

/// What a flow crosses, once each.
fn distinct(crosses: &[u32; RESOURCES]) -> &[u32] {
    if crosses[2] == crosses[0] { &crosses[..2] } else { crosses }
}

fn settle(left: &mut [f64], weight: &mut [f64], crosses: &[u32; RESOURCES], own: f64, rate: f64) {
    for place in distinct(crosses) {
        let place = *place as usize;
        left[place] = (left[place] - rate).max(0.0);
        weight[place] -= own;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::{Rng as _, SeedableRng as _};

    fn demand(crosses: [u32; 3]) -> Demand {
        Demand { crosses, weight: 1.0, limit: f64::INFINITY, rate: 0.0 }
    }

    /// Progressive filling by the book: raise all rates together, stop those whose resource is full.
    fn exact(capacities: &[f64], demands: &[Demand]) -> Vec<f64> {
        let mut left = capacities.to_vec();
        let mut rates = vec![0.0; demands.len()];
        let mut open: Vec<usize> = (0..demands.len()).collect();
        while !open.is_empty() {
            let users = |resource: u32| -> f64 {
                let crosses = |at: &&usize| distinct(&demands[**at].crosses).contains(&resource);
                open.iter().filter(crosses).map(|at| demands[*at].weight).sum()
            };
            let step = (0..capacities.len())
                .filter(|resource| users(*resource as u32) > 0.0)
                .map(|resource| left[resource] / users(resource as u32))
                .chain(open.iter().map(|at| (demands[*at].limit - rates[*at]) / demands[*at].weight))
                .fold(f64::INFINITY, f64::min);
            for at in &open {
                let more = step * demands[*at].weight;
                rates[*at] += more;
                for resource in distinct(&demands[*at].crosses) {
                    left[*resource as usize] -= more;
                }
            }
            open.retain(|at| {
                rates[*at] < demands[*at].limit - 1e-9
                    && distinct(&demands[*at].crosses).iter().all(|resource| left[*resource as usize] > 1e-9)
            });
        }
        rates
    }

    #[test]
    fn a_slow_receiver_leaves_the_rest_to_the_others() {
        // One sender of 100, receivers of 10 and 100: 10 and 90.
        let mut left = vec![100.0, 10.0, 100.0];
        let mut demands = [demand([0, 1, 0]), demand([0, 2, 0])];
        Filler::default().fill(&mut left, &mut demands);
        assert_eq!(demands.map(|demand| demand.rate), [10.0, 90.0]);
    }

    #[test]
    fn a_wire_is_shared_by_weight() {
        let mut left = vec![100.0, 100.0, 100.0];
        let mut demands = [demand([0, 1, 0]), demand([0, 2, 0])];
        demands[1].weight = 0.25;
        Filler::default().fill(&mut left, &mut demands);
        assert_eq!(demands.map(|demand| demand.rate), [80.0, 20.0]);
    }

    #[test]
    fn a_limited_flow_leaves_the_rest_to_the_others() {
        let mut left = vec![100.0, 100.0, 100.0];
        let mut demands = [demand([0, 1, 0]), demand([0, 2, 0])];
        demands[0].limit = 5.0;
        Filler::default().fill(&mut left, &mut demands);
        assert_eq!(demands.map(|demand| demand.rate), [5.0, 95.0]);
    }

    #[test]
    fn random_networks_are_shared_as_by_the_book() {
        let mut random = rand_pcg::Pcg64::seed_from_u64(5);
        let mut draw = |bound: u64| random.next_u64() % bound;
        for _ in 0..300 {
            let (nodes, flows) = (2 + draw(20), 1 + draw(80));
            let mut capacities: Vec<f64> = (0..2 * nodes).map(|_| (1 + draw(10)) as f64 * 10.0).collect();
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
            let expected = exact(&capacities, &demands);
            let mut left = capacities.clone();
            Filler::default().fill(&mut left, &mut demands);
            let mut used = vec![0.0; capacities.len()];
            for demand in &demands {
                assert!(demand.rate <= demand.limit, "{demand:?}");
                let [a, b, c] = demand.crosses;
                used[a as usize] += demand.rate;
                used[b as usize] += demand.rate;
                if c != a {
                    used[c as usize] += demand.rate;
                }
            }
            for (used, capacity) in used.iter().zip(&capacities) {
                assert!(*used <= capacity * 1.000_01, "{used} of {capacity}");
            }
            let total: f64 = demands.iter().map(|demand| demand.rate).sum();
            let best: f64 = expected.iter().sum();
            assert!((total / best - 1.0).abs() < 0.03, "{total} instead of {best}");
            let worst = demands.iter().zip(&expected).map(|(got, want)| got.rate / want).fold(9.0, f64::min);
            assert!(worst > 0.5, "a flow gets {worst} of its fair rate");
        }
    }
}
