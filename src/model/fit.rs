//! Whether a version can answer what callers of another one ask. Pure.

use super::{DType, Signature, signature::TensorSpec};
use crate::error::{Code, Error, Result};

/// Which of stable's callers another version can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    All,
    /// Those who send tensors.
    Tensors,
    /// Those who send named features, as rows or as a table: what is new declares `missing:`.
    NamedFeatures,
}

/// FAILED_PRECONDITION `SIGNATURE_INCOMPATIBLE` names the tensor by which `new` cannot stand in for `stable`.
pub fn fit(new: &Signature, stable: &Signature) -> Result<Fit> {
    for wanted in &stable.outputs {
        let given = new.outputs.iter().find(|given| given.name == wanted.name);
        let given = given.ok_or_else(|| incompatible(wanted, "output", "the new version does not give it".into()))?;
        if given.dtype != wanted.dtype || !overlaps(&given.shape, &wanted.shape) {
            return Err(incompatible(wanted, "output", differs(given, wanted)));
        }
    }
    if let Some(gone) = stable.inputs.iter().find(|known| new.input(&known.name).is_none()) {
        return Err(incompatible(gone, "input", "the new version does not take it".into()));
    }
    let pairs = |taken: &dyn Fn(&TensorSpec, &TensorSpec) -> Result<()>| {
        new.inputs.iter().try_for_each(|known| match stable.inputs.iter().find(|spec| spec.name == known.name) {
            Some(stables) => taken(known, stables),
            None => Err(incompatible(known, "input", "stable does not take it".into())),
        })
    };
    let names_features = stable.inputs.iter().all(|spec| !spec.feature_names.is_empty());
    match (pairs(&takes_tensors), pairs(&takes_rows), names_features) {
        (Ok(()), Ok(()), _) | (Ok(()), _, false) => Ok(Fit::All),
        (Ok(()), Err(_), true) => Ok(Fit::Tensors),
        (Err(_), Ok(()), true) => Ok(Fit::NamedFeatures),
        (Err(_), Err(error), true) | (Err(error), _, false) => Err(error),
    }
}

/// Every tensor that stable takes is one that `new` takes for the same.
fn takes_tensors(new: &TensorSpec, stable: &TensorSpec) -> Result<()> {
    let wider = new.widens && stable.dtype == DType::Fp32;
    let types = (new.dtype == stable.dtype || wider) && (new.widens || !stable.widens);
    // Where one of them names no columns, there is nothing by which they could differ but their number.
    let unnamed = new.feature_names.is_empty() || stable.feature_names.is_empty();
    let columns = unnamed || new.feature_names == stable.feature_names;
    let shape = new.shape.len() == stable.shape.len()
        && new.shape.iter().zip(&stable.shape).all(|(new, stable)| *new < 0 || new == stable);
    match types && columns && shape {
        true => Ok(()),
        false => Err(incompatible(new, "input", differs(new, stable))),
    }
}

/// Every row of named features that stable takes is one that `new` takes.
fn takes_rows(new: &TensorSpec, stable: &TensorSpec) -> Result<()> {
    let alike = new.dtype == stable.dtype || (is_float(new.dtype) && is_float(stable.dtype));
    if new.feature_names.is_empty() || stable.feature_names.is_empty() || !alike {
        return Err(incompatible(new, "input", differs(new, stable)));
    }
    for (name, missing) in new.feature_names.iter().zip(&new.missing) {
        let stables = stable.feature_names.iter().position(|known| known == name);
        let may_be_absent = stables.is_none_or(|place| stable.missing.get(place).is_some_and(Option::is_some));
        if may_be_absent && missing.is_none() {
            let what = if stables.is_some() { "may be missing in stable" } else { "is new" };
            return Err(incompatible(new, "input", format!("feature '{name}' {what} and does not declare `missing:`")));
        }
    }
    match stable.feature_names.iter().find(|name| !new.feature_names.contains(name)) {
        Some(gone) => Err(incompatible(new, "input", format!("feature '{gone}' is gone"))),
        None => Ok(()),
    }
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::Fp16 | DType::Bf16 | DType::Fp32 | DType::Fp64)
}

/// Whether some tensor has both shapes: what an output has beyond its rows is only known when it runs.
fn overlaps(one: &[i64], other: &[i64]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| *one < 0 || *other < 0 || one == other)
}

