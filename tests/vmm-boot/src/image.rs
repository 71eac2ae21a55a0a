// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's kernel: an arm64 Image, unpacked where gzip packed it, or one line that says why it is none.

use std::fmt;
use std::io::Read as _;

/// Why a file can not be a guest's kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It has no byte.
    Empty,
    /// It ends inside its header, or before what the header says.
    Truncated(usize),
    /// It is compressed with this.
    Compressed(&'static str),
    /// What gzip packed does not come out.
    Damaged(String),
    /// It has not an Image's magic number.
    NotAnImage,
    /// It runs with big-endian data, which no guest of ours can.
    BigEndian,
    /// It is older than Linux 3.17, and does not say how much memory it takes.
    Old,
    /// It takes more memory than any guest has.
    TooLarge(u64),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("empty"),
            Self::Truncated(bytes) => write!(f, "truncated: it ends after {bytes} bytes"),
            Self::Compressed(how) => write!(f, "compressed with {how}: only gzip is unpacked here"),
            Self::Damaged(why) => write!(f, "its gzip data is damaged ({why})"),
            Self::NotAnImage => f.write_str("not an arm64 Image: no \"ARM\\x64\" at offset 0x38"),
            Self::BigEndian => f.write_str("a big-endian kernel"),
            Self::Old => f.write_str("older than Linux 3.17: its header does not say its size"),
            Self::TooLarge(bytes) => write!(f, "it asks for {bytes} bytes of memory"),
        }
    }
}

/// The largest kernel that is loaded, packed or not.
const LARGEST: u64 = 512 << 20;
const HEADER: usize = 64;

/// A kernel that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The file, unpacked.
    pub bytes: Vec<u8>,
    /// Where it goes, from a 2 MiB boundary.
    pub text_offset: u64,
    /// Memory that it takes from there: the file and what follows it.
    pub size: u64,
}

/// Reads a kernel.
///
/// # Errors
/// What is wrong with it.
pub fn read(file: Vec<u8>) -> Result<Image, Wrong> {
    let bytes = if file.starts_with(&[0x1f, 0x8b]) { unpacked(&file)? } else { file };
    if bytes.is_empty() {
        return Err(Wrong::Empty);
    }
    if let Some(how) = packed_with(&bytes) {
        return Err(Wrong::Compressed(how));
    }
    let header = bytes.get(..HEADER).ok_or(Wrong::Truncated(bytes.len()))?;
    if header[0x38..0x3c] != *b"ARM\x64" {
        return Err(Wrong::NotAnImage);
    }
    let word = |at: usize| header[at..at + 8].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    let (text_offset, size, flags) = (word(8), word(16), word(24));
    match size {
        0 => return Err(Wrong::Old),
        1..=LARGEST if text_offset < 2 << 20 => {}
        _ => return Err(Wrong::TooLarge(size.saturating_add(text_offset))),
    }
    if flags & 1 != 0 {
        return Err(Wrong::BigEndian);
    }
    let length = bytes.len() as u64;
    if length < size / 4 || length < file_size(&bytes).unwrap_or(0) {
        return Err(Wrong::Truncated(bytes.len()));
    }
    Ok(Image { text_offset, size: size.max(length), bytes })
}

