// SPDX-License-Identifier: MIT OR Apache-2.0
//! All that is known of the machine between two calls, and what must be true of it whatever was called.

use freehold_el2::calls::Platform as _;
use freehold_mem::lock::{Mutex as _, Permit};
use freehold_mem::{Claim, Gfn, GuestView, Kind, Life, Pfn, State};
use freehold_virt::Refused;
use freehold_virt::handle::{Handle, VcpuIndex};
use freehold_virt::vcpu::Pending;
use freehold_virt::vm::{Purpose, VcpuPhase};

use crate::board::Board;
use crate::label::Label;
use crate::rig::Rig;
use crate::tlb::{ELSEWHERE, Rights};

/// One watched frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameView {
    /// What the ledger says.
    pub state: Option<State>,
    /// What it holds. Of a pool frame this says nothing.
    pub label: Label,
    /// Whether the host's tables map it.
    pub host_maps: bool,
    /// Whether some CPU may still have a translation of the host's.
    pub host_reaches: bool,
}

/// One vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuView {
    /// What it is doing; `Claimed` is never seen between two calls.
    pub phase: VcpuPhase,
    /// What it waits for.
    pub pending: Pending,
    /// Whether the host wants it back.
    pub kicked: bool,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmView {
    /// Its handle.
    pub handle: u64,
    /// Where it is in its life.
    pub life: Life,
    /// What it is.
    pub kind: Option<Kind>,
    /// Declared RAM: first guest frame and count, in the order of declaration.
    pub ram: Vec<(u64, u64)>,
    /// Free frames of its pool.
    pub pool_free: u32,
    /// Frames that it owns.
    pub owned: u64,
    /// Guest frames at which it borrows a frame of the host's.
    pub borrowed: u64,
    /// Whether it has an interrupt controller.
    pub gic: bool,
    /// Its first vCPUs; none that were not created, and none if the VM is dying.
    pub vcpus: [Option<VcpuView>; 2],
    /// What it finds at each watched guest frame.
    pub gfns: Vec<GuestView>,
    /// Whether its guest lets no access there leave.
    pub barred: Vec<bool>,
    /// Which watched frames it may still reach there, on some CPU.
    pub reaches: Vec<u64>,
    /// What for, by its tables; none where nothing is mapped, or while it can not run.
    pub rights: Vec<Option<Rights>>,
}

/// The machine between two calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Each watched frame.
    pub frames: Vec<FrameView>,
    /// Each slot.
    pub vms: Vec<Option<VmView>>,
    /// Frames that the host can not reach.
    pub foreign: u64,
    /// Blocks, and level-3 tables, that map RAM for the host.
    pub blocks: [u64; 2],
    /// Which frames are watched, counted from the first behind the carve-out.
    pub watched: Vec<u64>,
    /// Which guest frames are.
    pub places: Vec<u64>,
}

impl Rig {
    /// Looks at everything. No call may be under way.
    #[must_use]
    pub fn picture(&self) -> Picture {
        let mut handles = vec![None; self.board.layout.vms];
        for handle in self.board.vms().handles() {
            handles[handle.slot().index()] = Some(handle);
        }
        let vms = handles.into_iter().map(|handle| handle.map(|handle| self.vm_view(handle))).collect();
        let permit = &mut Permit::for_this_entry();
        let mut host = self.world.host(permit);
        let host = host.get();
        let (maps, reaches) = (self.board.host_maps(), self.board.tlb().host);
        let view = |number: usize| {
            let frame = self.board.frame(number);
            FrameView {
                state: Pfn::new(frame).and_then(|pfn| host.ledger().state(pfn)),
                label: self.board.label(frame),
                host_maps: maps >> number & 1 != 0,
                host_reaches: reaches >> number & 1 != 0,
            }
        };
        let frames = (0..self.board.layout.watched.len()).map(view).collect();
        let counters = host.counters();
        let (watched, places) = (self.board.layout.watched.clone(), self.board.layout.gfns.clone());
        let blocks = [counters.blocks, counters.tables];
        Picture { frames, vms, foreign: counters.foreign, blocks, watched, places }
    }

