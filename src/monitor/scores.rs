//! How well scores meet their labels: two classes, scores in [0, 1]. Kept as counts in bins and a few sums, so that
//! replicas can be joined and no score is stored. It knows no models and not where labels come from.

use serde::{Deserialize, Deserializer, Serialize, de};

/// What labels have come in for. The default is that of none.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(into = "Sparse")]
pub struct Scores {
    /// One for each bin of equal width, of scores whose label is false.
    negatives: Vec<u64>,
    /// Of those whose label is true.
    positives: Vec<u64>,
    /// Of −ln of what was given to the label that came.
    log_loss: f64,
    /// Of squared differences between score and label.
    squares: f64,
    /// Scores on the label's side of one half.
    right: u64,
}

/// How scores are written: the bins that have something, ascending: bin, negatives, positives.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Sparse {
    log_loss: f64,
    squares: f64,
    right: u64,
    bins: Vec<(usize, u64, u64)>,
}

/// The AUC is right to half the share of pairs that fall into one bin: some 1 / 2,048 where scores are spread evenly.
const BINS: usize = 1_024;
/// A score that is sure and wrong costs −ln of this, 34.5, not infinity.
const PROBABILITY_MIN: f64 = 1e-15;
/// From here on a score says true.
const THRESHOLD: f64 = 0.5;

// === impl Scores ===

impl Default for Scores {
    fn default() -> Self {
        Self { negatives: vec![0; BINS], positives: vec![0; BINS], log_loss: 0.0, squares: 0.0, right: 0 }
    }
}

impl Scores {
    /// Whether it was taken: a score outside [0, 1], or NaN, is not.
    pub fn push(&mut self, score: f64, label: bool) -> bool {
        if !(0.0..=1.0).contains(&score) {
            return false;
        }
        let bins = if label { &mut self.positives } else { &mut self.negatives };
        let count = &mut bins[((score * BINS as f64) as usize).min(BINS - 1)];
        *count = count.saturating_add(1);
        let miss = if label { 1.0 - score } else { score };
        let clipped = score.clamp(PROBABILITY_MIN, 1.0 - PROBABILITY_MIN);
        self.log_loss -= if label { clipped.ln() } else { (-clipped).ln_1p() };
        self.squares += miss * miss;
        self.right = self.right.saturating_add(u64::from((score >= THRESHOLD) == label));
        true
    }

    /// As if the scores of both had been pushed into one; the sums up to rounding.
    pub fn merge(&mut self, other: &Self) {
        let own = self.negatives.iter_mut().chain(&mut self.positives);
        for (own, others) in own.zip(other.negatives.iter().chain(&other.positives)) {
            *own = own.saturating_add(*others);
        }
        self.log_loss += other.log_loss;
        self.squares += other.squares;
        self.right = self.right.saturating_add(other.right);
    }

    pub fn count(&self) -> u64 {
        self.positives().saturating_add(sum(&self.negatives))
    }

    /// How many had the label true.
    pub fn positives(&self) -> u64 {
        sum(&self.positives)
    }

    /// Mean of −ln p(label), with p clipped at 10^-15; `None` without scores, as all that follow.
    pub fn log_loss(&self) -> Option<f64> {
        self.mean(self.log_loss)
    }

    /// Mean squared difference between score and label (Brier 1950).
    pub fn brier(&self) -> Option<f64> {
        self.mean(self.squares)
    }

    /// The share of scores on the label's side of one half; one half itself says true.
    pub fn accuracy(&self) -> Option<f64> {
        self.mean(self.right as f64)
    }

    /// The chance that a true one scores higher than a false one, ties counted half (Mann and Whitney 1947), where
    /// scores of one bin tie; `None` without both labels.
    pub fn auc(&self) -> Option<f64> {
        let (negatives, positives) = (sum(&self.negatives) as f64, self.positives() as f64);
        let mut below = 0.0;
        let mut wins = 0.0;
        for (negative, positive) in self.negatives.iter().zip(&self.positives) {
            let negative = *negative as f64;
            wins += *positive as f64 * (below + negative / 2.0);
            below += negative;
        }
        (negatives > 0.0 && positives > 0.0).then(|| wins / (negatives * positives))
    }

    fn mean(&self, sum: f64) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| sum / count as f64)
    }
}

impl<'de> Deserialize<'de> for Scores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Sparse { log_loss, squares, right, bins } = Sparse::deserialize(deserializer)?;
        let mut scores = Self { log_loss, squares, right, ..Self::default() };
        let mut next = 0;
        for (bin, negatives, positives) in bins {
            if bin < next || bin >= BINS {
                return Err(de::Error::custom(format!("bins of scores ascend and are below {BINS}, unlike {bin}")));
            }
            scores.negatives[bin] = negatives;
            scores.positives[bin] = positives;
            next = bin + 1;
        }
        Ok(scores)
    }
}

impl From<Scores> for Sparse {
    fn from(scores: Scores) -> Self {
        let Scores { negatives, positives, log_loss, squares, right } = scores;
        let bins = negatives.into_iter().zip(positives).enumerate();
        let bins = bins.map(|(bin, (negatives, positives))| (bin, negatives, positives));
        let bins = bins.filter(|(_, negatives, positives)| *negatives > 0 || *positives > 0).collect();
        Self { log_loss, squares, right, bins }
    }
}

