// SPDX-License-Identifier: MIT OR Apache-2.0
//! A protected VM with one vCPU and one slot, and the device through which its program is told what to do.
//!
//! The steps are KVM's: create the VM, its `guest_memfd`, the slot, the vCPU; write the program through `mmap`; convert
//! to private; run. The program asks for commands by loads from the device and answers by stores (`proto`).

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use freehold_uapi::ioctl as abi;
use kvm_bindings::{kvm_create_guest_memfd, kvm_userspace_memory_region2, kvm_vcpu_init};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::gmem::Gmem;
use crate::proto;
use crate::sys::{self, Mapping, errno_name};
use crate::vgic::Gic;

/// The driver's node.
pub(crate) const NODE: &std::ffi::CStr = c"/dev/freehold";
const PROGRAM: &str = "/lib/guest.bin";
/// The kernel's own.
const PEER: &std::ffi::CStr = c"/dev/kvm";
/// `CREATE_VM` type of every VM here: protected, 40 bits of address.
pub(crate) const VM_TYPE: u64 = abi::KVM_VM_TYPE_ARM_PROTECTED | 40;

/// Sizes and boot flags of a machine.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// Bytes of RAM declared.
    pub(crate) bytes: u64,
    /// Bytes converted to private before the first run, from the start.
    pub(crate) private: u64,
    /// Boot flags for the program.
    pub(crate) boot: u64,
    /// With an interrupt controller.
    pub(crate) gic: bool,
    /// vCPUs. All but the first are off until the program starts them.
    pub(crate) vcpus: u64,
    /// Not protected: nothing is made private.
    pub(crate) ordinary: bool,
    /// Protected by the kernel's own KVM: it takes memory by its address, and makes it private at the first touch.
    pub(crate) peer: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            bytes: proto::RAM_MIN,
            private: proto::RAM_MIN,
            boot: 0,
            gic: false,
            vcpus: 1,
            ordinary: false,
            peer: false,
        }
    }
}

/// What the program said before it asked for its first command.
#[derive(Clone, Debug, Default)]
pub(crate) struct Boot {
    pub(crate) hash: u64,
    pub(crate) hash_ok: u64,
    pub(crate) facts: u64,
    /// Masked; this program never takes the mask off.
    pub(crate) secret: [u64; 2],
    pub(crate) shared: u64,
    pub(crate) console: String,
}

/// Why a vCPU came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It asks for a command; [`Machine::answer`] it before the next run.
    Asks,
    /// It stored to a device register.
    Stored(u64, u64),
    /// A signal, or `immediate_exit`.
    Interrupted,
    /// It asked for an end: `KVM_SYSTEM_EVENT_*`.
    System(u32),
    /// It can not go on; the text says why.
    Broken(String),
}

/// The VM.
pub(crate) struct Machine {
    /// Kept: the VM lives as long as its vCPU and this.
    pub(crate) vm: VmFd,
    pub(crate) vcpu: VcpuFd,
    /// The other vCPUs, in order.
    pub(crate) others: Vec<VcpuFd>,
    /// Its interrupt controller, where it was made with one.
    pub(crate) gic: Option<Gic>,
    pub(crate) gmem: Arc<Gmem>,
    pub(crate) ram: Arc<Mapping>,
    pub(crate) program: Vec<u8>,
    /// The run page, mapped a second time, to look for what must not be there.
    pub(crate) run_page: Mapping,
    run_bytes: usize,
    arguments: [u64; 3],
    results: [u64; 3],
    boot: Boot,
    /// Bytes that no exit may show, and whether one did.
    pub(crate) watch: Option<[u8; 8]>,
    pub(crate) leaked: bool,
    /// Runs that a signal ended.
    pub(crate) interruptions: u32,
    /// What x1 of the boot vCPU starts with.
    pub(crate) x1: u64,
}

fn err(what: &str, error: i32) -> String {
    format!("{what}: {}", errno_name(error))
}

/// Whether it is the kernel's own KVM that is asked, so that its answers can be laid beside the driver's.
static OF_THE_PEER: AtomicBool = AtomicBool::new(false);

