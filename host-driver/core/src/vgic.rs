// SPDX-License-Identifier: MIT OR Apache-2.0
//! The vGICv3 as KVM's device: its attributes, when it is complete, and the wires that a VMM may set.
//!
//! The controller itself is `el2`'s. Here is only where it lies, how many interrupts it was asked to have, and what was
//! raised before `el2` knew it. Guarantees D10: an SPI is all that passes, and no attribute shows or changes a guest's
//! interrupt state. Errors are those of Linux `arch/arm64/kvm/vgic` for the same mistake.

use crate::error::Error;
use crate::page::Span;
use freehold_uapi::ioctl as io;

/// Bytes of the distributor, and the alignment of every frame.
const FRAME: u64 = 0x1_0000;
/// Bytes of one redistributor.
const REDISTRIBUTOR: u64 = 0x2_0000;
/// Interrupts where the VMM does not say, and the most that `el2` serves.
const MOST_IRQS: u32 = 256;
/// The most that a VMM may ask for, as with KVM: it need not use them. Those that `el2` does not serve have no wire.
const MOST_ASKED: u32 = 992;
/// The least that a VMM may ask for: those of a vCPU, and one word of SPIs.
const LEAST_IRQS: u32 = 64;
/// First SPI.
const FIRST_SPI: u32 = 32;
/// What an address reads as that was not set.
const UNDEFINED: u64 = u64::MAX;
/// Bits of a page, in which `el2` counts.
const PAGE_SHIFT: u32 = 12;

/// An attribute of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attr {
    /// Address of the distributor.
    Distributor,
    /// Address of the redistributors, one behind the other.
    Redistributors,
    /// The same as a region of so many.
    Region,
    /// Number of interrupts.
    Irqs,
    /// It is complete.
    Init,
}

impl Attr {
    /// Names an attribute.
    ///
    /// # Errors
    /// `NoAddress` for one that is not served. The groups that save and restore registers are among them: what they show
    /// is the guest's.
    pub fn decode(ask: &io::DeviceAttr) -> Result<Self, Error> {
        match (u64::from(ask.group), ask.attr) {
            (io::KVM_DEV_ARM_VGIC_GRP_ADDR, io::KVM_VGIC_V3_ADDR_TYPE_DIST) => Ok(Self::Distributor),
            (io::KVM_DEV_ARM_VGIC_GRP_ADDR, io::KVM_VGIC_V3_ADDR_TYPE_REDIST) => Ok(Self::Redistributors),
            (io::KVM_DEV_ARM_VGIC_GRP_ADDR, io::KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION) => Ok(Self::Region),
            (io::KVM_DEV_ARM_VGIC_GRP_NR_IRQS, _) => Ok(Self::Irqs),
            (io::KVM_DEV_ARM_VGIC_GRP_CTRL, io::KVM_DEV_ARM_VGIC_CTRL_INIT) => Ok(Self::Init),
            _ => Err(Error::NoAddress),
        }
    }
}

/// What of the VM an attribute is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Bits of a guest physical address.
    pub ipa_bits: u64,
    /// vCPUs that there are.
    pub vcpus: u64,
}

#[derive(Clone, Copy, Debug)]
struct Redistributors {
    base: u64,
    /// 0: as many as there are vCPUs.
    count: u64,
}

/// Two guest frames, as `VM_GIC` takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// First frame of the distributor.
    pub distributor: u64,
    /// First frame of the redistributors.
    pub redistributors: u64,
}

/// A VM's vGIC.
///
/// # Invariants
/// Addresses are set once, aligned, and inside the VM's address space. `raised` has only SPIs below `irqs`.
#[derive(Clone, Debug, Default)]
pub struct Vgic {
    distributor: Option<u64>,
    redistributors: Option<Redistributors>,
    irqs: Option<u32>,
    complete: bool,
    /// Wires that are high, a bit each, of a vGIC that `el2` does not know yet.
    raised: [u64; 4],
    /// Those of them whose end is to be told.
    until_ended: [u64; 4],
    /// Wires that were high for a moment, as well.
    pulsed: [u64; 4],
}

