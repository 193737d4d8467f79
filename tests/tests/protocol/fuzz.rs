// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rings of random content, for a few seconds: the daemon lives and serves the next VMM.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use viommu_tests::driver::Descriptor;

use crate::scene::*;

/// Numbers from a seed, which is printed when a test fails that prints this.
#[derive(Debug)]
pub struct Random {
    #[expect(dead_code, reason = "for those who read the failure")]
    seed: u64,
    state: u64,
}

impl Random {
    pub fn new() -> Random {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        Random::of(now.as_nanos() as u64 | 1)
    }

    pub fn of(seed: u64) -> Random {
        Random { seed, state: seed }
    }

    /// A number below `end` (xorshift64*).
    pub fn below(&mut self, end: u64) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % end
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

const SIZE: u16 = 64;
/// GPA of the requests, 0x100 bytes each.
const REQUESTS: u64 = 0x1000;
const FUZZ_TIME: Duration = Duration::from_millis(2500);

fn random_descriptor(random: &mut Random) -> Descriptor {
    let addresses =
        [0, 1, 0xff0, HIGH - 8, HIGH, HIGH + 0x8000, HIGH + REGION - 4, REGION, u64::MAX, u64::MAX - 15];
    let address = match random.below(4) {
        0 => random.pick(&addresses),
        1 => HIGH + random.below(REGION),
        2 => REQUESTS + 0x100 * random.below(8),
        // In the descriptor table itself.
        _ => HIGH + 0x1000 + 16 * random.below(64),
    };
    let lengths = [0, 1, 4, 16, 20, 36, 72, 255, 257, 516, 0x1000, u32::MAX, 1 << 31, 16 * 65535, 16 * 65536];
    let flags = random.below(8) as u16;
    Descriptor::new(address, random.pick(&lengths), flags, random.below(u64::from(SIZE) + 2) as u16)
}

/// Requests of all types that could be well-formed, for chains to lead to.
fn place_requests(vmm: &Vmm) {
    for kind in 0..8u8 {
        let mut request = [0; 0x100];
        request[0] = kind;
        request[4] = DOMAIN.0 as u8;
        // An endpoint to most types; to MAP and UNMAP the start of a range whose end is 0.
        request[if kind == 5 { 4 } else { 8 }] = ENDPOINT.0 as u8;
        vmm.memory.write(REQUESTS + 0x100 * u64::from(kind), &request);
    }
}

fn step(random: &mut Random, vmm: &mut Vmm) {
    let rings = vmm.driver.requests().rings();
    match random.below(10) {
        0..=4 => {
            let descriptor = random_descriptor(random);
            vmm.driver.requests().write_descriptor(random.below(u64::from(SIZE)) as u16, descriptor);
        }
        5..=6 => {
            // More than fit would be a jump, after which nothing is served: such are rare below.
            let returned = vmm.memory.load_u16(rings.used + 2);
            if vmm.driver.requests().next_avail().wrapping_sub(returned) < SIZE {
                vmm.driver.requests().publish(random.below(u64::from(SIZE) + 4) as u16);
            }
        }
        7 if random.below(500) == 0 => vmm.driver.requests().set_avail_index(random.below(65536) as u16),
        7 => vmm.driver.requests().set_avail_flags(random.below(65536) as u16),
        // Anywhere in the rings, and in the event queue's.
        8 => vmm.memory.store_u16(rings.descriptors + 2 * random.below(0x800), random.below(65536) as u16),
        _ => {
            vmm.driver.requests().kick();
            vmm.driver.events().kick();
        }
    }
}

#[test]
fn rings_of_random_content_harm_nobody_else() {
    let served = Served::new();
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut random = seed.map_or_else(Random::new, Random::of);
    let deadline = Instant::now() + FUZZ_TIME;
    let mut rounds = 0;
    while Instant::now() < deadline {
        let setup = if random.below(2) == 0 { Setup::default() } else { Setup::plain() };
        let mut vmm = served.vmm_with(Setup { size: SIZE, ..setup });
        place_requests(&vmm);
        for _ in 0..1000 {
            step(&mut random, &mut vmm);
        }
        vmm.front_end.stop_ring(0).unwrap_or_else(|error| panic!("{error} with {random:?}"));
        vmm.front_end.stop_ring(1).unwrap_or_else(|error| panic!("{error} with {random:?}"));
        rounds += 1;
    }
    served.assert_serves();
    assert_eq!(served.lines_with("panicked"), 0, "{random:?}");
    assert!(served.daemon.lines().len() < 20 * rounds + 100, "the log is flooded: {random:?}");
}
