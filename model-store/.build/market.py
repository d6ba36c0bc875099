"""The market data of the sample models, what is computed from it, and the split in time.

Everything here looks backwards from the close of day t, except `beats_index` and `realised_volatility_ahead`,
which are the truths that the models are trained to foresee.

Sources (daily; both packages carry the data inside):
  skfolio  adjusted closes of twenty S&P 500 stocks and the index, 1990-01-02 to 2022-12-28
  arch     open, high, low, close and volume of the S&P 500 and NASDAQ, 1999 to 2018; VIX, 2014 to 2018
No volume by stock is in them. The volume group is therefore the market's, the same for every stock of a day,
and missing before 1999. VIX is missing before 2014.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

TRADING_DAYS_A_YEAR = 252
WINDOW_DAYS = 60  # what the window models (ONNX, TorchScript) look at
HORIZON_DAYS = 5  # the classifiers foresee the next five trading days

# The six groups of early-signal 1.0.0, in the order of the model's columns.
FEATURE_GROUPS = {
    "momentum": ["rsi_14", "momentum_20", "momentum_5", "momentum_60"],
    "volatility": ["volatility_20", "volatility_60", "volatility_ratio_5_60"],
    "trend": ["macd_histogram", "trend_sma_50_200", "trend_slope_60"],
    "mean_reversion": ["zscore_20", "reversal_1", "drawdown_60"],
    "volume": ["volume_ratio_20", "nasdaq_volume_ratio_20", "up_volume_share_20"],
    "market": ["market_momentum_20", "market_range_20", "beta_60"],
}
FEATURES = [name for group in FEATURE_GROUPS.values() for name in group]


@dataclass(frozen=True)
class Split:
    """Three stretches of time, each [from, to], one after another. Validation picks; test is looked at once."""

    train_from: str
    train_to: str
    valid_from: str
    valid_to: str
    test_from: str
    test_to: str

    def parts(self, dates: pd.DatetimeIndex, horizon: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks over `dates` for train, valid and test.

        The last `horizon` trading days of train and valid are left out: their truth lies in the next stretch.
        """
        days = dates.unique().sort_values()
        masks = []
        for start, end in [
            (self.train_from, self.train_to),
            (self.valid_from, self.valid_to),
            (self.test_from, self.test_to),
        ]:
            inside = days[(days >= start) & (days <= end)]
            masks.append(np.asarray(dates.isin(inside[:-horizon])))
        return tuple(masks)


# The window models need closes only, which reach four years further than OHLCV does.
WINDOW_SPLIT = Split("1991-01-02", "2015-12-31", "2016-01-04", "2016-12-30", "2017-01-03", "2022-12-28")
WINDOW_DATA = "skfolio 1.12.2 (20 S&P 500 stocks and the index, adjusted daily closes)"


def stock_closes() -> pd.DataFrame:
    """Adjusted closes in USD: one row a day, one column a symbol."""
    from skfolio.datasets import load_sp500_dataset

    return load_sp500_dataset()


def index_closes() -> pd.Series:
    """Closes of the S&P 500 in points, on the same days as `stock_closes`."""
    from skfolio.datasets import load_sp500_index

    return load_sp500_index().iloc[:, 0].rename("index")


def ohlcv(name: str, days: pd.DatetimeIndex) -> pd.DataFrame:
    """`sp500` or `nasdaq`: open, high, low, close (points) and volume (shares) on `days`; NaN where there is none."""
    from importlib import import_module

    table = import_module(f"arch.data.{name}").load().reindex(days)
    # A trading day on which no share changed hands was not recorded.
    table["Volume"] = table["Volume"].where(table["Volume"] > 0)
    return table


def vix(days: pd.DatetimeIndex) -> pd.Series:
    """VIX at the close, in percent a year, on `days`; NaN before 2014."""
    import arch.data.vix

    return arch.data.vix.load()["vix"].reindex(days)


def rsi(closes: pd.DataFrame, days: int) -> pd.DataFrame:
    """Wilder's relative strength index, 0 to 100 (New Concepts in Technical Trading Systems, 1978)."""
    change = closes.diff()
    gain = change.clip(lower=0).ewm(alpha=1 / days, adjust=False).mean()
    loss = (-change).clip(lower=0).ewm(alpha=1 / days, adjust=False).mean()
    return 100 * gain / (gain + loss)


def ema(frame: pd.DataFrame, days: int) -> pd.DataFrame:
    """Exponential moving average with the usual smoothing 2 / (days + 1)."""
    return frame.ewm(span=days, adjust=False).mean()


def annualised(daily_deviation):
    """A daily standard deviation (fraction) as a yearly one (fraction)."""
    return daily_deviation * np.sqrt(TRADING_DAYS_A_YEAR)


def slope(log_closes: pd.DataFrame, days: int) -> pd.DataFrame:
    """Slope of the least-squares line through the last `days` log closes, as a fraction a year."""
    time = np.arange(days) - (days - 1) / 2
    weights = time / (time @ time)
    windows = np.lib.stride_tricks.sliding_window_view(log_closes.to_numpy(), days, axis=0)
    out = np.full(log_closes.shape, np.nan)
    out[days - 1 :] = windows @ weights
    return pd.DataFrame(out, log_closes.index, log_closes.columns) * TRADING_DAYS_A_YEAR


