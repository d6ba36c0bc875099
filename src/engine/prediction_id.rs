//! Prediction ids: opaque to callers, and all that a replica needs to credit an outcome that arrives later.
//!
//! An id is base64 (url-safe, no padding) of: a format byte, the time in microseconds, a random number, the row, the revision,
//! the score, the version, the model and variant by name, and at the end 8 bytes of SipHash-2-4 over all that, keyed. So any
//! replica that has the key can read it, at any age, with nothing kept for it, and a forged one is seen.

use std::{
    ops::Range,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use siphasher::sip::SipHasher24;
use smallvec::SmallVec;

use crate::{
    error::{Error, Result},
    model::{DType, ModelName, Served, Tensor, Version},
};

/// The key of the checksum: the same on all replicas that credit each other's outcomes.
#[derive(Clone)]
pub struct IdKey([u8; 16]);

/// What an id says: whose prediction it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicted {
    pub at: SystemTime,
    pub model: ModelName,
    pub version: Version,
    pub variant: String,
    pub revision: u64,
    pub row: u32,
    /// NaN where the first output was no float.
    pub score: f32,
}

const FORMAT: u8 = 1;
const CHECKSUM_BYTES: usize = 8;
/// No id is longer: two names, each of at most 255 bytes, and less than a hundred bytes beside them.
const ID_BYTES_MAX: usize = 1024;
/// Where they stand: the rest is the same for all rows of an answer.
const ROW: Range<usize> = 17..21;
const SCORE: Range<usize> = 29..33;
/// Ids of one answer: a caller of a million rows gets the ids of the first ones, and no answer of fifty megabytes.
const IDS_MAX: usize = 1024;

// === impl IdKey ===

impl IdKey {
    pub fn new(key: [u8; 16]) -> Self {
        Self(key)
    }

    /// A key of this process alone: ids are good until it ends. It fails where the system gives no random bytes.
    pub fn random() -> Result<Self> {
        let mut key = [0; 16];
        getrandom::fill(&mut key)
            .map_err(|error| Error::internal("NO_RANDOMNESS", format!("the system gives no random bytes: {error}")))?;
        Ok(Self(key))
    }

    /// One id for each row, at most 1,024. The score is the row's first value of the first output, NaN where it is no float.
    pub fn issue(&self, served: &Served, rows: usize, output: Option<&Tensor>) -> Vec<String> {
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        // It only tells apart ids of the same microsecond, and callers read it: so it comes from a generator that never made
        // a key, and one who works that generator's state out learns nothing about the key.
        let random = fastrand::u64(..);
        let mut record: SmallVec<[u8; 128]> = SmallVec::new();
        record.push(FORMAT);
        record.extend_from_slice(&micros.to_le_bytes());
        record.extend_from_slice(&random.to_le_bytes());
        record.extend_from_slice(&[0; 4]);
        record.extend_from_slice(&served.revision.to_le_bytes());
        record.extend_from_slice(&[0; 4]);
        put_version(&mut record, served.version);
        for name in [served.model.as_str(), &served.variant] {
            record.push(name.len() as u8);
            record.extend_from_slice(&name.as_bytes()[..name.len().min(255)]);
        }
        let body = record.len();
        let ids = (0..rows.min(IDS_MAX)).map(|row| {
            record.truncate(body);
            record[ROW].copy_from_slice(&(row as u32).to_le_bytes());
            record[SCORE].copy_from_slice(&score(output, row, rows).to_le_bytes());
            let checksum = SipHasher24::new_with_key(&self.0).hash(&record);
            record.extend_from_slice(&checksum.to_le_bytes());
            BASE64_URL_SAFE_NO_PAD.encode(&record)
        });
        ids.collect()
    }

    /// What an id says that this key made; `None` for anything else.
    pub fn read(&self, id: &str) -> Option<Predicted> {
        if id.len() > ID_BYTES_MAX {
            return None;
        }
        let record = BASE64_URL_SAFE_NO_PAD.decode(id).ok()?;
        let (body, checksum) = record.split_last_chunk::<CHECKSUM_BYTES>()?;
        let expected = SipHasher24::new_with_key(&self.0).hash(body);
        // Of all 64 bits at once: how long it takes does not tell how many of them are right.
        if u64::from_le_bytes(*checksum) ^ expected != 0 {
            return None;
        }
        Predicted::parse(body)
    }
}

// === impl Predicted ===

