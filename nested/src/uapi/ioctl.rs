// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The one place where the kernel is handed pointers: every ioctl of this crate.
//!
//! A [`Command`] knows its number, where its size stands and which of its fields are pointers; [`call`] fills them from
//! what it borrows, whatever they held. Knows nothing of what the commands mean.

// UNSAFETY: the kernel reads and writes memory through addresses in the argument of an ioctl.
#![expect(unsafe_code)]

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use iommufd_bindings::*;
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_detach_iommufd_pt, vfio_device_info,
    vfio_region_info,
};
use vm_memory::VolatileSlice;
use vmm_sys_util::ioctl::{_IOC_NONE, ioctl_expr, ioctl_with_mut_ref};

#[cfg(feature = "cdev-tests")]
use super::types::IrqSetEventfd;
use super::types::{HotResetInfo, iommu_hw_info, iommu_ioas_noiommu_get_pa};
#[cfg(feature = "mock")]
use super::types::{
    IOMMU_TEST_OP_ACCESS_PAGES, IOMMU_TEST_OP_ACCESS_RW, IOMMU_TEST_OP_DIRTY, IOMMU_TEST_OP_MD_CHECK_MAP,
    IOMMU_TEST_OP_MD_CHECK_REFS, iommu_test_cmd,
};

/// The type of all ioctls of iommufd and VFIO.
const TYPE: u32 = b';' as u32;
/// The first number of VFIO's.
const VFIO_BASE: u32 = 100;

/// The argument of an ioctl.
///
/// # Safety
/// The type is `repr(C)` and of integers, the kernel reads and writes no more of it than [`size_field`] says, and
/// [`place`] sets all fields that hold an address, and with them how much lies there, so that the kernel does not
/// leave the buffer.
///
/// [`size_field`]: Command::size_field
/// [`place`]: Command::place
pub unsafe trait Command: Copy + Default {
    /// What the kernel's headers call it.
    const NAME: &'static str;
    /// Its number; the type is `;` for all.
    const NUMBER: u32;

    /// Where the size of the argument stands.
    fn size_field(&mut self) -> &mut u32;

    /// Has the kernel read and write besides the argument in `buffer` and nowhere else.
    fn place(&mut self, buffer: &Buffer<'_>);
}

/// A command that opens a file.
///
/// # Safety
/// After success [`opened`](Opens::opened) is a descriptor that nothing else owns.
pub unsafe trait Opens: Command {
    /// The descriptor.
    fn opened(&self) -> i32;
}

/// Memory that an ioctl reads or writes besides its argument.
#[derive(Debug)]
pub struct Buffer<'a> {
    address: u64,
    bytes: u64,
    /// Whether the kernel may go on using it after the call.
    is_lasting: bool,
    borrow: PhantomData<&'a mut [u8]>,
}

