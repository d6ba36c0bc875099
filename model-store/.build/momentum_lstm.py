"""momentum-lstm: the same question as early-signal's, asked of the last sixty days themselves. ONNX, FP32.

Trained in PyTorch; the ONNX graph is written by hand from its weights, because it is five nodes long and then
holds nothing that an exporter happened to add.
"""

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

import artifact
import market

SEED = 20260802
HIDDEN = 64
EPOCHS = 6
BATCH = 256
RTOL, ATOL = 1e-5, 1e-6  # float32: kernels of other machines add in another order
EXAMPLES = [("AAPL", "2018-06-29"), ("JPM", "2018-06-29"), ("XOM", "2020-03-20")]

NOTE = """
Target: 1 where the stock's return over the next 5 trading days is above the S&P 500's.
2016 is validation: the epoch with its lowest log loss was kept. The last 5 days of training and of validation are
left out, for their truth lies beyond them. Every fifth day of each stretch is used.
"""


class Momentum(torch.nn.Module):
    """window [n, 60, 2] -> logit [n]."""

    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(2, HIDDEN, batch_first=True)
        self.head = torch.nn.Linear(HIDDEN, 1)

    def forward(self, window):
        _, (hidden, _) = self.lstm(window)
        return self.head(hidden[0]).squeeze(-1)


def table():
    """All windows [dates, symbols, 60, 2], truths [dates, symbols], dates and symbols."""
    closes = market.stock_closes()
    stock = market.windows(market.percent_returns(closes))
    index = market.windows(market.percent_returns(market.index_closes().to_frame()))
    both = np.stack([stock, np.broadcast_to(index, stock.shape)], axis=-1).astype(np.float32)
    return both, market.beats_index().to_numpy(), closes.index, closes.columns


def train(x, y, x_valid, y_valid) -> Momentum:
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    model = Momentum()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    loss_of = torch.nn.BCEWithLogitsLoss()
    best, kept = float("inf"), None
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            loss_of(model(x[rows]), y[rows]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            loss = loss_of(model(x_valid), y_valid).item()
        print(f"epoch {epoch}: validation log loss {loss:.5f}")
        if loss < best:
            best, kept = loss, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    return model.eval()


def gates(weight: np.ndarray) -> np.ndarray:
    """PyTorch stacks the gates input, forget, cell, output; ONNX input, output, forget, cell."""
    i, f, c, o = np.split(weight, 4)
    return np.concatenate([i, o, f, c])


def onnx_model(model: Momentum) -> onnx.ModelProto:
    """Transpose (the operator wants the sequence first; callers have the batch first), LSTM, Gemm, Sigmoid."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    weights = {
        "W": gates(state["lstm.weight_ih_l0"])[None],
        "R": gates(state["lstm.weight_hh_l0"])[None],
        "B": np.concatenate([gates(state["lstm.bias_ih_l0"]), gates(state["lstm.bias_hh_l0"])])[None],
        "head_weight": state["head.weight"],
        "head_bias": state["head.bias"],
        "first": np.array([0], np.int64),
        "last": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["window"], ["sequence"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["sequence", "W", "R", "B"], ["", "hidden_1"], hidden_size=HIDDEN),
        helper.make_node("Squeeze", ["hidden_1", "first"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "head_weight", "head_bias"], ["logit_1"], transB=1),
        helper.make_node("Squeeze", ["logit_1", "last"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "momentum_lstm",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, ["batch", market.WINDOW_DAYS, 2])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch"])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def main() -> None:
    x, y, dates, symbols = table()
    known = np.isfinite(x).all((2, 3)) & np.isfinite(y)
    parts = market.every_fifth_day(dates, known, market.HORIZON_DAYS)
    (x_train, y_train), (x_valid, y_valid), (x_test, y_test) = [(x[part], y[part]) for part in parts]

    def torched(array):
        return torch.from_numpy(array.astype(np.float32))

    model = train(torched(x_train), torched(y_train), torched(x_valid), torched(y_valid))
    folder = artifact.version_folder("momentum-lstm", "1.0.0")
    onnx.save(onnx_model(model), folder / "model.onnx")

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def answer(window):
        return session.run(["probability"], {"window": window})[0]

    probability = answer(x_test)
    with torch.no_grad():
        np.testing.assert_allclose(probability, torch.sigmoid(model(torched(x_test))).numpy(), RTOL, ATOL)
    metrics = market.classifier_metrics(y_test, probability.astype(np.float64))
    print("test", {name: round(value, 4) for name, value in metrics.items()})

    shown = np.stack([x[dates.get_loc(day), symbols.get_loc(symbol)] for symbol, day in EXAMPLES])
    examples = [
        artifact.example(artifact.tensors({"window": rows}), {"probability": answer(rows)}, RTOL, ATOL)
        for rows in (shown[:1], shown)
    ]
    named = ", ".join(f"{symbol} at the close of {day}" for symbol, day in EXAMPLES)
    artifact.write_examples(
        folder / "example.json",
        f"Held-out windows: {named}; per day the stock's and the S&P 500's log return in percent, oldest day first.",
        examples,
    )
    artifact.write_version(
        folder,
        NOTE,
        {
            "library": f"onnxruntime {onnxruntime.__version__}",
            "inputs": [{"name": "window", "dtype": "FP32", "shape": [-1, market.WINDOW_DAYS, 2]}],
            "outputs": [{"name": "probability", "dtype": "FP32", "shape": [-1]}],
            "classes": ["lags", "beats"],
            "metrics": metrics,
            "training": artifact.training(market.WINDOW_DATA, market.WINDOW_SPLIT, SEED, "momentum_lstm.py"),
        },
    )


if __name__ == "__main__":
    main()
