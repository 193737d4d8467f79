# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The part `l1` of scripts/testbed: the arm64 host in which iommufd and VFIO are tested.

l1_machine_recipe=1 # raise it when what is fetched changes: every cache then fetches it anew

l1_begin() {
  kernel_config=$here/../tests/l1/kernel.config kernel_claims='' kernel_part=l1
  kernel_arch=arm64 kernel_cross=aarch64-linux-gnu- kernel_image=Image kernel_files=2100
  rust_target=aarch64-unknown-linux-musl
  l1_machine_dir=$cache/l1-machine-$l1_machine_recipe
  l1_kernel_dir=$(kernel_dir)
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
  [[ -d $l1_kernel_dir ]] || build_kernel "$l1_kernel_dir"
  has_rust_target || add_rust_target
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
