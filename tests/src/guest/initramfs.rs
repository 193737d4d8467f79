// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writes the guest's initramfs: busybox, a few kernel modules, `init` and the job.
//!
//! It loads nothing that is not asked for and follows only the dependencies that modules declare. To read first:
//! the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst` (cpio "newc").

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Testbed;
use super::archive::Archive;

const INIT: &str = include_str!("../../guest-init/init");
const JOB_LIBRARY: &str = include_str!("../../guest-init/job-library.sh");

/// What a guest's first file system holds; says nothing of the guest's machine.
#[derive(Clone, Debug)]
pub struct Initramfs {
    modules: Vec<String>,
    job: String,
}

impl Initramfs {
    /// One with the drivers of virtio-iommu and virtio-blk, and an empty job.
    pub fn new() -> Self {
        Self { modules: vec!["virtio_iommu".into(), "virtio_blk".into()], job: String::new() }
    }

    /// The shell script to run when the modules are loaded; it can call the functions of
    /// `tests/guest-init/job-library.sh`.
    pub fn job(mut self, script: &str) -> Self {
        self.job = script.into();
        self
    }

    /// Also loads this kernel module, after those it depends on.
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.into());
        self
    }

    /// The archive's bytes, uncompressed.
    ///
    /// # Errors
    /// The kernel has no such module, or the test bed's files cannot be read.
    pub fn build(&self, testbed: &Testbed) -> Result<Vec<u8>> {
        let mut archive = without_modules(&testbed.busybox, &self.job)?;
        let mut loaded = Modules { testbed, files: all_files(&testbed.modules)?, in_order: Vec::new() };
        for name in &self.modules {
            loaded.add(name)?;
        }
        for (position, (name, content)) in loaded.in_order.iter().enumerate() {
            archive.entry(&format!("modules/{position:02}-{name}.ko"), 0o100_644, content)?;
        }
        archive.finish()
    }
}

impl Default for Initramfs {
    fn default() -> Self {
        Self::new()
    }
}

/// The same for a kernel that needs no modules, of any architecture; more can be added.
pub(crate) fn without_modules(busybox: &Path, job: &str) -> Result<Archive> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
        archive.entry(folder, 0o040_755, &[])?;
    }
    archive.entry("init", 0o100_755, INIT.as_bytes())?;
    archive.entry("job-library.sh", 0o100_644, JOB_LIBRARY.as_bytes())?;
    archive.entry("job.sh", 0o100_644, job.as_bytes())?;
    archive.entry("bin/busybox", 0o100_755, &fs::read(busybox)?)?;
    Ok(archive)
}

struct Modules<'a> {
    testbed: &'a Testbed,
    files: Vec<PathBuf>,
    in_order: Vec<(String, Vec<u8>)>,
}

impl Modules<'_> {
    fn add(&mut self, name: &str) -> Result<()> {
        if self.in_order.iter().any(|(loaded, _)| loaded == name) {
            return Ok(());
        }
        let file = self.files.iter().find(|file| module_name(file) == name);
        let file = file.with_context(|| {
            format!("the guest's kernel has no module {name} to load; it may be built in")
        })?;
        let content = self.testbed.busybox(&["unxz"], File::open(file)?)?;
        for needed in dependencies(&content) {
            self.add(&needed)?;
        }
        self.in_order.push((name.into(), content));
        Ok(())
    }
}

/// The names a module declares in `depends=` of its section `.modinfo`, where strings end with a NUL.
fn dependencies(module: &[u8]) -> Vec<String> {
    let declared = module.split(|&byte| byte == 0).find_map(|string| string.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(declared.unwrap_or_default());
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// `virtio-iommu.ko.xz` is the module `virtio_iommu`.
fn module_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

fn all_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(all_files(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_declares_what_it_depends_on() {
        assert_eq!(
            dependencies(b"ELF\0license=GPL\0depends=vdpa,vfio-pci-core\0name=x\0"),
            ["vdpa", "vfio_pci_core"]
        );
        assert!(dependencies(b"ELF\0depends=\0name=x\0").is_empty());
    }

    #[test]
    fn a_module_is_named_with_underscores_whatever_its_file_is_called() {
        assert_eq!(module_name(Path::new("/m/kernel/drivers/iommu/virtio-iommu.ko.xz")), "virtio_iommu");
    }
}
