"""The command line: one seed, a replay, or fresh seeds for some minutes."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main() -> None:
    if os.environ.get("PYTHONHASHSEED") != "0":  # or what a set holds would come in another order each time
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    code = _main(_arguments())
    sys.stdout.flush()
    os._exit(code)  # nothing of the simulated processes is to be cleaned up


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--hours", type=float, default=1.0, help="simulated, of each seed")
    parser.add_argument("--minutes", type=float, help="fresh seeds for so many real minutes")
    parser.add_argument("--seeds", type=int, default=1, help="so many seeds, from --seed on")
    parser.add_argument("--kinds", help="faults, separated by commas; by default all")
    parser.add_argument("--trace", type=Path, help="where to write all that happened")
    parser.add_argument("--replay", type=Path, nargs="+", help="histories that were kept")
    parser.add_argument("--going-on", action="store_true", help="past a check that finds something wrong")
    parser.add_argument("--find", default="", help="go on until a violation of this kind, and shrink that")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--digest", action="store_true", help="print the digest of the trace")
    return parser.parse_args()


def _prepare() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django
    from django.conf import settings

    from .process import EVERYTHING

    settings.EPHEMERAL_STATE = EVERYTHING
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.simulation.layer.Layer"}}
    django.setup()


def _main(arguments: argparse.Namespace) -> int:
    real_time = time.monotonic
    from .server import RealRedis

    server = RealRedis()
    with server as real:
        _prepare()
        from .history import DRAWN, as_text, load, make
        from .run import carry_out

        kinds = arguments.kinds.split(",") if arguments.kinds else DRAWN
        seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
        if arguments.replay:
            wrong = 0
            for path in arguments.replay:
                its_seed, _, ops = load(path.read_text())
                trace = [] if arguments.trace else None
                result = carry_out(its_seed, ops, real, trace=trace)
                if arguments.trace:
                    arguments.trace.write_text("\n".join(trace or ()))
                kinds = " ".join(sorted(result.kinds)) or "right"
                print(f"{path.stem}: {kinds}", as_text(ops), sep="\n", flush=True)
                wrong += _tell(result)
            return 1 if wrong else 0
        failed = count = 0
        trace: list[str] | None
        simulated = 0.0
        began = real_time()
        while True:
            started = real_time()
            trace = [] if arguments.trace else None
            ops = make(seed, arguments.hours * 3600, kinds)
            result = carry_out(seed, ops, real, trace=trace, going_on=arguments.going_on, find=arguments.find)
            took = real_time() - started
            count += 1
            simulated += result.at
            calls, turns = result.counts["calls"], result.counts["turns"]
            what = f"{result.at / 3600:.2f} h, {result.checks} checks, {calls:,} calls of Redis, {turns:,} turns"
            if result.counts["named"]:
                what += f", {result.counts['named']} exceptions that design.md names"
            digest = f", digest {result.digest}" if arguments.digest else ""
            print(f"seed {seed}: {what}, {took:.1f} s{digest}", flush=True)
            if arguments.trace:
                arguments.trace.write_text("\n".join(trace or ()))
            if result.violations and (not arguments.find or arguments.find in result.kinds):
                failed += _tell(result)
                if not arguments.no_shrink:
                    _shrink(
                        seed,
                        [op for op in ops if op.at <= result.at],
                        arguments.find or result.violations[0].kind,
                        real,
                    )
                again = f"--seed {seed} --hours {arguments.hours:g}"
                again += f" --kinds {arguments.kinds}" if arguments.kinds else ""
                print(f"again: python -m tests.simulation {again}")
            sys.stdout.flush()
            seed += 1
            if arguments.minutes is not None:
                if real_time() - began < arguments.minutes * 60:
                    continue
            elif count < arguments.seeds:
                continue
            print(f"{count} seeds, {simulated / 3600:.2f} simulated hours, {failed} failed")
            return 1 if failed else 0


def _tell(result: Any) -> int:
    for violation in result.violations[:8]:
        print("  ", violation)
    return 1 if result.violations else 0


def _shrink(seed: int, ops: list[Any], kind: str, real: Any) -> None:
    """Print the shortest history that fails like this one."""
    from .history import as_text, dump
    from .run import carry_out
    from .shrink import shrink

    def fails(candidate: Any) -> bool:
        try:
            return kind in carry_out(seed, candidate, real).kinds
        except RuntimeError:  # too little is left of it
            return False

    short = shrink(ops, fails)
    print(f"the shortest history found ({len(ops)} things before, {len(short)} now):")
    print(as_text(short))
    _tell(carry_out(seed, short, real))
    path = Path(tempfile.gettempdir(), f"history-{kind}-{seed}.jsonl")
    path.write_text(dump(seed, kind, short))
    print(f"kept as {path}")
