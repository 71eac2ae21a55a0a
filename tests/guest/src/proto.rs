// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the payload and its VMM agree on: where things lie, how commands are asked for, what comes back.
//!
//! One source for both: the payload compiles it as a module, `tests/vmm` includes the same file by path. Nothing here
//! touches hardware.

// Each of the two programs uses its own half.
#![allow(dead_code, unreachable_pub, reason = "one file, two users")]

/// Intermediate physical address of the first byte of RAM and of the image; the vCPU starts here.
pub const RAM_BASE: u64 = 0x8000_0000;
/// Least RAM that the VMM declares and donates before the first run: image, volatile part, both arenas.
pub const RAM_MIN: u64 = 0x0020_0000;
/// PSTATE of the first instruction: `EL1h`, DAIF masked.
pub const START_PSTATE: u64 = 0x3c5;

/// Text and read-only data: all of `guest.bin`. Nobody writes here after the load.
pub const IMAGE_MAX: u64 = 0x0004_0000;
/// Zero-initialised data, stack and the payload's own page tables.
pub const VOLATILE_BASE: u64 = RAM_BASE + IMAGE_MAX;
/// End of the volatile part.
pub const VOLATILE_END: u64 = RAM_BASE + 0x0008_0000;
/// Private pages that hold copies of the secret; written once at boot.
pub const SECRET_BASE: u64 = VOLATILE_END;
/// Pages at [`SECRET_BASE`].
pub const SECRET_PAGES: u64 = 16;
/// Pages meant for sharing and unsharing; the first holds the greeting.
pub const SHARE_BASE: u64 = RAM_BASE + 0x0010_0000;
/// Pages at [`SHARE_BASE`].
pub const SHARE_PAGES: u64 = 128;
/// Bytes of a granule.
pub const GRANULE: u64 = 4096;

/// Offset in the image of the 8 bytes that hold the file length in bytes, patched when the image is flattened.
pub const HEADER_LEN_OFFSET: usize = 0x10;
/// Offset in the image of the 8 bytes that hold [`hash_words`] of the file from [`HASH_FROM`] on, patched likewise.
pub const HEADER_HASH_OFFSET: usize = 0x18;
/// Offset of the magic number in the image.
pub const HEADER_MAGIC_OFFSET: usize = 0x8;
/// `FHGUEST1` as little-endian bytes.
pub const HEADER_MAGIC: u64 = u64::from_le_bytes(*b"FHGUEST1");
/// The hash covers the file from here to its end, padded with zeros to a multiple of 8.
pub const HASH_FROM: usize = 0x40;

/// Boot flag in x0: do not share the greeting page.
pub const BOOT_NO_SHARE: u64 = 1;
/// Boot flag in x0: do not print.
pub const BOOT_QUIET: u64 = 2;

/// Base of the device that the VMM emulates.
pub const DEVICE: u64 = 0x0900_0000;
/// Bytes of the device.
pub const DEVICE_LEN: u64 = 0x1000;
/// 8-bit store: one character.
pub const REG_CONSOLE: u64 = 0x000;
/// 64-bit load: the next command, one of `CMD_*`.
pub const REG_COMMAND: u64 = 0x008;
/// 64-bit load: first argument of the command just read.
pub const REG_ARG0: u64 = 0x010;
/// 64-bit load: second argument.
pub const REG_ARG1: u64 = 0x018;
/// 64-bit load: third argument.
pub const REG_ARG2: u64 = 0x020;
/// Store of any size: an exit without meaning. A load gives back whatever the VMM answers.
pub const REG_SCRATCH: u64 = 0x028;
/// 64-bit store: second result of a command. Written before [`REG_RESULT0`].
pub const REG_RESULT1: u64 = 0x108;
/// 64-bit store: third result. Written before [`REG_RESULT0`].
pub const REG_RESULT2: u64 = 0x110;
/// 64-bit store: first result; ends the command.
pub const REG_RESULT0: u64 = 0x100;

