#!/usr/bin/env bash
# The suite, a process for each folder and file: with Hugging Face datasets, DataLoader workers and OpenVINO in one
# interpreter, waiting for a child has ended in SIGSEGV. Where that kills a process all the same, it is run once more.
set -u
failed=""
for group in tests/data tests/deploy tests/losses tests/measure tests/report tests/test_*.py; do
  .venv/bin/python -m pytest "$@" "$group"
  code=$?
  if [ $code -eq 139 ]; then
    echo "$group: the interpreter crashed (SIGSEGV); once more"
    .venv/bin/python -m pytest "$@" "$group"
    code=$?
  fi
  if [ $code -ne 0 ] && [ $code -ne 5 ]; then  # 5: nothing selected
    failed="$failed $group"
  fi
done
if [ -n "$failed" ]; then
  echo "failed:$failed"
  exit 1
fi
