//! Of the count: the layouts against the descriptors, and what is refused.

use std::collections::HashMap;

use prost::Message;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet, field_descriptor_proto::Label,
    field_descriptor_proto::Type,
};

use super::*;
use crate::server::proto::{
    DESCRIPTORS,
    inference::{ModelInferRequest, model_infer_request::InferInputTensor},
    sconce::v1::PredictRequest,
};

/// All messages by their full names.
fn messages() -> HashMap<String, DescriptorProto> {
    fn add(all: &mut HashMap<String, DescriptorProto>, scope: &str, message: DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        for nested in message.nested_type.clone() {
            add(all, &name, nested);
        }
        all.insert(name, message);
    }
    let mut all = HashMap::new();
    for file in FileDescriptorSet::decode(DESCRIPTORS).expect("a descriptor set").file {
        let scope = format!(".{}", file.package());
        for message in file.message_type {
            add(&mut all, &scope, message);
        }
    }
    all
}

/// Whether each occurrence makes something of its own. Numbers are not counted: they grow eightfold at most.
fn multiplies(field: &FieldDescriptorProto) -> bool {
    field.label() == Label::Repeated && matches!(field.r#type(), Type::Message | Type::String | Type::Bytes)
}

/// Whether anything in the message comes in any number.
fn holds_many(all: &HashMap<String, DescriptorProto>, name: &str, seen: &mut Vec<String>) -> bool {
    if seen.iter().any(|known| known == name) {
        return false;
    }
    seen.push(name.to_owned());
    all[name]
        .field
        .iter()
        .any(|field| multiplies(field) || (field.r#type() == Type::Message && holds_many(all, field.type_name(), seen)))
}

fn compare(all: &HashMap<String, DescriptorProto>, name: &str, layout: &Layout, depth: usize) {
    let mut rows = 0;
    for field in &all[name].field {
        let inner = field.r#type() == Type::Message;
        let deep = inner && holds_many(all, field.type_name(), &mut Vec::new());
        let row = layout.iter().find(|row| row.number == field.number() as u64);
        assert_eq!(row.is_some(), multiplies(field) || deep, "{name}.{}", field.name());
        let Some(row) = row else { continue };
        rows += 1;
        let counted = row.counts != Counts::Nothing;
        assert_eq!(counted, multiplies(field), "{name}.{}", field.name());
        assert_eq!(!row.within.is_empty(), deep, "{name}.{}", field.name());
        if deep && depth > 0 {
            compare(all, field.type_name(), row.within, depth - 1);
        }
    }
    assert_eq!(rows, layout.len(), "{name}: a row without a field");
}

#[test]
fn the_layouts_are_those_of_the_descriptors() {
    let all = messages();
    let layouts: [(&str, &Layout); 8] = [
        (".inference.ModelInferRequest", &MODEL_INFER),
        (".sconce.v1.PredictRequest", &PREDICT),
        (".sconce.v1.RecordOutcomeRequest", &RECORD_OUTCOME),
        (".inference.RepositoryModelLoadRequest", &REPOSITORY),
        (".inference.RepositoryModelUnloadRequest", &REPOSITORY),
        (".sconce.v1.SetLabelsRequest", &SET_LABELS),
        (".sconce.v1.SetRouteRequest", &SET_ROUTE),
        (".sconce.v1.DeployRequest", &DEPLOY),
    ];
    for (message, layout) in layouts {
        compare(&all, message, layout, 8);
    }
    for file in FileDescriptorSet::decode(DESCRIPTORS).expect("a descriptor set").file {
        for method in file.service.iter().flat_map(|service| &service.method) {
            let input = method.input_type();
            let counted = layouts.iter().any(|(message, _)| *message == input);
            let many = holds_many(&all, input, &mut Vec::new());
            assert_eq!(counted, many, "{input} has no layout");
        }
    }
}

fn reason(message: &[u8], layout: &Layout) -> Option<&'static str> {
    check(message, layout).err().map(|error| error.reason())
}

#[test]
fn two_bytes_a_tensor_are_refused_and_large_tensors_are_not() {
    let inputs = [0x2a, 0].repeat(MESSAGE_PARTS_MAX);
    assert_eq!(reason(&inputs, &MODEL_INFER), None);
    assert_eq!(reason(&[&inputs[..], &[0x2a, 0]].concat(), &MODEL_INFER), Some("TOO_MANY_FIELDS"));
    let large = ModelInferRequest {
        inputs: vec![InferInputTensor::default()],
        raw_input_contents: vec![vec![0x2a; 1 << 20].into()],
        ..ModelInferRequest::default()
    };
    assert_eq!(reason(&large.encode_to_vec(), &MODEL_INFER), None);
}

#[test]
fn values_are_counted_wherever_they_stand() {
    // {"rows": [{"a": [null, null, …]}]}: each null is a value of two bytes.
    let nested = |values: usize| {
        let list = prost_types::ListValue { values: vec![prost_types::Value::default(); values] };
        let value = prost_types::Value { kind: Some(prost_types::value::Kind::ListValue(list)) };
        let row = prost_types::Struct { fields: [("a".to_owned(), value)].into() };
        let rows = vec![row];
        PredictRequest { rows, ..PredictRequest::default() }.encode_to_vec()
    };
    assert_eq!(reason(&nested(MESSAGE_VALUES_MAX - 2), &PREDICT), None);
    assert_eq!(reason(&nested(MESSAGE_VALUES_MAX - 1), &PREDICT), Some("TOO_MANY_FIELDS"));
}

#[test]
fn what_is_no_message_is_left_to_the_decoder() {
    for broken in [&[0xff; 20][..], &[0x2a, 0xff, 0xff], &[0x2a, 5, 0], &[7], &[0x2b, 0x2c, 0x29]] {
        assert_eq!(reason(broken, &MODEL_INFER), None, "{broken:?}");
    }
    // A list in a list in a list: as deep as it is long.
    let mut deep = Vec::new();
    for _ in 0..5_000 {
        let list = [&[0x0a][..], &length(deep.len()), &deep].concat();
        deep = [&[0x32][..], &length(list.len()), &list].concat();
    }
    assert_eq!(reason(&deep, &VALUE), None);
}

fn length(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}
