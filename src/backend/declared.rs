//! What people declare of a version's inputs and outputs, held against what the artifact says of itself.
//!
//! Pure: a manifest in, a signature out. `onnx` and `lightgbm` call `merge`, whose artifacts know their names and types;
//! `torch` calls `from_declared`, whose artifacts know neither. Every error is INVALID_ARGUMENT with reason
//! `INVALID_MANIFEST` and names the tensor.

mod padding;

use std::sync::Arc;

use crate::{
    error::{Error, Result},
    model::{DType, Manifest, MissingValue, Signature, SpecYaml, TensorSpec},
};

/// The whole signature from the declared specs, in their order. Both sides must be there.
pub fn from_declared(manifest: &Manifest) -> Result<Signature> {
    let mut signature = Signature {
        inputs: all_declared(Side::Input, manifest.inputs.as_deref())?,
        outputs: all_declared(Side::Output, manifest.outputs.as_deref())?,
    };
    padding::take_over(&mut signature, manifest)?;
    Ok(signature)
}

/// The artifact's own signature with the declared specs merged in, by name. A declared dimension may fix a free one; names,
/// types and fixed dimensions must agree. What is not declared stays as the artifact says. Sets `batch` everywhere.
pub fn merge(mut known: Signature, manifest: &Manifest) -> Result<Signature> {
    merge_side(Side::Input, &mut known.inputs, manifest.inputs.as_deref())?;
    merge_side(Side::Output, &mut known.outputs, manifest.outputs.as_deref())?;
    padding::take_over(&mut known, manifest)?;
    Ok(known)
}

#[derive(Clone, Copy)]
enum Side {
    Input,
    Output,
}

fn all_declared(side: Side, declared: Option<&[SpecYaml]>) -> Result<Vec<TensorSpec>> {
    let declared = declared.filter(|specs| !specs.is_empty()).ok_or_else(|| {
        invalid(format!(
            "{}s: missing; TorchScript has no names: declare inputs and outputs in model.yaml or version.yaml of a store",
            side.word()
        ))
    })?;
    let mut specs: Vec<TensorSpec> = Vec::with_capacity(declared.len());
    for one in declared {
        if specs.iter().any(|spec| *spec.name == one.name) {
            return Err(declared_twice(side, &one.name));
        }
        check_dimensions(side, one)?;
        let mut spec = TensorSpec::new(&one.name, one.dtype, &one.shape);
        spec.batch = spec.first_dimension_is_free();
        take_over(side, &mut spec, one)?;
        specs.push(spec);
    }
    Ok(specs)
}

fn merge_side(side: Side, known: &mut [TensorSpec], declared: Option<&[SpecYaml]>) -> Result<()> {
    for spec in known.iter_mut() {
        spec.batch = spec.first_dimension_is_free();
    }
    let declared = declared.unwrap_or_default();
    for (place, one) in declared.iter().enumerate() {
        if declared[..place].iter().any(|earlier| earlier.name == one.name) {
            return Err(declared_twice(side, &one.name));
        }
        let names = known.iter().map(|spec| &*spec.name).take(12).collect::<Vec<_>>().join("', '");
        let Some(spec) = known.iter_mut().find(|spec| *spec.name == one.name) else {
            return Err(wrong(side, &one.name, format!("the model has no such {}; it has '{names}'", side.word())));
        };
        if one.dtype != spec.dtype {
            return Err(wrong(side, &one.name, format!("declared {}, the model has {}", one.dtype, spec.dtype)));
        }
        check_dimensions(side, one)?;
        narrow(side, spec, one)?;
        take_over(side, spec, one)?;
    }
    Ok(())
}

fn check_dimensions(side: Side, declared: &SpecYaml) -> Result<()> {
    if declared.shape.iter().any(|&dim| dim < -1) {
        return Err(wrong(
            side,
            &declared.name,
            format!("shape {:?}: a dimension is -1 (free) or its size", declared.shape),
        ));
    }
    Ok(())
}