fn sum(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const FIXTURE: &str = include_str!("../../tests/fixtures/statistics.json");

    fn of(pairs: &[(f64, bool)]) -> Scores {
        let mut scores = Scores::default();
        pairs.iter().for_each(|(score, label)| assert!(scores.push(*score, *label)));
        scores
    }

    /// Half the share of pairs that are told apart by their scores and not by their bins.
    fn lost(pairs: &[(f64, bool)]) -> f64 {
        type Pairs = Vec<(f64, bool)>;
        let (trues, falses): (Pairs, Pairs) = pairs.iter().copied().partition(|pair| pair.1);
        let bin = |score: f64| ((score * BINS as f64) as usize).min(BINS - 1);
        let all = trues.iter().flat_map(|one: &(f64, bool)| falses.iter().map(|other: &(f64, bool)| (one.0, other.0)));
        let told_apart = all.filter(|(one, other)| one != other && bin(*one) == bin(*other)).count();
        0.5 * told_apart as f64 / (trues.len() * falses.len()) as f64
    }

    /// 1e-9, but for the AUC of scores that share bins: there the tolerance is what the bins lose at most.
    #[test]
    fn they_are_those_of_scikit_learn() {
        let golden: Value = serde_json::from_str(FIXTURE).unwrap();
        for case in golden["scores"].as_array().unwrap() {
            let pairs: Vec<(f64, bool)> = serde_json::from_value(case["pairs"].clone()).unwrap();
            let scores = of(&pairs);
            let close = |what: &str, got: Option<f64>, lost: f64| {
                let (got, expected) = (got.unwrap(), case[what].as_f64().unwrap());
                assert!((got - expected).abs() <= 1e-9 + lost, "{what}: got {got}, expected {expected}, {lost}");
            };
            close("log_loss", scores.log_loss(), 0.0);
            close("brier", scores.brier(), 0.0);
            close("accuracy", scores.accuracy(), 0.0);
            let on_centres = case["on_centres"].as_bool().unwrap();
            assert_eq!(lost(&pairs) == 0.0, on_centres, "the fixture says which scores share bins");
            close("auc", scores.auc(), lost(&pairs));
        }
    }

    #[test]
    fn what_is_no_probability_is_not_taken() {
        let mut scores = Scores::default();
        for score in [-0.001, 1.001, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(!scores.push(score, true));
        }
        assert_eq!(scores, Scores::default());
        assert_eq!((scores.log_loss(), scores.brier(), scores.accuracy(), scores.auc()), (None, None, None, None));
    }

    #[test]
    fn sure_and_wrong_is_not_infinite() {
        let loss = of(&[(0.0, true), (1.0, false)]).log_loss().unwrap();
        assert!((loss + PROBABILITY_MIN.ln()).abs() < 0.001, "{loss}");
        assert!(of(&[(1.0, true), (0.0, false)]).log_loss().unwrap() < 1e-14);
    }

    #[test]
    fn one_label_alone_has_no_auc() {
        let scores = of(&[(0.3, true), (0.9, true)]);
        assert_eq!((scores.auc(), scores.accuracy(), scores.positives()), (None, Some(0.5), 2));
        assert_eq!(of(&[(0.5, true), (0.5, false)]).auc(), Some(0.5));
    }

    #[test]
    fn they_are_written_sparsely() {
        let text = serde_json::to_string(&of(&[(1.0, true), (0.0, false), (1.0, true)])).unwrap();
        assert!(text.ends_with(r#""right":3,"bins":[[0,1,0],[1023,0,2]]}"#), "{text}");
    }

    #[test]
    fn what_are_no_scores_is_an_error() {
        for bins in ["[[1024,1,1]]", "[[5,1,1],[5,1,1]]", "[[5,1,1],[4,1,1]]", "[[-1,1,1]]", "[[1,1]]"] {
            let text = format!(r#"{{"log_loss":0.0,"squares":0.0,"right":0,"bins":{bins}}}"#);
            assert!(serde_json::from_str::<Scores>(&text).is_err(), "{text}");
        }
    }

    fn near(left: &Scores, right: &Scores) {
        assert_eq!((&left.negatives, &left.positives, left.right), (&right.negatives, &right.positives, right.right));
        assert!((left.log_loss - right.log_loss).abs() <= 1e-12 * left.log_loss.max(1.0));
        assert!((left.squares - right.squares).abs() <= 1e-12 * left.squares.max(1.0));
    }

    proptest! {
        #[test]
        fn merging_is_pushing_in_any_order(
            parts in prop::collection::vec(prop::collection::vec((0.0..=1.0_f64, any::<bool>()), 0..20), 1..6),
        ) {
            let all = of(&parts.concat());
            let (mut forward, mut backward) = (Scores::default(), Scores::default());
            parts.iter().for_each(|part| forward.merge(&of(part)));
            parts.iter().rev().for_each(|part| backward.merge(&of(part)));
            near(&all, &forward);
            near(&all, &backward);
            let text = serde_json::to_string(&all).unwrap();
            prop_assert_eq!(serde_json::from_str::<Scores>(&text).unwrap(), all);
        }

        #[test]
        fn swapping_the_labels_mirrors_the_auc(pairs in prop::collection::vec((0.0..=1.0_f64, any::<bool>()), 2..60)) {
            let swapped: Vec<(f64, bool)> = pairs.iter().map(|(score, label)| (*score, !label)).collect();
            match (of(&pairs).auc(), of(&swapped).auc()) {
                (Some(one), Some(other)) => prop_assert!((one + other - 1.0).abs() < 1e-12),
                (one, other) => prop_assert_eq!(one, other),
            }
        }
    }
}
