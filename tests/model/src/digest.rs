// SPDX-License-Identifier: MIT OR Apache-2.0
//! A world in 128 bits, the same for all worlds that differ only in the names of their pages and VMs, or in what
//! nobody can see any more.

use std::hash::{Hash, Hasher};

use freehold_oracle::{Content, Life, Mark, Owner, RANGES, Vcpu, Vm, World};

/// A quick hash of two lanes. Worlds are not chosen by an adversary.
struct Lanes(u64, u64);

impl Lanes {
    fn mix(&mut self, word: u64) {
        let folded = |lane: u64, by: u64| {
            let product = u128::from(lane ^ word) * u128::from(by);
            (product >> 64) as u64 ^ product as u64
        };
        (self.0, self.1) = (folded(self.0, 0x9e37_79b9_7f4a_7c15), folded(self.1 ^ self.0, 0xc2b2_ae3d_27d4_eb4f));
    }
}

impl Hasher for Lanes {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word) ^ (chunk.len() as u64) << 56);
        }
    }
    fn write_u8(&mut self, word: u8) {
        self.mix(u64::from(word) | 1 << 32);
    }
    fn write_u16(&mut self, word: u16) {
        self.mix(u64::from(word) | 2 << 32);
    }
    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word) | 3 << 32);
    }
    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }
    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64 | 5 << 56);
    }
    fn write_isize(&mut self, word: isize) {
        self.mix(word as u64 | 6 << 56);
    }
}

/// One way to rename a world: where each page and each slot goes.
#[derive(Clone, Debug)]
pub(crate) struct Renaming {
    /// New number of each page.
    pub(crate) pages: Vec<usize>,
    /// New number of each slot.
    pub(crate) slots: Vec<u8>,
}

/// The digest of a world under the renaming that makes it smallest.
pub(crate) fn canonical<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    world: &World<P, V, U, G, C>,
    renamings: &[Renaming],
) -> u128 {
    renamings.iter().map(|renaming| digest(&renamed(world, renaming))).min().unwrap_or_else(|| digest(world))
}

fn digest<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    world: &World<P, V, U, G, C>,
) -> u128 {
    let mut lanes = Lanes(0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344);
    (&world.pages, &world.vms, &world.ranges, &world.marks, &world.vcpus, &world.cpus).hash(&mut lanes);
    u128::from(lanes.0) << 64 | u128::from(lanes.1)
}

fn renamed<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    world: &World<P, V, U, G, C>,
    renaming: &Renaming,
) -> World<P, V, U, G, C> {
    let slot = |slot: u8| renaming.slots.get(usize::from(slot)).copied().unwrap_or(slot);
    let frame = |pfn: u64| {
        let at = pfn.checked_sub(world.first_pfn).and_then(|at| renaming.pages.get(usize::try_from(at).ok()?));
        at.map_or(pfn, |at| world.first_pfn + *at as u64)
    };
    let mut new = *world;
    for (page, at) in world.pages.iter().zip(&renaming.pages) {
        let mut page = *page;
        page.owner = match page.owner {
            Owner::Guest { slot: s, gfn } => Owner::Guest { slot: slot(s), gfn },
            Owner::Pool { slot: s } => Owner::Pool { slot: slot(s) },
            Owner::NotMemory | Owner::NoMap | Owner::El2 | Owner::Host => page.owner,
        };
        page.content = match page.content {
            Content::Secret(s) => Content::Secret(slot(s)),
            Content::Public | Content::Zero | Content::Initial | Content::Shared => page.content,
        };
        new.pages[*at] = page;
    }
    for (old, at) in renaming.slots.iter().enumerate() {
        let at = usize::from(*at);
        // That a slot had a VM before shows in an old handle only, and there is one from the start.
        new.vms[at] = Vm { used: true, ..world.vms[old] };
        new.ranges[at] = world.ranges[old];
        new.marks[at] = world.marks[old].map(|mark| match mark {
            Mark::Borrow { pfn, write, exec } => Mark::Borrow { pfn: frame(pfn), write, exec },
            Mark::None | Mark::Poisoned | Mark::Device => mark,
        });
        new.vcpus[at] = world.vcpus[old];
        if world.vms[old].life == Life::Dying {
            // Nobody can see any more what the VM could see; what it borrows is still to be returned.
            let Vm { life, used, protected, pool, guest, borrowed, .. } = new.vms[at];
            new.vms[at] = Vm { life, used, protected, pool, guest, borrowed, ..Vm::default() };
            if borrowed == 0 {
                new.ranges[at] = [None; RANGES];
                new.marks[at] = [Mark::None; G];
            }
            new.vcpus[at] = [Vcpu::default(); U];
        }
    }
    for cpu in &mut new.cpus {
        *cpu = cpu.map(|(s, vcpu)| (slot(s), vcpu));
    }
    new
}

/// All orders of `0..n`.
pub(crate) fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let insert = |order: Vec<usize>| {
        (0..=order.len()).map(move |at| {
            let mut longer = order.clone();
            longer.insert(at, n - 1);
            longer
        })
    };
    orders(n - 1).into_iter().flat_map(insert).collect()
}
