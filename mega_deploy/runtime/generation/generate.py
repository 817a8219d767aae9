"""Sequences of tokens that a stream goes on with: each step's scores choose the token that the next step takes.

Any stream will do whose step takes a token and gives scores of the next one: of language models, and of translation,
whose sentence was encoded before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import InputError, OptionError
from mega_deploy.runtime.generation.sampling import Sampling, log_softmax
from mega_deploy.runtime.streams.session import StreamSession
from mega_deploy.runtime.streams.slots import Rows
from mega_deploy.signature import LARGEST_SIZE, Range, TensorSpec
from mega_deploy.signature.whole import is_masked

Prompts = Sequence[Sequence[int] | Array] | Array
SCORES = ("logits", "log_probs")


@dataclass(frozen=True)
class Generated:
    """What follows a prompt."""

    tokens: Array
    """[n] int64; the end token, where it came, is the last."""
    log_probs: Array
    """[n] float32: of each token by the model, whatever the sampling."""


@dataclass(frozen=True)
class NewTokens:
    """A token of each sequence that goes on."""

    prompts: Array
    """[n] int64: whose they are, by the position among the prompts."""
    tokens: Array
    """[n] int64."""
    log_probs: Array
    """[n] float32: as in `Generated`."""


def generate(
    stream: StreamSession,
    prompts: Prompts,
    max_new_tokens: int,
    *,
    end: int | None = None,
    sampling: Sampling | None = None,
    rows: Rows | None = None,
) -> list[Generated]:
    """Go on from prompts, token by token.

    stream = mega_deploy.open_bundle("language.mega").stream(batch=2)
    texts = mega_deploy.generate(stream, [[5, 9, 4], [7]], max_new_tokens=20, end=2)

    A prompt follows what its stream has had: reset streams that are to begin anew. The last new token is chosen, but
    not taken by the stream: to go on from it, let the next prompt begin with it.

    Args:
        stream: of a model of tokens.
        prompts: the tokens of each sequence, one at least; their lengths may differ.
        max_new_tokens: how many to choose for each, at most.
        end: the token that ends a sequence; the others go on without it.
        sampling: how to draw; the most likely token, and of equals the smallest number, by default.
        rows: the streams that the prompts are for, one for each; all by default.

    Returns:
        For each prompt what follows it.

    Raises:
        InputError: the stream takes no tokens, a prompt is empty or holds what is no token, or it is longer, with what
            is to follow, than the stream can hold; no stream has moved then.
        OptionError: an option is out of its range.
    """
    steps = list(generate_steps(stream, prompts, max_new_tokens, end=end, sampling=sampling, rows=rows))
    whose = np.concatenate([step.prompts for step in steps])
    tokens = np.concatenate([step.tokens for step in steps])
    log_probs = np.concatenate([step.log_probs for step in steps])
    return [Generated(tokens[whose == index], log_probs[whose == index]) for index in range(len(prompts))]


def generate_steps(
    stream: StreamSession,
    prompts: Prompts,
    max_new_tokens: int,
    *,
    end: int | None = None,
    sampling: Sampling | None = None,
    rows: Rows | None = None,
) -> Iterator[NewTokens]:
    """As `generate`, but every step's tokens as soon as they are chosen; a step is made when the next are asked for.

    for new in mega_deploy.generate_steps(stream, [[5, 9, 4]], max_new_tokens=20):
        print(new.tokens)
    """
    tokens = _tokens_of(stream)
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        raise OptionError(f"max_new_tokens must be a whole number, 1 or more, got {max_new_tokens!r}")
    if end is not None:
        replace(tokens, name="end", dims=(1,)).check(np.array([end]))
    if sampling is not None and not isinstance(sampling, Sampling):
        raise OptionError(
            f"sampling must be a mega_deploy.Sampling, or None for the most likely token, got {sampling!r}"
        )
    if not isinstance(prompts, Sequence | np.ndarray):
        raise InputError(f"prompts must be lists of tokens, one for each stream, got {prompts!r:.50}")
    checked = [_checked(prompt, index, tokens) for index, prompt in enumerate(prompts)]
    places = np.arange(stream.batch) if rows is None else np.asarray(rows)
    if places.size != len(checked):
        raise InputError(
            f"there are {len(checked)} prompts for {places.size} streams; give one for each, or name in rows the "
            "streams that they are for"
        )
    _check_room(stream, checked, max_new_tokens, places)
    return _steps(stream, checked, max_new_tokens, end=end, sampling=sampling, rows=places)


def _steps(
    stream: StreamSession,
    prompts: Sequence[Array],
    max_new_tokens: int,
    *,
    end: int | None,
    sampling: Sampling | None,
    rows: Array,
) -> Iterator[NewTokens]:
    randoms = sampling.generators(len(prompts)) if sampling else []
    going = np.arange(len(prompts))
    scores = _read(stream, prompts, rows)
    for count in range(1, max_new_tokens + 1):
        if sampling:
            new = np.array([sampling.draw(row, randoms[index]) for row, index in zip(scores, going, strict=True)])
        else:
            new = scores.argmax(axis=-1)
        log_probs = np.take_along_axis(log_softmax(scores), new[:, None], axis=-1)[:, 0]
        yield NewTokens(going, new, log_probs.astype(np.float32))
        if end is not None:
            going, new = going[new != end], new[new != end]
        if count == max_new_tokens or not len(going):
            return
        scores = _scores(stream.step_named(new, rows[going]))


def _read(stream: StreamSession, prompts: Sequence[Array], rows: Array) -> Array:
    """Let the streams take their prompts, together while they last; the scores behind each one's end, [n, words]."""
    ends = sorted({len(prompt) for prompt in prompts})
    scores: dict[int, Array] = {}
    for start, stop in itertools.pairwise([0, *ends]):
        going = [index for index, prompt in enumerate(prompts) if len(prompt) >= stop]
        part = np.stack([prompts[index][start:stop] for index in going])
        if stream.prefills and stop - start > 1:
            found = stream.prefill_named(part, rows[going])
        else:  # a token, or an engine of earlier releases, of a step alone
            for step in part.T:
                found = stream.step_named(np.ascontiguousarray(step), rows[going])
        scores |= dict(zip(going, _scores(found), strict=True))
    return np.stack([scores[index] for index in range(len(prompts))])


