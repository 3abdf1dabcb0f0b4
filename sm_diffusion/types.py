"""Shared value types and THE shape legend. Standard library only: torch is named, not imported.

Shape suffixes, used in every name that holds a tensor:

    B  sequences in a batch        D  width of the residual stream
    L  positions in a sequence     K  feedback tokens kept per position (top_k)
    V  vocabulary, mask included   N  positions selected out of B*L
    H  attention heads             C  rows of one chunk of logits
    P  rows that hold several sequences each, packed           Q  positions in a packed row

Entropies and log-probabilities are in nats. `t` is diffusion time in [0, 1]: 0 is clean text, 1 is all masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class UserError(ValueError):
    """A mistake the user can fix. Shown as one line without a traceback.

    The message names the key or file, the value found, and what to do.
    """


class Batch(NamedTuple):
    """One micro-batch of token ids, as every data source delivers it.

    ids_BL:            int64, clean token ids in [0, V).
    rows_B:            int64, index of each sequence: in its global training batch, or in its evaluation split.
                       Noise is keyed by it, so a row's noise depends on neither its batch nor its rank.
    attention_mask_BL: bool, False at padding that no token may attend to and no loss counts. None: all True.
    maskable_BL:       bool, False where the forward process must keep the token (a prompt). None: all True.
    places_PQ:         int64, how the network sees the sequences where several share a row: at (p, q) the real position
                       places_PQ[p, q] of the flattened B*L, -1 at padding. None: as they are. Noise is drawn before.
    """

    ids_BL: Tensor
    rows_B: Tensor
    attention_mask_BL: Tensor | None = None
    maskable_BL: Tensor | None = None
    places_PQ: Tensor | None = None


class TokenMixture(NamedTuple):
    """Soft tokens: position (b, l) reads sum_k weights[b, l, k] * E[ids[b, l, k]].

    ids_BLK:     int64 token ids; slot 0 is the input token itself.
    weights_BLK: float, >= 0, sums to 1 over K, differentiable with respect to the omegas.
    """

    ids_BLK: Tensor
    weights_BLK: Tensor


class DenseMixture(NamedTuple):
    """Soft tokens over the whole vocabulary at N positions: (1 - lambda) E[mask] + lambda sum_i p_i E[i].

    Costs O(N V); only the full-vocabulary variant with a learnable temperature uses it.

    ids_BL:      int64 input ids.
    positions_N: int64 index into the flattened B*L of the softened positions.
    lambda_N:    float in [0, 1].
    logits_NV:   float, unnormalised log-probabilities, already divided by the temperature.
    """

    ids_BL: Tensor
    positions_N: Tensor
    lambda_N: Tensor
    logits_NV: Tensor


class Memory(NamedTuple):
    """All that soft-masking remembers of a prediction: O(B L K), never O(B L V).

    ids_BLK:       int64, the K most probable token ids, most probable first.
    probs_BLK:     float, their probabilities renormalised over the K; all 0 where nothing is remembered.
    neg_entropy_BL: float <= 0, -H(p) in nats over the full vocabulary.
    """

    ids_BLK: Tensor
    probs_BLK: Tensor
    neg_entropy_BL: Tensor


class LogitsMemory(NamedTuple):
    """The whole prediction at N positions, for the full-vocabulary variant. Costs O(N V).

    positions_N: int64 index into the flattened B*L.
    logits_NV:   float, unnormalised log-probabilities at temperature 1.
    """

    positions_N: Tensor
    logits_NV: Tensor


class Draws(NamedTuple):
    """The random numbers of one loss evaluation, all uniform on [0, 1). Randomness is an argument.

    time_B:   one number a sequence, for its diffusion time.
    mask_BL:  one number a position; position l is masked where mask < 1 - alpha(t).
    rows_B:   int64, index of the sequence in the set over which times are stratified.
    num_rows: size of that set (the global batch).
    """

    time_B: Tensor
    mask_BL: Tensor
    rows_B: Tensor
    num_rows: int


class LossOutput(NamedTuple):
    """What an objective returns.

    loss:       scalar, differentiable.
    nll_sum:    scalar float64, sum over tokens of the weighted negative log-likelihood, nats, no gradient.
    num_tokens: scalar int64, tokens over which nll_sum is to be averaged.
    num_passes: forward passes spent (1, or 2 with feedback).
    """

    loss: Tensor
    nll_sum: Tensor
    num_tokens: Tensor
    num_passes: int


class NLL(NamedTuple):
    """Result of the `NegLogLikelihood` readout at N selected positions.

    total: scalar, sum_n weight_n * nll_n, differentiable.
    nll_N: float32, per-position negative log-likelihood in nats, no gradient.
    """

    total: Tensor
    nll_N: Tensor
