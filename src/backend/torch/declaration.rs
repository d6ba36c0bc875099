//! What libtorch says of `forward`: `forward(__torch__.Model self, Tensor x, Dict(str, Tensor) d, int n=3) -> Tensor`.
//!
//! TorchScript keeps the names and types of arguments, not of what is in them. So declared inputs meet arguments here:
//!
//! * every argument a `Tensor`: by name where each declared name is an argument's, else by place;
//! * a single `Dict(str, Tensor)`: one dictionary of all declared inputs by name;
//! * a single `Tensor[]`: one list of all declared inputs in order.
//!
//! Arguments with defaults may be left out, from the last. Anything else is refused when the version is opened. Pure.

use super::abi;
use crate::{
    error::{Code, Error, Result},
    model::TensorSpec,
};

/// How the declared inputs are passed.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// One of the ABI's `PASS_`.
    pub passing: u32,
    /// Places in the declared inputs, in the order they are passed.
    pub order: Vec<usize>,
}

#[derive(Debug, PartialEq)]
struct Argument<'a> {
    kind: &'a str,
    name: &'a str,
    has_default: bool,
}

/// Lays the declared inputs out for `forward`. A text that cannot be read gives the declared order, one tensor each.
pub fn plan(declaration: &str, inputs: &[TensorSpec]) -> Result<Plan> {
    let in_order = |passing| Plan { passing, order: (0..inputs.len()).collect() };
    let Some(arguments) = arguments(declaration) else {
        return Ok(in_order(abi::PASS_EACH));
    };
    let required = arguments.iter().filter(|argument| !argument.has_default).count();
    match &arguments[..] {
        [first, ..] if required <= 1 && first.kind == "Dict(str, Tensor)" => return Ok(in_order(abi::PASS_DICT)),
        [first, ..] if required <= 1 && first.kind == "Tensor[]" => return Ok(in_order(abi::PASS_LIST)),
        _ => {}
    }
    if !(required..=arguments.len()).contains(&inputs.len()) {
        return Err(mismatch(format!(
            "{} inputs are declared, forward takes {}: {}",
            inputs.len(),
            arguments.len(),
            list(&arguments)
        )));
    }
    let passed = &arguments[..inputs.len()];
    if let Some(other) = passed.iter().find(|argument| !argument.takes_a_tensor()) {
        return Err(mismatch(format!(
            "argument '{}' of forward is a {}; expected tensors, one Dict[str, Tensor] or one List[Tensor]",
            other.name, other.kind
        )));
    }
    let by_name: Option<Vec<usize>> =
        passed.iter().map(|argument| inputs.iter().position(|input| &*input.name == argument.name)).collect();
    Ok(match by_name {
        Some(order) => Plan { passing: abi::PASS_EACH, order },
        None => in_order(abi::PASS_EACH),
    })
}

/// The arguments after `self`; `None` for a text of another form.
fn arguments(declaration: &str) -> Option<Vec<Argument<'_>>> {
    let inside = declaration.strip_prefix("forward(")?;
    let mut depth = 0usize;
    let (mut parts, mut start) = (Vec::new(), 0);
    for (at, character) in inside.char_indices() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ',' if depth == 0 => {
                parts.push(&inside[start..at]);
                start = at + 1;
            }
            ')' if depth == 0 => {
                parts.push(&inside[start..at]);
                return parts.into_iter().skip(1).map(Argument::parse).collect();
            }
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

fn list(arguments: &[Argument<'_>]) -> String {
    let names: Vec<String> =
        arguments.iter().take(12).map(|argument| format!("{} {}", argument.kind, argument.name)).collect();
    names.join(", ")
}

fn mismatch(what: String) -> Error {
    Error::new(Code::FailedPrecondition, "SIGNATURE_MISMATCH", what)
}

// === impl Argument ===

impl<'a> Argument<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let text = text.trim();
        let (left, default) = match text.split_once('=') {
            Some((left, default)) => (left, Some(default)),
            None => (text, None),
        };
        let (kind, name) = left.rsplit_once(' ')?;
        Some(Self { kind, name, has_default: default.is_some() })
    }

    fn takes_a_tensor(&self) -> bool {
        matches!(self.kind, "Tensor" | "Tensor?" | "Any")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DType;

    fn specs(names: &[&str]) -> Vec<TensorSpec> {
        names.iter().map(|name| TensorSpec::new(name, DType::Fp32, &[-1, 4])).collect()
    }

    fn planned(arguments: &str, names: &[&str]) -> Result<(u32, Vec<usize>)> {
        let text = format!("forward(__torch__.m.___torch_mangle_3.Model self{arguments}) -> (Tensor, Tensor)");
        plan(&text, &specs(names)).map(|plan| (plan.passing, plan.order))
    }

    fn each(order: &[usize]) -> (u32, Vec<usize>) {
        (abi::PASS_EACH, order.to_vec())
    }

    #[test]
    fn tensors_go_by_name_where_all_names_meet_else_by_place() {
        assert_eq!(planned(", Tensor a, Tensor b", &["b", "a"]).unwrap(), each(&[1, 0]));
        assert_eq!(planned(", Tensor a, Tensor b", &["a", "c"]).unwrap(), each(&[0, 1]));
        assert_eq!(planned(", Tensor input.1, Tensor? m=None", &["x"]).unwrap(), each(&[0]));
        assert_eq!(planned(", Tensor x, int n=3, str s=\"a\"", &["x"]).unwrap(), each(&[0]));
    }

    #[test]
    fn one_dictionary_or_list_takes_all() {
        let all = vec![0, 1];
        assert_eq!(planned(", Dict(str, Tensor) inputs", &["a", "b"]).unwrap(), (abi::PASS_DICT, all.clone()));
        assert_eq!(planned(", Tensor[] xs, bool flag=False", &["a", "b"]).unwrap(), (abi::PASS_LIST, all));
    }

    #[test]
    fn what_does_not_fit_is_said() {
        for (arguments, names, says) in [
            (", Tensor x", &["a", "b"][..], "2 inputs are declared, forward takes 1: Tensor x"),
            (", Tensor x, Tensor y", &["a"], "1 inputs are declared, forward takes 2"),
            (", Tensor x, int n", &["a", "b"], "argument 'n' of forward is a int"),
            (", Tensor x, (Tensor, Tensor) state", &["x", "state"], "is a (Tensor, Tensor)"),
        ] {
            let error = planned(arguments, names).expect_err("it does not fit");
            assert!(error.message().contains(says), "{error}");
        }
    }

    #[test]
    fn a_text_of_another_form_leaves_the_declared_order() {
        for text in ["", "forward", "forward(a", "call(x) -> y", "forward(]"] {
            assert_eq!(plan(text, &specs(&["a", "b"])).unwrap().order, [0, 1]);
        }
    }
}
