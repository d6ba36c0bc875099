//! What a change of each key of model.yaml takes: nothing but the manager's attention, or new servables of the same versions.

use super::ModelYaml;

/// When a changed key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakesEffect {
    /// Nothing that serves is made by it.
    AtOnce,
    /// The versions are loaded again and swapped like new ones.
    NewServables,
}

/// Every key of model.yaml. README.md's table says the same.
pub const KEYS: [(&str, TakesEffect); 16] = [
    ("platform", TakesEffect::NewServables),
    ("inputs", TakesEffect::NewServables),
    ("outputs", TakesEffect::NewServables),
    ("normalizer", TakesEffect::NewServables),
    ("instances", TakesEffect::NewServables),
    ("batching", TakesEffect::NewServables),
    ("warmup", TakesEffect::NewServables),
    ("warmup_budget", TakesEffect::NewServables),
    ("versions", TakesEffect::AtOnce),
    ("required", TakesEffect::AtOnce),
    ("swap_policy", TakesEffect::AtOnce),
    ("keep_previous", TakesEffect::AtOnce),
    ("on_new_version", TakesEffect::AtOnce),
    ("canary", TakesEffect::AtOnce),
    ("cache", TakesEffect::NewServables),
    ("onnx", TakesEffect::NewServables),
];

// === impl TakesEffect ===

impl TakesEffect {
    /// As README.md writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            TakesEffect::AtOnce => "at once",
            TakesEffect::NewServables => "new servables",
        }
    }
}

// === impl ModelYaml ===

impl ModelYaml {
    /// What servables are made by: without the keys that hold at once.
    pub fn of_servables(&self) -> ModelYaml {
        ModelYaml {
            versions: None,
            required: None,
            swap_policy: None,
            keep_previous: None,
            on_new_version: None,
            canary: None,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value for each key that is not its default.
    fn sample(key: &str) -> &'static str {
        match key {
            "platform" => "onnx",
            "inputs" | "outputs" => "[{ name: x, dtype: FP32, shape: [1] }]",
            "normalizer" => "normalizer.json",
            "instances" => "{ count: 2 }",
            "batching" => "off",
            "warmup" => "[{ zeros: 1 }]",
            "warmup_budget" | "keep_previous" => "1h",
            "versions" => "all",
            "required" => "true",
            "swap_policy" => "resource",
            "on_new_version" => "hold",
            "canary" => "{ steps: [50, 100] }",
            "cache" => "{ ttl: 5m }",
            "onnx" => "{ intra_op_threads: 2, tensorrt: true }",
            _ => panic!("{key} needs a sample here"),
        }
    }

    #[test]
    fn every_key_stands_in_the_table_and_no_other() {
        let error = ModelYaml::parse("no_such_key: 1").expect_err("there is none");
        let (_, expected) = error.message().split_once("expected one of").expect("serde names the keys");
        let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        for key in &known {
            assert!(KEYS.iter().any(|(name, _)| name == key), "{key} is missing in KEYS");
        }
        assert_eq!(known.len(), KEYS.len());
    }

    #[test]
    fn a_key_that_holds_at_once_makes_no_other_servables() {
        for (key, effect) in KEYS {
            let yaml = ModelYaml::parse(&format!("{key}: {}", sample(key))).expect("a model.yaml");
            assert_ne!(yaml, ModelYaml::default(), "{key}");
            let same_servables = yaml.of_servables() == ModelYaml::default();
            assert_eq!(same_servables, effect == TakesEffect::AtOnce, "{key}");
        }
    }

    #[test]
    fn the_documentation_says_when_each_key_holds() {
        let page = include_str!("../../README.md");
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        for (key, effect) in KEYS {
            let cell = format!("`{key}`");
            let row = rows.iter().find(|row| row.split('|').nth(1).is_some_and(|names| names.contains(&cell)));
            let row = row.unwrap_or_else(|| panic!("README.md: the table of model.yaml lacks {key}"));
            let said = row.trim_end_matches(['|', ' ']).rsplit('|').next().map(str::trim);
            assert_eq!(said, Some(effect.as_str()), "README.md: {key}");
        }
    }
}
