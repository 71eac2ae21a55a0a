// SPDX-License-Identifier: MIT OR Apache-2.0
//! The frames of the distributor and of the redistributors, as a guest's loads and stores meet them.
//!
//! Every offset, width and alignment has an answer: what is reserved, read-only, not aligned, or of a width that its
//! register does not have reads as zero and ignores writes. With affinity routing the distributor's registers for
//! INTIDs below 32 are reserved, and so are targets, SGIR and everything of a second security state or of LPIs.

use super::bank::Field;
use super::{At, Kicks, MAX_VCPUS, SPI_BANKS, Vgic};
use crate::exit::Width;
use crate::handle::VcpuIndex;

/// Which 64 KB frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// `GICD_*`.
    Distributor,
    /// `RD_base` of a vCPU.
    Control(VcpuIndex),
    /// `SGI_base` of a vCPU.
    Private(VcpuIndex),
}

/// Affinity routing and one security state, both for ever.
const CTLR_FIXED: u32 = 1 << 4 | 1 << 6;
/// 256 INTIDs, 10 bits to name one, no 1-of-N. Aff3 is always zero.
const GICD_TYPER: u64 = 7 | 9 << 19 | 1 << 25;
/// Product 'F'; no JEP106 code.
const IIDR: u64 = 0x4600_0000;
/// `GICv3`.
const PIDR2: u64 = 0x3b;
const PROCESSOR_SLEEP: u32 = 1 << 1;
const CHILDREN_ASLEEP: u32 = 1 << 2;

/// What stands at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    /// Reads as this, ignores writes.
    Fixed(u64),
    Control,
    Waker(usize),
    Field(At, Field),
    /// Priorities of this many interrupts of a bank, from this one on.
    Priority(At, u32, u32),
    Config(At, bool),
    /// `IROUTER` of an SPI: its lower half, with the upper one behind it if the access is that wide.
    Route(usize, u32),
}

/// Groups of one bit per interrupt, by offset / 0x80.
const FIELDS: [Field; 7] = [
    Field::Group,
    Field::SetEnable,
    Field::ClearEnable,
    Field::SetPending,
    Field::ClearPending,
    Field::SetActive,
    Field::ClearActive,
];

const NOTHING: Register = Register::Fixed(0);

impl Vgic {
    /// Serves a load. Reading what another vCPU holds makes that one come out, so that a later load sees more.
    pub fn read(&mut self, frame: Frame, offset: u64, width: Width, vcpus: usize) -> (u64, Kicks) {
        if let Some(value) = self.read_at_once(frame, offset, width, vcpus) {
            return (value, Kicks::NONE);
        }
        let Register::Field(at, field) = locate(frame, offset, width, vcpus) else { return (0, Kicks::NONE) };
        (self.bank(at).map_or(0, |bank| bank.read(field)).into(), self.announce(at, 0, u32::MAX))
    }

    /// Serves a load of what is the same whatever list registers hold; `None` for what they have a part in.
    #[must_use]
    pub fn read_at_once(&self, frame: Frame, offset: u64, width: Width, vcpus: usize) -> Option<u64> {
        Some(match locate(frame, offset, width, vcpus) {
            Register::Fixed(value) => value,
            Register::Control => (CTLR_FIXED | self.groups).into(),
            Register::Waker(vcpu) => self
                .locals
                .get(vcpu)
                .map_or(0, |local| if local.sleeps { PROCESSOR_SLEEP | CHILDREN_ASLEEP } else { 0 }.into()),
            Register::Field(_, Field::SetPending | Field::ClearPending | Field::SetActive | Field::ClearActive) => {
                return None;
            }
            Register::Field(at, field @ (Field::Group | Field::SetEnable | Field::ClearEnable)) => {
                self.bank(at).map_or(0, |bank| bank.read(field)).into()
            }
            Register::Priority(at, first, count) => self.bank(at).map_or(0, |bank| {
                let bytes = (0..count).map(|n| (n, bank.priority(first.wrapping_add(n))));
                bytes.fold(0, |all, (n, byte)| all | u64::from(byte).unbounded_shl(n.wrapping_mul(8)))
            }),
            Register::Config(at, upper) => self.bank(at).map_or(0, |bank| bank.config(upper).into()),
            Register::Route(n, bit) => {
                self.routes.get(n).and_then(|bank| bank.get(bit as usize)).copied().unwrap_or(0).into()
            }
        })
    }