/// From here on [`open`] opens the kernel's own node.
pub(crate) fn ask_the_peer() {
    OF_THE_PEER.store(true, Ordering::Relaxed);
}

/// Whether that was said.
pub(crate) fn is_the_peer() -> bool {
    OF_THE_PEER.load(Ordering::Relaxed)
}

/// Opens the driver's node.
pub(crate) fn open() -> Result<Kvm, String> {
    let node = if is_the_peer() { PEER } else { NODE };
    Kvm::new_with_path(node).map_err(|e| err(&format!("open {}", node.to_string_lossy()), e.errno()))
}

/// Opens the node of what the plan asks for.
fn open_for(plan: Plan) -> Result<Kvm, String> {
    if plan.peer { Kvm::new_with_path(PEER).map_err(|e| err("open /dev/kvm", e.errno())) } else { open() }
}

/// Creates a `guest_memfd` that starts host mappable.
pub(crate) fn new_gmem(vm: &VmFd, bytes: u64) -> Result<Gmem, i32> {
    make_gmem(vm, bytes, abi::GUEST_MEMFD_FLAG_MMAP | abi::GUEST_MEMFD_FLAG_INIT_SHARED)
}

/// Creates a `guest_memfd`.
pub(crate) fn make_gmem(vm: &VmFd, bytes: u64, flags: u64) -> Result<Gmem, i32> {
    let ask = kvm_create_guest_memfd { size: bytes, flags, ..Default::default() };
    vm.create_guest_memfd(ask).map(Gmem::new).map_err(|e| e.errno())
}

/// Binds a range of a `guest_memfd` to guest addresses.
pub(crate) fn set_slot(vm: &VmFd, slot: u32, gpa: u64, bytes: u64, gmem: &Gmem, offset: u64) -> Result<(), i32> {
    let region = kvm_userspace_memory_region2 {
        slot,
        flags: u32::try_from(abi::KVM_MEM_GUEST_MEMFD).unwrap_or(0),
        guest_phys_addr: gpa,
        memory_size: bytes,
        userspace_addr: 0,
        guest_memfd_offset: offset,
        guest_memfd: gmem.as_raw_fd().cast_unsigned(),
        ..Default::default()
    };
    // SAFETY: a protected VM's slot gives the guest the file's pages, never memory of this process.
    unsafe { vm.set_user_memory_region2(region) }.map_err(|e| e.errno())
}

/// Sets a slot of this process' own memory.
pub(crate) fn set_plain(vm: &impl AsRawFd, slot: u32, gpa: u64, bytes: u64, at: *mut u8) -> Result<(), i32> {
    let mut region = abi::MemoryRegion {
        slot,
        flags: 0,
        guest_phys_addr: gpa,
        memory_size: bytes,
        userspace_addr: at.addr() as u64,
    };
    sys::ioctl(vm, abi::KVM_SET_USER_MEMORY_REGION, &mut region).map(|_| ())
}

/// The program that every machine runs.
pub(crate) fn read_program() -> Result<Vec<u8>, String> {
    std::fs::read(PROGRAM).map_err(|e| format!("{PROGRAM}: {e}"))
}

impl Machine {
    /// Creates the VM and writes the program into it; nothing is private yet.
    pub(crate) fn new(plan: Plan) -> Result<Self, String> {
        Self::over(plan, None)
    }

    /// As [`Machine::new`], with memory that is there already.
    pub(crate) fn over(plan: Plan, gmem: Option<Arc<Gmem>>) -> Result<Self, String> {
        Self::with(plan, gmem, abi::GUEST_MEMFD_FLAG_INIT_SHARED, |_, ram, program| {
            ram.copy_in(0, program);
            Ok(())
        })
    }

    /// As [`Machine::new`], with memory that is private from the start: `write` brings the program, before there is a slot.
    pub(crate) fn populated(
        plan: Plan,
        write: impl FnOnce(&Gmem, &Mapping, &[u8]) -> Result<(), String>,
    ) -> Result<Self, String> {
        Self::with(plan, None, 0, write)
    }

