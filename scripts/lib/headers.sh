# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The part `headers` of scripts/testbed: the kernel's headers for programs, of several kernels.

headers_recipe=1 # raise it when what is fetched changes: every cache then fetches it anew
# The kernels whose headers are held against what this project hands to the kernel.
headers_kernels=(7.2 7.3)

headers_begin() {
  headers_dir=$cache/headers-$headers_recipe
}

headers_complete() {
  [[ -d $headers_dir ]]
}

# One value, as PATH has several folders.
headers_print() {
  local folders=("${headers_kernels[@]/#/$headers_dir/}")
  folders=("${folders[@]/%//root/usr/include}")
  (IFS=: && echo "UAPI_HEADERS=${folders[*]}")
}

headers_fetch() {
  local part=$work/headers kernel package
  read_lists trixie-backports
  for kernel in "${headers_kernels[@]}"; do
    package=linux-libc-dev=$(newest linux-libc-dev "$kernel")
    begin_step "kernel headers ${package#*=}" "$(own apt-get download -qq --print-uris "$package" | total)"
    download "$package"
    unpack "$part/$kernel"
    end_step
  done
  mv -T "$part" "$headers_dir"
}

# newest PACKAGE KERNEL: the highest version of a package that is of this kernel.
newest() {
  local versions
  versions=$(own apt-cache madison "$1" | awk -v kernel="$2." 'index($3, kernel) == 1 { print $3 }')
  [[ -n $versions ]] || die "Debian has no $1 of Linux $2 any more: name another in scripts/lib/headers.sh"
  head -n 1 <<<"$versions"
}
