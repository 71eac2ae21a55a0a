// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the watcher hears of vCPUs and of the platform: when they run and stop, and what they wait for.

use core::sync::atomic::Ordering;
use freehold_el2::calls::Stop;
use freehold_mem::{Pfn, VmSlot};
use freehold_oracle::{Kind, Power, VcpuLife};
use freehold_trace::record::{Event, HOST};
use freehold_uapi::hvc;
use freehold_virt::exit::Wish;
use freehold_virt::handle::VcpuIndex;
use freehold_virt::setting::{Controller, Setting};
use freehold_virt::vcpu::Pending;
use freehold_virt::vgic::Window;

use super::{Ground, Watcher};
use crate::fault::Fault;
use crate::given::Found;
use crate::platform::Listener;
use crate::turn::{Seen, Stopped};

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

impl<G: Ground, const RECORDS: usize> Watcher<G, RECORDS> {
    /// What a vCPU must run in: the VM's root of its books, as its lock was last let go, and what the host's calls said.
    pub fn setting(&self, slot: u8, vcpu: u64) -> Option<Setting> {
        let (root, _) = self.books.get(usize::from(slot))?.lock().root?;
        let records = self.vms.slot(slot)?;
        let ipa_bits = u32::from(records.vm.ipa_bits);
        let controller = records.frames.and_then(|[distributor, redistributors]| {
            let frames = usize::try_from(records.redistributors()).ok()?;
            let is_clear = !records.has_ram_below_controller();
            Some(Controller { window: Window::new(distributor, redistributors, ipa_bits).ok()?, frames, is_clear })
        });
        let (root, vmid) = (Pfn::new(root)?, VmSlot::new(slot)?.vmid());
        Some(Setting { root, ipa_bits, vmid, vcpu: VcpuIndex::decode(vcpu).ok()?, controller })
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

    fn entering(&self, setting: Option<&Setting>, x: [u64; 4], found: &Found) {
        if let Some((slot, vcpu, _)) = self.claimed() {
            self.goes_on(slot, x, found);
            if self.vms.vcpu(slot, vcpu).power != Power::On {
                self.diverged(format_args!(
                    "vCPU {vcpu} of slot {slot} is about to run, and its guest never started it"
                ));
            }
            let must = self.setting(slot, vcpu);
            if setting != must.as_ref() {
                self.diverged(format_args!("vCPU {vcpu} of slot {slot} runs in {setting:x?}, and must in {must:x?}"));
            }
        }
        let (vmid, table) = setting.map_or((0, 0), |setting| (setting.vmid.raw(), setting.root.raw()));
        self.event(Event::Vttbr { vmid, table });
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
