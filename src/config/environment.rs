//! What the environment says by mistake: Kubernetes' own variables, and names that are no option's.

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue};

use super::{
    setting::variable_name,
    sources::{CONFIG, command, keys},
};

/// What is no option of the server and is meant all the same: the other commands' and the tests'.
const OTHERS: [&str; 3] = ["SCONCE_SERVER", "SCONCE_ADMIN_SERVER", "SCONCE_TEST_PYTHON"];
const OTHERS_START: &str = "SCONCE_SKIP_";

/// A sentence for each variable that is ignored though it looks like one of ours.
pub fn warnings(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    let known: Vec<String> = keys().iter().map(|key| variable_name(key)).chain([variable_name(CONFIG)]).collect();
    let mut warnings: Vec<String> = variables
        .filter_map(|(name, value)| {
            let name = name.into_string().ok().filter(|name| name.starts_with("SCONCE_"))?;
            let is_known = known.contains(&name);
            if is_known && is_of_kubernetes(&name, &value) {
                let value = value.to_string_lossy();
                return Some(format!(
                    "{name} is ignored: '{value}' is what Kubernetes sets for a Service of that name \
                     (enableServiceLinks: false in the pod ends it)"
                ));
            }
            let is_other = OTHERS.contains(&&*name) || name.starts_with(OTHERS_START);
            let is_fine = is_known || is_other || is_for_a_service(&name, &value);
            (!is_fine).then(|| format!("{name}: no such option{}", nearest(&name)))
        })
        .collect();
    warnings.sort();
    warnings
}

/// `SCONCE_GRPC_PORT=tcp://10.0.0.1:7070`, which a Service called sconce-grpc brings: no port of ours is written so.
pub(super) fn is_of_kubernetes(name: &str, value: &OsStr) -> bool {
    let value = value.to_string_lossy();
    name.ends_with("_PORT") && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

/// The rest of what a Service called sconce or sconce-something brings: `SCONCE_SERVICE_HOST`, `SCONCE_PORT_7070_TCP`.
fn is_for_a_service(name: &str, value: &OsStr) -> bool {
    let has_number = |rest: &str| rest.starts_with(|first: char| first.is_ascii_digit());
    is_of_kubernetes(name, value)
        || name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split("_PORT_").skip(1).any(has_number)
}

/// clap knows which of the options is meant; nothing where none is near.
fn nearest(name: &str) -> String {
    let flag = name.trim_start_matches("SCONCE_").to_lowercase().replace('_', "-");
    let error = command().try_get_matches_from([format!("--{flag}=1")]).err();
    match error.as_ref().and_then(|error| error.get(ContextKind::SuggestedArg)) {
        Some(ContextValue::String(flag)) => {
            let key = flag.trim_start_matches("--").replace('-', "_");
            format!("; is {} meant?", variable_name(&key))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned(variables: &[(&str, &str)]) -> Vec<String> {
        warnings(variables.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn a_misspelled_variable_is_named_with_the_nearest() {
        assert_eq!(
            warned(&[("SCONCE_GRPC_PRT", "1"), ("SCONCE_XYZZY", "1")]),
            ["SCONCE_GRPC_PRT: no such option; is SCONCE_GRPC_PORT meant?", "SCONCE_XYZZY: no such option"]
        );
    }

    #[test]
    fn what_is_meant_or_not_ours_is_quiet() {
        let quiet = [
            ("SCONCE_GRPC_PORT", "7070"),
            ("SCONCE_CONFIG", "x"),
            ("SCONCE_SKIP_CLIENTS", "1"),
            ("SCONCE_TEST_PYTHON", "x"),
            ("SCONCE_SERVER", "x"),
            ("PATH", "/"),
        ];
        assert_eq!(warned(&quiet), [""; 0]);
    }

    #[test]
    fn of_what_a_service_brings_only_the_name_of_an_option_is_mentioned() {
        let of_service = [
            ("SCONCE_GRPC_SERVICE_HOST", "10.0.0.1"),
            ("SCONCE_GRPC_SERVICE_PORT_HTTP", "7070"),
            ("SCONCE_GRPC_PORT", "tcp://10.0.0.1:7070"),
            ("SCONCE_GRPC_PORT_7070_TCP", "tcp://10.0.0.1:7070"),
            ("SCONCE_GRPC_PORT_7070_TCP_ADDR", "10.0.0.1"),
            ("SCONCE_PORT", "tcp://10.0.0.1:7070"),
        ];
        let warned = warned(&of_service);
        assert_eq!(warned.len(), 1, "{warned:?}");
        assert!(warned[0].starts_with("SCONCE_GRPC_PORT is ignored: 'tcp://10.0.0.1:7070'"), "{warned:?}");
    }
}
