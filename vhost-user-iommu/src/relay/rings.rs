// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the VMM has said of a device's rings: enough to tell a device that comes to life from one that goes on.
//!
//! A VMM stops the rings of a device that is reset and of a guest that is merely paused in the same way. A device
//! that goes on has its rings where they were and goes on where they stopped; anything else is a new driver's.

use std::collections::BTreeMap;

/// Where a ring lies: IOVAs of its descriptor table, available ring and used ring.
pub type Place = [u64; 3];

/// The rings by index.
#[derive(Debug, Default)]
pub struct Rings {
    rings: BTreeMap<u32, Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    base: u32,
    place: Option<Place>,
    stopped_at: Option<(u32, Place)>,
    is_set_up: bool,
    /// Whether it was taken to go on where it was stopped, by what had been said of it until then.
    is_resumed: bool,
}

/// What setting up a ring means for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing new: a ring was set up before.
    Running,
    /// It goes on where it was stopped.
    Resumed,
    /// It comes to life.
    Fresh,
}

/// No device has a ring of this index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadIndex;

/// Far more than any device has; a VMM must not make this process grow.
const RINGS_MAX: u32 = 1024;

impl Rings {
    /// The ring's next available index, from SET_VRING_BASE. Some VMMs say it after its addresses.
    pub fn set_base(&mut self, index: u32, base: u32) -> Result<Start, BadIndex> {
        let ring = self.ring(index)?;
        ring.base = base;
        let starts_anew =
            ring.is_resumed && ring.stopped_at.is_some_and(|(stopped_at, _)| stopped_at != base);
        if starts_anew {
            ring.is_resumed = false;
            return Ok(Start::Fresh);
        }
        Ok(Start::Running)
    }

    /// Where the ring lies, from SET_VRING_ADDR.
    pub fn set_place(&mut self, index: u32, place: Place) -> Result<Start, BadIndex> {
        self.ring(index)?.place = Some(place);
        self.set_up(index)
    }

    /// The ring is used from now on.
    pub fn set_up(&mut self, index: u32) -> Result<Start, BadIndex> {
        let is_running = self.rings.values().any(|ring| ring.is_set_up);
        let ring = self.ring(index)?;
        ring.is_set_up = true;
        let start = ring.place.map(|place| (ring.base, place));
        if is_running {
            return Ok(Start::Running);
        }
        ring.is_resumed = start.is_some() && ring.stopped_at == start;
        Ok(if ring.is_resumed { Start::Resumed } else { Start::Fresh })
    }

    /// The ring has been stopped at `base`, from the answer to GET_VRING_BASE.
    pub fn stop(&mut self, index: u32, base: u32) {
        if let Some(ring) = self.rings.get_mut(&index) {
            (ring.is_set_up, ring.is_resumed) = (false, false);
            ring.stopped_at = ring.place.map(|place| (base, place));
            // There it goes on, unless the VMM says something else.
            ring.base = base;
        }
    }

    /// The device has been reset.
    pub fn reset(&mut self) {
        self.rings.clear();
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring, BadIndex> {
        if index >= RINGS_MAX {
            return Err(BadIndex);
        }
        Ok(self.rings.entry(index).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = [0x1000, 0x2000, 0x3000];

    fn stopped_at(base: u32) -> Rings {
        let mut rings = Rings::default();
        rings.set_base(0, 0).expect("index");
        assert_eq!(rings.set_place(0, PLACE), Ok(Start::Fresh));
        assert_eq!(rings.set_up(0), Ok(Start::Running));
        rings.stop(0, base);
        rings
    }

    #[test]
    fn a_ring_that_goes_on_where_it_stopped_is_resumed() {
        for base in [0, 7] {
            let mut rings = stopped_at(base);
            rings.set_base(0, base).expect("index");
            assert_eq!(rings.set_place(0, PLACE), Ok(Start::Resumed));
        }
    }

    #[test]
    fn a_ring_that_starts_elsewhere_or_anew_is_fresh() {
        let mut rings = stopped_at(7);
        rings.set_base(0, 0).expect("index");
        assert_eq!(rings.set_place(0, PLACE), Ok(Start::Fresh));
        let mut rings = stopped_at(0);
        assert_eq!(rings.set_place(0, [0x1000, 0x2000, 0x4000]), Ok(Start::Fresh));
        let mut rings = stopped_at(0);
        rings.reset();
        assert_eq!(rings.set_place(0, PLACE), Ok(Start::Fresh));
    }

    #[test]
    fn a_base_that_is_told_after_the_addresses_counts_as_well() {
        let mut rings = stopped_at(7);
        assert_eq!(rings.set_place(0, PLACE), Ok(Start::Resumed));
        assert_eq!(rings.set_base(0, 7), Ok(Start::Running));
        let mut rings = stopped_at(7);
        assert_eq!(rings.set_place(0, PLACE), Ok(Start::Resumed));
        assert_eq!(rings.set_base(0, 0), Ok(Start::Fresh));
        assert_eq!(rings.set_up(0), Ok(Start::Running));
    }

    #[test]
    fn a_second_ring_says_nothing_new_and_an_absurd_index_is_refused() {
        let mut rings = Rings::default();
        assert_eq!(rings.set_place(0, PLACE), Ok(Start::Fresh));
        assert_eq!(rings.set_place(1, PLACE), Ok(Start::Running));
        assert_eq!(rings.set_base(RINGS_MAX, 0), Err(BadIndex));
    }
}
