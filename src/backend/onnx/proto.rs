//! What we must know of an ONNX file before the library sees it: a walk through its protobuf, bounded and without copies.
//!
//! `onnx::open` calls `survey`. It collects every reference to external data, wherever tensors may hide (initializers,
//! sparse ones, attributes, nested graphs, functions, training).
//! Field numbers are those of onnx.proto, IR version 13.

use super::divisions;

/// What a walk found.
#[derive(Debug, Default)]
pub struct Survey<'a> {
    /// The key-value pairs of each tensor that has external data.
    pub external: Vec<Vec<(&'a str, &'a str)>>,
    /// Integer `Div` and `Mod` nodes whose divisor comes from the request, by operator and node name.
    pub divisions: Vec<(&'a str, &'a str)>,
    /// Inputs and outputs of the main graph that are sparse or opaque, which the library's API shows as if they were tensors.
    pub unsendable: Vec<&'a str>,
}

/// Why a file is not one we hand on: a word for people, e.g. `a length points past the end`.
pub type Broken = &'static str;

/// Graphs inside graphs. The library's own parser allows about as many.
const DEPTH_MAX: usize = 32;

/// `file` is a whole ModelProto.
pub fn survey(file: &[u8]) -> Result<Survey<'_>, Broken> {
    let mut survey = Survey::default();
    let mut graph = None;
    for field in Fields(file) {
        match field? {
            (7, Field::Bytes(message)) => once(&mut graph, message)?,
            (20, Field::Bytes(training)) => {
                for_each_message(training, &[1, 2], |graph| survey.graph(graph, 1))?;
            }
            (25, Field::Bytes(function)) => survey.function(function)?,
            _ => {}
        }
    }
    let graph = graph.ok_or("it has no graph")?;
    survey.graph(graph, 0)?;
    survey.inputs_and_outputs(graph)?;
    survey.divisions = divisions::by_request(graph)?;
    Ok(survey)
}

/// One field's value. Those of other wire types hold nothing we look for.
pub enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of one message, in order.
pub struct Fields<'a>(pub &'a [u8]);

// === impl Survey ===

