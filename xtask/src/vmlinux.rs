// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel in a bzImage, unpacked here, where nothing is emulated. \[Linux Documentation/arch/x86/boot.rst\]

use std::io::Read;

use ruzstd::decoding::StreamingDecoder;

/// Of the setup header: `setup_sects`, `version`, `payload_offset`, `payload_length`.
const SETUP_SECTORS: usize = 0x1f1;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first version that has the last two.
const PROTOCOL_2_08: u16 = 0x208;
/// Unit of `setup_sects`, in bytes.
const SECTOR: usize = 512;
const ELF: &[u8] = b"\x7fELF";
/// Header of the note that says where a kernel is entered without firmware: `XEN_ELFNOTE_PHYS32_ENTRY`, type 18 of Xen,
/// without the length of its value. \[Linux arch/x86/platform/pvh/head.S\]
const ENTRY_NOTE: &[u8] = b"\x12\0\0\0Xen\0";

/// The ELF file in `image`, if it is one that QEMU can start; else nothing, and the image is to be used as it is.
pub fn unpack(image: &[u8]) -> Option<Vec<u8>> {
    let bytes = |at: usize| image.get(at..at + 4)?.try_into().ok();
    if u16::try_from(u32::from_le_bytes(bytes(VERSION)?) & 0xffff).ok()? < PROTOCOL_2_08 {
        return None;
    }
    let setup = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * SECTOR;
    let start = setup.checked_add(u32::from_le_bytes(bytes(PAYLOAD_OFFSET)?) as usize)?;
    let end = start.checked_add(u32::from_le_bytes(bytes(PAYLOAD_LENGTH)?) as usize)?;
    // Debian's are compressed so since 6.11; others have another magic.
    let mut decoder = StreamingDecoder::new(image.get(start..end)?).ok()?;
    let mut kernel = Vec::new();
    decoder.read_to_end(&mut kernel).ok()?;
    let starts = memchr::memmem::find(&kernel, ENTRY_NOTE).is_some();
    (kernel.starts_with(ELF) && starts).then_some(kernel)
}

#[cfg(test)]
mod tests {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR];
        image[SETUP_SECTORS] = 1;
        image[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&(SECTOR as u32).to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
        image.extend_from_slice(payload);
        // The length of what was compressed, which is part of the payload.
        image.extend_from_slice(&7u32.to_le_bytes());
        image
    }

    fn packed(kernel: &[u8]) -> Vec<u8> {
        compress_to_vec(kernel, CompressionLevel::Fastest)
    }

    #[test]
    fn a_kernel_that_can_be_started_is_unpacked() {
        let kernel = [ELF, &[0; 5000], ENTRY_NOTE, &[1; 70]].concat();
        assert_eq!(unpack(&image(&packed(&kernel))), Some(kernel));
    }

    #[test]
    fn other_images_stay_as_they_are() {
        let kernel = [ELF, &[0; 5000], ENTRY_NOTE].concat();
        let whole = image(&packed(&kernel));
        assert_eq!(unpack(&whole[..whole.len() - 10]), None, "cut off");
        assert_eq!(unpack(&whole[..100]), None, "no header");
        assert_eq!(unpack(&image(&[ELF, &[0; 5000]].concat())), None, "another compression");
        assert_eq!(unpack(&image(&packed(&kernel[..5000]))), None, "no entry for QEMU");
        assert_eq!(unpack(&image(&packed(&kernel[1..]))), None, "no ELF");
        let mut old = whole.clone();
        old[VERSION] = 7;
        assert_eq!(unpack(&old), None, "an old protocol");
        let mut wild = whole;
        wild[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 8].fill(0xff);
        assert_eq!(unpack(&wild), None, "a payload beyond the end");
    }
}
