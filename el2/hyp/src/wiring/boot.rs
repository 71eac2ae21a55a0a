// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the boot loader's hand-over to the host's first instruction.
//!
//! Guarantees that nothing is handed to the host that a check did not pass, that every refusal is one
//! line that says what and where, and that the host starts under its stage 2 or not at all (D3, D12).
//! The decisions are the library's; this binds them to addresses.

use super::statics::{self, Machine as Sealed};
use super::{Kind, hypercalls, power};
use crate::banner::{self, Facts};
use crate::bundle::{BLOCK, Bundle, IMAGE_HEADER, TRAILER};
use crate::dtb::machine::{Gic, MAX_CPUS, Machine};
use crate::dtb::{Dtb, HEADER_SIZE, edit, total_size};
use crate::layout::{self, Handed, Span};
use crate::stop::Stop;
use arrayvec::ArrayVec;
use core::convert::Infallible;
use core::sync::atomic::{AtomicU64, Ordering};
use freehold_arch::phys::{self, Fresh};
use freehold_arch::{cache, fatal, features, gicr, host, image, mmu, percpu, tlb, uart};
use freehold_mem::lock::World;
use freehold_mem::{Attributes, Host, Machine as Ports, MapError, MemoryMap, PAGE_SIZE, Pfn, PfnRun};
use freehold_virt::psci::{Affinity, Slot};

const _: () = assert!(MAX_CPUS == percpu::MAX_CPUS);

/// Boots the machine. The entry code has left the address of the DTB.
pub fn main<K: Kind>(dtb: usize) -> ! {
    match run::<K>(dtb) {
        Ok(never) => match never {},
        Err(stop) => fatal::stop("stop", format_args!("{stop}")),
    }
}

fn run<K: Kind>(dtb_address: usize) -> Result<Infallible, Stop> {
    banner::open(&mut uart::Uart, env!("CARGO_PKG_VERSION"), host::midr());
    check_core()?;
    let blob = handed_dtb(dtb_address)?;
    let dtb = Dtb::parse(blob)?;
    let machine = Machine::read(&dtb)?;
    use_console(&machine)?;
    let cpus = number_cpus(&machine)?;
    let bundle = Bundle::check(&image::manifest(), (image::end() - image::start()) as u64)?;
    let base = image::start() as u64;
    let occupied = occupied_by(&bundle, base, &machine)?;
    map_ram(&machine)?;
    check_payload(&bundle, base)?;
    let dtb_span = dtb_address as u64..(dtb_address + blob.len()) as u64;
    layout::check_handed(Handed::Dtb, &dtb_span, &machine.banks, &occupied)?;
    if let Some(initrd) = &machine.initrd {
        layout::check_handed(Handed::Initrd, initrd, &machine.banks, &occupied)?;
    }
    let own = base..base + bundle.payload_offset;
    let (map, ledger) = plan_memory(&machine, &own, &occupied, &dtb_span)?;
    let host_dtb = write_dtb(&dtb, &bundle, base, &[own.clone(), ledger.clone()])?;
    let memory = build_host(map, &ledger, &machine, K::MACHINE)?;
    let payload = base + bundle.payload_offset;
    banner::facts(
        &mut uart::Uart,
        &Facts { machine: &machine, own: &own, ledger: &ledger, payload, ipa_bits: host::ipa_bits() },
    );
    start_host::<K>(memory, cpus, find_redistributors(&machine)?, payload, host_dtb)
}

/// Refuses a core that cannot do what the tables need.
fn check_core() -> Result<(), Stop> {
    if image::stacks_end() - image::stacks_start() != percpu::SLOT_SIZE * percpu::MAX_CPUS {
        return Err(Stop::new("linker script and stack layout differ", "the image"));
    }
    if !features::Ids.has_4k_granule() {
        return Err(Stop::new("this CPU has no 4 KB translation granule", "ID_AA64MMFR0_EL1"));
    }
    let base = image::start() as u64;
    if !base.is_multiple_of(BLOCK) {
        return Err(Stop::with("image is not loaded at a 2 MB boundary", "address", base));
    }
    Ok(())
}

