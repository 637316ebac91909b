"""`tcc demo`, for real. It checks every sentence that it tells, so here it only has to come out right."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import tcc
from tcc.dev.demo.scenes import SCENES

PROJECT = Path(tcc.__file__).parent.parent
ELSEWHERE = {"TCC_DATABASE_URL": "postgresql://nobody@elsewhere.invalid/tcc", "TCC_GRACE_SECONDS": "nonsense"}


def _play(tmp_path: Path, *command: str | Path) -> tuple[int, str]:
    environment = {**os.environ, **ELSEWHERE, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
        check=False,
    )
    return done.returncode, done.stdout


def test_the_demo_comes_out_right_and_leaves_nothing_behind(tmp_path: Path) -> None:
    exit_code, output = _play(tmp_path, Path(sys.executable).parent / "tcc", "demo")
    assert exit_code == 0, output
    assert all(scene.title in output for scene in SCENES)
    assert re.search(r"All \d+ expectations came out right\.", output)
    assert "\x1b" not in output, "no colour where there is no terminal"
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_comes_out_otherwise_says_so_and_ends_with_1(tmp_path: Path) -> None:
    script = """
        import sys
        from tcc.dev.demo import run_demo
        from tcc.dev.demo.scenes import Scene

        def miscounted(shop, tell):
            tell.expect("There are a thousand mugs.", shop.shelf("MUG-BLUE").available, 1000)

        def misspelt(shop, tell):
            tell.expect("It is confirmed.", shop.state("no-such-id"), "confirmed")

        sys.exit(run_demo([Scene("Miscounted", miscounted), Scene("Misspelt", misspelt)]))
    """
    exit_code, output = _play(tmp_path, sys.executable, "-c", textwrap.dedent(script))
    assert exit_code == 1
    assert "✗ There are a thousand mugs.\n      wanted: 1000\n      found:  25" in output
    assert "✗ The scene broke off: GET /v1/transactions/no-such-id was answered 422" in output
    assert "2 of 2 expectations failed." in output
    (kept,) = tmp_path.iterdir()
    assert f"The logs of this run are kept in {kept / 'logs'}." in output
    assert (kept / "logs" / "api.log").exists()
