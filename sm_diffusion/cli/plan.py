"""`smd plan`: what a configuration will cost, before anything runs."""

from __future__ import annotations

import argparse
import math

from sm_diffusion.types import UserError

HELP = "parameters, FLOPs, memory and days of a configuration, before running it"
EXAMPLES = """
smd plan model=dit_169m trainer=owt_continuation data.length=1024 data.global_batch_sequences=512 --vocab 50258
smd plan model=dit_1b strategy=fsdp model.activation_checkpointing=true data.micro_batch_sequences=8 --devices 8
smd plan model=dit_169m data=openwebtext --vocab 50258 --devices 8 --tokens 26e9 --price 2.5
smd plan experiments=quickstart/sm_updates --accelerator A100 --mfu 0.3
smd plan model=dream_7b peft=dora_r16 strategy=single objective=sft data=dream_chat_files data.paths=[chat.jsonl]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from sm_diffusion.planning.arithmetic import PEAK_TFLOPS

    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py")
    parser.add_argument("--vocab", type=int, help="vocabulary size, mask included, instead of the tokenizer's")
    parser.add_argument("--accelerator", choices=sorted(PEAK_TFLOPS), default="H100", help="default: H100")
    parser.add_argument("--memory", type=float, metavar="GB", help="of a device, instead of the accelerator's")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that is reached, default 0.4")
    parser.add_argument("--devices", type=int, help="data-parallel devices; default: the configuration's")
    parser.add_argument("--tokens", type=float, help="train for so many tokens, for example 26e9")
    parser.add_argument("--price", type=float, help="of a device and hour, in your currency")


def check_arguments(args: argparse.Namespace) -> None:
    if not 0 < args.mfu <= 1:
        raise UserError(f"--mfu {args.mfu}: give a share in (0, 1], for example 0.4")
    if args.vocab is not None and args.vocab < 2:
        raise UserError(f"--vocab {args.vocab}: give at least 2, the mask included")
    for name, example in (("devices", "1"), ("tokens", "26e9"), ("price", "2.5"), ("memory", "80")):
        value = vars(args)[name]
        if value is not None and not (math.isfinite(value) and value > 0 and (name != "devices" or value >= 1)):
            raise UserError(f"--{name} {value:g}: give at least 1" if name == "devices" else
                            f"--{name} {value:g}: give a positive number, for example {example}")


def run(args: argparse.Namespace) -> int:
    from sm_diffusion.app.compose import compose_and_validate
    from sm_diffusion.planning.plan import Terms, full_text, with_tokens

    check_arguments(args)
    config = compose_and_validate("train", args.overrides)
    if args.tokens is not None:
        config = with_tokens(config, args.tokens)
    terms = Terms(accelerator=args.accelerator, mfu=args.mfu, memory_gb=args.memory, price=args.price)
    print(full_text(config, terms, vocab=args.vocab, num_devices=args.devices))
    return 0
