"""The encoder: two towers on open_clip, their losses, checkpoints, prompts and class names."""

from dualenc.lazy import lazy_names

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "DualEncoder": "dualenc.model.encoder",
        "contrastive_loss": "dualenc.model.losses",
        "sigmoid_loss": "dualenc.model.losses",
    },
)
