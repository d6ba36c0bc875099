//! `sconce route`: what is asked for, as an edit of who shares the traffic now.

use std::time::Duration;

use clap::Args;
use tokio::sync::OnceCell;
use tonic::{Response, Status, transport::Channel};

use super::ChangeArgs;
use crate::cli::{
    client,
    proto::{
        Asked, ChangeResponse, DescribeModelRequest, RoutingRule, SetRouteRequest, Shadow, Sticky, Traffic, Variant,
        admin_client::AdminClient,
    },
};

#[derive(Args)]
pub struct RouteArgs {
    /// The model's name
    pub model: String,
    /// Give a version a share under a name, in percent, e.g. canary=1.1.0:5; may be repeated
    #[arg(long, value_name = "NAME=VERSION:PERCENT", value_parser = parse_variant)]
    variant: Vec<Variant>,
    /// Take a variant away; what it had is stable's. May be repeated
    #[arg(long, value_name = "NAME")]
    remove: Vec<String>,
    /// What a caller is known by: attribute:KEY, metadata:KEY, or `caller`, who is authenticated (`caller_metadata` of the server); `none` draws for each call. A salt stays
    #[arg(long, value_name = "SOURCE", value_parser = parse_sticky)]
    sticky: Option<Known>,
    /// Another salt puts callers into other slots
    #[arg(long, value_name = "TEXT")]
    salt: Option<String>,
    /// Give callers a version, e.g. attribute:tenant=a,b:1.2.0; may be repeated, and replaces all rules; `none` takes them away
    #[arg(long, value_name = "SOURCE=VALUES:VERSION", value_parser = parse_rule)]
    rule: Vec<Listed<RoutingRule>>,
    /// Ask a version as well, whose answers nobody gets, e.g. 1.2.0:10 for a tenth; may be repeated, and replaces all shadows;
    /// `none` takes them away
    #[arg(long, value_name = "VERSION:PERCENT", value_parser = parse_shadow)]
    shadow: Vec<Listed<Shadow>>,
    /// Begin with nothing: without anything else stable has all
    #[arg(long)]
    clear: bool,
    #[command(flatten)]
    pub change: ChangeArgs,
    /// What is asked for, once it is known: a retry asks for the same.
    #[arg(skip)]
    request: OnceCell<SetRouteRequest>,
}

/// One of a list, or that there is to be none.
#[derive(Clone, Debug, PartialEq)]
enum Listed<T> {
    None,
    One(T),
}

/// `None` is nobody.
#[derive(Clone, Debug, PartialEq)]
struct Known(Option<Sticky>);

pub const HELP: &str = "\
What is not mentioned stays as it is; `sconce describe MODEL` shows it. Who raises a weight moves callers from stable to the
variant alone, who lowers it gives them back.

Examples:
  sconce route early-signal --variant canary=1.1.0:5 --sticky attribute:customer
  sconce route early-signal --variant canary=1.1.0:25 --reason 'an hour without errors'
  sconce route early-signal --rule attribute:tenant=acme,initech:1.1.0
  sconce route early-signal --shadow 1.1.0:10
  sconce route early-signal --remove canary
  sconce route early-signal --clear --reason 'back to stable alone'";

// === impl RouteArgs ===

impl RouteArgs {
    /// Reads who shares the traffic, edits it, and asks for that, if nobody else was first.
    pub async fn call(
        &self,
        client: &mut AdminClient<Channel>,
        asked: Asked,
        timeout: Duration,
    ) -> Result<Response<ChangeResponse>, Status> {
        let request = self.request.get_or_try_init(|| self.request_of(client.clone(), asked, timeout)).await?.clone();
        client.set_route(client::call(request, timeout)).await
    }

    async fn request_of(
        &self,
        mut client: AdminClient<Channel>,
        asked: Asked,
        timeout: Duration,
    ) -> Result<SetRouteRequest, Status> {
        let request = client::call(DescribeModelRequest { model: self.model.clone() }, timeout);
        let described = client.describe_model(request).await?.into_inner();
        let route = described.route.unwrap_or_default();
        let traffic = self.edit(route.traffic.unwrap_or_default()).map_err(Status::invalid_argument)?;
        let asked = Asked { expected_revision: asked.expected_revision.or(Some(route.latest_revision)), ..asked };
        Ok(SetRouteRequest { model: self.model.clone(), traffic: Some(traffic), asked: Some(asked) })
    }

