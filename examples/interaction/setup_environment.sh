#!/usr/bin/env bash
# Make venv/ beside this script and install requirements.txt; a second call repairs what is missing or broken.
# Another interpreter: PYTHON=python3.12 bash setup_environment.sh
set -euo pipefail
unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"  # pip takes local paths of requirements.txt from the current folder

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "error: Python 3.11 or newer is needed; $python is: $("$python" --version 2>&1 | head -n 1)." \
    "Name another one: PYTHON=/path/to/python3 bash setup_environment.sh" >&2
  exit 2
fi

if venv/bin/python -c 'import pip' 2>/dev/null; then
  echo "venv/ is there; looking for what is missing"
else
  echo "making venv/"
  "$python" -m venv --clear venv
fi
# --compile: where PYTHONDONTWRITEBYTECODE is set, imports would stay slow for ever.
venv/bin/python -m pip install --compile --requirement requirements.txt
echo "ready: source venv/bin/activate"
