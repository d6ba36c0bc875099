//! Of the requests and answers of `sconce.v1`.

use super::*;
use crate::model::bytes_from;
use std::collections::BTreeMap;

fn floats(name: &str, shape: &[i64], floats: Vec<f32>) -> pb::Tensor {
    pb::Tensor { name: name.into(), shape: shape.to_vec(), floats, ..pb::Tensor::default() }
}

fn value(kind: Kind) -> prost_types::Value {
    prost_types::Value { kind: Some(kind) }
}

fn one_row(kind: Kind) -> Struct {
    Struct { fields: BTreeMap::from([("rsi_14".into(), value(kind))]) }
}

fn output(dtype: DType, shape: &[usize], data: bytes::Bytes) -> Tensor {
    Tensor::new("y".into(), dtype, shape.into(), data).expect("a right tensor")
}

#[test]
fn one_form_of_data_and_no_more() {
    let (_, form) = data(vec![floats("x", &[2], vec![1.0, 2.0])], vec![], None).expect("typed");
    assert_eq!(form, Form::Typed);
    let raw = pb::Tensor { raw: bytes::Bytes::from_static(&[0; 8]), ..pb::Tensor::default() };
    assert_eq!(data(vec![raw], vec![], None).expect("raw").1, Form::Raw);
    assert_eq!(data(vec![], vec![one_row(Kind::NumberValue(1.0))], None).expect("rows").1, Form::Rows);

    let both = data(vec![floats("x", &[], vec![1.0])], vec![one_row(Kind::NullValue(0))], None);
    assert_eq!(both.expect_err("two forms").reason(), "AMBIGUOUS_DATA");
    let both = data(vec![], vec![one_row(Kind::NullValue(0))], Some(pb::Table::default()));
    assert_eq!(both.expect_err("two forms").reason(), "AMBIGUOUS_DATA");
    let mut both = floats("x", &[1], vec![1.0]);
    both.raw = bytes::Bytes::from_static(&[0; 4]);
    assert_eq!(tensor(both).expect_err("raw and typed").reason(), "AMBIGUOUS_CONTENTS");
}

#[test]
fn rows_hold_scalars_and_null_is_missing() {
    let row = |kind| super::row(one_row(kind));
    assert_eq!(row(Kind::NullValue(0)).expect("fine"), [("rsi_14".to_owned(), Value::Null)]);
    let nan = row(Kind::NumberValue(f64::NAN)).expect("NaN is data");
    assert!(matches!(nan[0].1, Value::Number(number) if number.is_nan()));
    let list = prost_types::ListValue { values: vec![] };
    let error = row(Kind::ListValue(list)).expect_err("a list");
    assert_eq!(error.reason(), "UNSUPPORTED_VALUE");
    assert!(error.message().contains("rsi_14"));
}

#[test]
fn a_table_is_a_rectangle() {
    let table = |names: &[&str], values: usize| {
        super::table(pb::Table {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            values: vec![0.0; values],
        })
    };
    assert!(table(&["a", "b"], 6).is_ok());
    for (names, values) in [(&["a", "b"][..], 5), (&[], 0), (&["a"], 0)] {
        assert_eq!(table(names, values).expect_err("no rectangle").reason(), "TABLE_MISMATCH");
    }
}

#[test]
fn values_unknown_to_the_protocol_are_refused() {
    let mut strange = floats("x", &[], vec![1.0]);
    strange.dtype = 99;
    assert_eq!(tensor(strange).expect_err("no such type").reason(), "UNKNOWN_ENUM_VALUE");
    assert!(priority(7).is_err());
    let unset = [("p".to_owned(), pb::ParameterValue { value: None })];
    assert_eq!(parameters(unset).expect_err("no value").reason(), "INVALID_PARAMETER");
}

#[test]
fn typed_answers_stand_in_the_field_of_their_type() {
    let typed = |dtype, shape: &[usize], data| tensor_of(output(dtype, shape, data), Form::Typed);
    assert_eq!(typed(DType::Fp32, &[2], bytes_from(vec![1.5f32, f32::NAN])).floats[0], 1.5);
    assert_eq!(typed(DType::Int8, &[2], bytes_from(vec![-1i8, 2])).ints, [-1, 2]);
    assert_eq!(typed(DType::Uint64, &[1], bytes_from(vec![u64::MAX])).uints, [u64::MAX]);
    assert_eq!(typed(DType::Bf16, &[1], bytes_from(vec![half::bf16::from_f32(2.0)])).floats, [2.0]);
    let texts = crate::model::length_prefixed(&["ok", ""]);
    assert_eq!(typed(DType::Bytes, &[2], texts).strings, ["ok", ""]);
    let blobs = crate::model::length_prefixed(&[&[0xffu8][..]]);
    assert_eq!(typed(DType::Bytes, &[1], blobs).blobs, [&[0xffu8][..]]);
}

#[test]
fn floats_show_their_own_digits_and_no_more() {
    for (value, shown) in [
        (17.630634f32, "17.630634"),
        (0.1, "0.1"),
        (-3.0, "-3.0"),
        (f32::MAX, "3.4028235e38"),
        (f32::MIN_POSITIVE, "1.1754944e-38"),
        (1e-45, "1e-45"),
    ] {
        let double = shortest(value);
        assert_eq!(format!("{double:?}"), shown);
        assert_eq!(double as f32, value);
    }
    let rows = rows_of(&[output(DType::Fp32, &[2], bytes_from(vec![0.1f32, f32::NEG_INFINITY]))], 2);
    assert_eq!(rows[0].fields["y"], value(Kind::NumberValue(0.1)));
    assert_eq!(rows[1].fields["y"], value(Kind::StringValue("-Infinity".into())));
    assert!(shortest(f32::NAN).is_nan());
}

#[test]
fn rows_out_are_scalars_or_lists() {
    let narrow = output(DType::Fp64, &[2], bytes_from(vec![0.25, f64::INFINITY]));
    let wide = output(DType::Int32, &[2, 2], bytes_from(vec![1, 2, 3, 4]));
    let rows = rows_of(&[narrow], 2);
    assert_eq!(rows[0].fields["y"], value(Kind::NumberValue(0.25)));
    assert_eq!(rows[1].fields["y"], value(Kind::StringValue("Infinity".into())));
    let rows = rows_of(&[wide], 2);
    let list = prost_types::ListValue { values: vec![value(Kind::NumberValue(3.0)), value(Kind::NumberValue(4.0))] };
    assert_eq!(rows[1].fields["y"], value(Kind::ListValue(list)));
    let whole = output(DType::Fp64, &[3], bytes_from(vec![1.0, 2.0, 3.0]));
    assert_eq!(rows_of(&[whole], 1).len(), 1, "a model that does not batch has one row");
    let empty = output(DType::Fp64, &[0], bytes::Bytes::new());
    assert!(rows_of(&[empty], 0).is_empty());
}