    fn with(
        plan: Plan,
        gmem: Option<Arc<Gmem>>,
        flags: u64,
        write: impl FnOnce(&Gmem, &Mapping, &[u8]) -> Result<(), String>,
    ) -> Result<Self, String> {
        let program = read_program()?;
        let kvm = open_for(plan)?;
        let kind = if plan.ordinary { VM_TYPE & !abi::KVM_VM_TYPE_ARM_PROTECTED } else { VM_TYPE };
        let vm = kvm.create_vm_with_type(kind).map_err(|e| err("CREATE_VM", e.errno()))?;
        let gmem = match gmem {
            Some(gmem) => gmem,
            None if plan.peer => Arc::new(Gmem::new(sys::memfd(plan.bytes).map_err(|e| err("memfd", e))?)),
            None => Arc::new(
                make_gmem(&vm, plan.bytes, abi::GUEST_MEMFD_FLAG_MMAP | flags)
                    .map_err(|e| err("CREATE_GUEST_MEMFD", e))?,
            ),
        };
        let bytes = usize::try_from(plan.bytes).map_err(|e| e.to_string())?;
        let ram = gmem.map(bytes).map_err(|e| err("mmap of the guest_memfd", e))?;
        write(&gmem, &ram, &program)?;
        // The kernel's own protected KVM takes no other memory.
        let set = match plan.peer {
            true => set_plain(&vm, 0, proto::RAM_BASE, plan.bytes, ram.at(0)),
            false => set_slot(&vm, 0, proto::RAM_BASE, plan.bytes, &gmem, 0),
        };
        set.map_err(|e| err("SET_USER_MEMORY_REGION", e))?;
        Self::assembled(&kvm, vm, plan, gmem, Arc::new(ram), program)
    }

    /// A machine whose memory is this process' own; its `guest_memfd` has nothing to do with it.
    pub(crate) fn plain(plan: Plan, ram: Arc<Mapping>) -> Result<Self, String> {
        let program = read_program()?;
        let kvm = open()?;
        let kind = if plan.ordinary { VM_TYPE & !abi::KVM_VM_TYPE_ARM_PROTECTED } else { VM_TYPE };
        let vm = kvm.create_vm_with_type(kind).map_err(|e| err("CREATE_VM", e.errno()))?;
        let gmem = match is_the_peer() {
            true => Gmem::new(sys::memfd(4096).map_err(|e| err("memfd", e))?),
            false => new_gmem(&vm, 4096).map_err(|e| err("CREATE_GUEST_MEMFD", e))?,
        };
        let gmem = Arc::new(gmem);
        ram.copy_in(0, &program);
        set_plain(&vm, 0, proto::RAM_BASE, plan.bytes, ram.at(0)).map_err(|e| err("SET_USER_MEMORY_REGION", e))?;
        Self::assembled(&kvm, vm, plan, gmem, ram, program)
    }

    fn assembled(
        kvm: &Kvm,
        vm: VmFd,
        plan: Plan,
        gmem: Arc<Gmem>,
        ram: Arc<Mapping>,
        program: Vec<u8>,
    ) -> Result<Self, String> {
        let gic = if plan.gic { Some(Gic::new(&vm)?) } else { None };
        let vcpu = new_vcpu(&vm, 0)?;
        let others = (1..plan.vcpus).map(|index| new_vcpu(&vm, index)).collect::<Result<_, _>>()?;
        if let Some(gic) = &gic {
            gic.complete()?;
        }
        let x1 = entropy();
        for (id, value) in [
            (abi::KVM_REG_X0, plan.boot),
            (abi::KVM_REG_X0 + 2, x1),
            (abi::KVM_REG_PC, proto::RAM_BASE),
            (abi::KVM_REG_PSTATE, proto::START_PSTATE),
        ] {
            vcpu.set_one_reg(id, &value.to_le_bytes()).map_err(|e| err("SET_ONE_REG", e.errno()))?;
        }
        let run_bytes = kvm.get_vcpu_mmap_size().map_err(|e| err("GET_VCPU_MMAP_SIZE", e.errno()))?;
        let run_page = Mapping::new(&vcpu, 0, run_bytes, libc::PROT_READ).map_err(|e| err("mmap of the vCPU", e))?;
        Ok(Self { others, gic, program, x1, ..Self::around(vm, vcpu, gmem, ram, (run_page, run_bytes)) })
    }

