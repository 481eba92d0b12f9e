"""``makemore sample``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from makemore.cli.options import DEVICE, JSON, RUN
from makemore.cli.terminal import echo, echo_sample, print_json

if TYPE_CHECKING:
    from makemore.runs.run import Run
    from makemore.sampling.text import SampleRequest

    Learn = Callable[[Run, SampleRequest], Run]
    """Gives the run that continues a request's prompt."""


def command(
    run: Path = RUN,
    n: int | None = typer.Option(None, "-n", help="Samples per prompt (default: 10 lines, or one text)."),
    prompt: list[str] = typer.Option([], "--prompt", "-p", help="Text to continue; repeatable."),
    prompt_file: Path | None = typer.Option(
        None, "--prompt-file", help="File to continue, or '-' for stdin; in lines mode each line is a prompt."
    ),
    max_new_tokens: int | None = typer.Option(None, "--max-new-tokens", help="Maximum length in tokens."),
    temperature: float = typer.Option(
        1.0, "--temperature", help="Below 1 sharpens the distribution, above 1 flattens it."
    ),
    top_k: int | None = typer.Option(None, "--top-k", help="Keep only the K most probable tokens."),
    top_p: float | None = typer.Option(
        None, "--top-p", help="Keep the smallest set of tokens whose probabilities sum to at least P."
    ),
    min_p: float | None = typer.Option(
        None, "--min-p", help="Drop tokens below this fraction of the top probability."
    ),
    greedy: bool = typer.Option(False, "--greedy", help="Always choose the most probable token."),
    beam: int | None = typer.Option(
        None, "--beam", help="Beam search with K beams instead of sampling; best texts first."
    ),
    length_penalty: float | None = typer.Option(
        None, "--length-penalty", help="Length-normalisation exponent for beam search (default: 0.6)."
    ),
    stop: str | None = typer.Option(None, "--stop", help="End each sample before this text."),
    seed: int | None = typer.Option(None, "--seed", help="Random seed (default: a new one each time)."),
    novel_only: bool = typer.Option(False, "--novel-only", help="Print only lines not in the training text."),
    show_probs: bool = typer.Option(
        False, "--show-probs", help="Print each token's probability, entropy and alternatives."
    ),
    report: bool = typer.Option(False, "--report", help="Print memorisation statistics instead of samples."),
    adaptive: bool = typer.Option(
        False, "--adaptive/--frozen", help="Learn from the prompt before continuing it (default: frozen)."
    ),
    unknown: str = typer.Option("error", "--unknown", help="Unknown prompt characters: error or skip."),
    device: str = DEVICE,
    json: bool = JSON,
) -> None:
    """Sample from a run; only samples go to stdout."""
    from makemore.errors import UserError
    from makemore.sampling import SampleParams

    if unknown not in ("error", "skip"):
        raise UserError(f"--unknown {unknown!r}: must be error or skip")
    if show_probs and (report or novel_only or beam is not None):
        raise UserError("--show-probs needs random samples; leave out --report, --novel-only and --beam")
    if novel_only and (report or beam is not None):
        raise UserError("--novel-only needs random samples; leave out --report and --beam")
    if length_penalty is not None and beam is None:
        raise UserError("--length-penalty requires --beam")
    if adaptive and report:
        raise UserError("--adaptive learns from a prompt; leave out --report")
    params = SampleParams(temperature, top_k, top_p, min_p, greedy)
    from makemore.corpus.decoding import blank_text_error
    from makemore.evaluation.evaluate import adapted_run
    from makemore.runs.run import load
    from makemore.runtime import native
    from makemore.sampling.beam import DEFAULT_LENGTH_PENALTY
    from makemore.sampling.text import SampleRequest, context_ids, random_seed, request_notes

    text = _read_prompt_file(prompt, prompt_file)
    loaded = load(run, device)
    request = SampleRequest(
        n=_n_samples(loaded, n, beam, report),
        prompt="",
        max_new_tokens=max_new_tokens,
        params=params,
        stop=stop,
        seed=random_seed() if seed is None else seed,
        skip_unknown=unknown == "skip",
        beam=beam,
        length_penalty=DEFAULT_LENGTH_PENALTY if length_penalty is None else length_penalty,
    )
    requests = [replace(request, prompt=p) for p in _prompts(loaded, prompt, text)]
    if not requests:
        raise blank_text_error("standard input" if str(prompt_file) == "-" else str(prompt_file))
    for r in requests:
        context_ids(loaded, r)  # reject a bad prompt before printing anything
    for note in {note: None for r in requests for note in request_notes(loaded, r)}:
        echo(note, err=True)
    learn: Learn = adapted_run if adaptive else lambda run, _: run
    if report:
        _print_report(loaded, requests, json)
    elif show_probs:
        _print_probs(loaded, requests, learn, json)
    else:
        _print_samples(loaded, requests, learn, novel_only, json)
    for note in native.failure_notes():
        echo(note, err=True)


