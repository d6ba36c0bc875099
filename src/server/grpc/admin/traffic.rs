//! Who shares a model's traffic, as the protocol has it.

use crate::{
    catalog::{ModelEntry, Standing},
    error::Result,
    model::{self, Slots, Source},
    rollout::Sharing,
    server::proto::sconce::v1::{RoutingRule, Shadow, Sticky, Traffic, Variant},
};

/// What is asked for. Whether it fits together is the route's to say.
pub fn read(traffic: Traffic) -> Result<Sharing> {
    let variant = |Variant { name, version, weight, .. }: Variant| {
        Ok(model::Variant { name, version: version.parse()?, weight, slots: Slots::default() })
    };
    let rule = |RoutingRule { attribute, metadata, values, version, caller }: RoutingRule| {
        Ok(model::Rule {
            attribute: said(attribute),
            metadata: said(metadata),
            caller,
            equals: None,
            one_of: values,
            version: version.parse()?,
        })
    };
    let shadow = |Shadow { version, sample }: Shadow| Ok(model::Shadow { version: version.parse()?, sample });
    Ok(Sharing {
        variants: traffic.variants.into_iter().map(variant).collect::<Result<_>>()?,
        sticky: traffic.sticky.map(|Sticky { attribute, metadata, salt, caller }| model::Sticky {
            attribute: said(attribute),
            metadata: said(metadata),
            caller,
            salt,
        }),
        rules: traffic.rules.into_iter().map(rule).collect::<Result<_>>()?,
        shadow: traffic.shadows.into_iter().map(shadow).collect::<Result<_>>()?,
    })
}

/// What was decided last, whether it holds here already or not.
pub fn written(model: &ModelEntry) -> Traffic {
    let route = model.pending.as_ref().map_or(&model.route, |pending| &pending.route);
    let variant = |variant: &model::Variant| Variant {
        name: variant.name.clone(),
        version: variant.version.to_string(),
        weight: variant.weight,
        slots: variant.slots.to_string(),
        stood_in_for: stood_in_for(model, &variant.name),
    };
    let sticky = |sticky: &model::Sticky| {
        let (attribute, metadata) = keys(sticky.source());
        Sticky { attribute, metadata, salt: sticky.salt.clone(), caller: sticky.caller }
    };
    let rule = |rule: &model::Rule| {
        let (attribute, metadata) = keys(rule.source());
        let values = rule.values().map(str::to_owned).collect();
        RoutingRule { attribute, metadata, values, version: rule.version.to_string(), caller: rule.caller }
    };
    let shadow = |shadow: &model::Shadow| Shadow { version: shadow.version.to_string(), sample: shadow.sample };
    Traffic {
        variants: route.variants.iter().map(variant).collect(),
        sticky: route.sticky.as_ref().map(sticky),
        rules: route.rules.iter().map(rule).collect(),
        shadows: route.shadow.iter().map(shadow).collect(),
    }
}

fn stood_in_for(model: &ModelEntry, variant: &str) -> String {
    let arm = model.traffic.arms.iter().find(|arm| *arm.name == *variant);
    match arm.map(|arm| &arm.standing) {
        Some(Standing::Answers(_, model::Fit::All)) => String::new(),
        Some(Standing::Answers(_, model::Fit::NamedFeatures)) => {
            "where tensors come: it answers named features alone, for it has other columns than stable".to_owned()
        }
        Some(Standing::Answers(_, model::Fit::Tensors)) => {
            "where named features come: it answers tensors alone, for stable takes rows that it does not".to_owned()
        }
        Some(Standing::Incompatible(error)) => error.message().to_owned(),
        Some(Standing::Unready) | None => "its version is not ready here".to_owned(),
    }
}

fn said(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn keys(source: Source<'_>) -> (String, String) {
    match source {
        Source::Attribute(name) => (name.to_owned(), String::new()),
        Source::Metadata(name) => (String::new(), name.to_owned()),
        Source::Caller => (String::new(), String::new()),
    }
}
