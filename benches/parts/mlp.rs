//! A multilayer perceptron of any size, as an ONNX file and as the answers that it must give.

use crate::wire;

/// Layers with ReLU between them, FP32, `x` [-1, first] → `y` [-1, last].
pub struct Mlp {
    layers: Vec<Layer>,
}

/// One layer. Those of one shape are the same, so that a deep model is no large file.
struct Layer {
    inputs: usize,
    outputs: usize,
    /// Row-major, by input.
    weights: Vec<f32>,
}

const FLOAT: u64 = 1;
const SEED: u64 = 2;

// === impl Mlp ===

impl Mlp {
    /// `widths` from the input to the output, at least two. Always the same weights.
    pub fn new(widths: &[usize]) -> Self {
        let layers = widths.windows(2).map(|pair| Layer::new(pair[0], pair[1]));
        Self { layers: layers.collect() }
    }

    /// What `model.onnx` holds.
    pub fn onnx(&self) -> Vec<u8> {
        let mut graph = Vec::new();
        let last = self.layers.len() - 1;
        for (place, layer) in self.layers.iter().enumerate() {
            let input = if place == 0 { "x".into() } else { format!("relu_{}", place - 1) };
            let output = if place == last { "y".into() } else { format!("layer_{place}") };
            graph.extend(node("MatMul", &[&input, &layer.name()], &output));
            if place < last {
                graph.extend(node("Relu", &[&output], &format!("relu_{place}")));
            }
        }
        graph.extend(wire::field(2, b"mlp"));
        let mut written = Vec::new();
        for layer in &self.layers {
            if !written.contains(&layer.name()) {
                graph.extend(wire::field(5, &layer.tensor()));
                written.push(layer.name());
            }
        }
        graph.extend(wire::field(11, &value_info("x", self.layers[0].inputs)));
        graph.extend(wire::field(12, &value_info("y", self.layers[last].outputs)));
        [wire::number(1, 8), wire::field(7, &graph), wire::field(8, &wire::number(2, 13))].concat()
    }

    /// A row that is as good as any other; the number makes other rows.
    pub fn row(&self, number: u64) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(number);
        (0..self.layers[0].inputs).map(|_| random.f32() * 2.0 - 1.0).collect()
    }

    /// The answer to one row, summed in double precision.
    pub fn answer(&self, row: &[f32]) -> Vec<f64> {
        let last = self.layers.len() - 1;
        let input: Vec<f64> = row.iter().copied().map(f64::from).collect();
        self.layers.iter().enumerate().fold(input, |input, (place, layer)| {
            let sums = layer.times(&input);
            if place < last { sums.into_iter().map(|sum| sum.max(0.0)).collect() } else { sums }
        })
    }
}

// === impl Layer ===

impl Layer {
    /// Weights drawn so that values neither vanish nor grow from layer to layer (He et al. 2015, arXiv:1502.01852, eq. 10).
    fn new(inputs: usize, outputs: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(SEED + (inputs * outputs) as u64);
        let most = (6.0 / inputs as f32).sqrt();
        let weights = (0..inputs * outputs).map(|_| (random.f32() * 2.0 - 1.0) * most);
        Self { inputs, outputs, weights: weights.collect() }
    }

    fn name(&self) -> String {
        format!("w_{}_{}", self.inputs, self.outputs)
    }

    fn tensor(&self) -> Vec<u8> {
        let raw: Vec<u8> = self.weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let dims = [wire::number(1, self.inputs as u64), wire::number(1, self.outputs as u64)];
        let (name, raw) = (wire::field(8, self.name().as_bytes()), wire::field(9, &raw));
        [dims.concat(), wire::number(2, FLOAT), name, raw].concat()
    }

    fn times(&self, input: &[f64]) -> Vec<f64> {
        let mut sums = vec![0.0; self.outputs];
        for (value, weights) in input.iter().zip(self.weights.chunks(self.outputs)) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += value * f64::from(*weight);
            }
        }
        sums
    }
}

fn node(operator: &str, inputs: &[&str], output: &str) -> Vec<u8> {
    let inputs = inputs.iter().flat_map(|input| wire::field(1, input.as_bytes()));
    let rest = [wire::field(2, output.as_bytes()), wire::field(4, operator.as_bytes())].concat();
    wire::field(1, &inputs.chain(rest).collect::<Vec<u8>>())
}

fn value_info(name: &str, width: usize) -> Vec<u8> {
    let rows = wire::field(1, &wire::field(2, b"n"));
    let columns = wire::field(1, &wire::number(1, width as u64));
    let tensor = [wire::number(1, FLOAT), wire::field(2, &[rows, columns].concat())].concat();
    [wire::field(1, name.as_bytes()), wire::field(2, &wire::field(1, &tensor))].concat()
}