    pub fn asks_for_nothing(&self) -> bool {
        !self.clear
            && self.variant.is_empty()
            && self.remove.is_empty()
            && self.sticky.is_none()
            && self.salt.is_none()
            && self.rule.is_empty()
            && self.shadow.is_empty()
    }

    /// `Err` says what of it makes no sense.
    fn edit(&self, now: Traffic) -> Result<Traffic, String> {
        let mut next = if self.clear { Traffic::default() } else { now };
        let is_known = |name: &String| next.variants.iter().any(|variant| variant.name == *name);
        if let Some(unknown) = self.remove.iter().find(|name| !is_known(name)) {
            let names: Vec<&str> = next.variants.iter().map(|variant| variant.name.as_str()).collect();
            return Err(format!("there is no variant '{unknown}' to remove; there are: {}", names.join(", ")));
        }
        next.variants.retain(|variant| !self.remove.contains(&variant.name));
        for wanted in &self.variant {
            match next.variants.iter_mut().find(|variant| variant.name == wanted.name) {
                Some(variant) => *variant = wanted.clone(),
                None => next.variants.push(wanted.clone()),
            }
        }
        if let Some(Known(sticky)) = &self.sticky {
            let salt = next.sticky.take().map(|known| known.salt).unwrap_or_default();
            next.sticky = sticky.clone().map(|sticky| Sticky { salt, ..sticky });
        }
        if let Some(salt) = &self.salt {
            let sticky = next.sticky.as_mut().ok_or("--salt is for callers who are known: say --sticky, too")?;
            sticky.salt.clone_from(salt);
        }
        if !self.rule.is_empty() {
            next.rules = listed(&self.rule);
        }
        if !self.shadow.is_empty() {
            next.shadows = listed(&self.shadow);
        }
        Ok(next)
    }
}

fn listed<T: Clone>(items: &[Listed<T>]) -> Vec<T> {
    let items = items.iter().filter_map(|item| match item {
        Listed::None => None,
        Listed::One(item) => Some(item.clone()),
    });
    items.collect()
}

fn parse_variant(text: &str) -> Result<Variant, String> {
    let parsed = text.split_once('=').and_then(|(name, rest)| {
        let (version, weight) = rest.rsplit_once(':')?;
        Some(Variant { name: name.into(), version: version.into(), weight: percent(weight)?, ..Variant::default() })
    });
    parsed.ok_or_else(|| "write NAME=VERSION:PERCENT, e.g. canary=1.1.0:5".into())
}

fn parse_shadow(text: &str) -> Result<Listed<Shadow>, String> {
    if text == "none" {
        return Ok(Listed::None);
    }
    let parsed = text
        .rsplit_once(':')
        .and_then(|(version, sample)| Some(Shadow { version: version.into(), sample: percent(sample)? }));
    parsed.map(Listed::One).ok_or_else(|| "write VERSION:PERCENT, e.g. 1.2.0:10, or none".into())
}

fn parse_sticky(text: &str) -> Result<Known, String> {
    if text == "none" {
        return Ok(Known(None));
    }
    let Keys { attribute, metadata, caller } =
        source(text).ok_or("write attribute:KEY, metadata:KEY, caller or none")?;
    Ok(Known(Some(Sticky { attribute, metadata, salt: String::new(), caller })))
}

fn parse_rule(text: &str) -> Result<Listed<RoutingRule>, String> {
    if text == "none" {
        return Ok(Listed::None);
    }
    let parsed = text.split_once('=').and_then(|(from, rest)| {
        let Keys { attribute, metadata, caller } = source(from)?;
        let (values, version) = rest.rsplit_once(':')?;
        let values = values.split(',').map(str::to_owned).collect();
        Some(RoutingRule { attribute, metadata, values, version: version.into(), caller })
    });
    parsed
        .map(Listed::One)
        .ok_or_else(|| "write attribute:KEY=VALUE[,VALUE…]:VERSION, metadata:KEY=…, caller=…, or none".into())
}

