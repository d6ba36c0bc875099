//! Lines to paste into a shell that make a first request.

mod python;

use std::{net::SocketAddr, path::Path};

use serde_json::json;

use super::{
    convert::data_type,
    stored::{STORE, Stored},
};
use crate::model::{DType, Signature, TensorSpec};

pub use python::{literal_elements, python_example, python_zeros};

/// A `grpcurl` call with the model's own names and shapes and zeros for its data; a dimension that may vary is 1.
///
/// What is long is made by the shell, since an argument has at most 128 KiB.
pub fn grpcurl_line(model: &str, signature: &Signature, address: SocketAddr) -> String {
    let mut request = Parts::default();
    request.add(&format!("{{\"model\":{},\"inputs\":[", json!(model)));
    for (place, input) in signature.inputs.iter().enumerate() {
        request.add(if place > 0 { "," } else { "" });
        request.add_tensor(input);
    }
    request.add("]}");
    request.line(&format!("{} sconce.v1.Inference/Predict", reachable(address)))
}

/// A version's example through `grpcurl`. `program` is how this program was called.
pub fn example_line(program: &str, stored: &Stored, store: &Path, address: SocketAddr) -> String {
    let (program, version, store) = (quoted(program), version_option(stored), store_option(store));
    let address = reachable(address);
    format!(
        "{program} example {}{version}{store} | grpcurl -plaintext -d @ {address} sconce.v1.Inference/Predict",
        stored.model
    )
}

/// The same through `sconce predict`, which compares the answer.
pub fn predict_line(program: &str, stored: &Stored, store: &Path, address: SocketAddr) -> String {
    let (program, version, store) = (quoted(program), version_option(stored), store_option(store));
    let server = match reachable(address).as_str() {
        "127.0.0.1:7070" => String::new(),
        other => format!(" --server {other}"),
    };
    format!("{program} predict {} --example{version}{store}{server}", stored.model)
}

/// An address to type: one that listens everywhere is reached by loopback.
fn reachable(address: SocketAddr) -> String {
    match (address.ip().is_unspecified(), address.is_ipv4()) {
        (true, true) => format!("127.0.0.1:{}", address.port()),
        (true, false) => format!("[::1]:{}", address.port()),
        (false, _) => address.to_string(),
    }
}

/// Named where the commands would take a higher version, which does not answer calls (yet).
fn version_option(stored: &Stored) -> String {
    match stored.is_highest {
        true => String::new(),
        false => format!(" --version {}", stored.version),
    }
}

fn store_option(store: &Path) -> String {
    match store == Path::new(STORE) {
        true => String::new(),
        false => format!(" --model-store {}", quoted(&store.to_string_lossy())),
    }
}

