"""volatility-transformer: how much will this stock move over the next twenty trading days? TorchScript, FP32.

Two inputs: the last sixty daily returns, and what is already known about volatility. Unlike the direction of
prices, their volatility can be foreseen; the metrics stand beside those of the naive forecast, the last twenty
days' volatility.
"""

import math

import numpy as np
import torch
from torch import nn

import artifact
import market
from torchscript import save_script

SEED = 20260803
HORIZON_DAYS = 20
WIDTH, HEADS, LAYERS = 32, 4, 2
EPOCHS = 8
BATCH = 256
RTOL, ATOL = 1e-5, 1e-4  # percent a year; float32 kernels of other machines add in another order
CONTEXT = ["market_volatility_20", "volatility_60", "volatility_250"]
EXAMPLES = [("AAPL", "2018-06-29"), ("JPM", "2018-06-29"), ("XOM", "2020-03-20")]

NOTE = """
Target: the standard deviation of the next 20 daily log returns, in percent a year.
context: the S&P 500's volatility over 20 days, the stock's over 60 and over 250 days, all in percent a year.
2016 is validation: the epoch with its lowest error was kept. The last 20 days of training and of validation are left
out, for their truth lies beyond them. Every fifth day of each stretch is used. Errors are of the natural logarithm;
qlike is mean(r - ln(r) - 1) with r = (truth / forecast) squared. naive_*: the last 20 days' volatility as forecast.
"""


