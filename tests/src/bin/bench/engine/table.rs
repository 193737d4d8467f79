// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The figures of all rounds, and how they are printed.

use std::fmt;

use super::Size;
use super::side::Measured;
use super::workload::Op;
use crate::spread::Spread;

/// The figures of one side for one operation, in the order of the rounds.
#[derive(Debug)]
struct Column {
    workload: String,
    label: &'static str,
    side: &'static str,
    figures: Vec<f64>,
}

/// All figures so far.
#[derive(Debug)]
pub struct Table {
    size: Size,
    notes: Vec<String>,
    columns: Vec<Column>,
}

/// What ours is compared with.
const PEERS: [&str; 2] = ["BTreeMap", "GTree"];
const VMMS: [&str; 3] = ["crosvm", "cloud-hypervisor", "an array"];
/// Stand in place of a side for what there is nothing beside.
const REQUESTS: &str = "requests";
const ACCESSES: &str = "accesses";

impl Table {
    pub fn new(size: Size) -> Table {
        Table { size, notes: Vec::new(), columns: Vec::new() }
    }

    /// Adds a line to the head.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Takes what a side needed in one round.
    pub fn add(&mut self, workload: &str, op: Op, side: &'static str, measured: Measured) {
        self.push(workload, label(op), side, measured.ns);
        if let Some(ns) = measured.writer_ns {
            self.push(workload, "  that writer's unmap + map", side, ns);
        }
    }

    /// Takes the requests a second of one round.
    pub fn add_requests(&mut self, workload: &str, per_second: f64) {
        self.push(workload, "", REQUESTS, per_second);
    }

    /// Takes the nanoseconds for an access of one round.
    pub fn add_access(&mut self, way: &str, ns: f64) {
        self.push(way, "", ACCESSES, ns);
    }

    fn push(&mut self, workload: &str, label: &'static str, side: &'static str, figure: f64) {
        let is_this =
            |column: &&mut Column| (&*column.workload, column.label, column.side) == (workload, label, side);
        match self.columns.iter_mut().find(is_this) {
            Some(column) => column.figures.push(figure),
            None => {
                let workload = workload.to_owned();
                self.columns.push(Column { workload, label, side, figures: vec![figure] });
            }
        }
    }