/// 64-bit store at boot: hash of the image as the guest sees it ([`hash_words`] from [`HASH_FROM`] to the file's end).
pub const REG_BOOT_HASH: u64 = 0x200;
/// 64-bit store at boot: 1 if that hash equals the one in the header, else 0.
pub const REG_BOOT_HASH_OK: u64 = 0x208;
/// 64-bit store at boot: low half of the secret, XOR [`SECRET_MASK`]`[0]`.
pub const REG_BOOT_SECRET0: u64 = 0x210;
/// 64-bit store at boot: high half of the secret, XOR [`SECRET_MASK`]`[1]`.
pub const REG_BOOT_SECRET1: u64 = 0x218;
/// 64-bit store at boot: address of the page with the greeting, or status (negative) of the refused call.
pub const REG_BOOT_SHARED: u64 = 0x220;
/// 64-bit store at boot: [`BOOT_STAGE1`] `|` [`BOOT_FP`] `|` [`BOOT_FRESH`] as each was seen to hold.
pub const REG_BOOT_FACTS: u64 = 0x228;
/// 64-bit store: an exception that nobody expected; its `ESR_EL1`. The guest powers off next.
pub const REG_PANIC_ESR: u64 = 0x300;
/// 64-bit store: its `ELR_EL1`.
pub const REG_PANIC_ELR: u64 = 0x308;
/// 64-bit store: its `FAR_EL1`.
pub const REG_PANIC_FAR: u64 = 0x310;

/// Fact: the payload runs with its own stage 1 on, caches on.
pub const BOOT_STAGE1: u64 = 1;
/// Fact: floating point computed what it should.
pub const BOOT_FP: u64 = 2;
/// Fact: registers of every kind held what they hold after a reset.
pub const BOOT_FRESH: u64 = 4;
/// All facts.
pub const BOOT_ALL: u64 = BOOT_STAGE1 | BOOT_FP | BOOT_FRESH;

/// The secret leaves the guest only XOR this.
pub const SECRET_MASK: [u64; 2] = [0x5bd1_e995_9e37_79b9, 0xc2b2_ae3d_27d4_eb4f];
/// Pages that [`CMD_CANARY`] touches.
pub const CANARY_PAGES: u64 = 6;
/// What [`CMD_CANARY`] stores. No exit may ever show it.
pub const CANARY: u64 = 0x0dd_ba11_5ca1_ab1e_u64.rotate_left(8) | 0x5a;
/// First bytes of the shared page, followed by a zero byte.
pub const GREETING: &str = "freehold: a guest greets its host";
/// What the console says once boot is through.
pub const BOOT_LINE: &str = "freehold-guest: up";

