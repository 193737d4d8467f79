# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What scripts/testbed says while it works.

die() {
  echo "testbed: $*" >&2
  exit 1
}

begin_step() {
  step_begin=$EPOCHREALTIME
  printf '  %s%s ...' "$1" "${2-}" >&2
}

end_step() {
  echo " $(since "$step_begin")" >&2
}

# The reason is at the end of what the programs said.
fail_step() {
  echo " failed" >&2
  tail -n 40 "$work/log" | sed 's/^/  /' >&2
  die "nothing was kept of this; run it again when the reason above is gone"
}

since() {
  awk -v begin="$1" -v end="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", end - begin }'
}