impl Predicted {
    /// `None` for what another release may have written.
    fn parse(mut rest: &[u8]) -> Option<Self> {
        if take(&mut rest)? != [FORMAT] {
            return None;
        }
        let micros = u64::from_le_bytes(take(&mut rest)?);
        let _random: [u8; 8] = take(&mut rest)?;
        let row = u32::from_le_bytes(take(&mut rest)?);
        let revision = u64::from_le_bytes(take(&mut rest)?);
        let score = f32::from_le_bytes(take(&mut rest)?);
        let version = take_version(&mut rest)?;
        let model = ModelName::new(take_name(&mut rest)?).ok()?;
        let variant = take_name(&mut rest)?.to_owned();
        let at = UNIX_EPOCH.checked_add(Duration::from_micros(micros))?;
        rest.is_empty().then_some(Self { at, model, version, variant, revision, row, score })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

fn take_name<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let [length] = take(rest)?;
    str::from_utf8(rest.split_off(..usize::from(length))?).ok()
}

fn take_version(rest: &mut &[u8]) -> Option<Version> {
    let mut numbers = [0_u64; 4];
    for number in &mut numbers {
        for shift in (0..u64::BITS).step_by(7) {
            let [byte] = take(rest)?;
            *number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
    }
    Some(Version::of_numbers(numbers))
}

/// Four numbers of at most ten bytes each: small ones take one.
fn put_version(record: &mut SmallVec<[u8; 128]>, version: Version) {
    for mut number in version.numbers() {
        while number >= 0x80 {
            record.push(number as u8 | 0x80);
            number >>= 7;
        }
        record.push(number as u8);
    }
}

fn score(output: Option<&Tensor>, row: usize, rows: usize) -> f32 {
    let Some(output) = output.filter(|output| output.shape.first() == Some(&rows)) else {
        return f32::NAN;
    };
    let Some(size) = output.dtype.size() else {
        return f32::NAN;
    };
    let at = row * (output.data.len() / rows.max(1));
    let Some(bytes) = output.data.get(at..at + size) else {
        return f32::NAN;
    };
    match output.dtype {
        DType::Fp32 => f32::from_le_bytes(bytes.try_into().expect("4 bytes: this is a bug")),
        DType::Fp64 => f64::from_le_bytes(bytes.try_into().expect("8 bytes: this is a bug")) as f32,
        _ => f32::NAN,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::RouteReason;

    fn served() -> Served {
        Served {
            model: ModelName::new("early-signal").expect("a name"),
            version: Version::new(1, 2, 300),
            variant: "stable".into(),
            reason: RouteReason::Stable,
            revision: 7,
        }
    }

    #[test]
    fn every_row_has_an_id_of_its_own_and_a_keyed_checksum() {
        let key = IdKey::new([7; 16]);
        let output = Tensor::from_f64("p".into(), [2].into_iter().collect(), vec![0.25, 0.75]);
        let ids = key.issue(&served(), 2, Some(&output));
        assert_eq!(ids.len(), 2);
        assert_ne!(ids[0], ids[1]);
        let record = BASE64_URL_SAFE_NO_PAD.decode(&ids[1]).expect("base64");
        let (body, checksum) = record.split_at(record.len() - 8);
        assert_eq!(SipHasher24::new_with_key(&[7; 16]).hash(body).to_le_bytes(), checksum);
        assert_ne!(SipHasher24::new_with_key(&[8; 16]).hash(body).to_le_bytes(), checksum);
        assert_eq!((&body[ROW], &body[SCORE]), (&1u32.to_le_bytes()[..], &0.75f32.to_le_bytes()[..]));
        assert_eq!(body[21..29], 7u64.to_le_bytes(), "the revision");
    }

    #[test]
    fn a_million_rows_do_not_make_a_million_ids() {
        assert_eq!(IdKey::random().expect("random bytes").issue(&served(), 1_000_000, None).len(), IDS_MAX);
    }

    fn id() -> (IdKey, String) {
        let key = IdKey::new([7; 16]);
        let output = Tensor::from_f64("p".into(), [1].into_iter().collect(), vec![0.75]);
        let id = key.issue(&served(), 1, Some(&output)).remove(0);
        (key, id)
    }

    #[test]
    fn an_id_says_whose_prediction_it_was() {
        let (key, id) = id();
        let said = key.read(&id).expect("its own");
        assert_eq!((said.model.as_str(), said.version, &*said.variant), ("early-signal", served().version, "stable"));
        assert_eq!((said.revision, said.row, said.score), (7, 0, 0.75));
        assert!(said.at.elapsed().expect("in the past") < Duration::from_secs(60));
        assert_eq!(IdKey::new([8; 16]).read(&id), None, "another key's");
        assert!(key.issue(&served(), 1, None).iter().all(|id| key.read(id).expect("its own").score.is_nan()));
    }

    #[test]
    fn an_id_cut_anywhere_or_with_any_bit_turned_is_none() {
        let (key, id) = id();
        for length in 0..id.len() {
            assert_eq!(key.read(&id[..length]), None, "{length}");
        }
        let record = BASE64_URL_SAFE_NO_PAD.decode(&id).expect("base64");
        for bit in 0..record.len() * 8 {
            let mut forged = record.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.read(&BASE64_URL_SAFE_NO_PAD.encode(forged)), None, "{bit}");
        }
        assert_eq!(key.read(&"A".repeat(1 << 20)), None);
    }

    /// A record with a right checksum, whatever it holds.
    fn signed(mut record: Vec<u8>) -> String {
        let checksum = SipHasher24::new_with_key(&[7; 16]).hash(&record);
        record.extend_from_slice(&checksum.to_le_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(record)
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_not_and_harms_nobody(text in any::<String>(), bytes in any::<Vec<u8>>()) {
            let key = IdKey::new([7; 16]);
            prop_assert_eq!(key.read(&text), None);
            prop_assert_eq!(key.read(&BASE64_URL_SAFE_NO_PAD.encode(&bytes)), None);
            let _ = key.read(&signed(bytes.clone()));
            let _ = key.read(&signed([&[FORMAT], &bytes[..]].concat()));
        }

        #[test]
        fn every_version_and_name_is_read_back(
            numbers in proptest::array::uniform4(any::<u64>()), revision in any::<u64>(), variant in "[a-z0-9._-]{1,60}",
        ) {
            let version = Version::of_numbers(numbers);
            let served = Served { version, revision, variant: variant.as_str().into(), ..served() };
            let key = IdKey::new([7; 16]);
            let said = key.read(&key.issue(&served, 1, None)[0]).expect("its own");
            prop_assert_eq!((said.version, said.revision, said.variant), (version, revision, variant));
        }
    }
}
