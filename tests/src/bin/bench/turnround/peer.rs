// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The other process of the sides that are no daemon: this program again, which does the least that can be done.
//!
//! What it shares with the one that measures are its standard input and output: an eventfd each, or guest memory.

use std::fs::File;
use std::hint::spin_loop;
use std::io::{stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use viommu_tests::driver::Rings;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// How this program is told that it is one.
pub const PEER: &str = "turnround-peer";

/// Where the two words of the ping-pong lie.
pub const WORDS: [u64; 2] = [0, 0x1000];

/// A running peer, which ends with this.
#[derive(Debug)]
pub struct Peer(Child);

impl Peer {
    /// Starts one that does `what` with these two files.
    pub fn start(what: &[String], input: OwnedFd, output: OwnedFd) -> Result<Peer> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(PEER).args(what).stdin(Stdio::from(input)).stdout(Stdio::from(output));
        Ok(Peer(command.spawn().context("the other process does not start")?))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It waits for nothing else.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Plays the part that `what` names, until it is killed.
pub fn play(what: &[&str]) -> Result<()> {
    match what {
        ["eventfd"] => loop {
            let mut count = [0; 8];
            rustix::io::read(stdin(), &mut count)?;
            rustix::io::write(stdout(), &1u64.to_ne_bytes())?;
        },
        ["words", size] => bounce(&memory(size.parse()?)?),
        ["ring", size, entries, descriptors, avail, used] => {
            let rings = [descriptors, avail, used].map(|address| address.parse());
            let [descriptors, avail, used] = rings;
            let rings = Rings { descriptors: descriptors?, avail: avail?, used: used? };
            serve(&memory(size.parse()?)?, entries.parse()?, rings)
        }
        _ => bail!("no such part: {what:?}"),
    }
}

/// The guest memory that is this process's standard input, from GPA 0 on.
fn memory(size: usize) -> Result<GuestMemoryMmap> {
    let file = File::from(stdin().as_fd().try_clone_to_owned()?);
    let region = (GuestAddress(0), size, Some(FileOffset::new(file, 0)));
    Ok(GuestMemoryMmap::from_ranges_with_files([region])?)
}

/// Answers a word with another.
fn bounce(memory: &GuestMemoryMmap) -> Result<()> {
    let [theirs, ours] = WORDS.map(GuestAddress);
    let mut last = 0u16;
    loop {
        let word: u16 = memory.load(theirs, Ordering::Acquire)?;
        if word != last {
            last = word;
            memory.store(word, ours, Ordering::Release)?;
        }
        spin_loop();
    }
}

/// A device that looks at its ring all the time, and says of each request that it is done.
fn serve(memory: &GuestMemoryMmap, entries: u16, rings: Rings) -> Result<()> {
    let mut queue = Queue::new(entries)?;
    queue.try_set_desc_table_address(GuestAddress(rings.descriptors))?;
    queue.try_set_avail_ring_address(GuestAddress(rings.avail))?;
    queue.try_set_used_ring_address(GuestAddress(rings.used))?;
    queue.set_ready(true);
    queue.disable_notification(memory)?;
    loop {
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            for descriptor in chain.writable() {
                memory.write_slice(&[0; 4], descriptor.addr())?;
            }
            queue.add_used(memory, head, 4)?;
        }
        spin_loop();
    }
}
