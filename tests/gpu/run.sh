#!/usr/bin/env bash
# Tests on a GPU, and how fast it is fed: bash tests/gpu/run.sh [FOLDER OF WHEELS]
#
# For a machine with a GPU and without network, which has Python, torch, torchvision and pytest, and need not have MLflow, Optuna or
# anything else that the engine does without. What the engine needs beyond that is taken from a folder of wheels (default: wheels beside
# this file, or $WHEELS); what is missing there is said, with the command that fetches it. Takes at most eight minutes.
#
# GPU_KIT_DEVICE=cpu tries the kit itself on a processor, with small networks.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)
wheels=${1:-${WHEELS:-$here/wheels}}
python=${PYTHON:-python3}
target=$(mktemp -d)
trap 'rm -rf "$target"' EXIT
export PYTHONPATH="$target:$project" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Without a network a process still talks to itself.
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo} GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo}
cd "$project" || exit 1

missing() {
    "$python" -c '
from importlib.util import find_spec
needed = {"pydantic": "pydantic", "pydantic_core": "pydantic-core", "annotated_types": "annotated-types",
          "typing_inspection": "typing-inspection", "xxhash": "xxhash", "safetensors": "safetensors",
          "filelock": "filelock", "psutil": "psutil", "rich": "rich", "sklearn": "scikit-learn", "scipy": "scipy", "pandas": "pandas",
          "PIL": "pillow", "yaml": "PyYAML"}
print(*(package for module, package in needed.items() if find_spec(module) is None))'
}

lacking=$(missing) || exit 1
if [ -n "$lacking" ] && [ -d "$wheels" ]; then
    # pydantic and its core belong together, and want typing_extensions not too old: all that is there is taken.
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$target" "$wheels"/*.whl || exit 1
    lacking=$(missing) || exit 1
fi
if [ -n "$lacking" ]; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    platforms="--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64"
    fetch="pip download --only-binary=:all: --python-version $version $platforms -d wheels"
    other=$(printf '%s\n' $lacking | grep -v -x -e pydantic -e pydantic-core -e annotated-types -e typing-inspection | tr '\n' ' ')
    echo "missing here and in $wheels: $lacking; on a machine with a network: $fetch 'pydantic>=2.12,<3'${other:+ && $fetch --no-deps $other}" >&2
    exit 2
fi

# A processor takes longer, and nobody waits for it.
slower=1; [ "${GPU_KIT_DEVICE:-cuda}" = cpu ] && slower=4
GPU_KIT=1 timeout --kill-after=10 $((320 * slower)) "$python" -m pytest -c /dev/null --rootdir "$here" --confcutdir "$here" -p no:cacheprovider \
    -q --tb=short --durations=8 --disable-warnings "$here"
tests=$?
timeout --kill-after=10 $((150 * slower)) "$python" -m tests.gpu.speed
speed=$?
echo "tests: exit code $tests, speed: exit code $speed"
[ $tests -eq 0 ] && [ $speed -eq 0 ]
