# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What a guest's job can call. Every answer is one line: the function's name, its arguments, the value.

# wait_for FILE: drivers probe their devices while the job runs already.
wait_for() {
  local tries=0
  until [ -e "$1" ]; do
    [ $((tries += 1)) -le 400 ] || { echo "guest: $1 did not appear in 20 s"; return 1; }
    usleep 50000
  done
}

# nvme FUNCTION LINK: makes a link to the NVMe disk of this PCI function: Linux numbers disks as it finds them.
nvme() {
  local disk tries=0
  until disk=$(cd "/sys/bus/pci/devices/$1/nvme" 2>/dev/null && ls -d nvme*/nvme*n1 2>/dev/null); do
    [ $((tries += 1)) -le 400 ] || { echo "guest: $1 has no NVMe disk after 20 s"; return 1; }
    usleep 50000
  done
  ln -sf "${disk##*/}" "$2"
}

# iommu_groups: a line "iommu_groups DEVICE GROUP TYPE" for each device that has a group; DMA is strict, DMA-FQ is lazy.
iommu_groups() {
  local device group
  for device in /sys/kernel/iommu_groups/*/devices/*; do
    [ -e "$device" ] || continue
    group=${device%/devices/*}
    echo "iommu_groups ${device##*/} ${group##*/} $(cat "$group/type")"
  done
  echo "iommu_groups end"
}

# iommu_log: what the kernel said about IOMMUs so far.
iommu_log() {
  dmesg | grep -iE 'iommu|viot' | sed 's/^/iommu_log /' || true
  echo "iommu_log end"
}

# checksum DEVICE MIB: the md5 of its first MiB, read by DMA (without the page cache).
checksum() {
  wait_for "$1"
  echo "checksum $1 $2 $(dd "if=$1" bs=1M "count=$2" iflag=direct status=none | md5sum | cut -d ' ' -f 1)"
}

# copy DEVICE MIB: its first MiB to those behind them, by DMA; then the md5 of these, read back by DMA.
copy() {
  wait_for "$1"
  dd "if=$1" "of=$1" bs=1M "count=$2" "seek=$2" iflag=direct oflag=direct conv=notrunc status=none
  echo "copy $1 $2 $(dd "if=$1" bs=1M "skip=$2" "count=$2" iflag=direct status=none | md5sum | cut -d ' ' -f 1)"
}

# boot_number DEVICE MIB: how many guests booted with this disk so far, as its sector behind these MiB counts them.
boot_number() {
  local number
  wait_for "$1"
  number=$(dd "if=$1" bs=1M "skip=$2" count=1 iflag=direct status=none | head -c 1)
  number=$((${number:-0} + 1))
  printf '%-512d' "$number" >/tmp/sector
  dd if=/tmp/sector "of=$1" bs=512 "seek=$(($2 * 2048))" oflag=direct conv=notrunc status=none
  echo "boot_number $1 $number"
}

# iops DEVICE COUNT KIB: how many reads of KIB KiB a second, one after another, without the page cache. The clock ticks
# every 10 ms: take a count that lasts for a second or more.
iops() {
  local begin end
  wait_for "$1"
  begin=$(cut -d ' ' -f 1 /proc/uptime)
  dd "if=$1" of=/dev/null "bs=${3}k" "count=$2" iflag=direct status=none
  end=$(cut -d ' ' -f 1 /proc/uptime)
  echo "iops $1 $2 $3 $(awk "BEGIN { print int($2 / ($end - $begin)) }")"
}

# wait_gone FILE: until a device is unplugged.
wait_gone() {
  local tries=0
  while [ -e "$1" ]; do
    [ $((tries += 1)) -le 1200 ] || { echo "guest: $1 is there after 60 s"; return 1; }
    usleep 50000
  done
  echo "wait_gone $1"
}

# interface FUNCTION: the name of this PCI function's network interface: Linux numbers them as it finds them.
interface() {
  local tries=0
  until ls "/sys/bus/pci/devices/$1/"virtio*/net 2>/dev/null; do
    [ $((tries += 1)) -le 400 ] || { echo "guest: $1 has no interface after 20 s" >&2; return 1; }
    usleep 50000
  done
}

# set_apart INTERFACE: gives it a network of its own, so that packets to it leave the machine. `apart COMMAND` runs there.
set_apart() {
  unshare -n sleep 1000 & apart=$!
  until [ "$(readlink "/proc/$apart/ns/net")" != "$(readlink "/proc/$$/ns/net")" ]; do usleep 10000; done
  ip link set "$1" netns "$apart"
}

apart() {
  nsenter -t "$apart" -n "$@"
}
