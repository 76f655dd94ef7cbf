//! Flows by number. Those that carry something stand side by side, for all of them are gone through whenever rates are set.

use shoal_engine::prefetch::{prefetch_at, prefetch_lines};

use super::{FlowId, NOWHERE};

/// One direction of a connection that has pieces to carry. Two cache lines.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Flow {
    pub(super) id: FlowId,
    pub(super) crosses: [u32; 3],
    /// Index of the pair of zones it crosses, or `u32::MAX`.
    pub(super) pair: u32,
    /// Whom it belongs to; the network does not care.
    pub(super) owner: u32,
    pub(super) serial: u32,
    pub(super) rate: f64,
    pub(super) since: u64,
    pub(super) done: f64,
    pub(super) total: f64,
    pub(super) told: f64,
    pub(super) told_at: u64,
    pub(super) rtt: f64,
    pub(super) weight: f64,
    pub(super) window: f64,
    /// When the first part of the piece was through; `u64::MAX` before that.
    pub(super) first: u64,
    /// Which of the links it crosses held it back when the rates were set.
    pub(super) held_back: [bool; 3],
}

const _: () = assert!(size_of::<Flow>() == FLOW_LINES * 64);
/// Cache lines of a flow.
const FLOW_LINES: usize = 2;

#[derive(Debug, Default)]
pub(super) struct Flows {
    /// As they were when they last carried something.
    idle: Vec<Flow>,
    /// Positions among the active ones, or `u32::MAX`.
    places: Vec<u32>,
    pub(super) active: Vec<Flow>,
    unused: Vec<FlowId>,
}

impl Flows {
    /// Takes in a flow that is idle, and gives it a number. A serial goes on from that of the flow that had the number before.
    pub(super) fn add(&mut self, flow: Flow) -> FlowId {
        let id = self.unused.pop().unwrap_or_else(|| u32::try_from(self.idle.len()).unwrap_or(NOWHERE));
        match self.idle.get_mut(id as usize) {
            Some(known) => *known = Flow { id, serial: known.serial, ..flow },
            None => {
                self.idle.push(Flow { id, ..flow });
                self.places.push(NOWHERE);
            }
        }
        id
    }

    /// An idle flow's number may be given to another.
    pub(super) fn release(&mut self, id: FlowId) {
        self.unused.push(id);
    }

    pub(super) fn is_active(&self, id: FlowId) -> bool {
        self.places.get(id as usize).is_some_and(|place| *place != NOWHERE)
    }

    /// Prefetches where a flow is.
    pub(super) fn prefetch_place(&self, id: FlowId) {
        prefetch_at(&self.places, id as usize);
    }

    /// Prefetches a flow, once its place is there.
    pub(super) fn prefetch(&self, id: FlowId) {
        prefetch_lines(&self.get(id).id, 0..FLOW_LINES);
    }

    pub(super) fn get(&self, id: FlowId) -> &Flow {
        match self.places[id as usize] {
            NOWHERE => &self.idle[id as usize],
            place => &self.active[place as usize],
        }
    }

    pub(super) fn get_mut(&mut self, id: FlowId) -> &mut Flow {
        match self.places[id as usize] {
            NOWHERE => &mut self.idle[id as usize],
            place => &mut self.active[place as usize],
        }
    }

    /// Makes an idle flow active.
    pub(super) fn activate(&mut self, id: FlowId) -> &mut Flow {
        let place = self.active.len();
        self.places[id as usize] = u32::try_from(place).unwrap_or(NOWHERE);
        self.active.push(self.idle[id as usize].clone());
        &mut self.active[place]
    }

    /// Makes an active flow idle; the last one comes to its place.
    pub(super) fn deactivate(&mut self, id: FlowId) -> &mut Flow {
        let place = std::mem::replace(&mut self.places[id as usize], NOWHERE) as usize;
        self.idle[id as usize] = self.active.swap_remove(place);
        if let Some(moved) = self.active.get(place) {
            self.places[moved.id as usize] = place as u32;
        }
        &mut self.idle[id as usize]
    }
}
