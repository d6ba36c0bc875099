//! From a URL and the usual environment to a client, with limits that make a dead bucket fail in seconds.

use std::{
    sync::{Arc, Once, atomic::AtomicU64},
    time::Duration,
};

use object_store::{
    BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    path::Path,
};

use super::{count::Counting, profile};
use crate::error::{Error, Result};

/// Times are the client's words for them. A whole request has no limit of its own here: one may bring gigabytes. What is
/// small is limited where it is asked for.
const LIMITS: [(ClientConfigKey, &str); 3] = [
    (ClientConfigKey::ConnectTimeout, "3 seconds"),
    (ClientConfigKey::ReadTimeout, "20 seconds"),
    (ClientConfigKey::Timeout, "24 hours"),
];
const RETRIES: usize = 2;
const RETRY_TIME_MAX: Duration = Duration::from_secs(6);

/// Environment variables, as far as they are text.
pub type Variables = std::collections::BTreeMap<String, String>;

pub(super) fn environment() -> Variables {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

pub(super) fn open(url: &str, variables: &Variables, requests: Arc<AtomicU64>) -> Result<(Box<dyn ObjectStore>, Path)> {
    let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it has no ://"))?;
    if rest.contains(['?', '#']) || rest.split('/').next().is_some_and(|host| host.contains([':', '@'])) {
        // Not said back: it may hold a key.
        return Err(wrong("it is only a scheme, a bucket and a path; credentials come from the environment"));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_end_matches('/');
    let prefix = Path::parse(prefix).map_err(|_| wrong("its path has an empty part, or one that is . or .."))?;
    if bucket.is_empty() {
        return Err(wrong("it names no bucket"));
    }
    install_tls();
    let store = match scheme {
        "s3" => s3(bucket, variables, Counting(requests)),
        "gs" => google(bucket, variables, Counting(requests)),
        "az" => azure(bucket, variables, Counting(requests)),
        _ => return Err(wrong("it begins with none of s3://, gs:// and az://")),
    };
    Ok((store?, prefix))
}

/// One TLS library for all clients of the process. Another part may have been first, which is as good.
pub fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

fn s3(bucket: &str, variables: &Variables, connector: Counting) -> Result<Box<dyn ObjectStore>> {
    let mut builder = AmazonS3Builder::new();
    // What stands in the environment comes later, and so wins.
    for (key, value) in profile::read(variables).into_iter().chain(of_provider(variables, "AWS_")) {
        builder = builder.with_config(key, value);
    }
    builder = builder.with_bucket_name(bucket);
    let setting = |key| builder.get_config_value(&key).unwrap_or_default();
    let is_plain = setting(AmazonS3ConfigKey::Endpoint).starts_with("http://");
    if is_plain && setting(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp)) != "true" {
        return Err(settings("AWS_ENDPOINT, which is http://: set AWS_ALLOW_HTTP=true if that is meant"));
    }
    for (key, value) in LIMITS {
        builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
    }
    let built = builder.with_retry(retry()).with_http_connector(connector).build();
    built.map(boxed).map_err(|_| settings("AWS_REGION, AWS_ENDPOINT, AWS_ALLOW_HTTP or the credentials of AWS_*"))
}

fn google(bucket: &str, variables: &Variables, connector: Counting) -> Result<Box<dyn ObjectStore>> {
    let mut builder = GoogleCloudStorageBuilder::new();
    for (key, value) in of_provider(variables, "GOOGLE_").chain(of_provider(variables, "SERVICE_ACCOUNT")) {
        builder = builder.with_config(key, value);
    }
    builder = builder.with_bucket_name(bucket);
    for (key, value) in LIMITS {
        builder = builder.with_config(GoogleConfigKey::Client(key), value);
    }
    let built = builder.with_retry(retry()).with_http_connector(connector).build();
    built.map(boxed).map_err(|_| settings("GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT"))
}

fn azure(container: &str, variables: &Variables, connector: Counting) -> Result<Box<dyn ObjectStore>> {
    let mut builder = MicrosoftAzureBuilder::new();
    for (key, value) in of_provider(variables, "AZURE_") {
        builder = builder.with_config(key, value);
    }
    if let Some(identity) = variables.get("IDENTITY_ENDPOINT") {
        builder = builder.with_msi_endpoint(identity);
    }
    builder = builder.with_container_name(container);
    for (key, value) in LIMITS {
        builder = builder.with_config(AzureConfigKey::Client(key), value);
    }
    let built = builder.with_retry(retry()).with_http_connector(connector).build();
    built.map(boxed).map_err(|_| settings("AZURE_STORAGE_ACCOUNT_NAME or the credentials of AZURE_*"))
}

/// The settings of one provider that the client's library knows. A variable that is set to nothing says nothing.
fn of_provider<'a, K: std::str::FromStr + 'a>(
    variables: &'a Variables,
    prefix: &'a str,
) -> impl Iterator<Item = (K, String)> + 'a {
    let of_it = variables.iter().filter(move |(name, value)| name.starts_with(prefix) && !value.is_empty());
    of_it.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.clone())))
}

fn boxed(store: impl ObjectStore) -> Box<dyn ObjectStore> {
    Box::new(store)
}

fn retry() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(1), base: 2. };
    RetryConfig { backoff, max_retries: RETRIES, retry_timeout: RETRY_TIME_MAX }
}

fn wrong(what: &str) -> Error {
    Error::invalid("INVALID_STORE_URL", format!("the URL of the store is not like s3://bucket/path: {what}"))
}

fn settings(which: &str) -> Error {
    // The client's own text may quote the key that it could not read.
    Error::invalid("INVALID_STORE_URL", format!("no client for the bucket can be made: look at {which}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        open(url, &Variables::new(), Arc::default()).expect_err("it is wrong").message().to_owned()
    }

    #[test]
    fn a_wrong_url_is_refused_and_a_key_in_it_never_said_back() {
        assert!(refused("ftp://a/b").contains("s3://, gs:// and az://"));
        assert!(refused("s3://").contains("no bucket"));
        assert!(refused("s3://bucket/a//b").contains("empty part"));
        for url in ["s3://KEY:SECRET@bucket/a", "az://c/p?sig=SECRET"] {
            let text = refused(url);
            assert!(text.contains("environment") && !text.contains("SECRET"), "{text}");
        }
        let plain = Variables::from([("AWS_ENDPOINT_URL".into(), "http://127.0.0.1:9".into())]);
        let error = open("s3://bucket", &plain, Arc::default()).expect_err("nobody allowed it");
        assert!(error.message().contains("AWS_ALLOW_HTTP"), "{error}");
    }
}
