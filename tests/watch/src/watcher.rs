// SPDX-License-Identifier: MIT OR Apache-2.0
//! The watcher: what it keeps, and what it looks at when.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use freehold_el2::calls::{GuestSlot, MAX_CPUS, Stop};
use freehold_mem::{Entry, Host, HostView, Ipa, Life, Machine, Pfn, State, VmSlot};
use freehold_oracle::{Done, Kind, Power, State as _, VcpuLife};
use freehold_trace::record::{Event, HOST};
use freehold_trace::traced::{self, Loan, Sink};
use freehold_uapi::hvc;
use freehold_virt::exit::Wish;
use freehold_virt::handle::MAX_VMS;
use freehold_virt::vcpu::Pending;
use spin::mutex::SpinMutex;

use crate::board::Told;
use crate::cpu::{Books, Cpu, Trap};
use crate::fault::Fault;
use crate::given::Found;
use crate::judge::{self, Difference, Places};
use crate::lock::Observer;
use crate::platform::Listener;
use crate::ports::Ears;
use crate::ring::Ring;
use crate::shadow::{Shadow, Word};
use crate::spec::{View, Vms};
use crate::stage2::{Walker, Wrong};
use crate::turn::{self, Seen, Stopped};

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
            cpu.ended = [1, 3].map(|which| slot.map_or(0, |slot| self.counted(slot, which)));
            self.count(slot, 0);
            if judge::claims(id) {
                self.count(slot, 2);
            }
            cpu.came = judge::comes(&self.vms, id, x);
            cpu.came.slot = slot;
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
            let slot = self.here(|cpu| cpu.came.slot);
            self.count(slot, 1);
            if judge::claims(id) {
                self.count(slot, 3);
            }
        }
        self.event(Event::Leave);
        self.here(|cpu| cpu.trap = Trap::Other);
    }

    fn judge(&self, cpu: &Cpu, x: [u64; 5], injected: bool) -> Result<(), Difference> {
        match cpu.trap {
            Trap::Call { id, x: _ } if judge::is_ours(id) => {
                let slot = cpu.came.slot;
                let other = |which, own, ended| slot.is_some_and(|slot| self.counted(slot, which) - ended > own);
                let others = judge::Others {
                    called: other(0, 1, cpu.ended[0]),
                    claimed: other(2, u64::from(judge::claims(id)), cpu.ended[1]),
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

/// What a vCPU waits for, as the specification says it.
fn waits_for(pending: Pending) -> freehold_oracle::Pending {
    use freehold_oracle::Pending as Must;
    let kind = |wish| match wish {
        Wish::Share => Kind::Share,
        Wish::Unshare => Kind::Unshare,
        Wish::Relinquish => Kind::Relinquish,
    };
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    match pending {
        Pending::None => Must::None,
        Pending::Load(_) => Must::Load { size: 0 },
        Pending::Request(r) => Must::Request { kind: kind(r.wish), gfn: number(r.first.raw()), count: number(r.count) },
        Pending::Accepted { wish, done } => Must::Answer { kind: kind(wish), count: number(done) },
    }
}

impl<G: Ground, const RECORDS: usize> Listener for Watcher<G, RECORDS> {
    fn looked(&self, wanted: bool) {
        self.here(|cpu| cpu.looks = (cpu.looks.0 + 1, wanted));
    }

    fn closing(&self, closing: bool) {
        self.here(|cpu| cpu.closing = closing);
    }

    fn busy(&self) {
        self.here(|cpu| cpu.busy = true);
    }

    fn misleads(&self) -> bool {
        match self.ground.fault() {
            Fault::WrongAddress => true,
            Fault::None | Fault::LostStore(_) | Fault::LostInvalidation(_) | Fault::LostScrub(_) => false,
            Fault::GuestLeaf(_) => false,
        }
    }

    fn entering(&self, vmid: u8, root: u64, x: [u64; 4], found: &Found) {
        if let Some((slot, vcpu, _)) = self.claimed() {
            self.goes_on(slot, x, found);
            if self.vms.vcpu(slot, vcpu).power != Power::On {
                self.diverged(format_args!(
                    "vCPU {vcpu} of slot {slot} is about to run, and its guest never started it"
                ));
            }
        }
        self.event(Event::Vttbr { vmid, table: root });
    }

    fn host_is_back(&self) {
        self.event(Event::Vttbr { vmid: HOST, table: self.host_root.load(Ordering::Relaxed) });
    }

    fn left(&self, stop: &Stop, seen: &Seen) {
        let Some((slot, vcpu, _)) = self.claimed() else { return };
        let stopped = Stopped::new(stop, seen, &self.vms, (slot, vcpu));
        self.here(|cpu| {
            cpu.stopped = Some(stopped);
            cpu.busy |= matches!(stop, Stop::HostBusy);
        });
    }

    fn opened(&self, pending: Pending) {
        if let Some((slot, vcpu, _)) = self.claimed()
            && let must = self.vms.vcpu(slot, vcpu).pending
            && must != waits_for(pending)
        {
            self.diverged(format_args!("a vCPU of slot {slot} waited for {must:x?}, and now for {pending:x?}"));
        }
    }

    fn gives_back(&self, pending: Pending, x: [u64; 4], found: &Found) {
        let Some((slot, vcpu, id)) = self.claimed() else { return };
        let (must, now) = (self.vms.vcpu(slot, vcpu).pending, waits_for(pending));
        if id == hvc::VCPU_RUN {
            let crashed = self.here(|cpu| {
                cpu.waits = Some((must, now));
                cpu.found = (x, *found);
                cpu.stopped.as_ref().is_some_and(Stopped::crashes)
            });
            self.vms.change_vcpu(slot, vcpu, |vcpu| {
                vcpu.pending = now;
                if crashed {
                    vcpu.life = VcpuLife::Crashed;
                }
            });
        } else if must != now {
            self.diverged(format_args!("a vCPU of slot {slot} must wait for {must:x?}, and waits for {now:x?}"));
        }
    }
}

impl<G: Ground, const RECORDS: usize> Ears for &'static Watcher<G, RECORDS> {
    fn copied(&self, frame: Pfn, words: &[u64]) {
        self.here(|cpu| cpu.copied(frame, words));
    }

    fn stores(&self, at: Entry, descriptor: u64) -> Option<u64> {
        // The host's tables are el2's own frames, a guest's are of its pool.
        let is_of = |tag| self.shadow.lock().word(at.table().raw()).is_some_and(|word| word.tag() == tag);
        let first = || !self.lost.swap(true, Ordering::Relaxed);
        match self.ground.fault() {
            Fault::None | Fault::LostInvalidation(_) | Fault::LostScrub(_) | Fault::WrongAddress => Some(descriptor),
            Fault::LostStore(step) => {
                let here = descriptor == 0 && self.here(|cpu| cpu.step >= step && cpu.holds_host);
                (!(here && is_of(Word::EL2) && first())).then_some(descriptor)
            }
            Fault::GuestLeaf(twist) => match twist.of(descriptor) {
                Some(instead) if is_of(Word::POOL) && first() => instead,
                Some(_) | None => Some(descriptor),
            },
        }
    }

    fn scrubbed(&self, frame: Pfn) {
        let shared = self.shadow.lock().word(frame.raw()).is_some_and(|word| word.tag() == Word::SHARED);
        // The host may write to a page that it still borrows. Said when the lock is let go, where a machine may stop.
        if !shared {
            self.here(|cpu| cpu.look_for_zeros(frame, &self.ground.ports()));
        }
    }

    fn leaves(&self) -> bool {
        match self.ground.fault() {
            Fault::None | Fault::LostStore(_) | Fault::LostInvalidation(_) => false,
            Fault::GuestLeaf(_) | Fault::WrongAddress => false,
            Fault::LostScrub(step) => self.here(|cpu| cpu.step >= step) && !self.lost.swap(true, Ordering::Relaxed),
        }
    }

    fn forgets(&self) -> bool {
        match self.ground.fault() {
            Fault::None | Fault::LostStore(_) | Fault::LostScrub(_) => false,
            Fault::GuestLeaf(_) | Fault::WrongAddress => false,
            Fault::LostInvalidation(step) => {
                self.here(|cpu| cpu.step >= step && cpu.holds_host) && !self.lost.swap(true, Ordering::Relaxed)
            }
        }
    }
}

impl<G: Ground, const RECORDS: usize> Observer<Host<'static>> for &'static Watcher<G, RECORDS> {
    fn taken(&self, host: &Host<'static>) {
        self.event(Event::Acquire { lock: HOST });
        self.here(|cpu| {
            cpu.holds_host = true;
            let mut shadow = self.shadow.lock();
            let named = cpu.frames().iter().find(|pfn| !shadow.agrees(**pfn, host.ledger())).copied();
            named.or_else(|| shadow.walk(WALK, host.ledger()).map(Pfn::raw))
        })
        .inspect(|pfn| {
            self.diverged(format_args!(
                "frame {pfn:#x} was {:x?} when the host's lock was let go, and is {:?}: written without it",
                self.shadow.lock().word(*pfn),
                Pfn::new(*pfn).and_then(|pfn| host.ledger().state(pfn)),
            ))
        });
    }

    fn letting_go(&self, host: &Host<'static>) {
        let ports = self.ground.ports();
        let (step, wrong) = self.here(|cpu| {
            let mut shadow = self.shadow.lock();
            if let Trap::Abort { page, kernel } = cpu.trap {
                judge::touch(cpu, &self.vms, &mut shadow, page, kernel);
            }
            cpu.holds_host = false;
            let wrong = self.note_owners(cpu.trap, &mut shadow, host);
            let named = cpu.frames().iter().find(|pfn| !shadow.agrees(**pfn, host.ledger())).copied();
            (cpu.step, named.or(wrong))
        });
        if let Some(pfn) = self.here(|cpu| cpu.left) {
            self.diverged(format_args!("frame {pfn:#x} was zeroed, and is not zero"));
        }
        if let Some(pfn) = wrong {
            let must = self.shadow.lock().word(pfn);
            let state = Pfn::new(pfn).and_then(|pfn| host.ledger().state(pfn));
            self.diverged(format_args!("frame {pfn:#x} must be {must:x?}, and is {state:x?}"));
        }
        // The named frames once more, against the tables.
        let mut at = 0;
        while let Some(pfn) = self.here(|cpu| cpu.frames().get(at).copied()) {
            at += 1;
            if let Some(pfn) = Pfn::new(pfn) {
                self.check_tables(host, pfn, &ports);
            }
        }
        if step.is_multiple_of(FULL_WALK) {
            let differs = self.shadow.lock().differs(host.ledger());
            if let Some(pfn) = differs {
                self.diverged(format_args!("frame {:#x} changed in no call that names it", pfn.raw()));
            }
            // Only who holds the host's lock changes it; let go of it, for a divergence looks into it.
            let mut from = 0;
            while let Some(pfn) = {
                let shadow = self.shadow.lock();
                shadow.worth_a_look(&mut from)
            } {
                self.check_tables(host, pfn, &ports);
            }
        }
        self.event(Event::Release { lock: HOST });
    }
}

impl<G: Ground, const RECORDS: usize> Told for &'static Watcher<G, RECORDS> {
    fn written(&self) {
        self.diverged(format_args!("a board of a VM changed, and nobody held its lock"))
    }

    fn let_go(&self) {
        let Some((slot, vcpu, hvc::VCPU_RUN)) = self.claimed() else { return };
        self.here(|cpu| match &mut cpu.stopped {
            Some(stopped) => stopped.let_go_of_board(&self.vms, (slot, vcpu)),
            None if cpu.arrived.is_none() => cpu.arrived = Some(turn::arrives(&self.vms, (slot, vcpu))),
            None => {}
        });
    }
}

impl<G: Ground, const RECORDS: usize> Observer<GuestSlot> for &'static Watcher<G, RECORDS> {
    fn taken(&self, slot: &GuestSlot) {
        let vm = slot.memory.vm();
        self.event(Event::Acquire { lock: vm.vmid().raw() });
        let now = Books::of(&slot.memory);
        let then = self.books.get(usize::from(vm.raw())).map(|books| *books.lock());
        if then.is_some_and(|then| then != now) {
            self.diverged(format_args!("VM slot {} was {then:?}, and is {now:?}: written without its lock", vm.raw()));
        }
    }

    fn letting_go(&self, slot: &GuestSlot) {
        let vm = slot.memory.vm();
        let vmid = vm.vmid().raw();
        let now = Books::of(&slot.memory);
        if let Some(books) = self.books.get(usize::from(vm.raw())) {
            let then = core::mem::replace(&mut *books.lock(), now);
            let (judged, mapped) = self.here(|cpu| {
                let mut shadow = self.shadow.lock();
                let places = judge::places(cpu, &self.vms, &shadow, vm.raw());
                let judged = judge::guest(cpu, &self.vms, &mut shadow, vm.raw(), &then, &now);
                let view = View { pages: Some(&mut shadow), vms: &self.vms, runs: None };
                (judged, self.maps(&view, vm.raw(), (&then, &now), places, cpu))
            });
            if let Err(difference) = judged {
                self.diverged(format_args!("{difference:?}"));
            }
            if let Err(wrong) = mapped {
                self.diverged(format_args!("the tables of slot {}: {wrong:x?}", vm.raw()));
            }
            if now.life == Life::Free && then.life != Life::Free {
                let left = self.shadow.lock().of_vm(vm.raw());
                if left != 0 {
                    self.diverged(format_args!("slot {} is free, and {left} frames are still its", vm.raw()));
                }
            }
            match (then.root, now.root) {
                (None, Some((table, bits))) => {
                    self.event(Event::Root { vmid, table, tables: 1 << bits.saturating_sub(39) });
                }
                (Some(_), None) => self.event(Event::Unroot { vmid }),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        self.event(Event::Release { lock: vmid });
    }
}
