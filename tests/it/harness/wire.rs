//! Protocol buffers by hand: just enough to write and to change ONNX files that no library would write.

/// A field that holds bytes, a text or a message.
pub fn field(number: u32, value: &[u8]) -> Vec<u8> {
    let mut field = Vec::new();
    prost::encoding::encode_varint(u64::from(number << 3 | 2), &mut field);
    prost::encoding::encode_varint(value.len() as u64, &mut field);
    field.extend(value);
    field
}

/// A field that holds a number.
pub fn number(number: u32, value: u64) -> Vec<u8> {
    let mut field = Vec::new();
    prost::encoding::encode_varint(u64::from(number << 3), &mut field);
    prost::encoding::encode_varint(value, &mut field);
    field
}

/// The message with every message at the end of `path` changed.
pub fn edit(message: &[u8], path: &[u32], change: &mut dyn FnMut(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let Some((first, rest)) = path.split_first() else {
        return change(message);
    };
    let mut edited = Vec::new();
    for (tag, whole, value) in fields(message) {
        match value.filter(|_| tag == *first) {
            Some(value) => edited.extend(field(tag, &edit(value, rest, change))),
            None => edited.extend(whole),
        }
    }
    edited
}

/// The message without one of its fields.
pub fn without(message: &[u8], left_out: u32) -> Vec<u8> {
    let kept = fields(message).into_iter().filter(|(tag, ..)| *tag != left_out);
    kept.flat_map(|(_, whole, _)| whole.iter().copied()).collect()
}

/// A field's number, all its bytes, and its value where that has a length.
type Field<'a> = (u32, &'a [u8], Option<&'a [u8]>);

fn fields(message: &[u8]) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let begin = rest;
        let mut varint = || prost::encoding::decode_varint(&mut rest).expect("a field of a right message");
        let key = varint();
        let value = match key & 7 {
            0 => {
                varint();
                None
            }
            2 => {
                let length = usize::try_from(varint()).expect("a length");
                let (value, after) = rest.split_at(length);
                rest = after;
                Some(value)
            }
            fixed => {
                rest = &rest[if fixed == 1 { 8 } else { 4 }..];
                None
            }
        };
        let number = u32::try_from(key >> 3).expect("a field's number");
        fields.push((number, &begin[..begin.len() - rest.len()], value));
    }
    fields
}
