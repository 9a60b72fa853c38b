#!/usr/bin/env bash
# What needs a CUDA device, in a few minutes: tests, memory, speed, a short convergence study.
#   scripts/gpu_check.sh --part kernels|memory|speed|convergence|all [--output DIR] [--data PATH]
# Works from a bare checkout; see harness/gpu_check/README.md for the packages it needs.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -P -m harness.gpu_check "$@"
