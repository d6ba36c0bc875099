//! Five lines of Python for Triton's client, between the two that hand them to `python3`.

use std::{borrow::Cow, net::SocketAddr};

use serde_json::{Value, json};

use super::reachable;
use crate::{
    cli::stored::Stored,
    model::{DType, Example, ExampleTensor, Signature},
};

/// One input: its head, and the Python expression of its array.
struct Input {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    array: String,
}

/// Up to here an example's values are written out.
const LITERAL_ELEMENTS_MAX: usize = 64;

/// An example with its own values. It must have `literal_elements`.
pub fn python_example(stored: &Stored, address: SocketAddr) -> String {
    let inputs: Vec<Input> = stored.example.request.inputs.iter().map(Input::of_example).collect();
    let output = stored.example.response.outputs.first();
    let version = stored.version.to_string();
    lines(stored.model.as_str(), Some(&version), &inputs, output.map(|output| &*output.name), address)
}

/// A call with zeros in the model's own shapes; a dimension that may vary is 1.
pub fn python_zeros(model: &str, signature: &Signature, address: SocketAddr) -> String {
    let inputs: Vec<Input> = signature
        .inputs
        .iter()
        .map(|spec| {
            let shape: Vec<usize> = spec.shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(1)).collect();
            let array = zeros(spec.dtype, &shape);
            Input { name: spec.name.to_string(), dtype: spec.dtype, shape, array }
        })
        .collect();
    let output = signature.outputs.first();
    lines(model, None, &inputs, output.map(|output| &*output.name), address)
}

/// All of an example's values as they would be written; `None` where they are too many or no tensors, or come with
/// parameters, which the short lines leave out.
pub fn literal_elements(example: &Example) -> Option<String> {
    let request = &example.request;
    let elements: usize = request.inputs.iter().map(|input| input.data.len()).sum();
    let plain = request.rows.is_empty() && request.parameters.is_empty() && !request.inputs.is_empty();
    (plain && elements <= LITERAL_ELEMENTS_MAX)
        .then(|| request.inputs.iter().map(|input| Input::of_example(input).array).collect())
}

