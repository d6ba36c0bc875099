//! `batching:` of model.yaml: how requests are joined, as people write it.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{units, word_or_map::WordOrMap};

/// `batching:`, a map of options or `off`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Batching {
    /// `off` or `on`; YAML's own booleans mean the same.
    Word(OnOff),
    Flag(bool),
    Options(BatchingOptions),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnOff {
    On,
    Off,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchingOptions {
    /// Rows of one run.
    pub max_batch_size: Option<usize>,
    /// Sizes that batches should have, in rows.
    pub preferred_batch_sizes: Option<Vec<usize>>,
    /// How long the first of a batch waits for more.
    #[serde(deserialize_with = "units::duration", skip_serializing)]
    pub max_delay: Option<Duration>,
    /// The longest a request waits in the queue.
    #[serde(deserialize_with = "units::duration", skip_serializing)]
    pub queue_timeout: Option<Duration>,
    pub max_queue: Option<MaxQueue>,
    /// `true` vouches that joined answers equal answers alone, without the child's test.
    pub joinable: Option<bool>,
}

/// What may wait.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaxQueue {
    pub rows: Option<usize>,
    #[serde(deserialize_with = "units::size", skip_serializing)]
    pub bytes: Option<u64>,
}

// === impl Batching ===

impl<'de> Deserialize<'de> for Batching {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match WordOrMap::<BatchingOptions>::read(deserializer, "off, on or a map of options")? {
            WordOrMap::Map(options) => Ok(Self::Options(options)),
            WordOrMap::Flag(flag) => Ok(Self::Flag(flag)),
            WordOrMap::Word(word) => match word.as_str() {
                "off" => Ok(Self::Word(OnOff::Off)),
                "on" => Ok(Self::Word(OnOff::On)),
                _ => Err(de::Error::custom(format!("batching is off, on or a map of options, not '{word}'"))),
            },
        }
    }
}

// === impl BatchingOptions ===

impl BatchingOptions {
    pub(super) fn over(self, under: BatchingOptions) -> BatchingOptions {
        let own_queue = self.max_queue.unwrap_or_default();
        let under_queue = under.max_queue.unwrap_or_default();
        BatchingOptions {
            max_batch_size: self.max_batch_size.or(under.max_batch_size),
            preferred_batch_sizes: self.preferred_batch_sizes.or(under.preferred_batch_sizes),
            max_delay: self.max_delay.or(under.max_delay),
            queue_timeout: self.queue_timeout.or(under.queue_timeout),
            max_queue: Some(MaxQueue {
                rows: own_queue.rows.or(under_queue.rows),
                bytes: own_queue.bytes.or(under_queue.bytes),
            }),
            joinable: self.joinable.or(under.joinable),
        }
    }
}
