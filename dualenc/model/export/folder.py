"""Any encoder (a checkpoint, an open_clip name) as an encoder folder."""

from __future__ import annotations

from pathlib import Path

from dualenc.files import whole_folder
from dualenc.model.encoder import DualEncoder
from dualenc.model.export.check import compare, probe
from dualenc.model.towers import image_features, text_features


def export_folder(encoder: DualEncoder, out: str | Path) -> dict[str, float]:
    """Write an encoder folder (DESIGN, "Encoder folder"), read it back and compare.

    Returns the largest |difference| of unit rows: {"image", "text"}. ValueError where the folder does not embed as the
    encoder does; FileExistsError when `out` holds anything.
    """
    with whole_folder(out) as partial:
        seen = probe(encoder)
        encoder.save(partial)
        model = DualEncoder.load(partial, "cpu").model
        return {
            "image": compare(
                "image", lambda n: image_features(model, seen.pixels[:n]).detach().numpy(), seen.image_rows
            ),
            "text": compare("text", lambda n: text_features(model, seen.tokens[:n]).detach().numpy(), seen.text_rows),
        }
