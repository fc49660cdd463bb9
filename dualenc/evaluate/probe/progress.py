"""How far a long series of fits has come, for who waits: fits done, and within one the objective as it falls."""

from __future__ import annotations

import time
from types import TracebackType

from tqdm import tqdm

from dualenc.evaluate.probe.choice import FITS

PAUSE = 0.5  # seconds between two lines


class Progress:
    """A bar over `probes` probes of at most FITS + 1 fits each; what a choice did not need is skipped at its end."""

    def __init__(self, probes: int):
        self._bar = tqdm(total=probes * (FITS + 1), desc="probe", unit="fit", disable=None)
        self._shown, self._probes = 0.0, 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def tell(self, evaluations: int, value: float) -> None:
        """Within a fit."""
        now = time.monotonic()
        if now - self._shown >= PAUSE:
            self._bar.set_postfix_str(f"{value:.4f} after {evaluations}")
            self._shown = now

    def fitted(self) -> None:
        """After a fit."""
        self._bar.update()

    def done(self) -> None:
        """After a probe."""
        self._probes += 1
        self._bar.update(self._probes * (FITS + 1) - self._bar.n)
