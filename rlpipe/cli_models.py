"""The verbs for trained models: try one, merge several, take one elsewhere. As in `cli`, nothing heavy up here."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from rlpipe.terminal import stop

Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the result goes.")]
Base = Annotated[
    str | None, typer.Option("--base", metavar="MODEL", help="The adapter's base.  [default: what the adapter names]")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier result at --out.")]


def export(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A run directory, a model folder, an adapter folder, or a hub id.")
    ],
    out: Out,
    base: Base = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="The adapter by itself, to be served on its base model.")
    ] = False,
    force: Force = False,
) -> None:
    """Take a trained model out of its run, for vLLM and transformers. Safetensors, configuration, tokenizer.

    An adapter is merged into its base model. Says what it wrote, and the command that serves it.

    \b
    Examples:
      rlpipe export runs/arithmetic-grpo --out my-model
      rlpipe export runs/arithmetic-grpo-lora --adapter-only --out my-adapter
      rlpipe export runs/arithmetic-grpo-lora/adapter --base FOLDER --out my-model
    """
    with _model_errors_told():
        from rlpipe.pipelines.export import export as write

        write(source, out, base, adapter_only, force)
    _say_written(out)


def merge(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Adapter folders, or model folders, run directories, hub ids."),
    ],
    out: Out,
    base: Base = None,
    method: Annotated[
        str, typer.Option("--method", help="linear; for adapters also ties, dare_linear, dare_ties; for models slerp.")
    ] = "linear",
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="W,W", help="One number for each source.  [default: equal]")
    ] = None,
    density: Annotated[
        float, typer.Option("--density", min=0.01, max=1.0, help="ties, dare: share of each adapter that is kept.")
    ] = 0.5,
    t: Annotated[float, typer.Option("--t", min=0.0, max=1.0, help="slerp: 0 is the first model, 1 the second.")] = 0.5,
    seed: Annotated[int, typer.Option("--seed", help="dare: decides what is dropped.")] = 0,
    force: Force = False,
) -> None:
    """Make one model of several, or of an adapter and its base. Several adapters have to have one base.

    Adapters: W + the weighted sum of what each adds (linear), or that sum after TIES or DARE has thinned each.
    Models: the mean with the weights as shares (linear), or a point on the arc between two (slerp).
    Architectures, vocabularies and bases must agree; what differs is named.

    \b
    Examples:
      rlpipe merge runs/maths/adapter --out merged
      rlpipe merge runs/maths/adapter runs/stories/adapter --weights 0.7,0.3 --out both
      rlpipe merge runs/maths/adapter runs/stories/adapter --method ties --density 0.3 --out both
      rlpipe merge runs/seed-0 runs/seed-1 runs/seed-2 --out mean
      rlpipe merge runs/sft runs/grpo --method slerp --t 0.4 --out between
    """
    methods = ("linear", "ties", "dare_linear", "dare_ties", "slerp")
    if method not in methods:
        stop(f"--method {method} is not known; methods are {', '.join(methods)}")
    try:
        numbers = [float(number) for number in weights.split(",")] if weights else []
    except ValueError:
        stop(f"--weights {weights}: expected numbers separated by commas, such as 0.7,0.3")
    with _model_errors_told():
        from rlpipe.pipelines import merge as merging

        merging.merge(sources, out, base, merging.How(method, numbers, density, t, seed), force)
    _say_written(out)


def chat(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run directory, a model or adapter folder, or a hub id.")
    ],
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", metavar="FOLDER", help="An adapter of the model, or the run that made it."),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Answer this, and end.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Of the draws, where the temperature is above 0.")] = 0,
) -> None:
    """Try a model in the terminal.

    A conversation where its tokenizer has a chat template; else each line is continued as plain text. What is piped in
    is one prompt. /new begins again, Ctrl-D ends.

    \b
    Examples:
      rlpipe chat runs/arithmetic-grpo
      rlpipe chat runs/arithmetic-grpo --prompt "12+34=" --temperature 1 --seed 7
      rlpipe chat FOLDER --adapter runs/arithmetic-grpo-lora
      cat question.txt | rlpipe chat runs/arithmetic-grpo
    """
    with _model_errors_told():
        from rlpipe.pipelines.chat import Style, open_chat, talk

        talk(open_chat(model, adapter, Style(temperature, max_new_tokens, seed)), _said(prompt), _write_now)


@contextmanager
def _model_errors_told() -> Iterator[None]:
    """Prints what is wrong with a model or adapter, without a traceback, and ends with the exit code of a mistake."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from rlpipe.models.load import ModelError

    try:
        yield
    except ModelError as error:
        stop(str(error))


def _say_written(out: Path) -> None:
    from rlpipe.pipelines.results import served_by, written

    typer.echo(f"wrote  {written(out)}\nserve  {served_by(out)}")


def _said(prompt: str | None) -> Iterator[str]:
    """What is to be answered: the prompt, what is piped in, or line by line what is typed."""
    if prompt is not None or not sys.stdin.isatty():
        yield sys.stdin.read().rstrip("\n") if prompt is None else prompt
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            return typer.echo()


def _write_now(text: str) -> None:
    print(text, end="", flush=True)
