"""DeepSpeed's ZeRO as one more strategy: the same noise, clipping, averages and checkpoints as under every other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import nn
from torch.optim import Optimizer

from sm_diffusion.training.checkpoints import store as ckpt_store
from sm_diffusion.training.checkpoints.writer import Writer
from sm_diffusion.training.optim import optimizer_groups
from sm_diffusion.training.strategies import zero_shards
from sm_diffusion.training.strategies.base import Trained, TrainingStrategy
from sm_diffusion.training.strategies.saving import save_on_first_rank
from sm_diffusion.training.strategies.sharding import check_shapes


class ZeroStrategy(TrainingStrategy, DeepSpeedStrategy):
    """ZeRO-1, 2 or 3 on GPUs, or on the CPU over gloo (slow: for tests).

    Weights stay float32 and bf16-mixed is torch's autocast, as under DDP: DeepSpeed's own bf16 mode would round the
    omegas to 8 bits. Checkpoints are the one file every strategy writes, gathered a tensor at a time on rank 0.
    """

    def __init__(
        self,
        *,
        stage: int,
        offload: bool,
        on_cpu: bool,
        writer: Writer,
        process_group_backend: str,
        timeout: timedelta,
    ) -> None:
        if on_cpu:
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
        super().__init__(
            stage=stage,
            offload_optimizer=offload,
            offload_parameters=offload and stage == 3,
            overlap_comm=not on_cpu,
            logging_batch_size_per_gpu=1,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        assert isinstance(self.config, dict)
        self.config["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW, as everywhere else
        self.config["wall_clock_breakdown"] = False
        if stage == 3:
            # Nothing stays gathered between steps: averages are swapped in slices.
            self.config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        self.on_cpu = on_cpu
        self.writer = writer
        self._source = ""
        self._trained: Trained | None = None

    # ---------------------------------------------------------------------------------------------- on a CPU, as well

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0) if self.on_cpu else super().root_device  # DeepSpeed wants an index

    def setup_environment(self) -> None:
        if self.on_cpu:
            DDPStrategy.setup_environment(self)
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        if not self.on_cpu:
            super().setup_distributed()
            return
        import deepspeed

        # gloo carries what DeepSpeed would otherwise compile a C++ extension for when it starts.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _format_config(self) -> None:
        super()._format_config()
        assert isinstance(self.config, dict)
        if self.config.pop("bf16", None) is not None:
            # No module is listed: gradients are summed and weights are gathered in float32.
            self.config["torch_autocast"] = {
                "enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": [],
            }

    # ------------------------------------------------------------------------------------------------ a training step

    def adopt(self, trained: Trained) -> None:
        self._trained = trained  # DeepSpeed partitions its parameters when it makes its engine

    def complete_loss(self, loss: torch.Tensor, *, feedback: bool) -> torch.Tensor:
        """ZeRO-1 and 2 would keep the omegas' last gradient in a step without feedback: they get zeros."""
        omegas = [] if feedback or self.zero_stage_3 else self._omegas()
        return loss + 0.0 * torch.stack([weight.sum() for weight in omegas]).sum() if omegas else loss

    def clip_gradients(self, weights: Sequence[nn.Parameter], max_norm: float | None) -> None:
        """DeepSpeed clips inside its own step; `optimizer_step` records the norm."""

    def release_gathered(self) -> None:
        if not self.zero_stage_3:
            return
        from deepspeed import DeepSpeedEngine
        from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload

        if isinstance(self.model, DeepSpeedEngine):
            held = self.model.optimizer  # an engine for validation has no optimiser, only what gathers for it
            offload = held if isinstance(held, DeepSpeedZeRoOffload) else held.parameter_offload
            offload.partition_all_parameters()

    def gathered(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        return zero_shards.gathered(parameters)

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    @property
    def trained(self) -> Trained:
        assert self._trained is not None, "adopt() comes first"
        return self._trained

    def _groups(self) -> list[list[nn.Parameter]]:
        return [group for _, group in optimizer_groups(self.trained.predictor)]

    def _flats(self, optimizer: Optimizer) -> list[zero_shards.Flat]:
        return zero_shards.flats(optimizer, stage=3 if self.zero_stage_3 else 2)

    def _omegas(self) -> list[nn.Parameter]:
        return dict(optimizer_groups(self.trained.predictor)).get("omegas", [])

    def backward(self, closure_loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Lightning has divided the loss by the micro-batches of a step; DeepSpeed would do it again."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def optimizer_step(self, optimizer: Optimizer, closure: Any, model: Any = None, **kwargs: Any) -> Any:
        """A step without feedback gives the omegas no gradient, which ZeRO takes for zeros: it would move them."""
        groups = [name for name, _ in optimizer_groups(self.trained.predictor)]
        moves: AbstractContextManager[None] = nullcontext()
        if "omegas" in groups and not self.trained.step_spends_feedback():
            inner: Optimizer = optimizer.optimizer  # type: ignore[attr-defined]
            if self.zero_stage_3:
                zero_shards.forget_gradients(self._omegas())
            moves = zero_shards.untouched(inner, self._flats(optimizer), groups.index("omegas"))
        with moves:
            found = super().optimizer_step(optimizer, closure, model, **kwargs)
        norm = self.model.get_global_grad_norm()  # type: ignore[union-attr, operator]
        if norm is not None:
            self.trained.recorder.record("train/grad_norm", norm)
        return found

    # ---------------------------------------------------------------------------------------------------- checkpoints

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        module = self.lightning_module
        assert module is not None
        self.release_gathered()
        found: dict[str, Any] = {}
        own: dict[str, Any] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name in module.state_dict():
            with zero_shards.gathered([own[name]]), torch.no_grad():
                found[name] = own[name].detach().cpu().clone() if self.is_global_zero else None
        return found

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        inner: Optimizer = optimizer.optimizer  # type: ignore[attr-defined]
        return zero_shards.full_optimizer_state(inner, self._flats(optimizer), self._groups())

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path = Path(self.broadcast(str(filepath)))
        save_on_first_rank(self, lambda: self.writer.save(lambda: ckpt_store.write_file(checkpoint, path)))

    def remove_checkpoint(self, filepath: Any) -> None:
        if self.is_global_zero:
            self.writer.after(lambda: ckpt_store.remove(Path(filepath)))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(str(checkpoint_path)))
        self._source = str(path)
        tree: dict[str, Any] = ckpt_store.read(path, mmap=True)
        return tree

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module, state = self.lightning_module, checkpoint["state_dict"]
        assert module is not None
        parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        own = {name: _shape(parameters.get(name, buffers.get(name))) for name in module.state_dict()}
        check_shapes(own, {name: tuple(value.shape) for name, value in state.items()}, source=self._source)
        self.release_gathered()
        for name in own:
            if name in parameters:
                zero_shards.set_weight(parameters[name], state[name])
            else:
                buffers[name].copy_(state[name])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            inner: Optimizer = optimizer.optimizer  # type: ignore[attr-defined]
            zero_shards.load_full_optimizer_state(inner, self._flats(optimizer), self._groups(), saved)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.ds_shape) if zero_shards.is_partitioned(tensor) else tuple(tensor.shape)
