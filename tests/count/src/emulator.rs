// SPDX-License-Identifier: MIT OR Apache-2.0
//! QEMU's plugin interface, version 4, as far as it is used: declared here, for no distribution packages its header.
//!
//! Found when QEMU loads the library: the program itself, and glib under it, define these symbols.
// UNSAFETY: the interface is C's.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// The version that this library is written for.
pub(crate) const VERSION: c_int = 4;
/// A callback that reads registers.
pub(crate) const READS_REGISTERS: c_int = 1;
/// A callback that reads none.
pub(crate) const NO_REGISTERS: c_int = 0;
/// Adds to a counter, in line.
pub(crate) const ADD: c_int = 0;

#[repr(C)]
pub(crate) struct Block(c_void);
#[repr(C)]
pub(crate) struct Instruction(c_void);
#[repr(C)]
pub(crate) struct Scoreboard(c_void);
#[repr(C)]
pub(crate) struct Register(c_void);

/// One word of each CPU's part of a scoreboard.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Word {
    pub(crate) board: *mut Scoreboard,
    pub(crate) offset: usize,
}

/// What is emulated: a whole machine.
#[repr(C)]
pub(crate) struct Emulated {
    target: *const c_char,
    versions: [c_int; 2],
    is_system: bool,
    /// CPUs, and how many there may be.
    pub(crate) cpus: c_int,
    most: c_int,
}

/// A register's description.
#[repr(C)]
pub(crate) struct Described {
    pub(crate) handle: *mut Register,
    pub(crate) name: *const c_char,
    feature: *const c_char,
}

/// glib's arrays: of anything, and of bytes.
#[repr(C)]
pub(crate) struct Array<T> {
    pub(crate) data: *mut T,
    pub(crate) len: c_uint,
}

pub(crate) type Translated = unsafe extern "C" fn(id: u64, block: *mut Block);
pub(crate) type Executed = unsafe extern "C" fn(cpu: c_uint, data: *mut c_void);
pub(crate) type Started = unsafe extern "C" fn(id: u64, cpu: c_uint);

unsafe extern "C" {
    pub(crate) fn qemu_plugin_register_vcpu_init_cb(id: u64, callback: Started);
    pub(crate) fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: Translated);
    pub(crate) fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut Instruction,
        callback: Executed,
        flags: c_int,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(
        instruction: *mut Instruction,
        operation: c_int,
        word: Word,
        value: u64,
    );
    pub(crate) fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    pub(crate) fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Instruction;
    pub(crate) fn qemu_plugin_insn_data(instruction: *const Instruction, to: *mut c_void, bytes: usize) -> usize;
    pub(crate) fn qemu_plugin_insn_vaddr(instruction: *const Instruction) -> u64;
    pub(crate) fn qemu_plugin_scoreboard_new(bytes: usize) -> *mut Scoreboard;
    pub(crate) fn qemu_plugin_u64_get(word: Word, cpu: c_uint) -> u64;
    pub(crate) fn qemu_plugin_get_registers() -> *mut Array<Described>;
    pub(crate) fn qemu_plugin_read_register(register: *mut Register, to: *mut Array<u8>) -> c_int;
    pub(crate) fn g_byte_array_new() -> *mut Array<u8>;
    pub(crate) fn g_byte_array_set_size(array: *mut Array<u8>, bytes: c_uint) -> *mut Array<u8>;
}