fn inside(base: u64, size: u64, facts: Facts) -> Result<(), Error> {
    if base & (FRAME - 1) != 0 {
        return Err(Error::Invalid);
    }
    let end = base.checked_add(size).ok_or(Error::Invalid)?;
    let limit = u32::try_from(facts.ipa_bits).ok().and_then(|bits| 1_u64.checked_shl(bits)).unwrap_or(0);
    if base >= limit || end > limit {
        return Err(Error::TooBig);
    }
    Ok(())
}

const fn meet(a: u64, a_size: u64, b: u64, b_size: u64) -> bool {
    a < b.saturating_add(b_size) && b < a.saturating_add(a_size)
}

impl Vgic {
    /// Whether it can be created in this VM.
    ///
    /// # Errors
    /// `NoDevice` for another kind of device; `Exists` for a second one; `Busy` once a vCPU ran. `KVM_CREATE_DEVICE_TEST`
    /// asks for the kind only.
    pub fn creatable(kind: u32, test: bool, exists: bool, ran: bool) -> Result<(), Error> {
        if u64::from(kind) != io::KVM_DEV_TYPE_ARM_VGIC_V3 {
            return Err(Error::NoDevice);
        }
        match (test, exists, ran) {
            (true, _, _) | (false, false, false) => Ok(()),
            (false, true, _) => Err(Error::Exists),
            (false, false, true) => Err(Error::Busy),
        }
    }

    /// The device's descriptor is closed: one that is not complete is none, and the VM may have another. Whether there is
    /// one still.
    ///
    /// KVM keeps it to no use, for nobody can complete it. kvmtool's default asks for an ITS after its vGIC, and makes
    /// another vGIC when there is none.
    pub fn closed(there: &mut Option<Self>) -> bool {
        *there = there.take().filter(Self::is_complete);
        there.is_some()
    }

    /// Sets an attribute to `value`.
    ///
    /// # Errors
    /// `Exists` for an address that is set, `Invalid` for one that is misaligned or meets the other, `TooBig` beyond the
    /// address space; `Busy` for the number of interrupts once it stands.
    pub fn set(&mut self, attr: Attr, value: u64, facts: Facts) -> Result<(), Error> {
        match attr {
            Attr::Distributor => {
                if self.distributor.is_some() {
                    return Err(Error::Exists);
                }
                inside(value, FRAME, facts)?;
                self.distributor = Some(value);
            }
            Attr::Redistributors => self.place(value, 0, 0, facts)?,
            Attr::Region => {
                let (base, count, index) = (value & 0x000f_ffff_ffff_0000, value >> 52, value & 0xfff);
                if count == 0 || value & 0xf000 != 0 {
                    return Err(Error::Invalid);
                }
                self.place(base, count, index, facts)?;
            }
            Attr::Irqs => {
                let irqs = u32::try_from(value).map_err(|_| Error::Invalid)?;
                if !(LEAST_IRQS..=MOST_ASKED).contains(&irqs) || irqs & 31 != 0 {
                    return Err(Error::Invalid);
                }
                if self.irqs.is_some() {
                    return Err(Error::Busy);
                }
                self.irqs = Some(irqs);
            }
            Attr::Init => {
                self.irqs = self.irqs.or(Some(MOST_IRQS));
                self.complete = true;
            }
        }
        Ok(())
    }

    fn place(&mut self, base: u64, count: u64, index: u64, facts: Facts) -> Result<(), Error> {
        match self.redistributors {
            None if index != 0 => return Err(Error::Invalid),
            None => {}
            Some(there) if count == 0 && there.count != 0 => return Err(Error::Invalid),
            Some(_) if count == 0 => return Err(Error::Exists),
            // A second region is not served; KVM's answer for one out of order.
            Some(_) => return Err(Error::Invalid),
        }
        let size = if count == 0 { facts.vcpus } else { count }.saturating_mul(REDISTRIBUTOR);
        if base.checked_add(size).is_none() {
            return Err(Error::Invalid);
        }
        if count == 0 && self.distributor.is_some_and(|distributor| meet(distributor, FRAME, base, size)) {
            return Err(Error::Invalid);
        }
        inside(base, size, facts)?;
        // INVARIANT: not set before, aligned and inside, as just checked.
        self.redistributors = Some(Redistributors { base, count });
        Ok(())
    }

