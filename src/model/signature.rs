//! What a version takes and gives, and the check of a request against it.
//!
//! `Signature::bind` is the one place where a caller's tensors meet the model's: after it, names, order, types, shapes and
//! byte counts are right, and no backend checks them again.

use std::sync::Arc;

use super::{
    DType, Pad, Tensor, Unpad, repeated,
    request::TensorInput,
    tensor::{Shape, bytes_from, shape_text},
    yaml::MissingValue,
};
use crate::error::{Error, Result};

/// The inputs and outputs of a version, each in the model's own order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signature {
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<TensorSpec>,
}

/// One input or output.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    pub name: Arc<str>,
    pub dtype: DType,
    /// -1 is a dimension that may vary.
    pub shape: Vec<i64>,
    /// Whether requests are joined along the first dimension of this tensor.
    pub batch: bool,
    /// Whether FP32 is taken for an FP64 input and widened (LightGBM).
    pub widens: bool,
    /// Names of the columns of the last dimension; empty where they have none.
    pub feature_names: Vec<Arc<str>>,
    /// What stands in for an absent feature, by column; `None` makes its absence an error. As long as `feature_names`.
    pub missing: Vec<Option<MissingValue>>,
    /// Of an input: how a variable dimension is filled up, so that requests of different lengths share a batch.
    pub pad: Option<Pad>,
    /// Of an output that follows such a dimension.
    pub unpad: Option<Unpad>,
}

/// A request's inputs, checked and in the signature's order.
#[derive(Clone, Debug)]
pub struct Bound {
    pub inputs: Vec<Tensor>,
    /// The common first dimension of the inputs that batch; 1 where none does.
    pub rows: usize,
}

// === impl TensorSpec ===

impl TensorSpec {
    pub fn new(name: &str, dtype: DType, shape: &[i64]) -> Self {
        Self {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
            batch: false,
            widens: false,
            feature_names: Vec::new(),
            missing: Vec::new(),
            pad: None,
            unpad: None,
        }
    }

    /// Whether the first dimension is free, the precondition of joining.
    pub fn first_dimension_is_free(&self) -> bool {
        self.shape.first() == Some(&-1)
    }

    /// `[-1, 19]`
    pub fn shape_text(&self) -> String {
        format!("{:?}", self.shape)
    }

    fn check_shape(&self, shape: &[usize]) -> Result<()> {
        let fits = shape.len() == self.shape.len()
            && shape.iter().zip(&self.shape).all(|(&dim, &wanted)| wanted < 0 || dim as i64 == wanted);
        if fits {
            return self.check_length(shape);
        }
        Err(Error::invalid(
            "SHAPE_MISMATCH",
            format!(
                "input '{}': expected shape {} (-1 is free), {} came",
                self.name,
                self.shape_text(),
                shape_text(shape)
            ),
        )
        .with("tensor", &self.name))
    }

    /// The largest size that a dimension is padded to is the most that it may have, whether padding has been shown to be
    /// harmless or not: callers need not know.
    fn check_length(&self, shape: &[usize]) -> Result<()> {
        let Some(pad) = self.pad.as_ref().filter(|pad| shape[pad.dim] > pad.largest()) else {
            return Ok(());
        };
        let message = format!(
            "input '{}': dimension {} is at most {} (pad.to of the model), {} came",
            self.name,
            pad.dim,
            pad.largest(),
            shape[pad.dim]
        );
        Err(Error::invalid("DIMENSION_TOO_LARGE", message).with("tensor", &self.name))
    }

    /// The shape that `elements` elements must have, where the signature leaves one choice.
    fn infer_shape(&self, elements: usize) -> Result<Shape> {
        let known: usize = self.shape.iter().filter(|&&dim| dim >= 0).map(|&dim| dim as usize).product();
        let free = self.shape.iter().filter(|&&dim| dim < 0).count();
        let fits = match free {
            0 => known == elements,
            1 => known > 0 && elements.is_multiple_of(known),
            _ => false,
        };
        if !fits {
            return Err(Error::invalid(
                "SHAPE_NEEDED",
                format!(
                    "input '{}': {elements} elements do not give its shape {} by themselves; say shape",
                    self.name,
                    self.shape_text()
                ),
            )
            .with("tensor", &self.name));
        }
        Ok(self.shape.iter().map(|&dim| if dim < 0 { elements / known } else { dim as usize }).collect())
    }

