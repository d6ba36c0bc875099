//! `model.txt`, judged before the library sees it.
//!
//! LightGBM does not return an error for a damaged text: it reads past its end, aborts on one of its own threads or follows
//! a child that points to itself for ever. So everything it would index with is checked here: counts, ranges, and that
//! each tree is a tree. Pure; called by `lightgbm::open`. The format is the one that `GBDT::LoadModelFromString` and
//! `Tree::Tree(const char*)` of LightGBM 4 read, as written by every version since 2.3.

use super::keys::Keys;

/// What the text says of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    pub feature_names: Vec<String>,
    /// Trees of one iteration: the classes of a multi-class model, else 1.
    pub classes: usize,
    /// The first word, e.g. `binary`; empty where the model was trained with a caller's own.
    pub objective: String,
    pub trees: usize,
    /// Whether leaves hold linear models.
    pub linear: bool,
}

/// Why a text is refused, for people.
pub type Damage = String;

/// The library's own recursions go as deep as a tree.
const DEPTH_MAX: usize = 4096;

const END_OF_TREES: &str = "end of trees\n";

/// Checks the whole text.
pub fn check(text: &str) -> Result<Header, Damage> {
    if !text.starts_with("tree\n") {
        return Err("it does not begin as a LightGBM text model does".into());
    }
    if text.contains(['\r', '\0']) {
        return Err("it holds line ends or bytes that LightGBM does not write".into());
    }
    let header_end = text.find("\nTree=").ok_or("it holds no tree")? + 1;
    let (header_text, mut rest) = text.split_at(header_end);
    let keys = Keys::parse(header_text.lines().skip(1), &[])?;
    let (mut header, sizes) = header(&keys)?;
    for (index, &size) in sizes.iter().enumerate() {
        let block = rest.get(..size).ok_or_else(|| format!("it ends within tree {index}"))?;
        let linear =
            check_tree(block, index, header.feature_names.len()).map_err(|damage| format!("tree {index}: {damage}"))?;
        header.linear |= linear;
        rest = &rest[size..];
    }
    let tail =
        rest.strip_prefix(END_OF_TREES).ok_or("'end of trees' does not follow the last tree that tree_sizes names")?;
    if tail.contains("\nparameters:\n") && !tail.contains("\nend of parameters\n") {
        return Err("it ends within its parameters".into());
    }
    Ok(header)
}

/// What stands in a tree. The library reads no more lines than these.
const KNOWN: [&str; 22] = [
    "num_leaves",
    "num_cat",
    "split_feature",
    "split_gain",
    "threshold",
    "decision_type",
    "left_child",
    "right_child",
    "leaf_value",
    "leaf_weight",
    "leaf_count",
    "internal_value",
    "internal_weight",
    "internal_count",
    "cat_boundaries",
    "cat_threshold",
    "is_linear",
    "leaf_const",
    "num_features",
    "leaf_features",
    "leaf_coeff",
    "shrinkage",
];

fn header(keys: &Keys<'_>) -> Result<(Header, Vec<usize>), Damage> {
    let may_hold_equals = ["feature_names", "monotone_constraints"];
    if keys.iter().any(|(key, value)| value.contains('=') && !may_hold_equals.contains(&key)) {
        return Err("a line of its head holds more than one '='".into());
    }
    let names: Vec<String> = keys.words("feature_names")?.map(str::to_owned).collect();
    let last: usize = keys.number("max_feature_idx")?;
    if last.checked_add(1) != Some(names.len()) || keys.words("feature_infos")?.count() != names.len() {
        return Err("max_feature_idx, feature_names and feature_infos differ".into());
    }
    keys.number::<i32>("label_index")?;
    let classes: usize = keys.number("num_class")?;
    if classes == 0 || keys.number::<usize>("num_tree_per_iteration")? != classes {
        return Err("num_class and num_tree_per_iteration differ".into());
    }
    // A model of a caller's own objective has no such line. The library does not survive an empty one.
    let mut objective = keys.words("objective").into_iter().flatten().peekable();
    if keys.has("objective") && objective.peek().is_none() {
        return Err("objective is empty".into());
    }
    let word = objective.next().unwrap_or_default().to_owned();
    let of_objective = objective.find_map(|part| part.strip_prefix("num_class:"));
    if word.starts_with("multiclass") != of_objective.is_some()
        || of_objective.is_some_and(|number| number.parse() != Ok(classes))
    {
        return Err("num_class and the objective's classes differ".into());
    }
    let sizes: Vec<usize> = keys.numbers("tree_sizes")?;
    if sizes.is_empty() || !sizes.len().is_multiple_of(classes) {
        return Err(format!("tree_sizes names {} trees for {classes} a round", sizes.len()));
    }
    let header = Header { feature_names: names, classes, objective: word, trees: sizes.len(), linear: false };
    Ok((header, sizes))
}

