"""Choosing positions first and drawing only there has the plain sampler's law: by enumeration and by chi-square."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.sampling import (
    Ancestral,
    Canvas,
    ConfidenceOrder,
    FirstHitting,
    RemdmCap,
    RemdmLoop,
    RowNoise,
    Sampler,
    Timetable,
    TokenSampling,
    blank,
    build_measure,
)
from sm_diffusion.sampling.noise import StepNoise
from sm_diffusion.sampling.orders.ancestral import TransitionPolicy
from sm_diffusion.sampling.orders.base import Proposal, State, UnmaskPolicy
from sm_diffusion.sampling.reference.plain import (
    plain_log_probs,
    plain_memory,
    plain_nucleus,
    plain_sample,
    plain_transition,
)
from tests.helpers.networks import make_predictor

CLEAN, MASK, LENGTH = 3, 3, 2
Law = dict[tuple[int, ...], float]


def state_of(ids_BL: Tensor, step: int) -> State:
    return State(
        ids_BL=ids_BL,
        open_BL=torch.ones_like(ids_BL, dtype=torch.bool),
        masked_BL=ids_BL == MASK,
        confidence_BL=torch.zeros(ids_BL.shape, dtype=torch.float64),
        time_B=torch.ones(1, dtype=torch.float64),
        step=step,
    )


def plain_law(predictor: Predictor, policy: TransitionPolicy, top_p: float) -> Law:
    """The plain sampler's exact law over finished texts, by recursion over every x_s of every step."""
    law: Law = defaultdict(float)

    def walk(ids: tuple[int, ...], memory: object, step: int, weight: float) -> None:
        ids_BL = torch.tensor([ids])
        log_probs_BLV = plain_log_probs(predictor, ids_BL, memory)
        if step == policy.grid.num_steps:
            law[tuple(log_probs_BLV.argmax(-1)[0].tolist())] += weight
            return
        memory = plain_memory(predictor, log_probs_BLV)
        rates = policy.rates(state_of(ids_BL, step))
        q_LV = plain_transition(plain_nucleus(log_probs_BLV.exp(), top_p), rates, ids_BL == MASK, MASK)[0]
        for after in itertools.product(range(CLEAN + 1), repeat=LENGTH):
            q = math.prod(float(q_LV[position, token]) for position, token in enumerate(after))
            if q > 0:
                walk(after, memory, step + 1, weight * q)

    with torch.no_grad():
        walk((MASK,) * LENGTH, None, 0, 1.0)
    return dict(law)


class Script:
    """Replays a list of choices; beyond its end takes the first option and notes how many there were."""

    def __init__(self, choices: list[int]) -> None:
        self.choices = choices
        self.options: list[int] = []
        self.weight = 1.0

    def pick(self, weights: list[float]) -> int:
        possible = [index for index, weight in enumerate(weights) if weight > 0]
        turn = len(self.options)
        choice = self.choices[turn] if turn < len(self.choices) else 0
        self.options.append(len(possible))
        self.weight *= weights[possible[choice]] / sum(weights)
        return possible[choice]

    def next(self) -> list[int] | None:
        """The script of the next branch, depth first; None after the last."""
        taken = self.choices + [0] * (len(self.options) - len(self.choices))
        for turn in reversed(range(len(taken))):
            if taken[turn] + 1 < self.options[turn]:
                return [*taken[:turn], taken[turn] + 1]
        return None


class Scripted(UnmaskPolicy):
    """The policy under test, its uniform numbers forced to either side and its draws forced to every token."""

    def __init__(self, policy: TransitionPolicy, script: Script) -> None:
        self.policy, self.script = policy, script

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        rates = self.policy.rates(state)
        move_BL = torch.empty(state.ids_BL.shape, dtype=torch.float64)
        for position in range(LENGTH):
            masked = bool(state.masked_BL[0, position])
            weights = [rates.unmask, rates.stay] if masked else [float(rates.remask), 1 - float(rates.remask)]
            move_BL[0, position] = [0.0, 1 - 1e-12][self.script.pick(weights)]
        return self.policy.propose(state, noise._replace(move_BL=move_BL))._replace(drawer=self.draw)

    def draw(self, p_CV: Tensor, positions_C: Tensor) -> Tensor:
        return torch.tensor([self.script.pick(row[: CLEAN + 1]) for row in p_CV.double().tolist()])

    def max_steps(self, open_BL: Tensor) -> int:
        return self.policy.max_steps(open_BL)

    @property
    def remasks(self) -> bool:
        return self.policy.remasks

    @property
    def end_time(self) -> float:
        return self.policy.end_time


