// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an arm64 kernel Image says about itself, and why one cannot be a host.
//!
//! Offsets are those of the 64-byte header in the kernel's boot protocol and, behind it, of the PE/COFF format.

/// The largest kernel that is bundled.
const LARGEST: u64 = 512 << 20;
const HEADER: usize = 64;

/// The page size that a kernel was built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageSize {
    /// Not said.
    Unknown,
    /// 4 KiB
    K4,
    /// 16 KiB
    K16,
    /// 64 KiB
    K64,
}

/// What of the header matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Memory that the kernel takes from its start, file and bss.
    pub image_size: u64,
    /// The page size that it was built for.
    pub page_size: PageSize,
}

/// Decides whether `image` can be a host.
///
/// # Errors
/// One line without the file's name that says what is wrong.
pub(super) fn check(image: &[u8]) -> Result<Header, String> {
    if image.is_empty() {
        return Err("the kernel is empty".to_owned());
    }
    if image.get(4..8) == Some(b"zimg") && image.starts_with(b"MZ") {
        return Err("an EFI zboot kernel (compressed inside); unpack the Image that it contains first".to_owned());
    }
    if let Some(how) = compressed(image) {
        return Err(format!("compressed with {how}; uncompress it first"));
    }
    if image.len() < HEADER {
        return Err(format!("truncated: {} bytes, shorter than the 64-byte arm64 Image header", image.len()));
    }
    if image.get(0x38..0x3c) != Some(b"ARM\x64") {
        return Err("not an arm64 Image: no \"ARM\\x64\" at offset 0x38".to_owned());
    }
    let header = Header { image_size: u64_at(image, 16)?, page_size: page_size(u64_at(image, 24)?)? };
    let text_offset = u64_at(image, 8)?;
    if header.image_size == 0 {
        return Err("image_size is 0: a kernel older than 3.17 cannot be a host".to_owned());
    }
    if text_offset != 0 {
        return Err(format!("text_offset is {text_offset:#x}: a kernel older than 5.10 cannot be a host"));
    }
    let length = image.len() as u64;
    for (what, size) in [("file", length), ("image_size", header.image_size)] {
        if size > LARGEST {
            return Err(format!("oversized: {what} is {size:#x}, more than {} MiB", LARGEST >> 20));
        }
    }
    let needed = pe_end(image)?;
    if length < needed {
        return Err(format!("truncated: {length} bytes of {needed} that its sections name"));
    }
    Ok(header)
}

fn compressed(image: &[u8]) -> Option<&'static str> {
    let magics: [(&[u8], &str); 6] = [
        (&[0x1f, 0x8b], "gzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
        (&[0x04, 0x22, 0x4d, 0x18], "lz4"),
        (&[0x02, 0x21, 0x4c, 0x18], "lz4"),
        (b"BZh", "bzip2"),
    ];
    magics.into_iter().find(|(magic, _)| image.starts_with(magic)).map(|(_, how)| how)
}

fn page_size(flags: u64) -> Result<PageSize, String> {
    if flags & 1 != 0 {
        return Err("a big-endian kernel; only little-endian ones can be a host".to_owned());
    }
    Ok(match flags >> 1 & 3 {
        1 => PageSize::K4,
        2 => PageSize::K16,
        3 => PageSize::K64,
        _ => PageSize::Unknown,
    })
}

/// Where the file must reach to, by its PE header: the end of the last section and of the signature. 0 without one,
/// for then the format carries no length; el2's own trailer check stands behind that case.
fn pe_end(image: &[u8]) -> Result<u64, String> {
    let at = u32_at(image, 0x3c)? as usize;
    if at == 0 || !image.starts_with(b"MZ") {
        return Ok(0);
    }
    if image.get(at..).and_then(|pe| pe.get(..4)) != Some(b"PE\0\0") {
        return Err(format!("damaged: no PE header at offset {at:#x}, where the Image header says it is"));
    }
    let sections = usize::from(u16_at(image, at + 6)?);
    let optional = usize::from(u16_at(image, at + 20)?);
    let table = at + 24 + optional;
    let mut end = 0;
    for section in 0..sections {
        let entry = table + section * 40;
        let raw = u64::from(u32_at(image, entry + 20)?) + u64::from(u32_at(image, entry + 16)?);
        end = end.max(raw);
    }
    // PE32+: the data directories stand 112 bytes into the optional header; number 4 is the signature, by file offset.
    if optional >= 112 + 5 * 8 {
        let entry = at + 24 + 112 + 4 * 8;
        end = end.max(u64::from(u32_at(image, entry)?) + u64::from(u32_at(image, entry + 4)?));
    }
    Ok(end)
}

