//! The checksum of zip archives (CRC-32, the reflected polynomial 0xEDB88320), eight bytes a step: "slicing by 8" of
//! Kounavis and Berry, "A Systematic Approach to Building High Performance Software-based CRC Generators" (2005).

/// `TABLES[k][b]` is what byte `b` does to the checksum when `k` more bytes follow.
static TABLES: [[u32; 256]; 8] = tables();

/// The checksum of a text that `crc` is the checksum of so far, with these bytes after it; of nothing it is 0.
pub fn crc32(crc: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    let whole = words.iter().fold(!crc, |crc, word| {
        let word = u64::from_le_bytes(*word) ^ u64::from(crc);
        word.to_le_bytes().iter().rev().zip(&TABLES).fold(0, |sum, (&byte, table)| sum ^ table[usize::from(byte)])
    });
    !rest.iter().fold(whole, |crc, &byte| TABLES[0][usize::from(crc as u8 ^ byte)] ^ crc >> 8)
}

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut at = 256;
    while at < 8 * 256 {
        let shorter: u32 = tables[at / 256 - 1][at % 256];
        tables[at / 256][at % 256] = tables[0][(shorter & 0xff) as usize] ^ shorter >> 8;
        at += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_catalogues_and_any_split() {
        assert_eq!(crc32(0, b"123456789"), 0xcbf4_3926);
        let text: Vec<u8> = (0..100).map(|byte: u8| byte.wrapping_mul(7)).collect();
        for at in 0..text.len() {
            assert_eq!(crc32(crc32(0, &text[..at]), &text[at..]), crc32(0, &text));
        }
    }
}
