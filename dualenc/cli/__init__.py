"""`dualenc …`: parse, import what the command needs, call one function. Errors are one line; --debug shows the traceback."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import sys

FULL = re.compile(
    r"No space left|File too large|os error 2[78]|requested and \d+ written|failed writing file|unexpected pos"
)
LIGHTNING = {
    "fit": "train an encoder: dualenc fit --config scenes",
    "validate": "score a checkpoint on data.val: dualenc validate --config scenes --ckpt_path last",
    "test": "score a checkpoint on data.test: dualenc test --config scenes --ckpt_path last",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for an error, 2 for wrong usage, 130 when interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    logging.basicConfig(format="%(message)s", level=logging.INFO if debug else logging.WARNING)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # loader workers' too; our own messages go through logging
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # threads that wait sleep: on a shared machine spinning costs a third
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return interrupted()
    except SystemExit as stop:  # Lightning turns Ctrl-C into a silent exit
        if isinstance(stop.__context__, KeyboardInterrupt):
            return interrupted()
        raise
    except BrokenPipeError:  # the reader of our output has left
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (closed by the exit)
        return 1
    except Exception as error:
        if debug:
            raise
        from dualenc.cli.common import printable

        sys.stderr.write(f"dualenc: error: {printable(explain(error))}\n")
        return 1


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in LIGHTNING:
        from dualenc.train.run import run

        quiet()  # after the imports: Lightning sets its loggers' levels when it is imported
        run(arguments)
        return 0
    parser = build_parser()
    options = parser.parse_args(arguments)
    if "run" not in options:
        options.usage.print_help()
        return 2
    quiet()
    return options.run(options) or 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; importing nothing heavy."""
    from dualenc.cli import classify, data, embed, evaluate, export, index, interpolate, search, serve

    parser = argparse.ArgumentParser(
        prog="dualenc",
        description="Train CLIP-style image and text encoders, index their embeddings, search and measure them.",
        epilog="each command explains itself: dualenc COMMAND --help",
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(usage=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (data, embed, index, search, serve, evaluate, classify, export, interpolate):
        module.register(commands)
    for name, text in LIGHTNING.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def interrupted() -> int:
    """Say what an interruption leaves; the exit code of one."""
    sys.stderr.write(
        "\ndualenc: interrupted; what is finished is kept: run the same again (fit: with --ckpt_path last, once there is one)\n"
    )
    return 130


def quiet() -> None:
    """Silence what the libraries say at every start and no user can act on."""
    import warnings

    warnings.filterwarnings("ignore")
    for name in (
        "pytorch_lightning",
        "pytorch_lightning.utilities.rank_zero",
        "lightning_fabric",
        "faiss",
        "matplotlib",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)


def explain(error: BaseException) -> str:
    """One line for a user: what, why and, as far as we know, what to do."""
    if isinstance(error, OSError) and error.errno is not None:
        place = f"{error.filename}: " if error.filename else ""
        cures = {
            errno.ENOSPC: "the output could not be written; free some space or write elsewhere",
            errno.EFBIG: "the output could not be written; raise the file size limit or write elsewhere",
            errno.EROFS: "nothing can be written there; choose another output folder",
            errno.EACCES: "permission is missing; change it or choose another folder",
            errno.EPERM: "nothing can be written there; choose another folder",
            errno.EEXIST: "a file is in the way; choose another folder",
            errno.EISDIR: "a folder is there, and a file is needed; name a file",
            errno.ENOTDIR: "a part of the path is a file; choose another folder",
            errno.ENOENT: "check the path",
        }
        return f"{place}{error.strerror}: {cures.get(error.errno, 'the operating system refused')}"
    lines = str(error).strip().splitlines() or ["no message"]
    if "Original Traceback" in str(error):  # of a loader worker: what matters is its last line, "TypeName: message"
        lines = [lines[-1].partition(": ")[2] or lines[-1]]
    text = " ".join(" ".join(lines).split())
    if FULL.search(text):  # numpy, torch and safetensors each have words of their own for it
        return f"{text}: the output could not be written; free some space or write elsewhere"
    known = isinstance(error, ValueError | OSError | RuntimeError | ImportError)
    expected = known or type(error).__name__ == "MisconfigurationException"  # Lightning's, for settings that clash
    return text if expected else f"{type(error).__name__}: {text} (run with --debug and report it)"
