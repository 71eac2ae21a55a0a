// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes what is made from the code: the C header and `docs/abi.md` from the tables of `uapi`, `docs/page-states.md` by
//! running the verbs. A test beside each compares it with the tree.

use anyhow::{Context as _, Result};
use freehold_uapi::render;

use crate::env::Env;

/// Writes the files and names those that changed.
pub(crate) fn run(env: &Env) -> Result<()> {
    let (mut header, mut document) = (String::new(), String::new());
    render::header(&mut header)?;
    render::document(&mut document)?;
    let states = freehold_states::document();
    for (path, made) in
        [("uapi/include/freehold.h", header), ("docs/abi.md", document), ("docs/page-states.md", states)]
    {
        let file = env.root.join(path);
        let is_current = std::fs::read_to_string(&file).is_ok_and(|there| there == made);
        if !is_current {
            std::fs::write(&file, made).with_context(|| format!("{path}: can not be written"))?;
        }
        println!("{path}: {}", if is_current { "unchanged" } else { "written" });
    }
    Ok(())
}
