//! Requests as the two protocols write them: the method, the bytes, and the first call, which shows that all is well.

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::ValueEnum;

use super::wire::{MODEL_INFER, frame};
use crate::{
    cli::{
        client,
        proto::{
            self, ParameterValue,
            oip::{
                InferParameter, ModelInferRequest, infer_parameter::ParameterChoice,
                model_infer_request::InferInputTensor,
            },
            parameter_value,
            predict_request::Select,
        },
    },
    model::{Contents, DType},
};

/// Which service is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Sconce's own
    Sconce,
    /// The Open Inference Protocol, which other servers speak, too
    Oip,
}

// === impl Protocol ===

impl Protocol {
    pub fn method(self) -> &'static str {
        match self {
            Protocol::Sconce => "/sconce.v1.Inference/Predict",
            Protocol::Oip => MODEL_INFER,
        }
    }

    /// The request behind gRPC's prefix.
    pub fn frame(self, request: proto::PredictRequest) -> anyhow::Result<Bytes> {
        match self {
            Protocol::Sconce => Ok(frame(&request)),
            Protocol::Oip => Ok(frame(&to_oip(request)?)),
        }
    }

    /// Calls once, as any client does, and again where the server asks for it. The version that answered.
    pub async fn ask(self, server: &str, request: proto::PredictRequest) -> anyhow::Result<String> {
        match self {
            Protocol::Sconce => {
                let client = client::inference(server).await?;
                let answer = client::with_retries(|| {
                    let (mut client, call) = (client.clone(), client::call(request.clone(), super::PATIENCE));
                    async move { client.predict(call).await }
                });
                Ok(answer.await?.served.unwrap_or_default().version)
            }
            Protocol::Oip => {
                let client = client::open_inference(server).await?;
                let request = to_oip(request)?;
                let answer = client::with_retries(|| {
                    let (mut client, call) = (client.clone(), client::call(request.clone(), super::PATIENCE));
                    async move { client.model_infer(call).await }
                });
                Ok(answer.await?.model_version)
            }
        }
    }
}

/// The tensor with its elements as bytes.
pub fn to_raw(tensor: proto::Tensor) -> anyhow::Result<proto::Tensor> {
    let dtype = DType::parse(tensor.dtype().as_str_name());
    let dtype = dtype.with_context(|| format!("tensor '{}' has no type", tensor.name))?;
    let proto::Tensor { name, dtype: number, shape, raw, bools, ints, uints, floats, doubles, strings, blobs } = tensor;
    let contents = if !raw.is_empty() {
        Contents::Raw(raw)
    } else if !bools.is_empty() {
        Contents::Bools(bools)
    } else if !ints.is_empty() {
        Contents::Ints(ints)
    } else if !uints.is_empty() {
        Contents::Uints(uints)
    } else if !floats.is_empty() {
        Contents::Floats(floats)
    } else if !doubles.is_empty() {
        Contents::Doubles(doubles)
    } else if !strings.is_empty() {
        Contents::Blobs(strings.into_iter().map(Bytes::from).collect())
    } else {
        Contents::Blobs(blobs)
    };
    let is_empty = matches!(&contents, Contents::Blobs(blobs) if blobs.is_empty());
    let raw = if is_empty { Bytes::new() } else { contents.into_bytes(&name, dtype)? };
    Ok(proto::Tensor { name, dtype: number, shape, raw, ..Default::default() })
}

/// The same question in the other protocol, whose tensors are raw.
fn to_oip(request: proto::PredictRequest) -> anyhow::Result<ModelInferRequest> {
    ensure!(
        request.rows.is_empty() && request.table.is_none(),
        "the Open Inference Protocol has no rows of named features: use --protocol sconce, or a file of JSON lines whose \
         values are lists"
    );
    let mut asked = ModelInferRequest {
        model_name: request.model,
        model_version: match request.select {
            Some(Select::Version(word) | Select::Label(word)) => word,
            None => String::new(),
        },
        ..Default::default()
    };
    let parameters = request.parameters.into_iter();
    asked.parameters = parameters.map(|(name, value)| (name, to_oip_parameter(value))).collect();
    for tensor in request.inputs {
        let proto::Tensor { name, shape, raw, .. } = to_raw(tensor.clone())?;
        let datatype = tensor.dtype().as_str_name().to_owned();
        asked.inputs.push(InferInputTensor { name, datatype, shape, ..Default::default() });
        asked.raw_input_contents.push(raw);
    }
    Ok(asked)
}

fn to_oip_parameter(parameter: ParameterValue) -> InferParameter {
    let choice = parameter.value.map(|value| match value {
        parameter_value::Value::BoolValue(flag) => ParameterChoice::BoolParam(flag),
        parameter_value::Value::Int64Value(number) => ParameterChoice::Int64Param(number),
        parameter_value::Value::DoubleValue(number) => ParameterChoice::DoubleParam(number),
        parameter_value::Value::StringValue(text) => ParameterChoice::StringParam(text),
    });
    InferParameter { parameter_choice: choice }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::proto::DataType;

    #[test]
    fn both_protocols_carry_the_same_bytes() {
        let tensor = proto::Tensor {
            name: "x".into(),
            dtype: DataType::Fp32.into(),
            shape: vec![1, 2],
            floats: vec![1.0, -2.5],
            ..Default::default()
        };
        let raw = to_raw(tensor.clone()).unwrap();
        assert_eq!(raw.raw[..], [1.0f32.to_le_bytes(), (-2.5f32).to_le_bytes()].concat()[..]);
        assert!(raw.floats.is_empty());
        assert_eq!(to_raw(raw.clone()).unwrap(), raw, "it stays as it is");
        let request = proto::PredictRequest {
            model: "m".into(),
            select: Some(Select::Label("champion".into())),
            inputs: vec![tensor],
            ..Default::default()
        };
        let asked = to_oip(request).unwrap();
        assert_eq!((asked.model_name.as_str(), asked.model_version.as_str()), ("m", "champion"));
        assert_eq!((asked.inputs[0].datatype.as_str(), &asked.raw_input_contents[0]), ("FP32", &raw.raw));
    }

    #[test]
    fn rows_of_names_have_no_place_in_the_open_protocol() {
        let request = proto::PredictRequest { table: Some(proto::Table::default()), ..Default::default() };
        assert!(to_oip(request).unwrap_err().to_string().contains("--protocol sconce"));
    }
}
