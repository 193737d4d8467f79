# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The part `l1` of scripts/testbed: the arm64 host in which iommufd and VFIO are tested.

# Raise them when what is fetched changes: every cache then fetches it anew. A changed configuration of the kernel makes
# another kernel by itself; the old one stays, for a work tree that still has the old configuration.
l1_machine_recipe=1
l1_kernel_recipe=1

# The one that is proven; when Debian has it no more, the newest one is taken.
l1_kernel_series=7.2

l1_begin() {
  l1_config=$here/../tests/l1/kernel.config
  l1_machine_dir=$cache/l1-machine-$l1_machine_recipe
  l1_kernel_dir=$cache/l1-kernel-$l1_kernel_recipe-$(sha256sum "$l1_config" | cut -c 1-12)
}

l1_complete() {
  [[ -d $l1_machine_dir && -d $l1_kernel_dir ]] && has_rust_target
}

l1_print() {
  echo "CACHE=$cache"
  echo "QEMU=$l1_machine_dir/qemu"
  echo "FIRMWARE=$l1_machine_dir/root/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"
  echo "KERNEL=$l1_kernel_dir/Image"
  echo "BUSYBOX=$l1_machine_dir/root/usr/bin/busybox"
}

l1_fetch() {
  [[ -d $l1_machine_dir ]] || fetch_l1_machine
  [[ -d $l1_kernel_dir ]] || build_l1_kernel
  has_rust_target || add_rust_target
}

# What runs in the host are static programs of ours.
l1_rust_target=aarch64-unknown-linux-musl

has_rust_target() {
  local libraries
  # Who only starts machines needs none.
  command -v rustc >/dev/null || return 0
  libraries=$(rustc --print target-libdir --target "$l1_rust_target") && [[ -d $libraries ]]
}

add_rust_target() {
  command -v rustup >/dev/null || die "Rust's standard library for $l1_rust_target is missing: install it"
  begin_step "Rust's standard library for $l1_rust_target"
  rustup --quiet target add "$l1_rust_target" >"$work/log" 2>&1 || fail_step
  end_step
}

fetch_l1_machine() {
  local part=$work/l1-machine packages=(qemu-system-arm qemu-efi-aarch64) foreign=(arm64)
  read_lists "${suites[@]}"
  begin_step "QEMU $(version qemu-system-arm) for arm64, firmware, busybox" "$({
    own apt-get install -qq --print-uris "${packages[@]}"
    own apt-get download -qq --print-uris busybox-static:arm64
  } | total)"
  download_with_dependencies "${packages[@]}"
  download busybox-static:arm64
  unpack "$part"
  # 400 MB of other firmware, and the emulator of 32-bit machines.
  rm -rf "$part"/root/usr/share/AAVMF "$part"/root/usr/bin/qemu-system-arm
  # shellcheck disable=SC2016 # the wrapper expands it
  wrapper "$part/qemu" qemu-system-aarch64 '-L "$root/usr/share/qemu"'
  "$part/qemu" -device iommu-testdev,help >"$work/log" 2>&1 || fail_step # QEMU 11.1 is the first to have it
  mv -T "$part" "$l1_machine_dir"
  end_step
}

build_l1_kernel() {
  local part=$work/l1-kernel sources
  [[ $work != *[[:space:]:]* ]] ||
    die "the kernel does not build in $cache: set XDG_CACHE_HOME to a folder without spaces and colons in its name"
  command -v gcc >/dev/null || die "gcc is missing: install the packages gcc and libc6-dev"
  fetch_kernel_tools
  fetch_kernel_source
  begin_step "configuring it"
  (use_kernel_tools && make_kernel KCONFIG_ALLCONFIG="$l1_config" allnoconfig) >"$work/log" 2>&1 || fail_step
  lines_not_taken >"$work/log"
  [[ ! -s $work/log ]] || fail_step
  end_step
  begin_step "building it, a dot for every 100 of 2100 files" " "
  (use_kernel_tools && make_kernel -j"$(nproc)" Image) 2>&1 | tee "$work/log" | dots || fail_step
  mkdir "$part"
  mv "$sources/arch/arm64/boot/Image" "$part"
  mv -T "$part" "$l1_kernel_dir"
  rm -rf "$sources" "$work/tools"
  end_step
}

# What the kernel's build needs beside the machine's own C compiler and is not installed. It has to run with the
# machine's own C library, so it is of the machine's own Debian.
fetch_kernel_tools() {
  local need packages=()
  for need in aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu flex:flex bison:bison bc:bc make:make xz:xz-utils; do
    command -v "${need%:*}" >/dev/null || packages+=("${need#*:}")
  done
  [[ ${#packages[@]} -gt 0 ]] || return 0
  read_lists "$(own_suite)"
  begin_step "${packages[*]}" "$(own apt-get install -qq --print-uris "${packages[@]}" | total)"
  download_with_dependencies "${packages[@]}"
  rm -f "$work"/apt/archives/libc6_*.deb
  unpack "$work/tools"
  (use_kernel_tools && aarch64-linux-gnu-gcc --version && flex --version && bison --version) >"$work/log" 2>&1 || fail_step
  end_step
}

# The tools that were fetched come first, with their libraries and what they look for at fixed places.
use_kernel_tools() {
  local root=$work/tools/root
  [[ -d $root ]] || return 0
  export PATH=$root/usr/bin:$PATH
  export LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu
  [[ ! -e $root/usr/bin/m4 ]] || export M4=$root/usr/bin/m4
  [[ ! -e $root/usr/bin/bison ]] || export BISON_PKGDATADIR=$root/usr/share/bison
}

# Sets the caller's `sources`.
fetch_kernel_source() {
  local package=linux-source-$l1_kernel_series
  read_lists "${suites[@]}"
  [[ -n $(version "$package" 2>/dev/null) ]] ||
    package=$(own apt-cache depends linux-source | sed -n 's/.*Depends: \(linux-source-.*\)/\1/p')
  begin_step "Linux $(version "$package"), source" "$(own apt-get download -qq --print-uris "$package" | total)"
  download "$package"
  unpack "$work/source"
  (use_kernel_tools && tar -C "$work" -xf "$work/source/root/usr/src/$package.tar.xz") >"$work/log" 2>&1 || fail_step
  rm -rf "$work/source"
  sources=$work/$package
  end_step
}

make_kernel() {
  make -C "$sources" ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- "$@"
}

# The lines of our configuration that make no difference: misspelt, or without something they depend on.
lines_not_taken() {
  local line
  while read -r line; do
    case $line in
      CONFIG_*=n) ! grep -q "^${line%n}" "$sources/.config" || echo "not taken: $line" ;;
      CONFIG_*) grep -qx "$line" "$sources/.config" || echo "not taken: $line" ;;
    esac
  done <"$l1_config"
}

# A dot for every 100 lines.
dots() {
  awk 'NR % 100 == 0 { printf "."; fflush() }' >&2
}