def _read_prompt_file(prompt: list[str], prompt_file: Path | None) -> str | None:
    from makemore.corpus.decoding import decode_blocks
    from makemore.corpus.source import read_part
    from makemore.errors import UserError

    if prompt_file is None:
        return None
    if prompt:
        raise UserError("--prompt and --prompt-file can't be combined; choose one")
    name = "standard input" if str(prompt_file) == "-" else str(prompt_file)
    return "".join(decode_blocks(read_part(str(prompt_file)), name))


def _prompts(run: Run, prompt: list[str], text: str | None) -> list[str]:
    """The whole file in ``text`` mode, one prompt per line in ``lines`` mode."""
    if text is None:
        return prompt or [""]
    return [part for part in (text.split("\n") if run.mode == "lines" else [text]) if part]


def _n_samples(run: Run, n: int | None, beam: int | None, report: bool) -> int:
    if n is not None:
        return n
    if beam is not None:
        return 1
    if report:
        from makemore.evaluation.memorization import DEFAULT_SAMPLES

        return DEFAULT_SAMPLES[run.mode]
    return 10 if run.mode == "lines" else 1


def _json_header(run: Run, requests: list[SampleRequest]) -> dict[str, Any]:
    prompts = [r.prompt for r in requests]
    return {"run": str(run.folder.path), "seed": requests[0].seed, "prompts": prompts}


def _print_samples(
    run: Run, requests: list[SampleRequest], learn: Learn, novel_only: bool, json: bool
) -> None:
    from makemore.sampling.novel import sample_novel
    from makemore.sampling.text import normalize_prompt, sample, stream_text

    request = requests[0]
    # Lazily, since each prompt may need its own copy of the model.
    texts = (text for r in requests for text in (sample_novel if novel_only else sample)(learn(run, r), r))
    if json:
        print_json({**_json_header(run, requests), "samples": list(texts)})
    elif run.mode == "text" and len(requests) == request.n == 1 and not request.beam and sys.stdout.isatty():
        learned = learn(run, request)
        echo_sample(normalize_prompt(learned, request), end="")
        for piece in stream_text(learned, request):
            echo_sample(piece, end="")
        echo()
    else:
        for i, text in enumerate(texts):
            if i and run.mode == "text":
                echo("-" * 40)
            echo_sample(text)


def _print_report(run: Run, requests: list[SampleRequest], json: bool) -> None:
    from makemore.cli.tables import memorisation_table
    from makemore.evaluation.memorization import sample_memorization

    result = sample_memorization(run, requests)
    if json:
        print_json({**_json_header(run, requests), "report": result})
    else:
        echo(memorisation_table(result))


def _print_probs(run: Run, requests: list[SampleRequest], learn: Learn, json: bool) -> None:
    from makemore.cli.probabilities import print_probs
    from makemore.sampling.probabilities import sample_with_probs
    from makemore.sampling.text import normalize_prompt

    learned = ((r, learn(run, r)) for r in requests)
    results = ((r, sample_with_probs(reader, r, i)) for r, reader in learned for i in range(r.n))
    if json:
        pairs = [(normalize_prompt(run, r), tokens) for r, tokens in results]
        samples = [prompt + "".join(t.text for t in tokens) for prompt, tokens in pairs]
        tokens_json = [[t.as_dict() for t in tokens] for _, tokens in pairs]
        print_json({**_json_header(run, requests), "samples": samples, "tokens": tokens_json})
        return
    for r, tokens in results:
        print_probs(normalize_prompt(run, r), tokens)
