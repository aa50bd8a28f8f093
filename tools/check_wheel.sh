#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh environment with the tested versions of its dependencies, and runs --help of
# every command from a folder outside this repository. Run by `make wheel`.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
wheel=$(ls -t dist/auto_deeplab_tf-*.whl | head -n 1)
"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --constraint constraints.txt "$wheel"
commands=$(grep -rl --include='*.py' 'cli.run(main)' auto_deeplab_tf export | sort | sed 's/\.py$//; s,/,.,g')
cd "$folder"
for command in $commands; do
  test "$command" = auto_deeplab_tf.cli && continue
  env -u PYTHONPATH "$folder/venv/bin/python" -m "$command" --help > help.txt
  grep -q '^usage: python -m' help.txt || { echo "error: $command --help shows no usage" >&2; exit 1; }
  echo "  $command --help"
done
env -u PYTHONPATH "$folder/venv/bin/python" -c "import auto_deeplab_tf; print('version', auto_deeplab_tf.__version__, auto_deeplab_tf.__file__)"