    /// What drives a program on a VM that is there already, with its registers as they are.
    pub(crate) fn around(
        vm: VmFd,
        vcpu: VcpuFd,
        gmem: Arc<Gmem>,
        ram: Arc<Mapping>,
        (run_page, run_bytes): (Mapping, usize),
    ) -> Self {
        Self {
            vm,
            vcpu,
            others: Vec::new(),
            gic: None,
            gmem,
            ram,
            program: Vec::new(),
            run_page,
            run_bytes,
            arguments: [0; 3],
            results: [0; 3],
            boot: Boot::default(),
            watch: None,
            leaked: false,
            interruptions: 0,
            x1: 0,
        }
    }

    /// A machine whose memory is private and whose program waits for its first command.
    pub(crate) fn booted(plan: Plan) -> Result<(Self, Boot), String> {
        let mut machine = Self::new(plan)?;
        if !plan.peer {
            machine.gmem.to_private(0, plan.private, 0).map_err(|(e, at)| err(&format!("convert, at {at:#x}"), e))?;
        }
        let boot = machine.boot()?;
        Ok((machine, boot))
    }

    /// Runs the program until it asks for its first command.
    pub(crate) fn boot(&mut self) -> Result<Boot, String> {
        loop {
            match self.step() {
                Event::Asks => return Ok(self.boot.clone()),
                Event::Interrupted => self.interruptions += 1,
                Event::Stored(register, value) => self.note(register, value),
                other @ (Event::System(_) | Event::Broken(_)) => {
                    return Err(format!("boot ended with {other:?}; {:?}", self.boot));
                }
            }
        }
    }

    /// Has the program carry out one command; its three results.
    pub(crate) fn command(&mut self, command: u64, arguments: [u64; 3]) -> Result<[u64; 3], String> {
        self.command_with(command, arguments, |_| ())
    }

    /// As [`Machine::command`]; `stored` is told of each store, before the guest goes on.
    pub(crate) fn command_with(
        &mut self,
        command: u64,
        arguments: [u64; 3],
        stored: impl FnMut(u64),
    ) -> Result<[u64; 3], String> {
        self.answer(command, arguments);
        self.rest_of_command(stored)
    }

    /// Goes on with a command that something interrupted.
    pub(crate) fn rest_of_command(&mut self, mut stored: impl FnMut(u64)) -> Result<[u64; 3], String> {
        let mut ended = false;
        loop {
            match self.step() {
                Event::Asks if ended => return Ok(self.results),
                Event::Interrupted => self.interruptions += 1,
                Event::Stored(register, value) => {
                    ended |= register == proto::REG_RESULT0;
                    self.note(register, value);
                    stored(register);
                }
                other @ (Event::Asks | Event::System(_) | Event::Broken(_)) => {
                    return Err(format!("a command ended with {other:?}"));
                }
            }
        }
    }

    /// Has the program carry out a command from which it does not come back; how it ended.
    pub(crate) fn last_command(&mut self, command: u64, arguments: [u64; 3]) -> Event {
        self.answer(command, arguments);
        loop {
            match self.step() {
                Event::Interrupted | Event::Stored(..) => {}
                other @ (Event::Asks | Event::System(_) | Event::Broken(_)) => return other,
            }
        }
    }

    /// Puts a command where the pending load takes it from.
    pub(crate) fn answer(&mut self, command: u64, arguments: [u64; 3]) {
        self.arguments = arguments;
        self.results = [0; 3];
        self.vcpu.get_kvm_run().__bindgen_anon_1.mmio.data = command.to_le_bytes();
    }

    fn note(&mut self, register: u64, value: u64) {
        match register {
            proto::REG_CONSOLE => self.boot.console.push(char::from(value.to_le_bytes()[0])),
            proto::REG_RESULT0 => self.results[0] = value,
            proto::REG_RESULT1 => self.results[1] = value,
            proto::REG_RESULT2 => self.results[2] = value,
            proto::REG_BOOT_HASH => self.boot.hash = value,
            proto::REG_BOOT_HASH_OK => self.boot.hash_ok = value,
            proto::REG_BOOT_FACTS => self.boot.facts = value,
            proto::REG_BOOT_SECRET0 => self.boot.secret[0] = value,
            proto::REG_BOOT_SECRET1 => self.boot.secret[1] = value,
            proto::REG_BOOT_SHARED => self.boot.shared = value,
            proto::REG_PANIC_ESR | proto::REG_PANIC_ELR | proto::REG_PANIC_FAR => {
                println!("guest panic: register {register:#x} = {value:#x}");
            }
            _ => {}
        }
    }

