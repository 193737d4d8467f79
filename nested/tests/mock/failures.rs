// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel fails at each point where it can, one after another: what the owners hold and what the kernel has agree
//! after each.

use std::fs::{self, File};
use std::os::fd::OwnedFd;

use rustix::io::{pread, pwrite};

use super::*;

const BYTES: u64 = 64 * 4096;

/// Runs `operation` again and again, of whose allocations and checks in the kernel the first fails, then the second, and
/// so on until none is left to fail; `check` looks at what each left behind, and makes room for the next.
fn fail_each_of<S, T>(
    of: &mut S,
    mut operation: impl FnMut(&mut S) -> Result<T>,
    mut check: impl FnMut(&mut S, Result<T>),
) {
    allow_failures();
    // Open all the time: to open it could fail as well.
    let thread = File::options().read(true).write(true).open("/proc/thread-self/fail-nth");
    let thread = thread.expect("a kernel with fault injection");
    let mut failures = 0;
    for nth in 1..1000 {
        pwrite(&thread, nth.to_string().as_bytes(), 0).expect("it is set");
        let result = operation(of);
        let mut left = [0; 1];
        pread(&thread, &mut left, 0).expect("it is told");
        pwrite(&thread, b"0", 0).expect("it ends");
        // Zero once it has failed.
        let is_through = left != *b"0";
        assert!(!is_through || result.is_ok(), "failure {nth} did not happen, yet: {:?}", result.err());
        failures += u32::from(result.is_err());
        check(of, result);
        if is_through {
            assert!(failures > 0, "nothing in it can fail");
            return;
        }
    }
    panic!("there is no end to what can fail");
}

/// The same of what needs no exclusive access.
fn fail_each<T>(mut operation: impl FnMut() -> Result<T>, mut check: impl FnMut(Result<T>)) {
    fail_each_of(&mut (), |()| operation(), |(), result| check(result));
}

