// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Makes disk images: of random content with a known checksum, and ones that firmware can boot.
//!
//! It serves no image. To read first: GRUB's manual, "Embedding" and "Block list syntax".

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::initramfs::Initramfs;
use super::machine::KERNEL_ARGS;
use super::testbed::Testbed;

const SECTOR: usize = 512;
const MIB: usize = 1 << 20;

/// A raw image in a file, which stays when this value is dropped.
#[derive(Clone, Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Fills a file with `mib` MiB of random bytes, the same ones for the same `seed`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn random(path: &Path, mib: usize, seed: u64) -> Result<Self> {
        Self::write(path, &random_bytes(mib * MIB, seed))
    }

    /// An image of `mib` MiB that boots itself: GRUB in the first sectors, the kernel and the initramfs behind it,
    /// found by sector numbers, so that the firmware and the boot loader read all of it through the emulated disk.
    /// `kernel_args` add to the kernel's command line; the rest of the image is random.
    ///
    /// # Errors
    /// GRUB's image cannot be made, or it all does not fit.
    pub fn bootable(
        testbed: &Testbed,
        path: &Path,
        mib: usize,
        initramfs: &Initramfs,
        kernel_args: &str,
    ) -> Result<Self> {
        // Sector 0 is the boot record; the rest of the first MiB is the boot loader's by custom.
        let kernel = Extent {
            at: MIB,
            bytes: fs::read(&testbed.kernel)?,
        };
        let initrd = Extent {
            at: kernel.end().next_multiple_of(MIB),
            bytes: initramfs.build(testbed)?,
        };
        let config = format!(
            "serial --unit=0 --speed=115200\nterminal_output serial\necho GRUB reads the kernel\n\
             linux {} {KERNEL_ARGS} {kernel_args}\ninitrd {}\nboot\n",
            kernel.block_list(),
            initrd.block_list()
        );
        let boot_record = Extent {
            at: 0,
            bytes: fs::read(testbed.grub_modules.join("boot.img"))?,
        };
        let grub = Extent {
            at: SECTOR,
            bytes: grub_image(testbed, &config)?,
        };
        ensure!(
            grub.end() <= kernel.at,
            "GRUB's image has {} bytes",
            grub.bytes.len()
        );
        ensure!(
            initrd.end() <= mib * MIB,
            "{mib} MiB are too few for a kernel and an initramfs"
        );
        let mut image = random_bytes(mib * MIB, 1);
        for extent in [boot_record, grub, kernel, initrd] {
            image[extent.at..][..extent.bytes.len()].copy_from_slice(&extent.bytes);
        }
        Self::write(path, &image)
    }

    /// The image's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The md5 of the first `mib` MiB, in hexadecimal as the guest's `checksum` reports it.
    ///
    /// # Errors
    /// The file cannot be read or is shorter.
    pub fn checksum(&self, testbed: &Testbed, mib: usize) -> Result<String> {
        let length = u64::try_from(mib * MIB)?;
        let file = File::open(&self.path)?;
        ensure!(
            file.metadata()?.len() >= length,
            "{} has less than {mib} MiB",
            self.path.display()
        );
        let output =
            String::from_utf8(testbed.busybox(&["sh", "-c", &format!("head -c {length} | md5sum")], file)?)?;
        Ok(output
            .split_whitespace()
            .next()
            .context("md5sum says nothing")?
            .to_owned())
    }

    fn write(path: &Path, content: &[u8]) -> Result<Self> {
        fs::write(path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(Self { path: path.into() })
    }
}

/// Bytes at an offset of the image.
struct Extent {
    at: usize,
    bytes: Vec<u8>,
}

impl Extent {
    fn end(&self) -> usize {
        self.at + self.bytes.len()
    }

    /// How GRUB names these sectors; what follows in the last of them is read too, and does no harm.
    fn block_list(&self) -> String {
        format!("(hd0){}+{}", self.at / SECTOR, self.bytes.len().div_ceil(SECTOR))
    }
}

/// GRUB's `core.img`: it is read from sector 1 on, and runs `config` by itself.
fn grub_image(testbed: &Testbed, config: &str) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let (config_file, image) = (folder.path().join("grub.cfg"), folder.path().join("core.img"));
    fs::write(&config_file, config)?;
    let output = Command::new(&testbed.grub_mkimage)
        .args(["--format=i386-pc", "--prefix=(hd0)/", "--config"])
        .arg(&config_file)
        .arg("--directory")
        .arg(&testbed.grub_modules)
        .arg("--output")
        .arg(&image)
        .args(["biosdisk", "linux", "serial", "terminal", "echo", "boot"])
        .output()
        .context("starting grub-mkimage")?;
    ensure!(
        output.status.success(),
        "grub-mkimage failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(fs::read(&image)?)
}

/// Reproducible, and different in every sector: xorshift64*.
fn random_bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut words = std::iter::repeat_with(|| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    });
    let mut bytes = vec![0; length];
    for chunk in bytes.chunks_mut(8) {
        let word = words.next().unwrap_or_default().to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    bytes
}
