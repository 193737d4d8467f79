# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The part `l2` of scripts/testbed: QEMU for the arm64 host, which runs guests with it. What the guests themselves are
# made of is the host's own: its kernel, firmware and busybox.

l2_recipe=1 # raise it when what is fetched changes: every cache then fetches it anew

l2_begin() {
  l2_dir=$cache/l2-$l2_recipe
}

l2_complete() {
  [[ -d $l2_dir ]]
}

l2_print() {
  echo "CACHE=$cache"
  echo "HOST_USR=$l2_dir/usr"
}

# The program and its libraries, as a folder to be the host's /usr.
l2_fetch() {
  local part=$work/l2 package=qemu-system-arm:arm64 foreign=(arm64) libraries=usr/lib/aarch64-linux-gnu
  read_lists "${suites[@]}"
  begin_step "QEMU $(version "$package") of arm64" "$(own apt-get install -qq --print-uris "$package" | total)"
  download_with_dependencies "$package"
  rm -f "$work"/apt/archives/*_amd64.deb # what the packages' own scripts would run here
  unpack "$part"
  mkdir -p "$part"/usr/{bin,"${libraries#usr/}",share/qemu}
  mv "$part"/root/usr/bin/qemu-system-aarch64 "$part/usr/bin"
  mv "$part"/root/usr/lib/ld-linux-aarch64.so.1 "$part/usr/lib"
  # Without the folders of plug-ins: nothing here has windows, sound or other character sets.
  find "$part/root/$libraries" -maxdepth 1 ! -type d -exec mv -t "$part/$libraries" {} +
  rm -rf "$part/root"
  mv -T "$part" "$l2_dir"
  end_step
}
