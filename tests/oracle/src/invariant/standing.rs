// SPDX-License-Identifier: MIT OR Apache-2.0
//! What holds of every state.

use super::{Broken, Whole, must};
use crate::record::{Content, File, Life, Mark, Owner, Page, VcpuLife};

/// Holds the invariants against a state.
///
/// # Errors
/// The first that is broken.
pub fn standing(s: &impl Whole) -> Result<(), Broken> {
    for pfn in s.frames() {
        page(s, pfn, &s.page(pfn))?;
    }
    for slot in 0..s.machine().slots {
        vm(s, slot)?;
        vcpus(s, slot)?;
        marks(s, slot)?;
    }
    cpus(s)
}

fn page(s: &impl Whole, pfn: u64, page: &Page) -> Result<(), Broken> {
    let guest = matches!(page.owner, Owner::Guest { .. });
    if let Owner::Guest { slot, .. } | Owner::Pool { slot } = page.owner {
        must(s.vm(slot).exists(), 1, "a frame belongs to a VM that does not exist", pfn)?;
    }
    if guest {
        let same = s.frames().filter(|p| s.page(*p).owner == page.owner).count();
        must(same == 1, 1, "two frames back one guest frame", pfn)?;
    }
    must(guest || !page.lent && !page.revocable, 2, "lent or revocable, and not a guest's", pfn)?;
    must(page.owner == Owner::Host || page.borrows == 0, 2, "borrowed, and not the host's", pfn)?;
    let held = matches!(page.file, File::Frozen | File::Given) && page.holders > 0;
    must(!held, 5, "frozen or given, and held", pfn)?;
    contents(s, pfn, page)
}

/// What a frame may hold, by who reaches it.
fn contents(s: &impl Whole, pfn: u64, page: &Page) -> Result<(), Broken> {
    let open = !matches!(page.content, Content::Secret(_));
    match page.owner {
        Owner::Guest { slot, .. } => {
            let own = page.content == Content::Secret(slot) && !page.lent;
            must(open || own, 4, "a secret lies where another reaches it", pfn)?;
            must(page.content != Content::Public, 9, "the guest reads what the host chose", pfn)?;
            let early = s.vm(slot).life == Life::Open && page.content == Content::Secret(slot);
            must(!early, 9, "a guest that never ran has written", pfn)
        }
        Owner::Pool { slot } => must(page.content == Content::Secret(slot), 4, "a pool frame holds no secret", pfn),
        Owner::Host | Owner::NoMap => {
            must(matches!(page.content, Content::Public | Content::Zero), 4, "the host has what was a guest's", pfn)
        }
        Owner::El2 | Owner::NotMemory => must(open, 4, "a guest's secret is in nobody's frame", pfn),
    }
}

fn vm(s: &impl Whole, slot: u8) -> Result<(), Broken> {
    let vm = s.vm(slot);
    let at = u64::from(slot);
    let number = |is: &dyn Fn(Owner) -> bool| s.frames().filter(|p| is(s.page(*p).owner)).count();
    let guest = number(&|o| matches!(o, Owner::Guest { slot: n, .. } if n == slot));
    let pool = number(&|o| o == Owner::Pool { slot });
    must(guest == vm.guest as usize, 8, "the guest frames are miscounted", at)?;
    must(pool == vm.pool as usize && vm.free <= vm.pool, 8, "the pool is miscounted", at)?;
    must(vm.exists() == (pool > 0), 8, "a pool without a VM, or a VM without a pool", at)?;
    let borrowed = s.gfns().filter(|g| matches!(s.mark(slot, *g), Mark::Borrow { .. })).count();
    must(borrowed == vm.borrowed as usize, 8, "the loans are miscounted", at)?;
    must(vm.protected || vm.guest == 0, 2, "an ordinary VM owns memory", at)?;
    let is_open = |gfn: u64| s.mark(slot, gfn) == Mark::Device;
    let windows = s.gfns().filter(|gfn| is_open(*gfn) && !is_open(gfn.saturating_add(1))).count();
    must(windows == usize::from(vm.windows), 8, "what the guest has opened is miscounted", at)?;
    let left = (0..s.machine().vcpus).any(|v| s.vcpu(slot, v).life != VcpuLife::Absent) || s.range(slot, 0).is_some();
    must(vm.exists() || !left, 8, "a VM that is gone left something", at)
}

fn vcpus(s: &impl Whole, slot: u8) -> Result<(), Broken> {
    for index in 0..s.machine().vcpus {
        let vcpu = s.vcpu(slot, index);
        let on = (0..s.machine().cpus).filter(|c| s.cpu(*c) == Some((slot, index))).count();
        must(on == usize::from(vcpu.running), 3, "a vCPU runs on several CPUs, or unknown to them", u64::from(slot))?;
        let may = s.vm(slot).life == Life::Ran && vcpu.life == VcpuLife::Ran;
        must(may || !vcpu.running, 3, "a vCPU runs that must not", u64::from(slot))?;
    }
    Ok(())
}

fn marks(s: &impl Whole, slot: u8) -> Result<(), Broken> {
    for gfn in s.gfns() {
        let mark = s.mark(slot, gfn);
        must(mark == Mark::None || s.backing(slot, gfn).is_none(), 1, "a guest frame is two things", gfn)?;
        must(mark == Mark::None || s.vm(slot).exists(), 8, "a VM that is gone left a mark", gfn)?;
        if let Mark::Borrow { pfn, .. } = mark {
            must(!s.vm(slot).protected, 2, "a protected VM borrows a page of the host", gfn)?;
            let all = || (0..s.machine().slots).flat_map(|v| s.gfns().map(move |g| (v, g)));
            let borrows = all().filter(|(v, g)| matches!(s.mark(*v, *g), Mark::Borrow { pfn: p, .. } if p == pfn));
            must(borrows.count() == usize::from(s.page(pfn).borrows), 2, "the loans of a page are miscounted", pfn)?;
        }
    }
    Ok(())
}

fn cpus(s: &impl Whole) -> Result<(), Broken> {
    for cpu in 0..s.machine().cpus {
        let runs = s.cpu(cpu).is_none_or(|(slot, v)| s.vcpu(slot, v).running);
        must(runs, 3, "a CPU runs a vCPU that does not run", cpu.into())?;
    }
    let idle = (0..s.machine().slots).all(|slot| !s.vm(slot).exists());
    let taken =
        |p: &u64| matches!(s.page(*p).owner, Owner::Guest { .. } | Owner::Pool { .. }) || s.page(*p).borrows > 0;
    let left = s.frames().find(taken);
    must(!idle || left.is_none(), 8, "no VM, and a frame is not back", left.unwrap_or(0))
}

/// Holds the driver's books against the owners: true while nothing but the driver moves the pages of its files.
///
/// # Errors
/// The first page whose books are wrong.
pub fn driven(s: &impl Whole) -> Result<(), Broken> {
    for pfn in s.frames() {
        let page = s.page(pfn);
        let (guest, host) = (matches!(page.owner, Owner::Guest { .. }), page.owner == Owner::Host);
        let true_to = match page.file {
            File::Out => !guest,
            File::Host => host,
            File::Draining { .. } | File::Frozen => host || guest && page.lent,
            File::Given => guest && !page.lent,
            File::Lent => guest && page.lent,
        };
        must(true_to, 5, "the driver's books and the owner differ", pfn)?;
    }
    Ok(())
}
