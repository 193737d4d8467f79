# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The part `vtd` of scripts/testbed: the kernel of an x86-64 host whose VT-d is claimed to nest. QEMU and busybox are those of
# other guests.

vtd_begin() {
  kernel_config=$here/../tests/l1/vtd.config kernel_claims=$here/../tests/l1/vtd.claims kernel_part=vtd
  kernel_arch=x86_64 kernel_cross='' kernel_image=bzImage kernel_files=1700
  rust_target=x86_64-unknown-linux-musl
  vtd_kernel_dir=$(kernel_dir)
}

vtd_complete() {
  [[ -d $vtd_kernel_dir ]] && has_rust_target
}

vtd_print() {
  echo "CACHE=$cache"
  echo "KERNEL=$vtd_kernel_dir/bzImage"
}

vtd_fetch() {
  [[ -d $vtd_kernel_dir ]] || build_kernel "$vtd_kernel_dir"
  has_rust_target || add_rust_target
}