/// What a caller is known by: one of the three.
#[derive(Default)]
struct Keys {
    attribute: String,
    metadata: String,
    caller: bool,
}

fn source(text: &str) -> Option<Keys> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("caller", "") => Some(Keys { caller: true, ..Keys::default() }),
        (_, "") => None,
        ("attribute", key) => Some(Keys { attribute: key.into(), ..Keys::default() }),
        ("metadata", key) => Some(Keys { metadata: key.into(), ..Keys::default() }),
        _ => None,
    }
}

/// `5`, `5%` and `2.5` are percentages.
fn percent(text: &str) -> Option<f64> {
    text.strip_suffix('%').unwrap_or(text).parse().ok().filter(|percent: &f64| percent.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, FromArgMatches};

    fn args(arguments: &[&str]) -> Result<RouteArgs, clap::Error> {
        let command = RouteArgs::augment_args(Command::new("route"));
        RouteArgs::from_arg_matches(&command.try_get_matches_from([&["route", "m"], arguments].concat())?)
    }

    fn edited(now: &Traffic, arguments: &[&str]) -> Traffic {
        args(arguments).expect("they are right").edit(now.clone()).expect("it makes sense")
    }

    #[test]
    fn what_is_not_mentioned_stays() {
        let first = edited(
            &Traffic::default(),
            &["--variant=canary=1.1.0:5%", "--variant=b=1.2.0:2.5", "--sticky=metadata:x-user", "--shadow=1.3.0:10"],
        );
        let names: Vec<_> = first.variants.iter().map(|variant| (variant.name.as_str(), variant.weight)).collect();
        assert_eq!(names, [("canary", 5.0), ("b", 2.5)]);
        assert_eq!(first.sticky.as_ref().expect("it was asked for").metadata, "x-user");
        let second = edited(&first, &["--variant=canary=1.1.0:25", "--remove=b", "--rule=attribute:tenant=a,b:1.2.0"]);
        assert_eq!((second.variants.len(), second.variants[0].weight), (1, 25.0));
        assert_eq!(second.rules[0].values, ["a", "b"]);
        assert_eq!((&second.sticky, &second.shadows), (&first.sticky, &first.shadows));
        assert_eq!(edited(&second, &["--sticky=none"]).sticky, None);
        assert!(edited(&second, &["--sticky=caller"]).sticky.expect("it was asked for").caller);
        assert_eq!(edited(&second, &["--clear"]), Traffic::default());
        let bare = edited(&second, &["--rule=none", "--shadow=none"]);
        assert_eq!((bare.rules.len(), bare.shadows.len(), bare.variants.len()), (0, 0, 1));
        let salted = edited(&second, &["--salt=2027"]);
        assert_eq!(edited(&salted, &["--sticky=attribute:desk"]).sticky.expect("it was asked for").salt, "2027");
        let refused = args(&["--remove=canry"]).expect("it is written right").edit(second).expect_err("there is none");
        assert!(refused.contains("'canry'") && refused.contains("canary"), "{refused}");
    }

    #[test]
    fn what_is_written_wrong_says_how_it_is_written() {
        for (argument, says) in [
            ("--variant=canary", "NAME=VERSION:PERCENT"),
            ("--variant=canary=1.1.0", "NAME=VERSION:PERCENT"),
            ("--variant=canary=1.1.0:nan", "NAME=VERSION:PERCENT"),
            ("--shadow=1.1.0", "VERSION:PERCENT"),
            ("--sticky=customer", "attribute:KEY"),
            ("--rule=tenant=a:1.1.0", "attribute:KEY"),
        ] {
            let error = args(&[argument]).err().expect(argument).to_string();
            assert!(error.contains(says), "{argument}: {error}");
        }
        assert!(args(&[]).expect("it is for the server to say").asks_for_nothing());
    }
}