impl<'a> Survey<'a> {
    fn graph(&mut self, graph: &'a [u8], depth: usize) -> Result<(), Broken> {
        if depth > DEPTH_MAX {
            return Err("graphs are nested too deeply");
        }
        for field in Fields(graph) {
            match field? {
                (1, Field::Bytes(node)) => self.node(node, depth)?,
                (5, Field::Bytes(tensor)) => self.tensor(tensor)?,
                (15, Field::Bytes(sparse)) => self.sparse(sparse)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn function(&mut self, function: &'a [u8]) -> Result<(), Broken> {
        for field in Fields(function) {
            match field? {
                (7, Field::Bytes(node)) => self.node(node, 1)?,
                (11, Field::Bytes(attribute)) => self.attribute(attribute, 1)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &'a [u8], depth: usize) -> Result<(), Broken> {
        for_each_message(node, &[5], |attribute| self.attribute(attribute, depth))
    }

    fn attribute(&mut self, attribute: &'a [u8], depth: usize) -> Result<(), Broken> {
        let (mut tensor, mut graph, mut sparse) = (None, None, None);
        for field in Fields(attribute) {
            match field? {
                (5, Field::Bytes(message)) => once(&mut tensor, message)?,
                (6, Field::Bytes(message)) => once(&mut graph, message)?,
                (22, Field::Bytes(message)) => once(&mut sparse, message)?,
                (10, Field::Bytes(message)) => self.tensor(message)?,
                (11, Field::Bytes(message)) => self.graph(message, depth + 1)?,
                (23, Field::Bytes(message)) => self.sparse(message)?,
                _ => {}
            }
        }
        tensor.map_or(Ok(()), |tensor| self.tensor(tensor))?;
        sparse.map_or(Ok(()), |sparse| self.sparse(sparse))?;
        graph.map_or(Ok(()), |graph| self.graph(graph, depth + 1))
    }

    fn sparse(&mut self, sparse: &'a [u8]) -> Result<(), Broken> {
        let (mut values, mut indices) = (None, None);
        for field in Fields(sparse) {
            match field? {
                (1, Field::Bytes(message)) => once(&mut values, message)?,
                (2, Field::Bytes(message)) => once(&mut indices, message)?,
                _ => {}
            }
        }
        values.map_or(Ok(()), |tensor| self.tensor(tensor))?;
        indices.map_or(Ok(()), |tensor| self.tensor(tensor))
    }

    /// A tensor counts as external when it says so or names a place, whatever the other of the two says.
    fn tensor(&mut self, tensor: &'a [u8]) -> Result<(), Broken> {
        let (mut external, mut entries) = (false, Vec::new());
        for field in Fields(tensor) {
            match field? {
                (13, Field::Bytes(entry)) => entries.push((text_field(entry, 1)?, text_field(entry, 2)?)),
                (14, Field::Number(place)) => external |= place != 0,
                _ => {}
            }
        }
        if external || !entries.is_empty() {
            self.external.push(entries);
        }
        Ok(())
    }

    fn inputs_and_outputs(&mut self, graph: &'a [u8]) -> Result<(), Broken> {
        for_each_message(graph, &[11, 12], |info| {
            let name = text_field(info, 1)?;
            for_each_message(info, &[2], |kind| {
                for field in Fields(kind) {
                    if let (7 | 8, Field::Bytes(_)) = field? {
                        self.unsendable.push(name);
                    }
                }
                Ok(())
            })
        })
    }
}

// === impl Fields ===

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, Broken> {
        let mut value = 0u64;
        for place in 0..10 {
            let (&byte, rest) = self.0.split_first().ok_or("a number is cut off")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number has no end")
    }

    fn skip(&mut self, count: usize) -> Result<&'a [u8], Broken> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or("a length points past the end")?;
        self.0 = rest;
        Ok(bytes)
    }

    fn field(&mut self) -> Result<(u64, Field<'a>), Broken> {
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => self.skip(8).map(|_| Field::Other)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| "a length points past the end")?;
                Field::Bytes(self.skip(length)?)
            }
            5 => self.skip(4).map(|_| Field::Other)?,
            _ => return Err("a field has an unknown kind"),
        };
        // The library's parser keeps 32 bits of a tag, so a longer one would mean one thing here and another there.
        if tag >> 3 == 0 || tag > u64::from(u32::MAX) {
            return Err("a field has no valid number");
        }
        Ok((tag >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// Protobuf merges a singular message that comes twice. No exporter writes that, and a merge could hide a reference.
fn once<'a>(place: &mut Option<&'a [u8]>, message: &'a [u8]) -> Result<(), Broken> {
    match place.replace(message) {
        None => Ok(()),
        Some(_) => Err("a part that stands alone comes twice"),
    }
}

pub fn for_each_message<'a>(
    message: &'a [u8],
    numbers: &[u64],
    mut visit: impl FnMut(&'a [u8]) -> Result<(), Broken>,
) -> Result<(), Broken> {
    for field in Fields(message) {
        match field? {
            (number, Field::Bytes(bytes)) if numbers.contains(&number) => visit(bytes)?,
            _ => {}
        }
    }
    Ok(())
}

/// The last text of that number, as protobuf takes it; empty where there is none.
pub fn text_field(message: &[u8], number: u64) -> Result<&str, Broken> {
    let mut found = "";
    for_each_message(message, &[number], |bytes| {
        found = text(bytes)?;
        Ok(())
    })?;
    Ok(found)
}

pub fn number_field(message: &[u8], number: u64) -> Result<Option<u64>, Broken> {
    let mut found = None;
    for field in Fields(message) {
        match field? {
            (place, Field::Number(value)) if place == number => found = Some(value),
            _ => {}
        }
    }
    Ok(found)
}

pub fn text(bytes: &[u8]) -> Result<&str, Broken> {
    std::str::from_utf8(bytes).map_err(|_| "a name is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{onnx::tests::build::message, testing::fixture};

    /// A tensor that lies elsewhere.
    fn external(place: &str) -> Vec<u8> {
        let entry = message(&[(1, b"location"), (2, place.as_bytes())], &[]);
        message(&[(13, &entry)], &[(14, 1)])
    }

    fn in_node(field: u8, inside: &[u8]) -> Vec<u8> {
        message(&[(1, &message(&[(5, &message(&[(field, inside)], &[]))], &[]))], &[])
    }

    #[test]
    fn external_tensors_are_found_wherever_they_hide() {
        let sparse = message(&[(1, &external("values")), (2, &external("indices"))], &[]);
        let nested = message(&[(5, &external("nested"))], &[]);
        let graph = [
            message(&[(5, &external("initializer")), (15, &sparse)], &[]),
            in_node(5, &external("attribute")),
            in_node(10, &external("attributes")),
            in_node(6, &nested),
            in_node(11, &nested),
            in_node(22, &sparse),
            in_node(23, &sparse),
        ]
        .concat();
        let function = message(&[(7, &message(&[(5, &message(&[(5, &external("function"))], &[]))], &[]))], &[]);
        let file = message(&[(7, &graph), (25, &function), (20, &message(&[(1, &nested), (2, &nested)], &[]))], &[]);
        let found = survey(&file).expect("it is well formed");
        let mut places: Vec<&str> = found.external.iter().map(|entries| entries[0].1).collect();
        places.sort_unstable();
        let wanted = "attribute attributes function indices indices indices initializer nested nested nested nested values values values";
        assert_eq!(places.join(" "), wanted);
    }

    #[test]
    fn what_protobuf_would_merge_is_refused() {
        let attribute = message(&[(5, &external("a")), (5, &external("b"))], &[]);
        let graph = message(&[(1, &message(&[(5, &attribute)], &[]))], &[]);
        assert!(survey(&message(&[(7, &graph)], &[])).is_err());
        assert!(survey(&message(&[(7, b""), (7, b"")], &[])).is_err());
    }

    #[test]
    fn graphs_nest_to_a_bound() {
        let nest = |depth: usize| (0..depth).fold(Vec::new(), |inside, _| in_node(6, &inside));
        assert!(survey(&message(&[(7, &nest(30))], &[])).is_ok());
        assert!(survey(&message(&[(7, &nest(5000))], &[])).is_err());
    }

    #[test]
    fn damaged_files_end_in_an_error_or_a_survey() {
        let file = std::fs::read(fixture("onnx/loop_forever.onnx")).expect("the fixture is committed");
        for cut in 0..file.len() {
            let _ = survey(&file[..cut]);
        }
        for place in 0..file.len() {
            for bit in 0..8 {
                let mut damaged = file.clone();
                damaged[place] ^= 1 << bit;
                let _ = survey(&damaged);
            }
        }
    }
}