def features() -> pd.DataFrame:
    """The twenty features (1.0.0 has the first nineteen), one row for each (date, symbol) from 1991 to 2018.

    Returns are fractions, volatilities fractions a year, ratios have no unit, rsi_14 is 0 to 100, vix percent a year.
    Rounded to six decimals, so that what a model is trained on is what a client can write down.
    """
    closes = stock_closes()
    days = closes.index
    index = index_closes()
    returns = np.log(closes).diff()
    index_returns = np.log(index).diff()
    sp500, nasdaq = ohlcv("sp500", days), ohlcv("nasdaq", days)

    def for_all(series: pd.Series) -> pd.DataFrame:
        """A feature of the market: the same value for every symbol of the day."""
        return pd.DataFrame({symbol: series for symbol in closes.columns})

    daily_20 = returns.rolling(20).std()
    daily_60 = returns.rolling(60).std()
    macd = ema(closes, 12) - ema(closes, 26)
    up_volume = sp500["Volume"].where(sp500["Close"].diff() > 0, 0.0).where(sp500["Volume"].notna())
    # Parkinson's estimator (1980): the day's range knows more of its volatility than its two closes do.
    range_variance = np.log(sp500["High"] / sp500["Low"]) ** 2 / (4 * np.log(2))

    columns = {
        "rsi_14": rsi(closes, 14),
        "momentum_20": closes.pct_change(20),
        "momentum_5": closes.pct_change(5),
        "momentum_60": closes.pct_change(60),
        "volatility_20": annualised(daily_20),
        "volatility_60": annualised(daily_60),
        "volatility_ratio_5_60": returns.rolling(5).std() / daily_60,
        "macd_histogram": (macd - ema(macd, 9)) / closes,
        "trend_sma_50_200": closes.rolling(50).mean() / closes.rolling(200).mean() - 1,
        "trend_slope_60": slope(np.log(closes), 60),
        "zscore_20": (closes - closes.rolling(20).mean()) / closes.rolling(20).std(),
        "reversal_1": returns / daily_20,
        "drawdown_60": closes / closes.rolling(60).max() - 1,
        "volume_ratio_20": for_all(sp500["Volume"] / sp500["Volume"].rolling(20).mean()),
        "nasdaq_volume_ratio_20": for_all(nasdaq["Volume"] / nasdaq["Volume"].rolling(20).mean()),
        "up_volume_share_20": for_all(up_volume.rolling(20).sum() / sp500["Volume"].rolling(20).sum()),
        "market_momentum_20": for_all(index.pct_change(20)),
        "market_range_20": for_all(annualised(np.sqrt(range_variance.rolling(20).mean()))),
        "beta_60": returns.rolling(60).cov(index_returns).div(index_returns.rolling(60).var(), axis=0),
        "vix": for_all(vix(days)),
    }
    table = pd.concat({name: frame.stack(future_stack=True) for name, frame in columns.items()}, axis=1)
    table.index.names = ["date", "symbol"]
    return table.replace([np.inf, -np.inf], np.nan).loc["1991-01-01":"2018-12-31"].round(6)


def beats_index(horizon: int = HORIZON_DAYS) -> pd.DataFrame:
    """1.0 where the stock's return over the next `horizon` days is above the index's, else 0.0; NaN at the end."""
    closes, index = stock_closes(), index_closes()
    ahead = closes.shift(-horizon) / closes
    index_ahead = index.shift(-horizon) / index
    return ahead.gt(index_ahead, axis=0).astype(float).where(ahead.notna())


def realised_volatility_ahead(horizon: int) -> pd.DataFrame:
    """Standard deviation of the next `horizon` daily log returns, in percent a year."""
    returns = np.log(stock_closes()).diff()
    return 100 * annualised(returns.rolling(horizon).std().shift(-horizon))


def percent_returns(closes: pd.DataFrame) -> pd.DataFrame:
    """Daily log returns in percent, rounded to four decimals, so that a client can write down what was trained on."""
    return (100 * np.log(closes).diff()).round(4)


def windows(frame: pd.DataFrame, days: int = WINDOW_DAYS) -> np.ndarray:
    """[dates, symbols, days]: for each date the last `days` values, that date's included. NaN before there are enough."""
    views = np.lib.stride_tricks.sliding_window_view(frame.to_numpy(), days, axis=0)
    head = np.full((days - 1, frame.shape[1], days), np.nan)
    return np.concatenate([head, views])


def every_fifth_day(dates: pd.DatetimeIndex, known: np.ndarray, horizon: int) -> list[np.ndarray]:
    """For train, valid and test of WINDOW_SPLIT: the [date, symbol] cells to use, as a mask like `known`.

    Only each fifth day, because neighbouring windows say nearly the same.
    """
    fifth = np.zeros(len(dates), bool)
    fifth[::5] = True
    return [(part & fifth)[:, None] & known for part in WINDOW_SPLIT.parts(dates, horizon)]


def classifier_metrics(truth: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """What an honest reader asks of a classifier; `base_rate` is what always saying "beats" would score."""
    from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

    return {
        "auc": roc_auc_score(truth, probability),
        "accuracy": float(np.mean((probability > 0.5) == truth)),
        "log_loss": log_loss(truth, probability),
        "brier": brier_score_loss(truth, probability),
        "base_rate": float(np.mean(truth)),
        "rows": int(len(truth)),
    }