/// The boot loader's DTB as a slice.
fn handed_dtb(address: usize) -> Result<&'static [u8], Stop> {
    if !mmu::is_plausible_dtb(address) {
        return Err(Stop::with("no DTB was handed over (none, unaligned, or out of range)", "x0", address as u64));
    }
    // SAFETY: the entry code has mapped the header; nobody writes there before the host runs.
    let header = unsafe { phys::bytes(address, HEADER_SIZE) };
    let size = total_size(header)?;
    map_or_stop(address, address + size, mmu::Kind::ReadWrite)?;
    // SAFETY: mapped just now; nobody writes there before the host runs.
    Ok(unsafe { phys::bytes(address, size) })
}

/// Speaks through the console that the DTB names. Neither it nor the early one may be RAM.
fn use_console(machine: &Machine) -> Result<(), Stop> {
    const PAGE: u64 = PAGE_SIZE;
    let is_ram = |at: u64| machine.banks.iter().any(|bank| layout::overlap(bank, &(at..at.saturating_add(PAGE))));
    let early = uart::EARLY_BASE as u64;
    if early != 0 && is_ram(early) {
        return Err(Stop::with("early console lies in RAM (build el2 with FREEHOLD_EARLY_UART)", "address", early));
    }
    let Some(console) = machine.console else { return Ok(()) };
    let limit = 1 << host::ipa_bits();
    if !console.is_multiple_of(PAGE) || console >= limit || is_ram(console) {
        return Err(Stop::with("console lies in RAM, out of range, or not at a page", "address", console));
    }
    map_or_stop(console as usize, (console + PAGE) as usize, mmu::Kind::Device)?;
    uart::set_base(console as usize);
    Ok(())
}

/// Finds each CPU's redistributor; `false` where VMs can not have interrupts.
fn find_redistributors(machine: &Machine) -> Result<bool, Stop> {
    let Gic::V3 { redistributors, .. } = &machine.gic else { return Ok(false) };
    for region in redistributors {
        let inside = region.end <= 1 << host::ipa_bits() && region.start.is_multiple_of(PAGE_SIZE);
        if !inside || machine.banks.iter().any(|bank| layout::overlap(bank, region)) {
            return Err(Stop::with(
                "redistributors lie in RAM, out of range, or not at a page",
                "address",
                region.start,
            ));
        }
        map_or_stop(region.start as usize, region.end as usize, mmu::Kind::Device)?;
        gicr::find(region.start as usize, region.end as usize);
    }
    Ok(gicr::all_found())
}

/// Gives every CPU its record: the boot CPU has number 0.
fn number_cpus(machine: &Machine) -> Result<ArrayVec<Slot<AtomicU64>, MAX_CPUS>, Stop> {
    let boot = percpu::hardware_mpidr();
    if !machine.cpus.contains(&boot) {
        return Err(Stop::with("the boot CPU is not in the DTB", "/cpus, MPIDR", boot));
    }
    let others = machine.cpus.iter().copied().filter(|mpidr| *mpidr != boot);
    Ok(core::iter::once(boot)
        .chain(others)
        .zip(percpu::all())
        .map(|(mpidr, record)| {
            record.mpidr.store(mpidr, Ordering::Relaxed);
            Slot::off(Affinity::of_mpidr(mpidr), || AtomicU64::new(0))
        })
        .collect())
}

/// What the whole bundle takes in memory; it must lie in one bank.
fn occupied_by(bundle: &Bundle, base: u64, machine: &Machine) -> Result<Span, Stop> {
    let too_small = Stop::with("RAM is too small for the image with its payload", "image base", base);
    let occupied = base..base.checked_add(bundle.total()).ok_or(too_small)?;
    if let Some(kept) = machine.no_map().find(|kept| layout::overlap(kept, &occupied)) {
        return Err(Stop::with("image or payload lies over no-map memory", "address", kept.start));
    }
    if machine.banks.iter().any(|bank| layout::contains(bank, &occupied)) { Ok(occupied) } else { Err(too_small) }
}

