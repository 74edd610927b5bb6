"""How a model is placed on the devices and computed. Requires no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clip_train.errors import ClipTrainError

AUTOCAST = {"bf16": "bfloat16", "fp16": "float16", "fp8": "bfloat16"}
"""dtype of autocast by precision; the others have none."""
Precision = Literal["fp32", "bf16", "pure_bf16", "fp16", "fp8"]


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the ranks share a model, and the arithmetic, the memory and the compilation of its blocks."""

    parallel: Literal["auto", "fsdp", "ddp"] = "auto"
    """fsdp shards weights, gradients and optimizer state over the ranks, block by block (FSDP2); ddp keeps a copy on
    each; auto is fsdp on CUDA and ddp on the CPU"""
    shard: int = 0
    """ranks that hold one copy of the model together, under fsdp; the copies are averaged; 0 is all ranks"""
    offload: bool = False
    """keep the shards of weights, gradients and optimizer state in the memory of the CPU, under fsdp"""
    precision: Precision = "bf16"
    """of the towers: bf16 and fp16 (with a scaled loss) are autocast over fp32 weights, fp8 is bf16 with the products
    of linear layers in float8, pure_bf16 has weights and optimizer state in bf16; the loss is always fp32. On a CPU
    without bf16 instructions, bf16 is computed in fp32, which is faster there and more exact"""
    grad_checkpointing: Literal["off", "full", "ops"] = "off"
    """activations computed again in the backward pass, for less memory: those inside each block, or with ops all but
    the results of products, convolutions and attention"""
    compile: Literal["off", "block", "model", "step"] = "off"
    """what torch.compile gets: each block, the towers together, or these with the loss"""
    compile_backend: str = "inductor"
    """what torch.compile turns the graphs into: a name that torch.compiler.list_backends knows"""
    compile_limit: int = 32
    """largest number of graphs of one function; a further one, for another shape, ends the run"""

    def check(self, *, micro_batches: int = 1) -> None:
        """Raises ClipTrainError for values that are not valid, or cannot work together on any machine."""
        if self.shard < 0 or self.shard == 1:
            raise ClipTrainError(
                f"train.shard = {self.shard} must be 0 or at least 2; set train.parallel = 'ddp' to shard nothing"
            )
        if self.compile_limit < 1:
            raise ClipTrainError(f"train.compile_limit = {self.compile_limit} must be at least 1")
        if self.compile == "off" and self.compile_backend != "inductor":
            raise ClipTrainError(
                f"train.compile_backend = {self.compile_backend!r} has no effect with train.compile = 'off': set "
                "train.compile, or omit it"
            )
        sharded = self.parallel == "fsdp"
        if self.parallel == "ddp":
            for name, value in (("shard", self.shard), ("offload", self.offload)):
                if value:
                    raise ClipTrainError(f"train.{name} = {value!r} has no effect with train.parallel = 'ddp': omit it")
        if (sharded or self.shard or self.offload) and self.compile in ("model", "step"):
            raise ClipTrainError(
                f"train.compile = {self.compile!r} does not work with a sharded model, whose blocks are gathered "
                "between their calls: choose train.compile = 'block' or train.parallel = 'ddp'"
            )
        if self.compile == "step" and micro_batches > 1:
            raise ClipTrainError(
                f"train.compile = 'step' does not work with train.micro_batches = {micro_batches}, whose second pass "
                "repeats the random draws of the first: choose train.compile = 'block' or 'model'"
            )
