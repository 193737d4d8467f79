// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every structure and number that is handed to the kernel, beside the kernel's own headers.
//!
//! `UAPI_HEADERS` names folders that hold `linux/iommufd.h` and `linux/vfio.h`, one for each kernel, with colons
//! between; `scripts/test` fetches those of Debian. The machine's own may be too old.

use std::env;
use std::fs;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use vfio_bindings::bindings::vfio::*;
use viommu_nested::uapi::COMMANDS;
use viommu_nested::uapi::iommufd::*;
use viommu_nested::uapi::types::{
    HotResetInfo, iommu_hw_info, iommu_ioas_noiommu_get_pa, vfio_pci_dependent_device,
};

/// Expressions of C, and what they have to come to.
type Facts = Vec<(String, u64)>;

/// Sizes and offsets of structures that have the same name on both sides. A field may have another one in C.
macro_rules! layout {
    ($facts:ident: $($name:ident { $($field:ident $(= $c_field:literal)?),* $(,)? })*) => {$(
        let c = concat!("struct ", stringify!($name));
        $facts.push((format!("sizeof({c})"), size_of::<$name>() as u64));
        $({
            let c_field = [$($c_field,)? stringify!($field)][0];
            $facts.push((format!("offsetof({c}, {c_field})"), offset_of!($name, $field) as u64));
        })*
    )*};
}

fn structures() -> Facts {
    let mut facts = Facts::new();
    layout! { facts:
        iommu_destroy { size, id }
        iommu_ioas_alloc { size, flags, out_ioas_id }
        iommu_iova_range { start, last }
        iommu_ioas_iova_ranges { size, ioas_id, num_iovas, __reserved, allowed_iovas, out_iova_alignment }
        iommu_ioas_allow_iovas { size, ioas_id, num_iovas, __reserved, allowed_iovas }
        iommu_ioas_map { size, flags, ioas_id, __reserved, user_va, length, iova }
        iommu_ioas_map_file { size, flags, ioas_id, fd, start, length, iova }
        iommu_ioas_copy { size, flags, dst_ioas_id, src_ioas_id, length, dst_iova, src_iova }
        iommu_ioas_unmap { size, ioas_id, iova, length }
        iommu_option { size, option_id, op, __reserved, object_id, val64 }
        iommu_vfio_ioas { size, ioas_id, op, __reserved }
        iommu_hwpt_alloc {
            size, flags, dev_id, pt_id, out_hwpt_id, __reserved, data_type, data_len, data_uptr, fault_id, __reserved2
        }
        iommu_hwpt_vtd_s1 { flags, pgtbl_addr, addr_width, __reserved }
        iommu_hwpt_arm_smmuv3 { ste }
        iommu_hw_info {
            size, flags, dev_id, data_len, data_uptr, data_type = "out_data_type", data_type = "in_data_type",
            out_max_pasid_log2, __reserved, out_capabilities
        }
        iommu_hw_info_vtd { flags, __reserved, cap_reg, ecap_reg }
        iommu_hw_info_arm_smmuv3 { flags, __reserved, idr, iidr, aidr }
        iommu_hwpt_set_dirty_tracking { size, flags, hwpt_id, __reserved }
        iommu_hwpt_get_dirty_bitmap { size, hwpt_id, flags, __reserved, iova, length, page_size, data }
        iommu_hwpt_vtd_s1_invalidate { addr, npages, flags, __reserved }
        iommu_viommu_arm_smmuv3_invalidate { cmd }
        iommu_hwpt_invalidate { size, hwpt_id, data_uptr, data_type, entry_len, entry_num, __reserved }
        iommu_hwpt_pgfault { flags, dev_id, pasid, grpid, perm, __reserved, addr, length, cookie }
        iommu_hwpt_page_response { cookie, code }
        iommu_fault_alloc { size, flags, out_fault_id, out_fault_fd }
        iommu_viommu_alloc {
            size, flags, type_ = "type", dev_id, hwpt_id, out_viommu_id, data_len, __reserved, data_uptr
        }
        iommu_vdevice_alloc { size, viommu_id, dev_id, out_vdevice_id, virt_id }
        iommu_ioas_change_process { size, __reserved }
        iommufd_vevent_header { flags, sequence }
        iommu_vevent_arm_smmuv3 { evt }
        iommu_veventq_alloc {
            size, flags, viommu_id, type_ = "type", veventq_depth, out_veventq_id, out_veventq_fd, __reserved
        }
        iommu_hw_queue_alloc {
            size, flags, viommu_id, type_ = "type", index, out_hw_queue_id, nesting_parent_iova, length
        }
        vfio_device_bind_iommufd { argsz, flags, iommufd, out_devid, token_uuid_ptr }
        vfio_device_attach_iommufd_pt { argsz, flags, pt_id, pasid }
        vfio_device_detach_iommufd_pt { argsz, flags, pasid }
        vfio_device_info { argsz, flags, num_regions, num_irqs, cap_offset, pad }
        vfio_region_info { argsz, flags, index, cap_offset, size, offset }
        vfio_pci_dependent_device { devid, segment, bus, devfn }
    }
    // Ours ends in room for devices, C's in none.
    let hot_reset = "offsetof(struct vfio_pci_hot_reset_info, ";
    facts.push((format!("{hot_reset}count)"), offset_of!(HotResetInfo, count) as u64));
    facts.push((format!("{hot_reset}devices)"), offset_of!(HotResetInfo, devices) as u64));
    facts
}