def _scores(outputs: dict[str, Array]) -> Array:
    return next(outputs[name] for name in SCORES if name in outputs)


def _tokens_of(stream: StreamSession) -> TensorSpec:
    """What a step takes.

    Raises:
        InputError: it takes no tokens, or gives no scores of them.
    """
    taken = [spec for spec in stream.signature.inputs if spec.default is None]
    given = [spec.dims[-1] for spec in stream.signature.outputs if spec.name in SCORES]
    # A head of classes gives logits, too, but not one for each token.
    if len(taken) != 1 or taken[0].values is None or given != [taken[0].values[1] + 1]:
        names = [", ".join(spec.name for spec in side) for side in (stream.signature.inputs, stream.signature.outputs)]
        raise InputError(
            f"this stream takes {names[0]} and gives {names[1]}: there is no next token to choose; generating takes a "
            "language model's or a translation model's stream"
        )
    return taken[0]


def _checked(prompt: Any, index: int, tokens: TensorSpec) -> Array:
    """[steps] int64."""
    if is_masked(prompt):
        raise InputError(f"prompt {index} is a masked array; leave out what is masked")
    try:
        array = np.asarray(prompt)
    except ValueError:  # lists of different lengths
        array = np.zeros((0, 0))
    if array.ndim != 1:
        raise InputError(f"prompt {index} must be a list of tokens, got {prompt!r:.50}; give a list of such lists")
    if not len(array):
        raise InputError(f"prompt {index} is empty; begin with the token that begins a sequence, or that came last")
    return replace(tokens, name=f"prompt {index}", dims=(Range(1, 1, LARGEST_SIZE),), axes=("steps",)).check(array)


def _check_room(stream: StreamSession, prompts: Sequence[Array], max_new_tokens: int, rows: Array) -> None:
    """Refuse beforehand what would end in the middle of a sequence."""
    room = stream.room(rows)
    if room is None:
        return
    for index, (prompt, left) in enumerate(zip(prompts, room, strict=True)):
        # The last token that is chosen takes no step.
        if len(prompt) + max_new_tokens - 1 > left:
            fits = left - len(prompt) + 1
            remedy = f"take {fits} new tokens at most" if fits > 0 else "shorten it"
            raise InputError(
                f"prompt {index} has {len(prompt)} tokens, and {max_new_tokens} new ones are to follow, but stream "
                f"{rows[index]} has room for {left} more steps; {remedy}, reset the stream, or export with a larger "
                "--seq-len"
            )
