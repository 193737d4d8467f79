# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Kernels of hosts under test, built from Debian's source. The part that wants one says which:
#
#   kernel_part    its name, which the kernel's folder has in the cache
#   kernel_config  what the configuration has beyond make's allnoconfig
#   kernel_claims  what the source is made to claim (see claim), or nothing
#   kernel_arch    make's ARCH
#   kernel_cross   what the names of the compiler's programs begin with; nothing for the machine's own
#   kernel_image   what is built, in the architecture's folder boot
#   kernel_files   about how many files that takes

# Raise it when what is made of the same files changes: every cache then builds it anew. Changed files make another kernel by
# themselves; the old one stays, for a work tree that still has the old ones.
kernel_recipe=1

# The one that is proven; when Debian has it no more, the newest one is taken.
kernel_series=7.2

kernel_dir() {
  echo "$cache/$kernel_part-kernel-$kernel_recipe-$(cat "$kernel_config" ${kernel_claims:+"$kernel_claims"} | sha256sum | cut -c 1-12)"
}

# build_kernel FOLDER: the folder gets the image and nothing else.
build_kernel() {
  local part=$work/$kernel_part-kernel sources
  [[ $work != *[[:space:]:]* ]] ||
    die "the kernel does not build in $cache: set XDG_CACHE_HOME to a folder without spaces and colons in its name"
  command -v gcc >/dev/null || die "gcc is missing: install the packages gcc and libc6-dev"
  fetch_kernel_tools
  fetch_kernel_source
  [[ -z $kernel_claims ]] || claim "$kernel_claims"
  begin_step "configuring it"
  (use_kernel_tools && make_kernel KCONFIG_ALLCONFIG="$kernel_config" allnoconfig) >"$work/log" 2>&1 || fail_step
  lines_not_taken >"$work/log"
  [[ ! -s $work/log ]] || fail_step
  end_step
  begin_step "building it, a dot for every 100 of $kernel_files files" " "
  (use_kernel_tools && make_kernel -j"$(nproc)" "$kernel_image") 2>&1 | tee "$work/log" | dots || fail_step
  mkdir "$part"
  cp -L "$sources/arch/$kernel_arch/boot/$kernel_image" "$part" # make may leave a link to another architecture's folder
  mv -T "$part" "$1"
  rm -rf "$sources" "$work/tools"
  end_step
}

# What the kernel's build needs beside the machine's own C compiler and is not installed. It has to run with the
# machine's own C library, so it is of the machine's own Debian.
fetch_kernel_tools() {
  local need needs=(flex:flex bison:bison bc:bc make:make xz:xz-utils) packages=()
  [[ -z $kernel_cross ]] || needs+=("${kernel_cross}gcc:gcc-${kernel_cross%-}")
  for need in "${needs[@]}"; do
    command -v "${need%:*}" >/dev/null || packages+=("${need#*:}")
  done
  # What its own tool looks at objects with.
  [[ $kernel_arch != x86_64 ]] || has_header gelf.h || packages+=(libelf-dev)
  [[ ${#packages[@]} -gt 0 ]] || return 0
  read_lists "$(own_suite)"
  begin_step "${packages[*]}" "$(own apt-get install -qq --print-uris "${packages[@]}" | total)"
  download_with_dependencies "${packages[@]}"
  rm -f "$work"/apt/archives/{libc6,libc6-dev,linux-libc-dev}_*.deb # the machine's own are in use
  unpack "$work/tools"
  (use_kernel_tools && "${kernel_cross}gcc" --version && flex --version && bison --version) >"$work/log" 2>&1 || fail_step
  end_step
}

has_header() {
  gcc -E -include "$1" -x c /dev/null >/dev/null 2>&1
}

# The tools that were fetched come first, with their libraries and what they look for at fixed places.
use_kernel_tools() {
  local root=$work/tools/root
  [[ -d $root ]] || return 0
  export PATH=$root/usr/bin:$PATH
  export LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu
  [[ ! -e $root/usr/bin/m4 ]] || export M4=$root/usr/bin/m4
  [[ ! -e $root/usr/bin/bison ]] || export BISON_PKGDATADIR=$root/usr/share/bison
  [[ ! -e $root/usr/include/gelf.h ]] || export CPATH=$root/usr/include LIBRARY_PATH=$LD_LIBRARY_PATH
}

# Sets the caller's `sources`.
fetch_kernel_source() {
  local package=linux-source-$kernel_series
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

# claim FILE: has sed change the source. Each line that is no comment is the name of a source file and what sed does to it,
# which has to make a difference.
claim() {
  local file what
  begin_step "claiming what $(basename -- "$1") says"
  while read -r file what; do
    [[ -n $file && $file != "#"* ]] || continue
    cp "$sources/$file" "$work/before"
    sed -i -- "$what" "$sources/$file" 2>"$work/log" || fail_step
    ! cmp -s "$work/before" "$sources/$file" || { echo "no effect on $file: $what" >"$work/log" && fail_step; }
  done <"$1"
  end_step
}

make_kernel() {
  make -C "$sources" ARCH="$kernel_arch" CROSS_COMPILE="$kernel_cross" "$@"
}

# The lines of our configuration that make no difference: misspelt, or without something they depend on.
lines_not_taken() {
  local line
  while read -r line; do
    case $line in
      CONFIG_*=n) ! grep -q "^${line%n}" "$sources/.config" || echo "not taken: $line" ;;
      CONFIG_*) grep -qx "$line" "$sources/.config" || echo "not taken: $line" ;;
    esac
  done <"$kernel_config"
}

# A dot for every 100 lines.
dots() {
  awk 'NR % 100 == 0 { printf "."; fflush() }' >&2
}
