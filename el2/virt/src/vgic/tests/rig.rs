// SPDX-License-Identifier: MIT OR Apache-2.0
//! CPUs with a virtual interface as IHI 0069 describes it, around one VM's interrupt controller.

use std::vec::Vec;

use crate::exit::Width;
use crate::handle::VcpuIndex;
use crate::vgic::{Frame, Intid, Kicks, Lists, Vgic};

pub(super) const PENDING: u64 = 1 << 62;
pub(super) const ACTIVE: u64 = 1 << 63;
const HARDWARE: u64 = 1 << 61;
const EOI: u64 = 1 << 41;
const LRENPIE: u64 = 1 << 2;
const NPIE: u64 = 1 << 3;
const GROUP1: u64 = 1 << 60;
/// Priority of a CPU that serves nothing.
pub(super) const IDLE: u8 = 0xff;

pub(super) fn vcpu(n: usize) -> VcpuIndex {
    VcpuIndex::decode(u64::try_from(n).unwrap()).unwrap()
}

pub(super) fn intid(n: u32) -> Intid {
    Intid::of_register(n.into()).unwrap()
}

/// What a vCPU that enters on CPU number `cpu` is loaded with.
pub(super) fn loaded(vgic: &mut Vgic, vcpu: VcpuIndex, cpu: u8, room: usize) -> Lists {
    let mut lists = Lists::EMPTY;
    vgic.load(vcpu, cpu, room, &mut lists);
    lists
}

/// The virtual interface of one CPU.
#[derive(Clone, Debug)]
pub(super) struct Cpu {
    pub(super) lists: Lists,
    /// What they were when it entered, and how often something was in them and stayed while it was out.
    before: Vec<u64>,
    pub(super) kept: u32,
    pub(super) ends: u32,
    /// `ICC_IGRPEN0_EL1` and `ICC_IGRPEN1_EL1`.
    pub(super) groups: u64,
    pub(super) inside: bool,
    /// What was acknowledged and not ended, the last one last.
    pub(super) running: Vec<(u32, u8)>,
    /// How often the guest came out by a maintenance interrupt.
    pub(super) maintenance: u32,
}

/// Number and state of a list register.
fn state(entry: u64) -> u64 {
    entry & (PENDING | ACTIVE)
}

pub(super) fn number(entry: u64) -> u32 {
    entry as u32
}

fn priority(entry: u64) -> u8 {
    (entry >> 48) as u8
}

impl Cpu {
    fn limit(&self) -> u8 {
        self.running.last().map_or(IDLE, |(_, priority)| *priority)
    }

    /// What an acknowledgement would return.
    pub(super) fn offers(&mut self) -> Option<u32> {
        let (limit, groups) = (self.limit(), self.groups);
        let entries = self.lists.entries();
        let on = |entry: u64| groups & if entry & GROUP1 != 0 { 2 } else { 1 } != 0;
        let ready = entries.iter().filter(|e| state(**e) == PENDING && priority(**e) < limit && on(**e));
        ready.min_by_key(|e| (priority(**e), number(**e))).map(|e| number(*e))
    }

    fn acknowledge(&mut self) -> Option<u32> {
        let found = self.offers()?;
        let entry = self.lists.entries().iter_mut().find(|e| number(**e) == found && state(**e) == PENDING)?;
        *entry = *entry & !PENDING | ACTIVE;
        let priority = priority(*entry);
        self.running.push((found, priority));
        Some(found)
    }

    fn end(&mut self) -> Option<u32> {
        let (ended, _) = self.running.pop()?;
        match self.lists.entries().iter_mut().find(|e| number(**e) == ended && **e & ACTIVE != 0) {
            Some(entry) => *entry &= !ACTIVE,
            None => self.ends += 1,
        }
        Some(ended)
    }

    /// Whether the interface raises its maintenance interrupt.
    fn wants_out(&mut self) -> bool {
        let control = self.lists.control();
        let ends = self.ends;
        let switched =
            [(4, self.groups & 1), (6, self.groups >> 1)].iter().any(|(bit, on)| control >> (bit + 1 - on) & 1 != 0);
        let entries = self.lists.entries();
        let ended = entries.iter().any(|e| state(*e) == 0 && *e & HARDWARE == 0 && *e & EOI != 0);
        let none = !entries.iter().any(|e| state(*e) == PENDING);
        ended || control & LRENPIE != 0 && ends != 0 || control & NPIE != 0 && none || switched
    }
}

/// One VM on as many CPUs as it has vCPUs.
#[derive(Clone, Debug)]
pub(super) struct Rig {
    pub(super) vgic: Vgic,
    pub(super) cpus: Vec<Cpu>,
    pub(super) room: usize,
    /// vCPUs whose thread was to be woken.
    pub(super) woken: u8,
}

impl Rig {
    /// Everybody in the guest, groups open, redistributors awake, nothing enabled.
    pub(super) fn new(vcpus: usize, room: usize) -> Self {
        let cpu = Cpu {
            lists: Lists::EMPTY,
            before: Vec::new(),
            kept: 0,
            ends: 0,
            groups: 3,
            inside: false,
            running: Vec::new(),
            maintenance: 0,
        };
        let mut rig = Self { vgic: Vgic::new(), cpus: vec![cpu; vcpus], room, woken: 0 };
        rig.store(Frame::Distributor, 0, 3);
        for n in 0..vcpus {
            rig.store(Frame::Control(vcpu(n)), 0x14, 0);
            rig.store(Frame::Private(vcpu(n)), 0x80, u32::MAX);
            rig.enter(n);
        }
        for bank in 1..8 {
            rig.store(Frame::Distributor, 0x80 + 4 * bank, u32::MAX);
        }
        rig
    }

