//! Which versions should be served, and which of them answers. Pure.

use std::collections::BTreeSet;

use crate::{
    error::Error,
    model::{Version, VersionsPolicy},
};

/// One complete version of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub version: Version,
    /// Whether its last load failed by a fault of its own.
    pub failed: bool,
}

/// The versions that should be served.
///
/// `latest: n` is the n highest. One of them that failed stays aspired, and the next lower one stands in for it until it is
/// mended: a server that starts beside a broken new version serves the old one, as one that was running does.
pub fn aspired(policy: Option<&VersionsPolicy>, candidates: &[Candidate]) -> Result<BTreeSet<Version>, Error> {
    let there = || candidates.iter().map(|candidate| candidate.version);
    match policy {
        None => Ok(latest(1, candidates)),
        Some(VersionsPolicy::Latest(0)) => {
            Err(Error::invalid("INVALID_MANIFEST", "model.yaml: versions.latest must be at least 1"))
        }
        Some(VersionsPolicy::Latest(count)) => Ok(latest(*count, candidates)),
        Some(VersionsPolicy::All) => Ok(there().collect()),
        Some(VersionsPolicy::Only(only)) => {
            let wanted = only.iter().map(version_of).collect::<Result<BTreeSet<_>, _>>()?;
            Ok(there().filter(|version| wanted.contains(version)).collect())
        }
    }
}

/// What is wrong with a list of versions none of which is there. A model without any version has another trouble.
pub fn selects_none(policy: Option<&VersionsPolicy>, there: &[Version]) -> Option<String> {
    const NAMED_MAX: usize = 10;
    let Some(VersionsPolicy::Only(only)) = policy else {
        return None;
    };
    let wanted = only.iter().map(version_of).collect::<Result<BTreeSet<_>, _>>().ok()?;
    if there.is_empty() || there.iter().any(|version| wanted.contains(version)) {
        return None;
    }
    let named = |versions: &mut dyn Iterator<Item = &Version>| {
        versions.take(NAMED_MAX).map(Version::to_string).collect::<Vec<_>>().join(", ")
    };
    let (wanted, there) = (named(&mut wanted.iter()), named(&mut there.iter().rev()));
    Some(format!("model.yaml: versions: only [{wanted}] selects none of the versions {there}"))
}

fn latest(count: usize, candidates: &[Candidate]) -> BTreeSet<Version> {
    let mut descending: Vec<&Candidate> = candidates.iter().collect();
    descending.sort_by_key(|candidate| std::cmp::Reverse(candidate.version));
    let mut sound = 0;
    descending
        .into_iter()
        .take_while(|candidate| {
            let more = sound < count;
            sound += usize::from(!candidate.failed);
            more
        })
        .map(|candidate| candidate.version)
        .collect()
}

/// YAML reads `1.2` as a number; as a version it is 1.2.0 all the same.
fn version_of(value: &serde_yaml_ng::Value) -> Result<Version, Error> {
    let text = match value {
        serde_yaml_ng::Value::String(text) => text.clone(),
        serde_yaml_ng::Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    text.parse().map_err(|_| {
        Error::invalid(
            "INVALID_MANIFEST",
            "model.yaml: versions.only holds something that is not a version; write \"1.10\" in quotes",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelYaml;
    use proptest::prelude::*;

    fn candidates(versions: &[(u64, bool)]) -> Vec<Candidate> {
        let candidate = |&(major, failed): &(u64, bool)| Candidate { version: Version::new(major, 0, 0), failed };
        versions.iter().map(candidate).collect()
    }

    fn of(yaml: &str, versions: &[(u64, bool)]) -> Vec<String> {
        let policy = ModelYaml::parse(yaml).expect("a model.yaml").versions;
        let aspired = aspired(policy.as_ref(), &candidates(versions)).expect("a policy");
        aspired.iter().map(Version::to_string).collect()
    }

    #[test]
    fn each_policy_takes_what_it_names() {
        let three = [(1, false), (3, false), (2, false)];
        assert_eq!(of("", &three), ["3.0.0"]);
        assert_eq!(of("versions: {latest: 2}", &three), ["2.0.0", "3.0.0"]);
        assert_eq!(of("versions: all", &three), ["1.0.0", "2.0.0", "3.0.0"]);
        assert_eq!(of("versions: {only: [1, '3.0', 9]}", &three), ["1.0.0", "3.0.0"]);
    }

    #[test]
    fn a_lower_version_stands_in_for_one_that_failed() {
        assert_eq!(of("", &[(1, false), (2, false), (3, true)]), ["2.0.0", "3.0.0"]);
        assert_eq!(of("", &[(1, true), (2, true)]), ["1.0.0", "2.0.0"]);
    }

    #[test]
    fn a_policy_that_makes_no_sense_is_refused() {
        for yaml in ["versions: {latest: 0}", "versions: {only: [x]}", "versions: {only: [[1]]}"] {
            let policy = ModelYaml::parse(yaml).expect("its form is right").versions;
            assert!(aspired(policy.as_ref(), &[]).is_err(), "{yaml}");
        }
    }

    proptest! {
        #[test]
        fn latest_takes_enough_sound_versions_and_none_below_them(
            versions in proptest::collection::btree_map(0u64..20, any::<bool>(), 0..12),
            count in 1usize..5,
        ) {
            let list: Vec<(u64, bool)> = versions.into_iter().collect();
            let all = candidates(&list);
            let taken = latest(count, &all);
            let sound = |set: &BTreeSet<Version>| all.iter().filter(|c| !c.failed && set.contains(&c.version)).count();
            let every: BTreeSet<Version> = all.iter().map(|candidate| candidate.version).collect();
            prop_assert_eq!(sound(&taken), count.min(sound(&every)));
            if let Some(lowest) = taken.first() {
                prop_assert!(every.iter().all(|version| version < lowest || taken.contains(version)));
            }
        }
    }

    #[test]
    fn a_list_that_selects_nothing_is_said() {
        let only = Some(VersionsPolicy::Only(vec![serde_yaml_ng::from_str("9.9").expect("a number")]));
        let (first, wanted) = (Version::new(1, 0, 0), Version::new(9, 9, 0));
        let message = selects_none(only.as_ref(), &[first]).expect("nothing is selected");
        assert_eq!(message, format!("model.yaml: versions: only [{wanted}] selects none of the versions {first}"));
        assert_eq!(selects_none(only.as_ref(), &[first, wanted]), None);
        assert_eq!(selects_none(only.as_ref(), &[]), None);
        assert_eq!(selects_none(None, &[first]), None);
    }
}
