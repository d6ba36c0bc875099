//! What variants and shadows did, as series for the monitoring of others: read of the cells when somebody looks.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet},
    metrics::MetricType,
};

use super::{Compared, SHADOW, STABLE, Scoreboard, Tally};
use crate::model::{ModelName, Version};

/// Of the models whose traffic is shared, or was since this replica was started; of all others the series by version say as
/// much.
pub struct Series(Scoreboard);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct Labels {
    model: String,
    variant: String,
    version: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct ShadowLabels {
    model: String,
    version: String,
    result: &'static str,
}

type NoLabels = Vec<(String, String)>;

// === impl Series ===

impl Series {
    pub fn of(scoreboard: Scoreboard) -> Self {
        Self(scoreboard)
    }

    /// By variant, over all revisions: so no count goes down while the replica runs.
    fn sums(&self) -> BTreeMap<(ModelName, String, Version), Tally> {
        let mut sums = BTreeMap::<_, Tally>::new();
        for model in self.0.known() {
            let cells = self.0.cells(&model);
            if cells.iter().all(|(key, _)| key.variant == STABLE) {
                continue;
            }
            for (key, cell) in cells {
                sums.entry((model.clone(), key.variant, key.version)).or_default().merge(&cell.read());
            }
        }
        sums
    }
}

impl Collector for Series {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let sums = self.sums();
        let (shadows, variants): (Vec<_>, Vec<_>) = sums.iter().partition(|((_, variant, _), _)| variant == SHADOW);
        if !variants.is_empty() {
            let help = "Calls that the route gave to a variant: answered, failed, or answered by stable in its place";
            let mut family = encoder.encode_descriptor("variant_requests", help, None, MetricType::Counter)?;
            for ((model, variant, version), tally) in variants {
                for (result, count) in
                    [("answered", tally.answered), ("failed", tally.errors), ("stood_in_for", tally.degraded)]
                {
                    let labels = Labels {
                        model: model.to_string(),
                        variant: variant.clone(),
                        version: version.to_string(),
                        result,
                    };
                    family.encode_family(&labels)?.encode_counter::<NoLabels, u64, u64>(&count, None)?;
                }
            }
        }
        if !shadows.is_empty() {
            let help =
                "Calls that a shadow was asked as well: answered, failed, or not asked as too many were on their way";
            let mut family = encoder.encode_descriptor("shadow_requests", help, None, MetricType::Counter)?;
            for ((model, _, version), Tally { compared, .. }) in shadows {
                let Compared { dropped, failed, .. } = *compared;
                let answered = compared.latency.count();
                for (result, count) in [("answered", answered), ("failed", failed), ("dropped", dropped)] {
                    let labels = ShadowLabels { model: model.to_string(), version: version.to_string(), result };
                    family.encode_family(&labels)?.encode_counter::<NoLabels, u64, u64>(&count, None)?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Series")
    }
}
