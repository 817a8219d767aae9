"""What each thread does, turn by turn, and what it knows of its streams."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measures import Measures
from models import LARGEST_BATCH, NAMES, SEQUENCES, STEPS, STREAMS, WINDOWS, Model, Models

import mega_deploy as md
from mega_deploy.errors import BundleError, InputError

CHILD_SECONDS = 60.0


class Interrupted(Exception):
    """A signal's handler raises it, wherever the main thread is."""


class Streams:
    """A session of streams, and where in which sequence each of them is.

    Args:
        model: that they are of.
        session: with streams at their beginning.
    """

    def __init__(self, model: Model, session: Any) -> None:
        self.model, self.session = model, session
        self.at = [[index % SEQUENCES, 0] for index in range(session.batch)]

    def frames(self, models: Models, rows: Any, steps: int) -> Any:
        """The next frames of streams, [rows, steps, embed_dim]."""
        return np.stack([models.sequences[self.at[row][0], self.at[row][1] :][:steps] for row in rows])

    def taken(self, rows: Any, steps: int) -> Any:
        """Move on; the outputs that are expected of the last step, [rows, hidden_size]."""
        for row in rows:
            self.at[row][1] += steps
        return np.stack([self.model.steps[self.at[row][0], self.at[row][1] - 1] for row in rows])

    def ended(self, steps: int) -> list[int]:
        """The streams whose sequences have no such number of frames left."""
        return [row for row, (_, step) in enumerate(self.at) if step + steps > STEPS]

    def began(self, rows: Any, random: Any) -> None:
        """Let streams be at the beginning of another sequence."""
        for row in rows:
            self.at[row] = [int(random.integers(SEQUENCES)), 0]