fn lines(model: &str, version: Option<&str>, inputs: &[Input], output: Option<&str>, address: SocketAddr) -> String {
    let variable = |place: usize| match inputs.len() {
        1 => "x".to_string(),
        _ => format!("x{place}"),
    };
    let mut code = Vec::new();
    for (place, input) in inputs.iter().enumerate() {
        let (x, name, dtype) = (variable(place), json!(input.name), input.dtype.as_str());
        code.push(format!(r#"{x} = triton.InferInput({name}, {:?}, "{dtype}")"#, input.shape));
        code.push(format!("{x}.set_data_from_numpy({})", input.array));
    }
    let variables: Vec<String> = (0..inputs.len()).map(variable).collect();
    let version = version.map_or(String::new(), |version| format!(r#", model_version="{version}""#));
    format!(
        r#"python3 - <<'END'    # pip install numpy 'tritonclient[grpc]'
import numpy as np, tritonclient.grpc as triton
{code}
answer = triton.InferenceServerClient("{address}").infer({model}, [{inputs}]{version})
print(answer.as_numpy({output}))
END"#,
        code = code.join("\n"),
        address = reachable(address),
        model = json!(model),
        inputs = variables.join(", "),
        output = json!(output.unwrap_or_default()),
    )
}

fn zeros(dtype: DType, shape: &[usize]) -> String {
    match dtype {
        DType::Bytes => format!(r#"np.full({shape:?}, "", np.object_)"#),
        dtype => format!("np.zeros({shape:?}, {})", numpy(dtype)),
    }
}

/// What the client takes for a type: BF16 travels as FP32.
fn numpy(dtype: DType) -> Cow<'static, str> {
    match dtype {
        DType::Bool => "np.bool_".into(),
        DType::Bytes => "np.object_".into(),
        DType::Fp16 => "np.float16".into(),
        DType::Bf16 | DType::Fp32 => "np.float32".into(),
        DType::Fp64 => "np.float64".into(),
        dtype => format!("np.{}", dtype.as_str().to_lowercase()).into(),
    }
}

/// Lists in lists, as deep as the shape says.
fn nested(shape: &[usize], elements: &[String]) -> String {
    let Some((_, inner)) = shape.split_first() else {
        return elements.concat();
    };
    let each = inner.iter().product::<usize>().max(1);
    let items: Vec<String> = elements.chunks(each).map(|chunk| nested(inner, chunk)).collect();
    format!("[{}]", items.join(", "))
}

/// An element of example.json as Python writes it.
fn literal(value: &Value, dtype: DType) -> String {
    match value {
        Value::Null => "np.nan".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::String(text) if dtype != DType::Bytes => match text.as_str() {
            "Infinity" => "np.inf".into(),
            "-Infinity" => "-np.inf".into(),
            _ => "np.nan".into(),
        },
        value => value.to_string(),
    }
}

// === impl Input ===

impl Input {
    fn of_example(tensor: &ExampleTensor) -> Self {
        let elements: Vec<String> = tensor.data.iter().map(|value| literal(value, tensor.datatype)).collect();
        let array = match elements.is_empty() {
            true => zeros(tensor.datatype, &tensor.shape),
            false => format!("np.array({}, {})", nested(&tensor.shape, &elements), numpy(tensor.datatype)),
        };
        Self { name: tensor.name.clone(), dtype: tensor.datatype, shape: tensor.shape.clone(), array }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ExampleFile, TensorSpec};

    fn address() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 7070))
    }

    fn stored(request: &str) -> Stored {
        let text = format!(
            r#"{{"examples": [{{"request": {request}, "response": {{"outputs":
            [{{"name": "p", "datatype": "FP64", "shape": [], "data": [0]}}]}}}}]}}"#
        );
        Stored {
            model: crate::model::ModelName::new("m").unwrap(),
            version: "1".parse().unwrap(),
            is_highest: true,
            file: "example.json".into(),
            index: 0,
            example: ExampleFile::parse(&text).unwrap().examples.remove(0),
        }
    }

    #[test]
    fn an_example_is_five_lines_with_its_own_values() {
        let stored = stored(
            r#"{"inputs": [{"name": "a", "datatype": "FP32", "shape": [2, 2], "data": [1, 2.5, null, "-Infinity"]}]}"#,
        );
        assert_eq!(
            python_example(&stored, address()),
            r#"python3 - <<'END'    # pip install numpy 'tritonclient[grpc]'
import numpy as np, tritonclient.grpc as triton
x = triton.InferInput("a", [2, 2], "FP32")
x.set_data_from_numpy(np.array([[1, 2.5], [np.nan, -np.inf]], np.float32))
answer = triton.InferenceServerClient("127.0.0.1:7070").infer("m", [x], model_version="1.0.0")
print(answer.as_numpy("p"))
END"#
        );
    }

    #[test]
    fn scalars_texts_and_flags_are_written_as_python_does() {
        let array = |tensor: &str| {
            let request = format!(r#"{{"inputs": [{{"name": "a", {tensor}}}]}}"#);
            literal_elements(&stored(&request).example).unwrap()
        };
        assert_eq!(array(r#""datatype": "INT64", "shape": [], "data": [7]"#), "np.array(7, np.int64)");
        assert_eq!(
            array(r#""datatype": "BOOL", "shape": [2], "data": [true, false]"#),
            "np.array([True, False], np.bool_)"
        );
        assert_eq!(
            array(r#""datatype": "BYTES", "shape": [1], "data": ["it's \"NaN\""]"#),
            r#"np.array(["it's \"NaN\""], np.object_)"#
        );
        assert_eq!(array(r#""datatype": "UINT8", "shape": [0, 3], "data": []"#), "np.zeros([0, 3], np.uint8)");
    }

    #[test]
    fn rows_parameters_and_long_examples_are_not_written_out() {
        let written = |request: &str| literal_elements(&stored(request).example);
        let long = vec!["0"; LITERAL_ELEMENTS_MAX + 1].join(",");
        let tensor = r#"{"name": "a", "datatype": "INT8", "shape": [1], "data": [1]}"#;
        assert!(written(&format!(r#"{{"inputs": [{tensor}]}}"#)).is_some());
        assert!(written(&format!(r#"{{"inputs": [{tensor}], "parameters": {{"k": 1}}}}"#)).is_none());
        assert!(written(r#"{"rows": [{"a": 1}]}"#).is_none());
        let shape = LITERAL_ELEMENTS_MAX + 1;
        let tensor = format!(r#"{{"name": "a", "datatype": "INT8", "shape": [{shape}], "data": [{long}]}}"#);
        assert!(written(&format!(r#"{{"inputs": [{tensor}]}}"#)).is_none());
    }

    #[test]
    fn without_an_example_there_are_zeros() {
        let signature = Signature {
            inputs: vec![TensorSpec::new("a", DType::Bf16, &[-1, 3]), TensorSpec::new("b", DType::Bytes, &[2])],
            outputs: vec![TensorSpec::new("y", DType::Fp32, &[-1])],
        };
        let text = python_zeros("m", &signature, address());
        for line in [
            "x0.set_data_from_numpy(np.zeros([1, 3], np.float32))",
            r#"x1.set_data_from_numpy(np.full([2], "", np.object_))"#,
            r#"answer = triton.InferenceServerClient("127.0.0.1:7070").infer("m", [x0, x1])"#,
            r#"print(answer.as_numpy("y"))"#,
        ] {
            assert!(text.lines().any(|written| written == line), "{text}");
        }
    }
}
