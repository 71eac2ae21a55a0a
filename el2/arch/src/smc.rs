// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls into the firmware below EL2.

/// Makes the call in `arguments` (x0 is the function) and returns x0-x17.
///
/// Whether it may be made is `virt`'s decision; this only makes it.
pub fn forward(arguments: [u64; 18]) -> [u64; 18] {
    let mut rest = [0; 17];
    rest.copy_from_slice(&arguments[1..]);
    smccc_call(arguments[0], rest)
}

/// Makes a call of up to three arguments whose result is a 32-bit number, as all of PSCI's are that
/// el2 makes for itself. Firmware may or may not extend its sign; here it always is.
pub fn call(function: u32, a: u64, b: u64, c: u64) -> i64 {
    let mut rest = [0; 17];
    rest[..3].copy_from_slice(&[a, b, c]);
    i64::from(smccc_call(u64::from(function), rest)[0] as i32)
}

fn smccc_call(function: u64, arguments: [u64; 17]) -> [u64; 18] {
    // The 64-bit form takes and returns x0-x17 whatever the function's own width is: for a 32-bit
    // function firmware looks at the low halves, which `function` and the arguments carry.
    smccc::smc64(function as u32, arguments)
}