fn narrow(side: Side, spec: &mut TensorSpec, declared: &SpecYaml) -> Result<()> {
    let agrees = declared.shape.len() == spec.shape.len()
        && declared.shape.iter().zip(&spec.shape).all(|(&said, &known)| known == -1 || said == known);
    if !agrees {
        return Err(wrong(
            side,
            &declared.name,
            format!(
                "declared shape {:?}, the model has {}; only a free dimension (-1) can be fixed",
                declared.shape,
                spec.shape_text()
            ),
        ));
    }
    spec.shape.clone_from(&declared.shape);
    spec.batch = spec.first_dimension_is_free();
    Ok(())
}

/// What only people know: names of the columns, stand-ins for absent features, and that rows must not be joined.
fn take_over(side: Side, spec: &mut TensorSpec, declared: &SpecYaml) -> Result<()> {
    if declared.batch == Some(true) && !spec.batch {
        return Err(wrong(
            side,
            &declared.name,
            format!("batch: true needs a free first dimension, its shape is {}", spec.shape_text()),
        ));
    }
    spec.batch &= declared.batch.unwrap_or(true);
    if !declared.feature_names.is_empty() {
        spec.feature_names = feature_names(side, spec, declared)?;
        spec.missing = vec![None; spec.feature_names.len()];
    }
    for (feature, said) in &declared.features {
        let Some(column) = spec.feature_names.iter().position(|name| **name == *feature) else {
            return Err(wrong(side, &declared.name, format!("features: '{feature}' is not among its feature_names")));
        };
        if said.missing == Some(MissingValue::Nan) && !spec.dtype.is_float() {
            return Err(wrong(
                side,
                &declared.name,
                format!("features: '{feature}': {} has no nan; give a number", spec.dtype),
            ));
        }
        spec.missing[column] = said.missing;
    }
    Ok(())
}

fn feature_names(side: Side, spec: &TensorSpec, declared: &SpecYaml) -> Result<Vec<Arc<str>>> {
    let count = declared.feature_names.len();
    if spec.dtype == DType::Bytes || spec.shape.last() != Some(&(count as i64)) {
        return Err(wrong(
            side,
            &declared.name,
            format!(
                "{count} feature_names, but {} of shape {}; the last dimension must be that count",
                spec.dtype,
                spec.shape_text()
            ),
        ));
    }
    let mut sorted: Vec<&String> = declared.feature_names.iter().collect();
    sorted.sort_unstable();
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(wrong(side, &declared.name, format!("feature_names: '{}' stands there twice", twice[0])));
    }
    Ok(declared.feature_names.iter().map(|name| name.as_str().into()).collect())
}

fn declared_twice(side: Side, name: &str) -> Error {
    wrong(side, name, "declared twice".into())
}

fn wrong(side: Side, name: &str, what: String) -> Error {
    invalid(format!("{} '{name}': {what}", side.word())).with("tensor", name)
}

fn invalid(what: String) -> Error {
    Error::invalid("INVALID_MANIFEST", what)
}

// === impl Side ===

impl Side {
    fn word(self) -> &'static str {
        match self {
            Side::Input => "input",
            Side::Output => "output",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelYaml, Platform, VersionYaml};

    fn manifest(yaml: &str) -> Manifest {
        let model = ModelYaml::parse(yaml).expect("the test's own yaml");
        Manifest::resolve(Platform::Onnx, model, VersionYaml::default()).expect("the test's own manifest")
    }

    fn known() -> Signature {
        Signature {
            inputs: vec![TensorSpec::new("x", DType::Fp32, &[-1, 3]), TensorSpec::new("scale", DType::Int64, &[2])],
            outputs: vec![TensorSpec::new("y", DType::Fp32, &[-1, -1])],
        }
    }

    fn refused(yaml: &str) -> String {
        let error = merge(known(), &manifest(yaml)).expect_err("a mistake was made");
        assert_eq!(error.reason(), "INVALID_MANIFEST");
        error.message().to_owned()
    }