fn differs(new: &TensorSpec, stable: &TensorSpec) -> String {
    format!("it is {} {} there and {} {} in stable", new.dtype, new.shape_text(), stable.dtype, stable.shape_text())
}

fn incompatible(spec: &TensorSpec, kind: &str, why: String) -> Error {
    let message = format!("callers of stable cannot be answered by it: {kind} '{}': {why}", spec.name);
    Error::new(Code::FailedPrecondition, "SIGNATURE_INCOMPATIBLE", message).with("tensor", &spec.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MissingValue;

    fn features(names: &[&str], missing: &[&str]) -> Signature {
        let declared = |name: &&str| missing.contains(name).then_some(MissingValue::Nan);
        let input = TensorSpec {
            feature_names: names.iter().map(|name| (*name).into()).collect(),
            missing: names.iter().map(declared).collect(),
            ..TensorSpec::new("x", DType::Fp64, &[-1, names.len() as i64])
        };
        Signature { inputs: vec![input], outputs: vec![TensorSpec::new("y", DType::Fp64, &[-1])] }
    }

    fn reason(new: &Signature, stable: &Signature) -> String {
        let error = fit(new, stable).expect_err("they do not fit");
        assert_eq!(error.reason(), "SIGNATURE_INCOMPATIBLE");
        error.message().to_owned()
    }

    #[test]
    fn a_new_feature_fits_named_rows_where_it_may_be_missing() {
        let stable = features(&["a", "b"], &[]);
        assert_eq!(fit(&stable, &stable).expect("the same"), Fit::All);
        assert_eq!(fit(&features(&["a", "b", "c"], &["c"]), &stable).expect("c may be missing"), Fit::NamedFeatures);
        assert_eq!(fit(&features(&["b", "a"], &[]), &stable).expect("by name"), Fit::NamedFeatures);
        assert!(reason(&features(&["a", "b", "c"], &[]), &stable).contains("'c' is new"));
        assert!(reason(&features(&["a"], &[]), &stable).contains("'b' is gone"));
    }

    #[test]
    fn what_rows_need_is_not_what_tensors_need() {
        let stable = features(&["a", "b"], &["b"]);
        assert_eq!(fit(&features(&["a", "b"], &[]), &stable).expect("tensors are the same"), Fit::Tensors);
        let mut unnamed = features(&["a", "b"], &[]);
        unnamed.inputs[0].feature_names.clear();
        unnamed.inputs[0].missing.clear();
        assert_eq!(fit(&unnamed, &stable).expect("as many columns"), Fit::Tensors);
        assert_eq!(fit(&stable, &unnamed).expect("it names what had no name"), Fit::All);
        let mut whole = features(&["a", "b"], &["b"]);
        whole.inputs[0].dtype = DType::Int64;
        assert!(reason(&whole, &stable).contains("INT64"));
        let mut single = features(&["a", "b"], &["b"]);
        single.inputs[0].dtype = DType::Fp32;
        assert_eq!(fit(&single, &stable).expect("rows hold numbers"), Fit::NamedFeatures);
    }

    #[test]
    fn tensors_fit_where_all_that_stable_takes_and_gives_is_there() {
        let of = |input: TensorSpec, outputs: Vec<TensorSpec>| Signature { inputs: vec![input], outputs };
        let y = || vec![TensorSpec::new("y", DType::Fp32, &[-1, 2])];
        let stable = of(TensorSpec::new("x", DType::Fp32, &[-1, 4]), y());
        let wider = of(TensorSpec::new("x", DType::Fp32, &[-1, -1]), y());
        assert_eq!(fit(&wider, &stable).expect("it takes more"), Fit::All);
        assert!(reason(&stable, &wider).contains("input 'x'"), "it takes less");
        let other = of(TensorSpec::new("x", DType::Fp64, &[-1, 4]), y());
        assert!(reason(&other, &stable).contains("FP64"));
        let renamed = of(TensorSpec::new("z", DType::Fp32, &[-1, 4]), y());
        assert!(reason(&renamed, &stable).contains("input 'x'"));
        let silent = of(TensorSpec::new("x", DType::Fp32, &[-1, 4]), vec![]);
        assert!(reason(&silent, &stable).contains("output 'y'"));
        let narrow = of(TensorSpec::new("x", DType::Fp32, &[-1, 4]), vec![TensorSpec::new("y", DType::Fp32, &[-1, 3])]);
        assert!(reason(&narrow, &stable).contains("[-1, 3]"));
    }
}
