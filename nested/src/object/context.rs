// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One `/dev/iommu`: the file, what its kernel can do, and its options.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use iommufd_bindings::*;
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};
use crate::uapi;
use crate::uapi::ioctl::{self, Buffer, Command, Opens};

/// An iommufd context. Its objects are shared by all who have a duplicate of the file.
#[derive(Debug)]
pub struct Context {
    file: OwnedFd,
}

/// A descriptor that should be an iommufd is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no iommufd: /dev/iommu is (kernel option CONFIG_IOMMUFD, Linux 6.2 or newer)")]
pub struct NotIommufd;

/// To whom pinned memory is charged (`IOMMU_OPTION_RLIMIT_MODE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RlimitMode {
    /// To the user, as for VFIO type 1.
    User,
    /// To the process. Setting it needs `CAP_SYS_RESOURCE` and a context without objects.
    Process,
}

/// Whether page tables may have large pages (`IOMMU_OPTION_HUGE_PAGES`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Where they fit.
    Allowed,
    /// Never.
    Disallowed,
}

impl Context {
    /// Opens `path`, usually `/dev/iommu`.
    ///
    /// # Errors
    /// Of `open`.
    pub fn open(path: &Path) -> Result<Arc<Context>> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        let file =
            opened.map_err(|errno| Error::of_call("open", errno, format_args!("{}", path.display())))?;
        Ok(Arc::new(Context { file }))
    }

    /// Takes over a descriptor of `/dev/iommu` that another process opened.
    ///
    /// # Errors
    /// [`NotIommufd`] for any other file.
    pub fn adopt(file: OwnedFd) -> std::result::Result<Arc<Context>, NotIommufd> {
        let context = Context { file };
        // No other file answers. That a command is not refused as unknown says nothing: to VFIO and KVM all are invalid.
        context.rlimit_mode().map(|_| Arc::new(context)).map_err(|_| NotIommufd)
    }

    /// The commands that this kernel lacks, by their names in `linux/iommufd.h`.
    pub fn missing_commands(&self) -> Vec<&'static str> {
        let of_iommufd = uapi::COMMANDS.iter().filter(|command| command.name.starts_with("IOMMU_"));
        of_iommufd.filter(|command| !command.exists(self.file.as_fd())).map(|command| command.name).collect()
    }

    /// To whom pinned memory is charged.
    ///
    /// # Errors
    /// Of `IOMMU_OPTION`.
    pub fn rlimit_mode(&self) -> Result<RlimitMode> {
        let value = self.option(iommufd_option_IOMMU_OPTION_RLIMIT_MODE, 0, None)?;
        Ok(if value == 0 { RlimitMode::User } else { RlimitMode::Process })
    }

    /// Changes to whom pinned memory is charged.
    ///
    /// # Errors
    /// Of `IOMMU_OPTION`: EPERM, or EBUSY when the context has objects.
    pub fn set_rlimit_mode(&self, mode: RlimitMode) -> Result<()> {
        let value = u64::from(mode == RlimitMode::Process);
        self.option(iommufd_option_IOMMU_OPTION_RLIMIT_MODE, 0, Some(value)).map(drop)
    }

    /// Charges the memory that all mappings of the context pin to this process, which takes over from another.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_CHANGE_PROCESS`: EINVAL when any mapping is not one of a file.
    pub fn change_process(&self) -> Result<()> {
        let mut command = iommu_ioas_change_process::default();
        self.call(&mut command, Buffer::NONE, format_args!("all mappings"))
    }

    /// The IOAS that VFIO's own container calls use on this context, if one is set.
    ///
    /// # Errors
    /// Of `IOMMU_VFIO_IOAS`: ENODEV for none.
    pub fn vfio_ioas(&self) -> Result<u32> {
        let op = iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_GET as u16;
        let mut command = iommu_vfio_ioas { op, ..Default::default() };
        self.call(&mut command, Buffer::NONE, format_args!("get"))?;
        Ok(command.ioas_id)
    }

    /// Sets that IOAS, or none.
    ///
    /// # Errors
    /// Of `IOMMU_VFIO_IOAS`: ENOENT for an id that is no IOAS.
    pub fn set_vfio_ioas(&self, ioas_id: Option<u32>) -> Result<()> {
        let op = match ioas_id {
            Some(_) => iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_SET,
            None => iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_CLEAR,
        };
        let ioas_id = ioas_id.unwrap_or(0);
        let mut command = iommu_vfio_ioas { op: op as u16, ioas_id, ..Default::default() };
        self.call(&mut command, Buffer::NONE, format_args!("IOAS {ioas_id}"))
    }

    /// Sets an option of an object, or of the context, and returns it as it was given; or reads it.
    pub(crate) fn option(&self, option_id: u32, object_id: u32, set: Option<u64>) -> Result<u64> {
        let op = match set {
            Some(_) => iommufd_option_ops_IOMMU_OPTION_OP_SET,
            None => iommufd_option_ops_IOMMU_OPTION_OP_GET,
        } as u16;
        let val64 = set.unwrap_or(0);
        let mut command = iommu_option { option_id, op, object_id, val64, ..Default::default() };
        self.call(&mut command, Buffer::NONE, format_args!("option {option_id} of id {object_id}"))?;
        Ok(command.val64)
    }

    pub(crate) fn call<C: Command>(
        &self,
        command: &mut C,
        buffer: Buffer<'_>,
        about: fmt::Arguments<'_>,
    ) -> Result<()> {
        ioctl::call(self.file.as_fd(), command, buffer).map_err(|errno| Error::of::<C>(errno, about))
    }

    pub(crate) fn call_opening<C: Opens>(
        &self,
        command: &mut C,
        about: fmt::Arguments<'_>,
    ) -> Result<OwnedFd> {
        ioctl::open(self.file.as_fd(), command, Buffer::NONE).map_err(|errno| Error::of::<C>(errno, about))
    }
}

impl AsFd for Context {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
