"""``makemore train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from makemore.cli import options
from makemore.cli.options import ENCODING, INPUT, JSON, MODE, SKIP_DAMAGED, given, quote_command
from makemore.cli.terminal import echo_sample, print_json
from makemore.errors import UserError

if TYPE_CHECKING:
    from makemore.cli.progress import ProgressObserver
    from makemore.training.observers import MultiObserver
    from makemore.training.records import TrainResult
    from makemore.training.request import TrainRequest

MODEL = typer.Option(None, "--model", "-m", help="Model; see makemore models (default: auto).")
TOKENIZER = typer.Option(None, "--tokenizer", "-t", help=f"{options.TOKENIZERS} (default: char).")
COMPILE = typer.Option(
    None,
    "--compile/--no-compile",
    help="Use torch.compile (default: only if faster; never together with the C gradients).",
)

ON_DIVERGENCE = typer.Option(
    None, "--on-divergence", help="stop (default), or rollback (last state, half the learning rate)."
)
SHARD = typer.Option(None, "--shard/--no-shard", help="Shard model and optimizer across processes (FSDP2).")


def command(
    context: typer.Context,
    input: list[str] = INPUT,
    model: str | None = MODEL,
    tokenizer: str | None = TOKENIZER,
    mode: str | None = MODE,
    out: Path | None = typer.Option(None, "--out", "-o", help="Run directory to write."),
    steps: int | None = typer.Option(None, "--steps", help="Number of optimizer steps."),
    max_time: str | None = typer.Option(
        None, "--max-time", help="Training time, e.g. 5m (default: 2m unless --steps is set)."
    ),
    device: str | None = typer.Option(None, "--device", help="auto, cpu, cuda, cuda:1 or mps."),
    dtype: str | None = typer.Option(None, "--dtype", help="auto, float32 or bfloat16."),
    compile: bool | None = COMPILE,
    shard: bool | None = SHARD,
    seed: int | None = typer.Option(None, "--seed", help="Random seed of weights, batches and dropout."),
    split: str | None = typer.Option(None, "--split", help="Fractions of train,val,test, e.g. 0.8,0.1,0.1."),
    dedupe: bool | None = typer.Option(None, "--dedupe", help="Put identical lines in the same split."),
    encoding: str | None = ENCODING,
    skip_damaged: bool | None = SKIP_DAMAGED,
    on_divergence: str | None = ON_DIVERGENCE,
    init_from: Path | None = typer.Option(
        None, "--init-from", help="Fine-tune the weights of a run or a Hugging Face GPT-2 directory."
    ),
    resume: bool = typer.Option(
        False,
        "--resume",
        help="Resume an interrupted run. Without an input, read the text of the run in --out.",
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Overwrite an existing run directory."),
    inspect: bool = typer.Option(False, "--inspect", help="After training, run makemore inspect."),
    tensorboard: bool = typer.Option(False, "--tensorboard", help="Also log to TensorBoard."),
    wandb: bool = typer.Option(
        False, "--wandb", help="Also log to Weights & Biases (offline unless WANDB_MODE is set)."
    ),
    config: Path | None = typer.Option(None, "--config", help="TOML file of settings."),
    settings: list[str] = typer.Option([], "--set", help="A setting, such as model.n_layer=6; repeatable."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print no progress or samples during training."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Print all settings."),
    json: bool = JSON,
) -> None:
    """Train a model, score it on val and print samples."""
    from makemore.models import MODELS
    from makemore.settings.train import parse_duration
    from makemore.tokenizers import TOKENIZERS

    train = given(
        steps=steps,
        max_time=parse_duration(max_time),
        device=device,
        dtype=dtype,
        seed=seed,
        shard=shard,
        on_divergence=on_divergence,
        compile=None if compile is None else "yes" if compile else "no",
    )
    # Report misspelt names before the slow import of torch.
    if model is not None:
        MODELS.path(model)
    TOKENIZERS.path((tokenizer or "char").partition(":")[0])
    from makemore.cli.inspecting.inspect import show
    from makemore.cli.progress import ProgressObserver
    from makemore.interop.hf import read_pretrained
    from makemore.training.observers import MultiObserver, TensorBoard, WandB
    from makemore.training.request import TrainRequest

    for first, second in (("resume", "overwrite"), ("quiet", "verbose")):
        if context.params[first] and context.params[second]:
            raise UserError(f"--{first} and --{second} can't be combined; choose one")
    if init_from is not None and tokenizer is not None:
        raise UserError("--init-from determines the tokenizer; leave --tokenizer out")
    pretrained = None if init_from is None else read_pretrained(init_from)
    request = TrainRequest(
        input=tuple(input),
        model=model or "",
        tokenizer=tokenizer,
        out=out,
        train=train,
        corpus=given(mode=mode, split=split, encoding=encoding, dedupe=dedupe, skip_damaged=skip_damaged),
        settings=tuple(settings),
        config=config,
        resume=resume,
        overwrite=overwrite,
        pretrained=pretrained,
    )
    observer = ProgressObserver(quiet=quiet, verbose=verbose)
    logs = [log() for log, enabled in ((TensorBoard, tensorboard), (WandB, wandb)) if enabled]
    result = _run(request, observer, MultiObserver(observer, *logs))
    if result is None:
        return
    _show_score(result, observer)
    if json:
        print_json(result.as_dict())
    else:
        _show_samples(result, observer)
    if inspect:
        from makemore.report.inspection import inspect as inspect_run

        show(inspect_run(result.run), observer.note)


def _run(request: TrainRequest, observer: ProgressObserver, observers: MultiObserver) -> TrainResult | None:
    """Train until done or interrupted. Returns None on ranks other than 0."""
    from makemore.cli.signals import stop_flag
    from makemore.runtime import distributed
    from makemore.training.records import NotMainRank, TrainingInterrupted
    from makemore.training.train import train

    # With torchrun, Ctrl-C arrives twice: from the terminal and from torchrun.
    with stop_flag(once=distributed.dist_info_from_env().world_size == 1) as flag:
        try:
            return train(request, observers, flag)
        except (TrainingInterrupted, KeyboardInterrupt) as stopped:
            observer.close()
            if distributed.dist_info_from_env().rank == 0:
                default_message = "stopped at once; use --resume to continue from the last saved state"
                observer.note(f"makemore: {str(stopped) or default_message}")
            raise typer.Exit(flag.status) from None
        except NotMainRank:
            return None
        finally:
            observers.close()


def _show_score(result: TrainResult, observer: ProgressObserver) -> None:
    from makemore.cli.progress import baseline_line, member_line, score_line, settings_line
    from makemore.models.base import CountModel

    observer.note(score_line(result.score))
    for member in result.members:
        observer.note(member_line(member))
    if result.baseline is not None:
        observer.note(baseline_line(result.baseline))
    if result.remark:
        observer.note(result.remark)
    speed = result.tokens / max(result.seconds, 1e-9)
    best = "" if result.best_step == result.steps else f", best at step {result.best_step:,}"
    early = f"; stopped early{best}" if result.stopped_early else ""
    steps = f"{result.steps:,} step{'s' * (result.steps != 1)}"
    if not result.members:
        observer.note(f"{steps} in {result.seconds:.1f} s, {speed:,.0f} tokens/s{early}")
    if isinstance(result.run.model, CountModel):
        model = result.run.model
        observer.note(f"{model.n_parameters():,} counts; {settings_line(model.config)}")


def _show_samples(result: TrainResult, observer: ProgressObserver) -> None:
    observer.note("samples:")
    echo_sample("\n".join(result.samples))
    command = quote_command("makemore", "sample", str(result.run.folder.path))
    observer.note(f"sample more: {command}", wrap=False)
