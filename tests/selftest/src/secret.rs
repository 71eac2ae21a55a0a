// SPDX-License-Identifier: MIT OR Apache-2.0
//! A secret in the guest's memory while the host looks for it.
//!
//! It is told with a mask only, so that no copy of it is made by telling it.

use std::io::BufRead as _;

/// Words of memory that hold it: 1 MiB.
const WORDS: usize = 1 << 17;
/// What it is told with.
const MASK: [u64; 2] = [0x5a17_c0de_9e37_79b9, 0xf39c_c060_5ced_c834];

/// Fills memory, tells the masked secret, waits for a line, and looks whether memory is as it was.
pub(crate) fn hold() -> Result<String, String> {
    let mut secret = [0u64; 2];
    for word in &mut secret {
        let mut bytes = [0u8; 8];
        // SAFETY: the buffer has room for what is asked.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if got != 8 {
            return Err("the kernel has no random numbers".to_owned());
        }
        *word = u64::from_le_bytes(bytes);
    }
    let memory: Vec<u64> = secret.iter().copied().cycle().take(WORDS).collect();
    println!(
        "fh-guest: secret {:016x},{:016x} {:016x},{:016x}",
        secret[0] ^ MASK[0],
        secret[1] ^ MASK[1],
        MASK[0],
        MASK[1]
    );
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|e| e.to_string())?;
    if line.trim() != "go" {
        return Err(format!("the console said {line:?}"));
    }
    let memory = std::hint::black_box(memory);
    let changed = memory.iter().zip(secret.iter().cycle()).filter(|(is, was)| is != was).count();
    let what = format!("{changed} of {WORDS} words changed");
    if changed == 0 { Ok(what) } else { Err(what) }
}
