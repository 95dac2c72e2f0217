"""The options of `netssmd generate` that are for models of the byte codec, and what they come to.

In: what was typed. Out: the opened model with its sampling, and the prompt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netssmd.errors import UsageError

if TYPE_CHECKING:
    from netssmd.engine.opening import OpenModel, Prompt

OPTIONS = (
    click.option("--tokens", type=click.IntRange(1), help="Cut sessions after so many tokens, the prompt's included."),
    click.option("--sampling", type=click.Choice(["paper"]),
                 help="paper: temperature 0.5, top-k 25, top-p 0.9, repetition penalty 1.8."),
    click.option("--top-k", type=click.IntRange(0), help="Draw from the K most likely tokens. Default: all."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="... that make up this probability."),
    click.option("--repetition-penalty", type=float, help="Byte codec: make what was said less likely."),
    click.option("--repetition-window", type=click.IntRange(0), default=0, metavar="TOKENS",
                 help="... if it was said within so many tokens. Default: ever."),
    click.option("--timing", type=click.Path(path_type=Path), metavar="FILE",
                 help="Byte codec: draw the gaps between packets from this capture's."),
    click.option("--prompt-last", is_flag=True, help="The last packets of --prompt's capture, not the first."),
    click.option("--prompt-text", type=click.Path(path_type=Path), metavar="FILE",
                 help="Byte codec: go on from '<|label|> 188 34 ... <|pkt|> ...'; - is stdin."),
    click.option("--prompt-partial", is_flag=True, help="... whose last packet is not whole: go on inside it."),
    click.option("--then", multiple=True, metavar="MODEL",
                 help="Byte codec: where a session ends this model hears its last packet and goes on; repeatable."),
    click.option("--speculate/--no-speculate", default=True, show_default=True,
                 help="Byte codec: guess tokens ahead; the same packets, sooner."),
    click.option("--raw", is_flag=True, help="Byte codec: packets as generated, stale checksums, addresses and all."),
)  # fmt: skip


def with_byte_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds all of `OPTIONS` to a command, which gets them as `**asked` for `Asked`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Asked:
    """What was typed."""

    tokens: int | None
    sampling: str | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    repetition_window: int
    timing: Path | None
    prompt_last: bool
    prompt_text: Path | None
    prompt_partial: bool
    then: tuple[str, ...]
    speculate: bool
    raw: bool

    def open(self, model: str, backend: Any) -> OpenModel:
        """The model, with the sampling asked for: single options go before the preset's."""
        from netssmd.engine.byte_options import PRESETS, ByteOptions, gaps_of_capture, penalty_of
        from netssmd.engine.opening import open_model

        preset = PRESETS.get(self.sampling or "")
        penalty = self.repetition_penalty or (preset.penalty if preset else 1.0)
        options = ByteOptions(
            gaps_of_capture(self.timing) if self.timing else (),
            penalty_of(penalty, "--repetition-penalty"),
            self.repetition_window,
            self.raw,
        )
        top_k = self.top_k if self.top_k is not None else preset.top_k if preset else 0
        top_p = self.top_p if self.top_p is not None else preset.top_p if preset else 1.0
        return open_model(model, backend, top_k, top_p, options=options)

    def open_then(self, first: OpenModel, backend: Any) -> tuple[OpenModel, ...]:
        """The models that take over, in order, with the first one's sampling. Raises UsageError for one that does not
        speak its language."""
        from netssmd.codec.byte_vocab import ByteVocabulary
        from netssmd.engine.opening import open_model

        opened = []
        for name in self.then:
            if not isinstance(first.vocabulary, ByteVocabulary):
                raise UsageError(f"--then {name}: {first.name} is a model of the context codec; only byte models go on")
            model = open_model(name, backend, first.sampling.top_k, first.sampling.top_p)
            own = model.vocabulary
            if not isinstance(own, ByteVocabulary) or not first.vocabulary.same_language(own):
                raise UsageError(
                    f"--then {name}: its vocabulary is not that of {first.name}; make its data with "
                    "`netssmd prepare --model` of one base"
                )
            opened.append(model)
        return tuple(opened)

    def temperature(self, given: float | None) -> float:
        """The one given, else the preset's, else 1."""
        from netssmd.engine.byte_options import PRESETS

        preset = PRESETS.get(self.sampling or "")
        return given if given is not None else preset.temperature if preset else 1.0

    def text_prompt(self, opened: OpenModel, labels: tuple[str, ...]) -> Prompt | None:
        """The prompt in string form, if one was given. Raises UsageError naming its file."""
        if self.prompt_text is None:
            return None
        if len(labels) != 1:
            raise UsageError("--prompt-text: a prompt is of one label; give one --label")
        where = "stdin" if str(self.prompt_text) == "-" else str(self.prompt_text)
        try:
            text = sys.stdin.read() if where == "stdin" else self.prompt_text.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        try:
            return opened.text_prompt(text, self.prompt_partial, labels[0])
        except UsageError as error:
            hint = "; --prompt-partial lets the model go on inside it" if "bytes; the model's" in str(error) else ""
            raise UsageError(f"{where}: {error}{hint}") from None