fn map_ram(machine: &Machine) -> Result<(), Stop> {
    for bank in &machine.banks {
        if bank.end > 1 << host::ipa_bits() {
            return Err(Stop::with("RAM lies beyond the address space that is served", "address", bank.end));
        }
        // What firmware keeps for itself is not ours to touch, not even by speculation; and the image
        // has its own map, in which the guards below the stacks must stay holes.
        let image = image::start() as u64..image::end() as u64;
        let mut rest = bank.clone();
        while let Some(piece) = layout::cut_front(&mut rest, machine.no_map().chain([&image])) {
            map_or_stop(piece.start as usize, piece.end as usize, mmu::Kind::ReadWrite)?;
        }
    }
    Ok(())
}

fn map_or_stop(start: usize, end: usize, kind: mmu::Kind) -> Result<(), Stop> {
    mmu::map(start, end, kind)
        .map_err(|_| Stop::with("too many scattered ranges to map at EL2", "address", start as u64))
}

fn check_payload(bundle: &Bundle, base: u64) -> Result<(), Stop> {
    let mut header = [0; IMAGE_HEADER];
    let mut trailer = [0; TRAILER.len()];
    // SAFETY: the bundle lies in RAM (`occupied_by`), RAM is mapped, and only the host writes there.
    header.copy_from_slice(unsafe { phys::bytes((base + bundle.payload_offset) as usize, IMAGE_HEADER) });
    // SAFETY: as above; the trailer's place is below the DTB slot (`Bundle::check`).
    trailer.copy_from_slice(unsafe { phys::bytes((base + bundle.trailer_offset()) as usize, TRAILER.len()) });
    bundle.check_payload(&header, &trailer)
}

/// Decides which memory is RAM, which is el2's, and where the second carve-out goes.
fn plan_memory(machine: &Machine, own: &Span, occupied: &Span, dtb: &Span) -> Result<(MemoryMap, Span), Stop> {
    let mut map = MemoryMap::new(host::ipa_bits()).map_err(explain)?;
    for bank in &machine.banks {
        if let Some(run) = frames_inside(bank) {
            map.add_bank(run).map_err(explain)?;
        }
    }
    for device in &machine.hidden {
        map.add_hole(frames_around(device)?).map_err(explain)?;
    }
    map.add_carve_out(run_of(own)?).map_err(explain)?;
    let mut taken = ArrayVec::<Span, 72>::new();
    taken.extend([occupied.clone(), dtb.clone()]);
    taken.extend(machine.initrd.clone());
    taken.extend(machine.reserved.iter().map(|reserved| reserved.span.clone()));
    let size = map.needs().frames().saturating_mul(PAGE_SIZE);
    let ledger = layout::place_high(&machine.banks, &taken, size).ok_or(Stop::with(
        "too little RAM for el2's tables",
        "bytes needed",
        size,
    ))?;
    map.add_carve_out(run_of(&ledger)?).map_err(explain)?;
    layout::check_left(&machine.banks, &[own.clone(), ledger.clone()])?;
    Ok((map, ledger))
}

fn frames_inside(bank: &Span) -> Option<PfnRun> {
    let first = bank.start.div_ceil(PAGE_SIZE);
    PfnRun::decode(first, (bank.end / PAGE_SIZE).checked_sub(first)?).ok()
}

fn frames_around(device: &Span) -> Result<PfnRun, Stop> {
    let first = device.start / PAGE_SIZE;
    let count = device.end.div_ceil(PAGE_SIZE).saturating_sub(first);
    PfnRun::decode(first, count).map_err(|_| Stop::with("device to hide is out of range", "address", device.start))
}

