// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is measured against each other must do the same.

use super::*;

/// A step on every store.
#[derive(Clone, Copy, Debug)]
enum Step {
    Map(IovaRange),
    Unmap(IovaRange),
    Lookup(u64, u64),
}

/// What a store answered: whether, how many, or where.
fn answer(store: &mut impl Store, step: Step) -> Option<u64> {
    match step {
        Step::Map(range) => store.map(mapping(range)).then_some(0),
        Step::Unmap(range) => store.unmap(&range).map(|count| count as u64),
        Step::Lookup(iova, length) => store.lookup(iova, length, Access::READ).map(|gpa| gpa.0),
    }
}

fn step(random: &mut Random) -> Step {
    let first = random.below(64) * PAGE;
    let range = IovaRange::from_length(first, (1 + random.below(6)) * PAGE).expect("in range");
    // Within a page: how far one translation reaches beyond a mapping is a matter of each VMM.
    let lookup = Step::Lookup(first + random.below(60) * 64, 64);
    random.one_of(&[Step::Map(range), Step::Unmap(range), lookup])
}

#[test]
fn every_store_gives_the_same_answers() {
    let mut random = Random::new(6);
    let (mut engine, mut ordered) = (Engine::default(), Ordered::default());
    let (mut cloud_hypervisor, mut crosvm) = (CloudHypervisor::default(), Crosvm::default());
    let mut outcomes = [0; 6];
    for _ in 0..20_000 {
        let step = step(&mut random);
        let ours = answer(&mut engine, step);
        assert_eq!(ours, answer(&mut ordered, step), "{step:x?}");
        assert_eq!(ours, answer(&mut cloud_hypervisor, step), "{step:x?}");
        assert_eq!(ours, answer(&mut crosvm, step), "{step:x?}");
        let kind = match step {
            Step::Map(_) => 0,
            Step::Unmap(_) => 2,
            Step::Lookup(..) => 4,
        };
        outcomes[kind + usize::from(ours.is_some())] += 1;
    }
    assert!(outcomes.iter().all(|times| *times > 500), "each outcome is seen often: {outcomes:?}");
}

#[test]
fn a_reader_sees_what_the_writer_maps_and_unmaps() {
    fn check<S: Shared>() {
        let page = IovaRange::from_length(PAGE, PAGE).expect("in range");
        let target = mapping(page).target.gpa;
        S::default().share(|writer, reader| {
            let mut seen = || reader.lookup(PAGE + 64, 64, Access::WRITE);
            assert_eq!(seen(), None);
            assert!(writer.map(mapping(page)));
            assert_eq!(seen(), Some(Gpa(target.0 + 64)));
            assert_eq!(writer.unmap(&page), Some(1));
            assert_eq!(seen(), None);
        });
    }
    check::<Engine>();
    check::<Ordered>();
}

#[test]
fn a_replay_hands_over_every_mapping_in_order() {
    fn check<S: Shared>() {
        let mut store = S::default();
        let ranges = Layout::AnySize.ranges(500, &mut Random::new(7));
        for range in Random::new(8).shuffled(&ranges) {
            assert!(store.map(mapping(range)));
        }
        let mut replayed = Vec::new();
        store.replay(|mapping| replayed.push(mapping));
        assert_eq!(replayed, ranges.into_iter().map(mapping).collect::<Vec<_>>());
    }
    check::<Engine>();
    check::<Ordered>();
}

#[test]
fn an_access_must_lie_in_one_mapping_and_be_allowed() {
    let range = IovaRange::from_length(PAGE, PAGE).expect("in range");
    let mut readable = mapping(range);
    readable.target.access = Access::READ;
    let looked_up = |iova, length, access| translated(readable, iova, length, access);
    assert_eq!(looked_up(range.last(), 1, Access::READ), Some(Gpa(readable.target.gpa.0 + PAGE - 1)));
    assert_eq!(looked_up(range.last(), 2, Access::READ), None);
    assert_eq!(looked_up(PAGE, 1, Access::WRITE), None);
}