def branches(predictor: Predictor, policy: TransitionPolicy, top_p: float) -> Iterator[tuple[tuple[int, ...], float]]:
    canvas = blank(1, LENGTH, mask_id=MASK)
    choices: list[int] | None = []
    while choices is not None:
        script = Script(choices)
        sampler = Sampler(predictor, Scripted(policy, script), sampling=TokenSampling(top_p=top_p))
        out = sampler.sample(canvas, RowNoise([0], canvas.positions_BL))
        yield tuple(out.ids_BL[0].tolist()), script.weight
        choices = script.next()


@pytest.mark.parametrize("kind", ["mdlm", "sm"])
@pytest.mark.parametrize(
    ("policy", "top_p"),
    [
        (lambda: Ancestral(num_steps=3), 1.0),
        (lambda: Ancestral(num_steps=2, eps=0.3), 0.8),
        (lambda: RemdmCap(num_steps=2, eta=0.6, eps=0.3), 1.0),
        (lambda: RemdmLoop(num_steps=2, eta=0.1, t_on=0.6, t_off=0.05, eps=0.1), 1.0),
    ],
)
def test_the_loop_has_the_plain_law(kind: str, policy: Callable[[], TransitionPolicy], top_p: float) -> None:
    predictor = make_predictor(kind, vocab_size=CLEAN + 1, width=8, scale=0.25)
    reference = plain_law(predictor, policy(), top_p)
    ours: Law = defaultdict(float)
    for text, weight in branches(predictor, policy(), top_p):
        ours[text] += weight
    assert sum(reference.values()) == pytest.approx(1, abs=1e-6)
    assert set(ours) == set(reference)
    for text, probability in reference.items():
        assert ours[text] == pytest.approx(probability, abs=2e-6), text


def frequencies(ids_BL: Tensor, vocab_size: int) -> Tensor:
    codes = torch.zeros(ids_BL.shape[0], dtype=torch.int64)
    for column in ids_BL.unbind(1):
        codes = codes * vocab_size + column
    return torch.bincount(codes, minlength=vocab_size ** ids_BL.shape[1]).double()


def chi_square(ours_C: Tensor, reference_C: Tensor) -> None:
    """Two samples of the same size from one law; cells with few counts are pooled. p > 1e-4 (normal approximation)."""
    total_C = ours_C + reference_C
    small_C = total_C < 20
    pooled = [torch.cat([part[~small_C], part[small_C].sum()[None]]) for part in (ours_C, reference_C, total_C)]
    cells = pooled[2] > 0
    statistic = float(((pooled[0] - pooled[1])[cells] ** 2 / pooled[2][cells]).sum())
    degrees = int(cells.sum()) - 1
    # Wilson-Hilferty: the cube root of chi-square / df is nearly normal.
    z = ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))
    assert z < 3.7, (statistic, degrees)
    assert degrees > 5


@pytest.mark.parametrize("kind", ["mdlm", "sm"])
@pytest.mark.parametrize("name", ["ancestral", "ancestral_p", "cap", "loop"])
def test_chi_square_against_the_plain_sampler(kind: str, name: str) -> None:
    vocab_size, length, rows = 6, 3, 4_000
    policy: TransitionPolicy = {
        "ancestral": lambda: Ancestral(num_steps=4),
        "ancestral_p": lambda: Ancestral(num_steps=4),
        "cap": lambda: RemdmCap(num_steps=5, eta=0.4, eps=0.2),
        "loop": lambda: RemdmLoop(num_steps=5, eta=0.1),
    }[name]()
    top_p = 0.85 if name == "ancestral_p" else 1.0
    predictor = make_predictor(kind, vocab_size=vocab_size, width=8, scale=0.2)
    canvas = blank(rows, length, mask_id=vocab_size - 1)
    sampler = Sampler(predictor, policy, sampling=TokenSampling(top_p=top_p))
    ours = sampler.sample(canvas, RowNoise(list(range(rows)), canvas.positions_BL)).ids_BL
    plain = plain_sample(predictor, policy, canvas.ids_BL, top_p=top_p, generator=torch.Generator().manual_seed(1))
    chi_square(frequencies(ours, vocab_size), frequencies(plain, vocab_size))