class Load:
    """One thread's load.

    Args:
        models: to run.
        measures: where outputs are held against what is expected.
        stop: set when the time is over.
        number: of the thread.
    """

    shared: dict[str, Any] = {}  # noqa: RUF012 of all threads: a session takes calls from several
    shared_lock = threading.Lock()

    def __init__(self, models: Models, measures: Measures, stop: threading.Event, number: int) -> None:
        self.models, self.measures, self.stop, self.number = models, measures, stop, number
        self.random = np.random.default_rng(number)
        with Load.shared_lock:
            if not Load.shared:
                for name, model in models.by_name.items():
                    Load.shared[name] = model.bundle.session(threads=2), model.bundle.stream(STREAMS, threads=1)
        model = models.by_name[NAMES[number % 2]]
        self.own = Streams(model, Load.shared[NAMES[number % 2]][1].another(STREAMS))
        self.place = models.folder / f"state-{number}.npz"
        self.turns: list[tuple[str, Callable[[], None], int]] = [
            ("run windows", self.run_windows, 20),
            ("step", self.step, 40),
            ("prefill", self.prefill, 6),
            ("reset", self.reset, 4),
            ("reorder", self.reorder, 4),
            ("save and load", self.save_and_load, 2),
            ("open the replaced bundle", self.open_live, 2),
            ("step a shared session", self.step_shared, 10),
        ]
        weights = np.array([weight for *_, weight in self.turns], float)
        self.weights = weights / weights.sum()
        self.shared_streams: Streams | None = None

    def run(self) -> None:
        """Until told to stop."""
        while not self.stop.is_set():
            self.turn()

    def turn(self) -> None:
        """One turn, chosen at random."""
        name, act, _ = self.turns[int(self.random.choice(len(self.turns), p=self.weights))]
        with self.measures.watched(name):
            act()

    def some(self, streams: Streams) -> Any:
        """Some streams, in any order."""
        count = int(self.random.integers(1, streams.session.batch + 1))
        return self.random.permutation(streams.session.batch)[:count]

    def run_windows(self) -> None:
        """A batch of windows on a session that all threads share, which runs in parts where it is large."""
        name = NAMES[int(self.random.integers(2))]
        chosen = self.random.integers(WINDOWS, size=int(self.random.integers(1, LARGEST_BATCH + 1)))
        got = Load.shared[name][0].run(self.models.windows[chosen])
        self.measures.check(got, self.models.by_name[name].windows[chosen], f"windows of {name}")

    def renew(self, streams: Streams, steps: int) -> None:
        """Let streams that are at their ends begin anew."""
        if ended := streams.ended(steps):
            streams.session.reset(ended)
            streams.began(ended, self.random)

    def step(self, streams: Streams | None = None) -> None:
        """A frame for some streams; the others rest."""
        streams = streams or self.own
        self.renew(streams, 1)
        rows = self.some(streams)
        got = streams.session.step(streams.frames(self.models, rows, 1)[:, 0], rows=rows)
        self.measures.check(got, streams.taken(rows, 1), "step")

    def prefill(self) -> None:
        """Many frames for some streams at once."""
        steps = int(self.random.integers(1, STEPS // 2))
        self.renew(self.own, steps)
        rows = self.some(self.own)
        got = self.own.session.prefill(self.own.frames(self.models, rows, steps), rows=rows)
        self.measures.check(got, self.own.taken(rows, steps), "prefill")

    def reset(self) -> None:
        """Some streams leave, and others join in their places."""
        rows = self.some(self.own)
        self.own.session.reset(rows)
        self.own.began(rows, self.random)

    def reorder(self) -> None:
        """Streams go on from the states of others."""
        rows = self.random.integers(STREAMS, size=STREAMS)
        self.own.session.reorder(rows)
        self.own.at = [list(self.own.at[row]) for row in rows]

    def save_and_load(self) -> None:
        """The state goes to a file; then another session, or this one some steps later, goes on from there."""
        self.own.session.save(self.place)
        before = [list(at) for at in self.own.at]
        if self.random.random() < 0.5:
            self.own = Streams(self.own.model, self.own.session.another(STREAMS))
        else:
            self.step()
        self.own.session.load(self.place)
        self.own.at = before

    def open_live(self) -> None:
        """Open the bundle that is replaced all the while: what it gives is of one model, or it says that it changed."""
        try:
            bundle = md.open_bundle(self.models.live)
            model = self.models.of(bundle)
            session = bundle.session(threads=1)
            self.measures.check(session.run(self.models.windows[:2]), model.windows[:2], "windows of a replaced bundle")
            streams = Streams(model, bundle.stream(2, threads=1))
            self.step(streams)
            time.sleep(float(self.random.random()) * 0.4)
            self.step(streams)
            got = streams.session.prefill(streams.frames(self.models, [0, 1], 5))  # a graph that is loaded late
            self.measures.check(got, streams.taken([0, 1], 5), "prefill of a replaced bundle")
        except BundleError:
            self.measures.count("refused: the bundle has changed")

    def step_shared(self) -> None:
        """A frame for this thread's stream of a session that all threads share."""
        if self.number >= STREAMS:
            return
        name = NAMES[0]
        if self.shared_streams is None:
            self.shared_streams = Streams(self.models.by_name[name], Load.shared[name][1])
        streams, row = self.shared_streams, self.number
        if row in streams.ended(1):
            streams.session.reset([row])
            streams.began([row], self.random)
        got = streams.session.step(streams.frames(self.models, [row], 1)[:, 0], rows=[row])
        self.measures.check(got, streams.taken([row], 1), "step of a shared session")


class MainLoad(Load):
    """The main thread's load, which signals interrupt, and which forks now and then."""

    def __init__(self, models: Models, measures: Measures, stop: threading.Event, number: int) -> None:
        super().__init__(models, measures, stop, number)
        self._armed, self._next_fork = False, 5.0
        signal.signal(signal.SIGALRM, self._interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.0137)

    def end(self) -> None:
        """No more signals."""
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _interrupt(self, number: int, frame: object) -> None:
        if self._armed:
            self._armed = False
            raise Interrupted

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within this, a signal may raise."""
        try:
            self._armed = True
            yield
        finally:
            self._armed = False

    def turn(self) -> None:
        """A call that a signal may end, then steps of all streams: those that were not in it are as they were."""
        if self.measures.elapsed > self._next_fork:
            self._next_fork += 20
            with self.measures.watched("fork"):
                self.fork()
        name, act, _ = self.turns[int(self.random.choice(len(self.turns), p=self.weights))]
        if name in ("step", "prefill", "reset", "reorder"):
            with self.measures.watched(f"interrupt: {name}"):
                self.interrupted(name)
        else:
            with self.measures.watched(name):
                act()

    def interrupted(self, name: str) -> None:
        """One call that may be interrupted, and what is true of the streams behind it."""
        streams, session = self.own, self.own.session
        self.renew(streams, 8)
        rows = self.some(streams)
        calls: dict[str, Callable[[], Any]] = {
            "step": lambda: session.step(frames[:, 0], rows=rows),
            "prefill": lambda: session.prefill(frames, rows=rows),
            "reset": lambda: session.reset(rows),
            "reorder": lambda: session.reorder(np.roll(np.arange(STREAMS), 1)),
        }
        steps = 1 if name == "step" else 6
        frames = streams.frames(self.models, rows, steps)
        got = None
        try:
            with self.interruptible():
                got = calls[name]()
        except Interrupted:
            self.measures.count("interrupted calls")
            touched = range(STREAMS) if name == "reorder" else rows
            session.reset(list(touched))  # whether they took the call is nowhere told
            streams.began(touched, self.random)
        else:
            if name == "reset":
                streams.began(rows, self.random)
            elif name == "reorder":
                streams.at = [list(streams.at[row]) for row in np.roll(np.arange(STREAMS), 1)]
            else:
                self.measures.check(got, streams.taken(rows, steps), f"{name} with signals")
        self.follow(streams)

    def follow(self, streams: Streams) -> None:
        """A step of all streams is what it would be without the interruption."""
        everyone = np.arange(STREAMS)
        try:
            got = streams.session.step(streams.frames(self.models, everyone, 1)[:, 0])
        except InputError as error:
            self.measures.fault(f"streams that were reset, or in no call, are refused: {error}")
            streams.session.reset()
            streams.began(everyone, self.random)
            return
        if not self.measures.check(got, streams.taken(everyone, 1), "step behind an interruption"):
            streams.session.reset()
            streams.began(everyone, self.random)

    def fork(self) -> None:
        """A child runs what it inherits, and ends soon."""
        child = os.fork()
        if not child:
            os._exit(self._in_child())
        ends = time.monotonic() + CHILD_SECONDS
        while time.monotonic() < ends:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                if status:
                    self.measures.fault(f"a child ended with {os.waitstatus_to_exitcode(status)}")
                return
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        self.measures.fault(f"a child hung for {CHILD_SECONDS:.0f} s")

    def _in_child(self) -> int:
        signal.setitimer(signal.ITIMER_REAL, 0)
        found = Measures(CHILD_SECONDS)
        self.measures = found
        try:
            for _ in range(3):
                self.run_windows()
                self.step()
        except BaseException as error:
            Path("/dev/stderr").write_text(f"child: {error!r}\n")
            return 3
        return 4 if found.counts["WRONG"] else 0
