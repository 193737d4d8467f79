// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Takes an ACPI table from where QEMU puts it for the firmware: the file `etc/acpi/tables` of its fw_cfg device.
//!
//! It runs nothing in the machine, so that the firmware has not numbered the buses yet. To read first: QEMU's
//! `docs/specs/fw_cfg.rst`, "Guest-side DMA Interface".

use anyhow::{Context, Result, ensure};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32, U64},
    little_endian,
};

use super::qtest::Qtest;

/// Where QEMU's `virt` machine has the register that starts a transfer.
const DMA_REGISTER: u64 = 0x902_0010;
/// Two places in the machine's memory: for the request, and for what it asks for.
const REQUEST: u64 = 0x4000_0000;
const CONTENT: u64 = 0x4000_1000;

const SELECT: u32 = 1 << 3;
const READ: u32 = 1 << 1;

/// The key of the list of files.
const DIRECTORY: u16 = 0x19;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Request {
    control: U32,
    length: U32,
    address: U64,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct File {
    size: U32,
    key: U16,
    reserved: U16,
    name: [u8; 56],
}

impl File {
    fn is_named(&self, name: &str) -> bool {
        self.name.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(&[0]))
    }
}

/// The first table with this signature.
pub(super) fn table(machine: &mut Qtest, signature: [u8; 4]) -> Result<Vec<u8>> {
    let tables = file(machine, "etc/acpi/tables")?;
    let mut rest = tables.as_slice();
    while let Some((found, length)) = head(rest) {
        let (table, behind) =
            rest.split_at_checked(length).context("an ACPI table ends behind all tables")?;
        if found == signature {
            return Ok(table.into());
        }
        rest = behind;
    }
    Err(anyhow::anyhow!("QEMU has no ACPI table {}", signature.escape_ascii()))
}

/// The signature and the length of the table that these bytes begin with; zeros follow the last table.
fn head(bytes: &[u8]) -> Option<([u8; 4], usize)> {
    let (signature, rest) = bytes.split_first_chunk::<4>()?;
    let (length, _) = little_endian::U32::ref_from_prefix(rest).ok()?;
    let length = usize::try_from(length.get()).ok()?;
    (length > 0).then_some((*signature, length))
}

fn file(machine: &mut Qtest, name: &str) -> Result<Vec<u8>> {
    let count = read(machine, DIRECTORY, size_of::<U32>())?;
    let count = U32::read_from_bytes(&count).ok().context("no list of files")?.get();
    let list = read(machine, DIRECTORY, size_of::<U32>() + usize::try_from(count)? * size_of::<File>())?;
    let files = <[File]>::ref_from_bytes(&list[size_of::<U32>()..]);
    let files = files.ok().context("the list of files has an odd length")?;
    let file = files.iter().find(|file| file.is_named(name));
    let file = file.with_context(|| format!("QEMU has no file {name} for the firmware"))?;
    read(machine, file.key.get(), usize::try_from(file.size.get())?)
}

/// The first bytes of the file with this key.
fn read(machine: &mut Qtest, key: u16, length: usize) -> Result<Vec<u8>> {
    let request = Request {
        control: (u32::from(key) << 16 | SELECT | READ).into(),
        length: u32::try_from(length)?.into(),
        address: CONTENT.into(),
    };
    machine.write(REQUEST, request.as_bytes())?;
    machine.write(DMA_REGISTER, &REQUEST.to_be_bytes())?;
    let control = machine.read(REQUEST, size_of::<U32>())?;
    ensure!(control == [0; 4], "QEMU does not read the file {key:#x}: {control:?}");
    machine.read(CONTENT, length)
}