/// One tree, from its `Tree=` line to the next; returns whether it is linear.
fn check_tree(block: &str, index: usize, features: usize) -> Result<bool, Damage> {
    let body = block.strip_prefix(&format!("Tree={index}\n")).ok_or("it does not begin where tree_sizes says")?;
    let (lines, blank) = body.split_once("\n\n").ok_or("it does not end with an empty line")?;
    if !blank.bytes().all(|byte| byte == b'\n') {
        return Err("something follows its empty line".into());
    }
    let keys = Keys::parse(lines.lines(), &KNOWN)?;
    let leaves: usize = keys.number("num_leaves")?;
    if leaves == 0 {
        return Err("num_leaves is 0".into());
    }
    let splits = leaves - 1;
    check_counts(&keys, leaves, splits)?;
    let categories = check_categories(&keys)?;
    let linear = keys.number_or("is_linear", 0u8)? == 1;
    if linear {
        check_linear(&keys, leaves, features)?;
    }
    if splits > 0 {
        check_splits(&keys, splits, features, categories)?;
        check_shape(&keys.array("left_child", splits)?, &keys.array("right_child", splits)?)?;
    }
    Ok(linear)
}

/// Every array that is there has its length, and every element is a number of its kind.
fn check_counts(keys: &Keys<'_>, leaves: usize, splits: usize) -> Result<(), Damage> {
    keys.array::<f64>("leaf_value", leaves)?;
    keys.number_or("shrinkage", 1.0f64)?;
    keys.array_or_none::<f64>("leaf_weight", leaves)?;
    keys.array_or_none::<i32>("leaf_count", leaves)?;
    keys.array_or_none::<f64>("split_gain", splits)?;
    keys.array_or_none::<f64>("internal_value", splits)?;
    keys.array_or_none::<f64>("internal_weight", splits)?;
    keys.array_or_none::<i32>("internal_count", splits)?;
    Ok(())
}

/// The sets of categorical splits; returns how many there are.
fn check_categories(keys: &Keys<'_>) -> Result<usize, Damage> {
    let count: usize = keys.number("num_cat")?;
    if count == 0 {
        return Ok(0);
    }
    let expected = count.checked_add(1).ok_or("num_cat is too large")?;
    let bounds: Vec<usize> = keys.array("cat_boundaries", expected)?;
    if bounds[0] != 0 || !bounds.is_sorted() {
        return Err("cat_boundaries do not rise from 0".into());
    }
    keys.array::<u32>("cat_threshold", bounds[count])?;
    Ok(count)
}

fn check_linear(keys: &Keys<'_>, leaves: usize, features: usize) -> Result<(), Damage> {
    keys.array::<f64>("leaf_const", leaves)?;
    let counts: Vec<u32> = keys.array("num_features", leaves)?;
    let total: usize = counts.iter().map(|&count| count as usize).sum();
    keys.array::<f64>("leaf_coeff", total)?;
    let used: Vec<usize> = keys.array("leaf_features", total)?;
    if used.iter().any(|&feature| feature >= features) {
        return Err("leaf_features names a feature that is not there".into());
    }
    Ok(())
}

fn check_splits(keys: &Keys<'_>, splits: usize, features: usize, categories: usize) -> Result<(), Damage> {
    let used: Vec<usize> = keys.array("split_feature", splits)?;
    if used.iter().any(|&feature| feature >= features) {
        return Err("split_feature names a feature that is not there".into());
    }
    let thresholds: Vec<f64> = keys.array("threshold", splits)?;
    let kinds: Vec<u8> = keys.array_or_none("decision_type", splits)?.unwrap_or_else(|| vec![0; splits]);
    for (&kind, &threshold) in kinds.iter().zip(&thresholds) {
        // Bit 0: categorical. Bit 1: the default is left. Bits 2 and 3: what counts as missing, of which there are three.
        if kind > 11 {
            return Err("decision_type is none that there is".into());
        }
        let place = threshold >= 0.0 && threshold < categories as f64 && threshold.fract() == 0.0;
        if kind & 1 == 1 && !place {
            return Err("a categorical split has no set of categories".into());
        }
    }
    Ok(())
}