    /// Reads an attribute. `asked` is what the VMM has in the place for the answer: for a region, its index.
    ///
    /// # Errors
    /// `NoEntry` for a region that there is none of, `NoAddress` for what can not be read.
    pub fn get(&self, attr: Attr, asked: u64) -> Result<u64, Error> {
        match (attr, self.redistributors) {
            (Attr::Distributor, _) => Ok(self.distributor.unwrap_or(UNDEFINED)),
            (Attr::Redistributors, there) => Ok(there.map_or(UNDEFINED, |there| there.base)),
            (Attr::Region, Some(there)) if asked & 0xfff == 0 => {
                Ok(there.base | there.count.checked_shl(52).unwrap_or(0))
            }
            (Attr::Region, _) => Err(Error::NoEntry),
            (Attr::Irqs, _) => Ok(u64::from(self.irqs.unwrap_or(FIRST_SPI))),
            (Attr::Init, _) => Err(Error::NoAddress),
        }
    }

    /// Whether the VMM said that it is complete: no vCPU is created any more.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// Where it lies, once it is complete.
    ///
    /// # Errors
    /// What a vCPU's first run gets: `NoAddress` while an address is missing, `Invalid` if the two meet or a vCPU has no
    /// redistributor, `Busy` if it is not complete.
    pub fn frames(&self, facts: Facts) -> Result<Frames, Error> {
        let (Some(base), Some(there)) = (self.distributor, self.redistributors) else { return Err(Error::NoAddress) };
        if there.count != 0 && there.count < facts.vcpus {
            return Err(Error::NoAddress);
        }
        let size = there.count.max(facts.vcpus).saturating_mul(REDISTRIBUTOR);
        if meet(base, FRAME, there.base, size) {
            return Err(Error::Invalid);
        }
        inside(there.base, size, facts)?;
        if !self.complete {
            return Err(Error::Busy);
        }
        Ok(Frames { distributor: base >> PAGE_SHIFT, redistributors: there.base >> PAGE_SHIFT })
    }

    /// The guest frames that `el2` serves: the distributor's, and the redistributors of all vCPUs that it has, below `vcpus`.
    ///
    /// # Errors
    /// As [`Vgic::frames`].
    pub fn windows(&self, facts: Facts, vcpus: u64) -> Result<[Span; 2], Error> {
        let Frames { distributor, redistributors } = self.frames(facts)?;
        let run = |first, bytes: u64| Span::new(first, bytes >> PAGE_SHIFT).ok_or(Error::NoAddress);
        Ok([run(distributor, FRAME)?, run(redistributors, vcpus.saturating_mul(REDISTRIBUTOR))?])
    }

    /// The SPI that `KVM_IRQ_LINE` names.
    ///
    /// # Errors
    /// `NoAddress` for an interrupt of a controller that the VMM has, `Busy` while this one is not complete, `Invalid`
    /// for anything that is not one of its SPIs.
    pub fn spi(&self, irq: u32) -> Result<Spi, Error> {
        match u64::from(irq >> 24 & 0xf) {
            io::KVM_ARM_IRQ_TYPE_CPU => Err(Error::NoAddress),
            io::KVM_ARM_IRQ_TYPE_SPI => {
                let number = irq & 0xffff;
                if number < FIRST_SPI {
                    return Err(Error::Invalid);
                }
                if !self.complete {
                    return Err(Error::Busy);
                }
                // INVARIANT: of `Spi`.
                if self.irqs.is_some_and(|irqs| number < irqs.min(MOST_IRQS)) {
                    Ok(Spi(number))
                } else {
                    Err(Error::Invalid)
                }
            }
            // A PPI is the guest's own (D10), like what KVM does not know.
            _ => Err(Error::Invalid),
        }
    }

