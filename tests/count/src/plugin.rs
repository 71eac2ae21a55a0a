// SPDX-License-Identifier: MIT OR Apache-2.0
//! The plugin itself: what it has QEMU count, and what it writes at a mark.
//!
//! QEMU's one thread runs all CPUs, one after another, and makes every call; the lock is never waited for.
// UNSAFETY: QEMU's interface is C's.
#![expect(unreachable_pub, reason = "QEMU finds them by name")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::calls::Calls;
use crate::decode::{Class, Kind, class, kind};
use crate::emulator::*;

/// Counters, in the order of a mark's line: four classes, then these.
const CLASSES: usize = 4;
const RETURNS: usize = CLASSES;
const BROADCASTS: usize = CLASSES + 1;
const LINES: usize = CLASSES + 2;
const ZEROS: usize = CLASSES + 3;
const WORDS: usize = CLASSES + 4;

struct State {
    board: *mut Scoreboard,
    /// There are several CPUs, which count by calls: QEMU 10.0 takes inline counters of a second CPU to a wild address.
    several: bool,
    x0: *mut Register,
    x1: *mut Register,
    pstate: *mut Register,
    bytes: *mut Array<u8>,
    out: Option<File>,
    calls: Calls,
    /// The labels at the ends of what is profiled, and whether something of it runs now.
    profiled: Vec<u64>,
    profiling: bool,
    /// How often each address of EL2 was executed meanwhile.
    profile: BTreeMap<u64, u64>,
}

// SAFETY: the pointers are QEMU's for as long as it runs, and used by its CPU thread alone.
unsafe impl Send for State {}

static STATE: Mutex<State> = Mutex::new(State {
    board: std::ptr::null_mut(),
    several: false,
    x0: std::ptr::null_mut(),
    x1: std::ptr::null_mut(),
    pstate: std::ptr::null_mut(),
    bytes: std::ptr::null_mut(),
    out: None,
    calls: Calls::new(),
    profiled: Vec::new(),
    profiling: false,
    profile: BTreeMap::new(),
});

/// What several CPUs have counted.
static COUNTS: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];

fn with_state<T>(what: impl FnOnce(&mut State) -> T) -> T {
    what(&mut STATE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What QEMU looks for first.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = VERSION;

/// Begins: `out=FILE` is where the lines go, each `profile=LABEL` adds a
/// profile of EL2 in what ends with that label.
///
/// # Safety
/// QEMU calls it once, with `count` texts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    info: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    for at in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: there are `count` of them.
        let argument = unsafe { arguments.add(at) };
        // SAFETY: a valid place, as above.
        let argument = unsafe { *argument };
        // SAFETY: each is a text of C's.
        let argument = unsafe { CStr::from_ptr(argument) }.to_string_lossy().into_owned();
        let understood = match argument.split_once('=') {
            Some(("out", file)) => with_state(|s| {
                s.out = File::create(file).ok();
                s.out.is_some()
            }),
            Some(("profile", label)) => label.parse().map(|label| with_state(|s| s.profiled.push(label))).is_ok(),
            _ => false,
        };
        if !understood {
            eprintln!("freehold-count: {argument}: not understood");
            return 1;
        }
    }
    // SAFETY: plain calls of the interface, from where they are allowed.
    let board = unsafe { qemu_plugin_scoreboard_new(WORDS * 8) };
    // SAFETY: as above.
    let bytes = unsafe { g_byte_array_new() };
    // SAFETY: QEMU's own description, valid during this call.
    let cpus = unsafe { (*info.cast::<Emulated>()).cpus };
    with_state(|s| (s.board, s.bytes, s.several) = (board, bytes, cpus > 1));
    // SAFETY: the callback is one of this kind and stays.
    unsafe { qemu_plugin_register_vcpu_init_cb(id, started) };
    // SAFETY: as above.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, translated) };
    0
}

unsafe extern "C" fn started(_: u64, _: c_uint) {
    // SAFETY: called where registers may be asked for.
    let all = unsafe { qemu_plugin_get_registers() };
    // SAFETY: a new array, which stays.
    let all = unsafe { &*all };
    // SAFETY: it has so many entries.
    let all = unsafe { std::slice::from_raw_parts(all.data, all.len as usize) };
    with_state(|s| {
        for register in all {
            // SAFETY: a text of QEMU's, which stays.
            match unsafe { CStr::from_ptr(register.name) }.to_bytes() {
                b"x0" => s.x0 = register.handle,
                b"x1" => s.x1 = register.handle,
                b"cpsr" => s.pstate = register.handle,
                _ => {}
            }
        }
    });
}

impl State {
    fn word(&self, index: usize) -> Word {
        Word { board: self.board, offset: index * 8 }
    }

    /// What all CPUs have counted.
    fn count(&self, index: usize) -> u64 {
        if self.several {
            return COUNTS[index].load(Ordering::Relaxed);
        }
        // SAFETY: a word of our own board, of the one CPU.
        unsafe { qemu_plugin_u64_get(self.word(index), 0) }
    }