    fn vm_view(&self, handle: Handle) -> VmView {
        let slot = handle.slot().index();
        let permit = &mut Permit::for_this_entry();
        let mut guard = self.world.guest(permit, slot).expect("a slot");
        let memory = &guard.get().memory;
        let machine = self.cpu(0).machine();
        let at = |gfn: &u64| memory.view(Claim::new(Gfn::new(*gfn).expect("a guest frame").ipa()), &machine);
        let root = memory.root().map(|(root, _)| root.raw());
        let rights = |gfn: &u64| root.and_then(|root| self.board.walk_guest(root, *gfn)).map(|(_, rights)| rights);
        let tlb = self.board.tlb();
        VmView {
            handle: handle.encode(),
            life: memory.life(),
            kind: memory.kind(),
            ram: memory.ram().map(|run| (run.start().raw(), run.count())).collect(),
            pool_free: memory.pool_free(),
            owned: memory.frames().0,
            borrowed: memory.frames().1,
            gic: self.boards[slot].acquire().vgic().is_some(),
            vcpus: [0, 1].map(|index| self.vcpu_view(handle, VcpuIndex::existing(index, 2)?)),
            gfns: self.board.layout.gfns.iter().map(at).collect(),
            barred: self.board.layout.gfns.iter().map(|gfn| memory.bars(Gfn::new(*gfn))).collect(),
            reaches: (0..self.board.layout.gfns.len()).map(|place| tlb.guest(slot, place)).collect(),
            rights: self.board.layout.gfns.iter().map(rights).collect(),
        }
    }

    /// The phase shows in who may claim the vCPU; each claim is given up as it was.
    fn vcpu_view(&self, handle: Handle, index: VcpuIndex) -> Option<VcpuView> {
        let vms = self.board.vms();
        let claim = |purpose| vms.claim(handle, index, purpose);
        let (phase, claim) = match claim(Purpose::Answer) {
            Ok(claim) => (VcpuPhase::Parked, claim),
            Err(Refused::NoRequest) => (VcpuPhase::Ready, claim(Purpose::Registers).ok()?),
            Err(Refused::VcpuBusy) => {
                return Some(VcpuView { phase: VcpuPhase::Claimed, pending: Pending::None, kicked: false });
            }
            Err(Refused::WrongState) if vms.phase(handle) == Ok(freehold_virt::vm::Phase::Live) => {
                return Some(VcpuView { phase: VcpuPhase::Crashed, pending: Pending::None, kicked: false });
            }
            Err(_) => return None,
        };
        let kicked = claim.take_kick();
        let frame = claim.block();
        drop(claim);
        if kicked {
            let _ = vms.kick(handle, index);
        }
        let pending = self.board.blocks().iter().find(|(at, _)| *at == frame).map(|(_, block)| block.vcpu.pending());
        Some(VcpuView { phase, pending: pending?, kicked })
    }
}

impl Picture {
    /// What must be true whatever was called (I1, I2, I3): whoever reaches a frame has the right to.
    ///
    /// # Errors
    /// The first thing that is not.
    pub fn judge(&self) -> Result<(), String> {
        for (number, frame) in self.frames.iter().enumerate() {
            let may = !matches!(frame.state, Some(State::El2 | State::Pool { .. } | State::Private { .. }));
            if frame.host_maps != may {
                return Err(format!("frame {number}: {:?}, but host_maps is {}", frame.state, frame.host_maps));
            }
            if frame.host_reaches && !may {
                return Err(format!("frame {number}: {:?}, and the host may still reach it", frame.state));
            }
        }
        self.vms.iter().enumerate().filter_map(|(slot, vm)| Some((slot, vm.as_ref()?))).try_for_each(|(slot, vm)| {
            vm.reaches.iter().enumerate().try_for_each(|(place, frames)| self.judge_guest(slot, vm, place, *frames))
        })
    }

    fn judge_guest(&self, slot: usize, vm: &VmView, place: usize, frames: u64) -> Result<(), String> {
        if vm.life == Life::Dying && frames != 0 {
            return Err(format!("VM {slot} is dying, and its translations are not forgotten"));
        }
        for (number, frame) in self.frames.iter().enumerate().filter(|(number, _)| frames >> number & 1 != 0) {
            let is_its = matches!(frame.state, Some(State::Private { vm, .. } | State::Shared { vm, .. })
                if usize::from(vm.raw()) == slot);
            let pfn = self.watched.get(number).and_then(|at| Pfn::new(Board::HOST + at));
            let borrows = matches!(frame.state, Some(State::Lent(_)))
                && vm.kind == Some(Kind::Ordinary)
                && pfn.is_some_and(|pfn| vm.gfns.get(place) == Some(&GuestView::Mapped(pfn)));
            if !is_its && !borrows {
                return Err(format!("VM {slot} may still reach frame {number} at {place}, which is {:?}", frame.state));
            }
        }
        if frames & ELSEWHERE == 0 && frames.count_ones() > 1 {
            return Err(format!("VM {slot} may reach two frames at {place}"));
        }
        Ok(())
    }
}