/// Those that only the newest header has.
fn newest_structures() -> Facts {
    let mut facts = Facts::new();
    layout! { facts:
        iommu_ioas_noiommu_get_pa { size, flags, ioas_id, __reserved, iova, length, out_phys }
    }
    facts
}

const NEWEST: &str = "IOMMU_IOAS_NOIOMMU_GET_PA";

/// Has the compiler see whether each of the facts is true with these headers.
fn compile(facts: &Facts, headers: &Path) {
    let folder = tempfile::tempdir().expect("a folder for the program");
    let source = folder.path().join("facts.c");
    let asserts =
        facts.iter().map(|(c, here)| format!("_Static_assert({c} == {here}, \"{c} is {here} here\");\n"));
    let includes = "#include <stddef.h>\n#include <linux/iommufd.h>\n#include <linux/vfio.h>\n";
    fs::write(&source, includes.to_owned() + &asserts.collect::<String>()).expect("writing the program");
    let compiler = env::var("CC").unwrap_or("cc".into());
    let mut command = Command::new(&compiler);
    command.arg("-fsyntax-only").arg("-I").arg(headers).arg(&source);
    let output = command.output().unwrap_or_else(|error| panic!("{compiler}: {error}; CC names another"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "with {}:\n{said}", headers.display());
}

/// The names of all ioctls that a header defines.
fn ioctls(header: &str) -> Vec<&str> {
    let defines = header.lines().filter_map(|line| line.strip_prefix("#define "));
    let ioctls = defines.filter(|define| define.contains("_IO(IOMMUFD_TYPE,"));
    ioctls.filter_map(|define| define.split_whitespace().next()).collect()
}

#[test]
fn structures_and_numbers_are_those_of_the_kernels_headers() {
    let Some(folders) = env::var_os("UAPI_HEADERS") else {
        eprintln!("left out: UAPI_HEADERS names no headers; scripts/test host does");
        return;
    };
    let folders: Vec<PathBuf> = env::split_paths(&folders).collect();
    let mut newest = 0;
    for folder in &folders {
        let header = fs::read_to_string(folder.join("linux/iommufd.h")).expect("the header");
        let header = header.replace("\\\n", "");
        let known = ioctls(&header);
        assert!(known.len() >= 21, "{known:?}");
        for ioctl in &known {
            assert!(COMMANDS.iter().any(|command| command.name == *ioctl), "{ioctl} is new");
        }
        let has_newest = known.contains(&NEWEST);
        newest += u32::from(has_newest);
        let mut facts = structures();
        if has_newest {
            facts.extend(newest_structures());
        }
        let here = COMMANDS.iter().filter(|command| has_newest || command.name != NEWEST);
        facts.extend(here.map(|command| (command.name.to_owned(), command.request)));
        compile(&facts, folder);
    }
    assert!(newest > 0, "none of {folders:?} has {NEWEST}");
}