/// Nothing. r0 = 0.
pub const CMD_NOP: u64 = 0;
/// Hash of `[arg0, arg0 + arg1)`, 8-aligned; arg0 = 0: of the image and the secret pages, all that must not change.
pub const CMD_HASH: u64 = 1;
/// `MEM_SHARE(arg0, arg1)`. r0 = x0, r1 = x1 (done), r2 = ticks of the virtual counter that the call took.
pub const CMD_SHARE: u64 = 2;
/// `MEM_UNSHARE(arg0, arg1)`. Results as [`CMD_SHARE`].
pub const CMD_UNSHARE: u64 = 3;
/// `MEM_RELINQUISH(arg0)`. Results as [`CMD_SHARE`].
pub const CMD_RELINQUISH: u64 = 4;
/// Stores [`CANARY`] in 1, 2, 4 and 8 bytes, as a pair and with write-back, each to a page of its own (arg0 + n * 4096, n < [`CANARY_PAGES`]), then reads back. r0 = mismatches.
pub const CMD_CANARY: u64 = 5;
/// Fills v0–v31, FPCR and FPSR, makes arg0 MMIO exits, compares. r0 = registers that differ.
pub const CMD_FP: u64 = 6;
/// Reads (and for some writes) every register that a protected guest must not have. r0 = those that did not UNDEF, r1 = index of the first such one, r2 = registers tried.
pub const CMD_HIDDEN: u64 = 7;
/// Executes WFI arg0 times (0 means 1). r0 = 0.
pub const CMD_WFI: u64 = 8;
/// Spins for arg0 ticks of the virtual counter without an exit. r0 = loops.
pub const CMD_SPIN: u64 = 9;
/// Fills arg1 bytes at arg0 with [`pattern`] of seed arg2. r0 = 0.
pub const CMD_FILL: u64 = 10;
/// Compares arg1 bytes at arg0 with [`pattern`] of seed arg2. r0 = words that differ, r1 = address of the first.
pub const CMD_CHECK: u64 = 11;
/// Counts words in arg1 bytes at arg0 that are not zero. r0 = count, r1 = address of the first.
pub const CMD_ZERO: u64 = 12;
/// 64-bit load of arg0 that may fault. r0 = value, r1 = `ESR_EL1` of the fault or 0. For shared pages and holes only.
pub const CMD_LOAD: u64 = 13;
/// Store of arg1 at arg0 that may fault, of arg2 bytes if that is 1, 2 or 4, else of 64 bits. r0 = 0, r1 = `ESR_EL1` of the fault or 0.
pub const CMD_STORE: u64 = 14;
/// Writes [`GREETING`] at arg0. r0 = 0.
pub const CMD_GREET: u64 = 15;
/// HVC with x0 = arg0, x1 = arg1, x2 = arg2, x3.. = 0. r0 = x0, r1 = x1, r2 = x2.
pub const CMD_HVC: u64 = 16;
/// SMC with x0 = arg0. r0 = x0, r1 = `ESR_EL1` of the fault or 0.
pub const CMD_SMC: u64 = 17;
/// Checks the view of the ID registers. r0 = `ID_*` bits of what is wrong, 0 if all is hidden that must be.
pub const CMD_ID: u64 = 18;
/// Masked secret again. r0, r1 as at boot. r2 = secret copies that are damaged.
pub const CMD_SECRET: u64 = 19;
/// Loads EL1 state and general registers with a pattern, makes arg0 MMIO exits, compares. r0 = registers that differ.
pub const CMD_STATE: u64 = 20;
/// MMIO loads of every size and sign from [`REG_SCRATCH`]; the VMM answers with all ones. r0 = results that are wrong.
pub const CMD_MMIO: u64 = 21;
/// PSCI `SYSTEM_OFF`. No result.
pub const CMD_OFF: u64 = 22;
/// PSCI `SYSTEM_RESET`. No result.
pub const CMD_RESET: u64 = 23;
/// Loads the pair at arg0 (an access without syndrome). Outside RAM this ends the guest: crash exit.
pub const CMD_LOAD_PAIR: u64 = 24;
/// Jumps to arg0. r1 = `ESR_EL1` of the fault. Outside RAM this ends the guest.
pub const CMD_JUMP: u64 = 25;
/// Sets the interrupt controller up and looks at what it says of itself, in a VM of arg0 CPUs (0: of one). r0 = what is wrong, one bit each.
pub const CMD_GIC: u64 = 26;
/// Sends itself SGI [`SGI`] arg0 times. r0 = times that it did not come at once, r1 = ticks that all took.
pub const CMD_IPI: u64 = 27;
/// arg0 periods of arg1 ticks of a timer, as `TICK_*` in arg2 says. r0 = what went wrong, r1 = most ticks late, r2 = ticks that all took.
pub const CMD_TICKS: u64 = 28;
/// Waits by WFI for SPI [`SPI`], edge-triggered if arg0 is not 0, else by its level; makes one store to [`REG_SCRATCH`] while it is active. r0 = INTID that came, r1 = what came after its end.
/// With arg1 not 0 it does so twice, and only then looks whether anything else came: r1 = INTID that came second, r2 = what came
/// after its end. Whoever hears of the first end may raise it again at once.
pub const CMD_SPI: u64 = 29;
/// Starts CPU arg0 by `CPU_ON`, twice, and waits until it is there. r0, r1 = what the calls returned, r2 = its AFFINITY_INFO then.
pub const CMD_CPU_ON: u64 = 30;
/// Has CPU arg0 do job arg1 (one of `JOB_*`) with arg2 in both its arguments, or as the job says. r0 to r2 are its results.
pub const CMD_CPU: u64 = 31;
/// Wakes CPU arg0 by an SGI, and is woken by its answer, arg1 times. r0 = what went wrong, r1 = ticks that all took.
pub const CMD_CPU_PING: u64 = 32;
/// arg0 = 1: sends itself an SGI of group 0 and three of group 1, acknowledges that and one of these and leaves both active, the others pending; 0: ends all four. r0 = priority or order are not what they must be, r1 = the running priority.
pub const CMD_HOLD: u64 = 33;
/// Together with CPU arg0: arg2 times each, MEM_SHARE and MEM_UNSHARE of the granule at arg1. r0 = answers that no such race
/// may have, r1 and r2 = calls of either kind that were served.
pub const CMD_QUARREL: u64 = 34;
/// Together with CPU arg0, both at each granule at the same time: adds 1 to the first word of arg2 granules from arg1 on.
/// r0 = words that are not 2 then.
pub const CMD_TOGETHER: u64 = 35;
/// Lets the virtual timer fire arg0 ticks from now, looks at it until it has, and goes on for arg1 rounds while it stays so.
/// Needs no interrupt controller. r0 = rounds in which it had not fired, r1 = ticks late.
pub const CMD_POLL_TIMER: u64 = 36;
/// Holds the controller against the rules of the architecture. r0 = a bit for each that does not hold, r1 = how many there are.
pub const CMD_RULES: u64 = 37;
/// Takes 48 interrupts of priorities by seed arg0 that all wait, then 16 that interrupt each other. r0 = what went wrong.
pub const CMD_CROWD: u64 = 38;
/// Takes SPI [`SPI`] arg0 times and once more, by its level; makes one store to [`REG_SCRATCH`] while the last one is active. r0 = what went wrong.
pub const CMD_LEVEL: u64 = 39;
/// Loads and stores at every offset of the controller's frames. r0 = what went wrong, r1 = address of the first, r2 = registers met.
pub const CMD_SWEEP: u64 = 42;
/// [`CMD_CHECK`] with debug exceptions unmasked. r0 = words that differ, r1 = `ESR_EL1` of an exception or 0.
pub const CMD_UNMASKED: u64 = 43;
/// Fills every register that the payload can do without, FP, keys and both timers' among them, and leaves it so. r0 = 0, or 1 if DISR_EL1 is there and does not hold what was written.
pub const CMD_FULL: u64 = 44;
/// Fills every general and vector register with [`CANARY`] and does its last: arg0, one of `LAST_*`. No result.
pub const CMD_LAST: u64 = 45;
/// CPUs 1 to arg0 - 1 do job arg1 at the same time, with arg2. r0 = what went wrong, all CPUs together.
pub const CMD_ALL: u64 = 46;
/// Writes every kind of debug register. r0 = those that do not read as zero then, r1 = index of the first such one, r2 = registers tried.
pub const CMD_DEBUG: u64 = 47;
/// Reaches for the controller's frames with what is no load or store of one general register: pairs, write-back, exclusives,
/// vectors, fetches, walks, at EL1 and at EL0. r0 = those that did not meet an external abort as the architecture has it, or
/// changed something, r1 = index of the first such one, r2 = how many were tried.
pub const CMD_UNDESCRIBED: u64 = 48;
/// Holds both timers against the ends of what their comparators hold. r0 = a bit for each rule that does not hold, r1 = how
/// many there are.
pub const CMD_TIMERS: u64 = 49;
/// This CPU and CPU arg0 send each other SGIs for arg1 ticks, and until 20 came to both. r0 = what went wrong, r1 = how many were sent, r2 = how many came.
pub const CMD_FLOOD: u64 = 50;
/// MEM_UNSHARE of the granule at arg1, or a load of arg2 if that is not 0, while CPU arg0 loads and stores in that granule and
/// interrupts are let through: SPI [`SPI`] by its edge, which arms the virtual timer. CPU arg0 stores to [`REG_SCRATCH`] when
/// both came. r0 = the call's answer and what went wrong, r1 = interrupts taken before it returned, r2 = rounds of CPU arg0's.
pub const CMD_WAITING: u64 = 51;
/// [`CMD_LAST`]: PSCI `SYSTEM_OFF`, its arguments the canary.
pub const LAST_OFF: u64 = 0;
/// [`CMD_LAST`]: PSCI `SYSTEM_RESET`.
pub const LAST_RESET: u64 = 1;
/// [`CMD_LAST`]: PSCI `SYSTEM_RESET2`, its cookie the canary.
pub const LAST_RESET2: u64 = 2;
/// [`CMD_LAST`]: stores a pair of the canary outside of RAM.
pub const LAST_STORE: u64 = 3;
/// [`CMD_LAST`]: puts its translation tables outside of RAM.
pub const LAST_WALK: u64 = 4;
/// [`CMD_LAST`]: spins for ever, with interrupts masked and no exit.
pub const LAST_SPIN: u64 = 5;
/// [`CMD_LAST`]: takes SPI [`SPI`] again and again, whose level never falls.
pub const LAST_LEVEL: u64 = 6;
/// [`CMD_LAST`]: sends itself SGIs for ever.
pub const LAST_SGI: u64 = 7;
/// [`CMD_LAST`]: every fetch of it is one from the interrupt controller, that of its vectors too.
pub const LAST_ABORT: u64 = 8;
/// [`CMD_CPU`]: the first argument comes back as r1. r0 = 0.
pub const JOB_ECHO: u64 = 0;
/// [`CMD_CPU`]: arg2 periods of 1 ms at 62.5 MHz of its virtual timer, as [`CMD_TICKS`].
pub const JOB_TICKS: u64 = 1;
/// [`CMD_CPU`]: the same of its physical timer.
pub const JOB_PHYSICAL: u64 = 2;
/// [`CMD_CPU`]: routes SPI [`SPI`] to itself and waits as [`CMD_SPI`].
pub const JOB_SPI: u64 = 3;
/// [`CMD_CPU`]: fills v0–v31, FPCR and FPSR, spins arg2 ticks without an exit, compares. r0 = registers that differ.
pub const JOB_FP: u64 = 4;
/// [`CMD_CPU`]: `CPU_OFF`. r0 = 0 once AFFINITY_INFO says so.
pub const JOB_OFF: u64 = 5;
/// Of [`CMD_QUARREL`]: the other CPU's half.
pub const JOB_QUARREL: u64 = 6;
/// Of [`CMD_TOGETHER`]: the other CPU's half.
pub const JOB_TOGETHER: u64 = 7;
/// Of [`CMD_FLOOD`]: the other CPU's half.
pub const JOB_FLOOD: u64 = 10;
/// Takes SGIs without waiting for them, as many as its first argument says; "how many came with something else".
pub const JOB_ANSWER: u64 = 8;
/// [`CMD_CPU`]: [`CANARY`] in every general and vector register that is free: stores to the device, spins arg2 ticks, waits for its virtual timer. r0 = 0 if that came.
pub const JOB_HOLD: u64 = 9;
/// Of [`CMD_WAITING`]: the other CPU's half.
pub const JOB_BESIDE: u64 = 11;
/// CPUs that the payload has room for.
pub const MOST_CPUS: u64 = 8;
/// Asks `el2` for its report with the nonce [`nonce`]`(arg0)`. r0–r2 = three registers of the answer, from x(arg1) on.
pub const CMD_ATTEST: u64 = 40;
/// Does the row arg0 of `rows.rs` arg1 times, on pages from arg2 on. r0 = fewest ticks of a round, r1 = most, r2 = rounds that went wrong.
pub const CMD_BENCH: u64 = 41;
/// [`CMD_TICKS`]: the virtual timer, waited for by WFI.
pub const TICK_WAIT: u64 = 0;
/// [`CMD_TICKS`]: the virtual timer, as an exception in a loop that makes no exit.
pub const TICK_TAKEN: u64 = 1;
/// [`CMD_TICKS`]: the physical timer, waited for by WFI.
pub const TICK_PHYSICAL: u64 = 2;
/// [`CMD_TICKS`]: the physical timer, as an exception in a loop that makes no exit.
pub const TICK_PHYSICAL_TAKEN: u64 = 3;
/// [`CMD_TICKS`]: the virtual timer, waited for by `CPU_SUSPEND`, which returns success each time.
pub const TICK_SUSPEND: u64 = 4;
/// The SGI, and the SPI, that the payload uses.
pub const SGI: u64 = 7;
/// See [`SGI`].
pub const SPI: u64 = 40;
/// What an acknowledgement returns when nothing is pending.
pub const NO_INTERRUPT: u64 = 1023;
/// Guest frame of the distributor, where there is one.
pub const GICD_GFN: u64 = 0x8000;
/// Guest frame of the first redistributor.
pub const GICR_GFN: u64 = 0x8100;
/// Answer to a command that the payload does not know (r0).
pub const UNKNOWN_COMMAND: u64 = u64::MAX;

