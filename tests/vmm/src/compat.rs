// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs of 32 bits: to them HVC and SMC are UNDEFINED too (E7).
//!
//! The program is one instruction and an exit, in an ELF file of one segment that is written here.

use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use crate::report::Step;

const FILE: &str = "/a32";
const BASE: u32 = 0x1_0000;
/// ELF header and one program header.
const HEADERS: u32 = 52 + 32;
const DONE: i32 = 42;

/// An A32 program that does `instruction`, then exits with [`DONE`].
fn program(instruction: u32) -> Vec<u8> {
    // mov r0, #42; mov r7, #1 (exit); svc #0.
    let code = [instruction, 0xe3a0_0000 | DONE.cast_unsigned(), 0xe3a0_7001, 0xef00_0000];
    let size = HEADERS + 16;
    // Magic: 32 bits, little-endian, version 1. Type: executable for Arm. Entry, program headers, no sections.
    let head = [0x464c_457f, 0x0001_0101, 0, 0, 40 << 16 | 2, 1, BASE + HEADERS, 52, 0, 0x0500_0200];
    // Sizes of the headers, and that there is one.
    let sizes = [32 << 16 | 52, 1, 0];
    // One segment to load: all of the file, readable and executable.
    let segment = [1, 0, BASE, BASE, size, size, 5, 0x1000];
    head.iter().chain(&sizes).chain(&segment).chain(&code).flat_map(|word| word.to_le_bytes()).collect()
}

fn run(instruction: u32) -> Result<String, std::io::Error> {
    let _ = std::fs::remove_file(FILE);
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(FILE)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
    std::io::Write::write_all(&mut &file, &program(instruction))?;
    drop(file);
    let status = Command::new(FILE).status()?;
    Ok(match (status.code(), status.signal()) {
        (Some(DONE), _) => "done".to_owned(),
        (_, Some(libc::SIGILL)) => "SIGILL".to_owned(),
        other => format!("{other:?}"),
    })
}

/// Calls of such a program.
pub(crate) fn all(step: Step) {
    let cases =
        [("tools: NOP", 0xe320_f000, "done"), ("HVC 0", 0xe140_0070, "SIGILL"), ("SMC 0", 0xe160_0070, "SIGILL")];
    for (case, instruction, expected) in cases {
        let seen = run(instruction).unwrap_or_else(|error| error.to_string());
        step.same(&format!("AArch32: {case}"), expected, seen);
    }
    let _ = std::fs::remove_file(FILE);
}
