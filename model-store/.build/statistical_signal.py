"""statistical-signal: three rules a trader knows, as an ONNX graph: RSI 14, MACD 12/26/9, moving averages 10/50.

Nothing is trained. It answers early-signal's question from sixty closes alone, so it can stand in for a model that
is not there.

Moving averages are linear in the window, so each is one column of a constant matrix and the graph is a MatMul with
a few operators round it. The closes are taken relative to the first one before that: a flat window then gives
exactly zero, not a rounding error whose sign would be a vote. Inside it is FP64, so that votes near their
thresholds do not depend on how many rows are joined.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import artifact
import market

DAYS = market.WINDOW_DAYS
RSI_DAYS, FAST, SLOW, SIGNAL, SHORT, LONG = 14, 12, 26, 9, 10, 50
RSI_LOW, RSI_HIGH = 30.0, 70.0
VOTE = 0.05  # what one vote of three moves the probability away from one half
RTOL, ATOL = 1e-5, 1e-5
OUTPUTS = ["probability", "signal", "rsi_14", "macd", "macd_signal", "macd_histogram", "sma_10", "sma_50"]
EXAMPLES = [("AAPL", "2018-06-29"), ("JPM", "2018-06-29"), ("XOM", "2020-03-20")]

NOTE = """
Rules, not training: a vote of +1 or -1 each for RSI 14 below 30 or above 70, for the sign of the MACD histogram and
for the 10-day average above or below the 50-day one. signal is the sign of their sum, probability 0.5 + 0.05 a vote.
The metrics ask whether the stock beats the S&P 500 over the next 5 trading days, from 2017-01-03 to 2022-12-28, every
fifth day; abstains is the share of rows with signal 0.
"""


# === the same in numpy, written the way a textbook has it ===


def ema(values: np.ndarray, alpha: float) -> np.ndarray:
    """[n, days] -> [n, days]; starts at the first value."""
    out = values.copy()
    for day in range(1, values.shape[1]):
        out[:, day] = alpha * values[:, day] + (1 - alpha) * out[:, day - 1]
    return out


def reference(closes: np.ndarray) -> dict[str, np.ndarray]:
    closes = closes.astype(np.float64)
    change = np.diff(closes)
    gain = ema(np.maximum(change, 0), 1 / RSI_DAYS)[:, -1]
    loss = ema(np.maximum(-change, 0), 1 / RSI_DAYS)[:, -1]
    moved = gain + loss > 0
    rsi = np.where(moved, 100 * gain / np.where(moved, gain + loss, 1), 50)
    macd = ema(closes, 2 / (FAST + 1)) - ema(closes, 2 / (SLOW + 1))
    macd_signal = ema(macd, 2 / (SIGNAL + 1))[:, -1]
    short, long = closes[:, -SHORT:].mean(1), closes[:, -LONG:].mean(1)
    votes = (
        (rsi < RSI_LOW).astype(int) - (rsi > RSI_HIGH) + np.sign(macd[:, -1] - macd_signal) + np.sign(short - long)
    )
    values = [0.5 + VOTE * votes, np.sign(votes), rsi, macd[:, -1], macd_signal, macd[:, -1] - macd_signal, short, long]
    kinds = [np.int64 if name == "signal" else np.float32 for name in OUTPUTS]
    return {name: value.astype(kind) for name, value, kind in zip(OUTPUTS, values, kinds, strict=True)}


# === the graph ===


def ema_matrix(days: int, alpha: float) -> np.ndarray:
    """[days, days]: row vector of values @ this = its exponential moving average on each day."""
    return ema(np.eye(days), alpha)


def last_mean(days: int) -> np.ndarray:
    """[DAYS]: weights of the mean of the last `days` values."""
    return np.where(np.arange(DAYS) >= DAYS - days, 1 / days, 0)


def onnx_model() -> onnx.ModelProto:
    macd = ema_matrix(DAYS, 2 / (FAST + 1)) - ema_matrix(DAYS, 2 / (SLOW + 1))
    macd_signal = macd @ ema_matrix(DAYS, 2 / (SIGNAL + 1))
    averages = np.stack(
        [
            macd[:, -1],
            macd_signal[:, -1],
            macd[:, -1] - macd_signal[:, -1],
            last_mean(SHORT),
            last_mean(LONG),
            last_mean(SHORT) - last_mean(LONG),
        ],
        axis=1,
    )
    constants = {
        "averages": averages,
        "wilder": ema_matrix(DAYS - 1, 1 / RSI_DAYS)[:, -1:],
        "day_0": np.array([0], np.int64),
        "day_1": np.array([1], np.int64),
        "day_last": np.array([DAYS - 1], np.int64),
        "day_end": np.array([DAYS], np.int64),
        "axis_1": np.array([1], np.int64),
        "zero": np.array(0.0),
        "one": np.array(1.0),
        "half": np.array(0.5),
        "neutral": np.array(50.0),
        "hundred": np.array(100.0),
        "low": np.array(RSI_LOW),
        "high": np.array(RSI_HIGH),
        "vote": np.array(VOTE),
    }
    nodes = []

    def node(kind: str, inputs: list[str], *outputs: str, **attributes) -> None:
        nodes.append(helper.make_node(kind, inputs, list(outputs), **attributes))

    node("Cast", ["closes"], "price", to=TensorProto.DOUBLE)
    node("Slice", ["price", "day_0", "day_1", "axis_1"], "first")
    node("Sub", ["price", "first"], "relative")

    # RSI: Wilder's averages of the gains and of the losses of the 59 changes. A window that never moved is neutral.
    node("Slice", ["price", "day_1", "day_end", "axis_1"], "today")
    node("Slice", ["price", "day_0", "day_last", "axis_1"], "yesterday")
    node("Sub", ["today", "yesterday"], "change")
    node("Neg", ["change"], "fall")
    node("Max", ["change", "zero"], "gains")
    node("Max", ["fall", "zero"], "losses")
    node("MatMul", ["gains", "wilder"], "gain")
    node("MatMul", ["losses", "wilder"], "loss")
    node("Add", ["gain", "loss"], "movement")
    node("Greater", ["movement", "zero"], "moved")
    node("Where", ["moved", "movement", "one"], "divisor")
    node("Div", ["gain", "divisor"], "share")
    node("Mul", ["share", "hundred"], "strength")
    node("Where", ["moved", "strength", "neutral"], "rsi")

    # All moving averages at once, relative to the first close; the two plain ones get it back.
    node("MatMul", ["relative", "averages"], "columns")
    names = ["macd_d", "macd_signal_d", "macd_histogram_d", "short_relative", "long_relative", "cross"]
    node("Split", ["columns"], *names, axis=1, num_outputs=len(names))
    node("Add", ["short_relative", "first"], "sma_10_d")
    node("Add", ["long_relative", "first"], "sma_50_d")

    # Three votes.
    node("Less", ["rsi", "low"], "is_low")
    node("Greater", ["rsi", "high"], "is_high")
    node("Cast", ["is_low"], "vote_low", to=TensorProto.DOUBLE)
    node("Cast", ["is_high"], "vote_high", to=TensorProto.DOUBLE)
    node("Sub", ["vote_low", "vote_high"], "vote_rsi")
    node("Sign", ["macd_histogram_d"], "vote_macd")
    node("Sign", ["cross"], "vote_cross")
    node("Sum", ["vote_rsi", "vote_macd", "vote_cross"], "votes")
    node("Sign", ["votes"], "signal_d")
    node("Mul", ["votes", "vote"], "tilt")
    node("Add", ["tilt", "half"], "probability_d")

    outputs = []
    inner = ["probability_d", "signal_d", "rsi", "macd_d", "macd_signal_d", "macd_histogram_d", "sma_10_d", "sma_50_d"]
    for name, source in zip(OUTPUTS, inner, strict=True):
        kind = TensorProto.INT64 if name == "signal" else TensorProto.FLOAT
        node("Squeeze", [source, "axis_1"], f"{name}_column")
        node("Cast", [f"{name}_column"], name, to=kind)
        outputs.append(helper.make_tensor_value_info(name, kind, ["batch"]))

    graph = helper.make_graph(
        nodes,
        "statistical_signal",
        [helper.make_tensor_value_info("closes", TensorProto.FLOAT, ["batch", DAYS])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def main() -> None:
    folder = artifact.version_folder("statistical-signal", "1.0.0")
    onnx.save(onnx_model(), folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def answer(closes: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(OUTPUTS, session.run(OUTPUTS, {"closes": closes}), strict=True))

    closes = market.stock_closes()
    windows = market.windows(closes).astype(np.float32)
    truth = market.beats_index().to_numpy()
    known = np.isfinite(windows).all(2) & np.isfinite(truth)
    *_, test = market.every_fifth_day(closes.index, known, market.HORIZON_DAYS)

    # The graph against numpy: on every test window, flat ones, and numbers that are no prices at all.
    random = np.random.default_rng(0).normal(size=(1000, DAYS)).astype(np.float32)
    for rows in (windows[test], np.full((3, DAYS), 123.456, np.float32), np.zeros((1, DAYS), np.float32), random):
        expected, got = reference(rows), answer(rows)
        for name in OUTPUTS:
            # The textbook's own sign of a flat window is a rounding error; neutral is what is meant.
            flat = np.ptp(rows, axis=1) == 0
            if name in ("probability", "signal"):
                expected[name] = np.where(flat, 0.5 if name == "probability" else 0, expected[name])
            np.testing.assert_allclose(got[name], expected[name], RTOL, ATOL, err_msg=name)

    found = answer(windows[test])
    metrics = market.classifier_metrics(truth[test], found["probability"].astype(np.float64))
    metrics["abstains"] = float(np.mean(found["signal"] == 0))
    print("test", {name: round(value, 4) for name, value in metrics.items()})

    shown = np.stack([windows[closes.index.get_loc(day), closes.columns.get_loc(symbol)] for symbol, day in EXAMPLES])
    examples = [
        artifact.example(artifact.tensors({"closes": rows}), answer(rows), RTOL, ATOL) for rows in (shown[:1], shown)
    ]
    named = ", ".join(f"{symbol} at the close of {day}" for symbol, day in EXAMPLES)
    artifact.write_examples(
        folder / "example.json", f"Real windows: {named}; adjusted closes in USD, oldest day first.", examples
    )
    artifact.write_version(
        folder,
        NOTE,
        {
            "library": f"onnxruntime {onnxruntime.__version__}",
            "inputs": [{"name": "closes", "dtype": "FP32", "shape": [-1, DAYS]}],
            "outputs": [
                {"name": name, "dtype": "INT64" if name == "signal" else "FP32", "shape": [-1]} for name in OUTPUTS
            ],
            "classes": ["lags", "beats"],
            "metrics": metrics,
        },
    )


if __name__ == "__main__":
    main()