/// Bytes that the file's sections need, where it has PE headers, as kernels with EFI support do.
fn file_size(bytes: &[u8]) -> Option<u64> {
    let number = |at: usize, width: usize| -> Option<u64> {
        let field = bytes.get(at..at.checked_add(width)?)?;
        Some(field.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
    };
    let pe = usize::try_from(number(0x3c, 4)?).ok()?;
    if bytes.get(pe..pe + 4)? != b"PE\0\0" {
        return None;
    }
    let (sections, optional) = (number(pe + 6, 2)?, usize::try_from(number(pe + 20, 2)?).ok()?);
    let mut end = 0;
    for index in 0..usize::try_from(sections).ok()? {
        let section = pe + 24 + optional + index * 40;
        end = end.max(number(section + 16, 4)? + number(section + 20, 4)?);
    }
    Some(end)
}

fn unpacked(file: &[u8]) -> Result<Vec<u8>, Wrong> {
    let mut bytes = Vec::new();
    let mut reader = flate2::read::GzDecoder::new(file).take(LARGEST + 1);
    reader.read_to_end(&mut bytes).map_err(|e| Wrong::Damaged(e.to_string()))?;
    let length = bytes.len() as u64;
    if length > LARGEST { Err(Wrong::TooLarge(length)) } else { Ok(bytes) }
}

fn packed_with(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"MZ") && bytes.get(4..8) == Some(b"zimg") {
        return Some("EFI zboot");
    }
    let magics: [(&[u8], &str); 5] = [
        (&[0x1f, 0x8b], "gzip, twice"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
        (b"BZh", "bzip2"),
        (&[0x04, 0x22, 0x4d, 0x18], "lz4"),
    ];
    magics.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, how)| *how)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A file that is no more than a header that is right.
    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes[16..24].copy_from_slice(&8192u64.to_le_bytes());
        bytes[24] = 0xa;
        bytes[0x38..0x3c].copy_from_slice(b"ARM\x64");
        bytes
    }

    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut all = sample();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        all
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_its_reason() {
        assert_eq!(read(Vec::new()), Err(Wrong::Empty));
        assert_eq!(read(gzip(&[])), Err(Wrong::Empty));
        assert_eq!(read(sample()[..63].to_vec()), Err(Wrong::Truncated(63)));
        assert_eq!(read(vec![b'x'; 100]), Err(Wrong::NotAnImage));
        assert_eq!(read(with(16, &[0; 8])), Err(Wrong::Old));
        assert_eq!(read(with(24, &[0xb])), Err(Wrong::BigEndian));
        assert_eq!(read(with(16, &(LARGEST + 1).to_le_bytes())), Err(Wrong::TooLarge(LARGEST + 1)));
        assert_eq!(read(with(8, &u64::MAX.to_le_bytes())), Err(Wrong::TooLarge(u64::MAX)));
        assert_eq!(read(with(16, &(1u64 << 20).to_le_bytes())), Err(Wrong::Truncated(4096)));
        assert_eq!(read(with(0, b"MZ\0\0zimg")), Err(Wrong::Compressed("EFI zboot")));
        for (magic, how) in [(&[0x28, 0xb5, 0x2f, 0xfd][..], "zstd"), (b"\xfd7zXZ", "xz"), (b"BZh9", "bzip2")] {
            assert_eq!(read(with(0, magic)), Err(Wrong::Compressed(how)));
        }
        assert_eq!(read(gzip(&gzip(&sample()))), Err(Wrong::Compressed("gzip, twice")));
        let half = gzip(&sample());
        assert!(matches!(read(half[..half.len() / 2].to_vec()), Err(Wrong::Damaged(_))));
    }

    #[test]
    fn a_file_shorter_than_its_sections_is_truncated() {
        // One section of 0x1000 bytes from 0x1000 on.
        let mut bytes = with(0x3c, &0x40u32.to_le_bytes());
        bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
        bytes[0x46] = 1;
        bytes[0x40 + 24 + 16..][..8].copy_from_slice(&[0, 0x10, 0, 0, 0, 0x10, 0, 0]);
        assert_eq!(read(bytes.clone()), Err(Wrong::Truncated(4096)));
        bytes.resize(8192, 0);
        assert!(read(bytes).is_ok());
    }

    #[test]
    fn an_image_is_read_as_it_is_and_out_of_gzip() {
        let image = read(sample()).unwrap();
        assert_eq!((image.text_offset, image.size, image.bytes.len()), (0, 8192, 4096));
        assert_eq!(read(gzip(&sample())), Ok(image));
    }
}