    /// A register of the running CPU.
    fn read(&self, register: *mut Register) -> u64 {
        // SAFETY: our own array.
        unsafe { g_byte_array_set_size(self.bytes, 0) };
        // SAFETY: a handle that QEMU gave, and our own array.
        let read = unsafe { qemu_plugin_read_register(register, self.bytes) };
        if read <= 0 {
            return 0;
        }
        // SAFETY: our own array, filled by QEMU just now.
        let bytes = unsafe { &*self.bytes };
        // SAFETY: it has so many bytes.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.data, bytes.len as usize) };
        bytes.iter().take(8).rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
    }

    fn write(&mut self, text: &str) {
        if let Some(out) = &mut self.out
            && out.write_all(text.as_bytes()).is_err()
        {
            // Whoever reads the file finds that it does not end as it must.
            self.out = None;
        }
    }
}

unsafe extern "C" fn translated(_: u64, block: *mut Block) {
    let pstate = with_state(|s| s.read(s.pstate));
    // SAFETY: the block is valid during this call.
    for at in 0..unsafe { qemu_plugin_tb_n_insns(block) } {
        // SAFETY: as above; the index is in range.
        let instruction = unsafe { qemu_plugin_tb_get_insn(block, at) };
        instrument(instruction, pstate);
    }
}

fn instrument(instruction: *mut Instruction, pstate: u64) {
    // SAFETY: the instruction is valid while its block is translated.
    let address = unsafe { qemu_plugin_insn_vaddr(instruction) };
    let mut word = [0u8; 4];
    // SAFETY: as above; there is room for what is asked.
    unsafe { qemu_plugin_insn_data(instruction, word.as_mut_ptr().cast(), 4) };
    let who = class(pstate, address);
    let (words, profiles, several) = with_state(|s| {
        let all: [Word; WORDS] = std::array::from_fn(|n| s.word(n));
        (all, !s.profiled.is_empty(), s.several)
    });
    let count = |index: usize| {
        if several {
            let place = index as *mut c_void;
            // SAFETY: as above; the callback is one of this kind and stays.
            unsafe { qemu_plugin_register_vcpu_insn_exec_cb(instruction, counted, NO_REGISTERS, place) };
            return;
        }
        // SAFETY: as above; the word is one of our own board, which stays.
        unsafe { qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(instruction, ADD, words[index], 1) };
    };
    let call = |callback: Executed, flags| {
        // SAFETY: as above; the callback is one of this kind and stays.
        unsafe { qemu_plugin_register_vcpu_insn_exec_cb(instruction, callback, flags, address as *mut c_void) };
    };
    count(who as usize);
    match (kind(u32::from_le_bytes(word)), who) {
        (Kind::Mark, Class::User | Class::Guest) => call(marked, READS_REGISTERS),
        (Kind::Call, Class::Kernel) => call(called, READS_REGISTERS),
        (Kind::Return, Class::El2) => {
            count(RETURNS);
            call(returned, NO_REGISTERS);
        }
        (Kind::Broadcast, Class::El2) => count(BROADCASTS),
        (Kind::Line, Class::El2) => count(LINES),
        (Kind::Zero, Class::El2) => count(ZEROS),
        _ => {}
    }
    if profiles && who == Class::El2 {
        call(passed, NO_REGISTERS);
    }
}

unsafe extern "C" fn counted(_: c_uint, index: *mut c_void) {
    COUNTS[index as usize].fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" fn marked(_: c_uint, _: *mut c_void) {
    with_state(|s| {
        let (label, value) = (s.read(s.x0), s.read(s.x1));
        let mut text = s.calls.drain();
        text.push_str(&format!("mark {label:#x} {value}"));
        for index in 0..WORDS {
            text.push_str(&format!(" {}", s.count(index)));
        }
        text.push('\n');
        if s.profiled.contains(&label) {
            for (address, times) in std::mem::take(&mut s.profile) {
                text.push_str(&format!("at {label:#x} {address:#x} {times}\n"));
            }
        }
        // The label's last bit tells the end from the begin.
        s.profiling = label & 1 == 0 && s.profiled.contains(&(label | 1));
        s.write(&text);
    });
}

unsafe extern "C" fn called(_: c_uint, _: *mut c_void) {
    with_state(|s| {
        let (number, count) = (s.read(s.x0), s.count(Class::El2 as usize));
        s.calls.begin(number, count);
    });
}

unsafe extern "C" fn returned(_: c_uint, _: *mut c_void) {
    with_state(|s| {
        let count = s.count(Class::El2 as usize);
        s.calls.end(count);
    });
}

unsafe extern "C" fn passed(_: c_uint, address: *mut c_void) {
    with_state(|s| {
        if s.profiling {
            *s.profile.entry(address as u64).or_insert(0) += 1;
        }
    });
}