    fn of_side(&self, side: &str) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(move |column| column.side == side)
    }

    /// The figures of `side` for the same operation as those of `column`.
    fn beside(&self, column: &Column, side: &str) -> Option<&Column> {
        self.of_side(side).find(|other| (&other.workload, other.label) == (&column.workload, column.label))
    }

    fn print_sides(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut workload = "";
        for ours in self.of_side("ours") {
            if ours.workload != workload {
                workload = &ours.workload;
                writeln!(f, "{workload}")?;
            }
            let peers = PEERS.map(|side| self.beside(ours, side));
            write!(f, "  {:32}{:>10.1}", ours.label, ours.median())?;
            for peer in peers {
                write!(f, "{:>10}", peer.map_or("-".into(), |peer| format!("{:.1}", peer.median())))?;
            }
            for peer in peers {
                write!(f, "{:>25}", peer.map_or("-".into(), |peer| format!("{:.1}", peer.ratio_to(ours))))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn print_vmms(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for vmm in VMMS.into_iter().flat_map(|side| self.of_side(side)) {
            let name = format!("{}: {}", vmm.side, vmm.label);
            let ratio = self.beside(vmm, "ours").map(|ours| format!("{:.1}", vmm.ratio_to(ours)));
            writeln!(f, "  {name:52}{:>12.1}{:>27}", vmm.median(), ratio.unwrap_or_default())?;
        }
        Ok(())
    }

    fn print_alone(&self, f: &mut fmt::Formatter<'_>, side: &str) -> fmt::Result {
        for column in self.of_side(side) {
            let spread = Spread::of(column.figures.iter().copied());
            writeln!(f, "  {:68}{spread}", column.workload)?;
        }
        Ok(())
    }
}

impl Column {
    fn median(&self) -> f64 {
        Spread::of(self.figures.iter().copied()).median()
    }

    /// Round by round.
    fn ratio_to(&self, ours: &Column) -> Spread {
        Spread::of(self.figures.iter().zip(&ours.figures).map(|(peer, ours)| peer / ours))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size { mappings, rounds } = self.size;
        writeln!(
            f,
            "{mappings} mappings in a domain unless said otherwise; {rounds} rounds, ratios within a round"
        )?;
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        writeln!(f, "\n{HEAD}")?;
        self.print_sides(f)?;
        writeln!(f, "\n{VMMS_HEAD:54}{:>12}{:>27}", "nanoseconds", "that / ours")?;
        writeln!(f, "{SPREAD_HEAD:>93}")?;
        self.print_vmms(f)?;
        writeln!(f, "\n{REQUESTS_HEAD:70}{SPREAD_HEAD:>23}")?;
        self.print_alone(f, REQUESTS)?;
        writeln!(f, "\n{ACCESSES_HEAD:70}{SPREAD_HEAD:>23}")?;
        self.print_alone(f, ACCESSES)?;
        writeln!(f, "\n{LEGEND}")
    }
}

/// What a line of this operation is called.
fn label(op: Op) -> &'static str {
    match op {
        Op::Map => "map",
        Op::MapInOrder => "map in order of IOVA",
        Op::Unmap => "unmap",
        Op::Pair => "unmap + map",
        Op::Lookup => "lookup",
        Op::Shared => "lookup by another thread's means",
        Op::Busy => "  beside a writer at full speed",
        Op::Replay => "replay",
        Op::Destroy => "destroy",
    }
}

const HEAD: &str = "\
nanoseconds of processor time for each,                                   BTreeMap / ours             GTree / ours
median of the rounds                    ours  BTreeMap     GTree      min  median     max      min  median     max";

const VMMS_HEAD: &str = "the first of these, as others do it";
const REQUESTS_HEAD: &str = "requests a second through Device::handle";
const ACCESSES_HEAD: &str = "nanoseconds an access, for a VMM that links the library";
/// Over what a [`Spread`] prints.
const SPREAD_HEAD: &str = "min  median     max";

const LEGEND: &str = "\
map, unmap    Every mapping once, in random order unless said otherwise. A map first looks for mappings that it would
              overlap, an unmap for those that it would cut.
lookup        Of 64 bytes at random mapped addresses, with a check of the mapping's end and of its access rights: by
              the thread that maps, then by what another thread has for it, which is our reader, a BTreeMap in an
              RwLock, a GTree with a recursive mutex.
writer        Another thread, which unmaps and maps every other mapping of the domain in random order without a pause.
              Of both threads the time that passes is measured, as it has waits in it.
replay        Every mapping is handed over in order, as for an ATTACH. Destroy frees all of them. For each mapping.
BTreeMap      By first IOVA, with as few searches as we can make do with. GTree: by interval, as in QEMU.
others        VMMs with a BTreeMap. An array has a word for each page, by its number: what memory costs on this machine at
              this moment for a domain of one stretch, whatever the engine.
requests      UNMAP and MAP of one page in turns, from bytes to reply, with a host that has nothing to do.
an access     Of 64 bytes, side by side. The adapter fills vm-memory's own IOTLB on a miss, and empties a full one.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_the_same_round() {
        let mut table = Table::new(Size { mappings: 1000, rounds: 3 });
        for (ours, peer) in [(1.0, 2.0), (10.0, 30.0), (100.0, 400.0)] {
            table.push("pages", "map", "ours", ours);
            table.push("pages", "map", "BTreeMap", peer);
            table.push("others", "map", "BTreeMap", 7.0);
        }
        let ours = table.of_side("ours").next().expect("was added");
        let peer = table.beside(ours, "BTreeMap").expect("was added");
        assert_eq!(peer.ratio_to(ours), Spread::of([2.0, 3.0, 4.0]));
        assert!(table.to_string().contains("2.0     3.0     4.0"), "{table}");
    }
}
