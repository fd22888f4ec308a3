"""How fast training goes, to tell how long the rest of a run takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Pace:
    """The time that steps and evaluations of this process have taken; those before a resume do not count."""

    steps_per_epoch: int
    seconds: float = 0.0
    """Of all steps, with waiting for their clips."""
    steps: int = 0
    evaluation: float = 0.0
    """Seconds of the last evaluation; 0 before the first."""

    def add_step(self, seconds: float) -> None:
        self.seconds += seconds
        self.steps += 1

    def seconds_of(self, epochs: int, *, steps: int = 0, seconds_per_step: float = 0.0) -> float:
        """Seconds of so many whole epochs and, before them, of the rest of another one.

        Args:
            epochs: with an evaluation each.
            steps: that the epoch under way still has; its evaluation is counted, too.
            seconds_per_step: in that epoch, so that the sum never is below what its own progress tells.
        """
        whole = epochs * (self.steps_per_epoch * self.seconds / max(1, self.steps) + self.evaluation)
        return whole + (steps * seconds_per_step + self.evaluation if steps else 0.0)
