// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest of an ordinary VM wanted of a page that no slot serves: an access that the VMM serves, as a device's.
//!
//! `el2` tells the guest frame and nothing else. What the access was stands in the registers of its vCPU, which of an
//! ordinary VM are the driver's to read; and there goes what the VMM says. Protected VMs do not come here.
//!
//! Source: Arm ARM, `ESR_ELx`, ISS of a data abort.

use crate::exit::Mmio;
use freehold_uapi::hvc;

/// Exception class of a data abort from a lower level.
const DATA_ABORT: u64 = 0x24;
/// The syndrome describes the access.
const ISV: u64 = 1 << 24;
/// The loaded value's sign is extended.
const SSE: u64 = 1 << 21;
/// The register is 64 bits wide.
const SF: u64 = 1 << 15;
/// A cache maintenance instruction.
const CM: u64 = 1 << 8;
/// A walk of the guest's tables for the access.
const S1PTW: u64 = 1 << 7;
/// A store.
const WNR: u64 = 1 << 6;
/// Status of a permission fault, at whatever level.
const PERMISSION: u64 = 0xc;
const STATUS: u64 = 0x3c;
/// `PSTATE.BTYPE`: the mark of a branch, which is spent with the instruction behind it.
const BTYPE: u64 = 3 << 10;
const PAGE_SHIFT: u32 = 12;
const PAGE_MASK: u64 = 0xfff;
/// The register that reads as zero.
const ZERO: u64 = 31;

/// The registers of a vCPU that nobody runs, by the hypervisor's numbers.
pub trait Registers {
    /// Reads one. `None`: the VM has ended.
    fn register(&self, number: u64) -> Option<u64>;
    /// Writes one.
    fn set_register(&self, number: u64, value: u64) -> Option<()>;
}

/// A load that the VMM has to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    rt: u64,
    size: u8,
    signed: bool,
    wide: bool,
}

/// What the guest wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// To store: done as far as the guest is concerned.
    Store(Mmio),
    /// To load: it goes on with [`Load::answer`].
    Load(Mmio, Load),
    /// To clean a cache of what is not there: done.
    Nothing,
    /// What its syndrome does not describe: a pair, a fetch, a walk of its tables.
    Unknown,
}

/// Whether the vCPU's last abort was a store, or what a page that can be read refuses. A walk that finds no page is
/// none, whatever it was made for: the bit speaks of that access. What comes as a permission fault was lent already.
pub fn stores(vcpu: &impl Registers) -> bool {
    let stored = |esr| esr & STATUS == PERMISSION || esr & (WNR | CM | S1PTW) == WNR;
    vcpu.register(hvc::REG_EXIT_ESR).is_some_and(|esr| esr >> 26 & 0x3f == DATA_ABORT && stored(esr))
}

/// What the vCPU's last abort, at `gfn`, was to be. `None`: its VM has ended.
pub fn wanted(vcpu: &impl Registers, gfn: u64) -> Option<Wanted> {
    let esr = vcpu.register(hvc::REG_EXIT_ESR)?;
    if esr >> 26 & 0x3f != DATA_ABORT || esr & S1PTW != 0 {
        return Some(Wanted::Unknown);
    }
    if esr & CM != 0 {
        advance(vcpu)?;
        return Some(Wanted::Nothing);
    }
    if esr & ISV == 0 {
        return Some(Wanted::Unknown);
    }
    let size = match esr >> 22 & 3 {
        0 => 1,
        1 => 2,
        2 => 4,
        _ => 8,
    };
    let address = gfn.checked_shl(PAGE_SHIFT).unwrap_or(0) | vcpu.register(hvc::REG_EXIT_FAR)? & PAGE_MASK;
    let rt = esr >> 16 & 31;
    if esr & WNR == 0 {
        let load = Load { rt, size, signed: esr & SSE != 0, wide: esr & SF != 0 };
        return Some(Wanted::Load(Mmio { address, size, store: None }, load));
    }
    let data = if rt == ZERO { 0 } else { cut(vcpu.register(rt)?, size) };
    advance(vcpu)?;
    Some(Wanted::Store(Mmio { address, size, store: Some(data) }))
}