/// [`CMD_ID`]: SVE is visible.
pub const ID_SVE: u64 = 1;
/// [`CMD_ID`]: SME is visible.
pub const ID_SME: u64 = 1 << 1;
/// [`CMD_ID`]: a PMU is visible.
pub const ID_PMU: u64 = 1 << 2;
/// [`CMD_ID`]: SPE, TRBE, BRBE or self-hosted trace is visible.
pub const ID_TRACE: u64 = 1 << 3;
/// [`CMD_ID`]: MTE is visible.
pub const ID_MTE: u64 = 1 << 4;
/// [`CMD_ID`]: `AArch32` is visible at EL0 or EL1.
pub const ID_AARCH32: u64 = 1 << 5;
/// [`CMD_ID`]: the address size is above 40 bits.
pub const ID_PARANGE: u64 = 1 << 6;
/// [`CMD_ID`]: EL2, EL3, AMU, MPAM, RAS or SEL2 is visible.
pub const ID_LEVELS: u64 = 1 << 7;

/// One step of the hash: order matters, every bit of every word does.
#[must_use]
pub const fn hash_step(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

/// Where every hash starts.
pub const HASH_SEED: u64 = 0x6672_6565_686f_6c64;

/// Hash of `bytes`, the last word padded with zeros.
#[must_use]
pub fn hash_words(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(HASH_SEED, |hash, chunk| {
        let mut word = [0u8; 8];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        hash_step(hash, u64::from_le_bytes(word))
    })
}

/// The nonce of a seed.
#[must_use]
pub const fn nonce(seed: u64) -> [u64; 4] {
    [pattern(seed, 0), pattern(seed, 1), pattern(seed, 2), pattern(seed, 3)]
}

/// Word at `address` of the pattern with `seed`; neighbours and seeds differ.
#[must_use]
pub const fn pattern(seed: u64, address: u64) -> u64 {
    hash_step(hash_step(HASH_SEED, seed), address)
}
