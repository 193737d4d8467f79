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

# iops DEVICE COUNT: how many reads of 4 KiB a second, one after another, without the page cache. The clock ticks every
# 10 ms: take a count that lasts for a second or more.
iops() {
  local begin end
  wait_for "$1"
  begin=$(cut -d ' ' -f 1 /proc/uptime)
  dd "if=$1" of=/dev/null bs=4k "count=$2" iflag=direct status=none
  end=$(cut -d ' ' -f 1 /proc/uptime)
  echo "iops $1 $2 $(awk "BEGIN { print int($2 / ($end - $begin)) }")"
}
