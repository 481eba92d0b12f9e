"""``makemore train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from makemore.cli.options import INPUT, JSON, TOKENIZERS_HELP, print_json, seconds

if TYPE_CHECKING:
    from makemore.cli.progress import ProgressObserver
    from makemore.training.train import TrainResult

TOKENIZER = typer.Option(None, "--tokenizer", "-t", help=f"{TOKENIZERS_HELP} (default: char).")
MODE = typer.Option(None, "--mode", help="auto, lines (a document a line) or text (one document).")
COMPILE = typer.Option(
    None, "--compile/--no-compile", help="torch.compile the step (default: C, or where it pays)."
)

ON_DIVERGENCE = typer.Option(
    None, "--on-divergence", help="stop (default), or rollback: go on from the last state at half the rate."
)
SHARD = typer.Option(
    None, "--shard/--no-shard", help="Several processes: cut weights and optimizer states over them (FSDP2)."
)


def command(
    context: typer.Context,
    input: list[str] = INPUT,
    model: str = typer.Option("transformer", "--model", "-m", help="The rung; see makemore models."),
    tokenizer: str | None = TOKENIZER,
    mode: str | None = MODE,
    out: Path | None = typer.Option(None, "--out", "-o", help="Run directory."),
    steps: int | None = typer.Option(None, "--steps", help="Optimizer steps to take."),
    max_time: str | None = typer.Option(None, "--max-time", help="Training time, such as 90s or 5m."),
    device: str | None = typer.Option(None, "--device", help="auto, cpu, cuda, cuda:1 or mps."),
    dtype: str | None = typer.Option(None, "--dtype", help="auto, float32 or bfloat16."),
    compile: bool | None = COMPILE,
    shard: bool | None = SHARD,
    seed: int | None = typer.Option(None, "--seed", help="Seed of weights, batches and dropout."),
    split: str | None = typer.Option(None, "--split", help="Shares of train,val,test, such as 0.8,0.1,0.1."),
    dedupe: bool | None = typer.Option(None, "--dedupe", help="Keep equal lines together in one split."),
    encoding: str | None = typer.Option(None, "--encoding", help="The text's encoding (default utf-8)."),
    on_divergence: str | None = ON_DIVERGENCE,
    init_from: Path | None = typer.Option(
        None, "--init-from", help="Go on from a run's weights, or a Hugging Face GPT-2 folder's: fine-tuning."
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on where a stopped run is."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a run that is there."),
    inspect: bool = typer.Option(
        False, "--inspect", help="Afterwards, pictures and a verdict: makemore inspect."
    ),
    tensorboard: bool = typer.Option(False, "--tensorboard", help="Write curves for TensorBoard too."),
    wandb: bool = typer.Option(
        False, "--wandb", help="Log to Weights & Biases too, offline unless WANDB_MODE is set."
    ),
    config: Path | None = typer.Option(None, "--config", help="A TOML file of settings."),
    settings: list[str] = typer.Option([], "--set", help="A setting, such as model.n_layer=6; repeatable."),
    json: bool = JSON,
) -> None:
    """Train a model on a text, score it on val, and show samples."""
    train: dict[str, Any] = {
        "steps": steps,
        "max_time": seconds(max_time),
        "device": device,
        "dtype": dtype,
        "seed": seed,
        "shard": shard,
        "on_divergence": on_divergence,
        "compile": None if compile is None else "yes" if compile else "no",
    }
    corpus = {"mode": mode, "split": split, "encoding": encoding, "dedupe": dedupe}
    from makemore.models import MODELS
    from makemore.tokenizers import TOKENIZERS

    # A misspelt name is told at once, before torch is imported.
    MODELS.path(model)
    TOKENIZERS.path((tokenizer or "char").partition(":")[0])
    from makemore.cli.inspecting.inspecting import show
    from makemore.cli.progress import ProgressObserver
    from makemore.cli.signals import stop_flag
    from makemore.errors import UserError
    from makemore.runtime import distributed as parallel
    from makemore.training.init_from import model_name
    from makemore.training.observers import Several, TensorBoard, WandB
    from makemore.training.planning import TrainRequest
    from makemore.training.train import Helped, Interrupted
    from makemore.training.train import train as run_training

    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if init_from is not None:
        if _given(context, "tokenizer"):
            raise UserError("--init-from brings its tokenizer along; leave --tokenizer out")
        model = model if _given(context, "model") else model_name(init_from)
    request = TrainRequest(
        tuple(input),
        model,
        tokenizer,
        out,
        {k: v for k, v in train.items() if v is not None},
        {k: v for k, v in corpus.items() if v is not None},
        tuple(settings),
        config,
        resume,
        overwrite,
        init_from,
    )
    observer = ProgressObserver()
    logs = [log() for log, asked in ((TensorBoard, tensorboard), (WandB, wandb)) if asked]
    observers = Several(observer, *logs)
    # Torchrun passes on a Ctrl-C that the terminal has sent to its processes already.
    with stop_flag(once=parallel.launched().size == 1) as flag:
        try:
            result = run_training(request, observers, flag)
        except (Interrupted, KeyboardInterrupt) as stopped:
            observer.close()
            if parallel.launched().rank == 0:
                at_once = "stopped at once; --resume goes on from the last state saved"
                observer.note(f"makemore: {str(stopped) or at_once}")
            raise typer.Exit(flag.status) from None
        except Helped:
            return
        finally:
            observers.close()
    if json:
        print_json(result.as_dict())
    else:
        _show(result, observer)
    if inspect:
        from makemore.inspection.inspect import inspect as inspect_run

        show(inspect_run(result.run), observer.note)


def _show(result: TrainResult, observer: ProgressObserver) -> None:
    from makemore.cli.progress import score_line

    observer.note(score_line(result.score))
    speed = result.tokens / max(result.seconds, 1e-9)
    early = f"; stopped early, best at step {result.best_step:,}" if result.stopped_early else ""
    observer.note(f"{result.steps:,} steps in {result.seconds:.1f} s, {speed:,.0f} tokens/s{early}")
    observer.note("samples:")
    print("\n".join(result.samples))
    observer.note(f"more: makemore sample {result.run.folder.path}")


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option was written on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
