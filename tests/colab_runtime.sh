#!/usr/bin/env bash
# experiments/colab_tpu.ipynb with the versions of Colab's TPU runtime, which has no TensorFlow: in an environment of its
# own, into which the notebook's cells install a wheel of nstjax, and TensorFlow beside it. Needs the package registry,
# Python 3.13 ($PYTHON) and, for pytest, an environment with nstjax[dev].
# With --store PHOTOS... it trains on these photos, free ones, for some minutes, and stores in the notebook what it shows.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.13}" -m venv "$folder/runtime"
"$folder/runtime/bin/pip" install -q "jax==0.7.2" "flax==0.11.2" matplotlib pillow
versions() { "$folder/runtime/bin/pip" freeze | grep -E "^(jax|jaxlib|flax|numpy)=="; }
before=$(versions)
# From Git, as with the notebook's SOURCE; so what is not committed is not in it.
"$folder/runtime/bin/pip" wheel -q --no-deps --wheel-dir "$folder" "nstjax @ git+file://$PWD"
if [ "${1:-}" = --store ]; then
  "$folder/runtime/bin/pip" install -q ipykernel nbclient nbformat
  "$folder/runtime/bin/python" tests/colab_store.py "$folder"/nstjax-*.whl "${@:2}"
  exit
fi
COLAB_PYTHON="$folder/runtime/bin/python" COLAB_WHEEL=$(ls "$folder"/nstjax-*.whl) python -m pytest -n 0 -v tests/test_colab.py
"$folder/runtime/bin/pip" check
[ "$(versions)" = "$before" ]
if "$folder/runtime/bin/python" -c "import tensorflow" 2>/dev/null; then exit 1; fi
printf 'kept: %s\n' $before