/// Lets allocations fail that the kernel makes on behalf of a thread which asks for it, and the mock's own checks.
fn allow_failures() {
    let debug = Path::new("/sys/kernel/debug");
    for (file, value) in [("failslab/ignore-gfp-wait", "N"), ("fail_iommufd/task-filter", "N")] {
        fs::write(debug.join(file), value).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

/// Guest memory, an address space that has it, and another, to which a device is attached.
struct Scene {
    context: Arc<Context>,
    file: OwnedFd,
    region: MmapRegion,
    guest: Arc<Ioas>,
    domain: Arc<Ioas>,
    device: MockDevice,
}

impl Scene {
    fn new() -> Scene {
        let context = context();
        let (guest, domain) = (Ioas::new(&context).expect("one"), Ioas::new(&context).expect("another"));
        let (file, region) = memory(BYTES);
        guest.map_file(&range(0, BYTES), file.as_fd(), 0, Access::all().into()).expect("it maps");
        let device = MockDevice::new(&context, &PageTable::Auto(domain.clone())).expect("a device");
        Scene { context, file, region, guest, domain, device }
    }

    fn copy(&self, offset: u64, length: u64) -> Result<()> {
        let range = range(offset, length);
        self.domain.copy_from(&range, &self.guest, Iova(range.start()), Access::all().into())
    }

    /// The domain, with all of the memory.
    fn filled() -> Scene {
        let scene = Scene::new();
        scene.copy(0, BYTES).expect("it copies");
        scene
    }

    /// How many bytes of the memory a page table has where they belong.
    fn reached(&self, hwpt: u32) -> u64 {
        let pages = (0..BYTES).step_by(4096).filter(|offset| {
            let page = self.region.get_slice(*offset as usize, 4096).expect("a page");
            mock::check_map(&self.domain, hwpt, Iova(START + offset), &page).is_ok()
        });
        pages.count() as u64 * 4096
    }

    /// All or nothing.
    fn reached_if(&self, hwpt: u32, all: bool) {
        assert_eq!(self.reached(hwpt), if all { BYTES } else { 0 });
    }

    fn hwpt(&self) -> Result<Arc<Hwpt>> {
        Hwpt::paging(self.device.device(), &self.domain, HwptFlags::PASID)
    }
}

#[test]
fn a_mapping_is_there_as_a_whole_or_not_at_all() {
    let scene = Scene::new();
    let (first, all) = (scene.device.hwpt(), range(0, BYTES));
    fail_each(
        || scene.domain.map_file(&all, scene.file.as_fd(), 0, Access::all().into()),
        |mapped| {
            scene.reached_if(first, mapped.is_ok());
            assert_eq!(scene.domain.unmap(&all).ok(), mapped.ok().map(|()| BYTES));
            scene.reached_if(first, false);
        },
    );
}

#[test]
fn a_copy_is_there_as_a_whole_or_not_at_all() {
    let scene = Scene::new();
    fail_each(
        || scene.copy(0, BYTES),
        |copied| {
            scene.reached_if(scene.device.hwpt(), copied.is_ok());
            assert_eq!(scene.domain.unmap(&range(0, BYTES)).ok(), copied.ok().map(|()| BYTES));
            scene.reached_if(scene.device.hwpt(), false);
        },
    );
}

#[test]
fn a_mapping_is_gone_as_a_whole_or_not_at_all() {
    let scene = Scene::filled();
    // As many page tables as a domain over two IOMMUs has.
    let other = scene.hwpt().expect("a page table");
    let tables = [scene.device.hwpt(), other.id()];
    fail_each(
        || scene.domain.unmap(&range(0, BYTES)),
        |unmapped| {
            tables.into_iter().for_each(|table| scene.reached_if(table, unmapped.is_err()));
            if let Ok(bytes) = unmapped {
                assert_eq!(bytes, BYTES);
                scene.copy(0, BYTES).expect("nothing is in its way");
            }
        },
    );
}

#[test]
fn of_two_mappings_the_rest_can_be_unmapped_after_a_failure() {
    let scene = Scene::new();
    let (first, all) = (scene.device.hwpt(), range(0, BYTES));
    let copy = || [0, BYTES / 2].map(|offset| scene.copy(offset, BYTES / 2).expect("it copies"));
    copy();
    fail_each(
        || scene.domain.unmap(&all),
        |unmapped| {
            let left = scene.reached(first);
            assert!([0, BYTES / 2, BYTES].contains(&left), "{left:#x}");
            assert!(unmapped.is_err() || left == 0);
            let rest = scene.domain.unmap(&all).map_err(|error| error.errno());
            assert_eq!(rest, if left > 0 { Ok(left) } else { Err(Errno::NOENT) });
            scene.reached_if(first, false);
            copy();
        },
    );
}

#[test]
fn a_page_table_is_made_with_all_mappings_or_not_at_all() {
    let scene = Scene::filled();
    let free = next_number(&scene.context);
    fail_each(
        || scene.hwpt(),
        |hwpt| {
            hwpt.iter().for_each(|hwpt| scene.reached_if(hwpt.id(), true));
            drop(hwpt);
            assert_eq!(next_number(&scene.context), free);
            scene.reached_if(scene.device.hwpt(), true);
        },
    );
}

/// A device, and two page tables for it.
fn attachable() -> (Attached<MockDevice>, Arc<Hwpt>, Arc<Hwpt>, Scene) {
    let scene = Scene::filled();
    let one = scene.hwpt().expect("a page table");
    let other = scene.hwpt().expect("another");
    let another = MockDevice::new(&scene.context, &PageTable::Auto(scene.domain.clone())).expect("a device");
    let mut device = Attached::new(another);
    device.attach(PageTable::Hwpt(one.clone()), None).expect("it is attached");
    (device, one, other, scene)
}

/// What the kernel has for the device, or its PASID, is what the owner says: this.
fn is_at(device: &Attached<MockDevice>, pasid: Option<u32>, hwpt: Option<&Arc<Hwpt>>) {
    assert_eq!(device.table(pasid).map(PageTable::id), hwpt.map(|hwpt| hwpt.id()));
    // The kernel has the device itself as PASID 0.
    let place = pasid.unwrap_or(0);
    device.device().check_pasid(place, hwpt.map(|hwpt| &**hwpt)).expect("the kernel says so too");
}

#[test]
fn a_replaced_page_table_is_the_old_one_or_the_new_one() {
    let (mut device, one, other, _scene) = attachable();
    for pasid in [None, Some(100)] {
        device.attach(PageTable::Hwpt(one.clone()), pasid).expect("it is attached");
        fail_each_of(
            &mut device,
            |device| device.attach(PageTable::Hwpt(other.clone()), pasid),
            |device, attached| {
                is_at(device, pasid, Some(if attached.is_ok() { &other } else { &one }));
                device.attach(PageTable::Hwpt(one.clone()), pasid).expect("back");
            },
        );
    }
    device.detach(Some(100)).expect("away");
}

#[test]
fn a_pasid_is_attached_or_it_is_not() {
    let (mut device, one, _, _scene) = attachable();
    fail_each_of(
        &mut device,
        |device| device.attach(PageTable::Hwpt(one.clone()), Some(100)),
        |device, attached| {
            is_at(device, Some(100), attached.is_ok().then_some(&one));
            attached.iter().for_each(|()| device.detach(Some(100)).expect("away"));
        },
    );
    device.attach(PageTable::Hwpt(one.clone()), Some(100)).expect("it is attached");
    fail_each_of(
        &mut device,
        |device| device.detach(Some(100)),
        |device, detached| {
            is_at(device, Some(100), detached.is_err().then_some(&one));
            device.attach(PageTable::Hwpt(one.clone()), Some(100)).expect("back");
        },
    );
    device.detach(Some(100)).expect("away");
}

#[test]
fn a_page_table_of_the_kernels_choice_takes_the_place_of_another_or_is_gone() {
    let (mut device, one, _, scene) = attachable();
    let (context, apart) = (&scene.context, Ioas::new(&scene.context).expect("an address space"));
    let free = next_number(context);
    fail_each_of(
        &mut device,
        |device| device.attach(PageTable::Auto(apart.clone()), None),
        |device, attached| {
            if attached.is_err() {
                is_at(device, None, Some(&one));
                assert_eq!(next_number(context), free);
            }
            device.attach(PageTable::Hwpt(one.clone()), None).expect("back");
            assert_eq!(next_number(context), free);
        },
    );
}

/// Of all that is destroyed by its owner: none is left when it could not be made.
#[test]
fn what_could_not_be_made_leaves_nothing() {
    let scene = Scene::filled();
    let (context, device) = (&scene.context, scene.device.device());
    let parent = nested_parent(&scene.device, &scene.domain);
    let viommu = Viommu::new(device, &parent, mock::VIOMMU, &mut [0; 24]).expect("a vIOMMU");
    let free = next_number(context);
    fn leaves_nothing<T>(context: &Arc<Context>, free: u32, make: impl FnMut() -> Result<T>) {
        fail_each(make, |made| {
            drop(made);
            assert_eq!(next_number(context), free);
        });
    }
    leaves_nothing(context, free, || Ioas::new(context));
    leaves_nothing(context, free, || FaultQueue::new(context));
    leaves_nothing(context, free, || Viommu::new(device, &parent, mock::VIOMMU, &mut [0; 24]));
    leaves_nothing(context, free, || Vdevice::new(&viommu, device, 0x99));
    leaves_nothing(context, free, || Veventq::new(&viommu, mock::VEVENTQ, 4, 1));
    leaves_nothing(context, free, || HwQueue::new(&viommu, mock::HW_QUEUE, 0, &range(0, 4096)));
    let nested = |parent, faults: &Option<Arc<FaultQueue>>| {
        let data = description(1);
        Hwpt::nested(device, parent, HwptFlags::empty(), mock::HWPT_DATA, &data, faults.clone())
    };
    let faults = Some(FaultQueue::new(context).expect("a queue"));
    let free = next_number(context);
    leaves_nothing(context, free, || nested(NestedParent::Hwpt(parent.clone()), &faults));
    leaves_nothing(context, free, || nested(NestedParent::Viommu(viommu.clone()), &faults));
}
