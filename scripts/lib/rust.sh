# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What a host under test runs are static programs of ours: the standard library of $rust_target, for the toolchain in use.

has_rust_target() {
  local libraries
  # Who only starts machines needs none.
  command -v rustc >/dev/null || return 0
  libraries=$(rustc --print target-libdir --target "$rust_target") && [[ -d $libraries ]]
}

add_rust_target() {
  command -v rustup >/dev/null || die "Rust's standard library for $rust_target is missing: install it"
  begin_step "Rust's standard library for $rust_target"
  rustup --quiet target add "$rust_target" >"$work/log" 2>&1 || fail_step
  end_step
}