    fn bind(&self, input: TensorInput) -> Result<Tensor> {
        let dtype = input.dtype.unwrap_or(self.dtype);
        let widen = self.widens && dtype == DType::Fp32 && self.dtype == DType::Fp64;
        if dtype != self.dtype && !widen {
            return Err(Error::invalid(
                "DTYPE_MISMATCH",
                format!("input '{}': expected {}, {dtype} came", self.name, self.dtype),
            )
            .with("tensor", &self.name));
        }
        let data = input.contents.into_bytes(&self.name, dtype)?;
        let shape = match input.shape {
            Some(shape) => shape,
            None => self.infer_shape(elements_of(&data, dtype))?,
        };
        self.check_shape(&shape)?;
        let tensor = Tensor::new(self.name.clone(), dtype, shape, data)?;
        Ok(if widen { widened(tensor) } else { tensor })
    }
}

// === impl Signature ===

impl Signature {
    pub fn input(&self, name: &str) -> Option<usize> {
        self.inputs.iter().position(|spec| &*spec.name == name)
    }

    pub fn output(&self, name: &str) -> Option<usize> {
        self.outputs.iter().position(|spec| &*spec.name == name)
    }

    /// Whether requests can be joined at all: some input batches, and every output does.
    pub fn batches(&self) -> bool {
        self.inputs.iter().any(|spec| spec.batch)
            && !self.outputs.is_empty()
            && self.outputs.iter().all(|spec| spec.batch)
    }

    /// Checks a caller's tensors and puts them into the signature's order.
    ///
    /// An unnamed tensor is taken for the only input. INVALID_ARGUMENT names the input, what was expected and what came.
    pub fn bind(&self, tensors: Vec<TensorInput>) -> Result<Bound> {
        let mut inputs: Vec<Option<Tensor>> = vec![None; self.inputs.len()];
        for tensor in tensors {
            let place = match &tensor.name[..] {
                "" if self.inputs.len() == 1 => 0,
                name => self.input(name).ok_or_else(|| self.unknown_input(name))?,
            };
            let spec = &self.inputs[place];
            if inputs[place].is_some() {
                return Err(Error::invalid("DUPLICATE_INPUT", format!("input '{}' came twice", spec.name))
                    .with("tensor", &spec.name));
            }
            inputs[place] = Some(spec.bind(tensor)?);
        }
        let inputs: Vec<Tensor> = inputs
            .into_iter()
            .zip(&self.inputs)
            .map(|(tensor, spec)| {
                tensor.ok_or_else(|| {
                    Error::invalid(
                        "MISSING_INPUT",
                        format!("input '{}' ({} {}) is missing", spec.name, spec.dtype, spec.shape_text()),
                    )
                    .with("tensor", &spec.name)
                })
            })
            .collect::<Result<_>>()?;
        let rows = self.common_rows(&inputs)?;
        Ok(Bound { inputs, rows })
    }

    /// The outputs a caller asked for, as places in `outputs`; all where none is named.
    pub fn select(&self, names: &[String]) -> Result<Vec<usize>> {
        if names.is_empty() {
            return Ok((0..self.outputs.len()).collect());
        }
        let mut places = Vec::with_capacity(names.len().min(self.outputs.len()));
        for name in names {
            let place = self.output(name).ok_or_else(|| {
                Error::invalid(
                    "UNKNOWN_OUTPUT",
                    format!("there is no output{}; the model gives {}", repeated(name), name_list(&self.outputs)),
                )
            })?;
            if places.contains(&place) {
                return Err(Error::invalid("DUPLICATE_OUTPUT", format!("output '{name}' was asked for twice")));
            }
            places.push(place);
        }
        Ok(places)
    }

    fn common_rows(&self, inputs: &[Tensor]) -> Result<usize> {
        let mut common: Option<&Tensor> = None;
        for (tensor, _) in inputs.iter().zip(&self.inputs).filter(|(_, spec)| spec.batch) {
            match common {
                Some(first) if first.shape[0] != tensor.shape[0] => {
                    return Err(Error::invalid(
                        "ROWS_MISMATCH",
                        format!(
                            "input '{}' has {} rows and input '{}' has {}; they must be equal",
                            first.name, first.shape[0], tensor.name, tensor.shape[0]
                        ),
                    ));
                }
                _ => common = Some(tensor),
            }
        }
        Ok(common.map_or(1, |tensor| tensor.shape[0]))
    }

    fn unknown_input(&self, name: &str) -> Error {
        let message = match name {
            "" => format!("a tensor without a name; the model takes {}", name_list(&self.inputs)),
            _ => format!("there is no input{}; the model takes {}", repeated(name), name_list(&self.inputs)),
        };
        Error::invalid("UNKNOWN_INPUT", message)
    }
}

