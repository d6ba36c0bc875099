//! Small ONNX models, written field by field: what no exporter would write, too.

/// A protobuf message of length-delimited fields and numbers.
pub fn message(fields: &[(u8, &[u8])], numbers: &[(u8, u64)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &(number, data) in fields {
        bytes.extend(varint(u64::from(number) << 3 | 2));
        bytes.extend(varint(data.len() as u64));
        bytes.extend(data);
    }
    for &(number, value) in numbers {
        bytes.extend(varint(u64::from(number) << 3));
        bytes.extend(varint(value));
    }
    bytes
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

pub fn value_info(name: &str, element: u64) -> Vec<u8> {
    let dims = message(&[(1, &message(&[(2, b"N")], &[]))], &[]);
    let kind = message(&[(1, &message(&[(2, &dims)], &[(1, element)]))], &[]);
    message(&[(1, name.as_bytes()), (2, &kind)], &[])
}

pub fn node(operator: &str, inputs: &[&str], output: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = inputs.iter().flat_map(|input| message(&[(1, input.as_bytes())], &[])).collect();
    bytes.extend(message(&[(2, output.as_bytes()), (3, b"n"), (4, operator.as_bytes())], &[]));
    bytes
}

/// A model of one graph, opset 17.
pub fn model(graph: &[u8]) -> Vec<u8> {
    message(&[(7, graph), (8, &message(&[], &[(2, 17)]))], &[(1, 9)])
}

pub fn matrix_info(name: &str, columns: u64) -> Vec<u8> {
    let rows = message(&[(2, b"N")], &[]);
    let dims = message(&[(1, &rows), (1, &message(&[], &[(1, columns)]))], &[]);
    let kind = message(&[(1, &message(&[(2, &dims)], &[(1, 1)]))], &[]);
    message(&[(1, name.as_bytes()), (2, &kind)], &[])
}
