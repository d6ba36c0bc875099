//! Integer divisions by what a request brings: one caller's 0 or -1 can end the process there.
//!
//! `proto::survey` asks it of the main graph. Pure.

use std::collections::HashSet;

use super::proto::{Broken, Field, Fields, for_each_message, number_field, text, text_field};

const INT32: u64 = 6;
const INT64: u64 = 7;

/// `Div` and `Mod` nodes, by operator and the name of the node or of its output.
///
/// Follows integers of the main graph's inputs through the operators that hand them on. Cautious rather than complete:
/// it ends at other operators and at nested graphs.
pub fn by_request(graph: &[u8]) -> Result<Vec<(&str, &str)>, Broken> {
    let mut found = Vec::new();
    let mut initialized: HashSet<&str> = HashSet::new();
    for_each_message(graph, &[5], |tensor| {
        initialized.insert(text_field(tensor, 8)?);
        Ok(())
    })?;
    let mut from_request: HashSet<&str> = HashSet::new();
    let mut integers: HashSet<&str> = HashSet::new();
    for_each_message(graph, &[11], |info| {
        let name = text_field(info, 1)?;
        if !initialized.contains(name) {
            from_request.insert(name);
            if is_integer(info)? {
                integers.insert(name);
            }
        }
        Ok(())
    })?;
    for_each_message(graph, &[1], |node| {
        let node = Node::parse(node)?;
        let divisor = node.inputs.get(1);
        if matches!(node.operator, "Div" | "Mod")
            && divisor.is_some_and(|divisor| from_request.contains(divisor) && integers.contains(divisor))
        {
            found.push((node.operator, node.shown()));
        }
        if node.inputs.iter().any(|input| from_request.contains(input)) {
            from_request.extend(&node.outputs);
            if node.gives_integers(&integers) {
                integers.extend(&node.outputs);
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// The parts of a NodeProto that a division note needs.
#[derive(Default)]
struct Node<'a> {
    inputs: Vec<&'a str>,
    outputs: Vec<&'a str>,
    name: &'a str,
    operator: &'a str,
    cast_to: Option<u64>,
}

// === impl Node ===

impl<'a> Node<'a> {
    fn parse(node: &'a [u8]) -> Result<Self, Broken> {
        let mut parsed = Node::default();
        for field in Fields(node) {
            match field? {
                (1, Field::Bytes(name)) => parsed.inputs.push(text(name)?),
                (2, Field::Bytes(name)) => parsed.outputs.push(text(name)?),
                (3, Field::Bytes(name)) => parsed.name = text(name)?,
                (4, Field::Bytes(name)) => parsed.operator = text(name)?,
                (5, Field::Bytes(attribute)) if parsed.cast_to.is_none() && text_field(attribute, 1)? == "to" => {
                    parsed.cast_to = number_field(attribute, 3)?;
                }
                _ => {}
            }
        }
        Ok(parsed)
    }

    /// Exporters that name no nodes still name what comes out of them.
    fn shown(&self) -> &'a str {
        match (self.name, self.outputs.first()) {
            ("", Some(output)) => output,
            (name, _) => name,
        }
    }

    fn gives_integers(&self, integers: &HashSet<&str>) -> bool {
        match self.operator {
            "Cast" => matches!(self.cast_to, Some(INT32 | INT64)),
            // A dimension is 0 where a tensor is empty.
            "Shape" | "Size" => true,
            "Identity" | "Squeeze" | "Unsqueeze" | "Reshape" | "Flatten" | "Transpose" | "Gather" | "Slice"
            | "Split" | "Concat" | "Expand" | "Tile" | "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Neg" | "Abs"
            | "Min" | "Max" | "ReduceSum" | "ReduceMax" | "ReduceMin" => {
                self.inputs.first().is_some_and(|input| integers.contains(input))
            }
            _ => false,
        }
    }
}

/// Whether a ValueInfoProto is an int32 or int64 tensor.
fn is_integer(info: &[u8]) -> Result<bool, Broken> {
    let mut integer = false;
    for_each_message(info, &[2], |kind| {
        for_each_message(kind, &[1], |tensor| {
            integer |= matches!(number_field(tensor, 1)?, Some(INT32 | INT64));
            Ok(())
        })
    })?;
    Ok(integer)
}