/// A child is the number of a split, or the complement of a leaf's. From the root, each must be met exactly once.
fn check_shape(left: &[i32], right: &[i32]) -> Result<(), Damage> {
    let splits = left.len();
    let (mut split_met, mut leaf_met) = (vec![false; splits], vec![false; splits + 1]);
    split_met[0] = true;
    let mut open = vec![(0usize, 1usize)];
    let mut met = 1;
    while let Some((split, depth)) = open.pop() {
        if depth > DEPTH_MAX {
            return Err(format!("it is deeper than {DEPTH_MAX}"));
        }
        for child in [left[split], right[split]] {
            let (seen, place) =
                if child >= 0 { (&mut split_met, child as usize) } else { (&mut leaf_met, !child as usize) };
            match seen.get_mut(place) {
                Some(seen @ false) => *seen = true,
                Some(true) => return Err("two branches lead to one place".into()),
                None => return Err("a child points to nothing".into()),
            }
            met += 1;
            if child >= 0 {
                open.push((place, depth + 1));
            }
        }
    }
    if met != 2 * splits + 1 {
        return Err("a part of it cannot be reached".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::testing::fixture;

    fn text(name: &str) -> String {
        std::fs::read_to_string(fixture(&format!("lightgbm/{name}.txt"))).expect("the fixture is committed")
    }

    #[test]
    fn good_models_pass() {
        let multiclass = check(&text("multiclass")).expect("as LightGBM wrote it");
        assert_eq!((multiclass.classes, multiclass.trees, multiclass.linear), (3, 30, false));
        assert_eq!(multiclass.feature_names, ["f0", "f1", "f2", "f3", "f4"]);
        assert!(check(&text("linear_tree")).expect("as LightGBM wrote it").linear);
    }

    #[test]
    fn each_damage_has_its_word() {
        let whole = text("categorical");
        for (from, to, says) in [
            ("num_leaves=7", "num_leaves=8", "leaf_value holds 7 numbers instead of 8"),
            ("left_child=1 2", "left_child=0 2", "two branches lead to one place"),
            ("left_child=1 2", "left_child=9 2", "a child points to nothing"),
            ("split_feature=0 1", "split_feature=5 1", "split_feature names a feature"),
            ("decision_type=9 10", "decision_type=9 11", "no set of categories"),
            ("cat_boundaries=0 1", "cat_boundaries=0 3", "cat_threshold holds 1 numbers instead of 3"),
            ("num_cat=1", "num_cat=x", "num_cat is not a number"),
            ("tree_sizes=883", "tree_sizes=884", "something follows its empty line"),
            ("num_class=1", "num_class=2", "num_class and num_tree_per_iteration differ"),
            ("max_feature_idx=4", "max_feature_idx=5", "max_feature_idx, feature_names and feature_infos differ"),
            ("objective=binary", "objective\nbinary", "a line is not key=value"),
            ("objective=binary sigmoid:1", "objective=                ", "objective is empty"),
            ("end of trees", "end of treez", "'end of trees' does not follow"),
            ("leaf_weight=", "leaf_wait=", "a key is none"),
        ] {
            let damage = check(&whole.replacen(from, to, 1)).expect_err(says);
            let length_kept = from.len() == to.len();
            assert!(damage.contains(says) || !length_kept, "{damage:?} should say {says:?}");
        }
        let other = text("multiclass").replacen("num_class:3", "num_class:9", 1);
        assert!(check(&other).expect_err("9 is not 3").contains("the objective's classes differ"));
    }

    #[test]
    fn a_cut_at_a_tree_is_noticed() {
        let whole = text("binary");
        let cut = whole.find("\nTree=5").expect("ten trees") + 1;
        assert!(check(&whole[..cut]).is_err());
        let shorter = format!("{}{END_OF_TREES}", &whole[..cut]);
        assert!(check(&shorter).is_err(), "tree_sizes names more trees");
    }

    #[test]
    fn a_tree_that_is_a_chain_has_a_bound() {
        let chain = |splits: i32| {
            let left: Vec<i32> = (0..splits).map(|split| if split + 1 < splits { split + 1 } else { -1 }).collect();
            let right: Vec<i32> = (0..splits).map(|split| !(split + 1)).collect();
            check_shape(&left, &right)
        };
        assert!(chain(100).is_ok());
        assert!(chain(100_000).is_err());
    }
}