impl Buffer<'_> {
    /// None.
    pub const NONE: Buffer<'static> = Buffer { address: 0, bytes: 0, is_lasting: false, borrow: PhantomData };

    /// These bytes.
    pub fn of(bytes: &mut [u8]) -> Buffer<'_> {
        if bytes.is_empty() {
            return Buffer::NONE;
        }
        let address = bytes.as_mut_ptr() as u64;
        Buffer { address, bytes: bytes.len() as u64, is_lasting: false, borrow: PhantomData }
    }

    /// Memory that others may write at any time during the call.
    #[cfg(feature = "mock")]
    pub fn of_shared<'a>(memory: &VolatileSlice<'a>) -> Buffer<'a> {
        Buffer::of_volatile(memory, false)
    }

    /// Memory that others may write at any time, for ever.
    pub fn of_lasting(memory: &VolatileSlice<'static>) -> Buffer<'static> {
        Buffer::of_volatile(memory, true)
    }

    fn of_volatile<'a>(memory: &VolatileSlice<'a>, is_lasting: bool) -> Buffer<'a> {
        let address = memory.ptr_guard_mut().as_ptr() as u64;
        Buffer { address, bytes: memory.len() as u64, is_lasting, borrow: PhantomData }
    }

    /// How many whole elements of so many bytes there are, as far as 32 bits can say.
    fn count(&self, element: usize) -> u32 {
        let count = self.bytes.checked_div(element as u64).unwrap_or(0);
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// Carries a command out; what the kernel wrote is in `argument`, after an error too. One that a signal interrupted is
/// begun again, as it was given.
pub fn call<C: Command>(file: BorrowedFd<'_>, argument: &mut C, buffer: Buffer<'_>) -> Result<(), Errno> {
    *argument.size_field() = size_of::<C>() as u32;
    argument.place(&buffer);
    let given = *argument;
    loop {
        *argument = given;
        match raw(file, argument) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// The same for a command that opens a file.
pub fn open<C: Opens>(file: BorrowedFd<'_>, argument: &mut C, buffer: Buffer<'_>) -> Result<OwnedFd, Errno> {
    call(file, argument, buffer)?;
    // SAFETY: the command succeeded, so by the contract of `Opens` the descriptor is open and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(argument.opened()) })
}

/// A command as the kernel's headers have it.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Its name there.
    pub name: &'static str,
    /// The number by which `ioctl` is called.
    pub request: u64,
    exists: fn(BorrowedFd<'_>) -> bool,
}

impl Known {
    /// Whether the kernel behind an iommufd has it.
    pub fn exists(&self, iommufd: BorrowedFd<'_>) -> bool {
        (self.exists)(iommufd)
    }
}

/// Whether the kernel has the command. Nothing is done: an argument of no size is refused before it is read.
fn exists<C: Command>(file: BorrowedFd<'_>) -> bool {
    // ENOTTY of an iommufd that does not know the number, ENOIOCTLCMD turned into it.
    raw(file, &mut C::default()) != Err(Errno::NOTTY)
}

fn raw<C: Command>(file: BorrowedFd<'_>, argument: &mut C) -> Result<(), Errno> {
    // SAFETY: the descriptor is open while it is borrowed. The argument is borrowed mutably and as large as its size
    // field says, or that is 0 and the kernel refuses it unread; any bits that the kernel writes are a valid value of
    // its integers. Addresses in it are those of `buffer`, which `call` keeps borrowed, by the contract of `Command`.
    let result = unsafe { ioctl_with_mut_ref(&file.as_raw_fd(), request(C::NUMBER), argument) };
    if result >= 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

const fn request(number: u32) -> u64 {
    ioctl_expr(_IOC_NONE, TYPE, number, 0)
}

/// A command: the name, the number, the type of the argument, its size field, and what [`Command::place`] does.
macro_rules! command {
    ($name:literal, $number:expr, $argument:ty, $size:ident, $place:expr) => {
        // SAFETY: a structure of the kernel's headers, of integers. The last expression sets every address in it.
        unsafe impl Command for $argument {
            const NAME: &'static str = $name;
            const NUMBER: u32 = $number;

            fn size_field(&mut self) -> &mut u32 {
                &mut self.$size
            }

            fn place(&mut self, buffer: &Buffer<'_>) {
                let place: fn(&mut $argument, &Buffer<'_>) = $place;
                place(self, buffer);
            }
        }
    };
}

macro_rules! commands {
    ($($name:literal, $number:expr, $argument:ty, $size:ident, $place:expr;)*) => {
        $(command! { $name, $number, $argument, $size, $place })*

        /// All of them.
        pub const COMMANDS: &[Known] =
            &[$(Known { name: $name, request: request($number), exists: exists::<$argument> }),*];
    };
}

#[rustfmt::skip]
commands! {
    "IOMMU_DESTROY", IOMMUFD_CMD_DESTROY, iommu_destroy, size, none;
    "IOMMU_IOAS_ALLOC", IOMMUFD_CMD_IOAS_ALLOC, iommu_ioas_alloc, size, none;
    "IOMMU_IOAS_ALLOW_IOVAS", IOMMUFD_CMD_IOAS_ALLOW_IOVAS, iommu_ioas_allow_iovas, size, |command, buffer| {
        command.allowed_iovas = buffer.address;
        command.num_iovas = buffer.count(size_of::<iommu_iova_range>());
    };
    "IOMMU_IOAS_CHANGE_PROCESS", IOMMUFD_CMD_IOAS_CHANGE_PROCESS, iommu_ioas_change_process, size, none;
    "IOMMU_IOAS_COPY", IOMMUFD_CMD_IOAS_COPY, iommu_ioas_copy, size, none;
    "IOMMU_IOAS_IOVA_RANGES", IOMMUFD_CMD_IOAS_IOVA_RANGES, iommu_ioas_iova_ranges, size, |command, buffer| {
        command.allowed_iovas = buffer.address;
        command.num_iovas = buffer.count(size_of::<iommu_iova_range>());
    };
    // The kernel keeps the address. Nothing is a length that it refuses.
    "IOMMU_IOAS_MAP", IOMMUFD_CMD_IOAS_MAP, iommu_ioas_map, size, |command, buffer| {
        command.user_va = buffer.address;
        command.length = if buffer.is_lasting { buffer.bytes } else { 0 };
    };
    "IOMMU_IOAS_MAP_FILE", IOMMUFD_CMD_IOAS_MAP_FILE, iommu_ioas_map_file, size, none;
    "IOMMU_IOAS_UNMAP", IOMMUFD_CMD_IOAS_UNMAP, iommu_ioas_unmap, size, none;
    "IOMMU_IOAS_NOIOMMU_GET_PA", 0x95, iommu_ioas_noiommu_get_pa, size, none;
    "IOMMU_OPTION", IOMMUFD_CMD_OPTION, iommu_option, size, none;
    "IOMMU_VFIO_IOAS", IOMMUFD_CMD_VFIO_IOAS, iommu_vfio_ioas, size, none;
    "IOMMU_GET_HW_INFO", IOMMUFD_CMD_GET_HW_INFO, iommu_hw_info, size, |command, buffer| {
        command.data_uptr = buffer.address;
        command.data_len = buffer.count(1);
    };
    "IOMMU_HWPT_ALLOC", IOMMUFD_CMD_HWPT_ALLOC, iommu_hwpt_alloc, size, |command, buffer| {
        command.data_uptr = buffer.address;
        command.data_len = buffer.count(1);
    };
    "IOMMU_HWPT_SET_DIRTY_TRACKING", IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING, iommu_hwpt_set_dirty_tracking, size, none;
    "IOMMU_HWPT_GET_DIRTY_BITMAP", IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP, iommu_hwpt_get_dirty_bitmap, size, |command, buffer| {
        let fits = bitmap_bytes(command.length, command.page_size).is_some_and(|bytes| bytes <= buffer.bytes);
        // A page size of 0 is refused; a length of 0 would not be.
        (command.data, command.page_size) = if fits { (buffer.address, command.page_size) } else { (0, 0) };
    };
    "IOMMU_HWPT_INVALIDATE", IOMMUFD_CMD_HWPT_INVALIDATE, iommu_hwpt_invalidate, size, |command, buffer| {
        command.data_uptr = buffer.address;
        command.entry_num = buffer.count(command.entry_len as usize);
    };
    "IOMMU_FAULT_QUEUE_ALLOC", IOMMUFD_CMD_FAULT_QUEUE_ALLOC, iommu_fault_alloc, size, none;
    "IOMMU_VIOMMU_ALLOC", IOMMUFD_CMD_VIOMMU_ALLOC, iommu_viommu_alloc, size, |command, buffer| {
        command.data_uptr = buffer.address;
        command.data_len = buffer.count(1);
    };
    "IOMMU_VDEVICE_ALLOC", IOMMUFD_CMD_VDEVICE_ALLOC, iommu_vdevice_alloc, size, none;
    "IOMMU_VEVENTQ_ALLOC", IOMMUFD_CMD_VEVENTQ_ALLOC, iommu_veventq_alloc, size, none;
    "IOMMU_HW_QUEUE_ALLOC", IOMMUFD_CMD_HW_QUEUE_ALLOC, iommu_hw_queue_alloc, size, none;
    "VFIO_DEVICE_BIND_IOMMUFD", VFIO_BASE + 18, vfio_device_bind_iommufd, argsz, |command, buffer| {
        command.token_uuid_ptr = if buffer.bytes >= 16 { buffer.address } else { 0 };
    };
    "VFIO_DEVICE_ATTACH_IOMMUFD_PT", VFIO_BASE + 19, vfio_device_attach_iommufd_pt, argsz, none;
    "VFIO_DEVICE_DETACH_IOMMUFD_PT", VFIO_BASE + 20, vfio_device_detach_iommufd_pt, argsz, none;
    "VFIO_DEVICE_GET_INFO", VFIO_BASE + 7, vfio_device_info, argsz, none;
    "VFIO_DEVICE_GET_REGION_INFO", VFIO_BASE + 8, vfio_region_info, argsz, none;
    "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", VFIO_BASE + 12, HotResetInfo, argsz, none;
}

#[cfg(feature = "cdev-tests")]
command! { "VFIO_DEVICE_SET_IRQS", VFIO_BASE + 10, IrqSetEventfd, argsz, none }

#[cfg(feature = "mock")]
command! { "IOMMU_TEST_CMD", IOMMUFD_CMD_BASE + 32, iommu_test_cmd, size, |command, buffer| {
    let words = |words: [u64; 2]| words.map(|word| [word as u32, (word >> 32) as u32]);
    match command.op {
        IOMMU_TEST_OP_MD_CHECK_MAP => {
            command.words[2..6].copy_from_slice(words([buffer.bytes, buffer.address]).as_flattened());
        }
        // One page, and a bit for it.
        IOMMU_TEST_OP_DIRTY => {
            command.words.copy_within(6..8, 4);
            let address = if buffer.bytes > 0 { buffer.address } else { 0 };
            command.words[8..].copy_from_slice(words([address, 0]).as_flattened());
        }
        // Those that have an address too, and are not in use here; nothing is 0.
        IOMMU_TEST_OP_MD_CHECK_REFS | IOMMU_TEST_OP_ACCESS_PAGES | IOMMU_TEST_OP_ACCESS_RW => command.op = 0,
        _ => {}
    }
} }

/// Bytes that a bitmap of written pages is followed by. In a large page that goes beyond the range, the kernel marks
/// all of it, as far as it has pinned memory for the bitmap: to the end of the page after the bitmap's last one at most.
/// No page is larger than 64 KiB.
pub const BITMAP_SLACK: u64 = 2 * (64 << 10);

/// Bytes that a bitmap of pages needs: a bit a page, in words of 64, and [`BITMAP_SLACK`]. The kernel takes any number
/// for a page size and goes by its lowest bit.
pub fn bitmap_bytes(length: u64, page_size: u64) -> Option<u64> {
    let is_whole = page_size.is_power_of_two() && length != 0;
    let pages = is_whole.then(|| length.div_ceil(page_size))?;
    pages.div_ceil(64).checked_mul(8)?.checked_add(BITMAP_SLACK)
}

/// For a command without an address.
fn none<C>(_: &mut C, _: &Buffer<'_>) {}

// SAFETY: the kernel installs a new descriptor in this process and writes it here before the command succeeds.
unsafe impl Opens for iommu_fault_alloc {
    fn opened(&self) -> i32 {
        self.out_fault_fd as i32
    }
}

// SAFETY: as above.
unsafe impl Opens for iommu_veventq_alloc {
    fn opened(&self) -> i32 {
        self.out_veventq_fd as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed<C: Command>(mut command: C, buffer: Buffer<'_>) -> C {
        command.place(&buffer);
        command
    }

    fn bitmap_of(length: u64, page_size: u64, bytes: u64) -> (u64, u64) {
        let mut buffer = vec![0; bytes as usize];
        let command = iommu_hwpt_get_dirty_bitmap { length, page_size, ..Default::default() };
        let command = placed(command, Buffer::of(&mut buffer));
        (command.data, command.page_size)
    }

    #[test]
    fn a_bitmap_that_the_kernel_could_leave_is_not_handed_over() {
        assert_ne!(bitmap_of(64 * 4096, 4096, 8 + BITMAP_SLACK), (0, 0));
        assert_eq!(bitmap_of(64 * 4096, 4096, 7 + BITMAP_SLACK), (0, 0));
        assert_eq!(bitmap_of(65 * 4096, 4096, 8 + BITMAP_SLACK), (0, 0));
        // Its lowest bit is that of pages of 4 KiB, three times as many.
        assert_eq!(bitmap_of(64 * 0x3000, 0x3000, 8 + BITMAP_SLACK), (0, 0));
        // At IOVA 0 the kernel takes it for all there is.
        assert_eq!(bitmap_of(0, 4096, BITMAP_SLACK), (0, 0));
        assert_eq!(bitmap_of(4096, 0, 8 + BITMAP_SLACK), (0, 0));
        assert_eq!(bitmap_of(u64::MAX, 1, 8 + BITMAP_SLACK), (0, 0));
    }

    #[test]
    fn memory_that_is_only_borrowed_is_not_mapped() {
        let mut bytes = vec![0; 4096];
        assert_eq!(placed(iommu_ioas_map::default(), Buffer::of(&mut bytes)).length, 0);
        let leaked: &'static mut [u8] = Box::leak(bytes.into_boxed_slice());
        let lasting = VolatileSlice::from(leaked);
        assert_eq!(placed(iommu_ioas_map::default(), Buffer::of_lasting(&lasting)).length, 4096);
    }

    #[test]
    fn entries_of_no_size_are_none() {
        let command = placed(iommu_hwpt_invalidate::default(), Buffer::of(&mut [1; 16]));
        assert_eq!((command.entry_len, command.entry_num), (0, 0));
    }
}