    pub(super) fn enter(&mut self, n: usize) {
        assert!(!self.cpus[n].inside);
        // What was noted at the last exit is still known.
        self.vgic.load(vcpu(n), u8::try_from(n).unwrap(), self.room, &mut self.cpus[n].lists);
        let cpu = &mut self.cpus[n];
        cpu.before = cpu.lists.entries().to_vec();
        cpu.inside = true;
        self.check_unique();
    }

    pub(super) fn leave(&mut self, n: usize) {
        let cpu = &mut self.cpus[n];
        assert!(cpu.inside);
        cpu.inside = false;
        let is_same = cpu.lists.entries() == cpu.before;
        cpu.lists.note(0xff00_0000 | cpu.groups, core::mem::take(&mut cpu.ends), is_same);
        let kicks = self.vgic.save(vcpu(n), &mut cpu.lists);
        cpu.kept += u32::from(!cpu.lists.entries().is_empty());
        assert_eq!(kicks.cpus >> n & 1, 0, "nobody is told of what he does himself");
        self.give(kicks);
    }

    /// Lets every kick and every maintenance interrupt arrive, until there is none.
    pub(super) fn give(&mut self, kicks: Kicks) {
        self.woken |= kicks.sleepers;
        for n in 0..self.cpus.len() {
            if kicks.cpus >> n & 1 != 0 && self.cpus[n].inside {
                self.leave(n);
                self.enter(n);
            }
        }
        for n in 0..self.cpus.len() {
            for turn in 0.. {
                if !self.cpus[n].inside || !self.cpus[n].wants_out() {
                    break;
                }
                assert!(turn < 40, "live-lock: a maintenance interrupt that nothing ends");
                self.cpus[n].maintenance += 1;
                self.leave(n);
                self.enter(n);
            }
        }
    }

    /// No interrupt of the VM is in two list registers.
    fn check_unique(&mut self) {
        let mut seen = std::collections::BTreeSet::new();
        for (n, cpu) in self.cpus.iter_mut().enumerate().filter(|(_, cpu)| cpu.inside) {
            for entry in cpu.lists.entries() {
                let owner = if number(*entry) < 32 { n } else { usize::MAX };
                assert!(seen.insert((owner, number(*entry))), "{} is in two list registers", number(*entry));
            }
        }
    }

    pub(super) fn store_wide(&mut self, frame: Frame, offset: u64, width: Width, value: u64) {
        let vcpus = self.cpus.len();
        let kicks = self.vgic.write(frame, offset, width, value, vcpus);
        self.give(kicks);
    }

    pub(super) fn store(&mut self, frame: Frame, offset: u64, value: u32) {
        self.store_wide(frame, offset, Width::Word, value.into());
    }

    pub(super) fn load(&mut self, frame: Frame, offset: u64) -> u32 {
        let vcpus = self.cpus.len();
        let (value, kicks) = self.vgic.read(frame, offset, Width::Word, vcpus);
        self.give(kicks);
        u32::try_from(value).unwrap()
    }

    /// Writes an interrupt's bit of the registers at `base`.
    pub(super) fn bit(&mut self, of: usize, base: u64, n: u32) {
        let frame = if n < 32 { Frame::Private(vcpu(of)) } else { Frame::Distributor };
        self.store(frame, base + 4 * u64::from(n / 32), 1 << (n % 32));
    }

    /// Reads it.
    pub(super) fn is(&mut self, of: usize, base: u64, n: u32) -> bool {
        let frame = if n < 32 { Frame::Private(vcpu(of)) } else { Frame::Distributor };
        self.load(frame, base + 4 * u64::from(n / 32)) >> (n % 32) & 1 != 0
    }

    pub(super) fn prioritize(&mut self, of: usize, n: u32, priority: u8) {
        let frame = if n < 32 { Frame::Private(vcpu(of)) } else { Frame::Distributor };
        self.store_wide(frame, 0x400 + u64::from(n), Width::Byte, priority.into());
    }

    pub(super) fn route(&mut self, n: u32, target: u64) {
        self.store_wide(Frame::Distributor, 0x6000 + 8 * u64::from(n), Width::Double, target);
    }

    pub(super) fn edge(&mut self, n: u32, edge: bool) {
        let at = 0xc00 + 4 * u64::from(n / 16);
        let old = self.load(Frame::Distributor, at);
        let bit = 2 << (n % 16 * 2);
        self.store(Frame::Distributor, at, if edge { old | bit } else { old & !bit });
    }

    pub(super) fn wire(&mut self, n: u32, high: bool) {
        let kicks = self.vgic.set_spi(intid(n), high);
        self.give(kicks);
    }

    pub(super) fn sgi(&mut self, from: usize, value: u64) {
        let kicks = self.vgic.send_sgi(vcpu(from), value, false);
        self.give(kicks);
    }

    pub(super) fn acknowledge(&mut self, n: usize) -> Option<u32> {
        let got = self.cpus[n].acknowledge();
        self.give(Kicks::NONE);
        got
    }

    /// Switches groups on and off in a CPU interface.
    pub(super) fn switch(&mut self, n: usize, groups: u64) {
        self.cpus[n].groups = groups;
        self.give(Kicks::NONE);
    }

    pub(super) fn end(&mut self, n: usize) -> Option<u32> {
        let ended = self.cpus[n].end();
        self.give(Kicks::NONE);
        ended
    }
}

pub(super) const ENABLE: u64 = 0x100;
pub(super) const DISABLE: u64 = 0x180;
pub(super) const PEND: u64 = 0x200;
pub(super) const UNPEND: u64 = 0x280;
pub(super) const ACTIVATE: u64 = 0x300;
pub(super) const DEACTIVATE: u64 = 0x380;