def test_first_hitting_is_the_random_order_law() -> None:
    """Exact for MDLM: the mean over all orders of the products of conditional probabilities."""
    vocab_size, length, rows = 4, 3, 8_000
    predictor = make_predictor("mdlm", vocab_size=vocab_size, width=8, scale=0.25)
    law_C = torch.zeros(vocab_size**length, dtype=torch.float64)
    with torch.no_grad():
        for text in itertools.product(range(vocab_size - 1), repeat=length):
            for order in itertools.permutations(range(length)):
                ids, probability = [vocab_size - 1] * length, 1 / math.factorial(length)
                for position in order:
                    log_probs_BLV = plain_log_probs(predictor, torch.tensor([ids]), None)
                    probability *= float(log_probs_BLV[0, position, text[position]].exp())
                    ids[position] = text[position]
                code = sum(token * vocab_size ** (length - 1 - place) for place, token in enumerate(text))
                law_C[code] += probability
    assert float(law_C.sum()) == pytest.approx(1, abs=1e-5)
    canvas = blank(rows, length, mask_id=vocab_size - 1)
    out = Sampler(predictor, FirstHitting()).sample(canvas, RowNoise(list(range(rows)), canvas.positions_BL))
    counts_C = frequencies(out.ids_BL, vocab_size)
    cells = law_C * rows > 5
    statistic = float(((counts_C - law_C * rows)[cells] ** 2 / (law_C * rows)[cells]).sum())
    degrees = int(cells.sum())
    assert statistic < degrees + 4 * math.sqrt(2 * degrees) + 5
    assert float(counts_C[law_C == 0].sum()) == 0


def test_first_hitting_times_are_order_statistics() -> None:
    """The last of n hitting times is the smallest of n uniform numbers: mean 1 / (n + 1)."""
    rows, length = 4_000, 4
    canvas, times = blank(rows, length, mask_id=5), []
    predictor = make_predictor("mdlm", vocab_size=6, width=8)
    Sampler(predictor, FirstHitting()).sample(
        canvas, RowNoise(list(range(rows)), canvas.positions_BL), observe=lambda frame: times.append(frame.time_B)
    )
    for index in range(length):
        expected = (length - index) / (length + 1)
        assert float(times[index].mean()) == pytest.approx(expected, abs=0.02)


def test_alg_temp_draws_positions_from_the_softmax_of_confidences() -> None:
    rows, alg_temp = 20_000, 0.5
    confidence_L = torch.tensor([0.1, 0.9, 0.4, -torch.inf], dtype=torch.float64)
    ids_BL = torch.full((rows, 4), 9)
    ids_BL[:, 3] = 1
    canvas = Canvas(ids_BL)
    open_BL = canvas.open_BL(9)
    state = State(
        ids_BL=ids_BL,
        open_BL=open_BL,
        masked_BL=open_BL,
        confidence_BL=torch.zeros(rows, 4, dtype=torch.float64),
        time_B=torch.ones(rows, dtype=torch.float64),
        step=1,
    )
    noise = RowNoise(list(range(rows)), canvas.positions_BL).step(1, open_BL)
    policy = ConfidenceOrder(measure=build_measure("margin"), pace=Timetable(num_steps=3, eps=1e-3), alg_temp=alg_temp)
    proposal = policy.propose(state, noise)
    assert proposal.choose is not None
    chosen_BL = proposal.choose(confidence_L.expand(rows, 4))
    assert bool((chosen_BL.sum(1) == 1).all())  # floor(3 * (1 - s / t)) = floor(3 * 0.4995)
    expected_L = rows * (confidence_L / alg_temp).softmax(-1)[:3]
    statistic = float(((chosen_BL.sum(0)[:3] - expected_L) ** 2 / expected_L).sum())
    assert statistic < 18  # chi-square, 2 degrees of freedom: p = 1e-4
