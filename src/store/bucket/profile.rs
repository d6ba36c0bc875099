//! The profile files of the AWS tools: the client's library reads the environment alone.

use std::{collections::BTreeMap, path::PathBuf};

use object_store::aws::AmazonS3ConfigKey;

use super::client::Variables;

/// Names in a profile, and what they set.
const NAMES: [(&str, AmazonS3ConfigKey); 5] = [
    ("aws_access_key_id", AmazonS3ConfigKey::AccessKeyId),
    ("aws_secret_access_key", AmazonS3ConfigKey::SecretAccessKey),
    ("aws_session_token", AmazonS3ConfigKey::Token),
    ("region", AmazonS3ConfigKey::Region),
    ("endpoint_url", AmazonS3ConfigKey::Endpoint),
];
/// Whoever sets one of these says where the credentials come from, and the files say nothing of them.
const OTHER_WAYS: [&str; 4] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// What `AWS_PROFILE` (else `default`) says in `~/.aws/credentials` and `~/.aws/config`, or where the usual variables
/// say these are. A file that is not there says nothing.
pub(super) fn read(variables: &Variables) -> Vec<(AmazonS3ConfigKey, String)> {
    let set = |name: &str| variables.get(name).filter(|value| !value.is_empty());
    let home = set("HOME").map(PathBuf::from).unwrap_or_default();
    let text = |name: &str, usual: &str| {
        let file = set(name).map_or_else(|| home.join(usual), PathBuf::from);
        std::fs::read_to_string(file).unwrap_or_default()
    };
    let profile = set("AWS_PROFILE").map_or("default", String::as_str);
    let mut values = section(&text("AWS_CONFIG_FILE", ".aws/config"), profile);
    values.extend(section(&text("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"), profile));
    if OTHER_WAYS.into_iter().any(|name| set(name).is_some()) {
        values.retain(|name, _| !name.starts_with("aws_"));
    }
    NAMES.into_iter().filter_map(|(name, key)| Some((key, values.remove(name)?))).collect()
}

/// The keys of `[name]` or `[profile name]`.
fn section(text: &str, profile: &str) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut inside = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(heading) = trimmed.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let heading = heading.trim();
            let name = heading.strip_prefix("profile ").unwrap_or(heading).trim();
            inside = name == profile;
        } else if inside
            && !line.starts_with([' ', '\t', '#', ';'])
            && let Some((name, value)) = trimmed.split_once('=')
        {
            // An indented line belongs to the nested section above it.
            values.insert(name.trim().to_owned(), value.trim().to_owned());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_found_in_both_files_and_the_environment_wins() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path.to_str().expect("a path in words").to_owned()
        };
        let credentials = file(
            "credentials",
            "[default]\naws_access_key_id = A\n\n[team]\naws_access_key_id=T\naws_secret_access_key = S=x\n",
        );
        let config = file("config", "[profile team]\nregion = eu-west-1\ns3 =\n  region = nested\n# region = no\n");
        let read = |more: &[(&str, &str)]| {
            let files = [("AWS_SHARED_CREDENTIALS_FILE", credentials.as_str()), ("AWS_CONFIG_FILE", &config)];
            let variables = files.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            read(&variables.collect())
        };
        let team = [
            (AmazonS3ConfigKey::AccessKeyId, "T".to_owned()),
            (AmazonS3ConfigKey::SecretAccessKey, "S=x".to_owned()),
            (AmazonS3ConfigKey::Region, "eu-west-1".to_owned()),
        ];
        assert_eq!(read(&[("AWS_PROFILE", "team")]), team);
        assert_eq!(read(&[]), [(AmazonS3ConfigKey::AccessKeyId, "A".to_owned())]);
        assert_eq!(read(&[("AWS_PROFILE", "team"), ("AWS_ACCESS_KEY_ID", "E")]), team[2..]);
        assert_eq!(read(&[("AWS_PROFILE", "other")]), []);
    }
}