class Layer(nn.Module):
    """One encoder layer, norm first. Attention is written out, so that scripting keeps it as it stands here."""

    def __init__(self):
        super().__init__()
        self.heads = HEADS
        self.norm_attention = nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.norm_forward = nn.LayerNorm(WIDTH)
        self.widen = nn.Linear(WIDTH, 2 * WIDTH)
        self.narrow = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, width = x.shape
        split = self.query_key_value(self.norm_attention(x)).view(n, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        weight = torch.softmax(query @ key.transpose(-2, -1) / math.sqrt(width // self.heads), dim=-1)
        x = x + self.mix((weight @ value).transpose(1, 2).reshape(n, tokens, width))
        return x + self.narrow(torch.relu(self.widen(self.norm_forward(x))))


class Volatility(nn.Module):
    """returns [n, 60, 1] in percent, context [n, 3] in percent a year -> volatility [n] in percent a year.

    The context is the first token, and the answer is read from it: as a factor on the 60-day volatility, so an
    untrained model is already a sane forecast.
    """

    def __init__(self):
        super().__init__()
        self.day = nn.Linear(1, WIDTH)
        self.context = nn.Linear(len(CONTEXT), WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(market.WINDOW_DAYS + 1, WIDTH))
        self.layers = nn.ModuleList([Layer() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, returns: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        # Below one percent a year nothing trades; the bound keeps the logarithm finite for any input.
        known = torch.log(torch.clamp(context, min=1.0))
        first = self.context(known - 3.0).unsqueeze(1)  # about zero: exp(3) = 20 percent a year
        x = torch.cat([first, self.day(returns)], dim=1) + self.position
        for layer in self.layers:
            x = layer(x)
        factor = self.head(self.norm(x[:, 0])).squeeze(-1)
        return torch.exp(known[:, 1] + factor)


def table():
    """returns [dates, symbols, 60, 1], context [dates, symbols, 3], truth and naive [dates, symbols], dates, symbols."""
    closes = market.stock_closes()
    daily, index_daily = np.log(closes).diff(), np.log(market.index_closes()).diff()

    def trailing(frame, days):
        return 100 * market.annualised(frame.rolling(days).std())

    index_20 = np.broadcast_to(trailing(index_daily, 20).to_numpy()[:, None], closes.shape)
    context = np.stack([index_20, trailing(daily, 60).to_numpy(), trailing(daily, 250).to_numpy()], -1).round(3)
    returns = market.windows(market.percent_returns(closes))[..., None]
    truth = market.realised_volatility_ahead(HORIZON_DAYS).to_numpy()
    naive = trailing(daily, 20).to_numpy()
    return returns.astype(np.float32), context.astype(np.float32), truth, naive, closes.index, closes.columns


def train(train_set, valid_set) -> Volatility:
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    model = Volatility()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)

    def loss_of(returns, context, truth):
        return torch.mean((torch.log(model(returns, context)) - torch.log(truth)) ** 2)

    best, kept = float("inf"), None
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(train_set[0])).split(BATCH):
            optimizer.zero_grad()
            loss_of(*[part[rows] for part in train_set]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            loss = loss_of(*valid_set).item()
        print(f"epoch {epoch}: validation error {loss:.5f}", flush=True)
        if loss < best:
            best, kept = loss, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    return model.eval()


def errors(truth: np.ndarray, forecast: np.ndarray, prefix: str = "") -> dict[str, float]:
    difference = np.log(truth) - np.log(forecast)
    variance_ratio = (truth / forecast) ** 2
    return {
        f"{prefix}rmse_log": float(np.sqrt(np.mean(difference**2))),
        f"{prefix}r2_log": float(1 - np.mean(difference**2) / np.var(np.log(truth))),
        f"{prefix}qlike": float(np.mean(variance_ratio - np.log(variance_ratio) - 1)),
    }


def main() -> None:
    returns, context, truth, naive, dates, symbols = table()
    # A stock that did not move for a month was not trading; its logarithm would be all the loss sees.
    known = np.isfinite(returns).all((2, 3)) & np.isfinite(context).all(2) & (truth > 1) & (naive > 1)
    parts = market.every_fifth_day(dates, known, HORIZON_DAYS)
    sets = [[torch.from_numpy(part[mask].astype(np.float32)) for part in (returns, context, truth)] for mask in parts]
    model = train(sets[0], sets[1])

    folder = artifact.version_folder("volatility-transformer", "1.0.0")
    save_script(model, folder / "model.pt")
    module = torch.jit.load(folder / "model.pt", map_location="cpu")

    def answer(*inputs):
        with torch.no_grad():
            return module(*[torch.from_numpy(value) for value in inputs]).numpy()

    test = parts[2]
    forecast = answer(returns[test], context[test])
    for n in (1, 2, 7):
        alone = answer(returns[test][:n], context[test][:n])
        np.testing.assert_allclose(alone, forecast[:n], RTOL, ATOL)
    metrics = {**errors(truth[test], forecast), **errors(truth[test], naive[test], "naive_"), "rows": int(test.sum())}
    print("test", metrics)

    cells = [(dates.get_loc(day), symbols.get_loc(symbol)) for symbol, day in EXAMPLES]
    shown = [np.stack([part[cell] for cell in cells]) for part in (returns, context)]
    examples = []
    for rows in (1, len(cells)):
        inputs = {"returns": shown[0][:rows], "context": shown[1][:rows]}
        outputs = {"volatility": answer(*inputs.values())}
        examples.append(artifact.example(artifact.tensors(inputs), outputs, RTOL, ATOL))
    named = ", ".join(f"{symbol} at the close of {day}" for symbol, day in EXAMPLES)
    artifact.write_examples(
        folder / "example.json",
        f"Held-out windows: {named}; daily log returns in percent, oldest first, and {', '.join(CONTEXT)} in percent a"
        " year.",
        examples,
    )
    artifact.write_version(
        folder,
        NOTE,
        {
            "library": f"torch {torch.__version__.split('+')[0]}",
            # In the order of forward's arguments: TorchScript has no names that a server could ask for.
            "inputs": [
                {"name": "returns", "dtype": "FP32", "shape": [-1, market.WINDOW_DAYS, 1]},
                {"name": "context", "dtype": "FP32", "shape": [-1, len(CONTEXT)], "feature_names": CONTEXT},
            ],
            "outputs": [{"name": "volatility", "dtype": "FP32", "shape": [-1]}],
            "metrics": metrics,
            "training": artifact.training(
                market.WINDOW_DATA, market.WINDOW_SPLIT, SEED, "volatility_transformer.py"
            ),
        },
    )


if __name__ == "__main__":
    main()
