"""Sweeps for tests, and the study of one played with made-up results."""

import math

from sampa.service.sweeps.spec import SweepSpec
from sampa.service.sweeps.study import Begin, Done, GoOn, Point, Stop, Study

RHO = {"method.rho": {"loguniform": [0.01, 0.5]}}
BASE = {
    "task": {"entrypoint": "digits", "params": {"label_noise": 0.4}},
    "method": {"name": "sampa", "lambda": 0.0},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "epochs": 9,
    "batch_size": 64,
}


def sweep_of(**fields):
    return SweepSpec.model_validate({"name": "rho", "base": BASE, "space": RHO, "trials": 8} | fields)


def planted(part, epoch, best=0.09):
    """Return a score that is best at one rho, better with every epoch, and a little different for each trial."""
    rho = part.values.get("method.rho", 0.03)
    return 0.9 - 0.1 * (math.log(rho / best)) ** 2 + 0.01 * epoch + 1e-4 * ((part.number * 7919) % 13)


class Played:
    """Runs a study as a runner does: trials move on in an order of ``choose``'s making.

    Args:
        spec: Of the sweep.
        choose: From the numbers of trials that can move, the one that does.
        score: Of a trial (part) after an epoch.
        fails: Numbers of trials that fail after their first epoch.
        diverges: Those of them whose loss was no number any more.
    """

    gradients_per_epoch = 10

    def __init__(self, spec, choose, score=planted, fails=(), diverges=()):
        self.spec, self.choose, self.score = spec, choose, score
        self.fails, self.diverges = {*fails, *diverges}, diverges
        self.parts, self.epochs, self.stopped, self.done, self.copies = {}, {}, {}, [], []
        self.study = Study(spec)
        self._holds, self._ended, self.past = {}, set(), {}
        self.first, self.points = {}, {}

    def play(self, steps=math.inf):
        while steps > 0 and not self._advance():
            moving = [n for n in self.parts if self._can_move(n)]
            if not moving:
                assert self.study.over, "nothing can move, and it is not over"
                return self
            self._move(self.choose(moving))
            steps -= 1
        return self

    def killed(self, spec=None):
        """Begin again from what is stored, by the same spec or another: the trials, their results and their ends."""
        stored = {n: part.values for n, part in self.first.items()}
        other = Played(spec or self.spec, self.choose, self.score, self.fails, self.diverges)
        other.study = Study(other.spec, stored)
        other.past = {n: (points, n in self._ended) for n, points in self.points.items()}
        return other

    def _advance(self):
        while effects := self.study.advance():
            self._take(effects)
        return self.study.over or bool(self.study.halted)

    def _take(self, effects):
        for effect in effects:
            match effect:
                case Begin(part, hold_at):
                    self.parts[part.number] = self.first[part.number] = part
                    self._holds[part.number], self.epochs[part.number] = hold_at, 0
                    self.points[part.number], (past, ended) = [], self.past.get(part.number, ([], False))
                    for point in past:
                        self._measured(part.number, point)
                    if ended:
                        self._end(part.number)
                case Stop(number, epoch):
                    self.stopped[number] = epoch
                case Done(number):
                    self.done.append(number)
                case GoOn(part, epoch, hold_at, source):
                    self._holds[part.number] = hold_at
                    if source is not None:
                        self.copies.append((part.number, source, epoch, part.values["method.rho"]))
                        self.parts[part.number] = part

    def _can_move(self, number):
        held = self._holds[number] is not None and self.epochs[number] >= self._holds[number]
        return number not in self._ended and number not in self.stopped and not held

    def _move(self, number):
        if self.epochs[number] == self.spec.length_epochs or (number in self.fails and self.epochs[number]):
            self._end(number)
            return
        epoch = self.epochs[number] + 1
        gradients = epoch * self.gradients_per_epoch
        self._measured(number, Point(epoch, self.score(self.parts[number], epoch), gradients))

    def _measured(self, number, point):
        self.epochs[number] = point.epoch
        self.points[number].append(point)
        self.study.measured(number, point)

    def _end(self, number):
        self._ended.add(number)
        self.study.ended(number, failed=number in self.fails, diverged=number in self.diverges)

    @property
    def history(self):
        return self.parts, self.stopped, self.copies
