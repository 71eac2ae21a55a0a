// SPDX-License-Identifier: MIT OR Apache-2.0
//! Decodes the host's calls: seven registers become typed claims, or a refusal (design §5).
//!
//! Decoding reads nothing but the registers. What a claim is worth is decided under the locks, by the memory model and
//! by [`crate::vm`]. Reserved bits and registers beyond a call's arguments are not looked at, except flags, where an
//! unknown bit is an error.

use freehold_mem::{Access, Claim, GfnRun, Lot, Pfn, PfnRun};
use freehold_uapi::hvc;

use crate::Refused;
use crate::handle::{Handle, VcpuIndex};
use crate::vcpu::HostRegister;
use crate::vgic::Intid;

/// A decoded call.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    /// One counter.
    Counter {
        /// Which.
        counter: u64,
        /// Of which CPU or carve-out.
        index: u64,
    },
    /// A new VM.
    VmCreate {
        /// Whether its memory is its own; else the host lends it.
        protected: bool,
        /// Bits of its address space.
        ipa_bits: u32,
        /// Its first pool.
        pool: Claim<PfnRun>,
    },
    /// RAM of a VM.
    VmRange {
        /// Which VM.
        vm: Handle,
        /// Where.
        run: Claim<GfnRun>,
    },
    /// Where a VM's interrupt controller is.
    VmGic {
        /// Which VM.
        vm: Handle,
        /// First guest frame of the distributor; [`crate::vgic::Window`] decides.
        distributor: u64,
        /// First guest frame of the first redistributor.
        redistributors: u64,
    },
    /// The wire of an SPI.
    VmIrq {
        /// Which VM.
        vm: Handle,
        /// Which interrupt.
        spi: Intid,
        /// Whether it is high.
        high: bool,
        /// Whether the host wants to hear of its end.
        resample: bool,
    },
    /// The end of a VM.
    VmDestroy {
        /// Which VM.
        vm: Handle,
    },
    /// Frames of a dying VM, back to the host.
    VmReclaim {
        /// Which VM.
        vm: Handle,
        /// Which frames.
        run: Claim<PfnRun>,
    },
    /// More pool.
    PoolTopup {
        /// Which VM.
        vm: Handle,
        /// Which frames.
        run: Claim<PfnRun>,
    },
    /// A new vCPU.
    VcpuCreate {
        /// Which VM.
        vm: Handle,
        /// Which vCPU.
        vcpu: VcpuIndex,
    },
    /// A register of a vCPU that nobody runs.
    VcpuReg {
        /// Which VM.
        vm: Handle,
        /// Which vCPU.
        vcpu: VcpuIndex,
        /// Which register.
        register: HostRegister,
        /// What it is set to; `None`: it is read.
        value: Option<u64>,
    },
    /// A kick.
    VcpuKick {
        /// Which VM.
        vm: Handle,
        /// Which vCPU.
        vcpu: VcpuIndex,
    },
    /// Frames for a VM.
    MemDonate {
        /// Which VM.
        vm: Handle,
        /// Which frames, and where to.
        lot: Claim<Lot>,
        /// Whether a stray access of the host takes them back.
        revocable: bool,
    },
    /// Frames for a VM, by a list.
    MemDonateList {
        /// Which VM.
        vm: Handle,
        /// The frame that holds the list.
        list: Claim<Pfn>,
        /// Its records.
        records: u64,
        /// Whether a stray access of the host takes them back.
        revocable: bool,
    },
    /// A loan to an ordinary VM.
    MemShare {
        /// Which VM.
        vm: Handle,
        /// Which frames, and where to.
        lot: Claim<Lot>,
        /// What it may do with them.
        access: Access,
    },
    /// The end of a loan to an ordinary VM.
    MemUnshare {
        /// Which VM.
        vm: Handle,
        /// Which guest frames.
        run: Claim<GfnRun>,
    },
    /// The answer to a guest's request.
    GuestAccept {
        /// Which VM.
        vm: Handle,
        /// Which vCPU.
        vcpu: VcpuIndex,
        /// So many frames of it.
        count: u64,
    },
}

