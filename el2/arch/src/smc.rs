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

/// Makes a call of up to three arguments and returns x0.
pub fn call(function: u32, a: u64, b: u64, c: u64) -> u64 {
    let mut rest = [0; 17];
    rest[..3].copy_from_slice(&[a, b, c]);
    smccc_call(u64::from(function), rest)[0]
}

fn smccc_call(function: u64, arguments: [u64; 17]) -> [u64; 18] {
    // The 64-bit form takes and returns x0-x17 whatever the function's own width is: for a 32-bit
    // function firmware looks at the low halves, which `function` and the arguments carry.
    smccc::smc64(function as u32, arguments)
}