    /// Enters the guest once, and answers argument and scratch loads by itself.
    pub(crate) fn step(&mut self) -> Event {
        loop {
            let arguments = self.arguments;
            let event = match self.vcpu.run() {
                Ok(VcpuExit::MmioRead(address, data)) => {
                    let value = match address.wrapping_sub(proto::DEVICE) {
                        proto::REG_COMMAND => None,
                        proto::REG_ARG0 => Some(arguments[0]),
                        proto::REG_ARG1 => Some(arguments[1]),
                        proto::REG_ARG2 => Some(arguments[2]),
                        _ => Some(u64::MAX),
                    };
                    if let Some(value) = value {
                        let bytes = data.len();
                        data.copy_from_slice(&value.to_le_bytes()[..bytes]);
                    }
                    if value.is_some() { None } else { Some(Event::Asks) }
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    let mut word = [0; 8];
                    word[..data.len()].copy_from_slice(data);
                    Some(Event::Stored(address.wrapping_sub(proto::DEVICE), u64::from_le_bytes(word)))
                }
                Ok(VcpuExit::SystemEvent(kind, _)) => Some(Event::System(kind)),
                Ok(VcpuExit::Intr) => Some(Event::Interrupted),
                Ok(other) => Some(Event::Broken(format!("{other:?}"))),
                Err(error) if error.errno() == libc::EINTR => Some(Event::Interrupted),
                Err(error) => Some(Event::Broken(format!("KVM_RUN {}", errno_name(error.errno())))),
            };
            self.look_for_watched();
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn look_for_watched(&mut self) {
        if let Some(watched) = self.watch {
            let seen = self.run_page.copy_out(0, self.run_bytes);
            self.leaked |= seen.windows(8).any(|bytes| bytes == watched)
                || seen.windows(4).any(|bytes| bytes == &watched[..4] || bytes == &watched[4..]);
        }
    }
}

/// Creates and initialises a vCPU.
pub(crate) fn new_vcpu(vm: &VmFd, index: u64) -> Result<VcpuFd, String> {
    let vcpu = vm.create_vcpu(index).map_err(|e| err("CREATE_VCPU", e.errno()))?;
    init_vcpu(vm, &vcpu, index)?;
    Ok(vcpu)
}

/// Initialises a vCPU, for the first time or anew.
pub(crate) fn init_vcpu(vm: &VmFd, vcpu: &VcpuFd, index: u64) -> Result<(), String> {
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).map_err(|e| err("ARM_PREFERRED_TARGET", e.errno()))?;
    init.features[0] |= 1 << abi::KVM_ARM_VCPU_PSCI_0_2;
    if index != 0 {
        init.features[0] |= 1 << abi::KVM_ARM_VCPU_POWER_OFF;
    }
    vcpu.vcpu_init(&init).map_err(|e| err("ARM_VCPU_INIT", e.errno()))
}

/// A word that differs from run to run.
pub(crate) fn entropy() -> u64 {
    let mut word = [0u8; 8];
    // SAFETY: the buffer has room for what is asked.
    let got = unsafe { libc::getrandom(word.as_mut_ptr().cast(), word.len(), libc::GRND_NONBLOCK) };
    if got == 8 {
        return u64::from_le_bytes(word);
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos() & u128::from(u64::MAX)).unwrap_or(1)
}

/// Reads one `el2` counter through the driver.
pub(crate) fn counter(kvm: &impl AsRawFd, counter: u64, index: u64) -> Result<u64, i32> {
    let mut word = counter | index << 32;
    sys::ioctl(kvm, abi::FREEHOLD_COUNTER, &mut word)?;
    Ok(word)
}
