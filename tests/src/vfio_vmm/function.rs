// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PCI functions of this host that were given to vfio-pci, by what sysfs says.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A PCI function of the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    /// Its address, such as `0000:00:03.0`.
    pub address: String,
    /// The number of its IOMMU group.
    pub group: u32,
    /// Its file among VFIO's devices.
    pub cdev: PathBuf,
}

impl Function {
    /// All that have this vendor and device, by address.
    ///
    /// # Errors
    /// One of them does not belong to vfio-pci.
    pub fn all(vendor: u16, device: u16) -> Result<Vec<Function>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/sys/bus/pci/devices")? {
            let folder = entry?.path();
            if (read_hex(&folder.join("vendor"))?, read_hex(&folder.join("device"))?) == (vendor, device) {
                found.push(Function::at(&folder)?);
            }
        }
        found.sort();
        Ok(found)
    }

    fn at(folder: &Path) -> Result<Function> {
        let address = name(folder)?;
        let vfio = folder.join("vfio-dev");
        let names = fs::read_dir(&vfio).with_context(|| format!("{address} was not given to vfio-pci"))?;
        let names: Vec<_> = names.collect::<Result<_, _>>()?;
        ensure!(names.len() == 1, "{} has {} entries", vfio.display(), names.len());
        let group = name(&fs::read_link(folder.join("iommu_group"))?)?.parse()?;
        Ok(Function { address, group, cdev: Path::new("/dev/vfio/devices").join(names[0].file_name()) })
    }
}

fn name(path: &Path) -> Result<String> {
    Ok(path.file_name().and_then(|name| name.to_str()).context("a name")?.to_owned())
}

fn read_hex(path: &Path) -> Result<u16> {
    let text = fs::read_to_string(path)?;
    Ok(u16::from_str_radix(text.trim().trim_start_matches("0x"), 16)?)
}
