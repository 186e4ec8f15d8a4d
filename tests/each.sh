#!/usr/bin/env bash
# The suite in a few processes, as many at once as there are processors (a test works on one thread), the longest first.
# Not in one: with Hugging Face datasets, DataLoader workers and OpenVINO in one interpreter, waiting for a child has
# ended in SIGSEGV. Where that kills a process all the same, it is run once more. Not in many: each imports torch.
set -u
cd "$(dirname "$0")/.."
failed=$(mktemp)
trap 'rm -f "$failed"' EXIT
export failed

run_group() {  # [ARGUMENT OF PYTEST...] "FILES AND FOLDERS"
  local group="${*: -1}" code output
  set -- "${@:1:$#-1}"
  # shellcheck disable=SC2086
  output=$(.venv/bin/python -m pytest "$@" $group 2>&1)
  code=$?
  if [ $code -eq 139 ]; then
    output+=$'\nthe interpreter crashed (SIGSEGV); once more\n'$(.venv/bin/python -m pytest "$@" $group 2>&1)
    code=$?
  fi
  printf '%s\n' "--- $group" "$output"
  if [ $code -ne 0 ] && [ $code -ne 5 ]; then  # 5: nothing selected
    printf ' %s' "$group" >>"$failed"
    return 1
  fi
}
export -f run_group

apart=(
  tests/pipeline/test_resume.py
  tests/report
  tests/deploy
  tests/pipeline/test_study.py
  tests/test_notebooks.py
  tests/distillation
  tests/models
  tests/pipeline/test_run.py
  tests/pipeline/test_processes.py
  tests/data
  tests/pipeline/test_trackers.py
  tests/test_fuzz.py
  tests/test_examples.py
  tests/test_hostile.py
)
not_apart() { for file in "$@"; do [[ " ${apart[*]} " != *" $file "* ]] && printf ' %s' "$file"; done; }
rest="tests/core tests/evaluation$(not_apart tests/test_*.py)"
groups=("${apart[0]}" "$rest" "$(not_apart tests/pipeline/test_*.py)" "${apart[@]:1}")
# xargs also fails where a group's shell was killed before it could say so
if ! printf '%s\0' "${groups[@]}" |
  xargs -0 -n 1 -P "$(getconf _NPROCESSORS_ONLN)" bash -c 'run_group "$@"' - "$@"; then
  echo "failed:$(cat "$failed")"
  exit 1
fi
