//! `sconce experiment`: what variants and shadows have done beside stable, and what to make of it.

use std::{fmt::Write as _, process::ExitCode};

use clap::Args;
use serde_json::{Value, json};

use super::{
    client,
    models::{AdminArgs, TIMEOUT},
    print,
    proto::{Advice, Difference, GetExperimentRequest, GetExperimentResponse, PairReport, ShadowReport, VariantReport},
    table::table,
};
use crate::telemetry::logs::escape;

/// Report what a model's variants and shadows have done beside its stable version, on all replicas
#[derive(Args)]
#[command(after_help = HELP)]
pub struct ExperimentArgs {
    /// The model's name
    model: String,
    #[command(flatten)]
    admin: AdminArgs,
}

const HELP: &str = "\
Intervals and p-values may be looked at as often as one likes (mixture sequential tests); --json has those of the textbook beside
them, which are for one look alone.

Examples:
  sconce experiment early-signal
  sconce experiment early-signal --json | jq '.pairs[].recommendation'";

pub fn run(args: &ExperimentArgs) -> anyhow::Result<ExitCode> {
    let report = client::block_on(async {
        let client = client::admin(&args.admin.server).await?;
        let answer = client::with_retries(|| {
            let mut client = client.clone();
            let request = GetExperimentRequest { model: args.model.clone() };
            async move { client.get_experiment(client::call(request, TIMEOUT)).await }
        });
        Ok(answer.await?)
    })?;
    print(&match args.admin.json {
        true => serde_json::to_string_pretty(&to_json(&report))? + "\n",
        false => for_people(&report),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn for_people(report: &GetExperimentResponse) -> String {
    let rows: Vec<[String; 10]> = report.variants.iter().map(row).collect();
    let mut text = format!("{}, revision {}\n\n", escape(&report.model), report.revision);
    text += &table(
        ["VARIANT", "VERSION", "WEIGHT", "REQUESTS", "ERRORS", "STOOD IN", "P50", "P95", "OUTCOMES", "OF WHICH"],
        &rows,
    );
    for pair in &report.pairs {
        text += &pair_for_people(pair);
    }
    for shadow in &report.shadows {
        let _ = writeln!(text, "\n{}", escape(&shadow_for_people(shadow)));
    }
    if let Some(p) = report.sample_ratio_p_value.filter(|p| *p < 0.001) {
        let _ = writeln!(text, "\nrequests were not given out as the weights say: p = {p:.2e}; trust no comparison");
    }
    if report.pairs.is_empty() && report.shadows.is_empty() {
        text += "\nnobody shares the traffic; `sconce route` has it shared\n";
    }
    text
}

fn row(variant: &VariantReport) -> [String; 10] {
    let said = [
        ("accuracy", variant.accuracy),
        ("log loss", variant.log_loss),
        ("AUC", variant.auc),
        ("squared error", variant.squared_error.filter(|_| variant.accuracy.is_none())),
        ("reward", variant.reward),
    ];
    let said = said.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let own = variant.metrics.iter().map(|(name, value)| (name.as_str(), *value));
    let said: Vec<String> = said.chain(own).map(|(name, value)| format!("{name} {}", short(value))).collect();
    [
        variant.name.clone(),
        variant.version.clone(),
        format!("{} %", variant.weight),
        variant.assigned.to_string(),
        variant.error_rate.map_or("-".into(), |rate| format!("{} ({:.2} %)", variant.errors, rate * 100.0)),
        variant.degraded.to_string(),
        milliseconds(variant.latency_p50_seconds),
        milliseconds(variant.latency_p95_seconds),
        variant.outcomes.to_string(),
        said.join(", "),
    ]
}

fn pair_for_people(pair: &PairReport) -> String {
    let mut text = format!("\n{} {} beside stable\n", escape(&pair.variant), escape(&pair.version));
    for Difference { metric, stable, variant, difference, always_valid, .. } in &pair.differences {
        let known = always_valid.as_ref().map_or(String::new(), |found| {
            format!(", from {} to {}, p = {}", signed(found.lower), signed(found.upper), short(found.p_value))
        });
        let (metric, apart) = (escape(metric), signed(*difference));
        let _ = writeln!(text, "  {metric}: {} against {}: {apart}{known}", short(*variant), short(*stable));
    }
    if let Some(recommendation) = &pair.recommendation {
        let advice = advice(recommendation.advice()).replace('_', " ");
        let _ = writeln!(text, "  {advice}: {}", escape(&recommendation.reason));
    }
    text
}

pub fn shadow_for_people(shadow: &ShadowReport) -> String {
    let ShadowReport { version, sent, dropped, failed, rows, largest_difference, .. } = shadow;
    let mut text = format!("shadow {version}: asked {sent} times, {failed} failed, {dropped} dropped");
    if let Some(agreement) = shadow.agreement {
        let _ = write!(
            text,
            "; {:.2} % of {rows} rows agree, the largest difference is {}",
            agreement * 100.0,
            short(*largest_difference)
        );
    }
    if let Some(correlation) = shadow.rank_correlation {
        let _ = write!(text, ", rank correlation {}", short(correlation));
    }
    if let Some(ratio) = shadow.latency_p95_ratio {
        let _ = write!(text, "; its p95 is {} times that of the callers' answers", short(ratio));
    }
    text
}

fn advice(advice: Advice) -> &'static str {
    match advice {
        Advice::Unspecified => "unknown",
        Advice::Promote => "promote",
        Advice::Wait => "wait",
        Advice::RollBack => "roll_back",
        Advice::Investigate => "investigate",
    }
}

pub fn milliseconds(seconds: Option<f64>) -> String {
    seconds.map_or("-".into(), |seconds| format!("{:.2} ms", seconds * 1e3))
}

/// Four digits that say something.
pub fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if (1e-3..1e5).contains(&size) => {
            let decimals = (3 - size.log10().floor() as i32).clamp(0, 6);
            format!("{value:.0$}", decimals as usize)
        }
        _ => format!("{value:.2e}"),
    }
}

