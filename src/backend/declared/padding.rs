//! `pad` of inputs and `unpad` of outputs, held against the merged signature.

use super::{Side, wrong};
use crate::{
    error::Result,
    model::{Filler, Manifest, Pad, PadYaml, Signature, SpecYaml, TensorSpec, Unpad, UnpadYaml},
};

/// Sizes are few: each is a kind of batch of its own.
const SIZES_MAX: usize = 64;

/// Names and shapes agree already.
pub fn take_over(signature: &mut Signature, manifest: &Manifest) -> Result<()> {
    for declared in manifest.inputs.iter().flatten() {
        if declared.unpad.is_some() {
            return Err(wrong(Side::Input, &declared.name, "unpad is for outputs".into()));
        }
        if let (Some(place), Some(pad)) = (signature.input(&declared.name), &declared.pad) {
            let spec = &mut signature.inputs[place];
            spec.pad = Some(checked(spec, pad).map_err(|what| wrong(Side::Input, &declared.name, what))?);
        }
    }
    for declared in manifest.outputs.iter().flatten() {
        if declared.pad.is_some() {
            return Err(wrong(Side::Output, &declared.name, "pad is for inputs; an output has unpad".into()));
        }
        if let (Some(place), Some(unpad)) = (signature.output(&declared.name), &declared.unpad) {
            let unpad = followed(signature, place, declared, unpad);
            signature.outputs[place].unpad = Some(unpad.map_err(|what| wrong(Side::Output, &declared.name, what))?);
        }
    }
    Ok(())
}

fn checked(spec: &TensorSpec, declared: &PadYaml) -> Result<Pad, String> {
    if !spec.batch {
        return Err("pad is for inputs along which requests are joined".into());
    }
    free_dimension("pad.dim", spec, declared.dim)?;
    let mut to = declared.to.clone();
    to.sort_unstable();
    to.dedup();
    if to.is_empty() || to[0] == 0 || to.len() > SIZES_MAX {
        return Err(format!("pad.to {:?}: 1 to {SIZES_MAX} sizes, each at least 1", declared.to));
    }
    let value = Filler::new(spec.dtype, declared.value);
    let value = value.ok_or_else(|| format!("pad.value {}: {} has no such element", declared.value, spec.dtype))?;
    Ok(Pad { dim: declared.dim, to, value })
}

fn followed(signature: &Signature, place: usize, declared: &SpecYaml, unpad: &UnpadYaml) -> Result<Unpad, String> {
    let input = signature.input(&unpad.like);
    let padded = input.and_then(|input| Some((input, signature.inputs[input].pad.as_ref()?)));
    let (input, pad) = padded.ok_or_else(|| format!("unpad.like '{}': no input of that name has pad", unpad.like))?;
    let spec = &signature.outputs[place];
    let dim = unpad.dim.unwrap_or(pad.dim);
    free_dimension("unpad.dim", spec, dim)?;
    if declared.dtype.size().is_none() {
        return Err(format!("unpad: {} cannot be cut", declared.dtype));
    }
    Ok(Unpad { dim, input })
}

/// The first dimension is that of the rows.
fn free_dimension(key: &str, spec: &TensorSpec, dim: usize) -> Result<(), String> {
    match dim > 0 && spec.shape.get(dim) == Some(&-1) {
        true => Ok(()),
        false => Err(format!("{key} {dim}: a free dimension behind the first, of shape {}", spec.shape_text())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DType, ModelYaml, Platform, VersionYaml};

    fn merged(yaml: &str) -> Result<Signature> {
        let known = Signature {
            inputs: vec![
                TensorSpec::new("tokens", DType::Int64, &[-1, -1]),
                TensorSpec::new("words", DType::Bytes, &[-1, -1]),
                TensorSpec::new("scale", DType::Fp32, &[1]),
            ],
            outputs: vec![
                TensorSpec::new("states", DType::Fp32, &[-1, 4, -1]),
                TensorSpec::new("labels", DType::Bytes, &[-1, -1]),
            ],
        };
        let model = ModelYaml::parse(yaml).expect("the test's own yaml");
        let manifest =
            Manifest::resolve(Platform::Onnx, model, VersionYaml::default()).expect("the test's own manifest");
        super::super::merge(known, &manifest)
    }

    fn tokens(pad: &str) -> String {
        format!("inputs: [{{ name: tokens, dtype: INT64, shape: [-1, -1], {pad} }}]")
    }

    #[test]
    fn what_is_declared_is_taken_over() {
        let yaml = tokens("pad: { to: [32, 16, 32], value: -1 }")
            + "\noutputs: [{ name: states, dtype: FP32, shape: [-1, 4, -1], unpad: { like: tokens, dim: 2 } }]";
        let signature = merged(&yaml).expect("it is right");
        let value = Filler::new(DType::Int64, -1.0).expect("an integer");
        assert_eq!(signature.inputs[0].pad, Some(Pad { dim: 1, to: vec![16, 32], value }));
        assert_eq!(signature.outputs[0].unpad, Some(Unpad { dim: 2, input: 0 }));
        assert!(signature.pads() && !merged("").expect("nothing declared").pads());
    }

    #[test]
    fn each_mistake_names_the_tensor_and_what_is_wrong() {
        let output = |unpad: &str| {
            tokens("pad: { to: [8] }")
                + &format!("\noutputs: [{{ name: states, dtype: FP32, shape: [-1, 4, -1], {unpad} }}]")
        };
        let of_labels = tokens("pad: { to: [8] }")
            + "\noutputs: [{ name: labels, dtype: BYTES, shape: [-1, -1], unpad: { like: tokens } }]";
        for (yaml, says) in [
            (tokens("pad: { to: [] }"), "input 'tokens': pad.to []"),
            (tokens("pad: { to: [0, 8] }"), "pad.to [0, 8]"),
            (tokens("pad: { to: [8], dim: 0 }"), "pad.dim 0: a free dimension behind the first"),
            (tokens("pad: { to: [8], dim: 2 }"), "pad.dim 2"),
            (tokens("pad: { to: [8], value: 0.5 }"), "pad.value 0.5: INT64 has no such element"),
            (tokens("batch: false, pad: { to: [8] }"), "along which requests are joined"),
            (tokens("unpad: { like: tokens }"), "unpad is for outputs"),
            ("inputs: [{ name: words, dtype: BYTES, shape: [-1, -1], pad: { to: [8] } }]".into(), "BYTES has no such"),
            (
                "inputs: [{ name: scale, dtype: FP32, shape: [1], pad: { to: [8] } }]".into(),
                "input 'scale': pad is for",
            ),
            (output("pad: { to: [8] }"), "output 'states': pad is for inputs"),
            (output("unpad: { like: tokens }"), "unpad.dim 1: a free dimension"),
            (output("unpad: { like: scale, dim: 2 }"), "unpad.like 'scale': no input of that name has pad"),
            (of_labels, "unpad: BYTES cannot be cut"),
        ] {
            let error = merged(&yaml).expect_err("a mistake was made");
            assert_eq!(error.reason(), "INVALID_MANIFEST");
            assert!(error.message().contains(says), "{:?} should say {says:?}", error.message());
        }
        assert!(ModelYaml::parse(&tokens("pad: { to: [8], value: .nan }")).is_err());
        assert!(
            ModelYaml::parse(&tokens("pad: { to: [8], fill: 1 }")).expect_err("unknown").message().contains("fill")
        );
    }
}
