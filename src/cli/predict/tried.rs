//! `--example`: a version's own example, sent to the server, and whether the expected answer came.

use std::{fmt::Write as _, process::ExitCode};

use serde_json::Value;

use super::PredictArgs;
use crate::{
    cli::{
        client, convert, json, print,
        proto::{OutputForm, PredictResponse},
    },
    model::Example,
};

pub async fn try_example(args: &PredictArgs) -> anyhow::Result<ExitCode> {
    let stored = args.choice.find(&args.model, args.version.as_deref(), |_| true)?;
    let asked = &stored.example.request;
    let version = stored.version.to_string();
    let mut request = convert::request(&args.model, Some(version.clone()), asked.data()?, asked.parameters()?);
    request.output_form = OutputForm::Typed.into();
    let client = client::inference(&args.server).await?;
    let answer = client::with_retries(|| {
        let (mut client, call) = (client.clone(), client::call(request.clone(), args.timeout));
        async move { client.predict(call).await }
    })
    .await?;
    let (text, agrees) = compared(&stored.example, &answer);
    print(&format!("{} {version}, example {} of {}\n{text}", stored.model, stored.index, stored.file.display()))?;
    Ok(if agrees { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Each expected output beside the one that came, and whether all agree.
fn compared(example: &Example, answer: &PredictResponse) -> (String, bool) {
    let mut text = String::new();
    let mut all = true;
    for expected in &example.response.outputs {
        let came = answer.outputs.iter().find(|output| output.name == expected.name);
        let Some(came) = came else {
            all = false;
            let _ = writeln!(text, "{}: expected, but not in the answer", expected.name);
            continue;
        };
        let values = json::elements(came);
        let same_shape =
            came.shape.iter().map(|&dim| usize::try_from(dim).ok()).eq(expected.shape.iter().map(|&dim| Some(dim)));
        let agrees = same_shape
            && values.len() == expected.data.len()
            && values.iter().zip(&expected.data).all(|(came, expected)| close(came, expected, example));
        all &= agrees;
        let _ = writeln!(text, "{}", expected.name);
        let _ = writeln!(text, "  answer    {}", shown(&values));
        let _ = writeln!(text, "  expected  {}", shown(&expected.data));
        let verdict = if agrees {
            "agree"
        } else if same_shape {
            "DIFFER"
        } else {
            "DIFFER in shape"
        };
        let _ = writeln!(text, "  they {verdict} (relative {:e}, absolute {:e})", example.rtol, example.atol);
    }
    (text, all)
}

/// |came - expected| <= atol + rtol * |expected|; what is no number must be equal, and NaN is NaN.
fn close(came: &Value, expected: &Value, example: &Example) -> bool {
    match (number(came), number(expected)) {
        (Some(came), Some(expected)) if came.is_finite() && expected.is_finite() => {
            (came - expected).abs() <= example.atol + example.rtol * expected.abs()
        }
        (Some(came), Some(expected)) => came == expected || (came.is_nan() && expected.is_nan()),
        _ => came == expected,
    }
}

/// As protobuf's JSON and example.json write numbers; `None` for texts and flags.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Null => Some(f64::NAN),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        value => value.as_f64(),
    }
}

/// The first few elements.
fn shown(values: &[Value]) -> String {
    let mut texts: Vec<String> = values.iter().take(8).map(ToString::to_string).collect();
    if values.len() > texts.len() {
        texts.push(format!("… {} in all", values.len()));
    }
    format!("[{}]", texts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::proto::Tensor, model::ExampleFile};

    fn verdict(doubles: Vec<f64>, shape: Vec<i64>) -> bool {
        let text = r#"{"examples": [{"request": {}, "rtol": 0.001, "response": {"outputs":
            [{"name": "p", "datatype": "FP64", "shape": [3], "data": [1.0, null, "Infinity"]}]}}]}"#;
        let example = &ExampleFile::parse(text).unwrap().examples[0];
        let output = Tensor { name: "p".into(), shape, doubles, ..Default::default() };
        let answer = PredictResponse { outputs: vec![output], ..Default::default() };
        compared(example, &answer).1
    }

    #[test]
    fn an_answer_agrees_within_its_tolerance() {
        assert!(verdict(vec![1.0009, f64::NAN, f64::INFINITY], vec![3]));
        assert!(!verdict(vec![1.0011, f64::NAN, f64::INFINITY], vec![3]));
        assert!(!verdict(vec![1.0, 0.0, f64::INFINITY], vec![3]));
        assert!(!verdict(vec![1.0, f64::NAN, f64::NEG_INFINITY], vec![3]));
        assert!(!verdict(vec![1.0, f64::NAN], vec![3]));
        assert!(!verdict(vec![1.0, f64::NAN, f64::INFINITY], vec![3, 1]));
    }
}