    /// The SPI that an eventfd raises, by its number from 0 on.
    ///
    /// # Errors
    /// `Again` while the controller is not complete, `Invalid` for one that it does not have.
    pub fn gsi(&self, gsi: u32) -> Result<Spi, Error> {
        if !self.complete {
            return Err(Error::Again);
        }
        let number =
            gsi.checked_add(FIRST_SPI).filter(|&number| self.irqs.is_some_and(|irqs| number < irqs.min(MOST_IRQS)));
        // INVARIANT: of `Spi`.
        number.map(Spi).ok_or(Error::Invalid)
    }

    /// Notes a wire's level while `el2` does not know the controller.
    pub fn note(&mut self, spi: Spi, wire: Wire) {
        mark(&mut self.raised, spi, wire != Wire::Low);
        mark(&mut self.until_ended, spi, wire == Wire::HighUntilEnded);
    }

    /// Notes that a wire was high for a moment, while `el2` does not know the controller.
    pub fn pulse(&mut self, spi: Spi) {
        mark(&mut self.pulsed, spi, true);
    }

    /// The wires that are high, in order, and how.
    pub fn raised(&self) -> impl Iterator<Item = (Spi, Wire)> + '_ {
        let told = |spi| if is_marked(&self.until_ended, spi) { Wire::HighUntilEnded } else { Wire::High };
        marked(&self.raised).map(move |spi| (spi, told(spi)))
    }

    /// The wires that were high for a moment, in order.
    pub fn pulsed(&self) -> impl Iterator<Item = Spi> + '_ {
        marked(&self.pulsed)
    }
}

fn mark(bits: &mut [u64; 4], spi: Spi, set: bool) {
    let Some(word) = usize::try_from(spi.0 / 64).ok().and_then(|word| bits.get_mut(word)) else { return };
    let bit = 1_u64.checked_shl(spi.0 % 64).unwrap_or(0);
    *word = if set { *word | bit } else { *word & !bit };
}

fn marked(bits: &[u64; 4]) -> impl Iterator<Item = Spi> + '_ {
    (FIRST_SPI..MOST_IRQS).map(Spi).filter(|&spi| is_marked(bits, spi))
}

fn is_marked(bits: &[u64; 4], spi: Spi) -> bool {
    let word = usize::try_from(spi.0 / 64).ok().and_then(|word| bits.get(word));
    word.is_some_and(|word| word.checked_shr(spi.0 % 64).is_some_and(|bits| bits & 1 != 0))
}

/// What becomes of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Low.
    Low,
    /// High.
    High,
    /// High, and the end of the interrupt is to be told.
    HighUntilEnded,
}

/// An SPI that the controller has.
///
/// # Invariants
/// From 32 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spi(u32);