/// `'a', 'b' and 40 more`: enough to mend a typing error, never a page.
fn name_list(specs: &[TensorSpec]) -> String {
    const SHOWN: usize = 12;
    let names: Vec<String> = specs.iter().take(SHOWN).map(|spec| format!("'{}'", spec.name)).collect();
    let more = specs.len().saturating_sub(SHOWN);
    if more > 0 { format!("{} and {more} more", names.join(", ")) } else { names.join(", ") }
}

fn elements_of(data: &[u8], dtype: DType) -> usize {
    match dtype.size() {
        Some(size) => data.len() / size,
        None => super::tensor::BytesElements::new(data).count(),
    }
}

fn widened(tensor: Tensor) -> Tensor {
    let values: Vec<f64> = tensor
        .data
        .chunks_exact(4)
        .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().expect("chunks of 4: this is a bug"))))
        .collect();
    Tensor { dtype: DType::Fp64, data: bytes_from(values), ..tensor }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Contents;
    use bytes::Bytes;

    fn signature() -> Signature {
        let batching = |name, dtype, shape: &[i64]| TensorSpec { batch: true, ..TensorSpec::new(name, dtype, shape) };
        Signature {
            inputs: vec![
                batching("window", DType::Fp32, &[-1, 3]),
                batching("context", DType::Fp64, &[-1]),
                TensorSpec::new("scale", DType::Fp32, &[2]),
            ],
            outputs: vec![batching("y", DType::Fp32, &[-1])],
        }
    }

    fn input(name: &str, contents: Contents) -> TensorInput {
        TensorInput { name: name.into(), dtype: None, shape: None, contents }
    }

    fn good() -> Vec<TensorInput> {
        vec![
            input("scale", Contents::Floats(vec![1.0, 2.0])),
            input("context", Contents::Doubles(vec![0.5, f64::NAN])),
            input("window", Contents::Floats(vec![0.0; 6])),
        ]
    }

    #[test]
    fn inputs_come_in_any_order_and_leave_in_the_models() {
        let bound = signature().bind(good()).expect("all is right");
        let names: Vec<&str> = bound.inputs.iter().map(|tensor| &*tensor.name).collect();
        assert_eq!(names, ["window", "context", "scale"]);
        assert_eq!(bound.rows, 2);
        assert_eq!(&bound.inputs[0].shape[..], [2, 3]);
    }

    #[test]
    fn each_mistake_has_its_own_reason() {
        let reason = |change: fn(&mut Vec<TensorInput>)| {
            let mut inputs = good();
            change(&mut inputs);
            signature().bind(inputs).expect_err("a mistake was made").reason()
        };
        assert_eq!(reason(|inputs| inputs[0].name = "weight".into()), "UNKNOWN_INPUT");
        assert_eq!(reason(|inputs| inputs[0].name = "".into()), "UNKNOWN_INPUT");
        assert_eq!(reason(|inputs| inputs.truncate(2)), "MISSING_INPUT");
        assert_eq!(reason(|inputs| inputs[0].name = "window".into()), "SHAPE_NEEDED");
        assert_eq!(reason(|inputs| inputs.push(input("context", Contents::Doubles(vec![1.0])))), "DUPLICATE_INPUT");
        assert_eq!(reason(|inputs| inputs[1].dtype = Some(DType::Int64)), "DTYPE_MISMATCH");
        assert_eq!(reason(|inputs| inputs[2].shape = Some(Shape::from_slice(&[3, 2]))), "SHAPE_MISMATCH");
        assert_eq!(reason(|inputs| inputs[2].shape = Some(Shape::from_slice(&[6]))), "SHAPE_MISMATCH");
        assert_eq!(reason(|inputs| inputs[2].shape = Some(Shape::from_slice(&[3, 3]))), "BYTE_COUNT_MISMATCH");
        assert_eq!(reason(|inputs| inputs[1].contents = Contents::Doubles(vec![1.0])), "ROWS_MISMATCH");
        assert_eq!(reason(|inputs| inputs[1].contents = Contents::Ints(vec![1, 2])), "CONTENTS_MISMATCH");
    }

    #[test]
    fn only_a_model_that_says_so_widens() {
        let mut signature = signature();
        let narrow = || {
            let mut inputs = good();
            inputs[1] = TensorInput {
                name: "context".into(),
                dtype: Some(DType::Fp32),
                shape: None,
                contents: Contents::Raw(Bytes::from_static(&[0, 0, 128, 63, 0, 0, 0, 64])),
            };
            inputs
        };
        assert!(signature.bind(narrow()).is_err());
        signature.inputs[1].widens = true;
        let bound = signature.bind(narrow()).expect("widened");
        assert_eq!(bound.inputs[1].dtype, DType::Fp64);
        assert_eq!(&bound.inputs[1].data[..], [1.0f64.to_le_bytes(), 2.0f64.to_le_bytes()].concat());
    }
}
