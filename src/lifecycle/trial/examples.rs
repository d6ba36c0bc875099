//! `example.json`: the answers that must come out.

use super::compare::{Tolerance, first_difference};
use crate::{
    error::{Code, Error, Result},
    model::{Example, Tensor, shape_text},
};

/// Compares the answer with what the example expects; outputs it does not name are not looked at.
pub fn check(place: usize, example: &Example, answer: &[Tensor]) -> Result<()> {
    let tolerance = Tolerance { rtol: example.rtol, atol: example.atol };
    for expected in &example.response.outputs {
        let name = &expected.name;
        let Some(came) = answer.iter().find(|tensor| *tensor.name == **name) else {
            let names: Vec<&str> = answer.iter().map(|tensor| &*tensor.name).collect();
            return Err(mismatch(place, format!("no output '{name}' came, but {}", names.join(", "))));
        };
        if came.dtype != expected.datatype || came.shape[..] != expected.shape[..] {
            return Err(mismatch(
                place,
                format!(
                    "output '{name}': expected {} {}, {} {} came",
                    expected.datatype,
                    shape_text(&expected.shape),
                    came.dtype,
                    shape_text(&came.shape)
                ),
            ));
        }
        let wanted = expected.to_input()?.contents.into_bytes(name, expected.datatype)?;
        let wanted = Tensor::new(came.name.clone(), came.dtype, came.shape.clone(), wanted)?;
        if let Some(difference) = first_difference(came, &wanted, tolerance) {
            return Err(mismatch(place, format!("output '{name}': {difference}")));
        }
    }
    Ok(())
}

/// An example that did not run at all.
pub fn failed(place: usize, error: &Error) -> Error {
    mismatch(place, error.message().to_owned())
}

fn mismatch(place: usize, what: String) -> Error {
    let message = format!("example.json, example {}: {what}", place + 1);
    Error::new(Code::FailedPrecondition, "EXAMPLE_MISMATCH", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ExampleFile, Shape};

    fn example(output: &str) -> Example {
        let text =
            format!(r#"{{"examples": [{{"request": {{}}, "response": {{"outputs": [{output}]}}, "rtol": 1e-6}}]}}"#);
        ExampleFile::parse(&text).expect("an example").examples.remove(0)
    }

    #[test]
    fn an_answer_is_held_against_what_is_expected() {
        let answer = [Tensor::from_f64("y".into(), Shape::from_slice(&[3]), vec![1.0, f64::NAN, 1e9])];
        let output = |name, datatype, shape, last| {
            format!(r#"{{"name": "{name}", "datatype": "{datatype}", "shape": {shape}, "data": [1, null, {last}]}}"#)
        };
        let message = |output: String| match check(0, &example(&output), &answer) {
            Ok(()) => "equal".to_owned(),
            Err(error) => error.message().to_owned(),
        };
        assert_eq!(message(output("y", "FP64", "[3]", "1.0000001e9")), "equal");
        assert!(message(output("y", "FP64", "[3]", "1.00001e9")).contains("element 2"));
        assert!(message(output("y", "FP32", "[3]", "1e9")).contains("expected FP32 [3], FP64 [3] came"));
        assert!(message(output("y", "FP64", "[3, 1]", "1e9")).contains("[3, 1]"));
        assert!(message(output("z", "FP64", "[3]", "1e9")).contains("no output 'z' came, but y"));
    }
}