fn run_of(span: &Span) -> Result<PfnRun, Stop> {
    frames_inside(span).ok_or(Stop::with("carve-out is empty", "address", span.start))
}

fn explain(error: MapError) -> Stop {
    let what = match error {
        MapError::TooMany => "more RAM banks or carve-outs than are supported",
        MapError::BanksMeet => "RAM banks overlap",
        MapError::NotWholeBlocks => "carve-out is not whole 2 MB blocks",
        MapError::NotRam => "carve-out is not inside one RAM bank",
        MapError::HoleInRam => "a hidden device lies in RAM",
        MapError::BeyondSpace => "RAM lies beyond the address space that is served",
        MapError::BadSpace => "this CPU's physical address size is not supported",
        MapError::WrongStorage => "carve-out is too small for ledger and tables",
    };
    Stop::new(what, "the memory map")
}

/// Writes the host's DTB into its slot and returns its address.
fn write_dtb(dtb: &Dtb<'_>, bundle: &Bundle, base: u64, carve_outs: &[Span]) -> Result<u64, Stop> {
    let address = base + bundle.dtb_slot_offset;
    // SAFETY: the slot is inside the bundle (`Bundle::check`), mapped, and overlaps neither el2, the
    // payload, the DTB that is read, nor the initrd; it is named here only.
    let slot = unsafe { Fresh::new(address as usize, bundle.dtb_slot_len as usize) }.into_bytes();
    let size = edit::rewrite(dtb, carve_outs, slot)?;
    cache::clean_invalidate_to_poc(address as usize, size);
    Ok(address)
}

/// Builds ledger and host tables in the second carve-out.
fn build_host(map: MemoryMap, ledger: &Span, machine: &Machine, mut ports: impl Ports) -> Result<Host<'static>, Stop> {
    let needs = map.needs();
    let tables = ledger.start / PAGE_SIZE;
    let words = ledger.start + needs.table_frames * PAGE_SIZE;
    // SAFETY: `place_high` found this range free of everything handed over, inside a bank that is
    // mapped; its first part is for the tables, this is the rest, and it is named here only.
    let storage = unsafe { Fresh::new(words as usize, (needs.words * 8) as usize) }.into_words();
    let how = if features::Ids.has_s2fwb() { Attributes::Forced } else { Attributes::Combined };
    let first = Pfn::new(tables).ok_or(Stop::with("carve-out is out of range", "address", ledger.start))?;
    let mut host = Host::build(map, first, storage, how, &mut ports).map_err(explain)?;
    for kept in machine.no_map() {
        let first = kept.start / PAGE_SIZE;
        let count = kept.end.div_ceil(PAGE_SIZE).saturating_sub(first);
        if let Ok(run) = PfnRun::decode(first, count) {
            host.mark_no_map(run, &ports);
        }
    }
    Ok(host)
}

/// Seals the machine and leaves for the host.
fn start_host<K: Kind>(
    memory: Host<'static>,
    cpus: ArrayVec<Slot<AtomicU64>, MAX_CPUS>,
    has_gic_v3: bool,
    payload: u64,
    dtb: u64,
) -> Result<Infallible, Stop> {
    let host_root = memory.root().pa().raw();
    let machine = statics::seal::<K>(Sealed {
        world: World::new(
            K::lock_host(memory),
            core::array::from_fn(|slot| K::lock_guest(hypercalls::empty_slot(slot))),
        ),
        alike: host::Alike::here(),
        host_root,
        slots: cpus,
        extended_power_state: power::has_extended_power_state(),
        serves_vms: has_gic_v3 && features::has_gic_system_registers(),
    });
    machine.relay().booted(percpu::this_cpu().index());
    mmu::publish_boot_state();
    fatal::guard_host(host_root, host::ipa_bits());
    host::configure(host_root);
    tlb::invalidate_all_el1_everywhere();
    cache::invalidate_instructions_everywhere();
    host::enter(payload, dtb)
}
