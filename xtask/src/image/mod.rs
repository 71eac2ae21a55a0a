// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes `freehold.img`: el2 with any arm64 host Image appended, in the form that every boot loader takes.
//!
//! Guarantees that a refused kernel leaves no file behind, and that the refusal says what is wrong with which file.

mod arm64;
mod bundle;
mod flatten;

use std::path::Path;

use anyhow::{Context as _, Result};

use arm64::PageSize;
pub(crate) use flatten::{Extent, flatten};

use crate::{Refused, ui};

/// Bundles `el2` (flat) with the kernel at `kernel` into `out`.
///
/// # Errors
/// [`Refused`] with one line if the kernel cannot be a host; nothing is written then.
pub(crate) fn bundle(el2: &Path, kernel: &Path, out: &Path) -> Result<()> {
    let (bytes, header) = check_kernel(kernel)?;
    match header.page_size {
        PageSize::K4 | PageSize::Unknown => {}
        PageSize::K16 | PageSize::K64 => {
            ui::note(
                "warning: this kernel's pages are not 4 KiB: it boots, but the Freehold module will not load in it",
            );
        }
    }
    let el2 = std::fs::read(el2).with_context(|| format!("cannot read {}", el2.display()))?;
    let image = bundle::build(&el2, &bytes, header.image_size).map_err(|what| Refused(format!("el2: {what}")))?;
    write_whole(out, &image)
}

/// Reads the kernel at `kernel` and decides whether it can be a host.
///
/// # Errors
/// [`Refused`] with one line that names the file.
pub(crate) fn check_kernel(kernel: &Path) -> Result<(Vec<u8>, arm64::Header)> {
    let refused = |what: &str| Refused(format!("{}: {what}", kernel.display()));
    let bytes = std::fs::read(kernel).map_err(|e| refused(&format!("cannot read the kernel: {e}")))?;
    let header = arm64::check(&bytes).map_err(|what| refused(&what))?;
    Ok((bytes, header))
}

/// Writes through a temporary name, so that a half-written file never has the final one.
pub(crate) fn write_whole(out: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(dir) = out.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let part = out.with_extension(format!("part{}", std::process::id()));
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, out));
    if written.is_err() {
        // Best effort; the error that matters is reported.
        let _ = std::fs::remove_file(&part);
    }
    written.with_context(|| format!("cannot write {}", out.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle_of(kernel: &[u8]) -> (Result<()>, bool) {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("xtask-image-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (el2, host, out) = (dir.join("el2.bin"), dir.join("Image"), dir.join("out.img"));
        std::fs::write(&el2, bundle::tests::el2()).unwrap();
        std::fs::write(&host, kernel).unwrap();
        let result = bundle(&el2, &host, &out);
        let written = std::fs::read_dir(&dir).unwrap().count() > 2;
        std::fs::remove_dir_all(&dir).unwrap();
        (result, written)
    }

    #[test]
    fn a_refused_kernel_writes_nothing_and_is_named() {
        for bad in [
            &b""[..],
            &[0u8; 64],
            b"\x1f\x8b\x08not really",
            b"MZ\0\0zimg and more, so that it is long enough, yes, long",
        ] {
            let (result, written) = bundle_of(bad);
            let error = result.unwrap_err();
            assert!(error.is::<Refused>(), "{error}");
            assert!(error.to_string().contains("/Image: "), "{error}");
            assert!(!written, "something was written for: {error}");
        }
    }

    #[test]
    fn a_missing_kernel_is_refused() {
        let error =
            bundle(Path::new("/nonexistent-el2"), Path::new("/nonexistent-kernel"), Path::new("/nonexistent/x"));
        let error = error.unwrap_err();
        assert!(error.is::<Refused>() && error.to_string().contains("/nonexistent-kernel"), "{error}");
    }

    #[test]
    fn a_good_kernel_is_written() {
        let (result, written) = bundle_of(&arm64::tests::image(4096));
        result.unwrap();
        assert!(written);
    }
}
