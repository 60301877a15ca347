"""every test imports the scripts from the repository root; a script that a test starts is run by this interpreter."""
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for path in (str(ROOT), str(ROOT / "tests")):
    if path not in sys.path:
        sys.path.insert(0, path)
os.environ["OMP_NUM_THREADS"] = "1"                     # nano models: a second thread only waits, and a fork of one that has two may hang; before torch is imported
os.environ.setdefault("PYTHON", sys.executable)       # what the tests start scripts with
