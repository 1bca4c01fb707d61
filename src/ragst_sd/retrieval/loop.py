"""Gradient descent that ends in its best state, by a held-out score and also when interrupted, and what it needs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ragst_sd.retrieval.threads import one_thread
from ragst_sd.retrieval.training import mean_over_groups

logger = logging.getLogger(__name__)

# A score that rises by less is as good as before.
_LEAST_RISE = 1e-3
# Decay of the two averages of AdamW, and what keeps it from dividing by zero.
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
# A gene that varies less does not vary.
_LEAST_VARIANCE = 1e-8


@dataclass
class History:
    """How a training run went."""

    best_step: int = 0
    """Steps taken when the score was best; all of them where nothing was scored."""
    best_score: float = float("nan")
    scores: list[tuple[int, float]] = field(default_factory=list)
    """(steps taken, score)."""
    interrupted: bool = False


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers follow `seed` inside.

    The caller's stream goes on afterwards as if nothing had happened.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


class AdamW:
    """Adam with weight decay beside the gradient (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).

    The same steps as those of :class:`torch.optim.AdamW`, which imports torch's compiler: that takes over a second.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        # Each with the running means of its gradient and of the square of it.
        self.held = [(p, torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        self.lr, self.weight_decay, self.taken = lr, weight_decay, 0

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter, _, _ in self.held:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        self.taken += 1
        # Both means started at zero.
        mean_weight, square_weight = (1 - beta**self.taken for beta in _BETAS)
        for parameter, mean, square in self.held:
            if parameter.grad is None:
                continue
            mean.lerp_(parameter.grad, 1 - _BETAS[0])
            square.mul_(_BETAS[1]).addcmul_(parameter.grad, parameter.grad, value=1 - _BETAS[1])
            parameter.mul_(1 - self.lr * self.weight_decay)
            parameter.addcdiv_(mean, (square / square_weight).sqrt_().add_(_EPSILON), value=-self.lr / mean_weight)


@one_thread()
def optimise(
    model: nn.Module,
    step: Callable[[int], Tensor],
    optimiser: AdamW | torch.optim.Optimizer,
    *,
    steps: int,
    score: Callable[[], float] | None = None,
    every: int = 5,
    patience: int | None = None,
    progress: bool = False,
    label: str = "",
) -> History:
    """Take gradient steps, and leave the model in eval mode in its best state.

    Parameters
    ----------
    step
        Loss of the i-th step.
    score
        Called every `every` steps in eval mode without gradients; larger is better. Without it the last state counts.
    patience
        Number of scores over which the best one has to rise, or training ends; `None`: it takes all steps.

    Raises
    ------
    ValueError
        If the loss is no longer finite.

    Notes
    -----
    Ctrl-C ends training early: the best state so far is kept, and a warning says so.
    """
    history = History()
    best = copy.deepcopy(model.state_dict())
    bar = None
    if progress:
        from tqdm.auto import tqdm

        bar = tqdm(total=steps, desc=label)
    taken = 0
    try:
        for i in range(steps):
            model.train()
            optimiser.zero_grad()
            loss = step(i)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"{label}: the loss is {float(loss.detach())} after {taken} steps. Choose a smaller "
                    "`learning_rate`."
                )
            loss.backward()
            optimiser.step()
            taken = i + 1
            if bar is not None:
                bar.update()
            if score is None or (taken % every and taken != steps):
                continue
            model.eval()
            with torch.no_grad():
                now = score()
            history.scores.append((taken, now))
            if bar is not None:
                bar.set_postfix_str(f"held-out score {now:.3f}")
            if now > history.best_score or np.isnan(history.best_score):
                history.best_step, history.best_score = taken, now
                best = copy.deepcopy(model.state_dict())
            if patience is not None and len(history.scores) > patience:
                best_before = max(earlier for _, earlier in history.scores[:-patience])
                if not history.best_score > best_before + _LEAST_RISE:
                    break
    except KeyboardInterrupt:
        history.interrupted = True
        logger.warning("%s was interrupted after %d of %d steps; the best state so far is kept.", label, taken, steps)
    finally:
        if bar is not None:
            bar.close()
    if history.scores:
        model.load_state_dict(best)
    else:
        history.best_step = taken
    model.eval()
    return history


def best_step(histories: Sequence[History], default: int) -> tuple[int, float]:
    """Steps at which the mean held-out score is best, and that score; `default` and NaN where nothing was scored.

    Runs without scores do not count, and of the others only the steps that all of them reached.
    """
    curves = [np.asarray(history.scores) for history in histories if history.scores]
    length = min(map(len, curves), default=0)
    mean = mean_over_groups([curve[:length, 1].tolist() for curve in curves], max(1, length))
    if not np.isfinite(mean).any():
        return default, float("nan")
    best = int(np.nanargmax(mean))
    return int(curves[0][best, 0]), float(mean[best])


def section_correlation(pred: Tensor, target: Tensor, sections: Tensor) -> Tensor:
    """Pearson of each gene in each section, averaged over genes that vary, then over sections of three rows or more.

    Parameters
    ----------
    pred, target
        (n, g), genes on a scale of about one.
    sections
        (n,) code of each row's section.

    Returns
    -------
    A scalar that can be differentiated, also where a prediction does not vary; zero where nothing can be compared.
    """
    codes = torch.unique(sections, return_inverse=True)[1]
    member = torch.nn.functional.one_hot(codes).to(pred.dtype)
    count = member.sum(dim=0)[:, None]
    # A product with the membership sums over sections in one fixed order, which scattered additions on a GPU do not.
    centred = target - member @ (member.T @ target / count)
    variance = member.T @ (centred * centred) / count
    # Products with what is centred need not be centred themselves, which spares passes over all values.
    pred_variance = (member.T @ (pred * pred) / count - (member.T @ pred / count) ** 2).clamp_min(0)
    norm = ((pred_variance + _LEAST_VARIANCE) * (variance + _LEAST_VARIANCE)).rsqrt()
    correlation = (member.T @ (pred * centred) / count) * norm
    compared = (variance > _LEAST_VARIANCE) & (count > 2)
    per_section = (correlation * compared).sum(dim=1) / compared.sum(dim=1).clamp_min(1)
    return per_section.sum() / compared.any(dim=1).sum().clamp_min(1)
