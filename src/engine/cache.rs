//! What makes two requests equal, and the answer that one may have from the other.
//!
//! The digest is of what the model would see: the inputs after they were bound and normalised, so that rows, typed and raw
//! tensors of the same values are one request. What the answer does not depend on (ids, priority, deadline, the attributes
//! that are not named) is left out. The version is not in it: each has a cache of its own.

use std::{sync::Arc, time::Instant};

use crate::{
    error::Result,
    model::{CacheUse, Parameter, Parameters, Tensor, Timing},
    runtime::{Digest, Done, Found, Servable, Work},
};

/// What callers say of themselves, by name.
type Attributes = [(String, String)];

/// Bytes of which no two lists of fields give the same.
struct Fields(blake3::Hasher);

/// The answer of an equal request, or a new one.
pub async fn answer(
    servable: Arc<Servable>,
    attributes: Vec<(String, String)>,
    work: Work,
) -> Result<(Done, CacheUse)> {
    let Some(cache) = servable.cache() else {
        return Ok((servable.run(work)?.await?, CacheUse::Bypass));
    };
    let Some(digest) = digest(&cache.limits().key, &attributes, &work) else {
        cache.count_bypass();
        return Ok((servable.run(work)?.await?, CacheUse::Bypass));
    };
    let (begun, deadline) = (Instant::now(), work.deadline);
    Ok(match cache.get_or_compute(&digest, deadline, async { servable.clone().run(work)?.await }).await? {
        Found::Computed(done) => (done, CacheUse::Miss),
        Found::Kept { outputs, age } => {
            let timing = Timing { queue_us: begun.elapsed().as_micros() as u64, ..Timing::default() };
            (Done { outputs, timing }, CacheUse::Hit { age })
        }
    })
}

/// Over the inputs, or over the named attributes where there are names; `None` where the caller did not say one of them.
fn digest(names: &[String], attributes: &Attributes, work: &Work) -> Option<Digest> {
    let mut fields = Fields(blake3::Hasher::new());
    match names {
        [] => fields.inputs(&work.inputs),
        names => {
            // The answer has as many rows as the question, whoever asks.
            fields.number(work.rows);
            for name in names {
                let (_, value) = attributes.iter().find(|(given, _)| given == name)?;
                fields.bytes(value.as_bytes());
            }
        }
    }
    fields.number(work.outputs.len());
    work.outputs.iter().for_each(|&place| fields.number(place));
    fields.parameters(&work.parameters);
    Some(*fields.0.finalize().as_bytes())
}

// === impl Fields ===

impl Fields {
    fn number(&mut self, number: usize) {
        self.0.update(&(number as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.0.update(bytes);
    }

    /// They are in the signature's order, so the place says the name.
    fn inputs(&mut self, inputs: &[Tensor]) {
        self.number(inputs.len());
        for input in inputs {
            self.number(input.dtype as usize);
            self.number(input.shape.len());
            input.shape.iter().for_each(|&dim| self.number(dim));
            self.bytes(&input.data);
        }
    }

    /// The edge has put them in order.
    fn parameters(&mut self, parameters: &Parameters) {
        self.number(parameters.0.len());
        for (name, value) in &parameters.0 {
            self.bytes(name.as_bytes());
            match value {
                Parameter::Bool(flag) => self.bytes(&[0, u8::from(*flag)]),
                Parameter::Int(number) => self.bytes(&tagged(1, number.to_le_bytes())),
                Parameter::Double(number) => self.bytes(&tagged(2, number.to_le_bytes())),
                Parameter::Text(text) => {
                    self.number(usize::MAX);
                    self.bytes(text.as_bytes());
                }
            }
        }
    }
}

/// A number's bytes behind what kind of number it is.
fn tagged(kind: u8, number: [u8; 8]) -> [u8; 9] {
    let mut bytes = [kind; 9];
    bytes[1..].copy_from_slice(&number);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DType, Priority, Shape, bytes_from};

    fn input(dtype: DType, shape: &[usize], values: &[f64]) -> Tensor {
        let data = match dtype {
            DType::Fp64 => bytes_from(values.to_vec()),
            _ => bytes_from(values.iter().map(|&value| value as i64).collect()),
        };
        Tensor::new("x".into(), dtype, Shape::from_slice(shape), data).expect("a tensor")
    }

    fn work(inputs: Vec<Tensor>) -> Work {
        let (outputs, parameters) = (vec![0, 1], Parameters::default());
        Work { inputs, rows: 1, outputs, parameters, priority: Priority::Normal, deadline: None }
    }

    fn plain() -> Work {
        work(vec![input(DType::Fp64, &[1, 2], &[0.0, 0.0])])
    }

    fn with(name: &str, value: Parameter) -> Work {
        Work { parameters: Parameters(vec![(name.into(), value)]), ..plain() }
    }

    #[test]
    fn whatever_the_answer_depends_on_is_in_the_digest_and_nothing_else() {
        let text = |text: &str| Parameter::Text(text.into());
        let others = [
            plain(),
            work(vec![input(DType::Fp64, &[2, 1], &[0.0, 0.0])]),
            work(vec![input(DType::Fp64, &[2], &[0.0, 0.0])]),
            work(vec![input(DType::Int64, &[1, 2], &[0.0, 0.0])]),
            work(vec![input(DType::Fp64, &[1, 2], &[0.0, 1.0])]),
            work(vec![input(DType::Fp64, &[1], &[0.0]), input(DType::Fp64, &[1], &[0.0])]),
            work(vec![]),
            Work { outputs: vec![1, 0], ..plain() },
            Work { outputs: vec![0], ..plain() },
            with("a", Parameter::Bool(false)),
            with("a", Parameter::Int(0)),
            with("a", Parameter::Double(0.0)),
            with("a", text("")),
            with("a", text("0")),
            with("a0", text("")),
            // What an integer's bytes would be.
            with("a", text("\u{1}\0\0\0\0\0\0\0\0")),
        ];
        let digests: Vec<Digest> = others.iter().map(|work| digest(&[], &[], work).expect("no name")).collect();
        for (place, one) in digests.iter().enumerate() {
            assert!(!digests[..place].contains(one), "{place}");
        }
        let urgent = Work { priority: Priority::High, deadline: Some(Instant::now()), ..plain() };
        let caller = [("user".to_owned(), "7".to_owned())];
        assert_eq!(digest(&[], &caller, &urgent), Some(digests[0]));
    }

    #[test]
    fn named_attributes_stand_for_the_inputs() {
        let names: Vec<String> = ["symbol", "horizon"].map(str::to_owned).into();
        let of = |symbol: &str, horizon: &str, work: &Work| {
            let said = [("user", "7"), ("horizon", horizon), ("symbol", symbol)];
            digest(&names, &said.map(|(name, value)| (name.to_owned(), value.to_owned())), work)
        };
        let one = of("ESZ6", "5m", &plain());
        let other_inputs = work(vec![input(DType::Fp64, &[1, 2], &[3.0, 4.0])]);
        assert!(one.is_some());
        assert_eq!(of("ESZ6", "5m", &other_inputs), one);
        assert_ne!(of("ESZ65", "m", &plain()), one, "a value ends where it ends");
        assert_ne!(of("5m", "ESZ6", &plain()), one);
        assert_ne!(of("ESZ6", "5m", &Work { rows: 2, ..plain() }), one, "an answer has the rows of its question");
        assert_ne!(of("ESZ6", "5m", &with("predict_type", Parameter::Text("raw".into()))), one);
        assert_eq!(digest(&names, &[("symbol".into(), "ESZ6".into())], &plain()), None);
    }
}
