// SPDX-License-Identifier: MIT OR Apache-2.0
//! The watcher: what it keeps, and what it looks at when.

mod locks;
mod memory;
mod runs;

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use freehold_el2::calls::MAX_CPUS;
use freehold_mem::{Host, HostView, Ipa, Life, Machine, Pfn, State, VmSlot};
use freehold_oracle::{Done, State as _};
use freehold_trace::record::{Event, HOST};
use freehold_trace::traced::{self, Loan, Sink};
use freehold_uapi::hvc;
use freehold_virt::handle::MAX_VMS;
use spin::mutex::SpinMutex;

use crate::cpu::{Books, Cpu, Trap};
use crate::fault::Fault;
use crate::given::Found;
use crate::judge::{self, Difference, Places};
use crate::ring::Ring;
use crate::shadow::Shadow;
use crate::spec::{View, Vms};
use crate::stage2::{Walker, Wrong};

/// Frames of the touched blocks that are compared at each call besides those that it names.
const WALK: usize = 32;
/// All of them are compared, with the ledger and with the tables, each time that this many calls were made.
const FULL_WALK: u64 = 1 << 12;
/// PSCI's `SYSTEM_OFF`: the host has said its last, and what was watched is told in one line.
const SYSTEM_OFF: u32 = 0x8400_0008;