fn bytes_at<const N: usize>(image: &[u8], at: usize) -> Result<[u8; N], String> {
    at.checked_add(N)
        .and_then(|end| image.get(at..end)?.try_into().ok())
        .ok_or_else(|| format!("truncated: {} bytes end inside its headers", image.len()))
}

fn u16_at(image: &[u8], at: usize) -> Result<u16, String> {
    bytes_at(image, at).map(u16::from_le_bytes)
}

fn u32_at(image: &[u8], at: usize) -> Result<u32, String> {
    bytes_at(image, at).map(u32::from_le_bytes)
}

fn u64_at(image: &[u8], at: usize) -> Result<u64, String> {
    bytes_at(image, at).map(u64::from_le_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An Image of `length` bytes with a PE header whose one section ends with the file.
    pub(crate) fn image(length: usize) -> Vec<u8> {
        let mut image = vec![0u8; length];
        image[..2].copy_from_slice(b"MZ");
        image[16..24].copy_from_slice(&(length as u64 + 0x1000).to_le_bytes());
        image[24] = 0xa;
        image[0x38..0x3c].copy_from_slice(b"ARM\x64");
        image[0x3c] = 0x40;
        image[0x40..0x44].copy_from_slice(b"PE\0\0");
        image[0x46] = 1;
        let section = 0x40 + 24;
        image[section + 16..section + 20].copy_from_slice(&(length as u32 - 0x100).to_le_bytes());
        image[section + 20..section + 24].copy_from_slice(&0x100u32.to_le_bytes());
        image
    }

    fn refusal(change: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut image = image(4096);
        change(&mut image);
        check(&image).unwrap_err()
    }

    #[test]
    fn a_good_image_says_its_sizes() {
        let header = check(&image(4096)).unwrap();
        assert_eq!(header, Header { image_size: 0x2000, page_size: PageSize::K4 });
    }

    #[test]
    fn larger_pages_are_a_fact_and_no_refusal() {
        let mut image = image(4096);
        image[24] = 0xa + 2;
        assert_eq!(check(&image).unwrap().page_size, PageSize::K16);
        image[24] = 0xa + 4;
        assert_eq!(check(&image).unwrap().page_size, PageSize::K64);
    }

    #[test]
    fn each_kind_of_bad_kernel_has_its_own_line() {
        let lines = [
            refusal(Vec::clear),
            refusal(|i| i.truncate(63)),
            refusal(|i| i.truncate(4095)),
            refusal(|i| i[0x38] = 0),
            refusal(|i| i[..2].copy_from_slice(&[0x1f, 0x8b])),
            refusal(|i| i[4..8].copy_from_slice(b"zimg")),
            refusal(|i| i[16..24].fill(0)),
            refusal(|i| i[16..24].copy_from_slice(&(LARGEST + 1).to_le_bytes())),
            refusal(|i| i[9] = 8),
            refusal(|i| i[24] |= 1),
            refusal(|i| i[0x40] = 0),
        ];
        let starts = [
            "the kernel is empty",
            "truncated: 63 bytes",
            "truncated: 4095 bytes of 4096",
            "not an arm64 Image",
            "compressed with gzip",
            "an EFI zboot kernel",
            "image_size is 0",
            "oversized: image_size",
            "text_offset is 0x800",
            "a big-endian kernel",
            "damaged: no PE header",
        ];
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "`{line}` should start with `{start}`");
            assert!(!line.contains('\n'));
        }
    }

    #[test]
    fn a_cut_signature_is_a_truncation() {
        let mut image = image(4096);
        // An optional header with five directories moves the section table; the fifth names the signature.
        let optional = 112 + 5 * 8;
        image[0x40 + 20..0x40 + 22].copy_from_slice(&(optional as u16).to_le_bytes());
        image[0x46] = 0;
        let entry = 0x40 + 24 + 112 + 4 * 8;
        image[0x58..0x58 + optional].fill(0);
        image[entry..entry + 4].copy_from_slice(&4000u32.to_le_bytes());
        image[entry + 4..entry + 8].copy_from_slice(&200u32.to_le_bytes());
        assert_eq!(check(&image).unwrap_err(), "truncated: 4096 bytes of 4200 that its sections name");
    }

    #[test]
    fn no_prefix_of_an_image_is_accepted_or_panics() {
        let image = image(700);
        for length in 0..image.len() {
            check(&image[..length]).unwrap_err();
        }
        check(&image).unwrap();
    }
}
