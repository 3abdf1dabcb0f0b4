"""The one sampling loop: MDLM and soft-masking, any backbone, any policy, prompts, blanks and padding.

    ids = prompt + MASK; memory = None
    for each step: the policy chooses positions; tokens are drawn only there; memory is kept for the rest

A forward pass is made for those rows only that draw something or, with soft-masking, still hold a mask: leaving the
others out is exact. MDLM without an unmasked position predicts what it predicted before, so such a step costs nothing;
under feedback the soft input moves on even then, so the pass is made.

How many passes are made depends on the rows, so a predictor whose parameters are sharded over ranks (FSDP, ZeRO-3)
must be given the same canvas and noise on every rank, or be gathered first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.diffusion.readouts.draw import Draw, Drawn
from sm_diffusion.diffusion.schedule import NoiseSchedule
from sm_diffusion.diffusion.soft_mask import ConstantStrength, StrengthSchedule
from sm_diffusion.sampling.cache import CacheRun, CacheScope, Pass, keep_old
from sm_diffusion.sampling.canvas import Canvas
from sm_diffusion.sampling.categorical import InverseCdf, MostProbable, SampleRule, TokenSampling
from sm_diffusion.sampling.feedback import Feedback, feedback_of
from sm_diffusion.sampling.noise import Noise, StepNoise
from sm_diffusion.sampling.orders.base import Proposal, State, UnmaskPolicy
from sm_diffusion.sampling.orders.blockwise import Blockwise
from sm_diffusion.sampling.trajectory import STATES, Frame, Trajectory, make_frame
from sm_diffusion.types import UserError

REUSE = ("never", "rows", "batch")
Observer = Callable[[Frame], None]


class SamplerOutput(NamedTuple):
    """What a sampler returns.

    ids_BL:         int64, the finished canvas, padding included (`Canvas.texts` removes it).
    nfe_B:          int64, network evaluations spent on each row, the noise-removal pass included. A prediction that is
                    made again from the same input counts once.
    forward_passes: passes actually run, each over the rows that needed it.
    num_steps:      steps taken.
    trajectory:     with `record=True`.
    """

    ids_BL: Tensor
    nfe_B: Tensor
    forward_passes: int
    num_steps: int
    trajectory: Trajectory | None


class Sampler:
    """A predictor, a policy, and how tokens are drawn.

    sampling:      temperature, nucleus, top-k of the draw. Feedback always comes from the untruncated distribution.
    strength:      decode-time factor on omega_s as a function of diffusion time.
    schedule:      tells a time-conditioned network its noise level; None: not told (the published networks ignore it).
    noise_removal: a last pass, with feedback, that puts the most probable token wherever a mask is left.
    reuse:         what happens after a step that changed nothing, one of REUSE. never: every step of a soft-masked row
                   is a new prediction. rows: a row that did not change since its last prediction uses that again and
                   does not feed it back; its text is what it is alone in a batch, where the authors sample (IBM
                   language/algo.py:249 and :341-345). batch: their rule for several rows, only when none changed, which
                   ties a row's text to its neighbours.
    cache:         keys and values kept between steps, with a `Blockwise` policy; None: everything is computed anew.
    """

    def __init__(
        self,
        predictor: Predictor,
        policy: UnmaskPolicy,
        *,
        sampling: TokenSampling | None = None,
        strength: StrengthSchedule | None = None,
        schedule: NoiseSchedule | None = None,
        noise_removal: bool = True,
        reuse: str = "never",
        cache: CacheScope | None = None,
    ) -> None:
        if cache is not None and not isinstance(policy, Blockwise):
            raise UserError("sampler.cache: caches follow blocks: set sampler.block_length, or sampler.cache to none")
        if reuse not in REUSE:
            raise ValueError(f"reuse={reuse!r}: choose one of {', '.join(REUSE)}")
        if cache is not None and reuse == "rows":
            raise UserError("sampler.reuse_unchanged: does not go with sampler.cache: set one of them only")
        self.predictor = predictor
        self.policy = policy
        self.sampling = sampling or TokenSampling()
        self.strength = strength or ConstantStrength()
        self.schedule = schedule
        self.noise_removal = noise_removal
        self.reuse = reuse
        self.cache = cache

    def sample(
        self, canvas: Canvas, noise: Noise, *, record: bool = False, observe: Observer | None = None
    ) -> SamplerOutput:
        """Fill every masked position of the canvas.

        noise:   random numbers, one independent stream a row: `RowNoise(seeds, canvas.positions_BL)`.
        record:  keep every frame.
        observe: called with every frame as it is reached (streaming).
        """
        was_training = self.predictor.training
        self.predictor.eval()
        try:
            with torch.no_grad():
                return _Run(self, canvas, record=record, observe=observe).finish(noise)
        finally:
            self.predictor.train(was_training)


class _Run:
    """One batch on its way from masks to text."""

    def __init__(self, sampler: Sampler, canvas: Canvas, *, record: bool, observe: Observer | None) -> None:
        self.sampler = sampler
        self.predictor = sampler.predictor
        self.mask_id = sampler.predictor.mask_id
        self.attention_mask_BL = canvas.attention_mask_BL
        ids_BL, open_BL = canvas.ids_BL, canvas.open_BL(self.mask_id)
        self.state = State(
            ids_BL=ids_BL,
            open_BL=open_BL,
            masked_BL=open_BL,
            confidence_BL=torch.full(ids_BL.shape, -torch.inf, dtype=torch.float64, device=ids_BL.device),
            time_B=torch.ones(ids_BL.shape[0], dtype=torch.float64, device=ids_BL.device),
            step=0,
        )
        self.cache: CacheRun | None = None
        if sampler.cache is not None:
            self.cache = CacheRun(sampler.cache, self.predictor, ids_BL, canvas.attention_mask_BL)
        self.feedback = feedback_of(self.predictor, ids_BL)
        self.never_fed = self.consumed = self.feedback  # consumed: what each row's last prediction was fed
        every_B = torch.ones(ids_BL.shape[0], dtype=torch.bool, device=ids_BL.device)
        self.stale_B = every_B  # the row changed since its last prediction, or there was none
        self.unfed_B = every_B  # its last prediction was fed nothing
        self.nfe_B = torch.zeros(ids_BL.shape[0], dtype=torch.int64, device=ids_BL.device)
        self.forward_passes = 0
        self.previous = self.state
        self.trajectory = Trajectory(self.mask_id) if record else None
        self.observe = observe

    def finish(self, noise: Noise) -> SamplerOutput:
        for step in range(self.sampler.policy.max_steps(self.state.open_BL)):
            if not self.sampler.policy.remasks and not bool(self.state.masked_BL.any()):
                break
            self._step(noise.step(step, self.state.masked_BL))
        num_steps = self.state.step
        if self.sampler.noise_removal and bool(self.state.masked_BL.any()):
            self._remove_noise()
        self._frame(self.state.time_B)
        return SamplerOutput(self.state.ids_BL, self.nfe_B, self.forward_passes, num_steps, self.trajectory)

    def _step(self, noise: StepNoise) -> None:
        proposal = self.sampler.policy.propose(self.state, noise)
        self._frame(proposal.time_B)
        self._apply(proposal, self._predict(proposal, noise.token_BL))

    def _remove_noise(self) -> None:
        time_B = torch.full_like(self.state.time_B, self.sampler.policy.end_time)
        proposal = Proposal(time_B, self.state.masked_BL, drawer=MostProbable())
        self._frame(time_B)
        self._apply(proposal, self._predict(proposal, self.state.confidence_BL, TokenSampling()))

    def _predict(self, proposal: Proposal, uniform_BL: Tensor, sampling: TokenSampling | None = None) -> Drawn | None:
        """Run the rows that need it; their feedback is renewed. None when no row does."""
        masked_BL, sampler = self.state.masked_BL, self.sampler
        fresh_B = self.stale_B | (sampler.reuse == "never")
        remember_BL = masked_BL & self.feedback.keeps
        if proposal.choose is None:
            remember_BL = remember_BL & ~proposal.draw_BL
        rows_B = proposal.draw_BL.any(1) | (remember_BL.any(1) & fresh_B)
        if not bool(rows_B.any()):
            return None
        renewed = self.feedback
        ids_BL = torch.zeros_like(self.state.ids_BL)
        confidence_BL = torch.full_like(self.state.confidence_BL, -torch.inf)
        for group_B, source in self._groups(rows_B, fresh_B):
            rows_R = group_B.nonzero().squeeze(1)
            for part in [Pass(rows_R)] if self.cache is None else self.cache.passes(rows_R, proposal.block_BL):
                rule = self._rule(part.rows_R, proposal, uniform_BL, sampling or sampler.sampling)
                drawn = self._run_rows(part, proposal, source, remember_BL, rule)
                self.forward_passes += 1
                ids_BL = ids_BL.index_copy(0, part.rows_R, drawn.ids_BL)
                confidence_BL = confidence_BL.index_copy(0, part.rows_R, drawn.confidence_BL)
                if source is self.feedback:
                    renewed = renewed.write(part.rows_R, keep_old(part, source.read(part.rows_R), drawn.memory))
        self._renew(rows_B & fresh_B, renewed)
        return Drawn(ids_BL, confidence_BL, None)

    def _groups(self, rows_B: Tensor, fresh_B: Tensor) -> list[tuple[Tensor, Feedback]]:
        """Rows that are run together, and what they are fed: new predictions, and those made again as they were."""
        again_B = rows_B & ~fresh_B
        groups = (
            (rows_B & fresh_B, self.feedback),
            (again_B & self.unfed_B, self.never_fed),
            (again_B & ~self.unfed_B, self.consumed),
        )
        return [(group_B, source) for group_B, source in groups if bool(group_B.any())]

    def _renew(self, rows_B: Tensor, renewed: Feedback) -> None:
        """These rows were predicted anew: count them, note what they were fed, and feed the prediction next."""
        if not bool(rows_B.any()):
            return
        self.nfe_B += rows_B
        if self.sampler.reuse != "never":
            rows_R = rows_B.nonzero().squeeze(1)
            fed = self.feedback.read(rows_R)
            self.consumed = self.consumed if fed is None else self.consumed.write(rows_R, fed)
            self.unfed_B = torch.where(rows_B, fed is None, self.unfed_B)
            done_B = rows_B if self.sampler.reuse == "rows" else torch.ones_like(rows_B)
            self.stale_B = self.stale_B & ~done_B
        self.feedback = renewed

    def _rule(self, rows_R: Tensor, proposal: Proposal, uniform_BL: Tensor, sampling: TokenSampling) -> SampleRule:
        length = self.state.ids_BL.shape[1]
        full_M = (rows_R[:, None] * length + torch.arange(length, device=rows_R.device)).flatten()
        drawer = proposal.drawer or (MostProbable() if sampling.temperature == 0 else InverseCdf(uniform_BL))
        return SampleRule(sampling, drawer, proposal.measure, full_M)

    def _run_rows(
        self, part: Pass, proposal: Proposal, source: Feedback, remember_BL: Tensor, rule: SampleRule
    ) -> Drawn:
        rows_R, remember_RL = part.rows_R, remember_BL[part.rows_R]
        if part.renewed_RL is not None:
            remember_RL = remember_RL & part.renewed_RL
        readout = Draw(
            proposal.draw_BL[rows_R].flatten().nonzero().squeeze(1),
            rule,
            remember=self.predictor.remember_at(remember_RL.flatten().nonzero().squeeze(1)),
        )
        schedule, mask_BL, time_R = self.sampler.schedule, self.attention_mask_BL, proposal.time_B[rows_R]
        conditions: dict[str, Any] = {
            "sigma_B": None if schedule is None else schedule.sigma(time_R).float(),
            "attention_mask_BL": None if mask_BL is None else mask_BL[rows_R],
            "strength": self._strength(time_R),
        }
        ids_RL, memory = self.state.ids_BL[rows_R], source.read(rows_R)
        if self.cache is None:
            out: Any = self.predictor(ids_RL, memory, readout, **conditions)
        else:
            out = self.cache.predict(part, ids_RL, memory, readout, **conditions)
        assert isinstance(out, Drawn)
        return out

    def _strength(self, time_R: Tensor) -> float | Tensor:
        """One number where all rows agree, else (R, 1)."""
        values = [self.sampler.strength(t) for t in time_R.tolist()]
        return values[0] if len(set(values)) == 1 else torch.tensor(values, device=time_R.device)[:, None]

    def _apply(self, proposal: Proposal, drawn: Drawn | None) -> None:
        state, remask_BL = self.state, proposal.remask_BL
        ids_BL, confidence_BL = state.ids_BL, state.confidence_BL
        if drawn is not None:
            accepted_BL = proposal.draw_BL
            if proposal.choose is not None:
                accepted_BL = accepted_BL & proposal.choose(drawn.confidence_BL)
            ids_BL = torch.where(accepted_BL, drawn.ids_BL, ids_BL)
            confidence_BL = torch.where(accepted_BL, drawn.confidence_BL, confidence_BL)
        if remask_BL is not None:
            self.feedback = self.feedback.remask(remask_BL, ids_BL)
            ids_BL = ids_BL.masked_fill(remask_BL, self.mask_id)
        masked_BL = (ids_BL == self.mask_id) & state.open_BL
        changed_B = (ids_BL != state.ids_BL).any(1)
        self.stale_B = self.stale_B | (changed_B.any() if self.sampler.reuse == "batch" else changed_B)
        self.previous = state
        self.state = State(
            ids_BL=ids_BL,
            open_BL=state.open_BL,
            masked_BL=masked_BL,
            confidence_BL=confidence_BL.masked_fill(masked_BL, -torch.inf),
            time_B=proposal.time_B,
            step=state.step + 1,
        )

    def _frame(self, time_B: Tensor) -> None:
        if self.trajectory is None and self.observe is None:
            return
        rows_B = torch.arange(len(time_B), device=time_B.device)
        frame = make_frame(
            self.predictor,
            self.feedback.read(rows_B),
            self._strength(time_B),
            step=self.state.step,
            time_B=time_B,
            ids_BL=self.state.ids_BL,
            state_BL=self._states(),
        )
        if self.trajectory is not None:
            self.trajectory.frames.append(frame)
        if self.observe is not None:
            self.observe(frame)

    def _states(self) -> Tensor:
        code = {name: index for index, name in enumerate(STATES)}
        now, before = self.state, self.previous
        remasked_BL = now.masked_BL & ~before.masked_BL
        state_BL = torch.where(before.masked_BL, code["drawn"], code["kept"])
        state_BL = torch.where(now.masked_BL, torch.where(remasked_BL, code["remasked"], code["masked"]), state_BL)
        state_BL = torch.where(now.open_BL, state_BL, code["given"])
        if self.attention_mask_BL is not None:
            state_BL = torch.where(self.attention_mask_BL, state_BL, code["padding"])
        return state_BL
