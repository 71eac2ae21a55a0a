// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads memory that was freed. An interpreter that lets this pass shows nothing about any other program.

fn main() {
    let freed = {
        let number = Box::new(7_u64);
        &raw const *number
    };
    // SAFETY: none. That is the point: `freed` dangles, and Miri must say so.
    let read = unsafe { freed.read() };
    println!("{read}");
}
