"""Sharded parameters over all processes (torch FSDP2), with checkpoints that fit every other strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from sm_diffusion.training.callbacks.preemption import stop_all
from sm_diffusion.training.checkpoints import store as ckpt_store
from sm_diffusion.training.checkpoints.gather import gathered, snapshot
from sm_diffusion.training.checkpoints.writer import Writer
from sm_diffusion.training.strategies.base import Trained, TrainingStrategy
from sm_diffusion.training.strategies.saving import save_on_first_rank
from sm_diffusion.training.strategies.sharding import (
    ShardSettings,
    check_shapes,
    place_model_state,
    place_optimizer_state,
    reshard,
    shard_predictor,
    whole,
)
from sm_diffusion.types import UserError

_EMA_KEY = "callbacks.EMACallback.shadow."


class ShardedStrategy(TrainingStrategy, ModelParallelStrategy):
    """FSDP2 over all processes. Its checkpoints are the trees of every other strategy, with shards as leaves.

    layout: "consolidated" (one file, gathered on rank 0) or "sharded" (a folder, every rank writes its part).
    """

    def __init__(self, *, settings: ShardSettings, layout: str, writer: Writer, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, **options)
        self.writer = writer
        self._writing_group: dist.ProcessGroup | None = None
        self.settings = settings
        self.layout = layout
        self._source = ""

    # ------------------------------------------------------------------------------------------------ a training step

    def adopt(self, trained: Trained) -> None:
        shard_predictor(trained.predictor, self.device_mesh["data_parallel"], self.settings)

    def complete_loss(self, loss: Tensor, *, feedback: bool) -> Tensor:
        return loss

    def clip_gradients(self, weights: Sequence[nn.Parameter], max_norm: float | None) -> Tensor:
        # The norm is made whole first, so that it is summed over ranks once, for the clipping and for the log.
        norm = whole(torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None]))
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
        return norm

    def release_gathered(self) -> None:
        assert self.lightning_module is not None
        reshard(self.lightning_module)

    def gathered(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        return nullcontext()  # torch computes with shards; `whole` gathers the result

    def whole(self, tensor: Tensor) -> Tensor:
        return whole(tensor)

    # -------------------------------------------------------------------------------------------- Lightning's own hooks

    def model_to_device(self) -> None:
        if not self.settings.cpu_offload:
            super().model_to_device()

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Micro-batches before the last of a step keep their gradients; Lightning by itself does so for DDP only."""
        assert self.model is not None
        units = [unit for unit in self.model.modules() if isinstance(unit, FSDPModule)]
        units = units if self.settings.hold_gradients else []
        for unit in units:
            unit.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for unit in units:
                unit.set_requires_gradient_sync(True, recurse=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        self.release_gathered()
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return optimizer.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path = Path(self.broadcast(str(filepath)))
        if self.layout == "sharded":
            self._save_shards(checkpoint, path)
            return
        tree = gathered(checkpoint, keep=self.is_global_zero)
        save_on_first_rank(self, lambda: self.writer.save(lambda: ckpt_store.write_file(tree, path)))

    def _save_shards(self, checkpoint: dict[str, Any], path: Path) -> None:
        tree = checkpoint
        if self.writer.background:
            tree = snapshot(checkpoint)
            if self._writing_group is None:  # the thread's collectives must not mix with those of training
                self._writing_group = dist.new_group(backend="gloo")
        try:
            self.writer.save(
                lambda: ckpt_store.write_folder(tree, path, rank=self.global_rank, group=self._writing_group)
            )
        except UserError as error:  # raised on all ranks
            stop_all(str(error), rank=self.global_rank)

    def remove_checkpoint(self, filepath: Any) -> None:
        if self.is_global_zero:
            self.writer.after(lambda: ckpt_store.remove(Path(filepath)))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(str(checkpoint_path)))
        self._source = str(path)
        target = self._target(path) if path.is_dir() else None
        tree: dict[str, Any] = ckpt_store.read(path, target=target, mmap=True)
        return tree

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        module.load_state_dict(place_model_state(module, checkpoint["state_dict"], source=self._source))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(place_optimizer_state(optimizer, state))

    def _target(self, path: Path) -> Callable[[str, ckpt_store.TensorShape], Tensor]:
        """Where to read each stored tensor: a shard like the parameter it belongs to, so no rank reads all."""
        module = self.lightning_module
        assert module is not None
        parameters: dict[str, Tensor] = dict(module.state_dict())
        stored = ckpt_store.shapes(path)
        check_shapes(
            {f"state_dict.{name}": tuple(value.shape) for name, value in parameters.items()},
            {key: entry.shape for key, entry in stored.items() if key.startswith("state_dict.")},
            source=str(path),
        )
        ordered = [
            [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for optimizer in self.optimizers
        ]

        def target(key: str, entry: ckpt_store.TensorShape) -> Tensor:
            like: Tensor | None = None
            if key.startswith("state_dict."):
                like = parameters[key.removeprefix("state_dict.")]
            elif key.startswith(_EMA_KEY):
                like = parameters.get("predictor." + key.removeprefix(_EMA_KEY))
            elif key.startswith("optimizer_states."):
                _, which, _, index, _ = key.split(".")
                like = ordered[int(which)][int(index)]
            if isinstance(like, DTensor) and tuple(like.shape) == entry.shape:
                return torch.empty_like(like, dtype=entry.dtype)
            return torch.empty(entry.shape, dtype=entry.dtype)

        return target