    #[test]
    fn nothing_declared_leaves_the_artifacts_own() {
        let merged = merge(known(), &manifest("")).expect("nothing to disagree with");
        assert_eq!(merged.inputs.iter().map(|spec| spec.batch).collect::<Vec<_>>(), [true, false]);
        assert_eq!(merged.inputs[0].shape, known().inputs[0].shape);
        assert!(merged.outputs[0].batch);
    }

    #[test]
    fn names_stand_ins_and_batch_are_taken_over() {
        let yaml = "
inputs: [{ name: x, dtype: FP32, shape: [-1, 3], batch: false, feature_names: [a, b, c], features: { b: { missing: nan }, c: { missing: 2.5 } } }]
outputs: [{ name: y, dtype: FP32, shape: [-1, 7] }]";
        let merged = merge(known(), &manifest(yaml)).expect("all agrees");
        assert!(!merged.inputs[0].batch);
        assert_eq!(merged.inputs[0].missing, [None, Some(MissingValue::Nan), Some(MissingValue::Value(2.5))]);
        assert_eq!(merged.outputs[0].shape, [-1, 7]);
        assert_eq!(merged.inputs[1], TensorSpec::new("scale", DType::Int64, &[2]));
    }

    #[test]
    fn each_disagreement_names_the_tensor() {
        for (yaml, says) in [
            (
                "inputs: [{ name: z, dtype: FP32, shape: [1] }]",
                "input 'z': the model has no such input; it has 'x', 'scale'",
            ),
            ("inputs: [{ name: x, dtype: FP64, shape: [-1, 3] }]", "input 'x': declared FP64, the model has FP32"),
            ("inputs: [{ name: x, dtype: FP32, shape: [-1, 4] }]", "input 'x': declared shape [-1, 4]"),
            ("inputs: [{ name: x, dtype: FP32, shape: [-1, -1] }]", "only a free dimension"),
            ("inputs: [{ name: x, dtype: FP32, shape: [-1] }]", "input 'x': declared shape [-1]"),
            ("outputs: [{ name: y, dtype: FP32, shape: [-1, -2] }]", "output 'y': shape [-1, -2]"),
            ("inputs: [{ name: x, dtype: FP32, shape: [-1, 3], feature_names: [a, b] }]", "input 'x': 2 feature_names"),
            ("inputs: [{ name: x, dtype: FP32, shape: [-1, 3], feature_names: [a, b, a] }]", "'a' stands there twice"),
            (
                "inputs: [{ name: x, dtype: FP32, shape: [-1, 3], features: { q: { missing: nan } } }]",
                "'q' is not among",
            ),
            ("inputs: [{ name: scale, dtype: INT64, shape: [2], batch: true }]", "input 'scale': batch: true needs"),
            (
                "inputs: [{ name: scale, dtype: INT64, shape: [2], feature_names: [a, b], features: { a: { missing: nan } } }]",
                "INT64 has no nan",
            ),
            (
                "inputs: [{ name: x, dtype: FP32, shape: [-1, 3] }, { name: x, dtype: FP32, shape: [-1, 3] }]",
                "input 'x': declared twice",
            ),
        ] {
            let message = refused(yaml);
            assert!(message.contains(says), "{message:?} should say {says:?}");
        }
    }

    #[test]
    fn an_artifact_without_names_needs_both_sides() {
        let inputs = "inputs: [{ name: x, dtype: FP32, shape: [-1, 4] }, { name: scale, dtype: FP32, shape: [4] }]";
        let error = from_declared(&manifest(inputs)).expect_err("no outputs");
        assert!(error.message().starts_with("outputs: missing"), "{error}");
        let both = format!("{inputs}\noutputs: [{{ name: y, dtype: FP32, shape: [-1] }}]");
        let signature = from_declared(&manifest(&both)).expect("both are there");
        assert_eq!(signature.inputs.iter().map(|spec| spec.batch).collect::<Vec<_>>(), [true, false]);
        assert!(signature.outputs[0].batch);
    }
}
