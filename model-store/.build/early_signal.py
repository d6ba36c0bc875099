"""early-signal: will this stock beat the S&P 500 over the next five trading days? LightGBM, tabular.

1.0.0 has nineteen features, 1.1.0 adds `vix`, of which most of the training rows know nothing.
"""

import json

import lightgbm as lgb
import numpy as np

import artifact
import market

SEED = 20260801
ROUNDS = 100
# Small and stubborn on purpose: five-day returns are nearly noise, and deeper trees only learn the noise.
PARAMETERS = {
    "objective": "binary",
    "learning_rate": 0.02,
    "num_leaves": 15,
    "min_data_in_leaf": 500,
    "lambda_l2": 10.0,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "seed": SEED,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 2,
    "verbosity": -1,
}
SPLIT = market.Split("1991-01-02", "2015-12-31", "2016-01-04", "2016-12-30", "2017-01-03", "2018-12-31")
DATA = "skfolio 1.12.2 (20 S&P 500 stocks, index), arch 8.0.0 (S&P 500 and NASDAQ OHLCV, VIX)"
EXAMPLE_DAY = "2018-06-29"
EXAMPLE_SYMBOLS = ["AAPL", "JPM", "XOM"]
RTOL = 1e-12  # the server calls the same library; only exp() of another libm may differ
CONTRIBUTIONS_ATOL = 1e-14  # they are sums of many terms, and some are nearly nothing

NOTE = """
Target: 1 where the stock's return over the next 5 trading days is above the S&P 500's.
2016 is validation. The last 5 days of training and of validation are left out, for their truth lies beyond them.
The metrics are of the test stretch. The baseline is of the raw features in training, before normalizer.json.
"""


def normalise(table, normalizer: dict) -> np.ndarray:
    """(x - mean) / scale in float64, which is what the server does before the model. NaN stays NaN."""
    return (table.to_numpy(np.float64) - np.array(normalizer["mean"])) / np.array(normalizer["scale"])


def examples(booster: lgb.Booster, normalizer: dict, table) -> list[dict]:
    """Requests over three real rows: named and as a tensor, whole and with gaps, and every predict type."""
    names = list(table.columns)

    def ask(rows, request, output="probability", **how):
        answer = np.asarray(booster.predict(normalise(rows, normalizer), **how))
        answer = answer.astype(np.int32) if output == "leaf_index" else answer
        atol = CONTRIBUTIONS_ATOL if output == "contributions" else 0
        return artifact.example(request, {output: answer}, RTOL, atol)

    one, two = table.iloc[:1], table.iloc[:2]
    # The volume feed is late, and one stock is too young for a 200-day average.
    gaps = table.copy()
    gaps[market.FEATURE_GROUPS["volume"]] = np.nan
    gaps.iloc[2, names.index("trend_sma_50_200")] = np.nan

    def as_tensor(rows, **parameters):
        return artifact.tensors({"features": rows.to_numpy()}, **parameters)

    found = [
        ask(one, artifact.rows(one)),
        ask(table, as_tensor(table)),
        ask(table, artifact.rows(table)),
        ask(gaps, as_tensor(gaps)),
        ask(gaps, artifact.rows(gaps)),
        ask(table, as_tensor(table, predict_type="raw"), "raw_score", raw_score=True),
        ask(gaps, as_tensor(gaps, predict_type="contrib"), "contributions", pred_contrib=True),
        ask(two, as_tensor(two, predict_type="leaf"), "leaf_index", pred_leaf=True),
    ]
    if "vix" in names:
        # The same row without the key: the feature declares `missing: nan`, so leaving it out is allowed.
        without = one.assign(vix=np.nan)
        found.append(ask(without, artifact.rows(one.drop(columns="vix"))))
    return found


def build(version: str, names: list[str], table, truth) -> None:
    table = table[names]
    train, valid, test = SPLIT.parts(table.index.get_level_values("date"), market.HORIZON_DAYS)
    seen = table[train]
    normalizer = {
        "method": "zscore",
        "feature_names": names,
        "mean": [artifact.significant(value, 9) for value in seen.mean()],
        "scale": [artifact.significant(value, 9) for value in seen.std(ddof=0)],
    }
    data = lgb.Dataset(normalise(seen, normalizer), truth[train], feature_name=names)
    booster = lgb.train(PARAMETERS, data, num_boost_round=ROUNDS)

    folder = artifact.version_folder("early-signal", version)
    booster.save_model(folder / "model.txt")
    (folder / "normalizer.json").write_text(artifact.pretty(normalizer) + "\n")
    # Answers come from the file, as the server reads it, not from the booster in memory.
    booster = lgb.Booster(model_file=folder / "model.txt")
    normalizer = json.loads((folder / "normalizer.json").read_text())

    shown = table.loc[EXAMPLE_DAY].loc[EXAMPLE_SYMBOLS]
    artifact.write_examples(
        folder / "example.json",
        f"Held-out rows: {', '.join(EXAMPLE_SYMBOLS)} at the close of {EXAMPLE_DAY}, raw features in the units of"
        " the store's README; null is a missing value.",
        examples(booster, normalizer, shown),
    )
    for part, mask in [("valid", valid), ("test", test)]:
        probability = booster.predict(normalise(table[mask], normalizer))
        metrics = market.classifier_metrics(truth[mask].to_numpy(), probability)
        print(version, part, {name: round(value, 4) for name, value in metrics.items()})

    inputs = {"name": "features", "dtype": "FP64", "shape": [-1, len(names)], "feature_names": names}
    if "vix" in names:
        inputs["features"] = {"vix": {"missing": "nan"}}
    artifact.write_version(
        folder,
        NOTE,
        {
            "library": f"lightgbm {lgb.__version__}",
            "inputs": [inputs],
            "outputs": [{"name": "probability", "dtype": "FP64", "shape": [-1]}],
            "classes": ["lags", "beats"],
            "normalizer": "normalizer.json",
            "metrics": metrics,
            "training": artifact.training(DATA, SPLIT, SEED, "early_signal.py"),
            "baseline": artifact.baseline(seen),
        },
    )


def main() -> None:
    table = market.features()
    truth = market.beats_index().stack(future_stack=True).reindex(table.index)
    known = truth.notna() & table["rsi_14"].notna()
    table, truth = table[known], truth[known]
    build("1.0.0", market.FEATURES, table, truth)
    build("1.1.0", [*market.FEATURES, "vix"], table, truth)


if __name__ == "__main__":
    main()
