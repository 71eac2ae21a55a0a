// SPDX-License-Identifier: GPL-2.0-only
//! Looks for `el2` below this kernel, says what it found, and serves `/dev/freehold`.
//!
//! No bare HVC is made: the UID query goes through the kernel's own conduit (a VHE host without a hypervisor below
//! would panic on an HVC), and every other call only after the UID matched.
// UNSAFETY: exports entry symbols.

use crate::file::errno;
use crate::port::EL2;
use crate::sys::{self, log, Conduit, Level};
use crate::vm;
use core::sync::atomic::{AtomicU64, Ordering};
use freehold_driver_core::abi::{self, Asked};
use freehold_driver_core::error::Error;
use freehold_uapi::ioctl as io;
use freehold_uapi::{hvc, ABI_VERSION};

/// vCPUs per VM; written once before the device exists.
static MAX_VCPUS: AtomicU64 = AtomicU64::new(0);

/// vCPUs per VM.
pub(crate) fn max_vcpus() -> u64 {
    MAX_VCPUS.load(Ordering::Relaxed)
}

/// Entry from `module_init`: 0, or `-ENODEV` with one line that says why.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_init() -> i64 {
    find().map_or_else(errno, |()| 0)
}

fn find() -> Result<(), Error> {
    if sys::conduit() == Conduit::None {
        log(Level::Error, format_args!("no el2 below this kernel: no SMCCC 1.1 conduit; boot freehold.img first"));
        return Err(Error::NoDevice);
    }
    let uid = sys::uid();
    if uid != hvc::UID {
        log(
            Level::Error,
            format_args!("no el2 below this kernel: UID query answered {:#010x}; boot freehold.img first", uid[0]),
        );
        return Err(Error::NoDevice);
    }
    let (major, minor) = (u64::from(ABI_VERSION >> 16), u64::from(ABI_VERSION & 0xffff));
    let found = EL2.version().map_err(|refused| {
        log(Level::Error, format_args!("el2 would not say its version: status {}", refused.status));
        Error::NoDevice
    })?;
    if found.abi >> 16 != major || found.abi & 0xffff < minor {
        log(
            Level::Error,
            format_args!("el2 speaks ABI {}.{}, this module {major}.{minor}", found.abi >> 16, found.abi & 0xffff),
        );
        return Err(Error::NoDevice);
    }
    MAX_VCPUS.store(found.max_vcpus.min(64), Ordering::Relaxed);
    log(
        Level::Info,
        format_args!(
            "found el2 {}.{}.{}, ABI {}.{}, {} VMs of {} vCPUs",
            found.release >> 16,
            found.release >> 8 & 0xff,
            found.release & 0xff,
            found.abi >> 16,
            found.abi & 0xffff,
            found.max_vms,
            found.max_vcpus
        ),
    );
    Ok(())
}

/// Ioctls of the nodes; of the one that protects every VM if `protect`.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_system_ioctl(cmd: u32, arg: usize, protect: bool) -> i64 {
    ioctl(cmd, arg, protect).unwrap_or_else(errno)
}

fn ioctl(cmd: u32, arg: usize, protect: bool) -> Result<i64, Error> {
    match cmd {
        io::KVM_GET_API_VERSION | io::KVM_GET_VCPU_MMAP_SIZE if arg != 0 => Err(Error::Invalid),
        io::KVM_GET_API_VERSION => Ok(abi::API_VERSION),
        io::KVM_GET_VCPU_MMAP_SIZE => i64::try_from(abi::RUN_SIZE).map_err(|_| Error::Invalid),
        io::KVM_CREATE_VM => vm::create(arg, protect),
        io::KVM_CHECK_EXTENSION => {
            let cap = u64::try_from(arg).map_err(|_| Error::Invalid)?;
            i64::try_from(abi::capability(Asked::System, cap, max_vcpus())).map_err(|_| Error::Invalid)
        }
        io::FREEHOLD_COUNTER => {
            let ask: u64 = sys::copy_in(arg)?;
            let value = EL2.counter(ask & 0xffff_ffff, ask >> 32)?;
            sys::copy_out(arg, &value).map(|()| 0)
        }
        // KVM's answer for an ioctl that it does not know on this descriptor.
        _ => Err(Error::Invalid),
    }
}