/// A word for the shell.
fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=+,@".contains(&byte);
    match !text.is_empty() && text.bytes().all(plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// A request as texts and repetitions.
#[derive(Default)]
struct Parts(Vec<Part>);

enum Part {
    Text(String),
    /// The text after the first, that many times.
    Repeated(&'static str, usize),
}

/// Up to here zeros are written out.
const WRITTEN_OUT_MAX: usize = 256;

// === impl Parts ===

impl Parts {
    fn add(&mut self, text: &str) {
        match self.0.last_mut() {
            Some(Part::Text(last)) => last.push_str(text),
            _ => self.0.push(Part::Text(text.into())),
        }
    }

    fn add_tensor(&mut self, spec: &TensorSpec) {
        let shape: Vec<i64> = spec.shape.iter().map(|&dim| if dim < 0 { 1 } else { dim }).collect();
        let elements = shape.iter().product::<i64>().max(0) as usize;
        let (field, zero, then) = zeros(spec.dtype);
        let dtype = data_type(spec.dtype).as_str_name();
        let name = json!(&*spec.name);
        self.add(&format!("{{\"name\":{name},\"dtype\":\"{dtype}\",\"shape\":{},\"{field}\":[", json!(shape)));
        if elements > 0 {
            self.add(zero);
        }
        match elements.saturating_sub(1) {
            more if more < WRITTEN_OUT_MAX => self.add(&then.repeat(more)),
            more => self.0.push(Part::Repeated(then, more)),
        }
        self.add("]}");
    }

    fn line(&self, target: &str) -> String {
        if let [Part::Text(text)] = self.0.as_slice() {
            return format!("grpcurl -plaintext -d {} {target}", quoted(text));
        }
        let printed = self.0.iter().map(|part| match part {
            Part::Text(text) => format!("printf %s {}", quoted(text)),
            Part::Repeated(text, count) => format!("printf {}%.0s $(seq {count})", quoted(text)),
        });
        let printed: Vec<String> = printed.collect();
        // The default of grpcurl's side of a message is unlimited, so only its input is long.
        format!("{{ {}; }} | grpcurl -plaintext -d @ {target}", printed.join("; "))
    }
}

/// The typed field, its zero, and the zero after another.
fn zeros(dtype: DType) -> (&'static str, &'static str, &'static str) {
    match dtype {
        DType::Bool => ("bools", "false", ",false"),
        DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64 => ("ints", "0", ",0"),
        DType::Uint8 | DType::Uint16 | DType::Uint32 | DType::Uint64 => ("uints", "0", ",0"),
        DType::Fp16 | DType::Bf16 | DType::Fp32 => ("floats", "0", ",0"),
        DType::Fp64 => ("doubles", "0", ",0"),
        DType::Bytes => ("strings", "\"\"", ",\"\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(inputs: &[TensorSpec]) -> String {
        let signature = Signature { inputs: inputs.to_vec(), outputs: vec![] };
        grpcurl_line("m", &signature, "0.0.0.0:7070".parse().unwrap())
    }

    /// What the shell gives to grpcurl, with `cat` in its place.
    fn request(line: &str) -> serde_json::Value {
        let script = match line.split_once(" | grpcurl") {
            Some((made, _)) => made.to_string(),
            None => format!("printf %s {}", line.split_once("-d ").unwrap().1.rsplit_once(" 127").unwrap().0),
        };
        let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        serde_json::from_slice(&out.stdout).unwrap()
    }

    #[test]
    fn a_small_model_is_one_word_of_the_shell() {
        let inputs = [
            TensorSpec::new("it's", DType::Fp32, &[-1, 3]),
            TensorSpec::new("flag", DType::Bool, &[]),
            TensorSpec::new("none", DType::Bytes, &[0]),
        ];
        let line = line(&inputs);
        assert_eq!(
            line,
            r#"grpcurl -plaintext -d '{"model":"m","inputs":[{"name":"it'\''s","dtype":"FP32","shape":[1,3],"floats":[0,0,0]},{"name":"flag","dtype":"BOOL","shape":[],"bools":[false]},{"name":"none","dtype":"BYTES","shape":[0],"strings":[]}]}' 127.0.0.1:7070 sconce.v1.Inference/Predict"#
        );
        assert_eq!(request(&line)["inputs"][0]["name"], "it's");
    }

    #[test]
    fn a_large_input_is_made_by_the_shell() {
        let inputs = [
            TensorSpec::new("100%s\\n", DType::Uint8, &[-1, 224, 224, 3]),
            TensorSpec::new("texts", DType::Bytes, &[300]),
        ];
        let line = line(&inputs);
        assert!(line.len() < 400, "{line}");
        let request = request(&line);
        assert_eq!(request["inputs"][0]["name"], "100%s\\n");
        assert_eq!(request["inputs"][0]["uints"].as_array().unwrap().len(), 224 * 224 * 3);
        assert_eq!(request["inputs"][1]["strings"].as_array().unwrap().len(), 300);
    }

    #[test]
    fn an_address_that_listens_everywhere_is_reached_by_loopback() {
        let reached = |address: &str| reachable(address.parse().unwrap());
        assert_eq!(reached("0.0.0.0:1"), "127.0.0.1:1");
        assert_eq!(reached("[::]:1"), "[::1]:1");
        assert_eq!(reached("10.0.0.1:1"), "10.0.0.1:1");
    }
}