/// The machine that the watcher runs on.
pub trait Ground: Copy {
    /// Number of this CPU.
    fn cpu(self) -> usize;
    /// How many CPUs there are.
    fn cpus(self) -> u8;
    /// The ports, to look through.
    fn ports(self) -> impl Machine;
    /// Says one line.
    fn say(self, line: fmt::Arguments<'_>);
    /// Says one line and stops the machine.
    fn stop(self, line: fmt::Arguments<'_>) -> !;
    /// What this watcher is to do wrong, to show that it is found: nothing, but in a control.
    fn fault(self) -> Fault {
        Fault::None
    }
}

/// Everything that is watched.
#[derive(Debug)]
pub struct Watcher<G, const RECORDS: usize> {
    ground: G,
    /// The trace.
    pub ring: Ring<RECORDS>,
    shadow: SpinMutex<Shadow>,
    cpus: [SpinMutex<Cpu>; MAX_CPUS],
    books: [SpinMutex<Books>; MAX_VMS],
    tables: SpinMutex<Walker>,
    vms: Vms,
    /// Per slot: calls that name its VM, begun and ended; and those of them that claim a vCPU.
    calls: [[AtomicU64; 4]; MAX_VMS],
    /// Calls that make a VM, begun and ended.
    creations: [AtomicU64; 2],
    steps: AtomicU64,
    /// Answers that could not be judged, because what they are of changed meanwhile.
    open: AtomicU64,
    host_root: AtomicU64,
    lost: AtomicBool,
}

impl<G: Ground, const RECORDS: usize> Watcher<G, RECORDS> {
    /// Before the boot.
    #[must_use]
    pub const fn new(ground: G) -> Self {
        Self {
            ground,
            ring: Ring::new(),
            shadow: SpinMutex::new(Shadow::new()),
            cpus: [const { SpinMutex::new(Cpu::new()) }; MAX_CPUS],
            books: [const { SpinMutex::new(Books::NONE) }; MAX_VMS],
            tables: SpinMutex::new(Walker::new()),
            vms: Vms::new(),
            calls: [const { [const { AtomicU64::new(0) }; 4] }; MAX_VMS],
            creations: [const { AtomicU64::new(0) }; 2],
            steps: AtomicU64::new(0),
            open: AtomicU64::new(0),
            host_root: AtomicU64::new(0),
            lost: AtomicBool::new(false),
        }
    }

    /// Does something with this CPU's record.
    pub fn here<R>(&self, what: impl FnOnce(&mut Cpu) -> R) -> R {
        match self.cpus.get(self.ground.cpu()) {
            Some(cpu) => what(&mut cpu.lock()),
            None => self.ground.stop(format_args!("watch: a CPU without a record")),
        }
    }

    fn event(&self, event: Event) {
        self.ring.note(self.ground.cpu() as u8, event);
    }

    /// The boot has built the host's memory, and nobody uses it yet.
    pub fn built(&self, host: &Host<'_>) {
        self.host_root.store(host.root().raw(), Ordering::Relaxed);
        self.vms.cpus.store(self.ground.cpus(), Ordering::Relaxed);
        self.shadow.lock().fill(host.map().ram(), host.ledger());
        let tables = 1 << host.map().ipa_bits().saturating_sub(39);
        self.event(Event::Root { vmid: HOST, table: host.root().raw(), tables });
        self.event(Event::Start);
    }

    /// A CPU has come from the host.
    pub fn begin(&self, trap: Trap) {
        let step = if trap == Trap::Other { 0 } else { self.steps.fetch_add(1, Ordering::Relaxed) + 1 };
        self.here(|cpu| {
            cpu.begin(trap, step);
            let Trap::Call { id, x } = trap else { return };
            if !judge::is_ours(id) {
                return;
            }
            let slot = judge::slot_of(&self.vms, id, x);
            let counts = slot.or_else(|| judge::next_of(&self.vms, id, x));
            cpu.ended = [1, 3].map(|which| counts.map_or(0, |slot| self.counted(slot, which)));
            cpu.created = self.creations[1].load(Ordering::SeqCst);
            self.count(counts, 0);
            if judge::claims(id) {
                self.count(counts, 2);
            }
            if id == hvc::VM_CREATE {
                self.creations[0].fetch_add(1, Ordering::SeqCst);
            }
            cpu.came = judge::comes(&self.vms, id, x, slot, counts);
        });
        if let Trap::Call { id: SYSTEM_OFF, x: _ } = trap {
            self.ground.say(format_args!(
                "watch: {step} steps without divergence, {} answers left open",
                self.open.load(Ordering::Relaxed)
            ));
        }
    }

    /// The CPU goes back, with this in x0–x4, or with an abort that was injected.
    pub fn end(&self, x: [u64; 5], injected: bool) {
        let (trap, difference) = self.here(|cpu| (cpu.trap, self.judge(cpu, x, injected)));
        if let Err(difference) = difference {
            self.diverged(format_args!("{difference:?}"));
        }
        if let Trap::Call { id, x: _ } = trap
            && judge::is_ours(id)
        {
            let counts = self.here(|cpu| cpu.came.counts);
            self.count(counts, 1);
            if judge::claims(id) {
                self.count(counts, 3);
            }
            if id == hvc::VM_CREATE {
                self.creations[1].fetch_add(1, Ordering::SeqCst);
            }
        }
        self.event(Event::Leave);
        self.here(|cpu| cpu.trap = Trap::Other);
    }

    fn judge(&self, cpu: &Cpu, x: [u64; 5], injected: bool) -> Result<(), Difference> {
        match cpu.trap {
            Trap::Call { id, x: _ } if judge::is_ours(id) => {
                let creations = self.creations[0].load(Ordering::SeqCst) - cpu.created;
                let created = creations > u64::from(id == hvc::VM_CREATE);
                // Who names a VM that nobody makes has nothing to do with others who do.
                let counts = if created { cpu.came.counts } else { cpu.came.slot };
                let other = |which, own, ended| counts.is_some_and(|slot| self.counted(slot, which) - ended > own);
                let others = judge::Others {
                    called: other(0, 1, cpu.ended[0]),
                    claimed: other(2, u64::from(judge::claims(id)), cpu.ended[1]),
                    created,
                };
                if !judge::answer(cpu, &self.vms, id, x, others)? {
                    self.open.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
            Trap::Abort { .. } => match cpu.verdict.and_then(|verdict| verdict.outcome.done) {
                Some(Done::Injected) if !injected => Err(Difference::Said("the host was let in, and must get a fault")),
                Some(Done::Allowed | Done::Revoked) if injected => {
                    Err(Difference::Said("the host got a fault, and may touch the page"))
                }
                Some(_) | None => Ok(()),
            },
            Trap::Call { .. } | Trap::Other => Ok(()),
        }
    }

    /// A guest goes on, with this in x0 to x3: if it made a call, that is its answer. And it finds this.
    fn goes_on(&self, slot: u8, x: [u64; 4], found: &Found) {
        let Some(stopped) = self.here(|cpu| cpu.stopped.take()) else { return };
        let gic = self.vms.slot(slot).is_some_and(|slot| slot.vm.gic);
        if let Err(difference) = stopped.goes_on(gic, x, found) {
            self.diverged(format_args!("{difference:?}"));
        }
    }

    fn counted(&self, slot: u8, which: usize) -> u64 {
        self.calls.get(usize::from(slot)).map_or(0, |counts| counts[which].load(Ordering::SeqCst))
    }

    fn count(&self, slot: Option<u8>, which: usize) {
        if let Some(counts) = slot.and_then(|slot| self.calls.get(usize::from(slot))) {
            counts[which].fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Slot and index of the vCPU of this CPU's call, and the call.
    fn claimed(&self) -> Option<(u8, u64, u32)> {
        match self.here(|cpu| cpu.trap) {
            Trap::Call { id, x } => judge::slot_of(&self.vms, id, x).map(|slot| (slot, x[1], id)),
            Trap::Abort { .. } | Trap::Other => None,
        }
    }

    /// Stops the machine: something is not as it must be.
    pub fn diverged(&self, what: fmt::Arguments<'_>) -> ! {
        let index = self.ground.cpu();
        // Another CPU's record is not waited for, nor one's own that is in use.
        let (step, trap) = match self.cpus.get(index).and_then(SpinMutex::try_lock) {
            Some(cpu) => (cpu.step, cpu.trap),
            None => (0, Trap::Other),
        };
        self.ground.stop(format_args!("watch: divergence at step {step} on cpu {index} in {trap:x?}: {what}"))
    }

    /// What a call of the host's does to loans.
    fn loan(&self, trap: Trap) -> Loan {
        let Trap::Call { id: id @ (hvc::MEM_SHARE | hvc::MEM_UNSHARE), x } = trap else { return Loan::None };
        let vmid = judge::slot_of(&self.vms, id, x).and_then(VmSlot::new).map(VmSlot::vmid);
        vmid.map_or(Loan::None, if id == hvc::MEM_SHARE { Loan::Made } else { Loan::Returned })
    }

    /// Notes whose the frames are that changed hands, by the ledger; the first that the ledger has otherwise.
    fn note_owners(&self, trap: Trap, shadow: &mut Shadow, host: &Host<'_>) -> Option<u64> {
        let Some(changed) = shadow.changed() else {
            self.ground.stop(format_args!("watch: a call changes more frames than can be noted"))
        };
        let loan = self.loan(trap);
        for pfn in changed.iter().filter_map(|pfn| Pfn::new(*pfn)) {
            if let Some(state) = host.ledger().state(pfn) {
                self.event(traced::owner(pfn, state, loan));
            }
        }
        let wrong = changed.iter().find(|pfn| !shadow.agrees(**pfn, host.ledger())).copied();
        shadow.settle();
        wrong
    }

    /// Compares a VM's tables: of the guest frames that its call is about, and when it ends all of them.
    fn maps(
        &self,
        view: &View<'_>,
        slot: u8,
        (then, now): (&Books, &Books),
        places: Places,
        cpu: &Cpu,
    ) -> Result<(), Wrong> {
        let ports = &self.ground.ports();
        let run = |root, run| self.tables.lock().run(view, slot, root, run, ports);
        match (then.root, now.root) {
            (_, Some(root)) => match places {
                Places::None => Ok(()),
                Places::Run(places) => run(root, places),
                Places::List => {
                    // A list of more is refused.
                    let total: u64 = cpu.records().iter().map(|record| record.count()).sum();
                    let records = if total > hvc::MAX_RUN { &[] } else { cpu.records() };
                    records.iter().try_for_each(|record| run(root, (record.gfn(), record.count())))
                }
            },
            (Some(root), None) if now.life == Life::Dying => {
                let vm = view.vm(slot);
                self.tables.lock().all(view, slot, root, u64::from(vm.guest) + u64::from(vm.borrowed), ports)
            }
            (_, None) => Ok(()),
        }
    }

    /// A frame of RAM that the ledger and the host's tables do not agree on.
    fn check_tables(&self, host: &Host<'_>, pfn: Pfn, ports: &impl Machine) {
        let Some(state) = host.ledger().state(pfn) else { return };
        let Some(ipa) = Ipa::new(pfn.pa().raw()) else { return };
        let view = host.view(freehold_mem::Claim::new(ipa), ports);
        let mapped = view == HostView::Mapped;
        let may = matches!(state, State::Host | State::Lent(_) | State::Shared { .. } | State::NoMap);
        if mapped != may {
            self.diverged(format_args!("frame {:#x} is {state:?}, and the host's tables say {view:?}", pfn.raw()));
        }
    }
}

impl<G: Ground, const RECORDS: usize> Sink for Watcher<G, RECORDS> {
    fn note(&self, event: Event) {
        self.event(event);
    }
}