impl Spi {
    /// Its INTID.
    #[must_use]
    pub fn intid(self) -> u64 {
        u64::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts { ipa_bits: 40, vcpus: 2 };
    const DIST: u64 = 0x3fff_0000;
    const REDIST: u64 = 0x3ffb_0000;

    fn complete() -> Vgic {
        let mut vgic = Vgic::default();
        vgic.set(Attr::Distributor, DIST, FACTS).unwrap();
        vgic.set(Attr::Redistributors, REDIST, FACTS).unwrap();
        vgic.set(Attr::Irqs, 64, FACTS).unwrap();
        vgic.set(Attr::Init, 0, FACTS).unwrap();
        vgic
    }

    fn attr(group: u32, attr: u64) -> Result<Attr, Error> {
        Attr::decode(&io::DeviceAttr { flags: 0, group, attr, addr: 0 })
    }

    #[test]
    fn it_is_complete_when_the_vmm_says_so_and_not_before() {
        assert!(!Vgic::default().is_complete());
        assert!(complete().is_complete());
    }

    #[test]
    fn the_distributor_may_lie_right_before_the_redistributors_or_right_behind_them() {
        // 64 KB, and 128 KB for each of two vCPUs.
        for base in [REDIST - 0x1_0000, REDIST + 0x4_0000] {
            let mut vgic = Vgic::default();
            vgic.set(Attr::Distributor, base, FACTS).unwrap();
            vgic.set(Attr::Redistributors, REDIST, FACTS).unwrap();
            vgic.set(Attr::Init, 0, FACTS).unwrap();
            assert!(vgic.frames(FACTS).is_ok(), "{base:#x}");
        }
    }

    #[test]
    fn one_vgic_v3_is_created_before_a_vcpu_ran() {
        assert_eq!(Vgic::creatable(7, false, false, false), Ok(()));
        for other in [0, 1, 4, 5, 6, 8, 9, u32::MAX] {
            assert_eq!(Vgic::creatable(other, false, false, false), Err(Error::NoDevice), "{other}");
            assert_eq!(Vgic::creatable(other, true, false, false), Err(Error::NoDevice), "{other}");
        }
        assert_eq!(Vgic::creatable(7, false, true, false), Err(Error::Exists));
        assert_eq!(Vgic::creatable(7, false, false, true), Err(Error::Busy));
        assert_eq!(Vgic::creatable(7, true, true, true), Ok(()));
    }

    #[test]
    fn one_that_nobody_can_complete_any_more_is_none() {
        let mut there = Some(Vgic::default());
        there.as_mut().unwrap().set(Attr::Distributor, DIST, FACTS).unwrap();
        assert!(!Vgic::closed(&mut there) && there.is_none());
        assert!(!Vgic::closed(&mut there));
        let mut there = Some(complete());
        assert!(Vgic::closed(&mut there) && there.is_some_and(|gic| gic.is_complete()));
    }

    #[test]
    fn attributes_that_show_a_guests_interrupt_state_are_none() {
        // DIST_REGS, CPU_INTERFACE, REDIST_REGS, CPU_SYSREGS, LEVEL_INFO, ITS, maintenance.
        for group in [1, 2, 5, 6, 7, 8, 9, 10, u32::MAX] {
            for number in [0, 2, 1 << 32, u64::MAX] {
                assert_eq!(attr(group, number), Err(Error::NoAddress), "{group} {number}");
            }
        }
        // GICv2's addresses, an ITS's, and saving of pending tables.
        for (group, number) in [(0, 0), (0, 1), (0, 4), (0, 6), (0, 1 << 32 | 2), (4, 1), (4, 3), (4, u64::MAX)] {
            assert_eq!(attr(group, number), Err(Error::NoAddress), "{group} {number}");
        }
        assert_eq!(attr(0, 2), Ok(Attr::Distributor));
        assert_eq!(attr(0, 3), Ok(Attr::Redistributors));
        assert_eq!(attr(0, 5), Ok(Attr::Region));
        assert_eq!(attr(3, 0), Ok(Attr::Irqs));
        assert_eq!(attr(4, 0), Ok(Attr::Init));
    }

    #[test]
    fn an_address_is_aligned_inside_and_set_once() {
        for which in [Attr::Distributor, Attr::Redistributors] {
            let mut vgic = Vgic::default();
            let mut set = |value| vgic.set(which, value, FACTS);
            assert_eq!(set(0x1000), Err(Error::Invalid));
            assert_eq!(set(DIST | 1), Err(Error::Invalid));
            assert_eq!(set(1 << 40), Err(Error::TooBig));
            assert_eq!(set(0u64.wrapping_sub(FRAME)), Err(Error::Invalid), "it wraps");
            assert_eq!(set(DIST), Ok(()));
            assert_eq!(set(DIST), Err(Error::Exists));
            assert_eq!(vgic.get(which, 0), Ok(DIST));
        }
        let mut vgic = Vgic::default();
        let last = (1 << 40) - 2 * REDISTRIBUTOR;
        assert_eq!(vgic.set(Attr::Redistributors, last + FRAME, FACTS), Err(Error::TooBig));
        assert_eq!(vgic.set(Attr::Redistributors, last, FACTS), Ok(()));
        assert_eq!(Vgic::default().get(Attr::Distributor, 0), Ok(u64::MAX));
        assert_eq!(Vgic::default().get(Attr::Redistributors, 0), Ok(u64::MAX));
    }

    #[test]
    fn one_region_of_redistributors_is_served() {
        let mut vgic = Vgic::default();
        let mut region = |count: u64, low: u64| vgic.set(Attr::Region, count << 52 | REDIST | low, FACTS);
        assert_eq!(region(0, 0), Err(Error::Invalid), "no count");
        assert_eq!(region(2, 1 << 12), Err(Error::Invalid), "a flag");
        assert_eq!(region(2, 1), Err(Error::Invalid), "not the first");
        assert_eq!(region(2, 0), Ok(()));
        assert_eq!(region(2, 0), Err(Error::Invalid), "the same again");
        assert_eq!(region(2, 1), Err(Error::Invalid), "a second one");
        assert_eq!(vgic.set(Attr::Redistributors, DIST, FACTS), Err(Error::Invalid), "both ways");
        assert_eq!(vgic.get(Attr::Region, 0), Ok(2 << 52 | REDIST));
        assert_eq!(vgic.get(Attr::Region, 1), Err(Error::NoEntry));
        assert_eq!(Vgic::default().get(Attr::Region, 0), Err(Error::NoEntry));
        let mut beyond = Vgic::default();
        assert_eq!(beyond.set(Attr::Region, 2 << 52 | 1 << 40, FACTS), Err(Error::TooBig));
    }

    #[test]
    fn frames_do_not_meet() {
        let mut vgic = Vgic::default();
        vgic.set(Attr::Distributor, REDIST + REDISTRIBUTOR, FACTS).unwrap();
        assert_eq!(vgic.set(Attr::Redistributors, REDIST, FACTS), Err(Error::Invalid));
        assert_eq!(vgic.set(Attr::Redistributors, REDIST - REDISTRIBUTOR, FACTS), Ok(()));
        // The other order is seen when it is complete.
        let mut vgic = Vgic::default();
        vgic.set(Attr::Redistributors, REDIST, FACTS).unwrap();
        vgic.set(Attr::Distributor, REDIST + 3 * FRAME, FACTS).unwrap();
        vgic.set(Attr::Init, 0, FACTS).unwrap();
        assert_eq!(vgic.frames(FACTS), Err(Error::Invalid));
        assert_eq!(vgic.windows(FACTS, 2), Err(Error::Invalid));
        let alone = Facts { vcpus: 1, ..FACTS };
        assert_eq!(vgic.frames(alone).map(|f| f.distributor), Ok((REDIST + 3 * FRAME) >> 12));
        for vcpus in [1, 3] {
            let windows = [((REDIST + 3 * FRAME) >> 12, 16), (REDIST >> 12, 32 * vcpus)];
            assert_eq!(vgic.windows(alone, vcpus).map(|runs| runs.map(|run| (run.first(), run.count()))), Ok(windows));
        }
    }

    #[test]
    fn interrupts_are_counted_in_words_and_once() {
        let mut vgic = Vgic::default();
        assert_eq!(vgic.get(Attr::Irqs, 0), Ok(32));
        for bad in [0, 32, 63, 65, 96 + 1, 289, 1023, 1024, 1 << 32 | 64, u64::MAX] {
            assert_eq!(vgic.set(Attr::Irqs, bad, FACTS), Err(Error::Invalid), "{bad}");
        }
        assert_eq!(vgic.set(Attr::Irqs, 96, FACTS), Ok(()));
        assert_eq!(vgic.set(Attr::Irqs, 96, FACTS), Err(Error::Busy));
        assert_eq!(vgic.get(Attr::Irqs, 0), Ok(96));
        // More may be asked for than there are wires.
        let mut large = Vgic::default();
        large.set(Attr::Irqs, 992, FACTS).unwrap();
        large.set(Attr::Init, 0, FACTS).unwrap();
        assert_eq!(large.get(Attr::Irqs, 0), Ok(992));
        assert_eq!(large.spi(1 << 24 | 255).map(Spi::intid), Ok(255));
        assert_eq!(large.spi(1 << 24 | 256), Err(Error::Invalid));
        let mut silent = Vgic::default();
        silent.set(Attr::Init, 0, FACTS).unwrap();
        assert_eq!(silent.get(Attr::Irqs, 0), Ok(256));
        assert_eq!(silent.set(Attr::Irqs, 64, FACTS), Err(Error::Busy));
        assert_eq!(silent.get(Attr::Init, 0), Err(Error::NoAddress));
    }

    #[test]
    fn a_first_run_needs_a_complete_vgic() {
        let mut vgic = Vgic::default();
        assert_eq!(vgic.frames(FACTS), Err(Error::NoAddress));
        vgic.set(Attr::Distributor, DIST, FACTS).unwrap();
        assert_eq!(vgic.frames(FACTS), Err(Error::NoAddress));
        vgic.set(Attr::Region, 2 << 52 | REDIST, FACTS).unwrap();
        assert_eq!(vgic.frames(FACTS), Err(Error::Busy));
        vgic.set(Attr::Init, 0, FACTS).unwrap();
        vgic.set(Attr::Init, 0, FACTS).unwrap();
        assert_eq!(vgic.frames(FACTS), Ok(Frames { distributor: DIST >> 12, redistributors: REDIST >> 12 }));
        let three = Facts { vcpus: 3, ..FACTS };
        assert_eq!(vgic.frames(three), Err(Error::NoAddress), "a vCPU without a redistributor");
    }

    #[test]
    fn a_vmm_sets_spis_and_nothing_else() {
        let vgic = complete();
        let irq = |kind: u32, vcpu: u32, number: u32| kind << 24 | vcpu << 16 | number;
        assert_eq!(vgic.spi(irq(1, 0, 32)), Ok(Spi(32)));
        assert_eq!(vgic.spi(irq(1, 7, 63)).map(Spi::intid), Ok(63));
        for number in [0, 7, 16, 27, 31, 64, 255, 0xffff] {
            assert_eq!(vgic.spi(irq(1, 0, number)), Err(Error::Invalid), "SPI {number}");
        }
        for number in [0, 16, 27, 30, 31, 40] {
            assert_eq!(vgic.spi(irq(2, 0, number)), Err(Error::Invalid), "PPI {number}");
            assert_eq!(vgic.spi(irq(0, 0, number)), Err(Error::NoAddress), "CPU {number}");
        }
        for kind in 3..16 {
            assert_eq!(vgic.spi(irq(kind, 0, 40)), Err(Error::Invalid), "type {kind}");
        }
        assert_eq!(Vgic::default().spi(irq(1, 0, 40)), Err(Error::Busy));
        assert_eq!(Vgic::default().spi(irq(1, 0, 31)), Err(Error::Invalid));
    }

    #[test]
    fn an_eventfd_raises_an_spi_of_a_complete_controller() {
        let vgic = complete();
        assert_eq!(vgic.gsi(0).map(Spi::intid), Ok(32));
        assert_eq!(vgic.gsi(31).map(Spi::intid), Ok(63));
        for bad in [32, 224, u32::MAX] {
            assert_eq!(vgic.gsi(bad), Err(Error::Invalid), "{bad}");
        }
        assert_eq!(Vgic::default().gsi(0), Err(Error::Again));
    }

    #[test]
    fn what_was_raised_for_a_moment_is_not_lost() {
        let mut vgic = complete();
        vgic.pulse(vgic.gsi(3).unwrap());
        assert_eq!(vgic.pulsed().map(Spi::intid).collect::<Vec<_>>(), [35]);
        assert_eq!(vgic.raised().count(), 0);
    }

    #[test]
    fn what_was_raised_early_is_not_lost() {
        let mut vgic = complete();
        use Wire::{High, HighUntilEnded, Low};
        for (spi, wire) in
            [(32, HighUntilEnded), (33, HighUntilEnded), (33, High), (63, High), (40, HighUntilEnded), (40, Low)]
        {
            let spi = vgic.spi(1 << 24 | spi).unwrap();
            vgic.note(spi, wire);
        }
        let raised = vgic.raised().map(|(spi, wire)| (spi.intid(), wire)).collect::<Vec<_>>();
        assert_eq!(raised, [(32, HighUntilEnded), (33, High), (63, High)]);
        let mut large = Vgic::default();
        large.set(Attr::Init, 0, FACTS).unwrap();
        large.note(large.spi(1 << 24 | 255).unwrap(), High);
        assert_eq!(large.raised().map(|(spi, _)| spi.intid()).collect::<Vec<_>>(), [255]);
    }
}