impl Call {
    /// Decodes the call `id` with x1–x5.
    ///
    /// # Errors
    /// `NoSuchCall`; of the arguments `WrongHandle`, `WrongVcpu`, `BadArgument`, `Denied`, `ZeroCount`,
    /// `CountTooLarge`, `Overflow`, `NotMemory`, `GfnOutOfRange`.
    pub fn decode(id: u32, [x1, x2, x3, x4, x5]: [u64; 5]) -> Result<Self, Refused> {
        Ok(match id {
            hvc::COUNTER => Self::Counter { counter: x1, index: x2 },
            hvc::VM_CREATE => {
                if x1 & !hvc::VM_PROTECTED != 0 {
                    return Err(Refused::BadArgument);
                }
                let ipa_bits = u32::try_from(x2).map_err(|_| Refused::BadArgument)?;
                Self::VmCreate { protected: x1 != 0, ipa_bits, pool: frames(x3, x4)? }
            }
            hvc::VM_RANGE => Self::VmRange { vm: Handle::decode(x1)?, run: guest_frames(x2, x3)? },
            hvc::VM_GIC => Self::VmGic { vm: Handle::decode(x1)?, distributor: x2, redistributors: x3 },
            hvc::VM_IRQ if x3 & !(hvc::IRQ_HIGH | hvc::IRQ_RESAMPLE) != 0 => return Err(Refused::BadArgument),
            hvc::VM_IRQ => Self::VmIrq {
                vm: Handle::decode(x1)?,
                spi: Intid::spi(x2)?,
                high: x3 & hvc::IRQ_HIGH != 0,
                resample: x3 & hvc::IRQ_RESAMPLE != 0,
            },
            hvc::VM_DESTROY => Self::VmDestroy { vm: Handle::decode(x1)? },
            hvc::VM_RECLAIM => Self::VmReclaim { vm: Handle::decode(x1)?, run: frames(x2, x3)? },
            hvc::POOL_TOPUP => Self::PoolTopup { vm: Handle::decode(x1)?, run: frames(x2, x3)? },
            hvc::VCPU_CREATE => Self::VcpuCreate { vm: Handle::decode(x1)?, vcpu: VcpuIndex::decode(x2)? },
            hvc::VCPU_SET_REG | hvc::VCPU_GET_REG => Self::VcpuReg {
                vm: Handle::decode(x1)?,
                vcpu: VcpuIndex::decode(x2)?,
                register: HostRegister::decode(x3)?,
                value: (id == hvc::VCPU_SET_REG).then_some(x4),
            },
            hvc::VCPU_KICK => Self::VcpuKick { vm: Handle::decode(x1)?, vcpu: VcpuIndex::decode(x2)? },
            hvc::MEM_DONATE => {
                Self::MemDonate { vm: Handle::decode(x1)?, revocable: revocable(x5)?, lot: lot(x2, x3, x4)? }
            }
            hvc::MEM_DONATE_LIST => Self::MemDonateList {
                vm: Handle::decode(x1)?,
                revocable: revocable(x4)?,
                list: Claim::new(Pfn::new(x2).ok_or(freehold_mem::Refused::NotMemory)?),
                records: x3,
            },
            hvc::MEM_SHARE => Self::MemShare { vm: Handle::decode(x1)?, access: access(x5)?, lot: lot(x2, x3, x4)? },
            hvc::MEM_UNSHARE => Self::MemUnshare { vm: Handle::decode(x1)?, run: guest_frames(x2, bounded(x3)?)? },
            hvc::GUEST_ACCEPT => Self::GuestAccept { vm: Handle::decode(x1)?, vcpu: VcpuIndex::decode(x2)?, count: x3 },
            _ => return Err(Refused::NoSuchCall),
        })
    }
}

/// Decodes x1 and x2 of `VCPU_RUN`, the call that is made most often: it is none of [`Call`]'s.
///
/// # Errors
/// `WrongHandle`, `WrongVcpu`.
#[inline(always)]
pub fn vcpu_run([x1, x2]: [u64; 2]) -> Result<(Handle, VcpuIndex), Refused> {
    Ok((Handle::decode(x1)?, VcpuIndex::decode(x2)?))
}

fn frames(pfn: u64, count: u64) -> Result<Claim<PfnRun>, Refused> {
    Ok(Claim::new(PfnRun::decode(pfn, bounded(count)?)?))
}

fn guest_frames(gfn: u64, count: u64) -> Result<Claim<GfnRun>, Refused> {
    Ok(Claim::new(GfnRun::decode(gfn, count)?))
}

fn lot(pfn: u64, gfn: u64, count: u64) -> Result<Claim<Lot>, Refused> {
    Ok(Claim::new(Lot::decode(pfn, gfn, bounded(count)?)?))
}

/// A count is bounded before anything is computed with it.
fn bounded(count: u64) -> Result<u64, Refused> {
    if count > hvc::MAX_RUN { Err(freehold_mem::Refused::CountTooLarge.into()) } else { Ok(count) }
}

fn revocable(flags: u64) -> Result<bool, Refused> {
    if flags & !hvc::DONATE_REVOCABLE == 0 { Ok(flags != 0) } else { Err(Refused::BadArgument) }
}

fn access(flags: u64) -> Result<Access, Refused> {
    if flags & !(hvc::SHARE_WRITE | hvc::SHARE_EXEC) != 0 {
        return Err(Refused::BadArgument);
    }
    Ok(Access { write: flags & hvc::SHARE_WRITE != 0, execute: flags & hvc::SHARE_EXEC != 0 })
}

/// What a call answers: the status in x0, and results from x1 on. Everything else that a call may return comes back
/// zero. Only the trap loop writes it to registers.
#[must_use = "an answer that nobody gives leaves the host with its own arguments"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    status: i64,
    results: [u64; 5],
}

impl Reply {
    /// Success, with results for x1–x4.
    pub const fn success([x1, x2, x3, x4]: [u64; 4]) -> Self {
        Self { status: hvc::SUCCESS, results: [x1, x2, x3, x4, 0] }
    }

    /// The same, and which vCPUs' threads the host has to wake.
    pub const fn waking(self, vcpus: u64) -> Self {
        let [x1, x2, x3, x4, _] = self.results;
        Self { status: self.status, results: [x1, x2, x3, x4, vcpus] }
    }

    /// Success, with one result.
    pub const fn value(value: u64) -> Self {
        Self::success([value, 0, 0, 0])
    }

    /// Success, and nothing to say.
    pub const fn done() -> Self {
        Self::success([0; 4])
    }

    /// x0–x5; every other register that a call answers in is zero.
    #[must_use]
    pub const fn registers(&self) -> [u64; 6] {
        let [x1, x2, x3, x4, x5] = self.results;
        [self.status.cast_unsigned(), x1, x2, x3, x4, x5]
    }
}

impl From<Refused> for Reply {
    fn from(why: Refused) -> Self {
        let (status, detail) = why.status();
        Self { status, results: [detail, 0, 0, 0, 0] }
    }
}

impl From<Result<Reply, Refused>> for Reply {
    fn from(result: Result<Reply, Refused>) -> Self {
        match result {
            Ok(reply) => reply,
            Err(why) => why.into(),
        }
    }
}

#[cfg(test)]
mod tests;