fn signed(value: f64) -> String {
    if value > 0.0 { format!("+{}", short(value)) } else { short(value) }
}

/// The keys of the protocol.
fn to_json(report: &GetExperimentResponse) -> Value {
    json!({
        "model": report.model,
        "revision": report.revision,
        "variants": report.variants.iter().map(variant_to_json).collect::<Vec<_>>(),
        "pairs": report.pairs.iter().map(pair_to_json).collect::<Vec<_>>(),
        "shadows": report.shadows.iter().map(shadow_to_json).collect::<Vec<_>>(),
        "sample_ratio_p_value": report.sample_ratio_p_value,
    })
}

pub fn variant_to_json(variant: &VariantReport) -> Value {
    json!({
        "name": variant.name,
        "version": variant.version,
        "weight": variant.weight,
        "assigned": variant.assigned,
        "answered": variant.answered,
        "errors": variant.errors,
        "error_rate": variant.error_rate,
        "degraded": variant.degraded,
        "non_finite": variant.non_finite,
        "latency_p50_seconds": variant.latency_p50_seconds,
        "latency_p95_seconds": variant.latency_p95_seconds,
        "latency_p99_seconds": variant.latency_p99_seconds,
        "outcomes": variant.outcomes,
        "accuracy": variant.accuracy,
        "log_loss": variant.log_loss,
        "auc": variant.auc,
        "brier": variant.brier,
        "squared_error": variant.squared_error,
        "reward": variant.reward,
        "metrics": variant.metrics,
    })
}

fn pair_to_json(pair: &PairReport) -> Value {
    let recommendation = pair.recommendation.as_ref().map(|recommendation| {
        json!({
            "advice": advice(recommendation.advice()),
            "rule": recommendation.rule,
            "reason": recommendation.reason,
        })
    });
    json!({
        "variant": pair.variant,
        "version": pair.version,
        "differences": pair.differences.iter().map(difference_to_json).collect::<Vec<_>>(),
        "latency_p95_ratio": pair.latency_p95_ratio,
        "recommendation": recommendation,
    })
}

fn difference_to_json(found: &Difference) -> Value {
    json!({
        "metric": found.metric,
        "stable": found.stable,
        "variant": found.variant,
        "difference": found.difference,
        "fixed_horizon": found.fixed_horizon.as_ref().map(|fixed| json!({
            "lower": fixed.lower,
            "upper": fixed.upper,
            "p_value": fixed.p_value,
            "method": fixed.method,
        })),
        "always_valid": found.always_valid.as_ref().map(|always| json!({
            "lower": always.lower,
            "upper": always.upper,
            "p_value": always.p_value,
        })),
    })
}

pub fn shadow_to_json(shadow: &ShadowReport) -> Value {
    json!({
        "version": shadow.version,
        "sample": shadow.sample,
        "sent": shadow.sent,
        "dropped": shadow.dropped,
        "failed": shadow.failed,
        "rows": shadow.rows,
        "agreement": shadow.agreement,
        "largest_difference": shadow.largest_difference,
        "rank_correlation": shadow.rank_correlation,
        "latency_p50_ratio": shadow.latency_p50_ratio,
        "latency_p95_ratio": shadow.latency_p95_ratio,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::proto::{AlwaysValid, Recommendation};

    #[test]
    fn people_see_a_line_a_variant_and_what_to_make_of_it() {
        let variant = |name: &str, errors| VariantReport {
            name: name.into(),
            version: "1.0.0".into(),
            weight: 5.0,
            assigned: 200,
            errors,
            error_rate: Some(errors as f64 / 200.0),
            latency_p50_seconds: Some(0.00125),
            accuracy: Some(0.6125),
            ..Default::default()
        };
        let difference = Difference {
            metric: "error_rate".into(),
            stable: 0.01,
            variant: 0.04,
            difference: 0.03,
            always_valid: Some(AlwaysValid { lower: 0.0102, upper: 0.0498, p_value: 0.0003 }),
            ..Default::default()
        };
        let recommendation =
            Recommendation { advice: Advice::RollBack.into(), rule: "error_rate".into(), reason: "it errs".into() };
        let report = GetExperimentResponse {
            model: "m".into(),
            revision: 7,
            variants: vec![variant("stable", 2), variant("canary", 8)],
            pairs: vec![PairReport {
                variant: "canary".into(),
                version: "1.1.0".into(),
                differences: vec![difference],
                recommendation: Some(recommendation),
                ..Default::default()
            }],
            ..Default::default()
        };
        let text = for_people(&report);
        for words in [
            "canary   1.0.0    5 %",
            "8 (4.00 %)",
            "1.25 ms",
            "accuracy 0.6125",
            "error_rate: 0.04000 against 0.01000: +0.03000, from +0.01020 to +0.04980, p = 3.00e-4",
            "roll back: it errs",
        ] {
            assert!(text.contains(words), "'{words}' is not in\n{text}");
        }
        assert_eq!(to_json(&report)["pairs"][0]["recommendation"]["advice"], "roll_back");
    }

    #[test]
    fn where_nobody_shares_it_says_how() {
        let alone = GetExperimentResponse { model: "m".into(), ..Default::default() };
        assert!(for_people(&alone).contains("`sconce route`"));
    }
}