impl Load {
    /// Gives the guest what was loaded, and lets it go on behind the load. `None`: its VM has ended.
    pub fn answer(self, data: u64, vcpu: &impl Registers) -> Option<()> {
        let value = cut(data, self.size);
        let unused = u32::from(8_u8.saturating_sub(self.size)).saturating_mul(8);
        #[expect(clippy::cast_possible_wrap, clippy::cast_sign_loss, reason = "the sign is what is extended")]
        let extended = ((value << unused) as i64 >> unused) as u64;
        let value = if self.signed { extended } else { value };
        if self.rt != ZERO {
            vcpu.set_register(self.rt, if self.wide { value } else { value & 0xffff_ffff })?;
        }
        advance(vcpu)
    }
}

/// Keeps the bits of an access of so many bytes.
const fn cut(value: u64, size: u8) -> u64 {
    match size {
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

fn advance(vcpu: &impl Registers) -> Option<()> {
    vcpu.set_register(hvc::REG_PC, vcpu.register(hvc::REG_PC)?.wrapping_add(4))?;
    vcpu.set_register(hvc::REG_PSTATE, vcpu.register(hvc::REG_PSTATE)? & !BTYPE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    struct Vcpu(RefCell<BTreeMap<u64, u64>>);

    impl Registers for Vcpu {
        fn register(&self, number: u64) -> Option<u64> {
            assert_ne!(number, ZERO, "no register has that number");
            (self.0.borrow().get(&GONE) != Some(&number)).then(|| self.0.borrow().get(&number).copied().unwrap_or(0))
        }
        fn set_register(&self, number: u64, value: u64) -> Option<()> {
            assert_ne!(number, ZERO, "no register has that number");
            self.0.borrow_mut().insert(number, value);
            Some(())
        }
    }

    /// Where the test has the number of the register that the VM's end has taken.
    const GONE: u64 = u64::MAX;

    const FAR: u64 = 0xffff_8000_1234_5678;

    /// A vCPU behind an abort with this class and these bits, of register 7 or the one that is zero.
    fn vcpu(class: u64, iss: u64) -> Vcpu {
        let x7 = (7, 0xfedc_ba98_7654_3210);
        let marked = (hvc::REG_PSTATE, 0x6000_0c05);
        let exit = [(hvc::REG_EXIT_ESR, class << 26 | 1 << 25 | iss), (hvc::REG_EXIT_FAR, FAR)];
        Vcpu(RefCell::new([x7, marked, (hvc::REG_PC, 0x8000_1000)].into_iter().chain(exit).collect()))
    }

    fn stands(vcpu: &Vcpu) -> (u64, u64) {
        (vcpu.register(hvc::REG_PC).unwrap(), vcpu.register(hvc::REG_PSTATE).unwrap())
    }

    const BEFORE: (u64, u64) = (0x8000_1000, 0x6000_0c05);
    const BEHIND: (u64, u64) = (0x8000_1004, 0x6000_0005);

    const fn of(size: u64, rt: u64) -> u64 {
        ISV | size << 22 | rt << 16
    }

    #[test]
    fn what_no_syndrome_describes_changes_nothing() {
        // A pair; a fetch; a trapped register.
        for (class, iss) in [(DATA_ABORT, WNR), (DATA_ABORT, 0), (0x20, ISV), (0x18, ISV | WNR), (0x25, ISV | WNR)] {
            let vcpu = vcpu(class, iss);
            assert_eq!(wanted(&vcpu, 9), Some(Wanted::Unknown), "{class:#x} {iss:#x}");
            assert_eq!(stands(&vcpu), BEFORE);
        }
    }

    #[test]
    fn a_cache_of_what_is_not_there_is_clean() {
        let vcpu = vcpu(DATA_ABORT, CM | WNR);
        assert!(!stores(&vcpu), "it stores nothing, whatever the bit says");
        assert_eq!(wanted(&vcpu, 9), Some(Wanted::Nothing));
        assert_eq!(stands(&vcpu), BEHIND);
    }

    #[test]
    fn a_walk_is_no_store_unless_it_may_not_write() {
        let (missing, denied) = (0x7, 0xf);
        for (class, iss, stored) in [
            (DATA_ABORT, S1PTW | WNR | missing, false),
            (DATA_ABORT, S1PTW | missing, false),
            (DATA_ABORT, S1PTW | CM | WNR | missing, false),
            (DATA_ABORT, WNR | missing, true),
            (DATA_ABORT, missing, false),
            // The walk sets an access flag, or a cache line is to be dropped, in what was lent to be read.
            (DATA_ABORT, S1PTW | denied, true),
            (DATA_ABORT, CM | WNR | 0xd, true),
            (DATA_ABORT, WNR | 0xe, true),
            (0x20, denied, false),
        ] {
            let vcpu = vcpu(class, iss);
            assert_eq!(stores(&vcpu), stored, "{class:#x} {iss:#x}");
            if iss & S1PTW != 0 {
                assert_eq!((wanted(&vcpu, 9), stands(&vcpu)), (Some(Wanted::Unknown), BEFORE), "{iss:#x}");
            }
        }
    }

    #[test]
    fn a_store_is_told_with_its_bytes_and_is_over() {
        for (size, bytes, data) in [(0, 1, 0x10), (1, 2, 0x3210), (2, 4, 0x7654_3210), (3, 8, 0xfedc_ba98_7654_3210)] {
            let vcpu = vcpu(DATA_ABORT, of(size, 7) | WNR);
            assert!(stores(&vcpu));
            let mmio = Mmio { address: 0x8_0001_9678, size: bytes, store: Some(data) };
            assert_eq!(wanted(&vcpu, 0x80_0019), Some(Wanted::Store(mmio)));
            assert_eq!(stands(&vcpu), BEHIND);
        }
        let nothing = Mmio { address: 0x9678, size: 8, store: Some(0) };
        assert_eq!(wanted(&vcpu(DATA_ABORT, of(3, 31) | WNR), 9), Some(Wanted::Store(nothing)));
    }

    #[test]
    fn a_load_is_over_when_it_is_answered_and_has_its_width_and_sign() {
        const SAID: u64 = 0x8182_8384_8586_8788;
        for (size, bits, expected) in [
            (0, 0, 0x88),
            (0, SSE, 0xffff_ff88),
            (0, SSE | SF, 0xffff_ffff_ffff_ff88),
            (1, 0, 0x8788),
            (1, SSE | SF, 0xffff_ffff_ffff_8788),
            (2, 0, 0x8586_8788),
            (2, SSE | SF, 0xffff_ffff_8586_8788),
            (3, SF, SAID),
        ] {
            let vcpu = vcpu(DATA_ABORT, of(size, 7) | bits);
            assert!(!stores(&vcpu));
            let Some(Wanted::Load(mmio, load)) = wanted(&vcpu, 9) else { panic!("a load") };
            assert_eq!(mmio, Mmio { address: 0x9678, size: 1 << size, store: None });
            assert_eq!(stands(&vcpu), BEFORE, "not before it is answered");
            load.answer(SAID, &vcpu).unwrap();
            assert_eq!((vcpu.register(7), stands(&vcpu)), (Some(expected), BEHIND), "{size} {bits:#x}");
        }
        let vcpu = vcpu(DATA_ABORT, of(3, 31) | SF);
        let Some(Wanted::Load(_, load)) = wanted(&vcpu, 9) else { panic!("a load") };
        load.answer(SAID, &vcpu).unwrap();
        assert_eq!(stands(&vcpu), BEHIND, "into no register");
    }

    #[test]
    fn nothing_is_known_of_a_vcpu_whose_registers_have_gone() {
        for (iss, last) in [(of(3, 7), hvc::REG_EXIT_FAR), (of(3, 7) | WNR, 7), (CM, hvc::REG_PC)] {
            for gone in [hvc::REG_EXIT_ESR, last] {
                let vcpu = vcpu(DATA_ABORT, iss);
                vcpu.0.borrow_mut().insert(GONE, gone);
                assert_eq!(wanted(&vcpu, 9), None, "{iss:#x} {gone}");
            }
        }
        let vcpu = vcpu(DATA_ABORT, WNR);
        vcpu.0.borrow_mut().insert(GONE, hvc::REG_EXIT_ESR);
        assert!(!stores(&vcpu));
    }
}