    /// Serves a store.
    pub fn write(&mut self, frame: Frame, offset: u64, width: Width, value: u64, vcpus: usize) -> Kicks {
        let value = width.cut(value);
        let word = value as u32;
        match locate(frame, offset, width, vcpus) {
            Register::Fixed(_) => Kicks::NONE,
            Register::Control => {
                self.groups = word & 3;
                (0..MAX_VCPUS).fold(Kicks::NONE, |kicks, vcpu| kicks.and(self.tell(vcpu)))
            }
            Register::Waker(vcpu) => {
                if let Some(local) = self.locals.get_mut(vcpu) {
                    local.sleeps = word & PROCESSOR_SLEEP != 0;
                }
                self.tell(vcpu)
            }
            Register::Field(at, field) => {
                let old = self.bank(at).map_or(0, |bank| bank.group);
                let touched = if field == Field::Group { old ^ word } else { word };
                let kicks = self.change(at, touched, |bank| bank.write(field, word));
                // Of its new group a CPU may wait for it.
                if field == Field::Group { kicks.and(self.announce(at, touched, 0)) } else { kicks }
            }
            Register::Priority(at, first, count) => {
                let touched = (0..count).fold(0, |all, n| all | 1u32.unbounded_shl(first.wrapping_add(n)));
                if let Some(bank) = self.bank_mut(at) {
                    for n in 0..count {
                        bank.set_priority(first.wrapping_add(n), value.unbounded_shr(n.wrapping_mul(8)) as u8);
                    }
                }
                // Another one may be first now.
                self.announce(at, touched, touched)
            }
            // Private interrupts are what they are.
            Register::Config(At::Local(_), _) => Kicks::NONE,
            Register::Config(at, upper) => {
                let touched = if upper { 0xffff_0000 } else { 0xffff };
                self.change(at, touched, |bank| bank.set_config(upper, word))
            }
            Register::Route(n, bit) => self.set_route(n, bit, word),
        }
    }

    /// Routes an SPI by Aff2, Aff1 and Aff0; the other bits are reserved.
    fn set_route(&mut self, n: usize, bit: u32, word: u32) -> Kicks {
        if let Some(route) = self.routes.get_mut(n).and_then(|bank| bank.get_mut(bit as usize)) {
            *route = word & 0xff_ffff;
        }
        let told = self.settle(n);
        let bit = 1u32.unbounded_shl(bit);
        told.and(self.announce(At::Shared(n), bit, bit))
    }
}

fn locate(frame: Frame, offset: u64, width: Width, vcpus: usize) -> Register {
    if !offset.is_multiple_of(width.bytes()) {
        return NOTHING;
    }
    let offset = u32::try_from(offset).unwrap_or(u32::MAX);
    match (frame, offset, width) {
        (Frame::Distributor, 0, Width::Word) => Register::Control,
        (Frame::Distributor, 4, Width::Word) => Register::Fixed(GICD_TYPER),
        (Frame::Distributor, 8, Width::Word) | (Frame::Control(_), 4, Width::Word) => Register::Fixed(IIDR),
        (Frame::Distributor | Frame::Control(_), 0xffe8, Width::Word) => Register::Fixed(PIDR2),
        (Frame::Control(vcpu), 8, Width::Double | Width::Word) => Register::Fixed(width.cut(typer(vcpu, vcpus))),
        (Frame::Control(vcpu), 12, Width::Word) => Register::Fixed(typer(vcpu, vcpus) >> 32),
        (Frame::Control(vcpu), 20, Width::Word) => Register::Waker(vcpu.index()),
        (Frame::Distributor, 0x6100..0x6800, Width::Double | Width::Word) if offset.is_multiple_of(8) => {
            let spi = (offset & 0x7ff) >> 3;
            ((spi >> 5) as usize).checked_sub(1).map_or(NOTHING, |n| Register::Route(n, spi & 31))
        }
        (Frame::Distributor, ..) => banked(offset, width, |n| Some(At::Shared(n.checked_sub(1)?))),
        (Frame::Private(vcpu), ..) => banked(offset, width, |n| (n == 0).then_some(At::Local(vcpu.index()))),
        (Frame::Control(_), ..) => NOTHING,
    }
}

/// `GICR_TYPER`: affinity, processor number, and whether it is the last one.
fn typer(vcpu: VcpuIndex, vcpus: usize) -> u64 {
    let (index, last) = (vcpu.index() as u64, vcpu.index().saturating_add(1) >= vcpus);
    index << 32 | index << 8 | u64::from(last) << 4
}

/// The registers that exist once per 32 interrupts, or 4, or 16; `at` says whose bank number `n` of this frame is.
fn banked(offset: u32, width: Width, at: impl Fn(usize) -> Option<At>) -> Register {
    let bank = |n: u32| usize::try_from(n).ok().filter(|n| *n <= SPI_BANKS).and_then(&at);
    let found = match (offset, width) {
        (0x080..0x400, Width::Word) => {
            let field = (offset >> 7).checked_sub(1).and_then(|n| FIELDS.get(n as usize));
            field.and_then(|field| Some(Register::Field(bank((offset & 0x7f) >> 2)?, *field)))
        }
        (0x400..0x800, Width::Byte | Width::Word) => {
            bank((offset & 0x3ff) >> 5).map(|at| Register::Priority(at, offset & 31, width.bytes() as u32))
        }
        (0xc00..0xd00, Width::Word) => bank((offset & 0xff) >> 3).map(|at| Register::Config(at, offset & 4 != 0)),
        _ => None,
    };
    found.unwrap_or(NOTHING)
}
