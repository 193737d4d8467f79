# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What scripts/testbed fetches by default: QEMU, and what x86-64 guests are made of.

guest_recipe=1 # raise it when what is fetched changes: every cache then fetches it anew
probe=(-device "vhost-user-test-device-pci,help")
need_qemu=y

guest_begin() {
  qemu_dir=$cache/qemu-$guest_recipe guest_dir=$cache/guest-$guest_recipe
  [[ -z ${QEMU-} ]] || take_given_qemu
}

take_given_qemu() {
  given=$(command -v -- "$QEMU") || die "QEMU=$QEMU: no such program"
  given=$(realpath -s -- "$given") # guest_print names it
  [[ $("$given" "${probe[@]}" 2>&1) == *virtio-id* ]] ||
    die "QEMU=$QEMU has no vhost-user-test-device-pci: version 10.2 or newer is needed (unset QEMU to fetch one)"
  need_qemu=
}

guest_complete() {
  [[ (-z $need_qemu || -d $qemu_dir) && -d $guest_dir ]]
}

guest_print() {
  local modules=("$guest_dir"/root/usr/lib/modules/*)
  echo "CACHE=$cache"
  echo "QEMU=${given:-${need_qemu:+$qemu_dir/qemu}}"
  echo "KERNEL=${modules[0]}/vmlinuz"
  echo "MODULES=${modules[0]}"
  echo "BUSYBOX=$guest_dir/root/usr/bin/busybox"
  echo "GRUB_MKIMAGE=$guest_dir/grub-mkimage"
  echo "GRUB_MODULES=$guest_dir/root/usr/lib/grub/i386-pc"
}

guest_fetch() {
  read_lists "${suites[@]}"
  [[ -z $need_qemu || -d $qemu_dir ]] || fetch_qemu
  [[ -d $guest_dir ]] || fetch_linux
}

fetch_qemu() {
  local part=$work/qemu
  begin_step "QEMU $(version qemu-system-x86)" "$(own apt-get install -qq --print-uris qemu-system-x86 | total)"
  download_with_dependencies qemu-system-x86
  unpack "$part"
  # shellcheck disable=SC2016 # the wrapper expands it
  wrapper "$part/qemu" qemu-system-x86_64 '-L "$root/usr/share/qemu" -L "$root/usr/share/seabios"'
  "$part/qemu" "${probe[@]}" >"$work/log" 2>&1 || fail_step
  mv -T "$part" "$qemu_dir"
  end_step
}

# The kernel's packages without what they depend on: it would be all that a Debian needs to install a kernel.
fetch_linux() {
  local part=$work/guest tools=(busybox-static grub-pc-bin) release kernel
  release=$(own apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: linux-image-\([0-9].*\)/\1/p')
  kernel=("linux-binary-$release" "linux-modules-$release")
  begin_step "Linux $release, busybox, GRUB" "$({
    own apt-get install -qq --print-uris "${tools[@]}"
    own apt-get download -qq --print-uris "${kernel[@]}"
  } | total)"
  download_with_dependencies "${tools[@]}"
  download "${kernel[@]}"
  unpack "$part"
  wrapper "$part/grub-mkimage" grub-mkimage
  { "$part/grub-mkimage" --version && "$part/root/usr/bin/busybox" true; } >"$work/log" 2>&1 || fail_step
  mv -T "$part" "$guest_dir"
  end_step
}
