"""The `qfmt` command: finds the subcommand, runs it, and turns errors into one line and an exit code.

Exit 0 done; 1 refused, differs, unsound or failed; 2 usage. Subcommands are loaded when they are called, so that help and
headers cost no more than they must.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import click

from qfmt.collector import resting
from qformat.errors import QFormatError

COMMANDS = {
    "inspect": "what is in a file: container, bits per weight, sizes, oddities",
    "targets": "which targets hold a checkpoint exactly, and its size in each",
    "plan": "what a conversion would do, tensor by tensor; writes nothing",
    "convert": "convert exactly, or refuse",
    "quantize": "float weights in, packed weights out",
    "dequantize": "packed weights in, dense weights out",
    "merge": "parts in, one file out",
    "split": "one file in, parts out",
    "extract": "a file of a few tensors",
    "diff": "two checkpoints compared: structure, bytes, decoded values",
    "check": "soundness of structure and values",
    "verify": "digests; with --against, values of two files",
    "hash": "value digest of every tensor and of the whole",
    "dump": "one block's bytes, annotated",
    "meta": "list, get, set, rm, cp: the metadata of one file",
    "warm": "compile the kernels once",
}


class Commands(click.Group):
    """The subcommands, each in a module of its own name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the subcommands in the order of the manual."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a subcommand."""
        if cmd_name not in COMMANDS:
            return None
        with resting():
            command = import_module(f"qfmt.{cmd_name}").command
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qfmt", prog_name="qfmt")
def cli() -> None:
    """Packed low-bit weights: look into them, convert them exactly, keep them whole."""


def heed_signals() -> None:
    """Let an end by another signal be one by Ctrl-C, so that nothing half-written stays; one that is ignored stays so."""
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # not every system has both
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)


@contextmanager
def interrupted_again() -> Iterator[None]:
    """Have an interrupt come once more where Python drops it, as in a finalizer."""
    before = sys.unraisablehook
    again: list[threading.Timer] = []

    def unraisable(dropped: sys.UnraisableHookArgs) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            later = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM))  # by then the finalizer has ended
            later.daemon = True
            again.append(later)
            later.start()
        else:
            before(dropped)

    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = before
        for later in again:
            later.cancel()


def main(args: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    heed_signals()
    with interrupted_again():
        return run(args)


def run(args: list[str] | None) -> int:
    """Run a subcommand, and turn what it raises into one line and an exit code."""
    try:
        found = cli.main(args=args, prog_name="qfmt", standalone_mode=False)
        sys.stdout.flush()
        return found if isinstance(found, int) else 0
    except click.exceptions.Exit as err:
        return err.exit_code
    except click.ClickException as err:
        err.show()
        return 2
    except click.Abort:
        click.echo("qfmt: interrupted", err=True)
        return 1
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except QFormatError as err:
        click.echo(f"qfmt: {err}", err=True)
        return 1
    except OSError as err:
        place = f"{err.filename}: " if err.filename else ""
        click.echo(f"qfmt: {place}{(err.strerror or str(err)).lower()}", err=True)
        return 1
    except MemoryError:
        click.echo("qfmt: out of memory; give a smaller --max-memory", err=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
